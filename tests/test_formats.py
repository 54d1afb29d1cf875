"""What can be sent arrives as it was, across a process border, without a copy on receive."""

import array
import ctypes
import time
import weakref
from collections.abc import Callable
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, is_in_pool

Spawn = Callable[..., Child]

POINT = np.dtype([("x", "<f4"), ("y", ">i2"), ("name", "S5"), ("when", "<M8[us]")])
PADDED = np.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [1, 16], "itemsize": 32})
NESTED = np.dtype([("pair", [("l", "i4"), ("r", "i4")]), ("grid", "f4", (2, 3))])


def of_type(dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array of that type and shape with some content that is not all the same."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    if dtype.kind == "b":
        return (np.arange(count) % 3 == 0).reshape(shape)
    if dtype.kind == "U":
        return np.array([f"ünï {i}"[: dtype.itemsize // 4] for i in range(count)], dtype).reshape(shape)
    raw = payload(7, count * dtype.itemsize)
    # Small integers in every byte: as floats these are neither NaN (unequal to itself) nor infinite.
    return (raw % 7).view(np.uint8)[: count * dtype.itemsize].copy().view(dtype).reshape(shape)


TYPES = ["?", "i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", "u8", "<f2", "<f4", ">f4", "f8", "c8", "c16", "g",
         "S7", "<U5", ">U3", "V9", "<M8[ns]", "<M8[D]", ">M8[s]", "<m8[ms]", POINT, PADDED, NESTED]  # fmt: skip
SHAPES = [(), (0,), (1,), (3,), (0, 4), (2, 3), (2, 1, 3, 2), (1000,)]
ORDERS = {
    "fortran": lambda: np.asfortranarray(np.arange(60.0).reshape(5, 12)),
    "every other": lambda: np.arange(4000, dtype="<i4")[::2],
    "backwards": lambda: np.arange(4000, dtype="<i4")[::-1],
    "transposed": lambda: np.arange(3000, dtype="<u2").reshape(10, 15, 20).transpose(1, 2, 0),
    "broadcast": lambda: np.broadcast_to(np.arange(100.0), (40, 100)),
    "column": lambda: np.arange(10_000, dtype=np.uint8).reshape(100, 100)[:, 7],
    "field": lambda: of_type(POINT, (500,))["when"],
    "large fortran": lambda: np.asfortranarray(np.arange(1 << 18, dtype="<f4").reshape(512, 512)),
}


def send_arrays(line: Line) -> None:
    """Sends every type in every shape, then the odd orders."""
    with byref.Publisher("arrays") as pub:
        pub.wait_for_subscribers(timeout=30)
        for dtype in TYPES:
            for shape in SHAPES:
                pub.send(of_type(dtype, shape))
        for make in ORDERS.values():
            pub.send(make())
        line.hear()


def test_numpy_arrays_of_any_type_shape_and_order(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("arrays")
    sender = spawn(send_arrays)
    wanted = [of_type(dtype, shape) for dtype in TYPES for shape in SHAPES]
    wanted += [make() for make in ORDERS.values()]
    for expected in wanted:
        msg = sub.recv(timeout=30)
        assert msg.dtype == expected.dtype
        assert msg.dtype.byteorder == expected.dtype.byteorder
        assert msg.shape == expected.shape
        assert msg.nbytes == expected.nbytes
        for seen in (msg.value, np.asarray(msg), msg.writable()):
            assert seen.dtype == expected.dtype
            assert seen.shape == expected.shape
            assert seen.tobytes() == expected.tobytes()
            assert seen.flags.c_contiguous
        if expected.ndim:
            assert len(msg) == len(expected)
        assert bytes(msg) == expected.tobytes()
    sender.tell()
    sender.finish()


def plain() -> list[tuple[Any, bytes]]:
    """Things that are plain bytes, and the bytes."""
    raw = bytes(payload(3, 3000))
    return [
        (b"", b""),
        (raw[:5], raw[:5]),
        (raw, raw),
        (bytearray(raw), raw),
        (memoryview(raw)[10:2000], raw[10:2000]),
        (array.array("B", raw), raw),
        (memoryview(raw).cast("c"), raw),
        (pa.py_buffer(raw), raw),
    ]


def send_plain(line: Line) -> None:
    """Sends all of `plain`."""
    with byref.Publisher("plain") as pub:
        pub.wait_for_subscribers(timeout=30)
        for data, _ in plain():
            pub.send(data)
        line.hear()


def test_plain_bytes(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("plain")
    sender = spawn(send_plain)
    for data, raw in plain():
        msg = sub.recv(timeout=30)
        assert bytes(msg) == raw, data
        assert (msg.shape, msg.dtype, msg.nbytes, len(msg)) == ((len(raw),), np.uint8, len(raw), len(raw))
        view = memoryview(msg)
        assert (view.format, view.shape, view.readonly) == ("B", (len(raw),), True)
        assert isinstance(msg.value, memoryview)
        assert bytes(pa.py_buffer(msg)) == raw
    sender.tell()
    sender.finish()


class Pixel(ctypes.Structure):
    """A typed buffer that is not NumPy's."""

    _fields_ = (("grey", ctypes.c_int32), ("depth", ctypes.c_float))


TYPED: dict[str, Callable[[], Any]] = {
    "array of double": lambda: array.array("d", [1.5, -2.0, 3e300]),
    "array of short": lambda: array.array("h", range(-500, 500)),
    "memoryview cast": lambda: memoryview(bytes(range(240))).cast("I"),
    "memoryview of two dimensions": lambda: memoryview(bytes(range(24))).cast("B", (2, 3, 4)),
    "memoryview with steps": lambda: memoryview(bytes(range(100)))[::3],
    "ctypes array": lambda: (ctypes.c_int16 * 4)(1, -2, 3, -4),
    "ctypes bytes": lambda: (ctypes.c_ubyte * 100)(*range(100)),
    "ctypes structures": lambda: (Pixel * 2)(Pixel(1, 2.5), Pixel(3, 4.5)),
}


@pytest.mark.parametrize("kind", TYPED)
def test_typed_buffers_keep_their_type(kind: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    data = TYPED[kind]()
    pub.send(data)
    msg, expected = sub.recv(timeout=30), np.asarray(data)
    assert msg.dtype == expected.dtype
    assert msg.shape == expected.shape
    assert np.asarray(msg).tobytes() == expected.tobytes()


def test_a_received_message_can_be_sent_on(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    onward, last = endpoints.publisher("onward"), endpoints.subscriber("onward")
    onward.wait_for_subscribers(timeout=30)
    for sent in (b"short", bytes(payload(1, 70_000)), of_type("<M8[ns]", (30, 40)), of_type(POINT, (7,))):
        pub.send(sent)
        msg = sub.recv(timeout=30)
        onward.send(msg)
        again = last.recv(timeout=30)
        assert bytes(again) == bytes(msg)
        assert (again.dtype, again.shape) == (msg.dtype, msg.shape)


def send_one_mib(line: Line) -> None:
    """Sends a large array."""
    with byref.Publisher("large") as pub:
        pub.wait_for_subscribers(timeout=30)
        pub.send(payload(5, 1 << 20).view("<f4").reshape(512, 512))
        line.hear()


def test_no_copy_on_receive(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("large")
    sender = spawn(send_one_mib)
    msg = sub.recv(timeout=30)
    address = np.asarray(msg).ctypes.data
    assert is_in_pool(address)
    assert is_in_pool(address + msg.nbytes - 1)
    views = [msg.value, np.asarray(msg), np.asarray(memoryview(msg)), np.frombuffer(msg, "<f4")]
    assert {view.ctypes.data for view in views} == {address}
    assert pa.py_buffer(msg).address == address
    assert sub.stats()["copied_bytes"] == 0
    assert sub.stats()["bytes"] == 1 << 20
    sender.tell()
    sender.finish()


def test_a_copy_is_made_where_one_is_asked_for(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(np.arange(1000, dtype="<i4"))
    msg = sub.recv(timeout=30)
    assert not is_in_pool(np.array(msg).ctypes.data)
    assert np.array(msg).flags.writeable
    as_float = np.asarray(msg, dtype="f8")
    assert as_float.dtype == "f8"
    assert as_float[999] == 999.0


def test_types_that_the_buffer_protocol_cannot_name(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(np.arange("2020-01-01", "2021-01-01", dtype="<M8[D]"))
    msg = sub.recv(timeout=30)
    with pytest.raises(BufferError, match=r"msg\.value"):
        memoryview(msg)
    assert np.asarray(msg)[31] == np.datetime64("2020-02-01")
    assert msg.value[31] == np.datetime64("2020-02-01")


def send_with_attributes(line: Line, headers: dict[str, Any]) -> None:
    """Sends with and without attributes, from a named publisher, and is killed."""
    pub = byref.Publisher("attributes", name="front camera")
    pub.wait_for_subscribers(timeout=30)
    begin = time.time_ns()
    pub.send(b"plain")
    pub.send(b"small", headers=headers | {"raw": b"\0\xff"}, timestamp_ns=12345)
    pub.send(np.ones((200, 300)), headers=headers, timestamp_ns=2**64 - 1)
    line.tell([begin, time.time_ns()])
    line.hear()


def test_attributes(spawn: Spawn, endpoints: Endpoints) -> None:
    headers = {"s": "ünï\0code", "": "", "i": -(2**63), "j": 2**63 - 1, "f": 1.5e300, "t": True, "n": False}
    sub = endpoints.subscriber("attributes")
    sender = spawn(send_with_attributes, headers)
    begin, end = sender.hear()
    plain_one, small, large = (sub.recv(timeout=30) for _ in range(3))
    sender.kill()
    assert [msg.sequence for msg in (plain_one, small, large)] == [0, 1, 2]
    assert begin <= plain_one.timestamp_ns <= end
    assert (small.timestamp_ns, large.timestamp_ns) == (12345, 2**64 - 1)
    assert plain_one.headers == {}
    assert small.headers == headers | {"raw": b"\0\xff"}
    assert large.headers == headers
    assert {key: type(value) for key, value in large.headers.items()} == {
        key: type(value) for key, value in headers.items()
    }
    for msg in (plain_one, small, large):
        assert msg.topic == "attributes"
        publisher = msg.publisher
        assert (publisher.pid, publisher.name, publisher.topic) == (sender.pid, "front camera", "attributes")
        assert publisher == plain_one.publisher
        assert hash(publisher) == hash(plain_one.publisher)
        assert len(publisher.id) == 32
        with pytest.raises(AttributeError):
            publisher.pid = 1
        with pytest.raises(AttributeError):
            msg.sequence = 1
    assert (large.shape, large.dtype, large.nbytes) == ((200, 300), np.float64, 480_000)
    large.headers["s"] = "mine"
    assert large.headers == headers


def test_publishers_have_different_identities(endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    for name in ("one", None):
        endpoints.publisher(name=name)
    sub.wait_for_publishers(2, timeout=30)
    first, second = sub.publishers
    assert first != second
    assert {first.name, second.name} == {"one", None}
    assert first.id != second.id


def test_headers_of_any_length(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for size in (1, 200, 300, 5000, 100_000):
        headers = {f"h{i}": "x" * (size // 5) for i in range(5)}
        pub.send(b"abc", headers=headers)
        msg = sub.recv(timeout=30)
        assert (bytes(msg), msg.headers) == (b"abc", headers)
        loan = pub.loan((3, 4), "i2")
        loan.array[:] = size % 1000
        loan.headers.update(headers)
        loan.send()
        msg = sub.recv(timeout=30)
        assert (msg.shape, msg.headers) == ((3, 4), headers)
        assert (np.asarray(msg) == size % 1000).all()


def test_every_size_around_the_borders(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    sizes = [*range(70), *range(byref.INLINE_LIMIT - 9, byref.INLINE_LIMIT + 10), 4095, 4096, 4097, 65535, 65537]
    for size in sizes:
        for headers in (None, {"k": size}):
            pub.send(payload(size, size), headers=headers)
            msg = sub.recv(timeout=30)
            assert is_payload(msg, size, size)
            assert msg.headers == (headers or {})


def test_weak_references(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(bytes(5000))
    msg = sub.recv(timeout=30)
    ref = weakref.ref(msg)
    view = np.asarray(msg)
    del msg
    assert ref() is not None
    del view
    assert ref() is None
    for thing in (pub, sub):
        assert weakref.ref(thing)() is thing


def test_texts_for_people(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(b"12345")
    msg = sub.recv(timeout=30)
    assert "5 bytes" in repr(msg)
    for thing in (pub, sub, msg, msg.publisher, pub.subscribers[0]):
        assert "'t'" in repr(thing).replace('"', "'") or "block" in repr(thing)
    msg.release()
    assert "released" in repr(msg)
