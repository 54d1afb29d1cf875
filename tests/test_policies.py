"""A slow subscriber does what its policy says, and loss is counted exactly."""

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, eventually, state_of

Spawn = Callable[..., Child]

SIZES = (0, 8, 100, 224, 225, 1000, 20_000)


def size_of(seed: int) -> int:
    """Sizes in the ring and in the pool, mixed."""
    return SIZES[seed * 7 % len(SIZES)]


def publish_mixed(line: Line, count: int, subscribers: int, max_memory: int) -> None:
    """Sends the payloads of the seeds 0 to `count`, and says how many."""
    with byref.Publisher("t", max_memory=max_memory) as pub:
        pub.wait_for_subscribers(subscribers, timeout=30)
        line.tell("ready")
        line.hear()
        for seed in range(count):
            assert pub.send(payload(seed, size_of(seed))) == seed
        line.tell("sent")
        line.hear()


def receive_all(line: Line, publishers: int, count: int) -> None:
    """Receives `count` messages of each publisher, in order, every byte right."""
    expected: Counter[byref.PublisherInfo] = Counter()
    with byref.Subscriber("t") as sub:
        sub.wait_for_publishers(publishers, timeout=30)
        for _ in range(publishers * count):
            msg = sub.recv(timeout=30)
            assert msg.sequence == expected[msg.publisher]
            assert is_payload(msg, msg.sequence, size_of(msg.sequence))
            expected[msg.publisher] += 1
        assert set(expected.values()) == {count}
        assert sub.lost == 0
        assert sub.try_recv() is None
        line.tell("all")


def test_block_loses_nothing(spawn: Spawn) -> None:
    publishers = [spawn(publish_mixed, 12_000, 2, 8 << 20) for _ in range(2)]
    subscribers = [spawn(receive_all, 2, 12_000) for _ in range(2)]
    for publisher in publishers:
        assert publisher.hear() == "ready"
    for publisher in publishers:
        publisher.tell()
    for subscriber in subscribers:
        assert subscriber.hear(90) == "all"
        subscriber.finish()
    for publisher in publishers:
        assert publisher.hear() == "sent"
        publisher.tell()
        publisher.finish()


SENDS: dict[str, Callable[[byref.Publisher, float], int]] = {
    "inline": lambda pub, timeout: pub.send(b"x", timeout=timeout),
    "pooled": lambda pub, timeout: pub.send(bytes(5000), timeout=timeout),
    "large": lambda pub, timeout: pub.send(bytes(500_000), timeout=timeout),
    "array": lambda pub, timeout: pub.send(np.zeros((30, 50)).T, timeout=timeout),
    "headers": lambda pub, timeout: pub.send(b"x", headers={"k": "v" * 500}, timeout=timeout),
    "rows": lambda pub, timeout: pub.send_many([bytes(3000)], timeout=timeout).start,
    "loan": lambda pub, timeout: pub.loan(3000).send(timeout=timeout),
}


@pytest.mark.parametrize("kind", SENDS)
def test_a_send_that_timed_out_reached_nobody(kind: str, endpoints: Endpoints) -> None:
    send = SENDS[kind]
    pub, full = endpoints.pair(depth=4)
    keen = endpoints.subscriber()
    keen.wait_for_publishers(timeout=30)
    pub.wait_for_subscribers(2, timeout=30)
    assert [send(pub, 5) for _ in range(4)] == [0, 1, 2, 3]
    assert [keen.recv(timeout=30).sequence for _ in range(4)] == [0, 1, 2, 3]
    for timeout in (0, 0.1):
        begin = time.monotonic()
        with pytest.raises(byref.Timeout, match="'t'"):
            send(pub, timeout)
        assert time.monotonic() - begin >= timeout
    assert keen.try_recv() is None
    assert pub.stats()["sent"] == 4
    assert full.recv(timeout=30).sequence == 0
    assert send(pub, 5) == 4
    assert [full.recv(timeout=30).sequence for _ in range(4)] == [1, 2, 3, 4]
    assert keen.recv(timeout=30).sequence == 4
    assert full.try_recv() is None


