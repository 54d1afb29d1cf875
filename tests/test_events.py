"""`Subscriber(events=True)`: what happens to publishers, in order among their messages."""

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.processes import PATIENCE, Child, Line, descriptors
from tests.strangers import liar, pooled_record
from tests.test_signals import interrupt_soon

Spawn = Callable[..., Child]


def publish(line: Line, topic: str, count: int, end: str) -> None:
    """Sends `count` messages, one by one and in blocks, and ends as told."""
    pub = byref.Publisher(topic, name=end)
    line.tell("there")
    pub.wait_for_subscribers(timeout=30)
    sent = 0
    while sent < count:
        sent += len(pub.send_many(np.arange(7))) if sent % 2 else [pub.send(b"")] == [sent]
    if end == "close":
        pub.close()
    line.tell(sent)
    line.hear()


def told(received: Iterable[Any]) -> list[str | int]:
    """Kinds of events, and sequence numbers."""
    return [each.kind if isinstance(each, byref.Event) else each.sequence for each in received]


def receive(sub: byref.Subscriber, by: str) -> list[Any]:
    """What comes next: an event, a message, or the messages of a batch."""
    if by == "recv":
        return [sub.recv(timeout=30)]
    received = sub.recv_batch(50, timeout=30)
    return [received] if isinstance(received, byref.Event) else list(received)


