"""Cap'n Proto messages are read where they lie, and their readers hold the lease."""

import ctypes
import gc
import random
import signal
import struct
from collections.abc import Callable
from typing import Any

import byref
import byref.capnp
import capnp
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import payload
from tests.processes import ROOT, Child, Line, eventually, is_in_pool
from tests.test_lifetime import mapped_pools, whole_pool_is_free

Spawn = Callable[..., Child]

MIB = 1 << 20
capnp.remove_import_hook()
Frame = capnp.load(str(ROOT / "tests/frame.capnp")).Frame


def build(seed: int, nbytes: int, **options: Any) -> Any:
    """A builder of a frame with so many bytes of pixels; all of it depends on the seed."""
    return Frame.new_message(
        id=seed,
        name=f"frame {seed}",
        pixels=bytes(payload(seed, nbytes)),
        points=[{"x": seed + i, "y": -i} for i in range(20)],
        samples=[seed * 0.5 + i for i in range(100)],
        next={"id": seed + 1, "name": "the next"},
        **options,
    )


def is_frame(frame: Any, seed: int, nbytes: int) -> bool:
    """Whether a reader shows what `build` made."""
    return bool(
        (frame.id, frame.name, frame.next.id, frame.next.name) == (seed, f"frame {seed}", seed + 1, "the next")
        and [(point.x, point.y) for point in frame.points] == [(seed + i, -i) for i in range(20)]
        and list(frame.samples) == [seed * 0.5 + i for i in range(100)]
        and frame.pixels == bytes(payload(seed, nbytes))
    )


def publish_frames(line: Line, nbytes: int, max_memory: int, subscribers: int) -> None:
    """For each pair heard, sends the frames of the seeds from the first to before the second."""
    with byref.Publisher("t", max_memory=max_memory) as pub:
        pub.wait_for_subscribers(subscribers, timeout=30)
        while (order := line.hear()) is not None:
            for seed in range(*order):
                pub.send(build(seed, nbytes).to_bytes())
            line.tell("sent")


# ---- reading ----