def test_a_full_ring_blocks_without_a_depth(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    with pytest.raises(byref.Timeout):  # noqa: PT012
        while True:
            pub.send(b"", timeout=0)
    sent = pub.stats()["sent"]
    assert sent >= 1000
    for sequence in range(sent):
        assert sub.recv(timeout=30).sequence == sequence
    assert pub.send(b"") == sent


def test_timeout_is_also_a_timeout_error(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for call in (sub.recv, pub.wait_for_subscribers, sub.wait_for_publishers):
        with pytest.raises(TimeoutError):
            call(*([] if call == sub.recv else [9]), timeout=0.01)


def receive_slowly(line: Line, options: dict[str, Any], count: int) -> None:
    """Takes messages, with pauses, until the last one; counts."""
    with byref.Subscriber("t", **options) as sub:
        received, last = 0, -1
        while last < count - 1:
            msg = sub.recv(timeout=30)
            assert msg.sequence > last
            assert is_payload(msg, msg.sequence, size_of(msg.sequence))
            received, last = received + 1, msg.sequence
            if received % 50 == 0:
                time.sleep(0.002)
        line.tell([received, sub.lost])
        line.hear()


LOSSY: list[dict[str, Any]] = [
    {"policy": "latest"},
    {"policy": "drop_oldest"},
    {"policy": "drop_oldest", "depth": 1},
    {"policy": "drop_oldest", "depth": 7},
    {"policy": "drop_oldest", "depth": 500},
]


@pytest.mark.parametrize("max_memory", [1 << 18, 1 << 26])
def test_loss_is_counted_exactly_under_load(max_memory: int, spawn: Spawn) -> None:
    count = 40_000
    publisher = spawn(publish_mixed, count, len(LOSSY), max_memory)
    subscribers = [spawn(receive_slowly, options, count) for options in LOSSY]
    assert publisher.hear() == "ready"
    publisher.tell()
    assert publisher.hear(90) == "sent"
    losses = []
    for subscriber in subscribers:
        received, lost = subscriber.hear()
        assert received + lost == count
        losses.append(lost)
        subscriber.tell()
        subscriber.finish()
    assert losses[0] > 0
    publisher.tell()
    publisher.finish()


@pytest.mark.parametrize("size", [8, 2000])
@pytest.mark.parametrize(
    ("options", "kept"),
    [({"policy": "latest"}, 1), ({"policy": "drop_oldest", "depth": 5}, 5), ({"policy": "drop_oldest", "depth": 1}, 1)],
)
def test_what_a_lossy_subscriber_keeps(options: dict[str, Any], kept: int, size: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(**options)
    for round_ in range(3):
        for seed in range(100):
            pub.send(payload(seed, size))
        received = [sub.recv(timeout=30) for _ in range(kept)]
        assert [msg.sequence for msg in received] == list(range(round_ * 100 + 100 - kept, round_ * 100 + 100))
        assert all(is_payload(msg, msg.sequence % 100, size) for msg in received)
        assert sub.try_recv() is None
        assert sub.lost == (100 - kept) * (round_ + 1)
    assert sub.stats()["received"] == kept * 3


def test_a_slow_lossy_subscriber_hinders_nobody(endpoints: Endpoints) -> None:
    pub, keen = endpoints.pair()
    asleep = endpoints.subscriber(policy="latest")
    pub.wait_for_subscribers(2, timeout=30)
    for sequence in range(50_000):
        pub.send(b"12345678", timeout=30)
        assert keen.recv(timeout=30).sequence == sequence
    assert asleep.recv(timeout=30).sequence == 49_999
    assert asleep.lost == 49_999


def test_history(endpoints: Endpoints) -> None:
    pub = endpoints.publisher(history=10)
    for seed in range(25):
        pub.send(payload(seed, 1000))
    newest_three = {"history": 10, "policy": "drop_oldest", "depth": 3}
    cases = [({}, 25), ({"history": 5}, 20), ({"history": 100}, 15), (newest_three, 23)]
    subs = [(endpoints.subscriber(**options), first) for options, first in cases]
    pub.wait_for_subscribers(len(cases), timeout=30)
    for sub, _ in subs:
        sub.wait_for_publishers(timeout=30)
    pub.send(payload(25, 1000))
    for sub, first in subs:
        got = [sub.recv(timeout=30) for _ in range(first, 26)]
        assert [msg.sequence for msg in got] == list(range(first, 26))
        assert all(is_payload(msg, msg.sequence, 1000) for msg in got)
        assert sub.try_recv() is None


def publish_until_told(line: Line) -> None:
    """Keeps a history and keeps sending."""
    with byref.Publisher("t", history=100, max_memory=8 << 20) as pub:
        for seed in range(300):
            pub.send(payload(seed, size_of(seed)))
        line.tell("going")
        seed = 300
        while not line.has_something():
            pub.send(payload(seed, size_of(seed)), timeout=30)
            seed += 1


def test_a_late_joiner_meets_no_gap_and_no_repetition(spawn: Spawn) -> None:
    publisher = spawn(publish_until_told)
    assert publisher.hear() == "going"
    for _ in range(15):
        with byref.Subscriber("t", history=50) as sub:
            first = sub.recv(timeout=30).sequence
            assert first >= 200
            for expected in range(first + 1, first + 400):
                msg = sub.recv(timeout=30)
                assert msg.sequence == expected
                assert is_payload(msg, expected, size_of(expected))
            assert sub.lost == 0
    publisher.tell()
    publisher.finish()


def test_history_keeps_memory_only_as_long_as_there_is_enough(endpoints: Endpoints) -> None:
    pub = endpoints.publisher(history=100, max_memory=1 << 20)
    for seed in range(200):
        pub.send(payload(seed, 100_000))
    late = endpoints.subscriber(history=100)
    late.wait_for_publishers(timeout=30)
    got = []
    while (msg := late.try_recv()) is not None:
        got.append(msg.sequence)
        assert is_payload(msg, msg.sequence, 100_000)
    assert 1 <= len(got) <= 10
    assert got == list(range(200 - len(got), 200))
    assert late.lost == 0


def test_fan_in_is_fair(endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    pubs = [endpoints.publisher(name=str(i)) for i in range(4)]
    sub.wait_for_publishers(4, timeout=30)
    for place, pub in enumerate(pubs):
        pub.wait_for_subscribers(timeout=30)
        for _ in range(200 * (place + 1)):  # Who sent more is not served more.
            pub.send(b"")
    counts = Counter(sub.recv(timeout=30).publisher.name for _ in range(400))
    assert max(counts.values()) - min(counts.values()) <= 16


def test_wait_for_endpoints(endpoints: Endpoints) -> None:
    pub, sub = endpoints.publisher(), endpoints.subscriber(name="s")
    pub.wait_for_subscribers(0)
    sub.wait_for_publishers(0)
    with pytest.raises(byref.Timeout, match="subscribers"):
        pub.wait_for_subscribers(2, timeout=0.05)
    with pytest.raises(byref.Timeout, match="publishers"):
        sub.wait_for_publishers(2, timeout=0.05)
    later = threading.Timer(0.1, lambda: (endpoints.subscriber(policy="latest"), endpoints.publisher()))
    later.start()
    pub.wait_for_subscribers(2, timeout=30)
    sub.wait_for_publishers(2, timeout=30)
    later.join()
    assert sorted((info.name or "", info.policy, info.lag) for info in pub.subscribers) == [
        ("", "latest", 0),
        ("s", "block", 0),
    ]
    assert pub.stats()["subscribers"] == 2


def test_nobody_listens(endpoints: Endpoints) -> None:
    pub = endpoints.publisher(max_memory=1 << 20)
    for seed in range(50_000):
        assert pub.send(b"") == seed
    for _ in range(100):
        pub.send(bytes(900_000))
    pub.flush(timeout=0)


def test_flush(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for _ in range(3):
        pub.send(b"")
    with pytest.raises(byref.Timeout, match="flush"):
        pub.flush(timeout=0.02)
    assert pub.subscribers[0].lag == 3
    reader = threading.Timer(0.05, lambda: [sub.recv(timeout=30) for _ in range(3)])
    reader.start()
    pub.flush(timeout=30)
    assert pub.subscribers[0].lag == 0
    reader.join()


def test_flush_does_not_wait_for_who_leaves(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(b"")
    leaver = threading.Timer(0.05, sub.close)
    leaver.start()
    pub.flush(timeout=20)
    leaver.join()


def publish_and_close(line: Line, how: str) -> None:
    """Sends and leaves at once."""
    pub = byref.Publisher("t")
    pub.wait_for_subscribers(2, timeout=30)
    for seed in range(3000):
        pub.send(payload(seed, size_of(seed)))
    if how == "close":
        pub.close()
    elif how == "del":
        del pub
    line.tell("left")


@pytest.mark.parametrize("how", ["close", "del", "exit"])
def test_close_delivers_what_was_sent(how: str, spawn: Spawn, endpoints: Endpoints) -> None:
    subs = [endpoints.subscriber(), endpoints.subscriber(depth=10_000)]
    publisher = spawn(publish_and_close, how)
    assert publisher.hear() == "left"
    publisher.finish()
    for sub in subs:
        for seed in range(3000):
            msg = sub.recv(timeout=30)
            assert msg.sequence == seed
            assert is_payload(msg, seed, size_of(seed))
        assert sub.try_recv() is None
        assert eventually(lambda sub=sub: not sub.publishers, "the publisher's end is noticed")


def test_a_subscribers_close_lets_a_blocked_publisher_go(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(depth=1)
    pub.send(b"")
    closer = threading.Timer(0.1, sub.close)
    closer.start()
    assert pub.send(b"", timeout=20) == 1
    closer.join()
    assert eventually(lambda: not pub.subscribers, "it is gone")


def test_publisher_and_subscriber_statistics(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(b"12345")
    pub.send(bytes(10_000))
    for _ in range(2):
        sub.recv(timeout=30)
    assert {key: sub.stats()[key] for key in ("received", "bytes", "copied_bytes", "lost")} == {
        "received": 2, "bytes": 10_005, "copied_bytes": 5, "lost": 0,
    }  # fmt: skip
    assert {key: pub.stats()[key] for key in ("sent", "bytes", "copied_bytes", "subscribers")} == {
        "sent": 2, "bytes": 10_005, "copied_bytes": 10_005, "subscribers": 1,
    }  # fmt: skip
    assert pub.stats()["pool_used"] <= pub.stats()["pool_allocated"]
    endpoints.close()
    assert (pub.stats()["sent"], sub.stats()["received"]) == (2, 2)


def idle(line: Line, policy: str, how: str) -> None:
    """A lossy subscriber that waits for messages all the time, or never looks for one."""
    with byref.Subscriber("t", policy) as sub:
        sub.wait_for_publishers(timeout=30)
        line.tell("there")
        while how == "asleep" and not line.has_something():
            with contextlib.suppress(byref.Timeout):
                sub.recv(timeout=1)
        line.hear()


@pytest.mark.parametrize("how", ["asleep", "idle", "frozen"])
@pytest.mark.parametrize("policy", ["latest", "drop_oldest"])
def test_who_may_lose_messages_costs_no_send(policy: str, how: str, spawn: Spawn, endpoints: Endpoints) -> None:
    """The sizes need segments of their own, one after the other; the subscriber keeps none of its messages."""
    pub = endpoints.publisher(max_memory=100 << 20)
    subscriber = spawn(idle, policy, how)
    assert subscriber.hear() == "there"
    pub.wait_for_subscribers(timeout=30)
    eventually(lambda: state_of(subscriber.pid) == "S", "it sleeps")
    if how == "frozen":
        subscriber.signal(signal.SIGSTOP)
    for sequence in range(6):
        size = (60, 90)[sequence % 2] << 20
        assert pub.send(bytes(size), timeout=30) == sequence
        if how == "asleep":
            # Whatever wakes it, it sleeps again before the next one.
            eventually(lambda: all(each.lag == 0 for each in pub.subscribers), "it has taken the message")
            eventually(lambda: not pub.outstanding.messages, "and released it")
    if how == "frozen":
        subscriber.signal(signal.SIGCONT)
    assert [each.pid for each in pub.subscribers] == [subscriber.pid]
    subscriber.tell()
    subscriber.finish()