@pytest.mark.parametrize("by", ["recv", "recv_batch"])
@pytest.mark.parametrize(("end", "kind"), [("close", "left"), ("kill", "lost")])
def test_a_publishers_life(end: str, kind: str, by: str, spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("a/*", events=True)
    for topic in ("a/1", "a/2"):
        publisher = spawn(publish, topic, 500, end)
        assert publisher.hear() == "there"
        count = publisher.hear()
        if end == "kill":
            publisher.kill()
        received: list[Any] = []
        while not received or told(received)[-1] != kind:
            received += receive(sub, by)
        assert told(received) == ["joined", *range(count), kind]
        for event in (received[0], received[-1]):
            assert (event.topic, event.publisher.pid, event.publisher.name) == (topic, publisher.pid, end)
            assert (event.sequence, event.count) == (None, 0)
            assert f"{event.kind}: {topic!r}".replace("'", '"') in repr(event)
        assert received[0].publisher == received[1].publisher == received[-1].publisher
        if end == "close":
            publisher.tell()
            publisher.finish()
    assert sub.publishers == []


def test_messages_alone(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("a")
    publisher = spawn(publish, "a", 100, "close")
    assert publisher.hear() == "there"
    count = publisher.hear()
    assert told(sub.recv(timeout=30) for _ in range(count)) == list(range(count))
    with pytest.raises(byref.Timeout):
        sub.recv(timeout=0.01)


def check_gaps(received: list[Any], lost: int) -> None:
    """Each gap tells which messages are missing between those around it, and all of them are told."""
    expected = missing = 0
    for each in received:
        if not isinstance(each, byref.Event):
            assert each.sequence == expected
            expected += 1
        elif each.kind == "gap":
            assert each.sequence == expected
            assert each.count > 0
            expected += each.count
            missing += each.count
    assert missing == lost


@pytest.mark.parametrize("by", ["recv", "recv_batch"])
@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
def test_gaps(policy: Any, by: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(policy=policy, depth=6 if policy == "drop_oldest" else None, events=True)
    received: list[Any] = []
    sent = 0
    for rows in (1, 2, 3, 5, 6, 7, 20, 1, 1, 300, 2) * 20:
        sent += len(pub.send_many(np.arange(rows)))
        if rows in (1, 6, 300):
            received += receive(sub, by)
    while not received or told(received)[-1] != sent - 1:
        received += receive(sub, by)
    check_gaps(received, sub.lost)
    assert sub.lost > 0
    gap = next(each for each in received if told([each]) == ["gap"])
    assert repr(gap) == f'<byref.Event gap of {gap.count} messages from {gap.sequence} on, "t">'


def publish_without_end(line: Line) -> None:
    """Sends blocks as fast as it can, until told."""
    with byref.Publisher("t", max_memory=4 << 20) as pub:
        pub.wait_for_subscribers(timeout=30)
        line.tell("there")
        sent = 0
        while not line.has_something():
            sent += len(pub.send_many(np.arange(sent % 50 + 1)))
        line.tell(sent)


@pytest.mark.parametrize("by", ["recv", "recv_batch"])
def test_gaps_across_processes(by: str, spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber(policy="drop_oldest", depth=40, events=True)
    publisher = spawn(publish_without_end)
    assert publisher.hear() == "there"
    received: list[Any] = []
    while len(received) < 3000:
        received += receive(sub, by)
    publisher.tell()
    while told(received)[-1:] != ["left"]:
        received += receive(sub, by)
    sent = publisher.hear()
    publisher.finish()
    check_gaps(received, sub.lost)
    assert sub.lost + sub.stats()["received"] == sent


@pytest.mark.parametrize("goes", [True, False])
def test_a_gap_at_the_end(goes: bool, endpoints: Endpoints) -> None:
    """The last message was given up for a loan: nothing comes after it that could tell."""
    pub, sub = endpoints.pair(policy="drop_oldest", events=True, max_memory=1 << 20)
    pub.send(bytes(900_000))
    pub.loan(900_000).discard()
    if goes:
        pub.close()
    assert told([sub.recv(timeout=30) for _ in range(2)]) == ["joined", "gap"]
    if goes:
        assert told([sub.recv(timeout=30)]) == ["left"]
    else:
        assert sub.try_recv() is None
        pub.send(b"")
        assert told([sub.recv(timeout=30)]) == [1]
    assert sub.lost == 1


def test_events_wait_for_who_receives_late(endpoints: Endpoints) -> None:
    sub = endpoints.subscriber(events=True)
    for _ in range(30):
        pub = endpoints.publisher()
        pub.wait_for_subscribers(timeout=30)
        pub.send(b"")
        pub.close()
    lives: dict[byref.PublisherInfo, list[str | int]] = {}
    while len(lives) < 30 or not all(life[-1] == "left" for life in lives.values()):
        each = sub.recv(timeout=30)
        lives.setdefault(each.publisher, []).extend(told([each]))
    assert list(lives.values()) == [["joined", 0, "left"]] * 30


def test_events_for_event_loops(endpoints: Endpoints) -> None:
    sub = endpoints.subscriber(events=True)

    async def follow() -> list[Any]:
        received = []
        async for each in sub:
            received.append(each)
            if told([each]) == ["left"]:
                break
            if told([each]) == ["joined"]:
                pub.send(b"")
                asyncio.get_running_loop().call_later(0.05, pub.close)
        return received

    fileno = sub.fileno()
    assert sub.try_recv() is None
    pub = endpoints.publisher()
    assert select.select([fileno], [], [], 20)[0]
    assert told(asyncio.run(asyncio.wait_for(follow(), 30))) == ["joined", 0, "left"]


def test_iteration(endpoints: Endpoints) -> None:
    sub = endpoints.subscriber(events=True)
    with endpoints.publisher() as pub:
        pub.wait_for_subscribers(timeout=30)
        pub.send_many(np.arange(3))
    received = []
    for each in sub:
        received.append(each)
        if told([each]) == ["left"]:
            sub.close()
    assert told(received) == ["joined", 0, 1, 2, "left"]
    with pytest.raises(byref.Closed):
        sub.recv()


def test_events_are_values(endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    subs = [endpoints.subscriber(events=True) for _ in range(2)]
    pub.wait_for_subscribers(2, timeout=30)
    joined = [sub.recv(timeout=30) for sub in subs]
    pub.close()
    left = [sub.recv(timeout=30) for sub in subs]
    assert joined[0] == joined[1] != left[0] == left[1]
    assert len({*joined, *left}) == 2
    with pytest.raises(AttributeError):
        joined[0].kind = "left"
    with pytest.raises(TypeError):
        byref.Event()


def test_who_breaks_the_rules_is_lost(rendezvous: Path, endpoints: Endpoints) -> None:
    """Whatever it says of itself."""
    sub = endpoints.subscriber(events=True)
    with liar(rendezvous, [pooled_record(0, 2**63, 1, 64)], closed=True):
        assert told([sub.recv(timeout=20), sub.recv(timeout=20)]) == ["joined", "lost"]


# ---- `spin`: events, signals and ends are noticed by those who spin, too ----


@pytest.mark.parametrize("spin", [0, 1e-9, 0.01, 1000.0, 1.7e19])
def test_any_spin(spin: float, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(spin=spin)
    for sequence in range(20):
        later = threading.Timer(0.002 * (sequence % 3), pub.send, [b""])
        later.start()
        assert sub.recv(timeout=20).sequence == sequence
        later.join()
    for timeout in (0, 0.02):
        with pytest.raises(byref.Timeout):
            sub.recv(timeout=timeout)


@pytest.mark.parametrize("spin", [-1, -1e-9, float("nan"), float("inf"), 1e20])
def test_impossible_spins(spin: float, endpoints: Endpoints) -> None:
    with pytest.raises(ValueError, match="spin"):
        endpoints.subscriber(spin=spin)


def test_who_spins_notices_a_death(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("a", spin=1000, events=True)
    publisher = spawn(publish, "a", 1, "kill")
    assert told([sub.recv(timeout=30), sub.recv(timeout=30)]) == ["joined", 0]
    publisher.kill()
    assert told([sub.recv(timeout=30)]) == ["lost"]


def spin_until_interrupted(line: Line) -> None:
    """Spins; tells how it ended."""
    with byref.Subscriber("t", spin=1000) as sub:
        try:
            interrupt_soon([])
            sub.recv(timeout=PATIENCE)
        except KeyboardInterrupt:
            line.tell("interrupted")


def test_ctrl_c_ends_a_spin(spawn: Spawn) -> None:
    child = spawn(spin_until_interrupted)
    assert child.hear() == "interrupted"
    child.finish()


# ---- who only polls ----


def publish_once_and_stay(line: Line) -> None:
    """A publisher with one message, for somebody to kill."""
    pub = byref.Publisher("t")
    pub.wait_for_subscribers(timeout=30)
    pub.send(b"x")
    line.hear()


@pytest.mark.parametrize("rate", [100, 800])
@pytest.mark.parametrize("by", ["try_recv", "recv without a timeout", "iteration of a batch"])
def test_who_polls_is_told_of_a_death_in_time(by: str, rate: int, spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber(events=True)
    publisher = spawn(publish_once_and_stay)

    def look() -> str | None:
        if by == "try_recv":
            found = sub.try_recv()
        else:
            try:
                found = sub.recv(timeout=0) if by == "recv without a timeout" else sub.recv_batch(5, timeout=0)
            except byref.Timeout:
                found = None
        time.sleep(1 / rate)
        return found.kind if isinstance(found, byref.Event) else found and "message"

    told: list[str] = []
    deadline = time.monotonic() + PATIENCE
    while "message" not in told:
        told += filter(None, [look()])
        assert time.monotonic() < deadline
    publisher.kill()
    # Within so many looks as somebody makes in 10 s.
    assert next(filter(None, (look() for _ in range(10 * rate))), "nothing") == "lost"


def come_and_go(line: Line, count: int, topic: str, messages: int, end: str) -> None:
    """Publishers one after another, each of which says something when somebody is there; closed, or dead at the end."""
    for number in range(count):
        if not os.fork():
            pub = byref.Publisher(f"{topic}/{number}")
            pub.wait_for_subscribers(timeout=30)
            for _ in range(messages):
                pub.send(b"x")
            if end == "close":
                pub.close()
            os.kill(os.getpid(), signal.SIGKILL)
        os.wait()
        time.sleep(0.03)
    line.tell(count)
    line.hear()


@pytest.mark.parametrize("end", ["close", "kill"])
def test_who_polls_beside_publishers_that_come_and_go_keeps_none(end: str, spawn: Spawn, endpoints: Endpoints) -> None:
    """The look that tells of an end is not a matter of how many messages, or looks, there were."""
    count = 120
    sub = endpoints.subscriber("a/*", events=True)
    with endpoints.publisher("a/stays"):  # The machinery is there.
        sub.wait_for_publishers(timeout=30)
    told = []
    before, most = len(descriptors()), 0
    publishers = spawn(come_and_go, count, "a", 2, end)
    deadline = time.monotonic() + 2 * PATIENCE
    while len([each for each in told if each in ("left", "lost")]) < count + 1:
        if (found := sub.try_recv()) is not None:
            told.append(found.kind if isinstance(found, byref.Event) else "message")
        else:
            time.sleep(1 / 800)
        most = max(most, len(descriptors()) - before)
        assert time.monotonic() < deadline, f"told of {told[-10:]}, {len(told)} in all"
    # Each connection has two. Not so many end within a second.
    assert most < count, f"{most} descriptors at a time"
    each_one = ["joined", "message", "message", "left" if end == "close" else "lost"]
    assert sorted(told) == sorted(["joined", "left", *each_one * count])
    assert publishers.hear() == count
    assert sub.publishers == []
    publishers.tell()
    publishers.finish()
