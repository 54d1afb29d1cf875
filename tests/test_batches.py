"""Several messages in one step: `send_many`, `recv_batch`, and arrays over what they carry."""

import contextlib
import gc
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, eventually, is_in_pool
from tests.strangers import inline_record, liar, pooled_record

Spawn = Callable[..., Child]

PADDED = np.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [0, 8], "itemsize": 24})
SEEDS = np.arange(24)
ROWS: dict[str, Any] = {
    "numbers": SEEDS.astype("<f4"),
    "matrices": SEEDS.astype("<i8").reshape(4, 3, 2),
    "bytes": payload(3, 4000).reshape(4, 1000),
    "large": payload(4, 3 << 20).reshape(3, 1 << 20),
    "other byte order": SEEDS.astype(">u2"),
    "dates": SEEDS.astype("<M8[ns]"),
    "text": np.array([["a", "bcd"], ["", "é"]]),
    "padded": np.array([(1, 2.0), (3, 4.0), (5, 6.0)], PADDED),
    "a column": np.asfortranarray(SEEDS.reshape(6, 4)),
    "every other": SEEDS.reshape(12, 2)[::2],
    "backwards": SEEDS[::-1],
    "one value": np.broadcast_to(np.float64(7), (5, 2)),
    "one row": SEEDS.reshape(1, 24),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_arrive_as_messages(kind: str, endpoints: Endpoints) -> None:
    rows = ROWS[kind]
    pub, sub = endpoints.pair()
    pub.send(b"before")
    assert pub.send_many(rows, headers={"kind": kind}, timestamp_ns=5) == range(1, 1 + len(rows))
    assert pub.send(b"after") == 1 + len(rows)
    assert sub.recv(timeout=30).sequence == 0
    for index, row in enumerate(rows):
        msg = sub.recv(timeout=30)
        assert (msg.sequence, msg.timestamp_ns, msg.headers) == (1 + index, 5, {"kind": kind})
        assert (msg.shape, msg.dtype) == (row.shape, rows.dtype)
        assert np.array_equal(msg.value, row)
    assert bytes(sub.recv(timeout=30)) == b"after"
    assert pub.stats()["sent"] == sub.stats()["received"] == 2 + len(rows)


@pytest.mark.parametrize("kind", ROWS)
def test_rows_arrive_as_one_array(kind: str, endpoints: Endpoints) -> None:
    rows = ROWS[kind]
    pub, sub = endpoints.pair()
    pub.send(b"before")
    pub.send_many(rows, headers={"kind": kind}, timestamp_ns=5)
    pub.send(b"after")
    assert len(sub.recv_batch(100, timeout=30)) == 1 + (len(rows) == 1) * 2, "rows are batches of their own"
    if len(rows) == 1:
        return
    batch = sub.recv_batch(100, timeout=30)
    assert len(batch) == len(rows)
    array = batch.array()
    assert (array.shape, array.dtype) == (rows.shape, rows.dtype)
    assert np.array_equal(array, rows)
    assert not array.flags.writeable
    assert is_in_pool(array.ctypes.data), "it was copied"
    assert batch.sequences.tolist() == list(range(1, 1 + len(rows)))
    assert batch.timestamps_ns.tolist() == [5] * len(rows)
    assert [(list(run), who.pid) for run, who in batch.publishers] == [([*range(len(rows))], os.getpid())]
    assert (batch.nbytes, batch[-1].headers) == (rows.nbytes, {"kind": kind})
    assert np.array_equal(batch[1].value, rows[1])
    assert bytes(sub.recv(timeout=30)) == b"after"


LISTS: dict[str, list[Any]] = {
    "bytes": [b"abc", bytearray(b"def"), memoryview(b"ghi")],
    "arrays": [np.arange(6.0).reshape(2, 3) + place for place in range(5)],
    "arrays in pieces": [np.arange(40)[place::4] for place in range(4)],
    "one": [b"alone"],
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("make", [list, tuple])
def test_a_list_of_payloads(kind: str, make: Callable[[Any], Any], endpoints: Endpoints) -> None:
    payloads = LISTS[kind]
    pub, sub = endpoints.pair()
    assert pub.send_many(make(payloads)) == range(len(payloads))
    batch = sub.recv_batch(100, timeout=30)
    assert [bytes(msg) for msg in batch] == [np.asarray(each).tobytes() for each in payloads]
    array = batch.array()
    assert array.tobytes() == b"".join(map(bytes, batch))
    if kind.startswith("arrays"):
        assert np.array_equal(array, payloads)
    else:
        assert (array.shape, array.dtype) == ((len(payloads), len(payloads[0])), np.uint8)


def test_what_cannot_be_rows(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    wrong: list[tuple[Any, type[Exception], str]] = [
        (b"bytes", TypeError, "rows"),
        (bytearray(8), TypeError, "rows"),
        (5, TypeError, "cannot send int"),
        (np.float64(5), TypeError, "rows"),
        (iter([b"a"]), TypeError, "cannot send"),
        (np.array([object()]), TypeError, "Python objects"),
        ([b"a", object()], TypeError, "cannot send object"),
        ([b"a", b"bc"], ValueError, "number 1 differs"),
        ([np.zeros(2, "f4"), np.zeros(2, "i4")], ValueError, "number 1 differs"),
        ([np.zeros(8, "u1"), bytes(8)], ValueError, "number 1 differs"),
        ([b"", b""], ValueError, "0 bytes"),
        (np.zeros((3, 0)), ValueError, "0 bytes"),
    ]
    for rows, error, text in wrong:
        with pytest.raises(error, match=text):
            pub.send_many(rows)
    assert sub.try_recv() is None
    for nothing in ([], (), np.zeros((0, 5)), np.zeros(0)):
        assert pub.send_many(nothing) == range(0)
    assert pub.send(b"x") == 0
    assert pub.send_many([]) == range(1, 1)
    pub.close()
    for closed in ([], [b"a", b"b"], np.zeros(5)):
        with pytest.raises(byref.Closed):
            pub.send_many(closed)


def test_what_cannot_be_a_batch(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for number in (0, -1, 2**64):
        with pytest.raises(ValueError, match=r"batch|n must be"):
            sub.recv_batch(number)
    with pytest.raises(byref.Timeout, match="'t'"):
        sub.recv_batch(5, timeout=0.01)
    pub.send_many(np.arange(10))
    batch = sub.recv_batch(2**64 - 1, timeout=30)
    assert len(batch) == 10
    assert [msg.sequence for msg in batch[2:9:3]] == [2, 5, 8]
    assert [msg.sequence for msg in batch[::-4]] == [9, 5, 1]
    assert batch[-10].sequence == 0
    for wrong in (10, -11, 2**70):
        with pytest.raises((IndexError, TypeError)):
            batch[wrong]
    with pytest.raises(TypeError, match="indices"):
        batch["1"]
    sub.close()
    with pytest.raises(byref.Closed):
        sub.recv_batch(5)


def test_a_batch_of_small_messages(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for number in range(100):
        pub.send(np.float64(number).tobytes(), timestamp_ns=number)
    first, second = sub.recv_batch(60, timeout=30), sub.recv_batch(60, timeout=30)
    assert (len(first), len(second)) == (60, 40)
    assert first.array("f8").tolist() == list(range(60))
    assert second.array("f4").shape == (40, 2)
    assert second.array().shape == (40, 8)
    assert second.sequences.tolist() == second.timestamps_ns.tolist() == list(range(60, 100))
    with pytest.raises(ValueError, match="5 bytes"):
        second.array("S5")
    with pytest.raises(TypeError, match="Python objects"):
        second.array(object)
    assert sub.stats()["copied_bytes"] == 800


@pytest.mark.parametrize("size", [0, 1, 224, 225, 100_000])
def test_a_batch_of_any_size(size: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for seed in range(5):
        pub.send(payload(seed, size))
    batch = sub.recv_batch(10, timeout=30)
    assert len(batch) == 5
    assert batch.nbytes == 5 * size
    assert all(is_payload(msg, seed, size) for seed, msg in enumerate(batch))
    array = batch.array()
    assert (array.shape, array.dtype, array.flags.writeable) == ((5, size), np.uint8, False)
    assert all((row == payload(seed, size)).all() for seed, row in enumerate(array))
    if size:
        assert batch.array((np.uint8, (size,))).shape == (5, size)


def test_a_mixed_batch(endpoints: Endpoints) -> None:
    """Small and large payloads, with and without headers and types, among each other."""
    pub, sub = endpoints.pair()
    sends: list[tuple[Any, dict[str, Any]]] = [
        (b"plain", {}), (payload(1, 5000), {}), (b"", {"k": 1}), (np.arange(3.0), {}), (np.arange(3.0), {"k": 2}),
        (bytes(300), {"k": 3}), (b"plain", {}), (b"again", {}), (np.zeros((100, 100), "<M8[s]"), {}), (b"x", {"k": 4}),
    ]  # fmt: skip
    for data, headers in sends:
        pub.send(data, headers)
    batch = sub.recv_batch(100, timeout=30)
    assert len(batch) == len(sends)
    for (data, headers), msg in zip(sends, batch, strict=True):
        assert bytes(msg) == (data if isinstance(data, bytes) else data.tobytes())
        assert msg.headers == headers
        assert msg.dtype == (data.dtype if isinstance(data, np.ndarray) else np.uint8)
    with pytest.raises(ValueError, match="differ in length"):
        batch.array()


DIFFERENT: dict[str, list[Any]] = {
    "types": [np.zeros(2, "<f8"), np.zeros(2, "<i8")],
    "shapes": [np.zeros((2, 3)), np.zeros((3, 2))],
    "a type and bytes": [np.zeros(2), bytes(16)],
    "bytes and a type": [bytes(16), bytes(16), np.zeros(2)],
    "large types": [np.zeros(200, "<f8"), np.zeros(200, "<i8")],
    "large bytes and a type": [bytes(1600), np.zeros(200, "<i8")],
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_messages_of_different_types_are_no_array(kind: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for data in DIFFERENT[kind]:
        pub.send(data)
    batch = sub.recv_batch(10, timeout=30)
    with pytest.raises(ValueError, match=f"number {len(batch) - 1} .*dtype"):
        batch.array()
    assert batch.array("<u4").shape == (len(batch), batch[0].nbytes // 4)


@pytest.mark.parametrize("size", [2, 200])
def test_messages_of_one_type_with_different_headers_are_an_array(size: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for number in range(6):
        pub.send(np.full(size, number, "<f4"), {"number": number} if number % 2 else None)
    array = sub.recv_batch(10, timeout=30).array()
    assert (array.dtype, array.shape) == (np.dtype("<f4"), (6, size))
    assert array[:, -1].tolist() == list(range(6))


def test_a_batch_of_several_publishers(endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    pubs = [endpoints.publisher(name=str(place)) for place in range(3)]
    sub.wait_for_publishers(3, timeout=30)
    for pub in pubs[1:]:
        pub.wait_for_subscribers(timeout=30)
        for number in range(50):
            pub.send(f"{pub.topic}{number}".encode())
    taken: Counter[str] = Counter()
    while sum(taken.values()) < 100:
        batch = sub.recv_batch(64, timeout=30)
        end = 0
        for run, publisher in batch.publishers:
            assert run.start == end
            assert len(run) > 0, "who sent nothing is not among them"
            end = run.stop
            for index in run:
                assert batch[index].publisher == publisher
                assert batch[index].sequence == batch.sequences[index] == taken[publisher.name or ""]
                taken[publisher.name or ""] += 1
        assert end == len(batch)
    assert taken == {"1": 50, "2": 50}


def test_turns_among_publishers_are_fair(endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    pubs = [endpoints.publisher(name=str(place)) for place in range(3)]
    sub.wait_for_publishers(3, timeout=30)
    for pub in pubs:
        pub.wait_for_subscribers(timeout=30)
        pub.send_many(np.arange(10_000))
    got: Counter[str | None] = Counter()
    for _ in range(30):
        batch = sub.recv_batch(90, timeout=30)
        got[batch[0].publisher.name] += len(batch)
    assert set(got) == {"0", "1", "2"}
    assert max(got.values()) == min(got.values())


# ---- across processes ----


def size_of(sequence: int) -> int:
    """Blocks of 40 messages of one size follow each other."""
    return (8, 100, 3000)[sequence // 40 % 3]


def publish_blocks(line: Line, count: int, subscribers: int) -> None:
    """Sends messages one by one, and in blocks of 2 to 40."""
    with byref.Publisher("t", max_memory=8 << 20) as pub:
        pub.wait_for_subscribers(subscribers, timeout=30)
        line.tell("ready")
        line.hear()
        sent = 0
        while sent < count:
            rest = 40 - sent % 40
            rows = min(rest, 1 + sent * 7 % 40)
            payloads = [payload(sequence, size_of(sequence)) for sequence in range(sent, sent + rows)]
            if rows == 1:
                assert pub.send(payloads[0], timeout=60) == sent
            else:
                assert pub.send_many(np.stack(payloads), timeout=60) == range(sent, sent + rows)
            sent += rows
        pub.flush(timeout=60)
        line.tell("sent")
        line.hear()


def receive_blocks(line: Line, publishers: int, count: int, policy: str) -> None:
    """Receives one by one and in batches; every byte is right and every message taken or counted as lost."""
    expected: Counter[byref.PublisherInfo] = Counter()
    lost = taken = 0
    with byref.Subscriber("t", policy, depth=100 if policy == "drop_oldest" else None) as sub:  # type: ignore[arg-type]
        sub.wait_for_publishers(publishers, timeout=30)
        while taken + lost < publishers * count:
            most = 1 + taken * 13 % 70
            batch = [sub.recv(timeout=60)] if most % 3 == 0 else sub.recv_batch(most, timeout=60)
            assert 1 <= len(batch) <= most
            for msg in batch:
                assert msg.sequence >= expected[msg.publisher]
                lost += msg.sequence - expected[msg.publisher]
                assert is_payload(msg, msg.sequence, size_of(msg.sequence))
                expected[msg.publisher] = msg.sequence + 1
                taken += 1
        assert set(expected.values()) == {count}
        assert sub.lost == lost
        assert policy != "block" or lost == 0
        assert sub.try_recv() is None
        line.tell(lost)


@pytest.mark.parametrize("policies", [["block", "block"], ["block", "drop_oldest", "latest"]])
def test_blocks_across_processes(policies: list[str], spawn: Spawn) -> None:
    count = 8000
    publishers = [spawn(publish_blocks, count, len(policies)) for _ in range(2)]
    subscribers = [spawn(receive_blocks, 2, count, policy) for policy in policies]
    for publisher in publishers:
        assert publisher.hear() == "ready"
    for publisher in publishers:
        publisher.tell()
    for subscriber in subscribers:
        assert subscriber.hear(90) < 2 * count
        subscriber.finish()
    for publisher in publishers:
        assert publisher.hear() == "sent"
        publisher.tell()
        publisher.finish()


def publish_and_wait(line: Line) -> None:
    """Sends one block and some messages, and waits for its death."""
    pub = byref.Publisher("t")
    pub.wait_for_subscribers(timeout=30)
    pub.send_many(payload(0, 4 << 20).reshape(4096, 1024))
    for seed in range(100):
        pub.send(payload(seed, 64))
    line.tell("sent")
    line.hear()


def test_arrays_outlive_everything(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    publisher = spawn(publish_and_wait)
    assert publisher.hear() == "sent"
    batch = sub.recv_batch(3000, timeout=30)
    array, row = batch.array()[5:], batch[7]
    publisher.kill()
    rest = sub.recv_batch(3000, timeout=30).array()  # Also what was not taken yet.
    small = sub.recv_batch(3000, timeout=30).array()
    value = row.value
    del batch, row
    sub.close()
    del sub
    gc.collect()
    wanted = payload(0, 4 << 20).reshape(4096, 1024)
    assert np.array_equal(array, wanted[5:3000])
    assert np.array_equal(rest, wanted[3000:])
    assert np.array_equal(value, wanted[7])
    assert all((row == payload(seed, 64)).all() for seed, row in enumerate(small))
    assert is_in_pool(array.ctypes.data)


def test_a_row_keeps_its_block(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 << 20)
    pub.send_many(payload(0, 1 << 20).reshape(16, 1 << 16))
    kept = [sub.recv(timeout=30) for _ in range(16)][3]
    gc.collect()
    for seed in range(50):
        pub.send(payload(seed, 1 << 20), timeout=30)
        assert is_payload(sub.recv(timeout=30), seed, 1 << 20)
    assert (kept.value == payload(0, 1 << 20).reshape(16, 1 << 16)[3]).all()
    private = kept.writable()
    private[:] = 0
    assert kept.value.any()
    kept.release()
    eventually(lambda: pub.send(bytes(1 << 20)) and sub.recv(timeout=30) and pub.stats()["pool_used"] < 3 << 20, "free")


# ---- who falls behind ----


@pytest.mark.parametrize("history", [1, 2, 9, 10, 11, 25, 1000])
def test_history_may_begin_within_a_block(history: int, endpoints: Endpoints) -> None:
    pub = endpoints.publisher(history=30)
    for _ in range(10):
        pub.send_many(np.arange(10))
    late = endpoints.subscriber(history=history)
    lossy = endpoints.subscriber(history=history, policy="drop_oldest", depth=12)
    for sub, kept in ((late, min(history, 30)), (lossy, min(history, 12))):
        sub.wait_for_publishers(timeout=30)
        got = [sub.recv(timeout=30) for _ in range(kept)]
        assert [msg.sequence for msg in got] == list(range(100 - kept, 100))
        assert [int(msg.value) for msg in got] == [sequence % 10 for sequence in range(100 - kept, 100)]
        assert sub.try_recv() is None
        assert sub.lost == 0
    pub.send(b"")
    assert late.recv(timeout=30).sequence == lossy.recv(timeout=30).sequence == 100


@pytest.mark.parametrize(("policy", "depth"), [("drop_oldest", 1), ("drop_oldest", 25), ("latest", None)])
@pytest.mark.parametrize("by", ["recv", "recv_batch"])
def test_the_newest_messages_are_kept(policy: Any, depth: int | None, by: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(policy=policy, depth=depth)
    kept, sent, received = depth or 1, 0, 0
    for rows in (10, 10, 7, 1, 100, 3, 2000, 5):
        for _ in range(30):
            sent += (
                len(pub.send_many(np.arange(sent, sent + rows))) if rows > 1 else [pub.send(np.array(sent))] == [sent]
            )
        if rows == 7:
            continue  # More is lost at once then.
        got: list[byref.Message] = []
        if by == "recv":
            while (msg := sub.try_recv()) is not None:
                got.append(msg)
        else:
            with contextlib.suppress(byref.Timeout):
                while True:
                    got.extend(sub.recv_batch(4, timeout=0))
        assert [msg.sequence for msg in got] == list(range(sent - kept, sent))
        assert [int(msg.value) for msg in got] == list(range(sent - kept, sent))
        received += kept
        assert sub.lost == sent - received


def test_a_lossy_subscriber_is_overtaken_within_a_block(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(policy="drop_oldest", depth=20)
    pub.send_many(np.arange(15))
    assert [sub.recv(timeout=30).sequence for _ in range(3)] == [0, 1, 2]
    pub.send_many(np.arange(15))  # The newest 20 are 10 to 29.
    assert sub.recv(timeout=30).sequence == 10
    assert sub.lost == 7
    pub.send_many(np.arange(100))
    assert [sub.recv(timeout=30).sequence for _ in range(2)] == [110, 111]
    assert sub.lost == 7 + 99
    for _ in range(40_000):  # Over the whole ring.
        pub.send(b"")
    assert sub.recv(timeout=30).sequence == 130 + 40_000 - 20
    assert sub.lost + sub.stats()["received"] == 130 + 40_000 - 19


@pytest.mark.parametrize("by", ["recv", "recv_batch"])
def test_a_lossy_subscriber_keeps_no_block_that_it_has_not_taken(by: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 << 20, policy="drop_oldest", depth=1000)
    rows = payload(0, 3 << 20).reshape(3, 1 << 20)
    pub.send_many(rows)
    first = sub.recv(timeout=30) if by == "recv" else sub.recv_batch(1, timeout=30)[0]
    assert first.sequence == 0
    del first
    gc.collect()
    assert pub.send_many(rows, timeout=0) == range(3, 6)
    assert sub.recv(timeout=30).sequence == 3
    assert sub.lost == 2


def test_nor_one_that_ended_its_batch(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 << 20, policy="drop_oldest", depth=1000)
    rows = payload(0, 3 << 20).reshape(3, 1 << 20)
    pub.send(b"before the block")
    pub.send_many(rows)
    assert len(sub.recv_batch(10, timeout=30)) == 1
    assert pub.send_many(rows, timeout=0) == range(4, 7)
    assert sub.recv(timeout=30).sequence == 4
    assert sub.lost == 3


def test_a_lossless_subscriber_does(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 << 20)
    rows = payload(0, 3 << 20).reshape(3, 1 << 20)
    pub.send_many(rows)
    assert sub.recv(timeout=30).sequence == 0
    with pytest.raises(byref.Timeout, match="3 messages unread"):
        pub.send_many(rows, timeout=0.05)
    assert [sub.recv(timeout=30).sequence for _ in range(2)] == [1, 2]
    gc.collect()
    assert pub.send_many(rows, timeout=30) == range(3, 6)


def test_lag_counts_messages(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    slow = endpoints.subscriber(policy="drop_oldest", depth=5)
    pub.wait_for_subscribers(2, timeout=30)

    def lags() -> list[int]:
        return [info.lag for info in pub.subscribers]

    pub.send_many(np.arange(10))
    pub.send(b"")
    assert lags() == [11, 11]
    sub.recv_batch(4, timeout=30)
    assert lags()[0] == 11, "a block counts until all of it is taken"
    with pytest.raises(byref.Timeout):
        pub.flush(timeout=0)
    sub.recv_batch(100, timeout=30)
    assert lags() == [1, 11]
    sub.recv_batch(100, timeout=30)
    assert lags() == [0, 11]
    for _ in range(4):
        pub.send_many(np.arange(1000))
        sub.recv_batch(1000, timeout=30)
    assert lags() == [0, 4011]
    slow.recv(timeout=30)
    assert slow.lost == 4006
    assert lags() == [0, 1000]
    slow.recv_batch(4, timeout=30)
    pub.flush(timeout=0)


def test_depth_counts_a_block_as_one_while_it_blocks(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(depth=2)
    pub.send_many(np.arange(100))
    pub.send_many(np.arange(100))
    for send in (lambda: pub.send_many(np.arange(5), timeout=0), lambda: pub.send(b"", timeout=0)):
        with pytest.raises(byref.Timeout):
            send()
    assert pub.stats()["sent"] == 200
    assert len(sub.recv_batch(100, timeout=30)) == 100
    assert pub.send(b"", timeout=30) == 200
    assert [sub.recv(timeout=30).sequence for _ in range(101)] == list(range(100, 201))


def test_memory_that_is_short_costs_lossy_subscribers_whole_blocks(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 << 20, policy="drop_oldest", depth=8000)
    for start in range(0, 120, 4):
        pub.send_many(payload(start, 1 << 20).reshape(4, 1 << 18))
    got = []
    while (msg := sub.try_recv()) is not None:
        block = payload(msg.sequence // 4 * 4, 1 << 20).reshape(4, 1 << 18)
        assert (msg.value == block[msg.sequence % 4]).all()
        got.append(msg.sequence)
        del msg
    assert got == list(range(120 - len(got), 120))
    assert 4 <= len(got) <= 16
    assert sub.lost == 120 - len(got)


def test_threads_share_a_block(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=16 << 20)
    total = 30_000
    received: list[list[int]] = [[] for _ in range(4)]
    problems: list[BaseException] = []

    def receive(place: int) -> None:
        try:
            while True:
                batch = sub.recv_batch(7) if place % 2 else [sub.recv()]
                for msg in batch:
                    assert int(msg.value) == msg.sequence
                    received[place].append(msg.sequence)
        except byref.Closed:
            pass
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=receive, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    sent = 0
    while sent < total:
        rows = 1 + sent * 31 % 200
        sent += len(pub.send_many(np.arange(sent, sent + rows), timeout=30))
    pub.flush(timeout=30)
    sub.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert problems == []
    assert Counter(sequence for own in received for sequence in own) == Counter(range(sent))
    assert all(own == sorted(own) for own in received)


# ---- publishers that lie ----


LIES: dict[str, list[bytes]] = {
    "no messages": [pooled_record(0, 0, 0, 64)],
    "no messages, no bytes": [pooled_record(0, 0, 0, 0)],
    "no messages, later": [pooled_record(0, 1, 0, 0)],
    "no messages, much later": [pooled_record(0, 1 << 62, 0, 64)],
    "rows of no bytes": [pooled_record(0, 0, 2**32 - 1, 0)],
    "rows of different lengths": [pooled_record(0, 0, 3, 64)],
    "more rows than bytes": [pooled_record(0, 0, 2**32 - 1, 64)],
    "more bytes than there are": [pooled_record(0, 0, 2, 8192)],
    "far away": [pooled_record(0, 2**63, 2, 64)],
    "at the end": [pooled_record(0, 2**64 - 1, 2, 64)],
    "backwards": [pooled_record(0, 5, 2, 64), pooled_record(1, 3, 2, 64)],
    "small and far away": [inline_record(0, 2**63, b"no")],
    "small and backwards": [inline_record(0, 5, b"yes"), inline_record(1, 3, b"no")],
    "small and the same again": [inline_record(0, 0, b"yes"), inline_record(1, 0, b"no")],
    "the same again": [pooled_record(0, 0, 2, 64), pooled_record(1, 0, 2, 64)],
}


@pytest.mark.parametrize("by", ["recv", "recv_batch"])
@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
@pytest.mark.parametrize("lie", LIES)
def test_impossible_records(lie: str, policy: Any, by: str, rendezvous: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber(policy=policy)
    with liar(rendezvous, LIES[lie], closed=True) as end:
        sub.wait_for_publishers(timeout=20)
        honest = endpoints.publisher()
        honest.wait_for_subscribers(timeout=20)
        honest.send_many([b"ab", b"cd"])
        got = []
        while not got or got[-1] != b"cd":
            got.extend([sub.recv(timeout=20)] if by == "recv" else sub.recv_batch(2**62, timeout=20))
            got = [bytes(msg) for msg in got]
        assert len(got) <= 4, "nothing but what can be"
        assert b"no" not in got
        assert sub.try_recv() is None
        while end.recv(4096):  # Until it is left alone.
            pass


@pytest.mark.parametrize(
    ("tail", "next_sequence"), [(2, 2**62), (2, 2**64 - 1), (2**64 - 1, 100), (2**63, 2**62), (0, 50)]
)
@pytest.mark.parametrize("by", ["recv", "recv_batch"])
def test_counts_that_lie(tail: int, next_sequence: int, by: str, rendezvous: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber(policy="drop_oldest", depth=3)
    records = [pooled_record(0, 0, 2, 64), pooled_record(1, 2, 2, 64)]
    with liar(rendezvous, records, tail=tail, next_sequence=next_sequence):
        sub.wait_for_publishers(timeout=20)
        for _ in range(10):
            with contextlib.suppress(byref.Timeout):
                assert len(sub.recv_batch(10, timeout=0) if by == "recv_batch" else [sub.recv(timeout=0)]) <= 4
        honest = endpoints.publisher()
        honest.wait_for_subscribers(timeout=20)
        honest.send(b"ab")
        assert bytes(sub.recv(timeout=20)) == b"ab"