@pytest.mark.parametrize("nbytes", [0, 5000, MIB])
def test_frames_across_processes(nbytes: int, spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    publisher = spawn(publish_frames, nbytes, 64 * MIB, 1)
    publisher.tell([0, 5])
    for seed in range(5):
        assert is_frame(byref.capnp.read(Frame, sub.recv(timeout=30)), seed, nbytes)
    assert sub.stats()["copied_bytes"] == 0
    publisher.tell(None)
    assert publisher.hear() == "sent"
    publisher.finish()


def test_messages_of_several_segments(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for first in (1, 2, 50):
        built = build(first, 3000, num_first_segment_words=first)
        count = len(built.to_segments())
        assert count > 1 or first == 50
        pub.send(built.to_bytes())
        assert is_frame(byref.capnp.read(Frame, sub.recv(timeout=30)), first, 3000)


def test_an_inline_message(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(Frame.new_message(id=7, name="small").to_bytes())
    msg = sub.recv(timeout=30)
    frame = byref.capnp.read(Frame, msg)
    with pytest.raises(BufferError, match="views"):
        msg.release()
    del msg
    gc.collect()
    assert (frame.id, frame.name) == (7, "small")


def test_a_message_with_a_type(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    words = np.frombuffer(build(3, 500).to_bytes(), "<u8")
    for shape in (words.shape, (1, -1)):
        pub.send(words.reshape(shape))
        assert is_frame(byref.capnp.read(Frame, sub.recv(timeout=30)), 3, 500)


def test_segments_filled_into_a_loan(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    segments = build(4, 5000, num_first_segment_words=50).to_segments()
    lengths = [len(segments) - 1, *(len(segment) // 8 for segment in segments)]
    table = struct.pack(f"<{len(lengths)}I", *lengths).ljust((len(segments) // 2 + 1) * 8, b"\0")
    # What is behind the last segment does not matter.
    with pub.loan(len(table) + sum(map(len, segments)) + 800) as memory:
        at = 0
        for piece in (table, *segments):
            memory[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
    assert is_frame(byref.capnp.read(Frame, sub.recv(timeout=30)), 4, 5000)


def test_other_buffers() -> None:
    raw = build(1, 1000).to_bytes()
    array = np.frombuffer(raw, "<u8").copy()
    for buffer in (raw, bytearray(raw), memoryview(array), array, array.reshape(1, -1)):
        assert is_frame(byref.capnp.read(Frame, buffer), 1, 1000)
    shifted = memoryview(bytearray(8 + len(raw)))[4 : 4 + len(raw)]
    shifted[:] = raw
    with pytest.raises(ValueError, match="4 bytes behind"):
        byref.capnp.read(Frame, shifted)
    with pytest.raises(TypeError):
        byref.capnp.read(Frame, "text")  # type: ignore[arg-type]


def test_limits(endpoints: Endpoints) -> None:
    raw = build(1, 80_000).to_bytes()
    frame = byref.capnp.read(Frame, raw, traversal_limit_in_words=11_000)
    assert len(frame.pixels) == 80_000
    with pytest.raises(capnp.KjException, match="traversal limit"):
        _ = frame.pixels
    with pytest.raises(capnp.KjException, match="nest"):
        _ = byref.capnp.read(Frame, raw, nesting_limit=1).next.name


TABLES = {
    "nothing": (b"", "empty"),
    "not whole words": (bytes(12), "no multiple of 8"),
    "a segment too long": (struct.pack("<2I8x", 0, 2), "segment 0 of 1 ends at byte 24, of 16"),
    "the last too long": (struct.pack("<4I8x", 1, 0, 2, 0), "segment 1 of 2 ends at byte 32, of 24"),
    "all bits set": (b"\xff" * 64, "4294967296 segments"),
    "513 segments": (struct.pack("<I", 512) + bytes(4 * 601), "513 segments; at most 512"),
    "a table cut off": (struct.pack("<8I", 7, 0, 0, 0, 0, 0, 0, 0), "within the table of its 8 segments"),
}


@pytest.mark.parametrize("what", TABLES)
def test_what_is_no_message(what: str, endpoints: Endpoints) -> None:
    raw, text = TABLES[what]
    pub, sub = endpoints.pair()
    pub.send(b"first")
    pub.send(raw)
    assert bytes(sub.recv(timeout=30)) == b"first"
    msg = sub.recv(timeout=30)
    with pytest.raises(byref.capnp.Malformed, match=text) as refused:
        byref.capnp.read(Frame, msg)
    assert "message 1 of 't'" in str(refused.value)
    assert isinstance(refused.value, byref.Error)
    assert isinstance(refused.value, ValueError)
    # Not even the traceback holds the message.
    msg.release()
    with pytest.raises(ValueError, match=text):
        byref.capnp.read(Frame, raw)


def test_the_packed_encoding_is_refused() -> None:
    packed = build(1, 1001).to_bytes_packed()
    with pytest.raises(byref.capnp.Malformed):
        byref.capnp.read(Frame, packed)


def test_512_segments_are_allowed() -> None:
    table = struct.pack("<I", 511) + struct.pack("<I", 2) + bytes(4 * 511)
    # A root pointer to a struct of one word, and that word.
    raw = table.ljust(257 * 8, b"\0") + struct.pack("<2IQ", 0, 1, 9)
    assert byref.capnp.read(Frame, raw).id == 9


def test_spoiled_messages_raise_and_nothing_worse() -> None:
    chance = random.Random(1)
    raw = np.frombuffer(build(1, 200, num_first_segment_words=40).to_bytes(), np.uint8)
    seen = set()
    for _ in range(3000):
        spoiled = raw.copy()
        for _ in range(chance.choice((1, 2, 5))):
            spoiled[chance.randrange(chance.choice((16, 64, len(raw))))] ^= 1 << chance.randrange(8)
        try:
            frame = byref.capnp.read(Frame, spoiled, traversal_limit_in_words=10_000)
            seen.add(is_frame(frame, 1, 200))
        except (byref.capnp.Malformed, capnp.KjException, UnicodeDecodeError) as problem:
            seen.add(type(problem))
    assert seen >= {True, False, byref.capnp.Malformed, capnp.KjException}


# ---- the lease ----


def test_a_reader_outlives_message_subscriber_and_publisher(spawn: Spawn) -> None:
    sub = byref.Subscriber("t")
    publisher = spawn(publish_frames, MIB, 64 * MIB, 1)
    publisher.tell([0, 1])
    msg = sub.recv(timeout=30)
    frame = byref.capnp.read(Frame, msg)
    points = frame.points
    sub.close()
    publisher.kill()
    del msg, sub
    gc.collect()
    assert is_frame(frame, 0, MIB)
    # A part of it holds all of it.
    del frame
    gc.collect()
    assert points[3].y == -3
    assert len(mapped_pools()) == 1
    del points
    gc.collect()
    assert eventually(lambda: not mapped_pools(), "the memory goes with the reader")


def test_a_reader_stays_right_while_traffic_goes_on(spawn: Spawn, endpoints: Endpoints) -> None:
    sub, other = byref.Subscriber("t"), endpoints.subscriber()
    publisher = spawn(publish_frames, MIB, 8 * MIB, 2)
    publisher.tell([0, 1])
    frame = byref.capnp.read(Frame, sub.recv(timeout=30))
    sub.close()
    del sub
    publisher.tell([1, 50])
    for seed in range(50):
        assert is_frame(byref.capnp.read(Frame, other.recv(timeout=30)), seed, MIB)
    assert is_frame(frame, 0, MIB)


def test_the_memory_comes_back(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=16 * MIB)
    frames = []
    for seed in range(4):
        pub.send(build(seed, MIB, num_first_segment_words=1 + seed * 100).to_bytes())
        msg = sub.recv(timeout=30)
        frames += [byref.capnp.read(Frame, msg), byref.capnp.read(Frame, msg).next]
        with pytest.raises(BufferError, match="views"):
            msg.release()
        del msg
    assert not whole_pool_is_free(pub, 15 * MIB)
    assert all(is_frame(frames[2 * seed], seed, MIB) for seed in range(4))
    frames.clear()
    gc.collect()
    assert eventually(lambda: whole_pool_is_free(pub, 15 * MIB), "all memory is free again")


def exit_with_readers(line: Line) -> None:
    """Ends with readers alive, also in a cycle."""
    pub, sub = byref.Publisher("t"), byref.Subscriber("t")
    pub.wait_for_subscribers(timeout=30)
    for nbytes in (0, MIB):
        pub.send(build(0, nbytes).to_bytes())
        frame = byref.capnp.read(Frame, sub.recv(timeout=30))
        kept: list[Any] = [frame, frame.points]
        kept.append(kept)
        globals()[f"kept{nbytes}"] = kept
    line.tell("ends")


def test_interpreter_exit_with_readers_alive(spawn: Spawn) -> None:
    child = spawn(exit_with_readers)
    assert child.hear() == "ends"
    child.finish()
    assert child.output() == ""


# ---- isolation ----


def overwrite(line: Line) -> None:
    """Receives a frame and writes on its pixels."""
    with byref.Subscriber("t") as sub:
        frame = byref.capnp.read(Frame, sub.recv(timeout=30))
        address = np.frombuffer(frame.get_data_as_view("pixels"), np.uint8).ctypes.data
        line.tell(is_in_pool(address))
        ctypes.memset(address, 0xEE, 4096)
        line.tell("survived")


def test_who_writes_on_a_frame_kills_only_itself(spawn: Spawn, endpoints: Endpoints) -> None:
    bystander = endpoints.subscriber()
    publisher = spawn(publish_frames, MIB, 64 * MIB, 2)
    vandal = spawn(overwrite)
    publisher.tell([0, 1])
    frame = byref.capnp.read(Frame, bystander.recv(timeout=30))
    assert vandal.hear() is True
    assert vandal.wait() == -signal.SIGSEGV
    assert is_frame(frame, 0, MIB)


@pytest.mark.parametrize("nbytes", [None, 5000, MIB])
def test_builders_from_readers_are_private(nbytes: int | None, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    other = endpoints.subscriber()
    other.wait_for_publishers(timeout=30)
    pub.wait_for_subscribers(2, timeout=30)
    raw = Frame.new_message(id=1).to_bytes() if nbytes is None else build(1, nbytes).to_bytes()
    pub.send(raw)
    msg, theirs = sub.recv(timeout=30), other.recv(timeout=30)
    assert (msg.nbytes <= byref.INLINE_LIMIT) == (nbytes is None)
    builder = byref.capnp.read(Frame, msg).as_builder()
    builder.id = 99
    builder.name = "mine"
    with pytest.raises((AttributeError, TypeError, capnp.KjException)):
        byref.capnp.read(Frame, msg).id = 99
    assert bytes(msg) == raw
    assert bytes(theirs) == raw
