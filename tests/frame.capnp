@0xb1f4c5a2d9e83706;

struct Frame {
  id @0 :UInt64;
  name @1 :Text;
  pixels @2 :Data;
  points @3 :List(Point);
  samples @4 :List(Float64);
  next @5 :Frame;

  struct Point {
    x @0 :Float32;
    y @1 :Float32;
  }
}
