"""Frozen and greedy subscribers: they are held to limits, and nothing that they hold is reused under their feet."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, eventually

Spawn = Callable[..., Child]

MIB = 1 << 20
# Others that a publisher waits for must not stand still for so long, on however busy a machine.
STALL = 2.5


def keep_some(line: Line, count: int, size: int, events: bool) -> None:
    """Receives and keeps so many messages; when told, looks at them again and tells what the next receive gives."""
    sub = byref.Subscriber("t", name="sleepyhead", events=events)
    kept = [sub.recv(timeout=30) for _ in range(count + events)][int(events) :]
    views = [np.asarray(msg) for msg in kept]
    line.tell("keeps")
    line.hear()
    outcomes = []
    try:
        while not outcomes:
            item = sub.recv(timeout=30)
            if isinstance(item, byref.Event):
                outcomes.append(f"{item.kind} {item.topic}")
    except byref.Error as problem:
        outcomes.append(f"{type(problem).__name__}: {problem}")
    line.tell([outcomes[0], [is_payload(view, seed, size) for seed, view in enumerate(views)]])
    with pytest.raises(byref.Timeout):
        sub.recv(timeout=0.05)  # It is not connected again by itself.
    line.hear()
    del kept, views
    line.tell("let go")
    line.hear()


def publish_while_one_sleeps(line: Line, options: dict[str, Any], count: int, size: int) -> None:
    """Sends so many messages to all who are there, however long that takes."""
    pub = byref.Publisher("t", **options)
    pub.wait_for_subscribers(2, timeout=30)
    line.tell("there")
    while (order := line.hear()) is not None:
        try:
            for seed in range(*order):
                pub.send(payload(seed, size), timeout=30)
            line.tell("sent")
        except byref.Error as problem:
            line.tell(f"{type(problem).__name__}: {problem}")
    pub.close()


@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize(("size", "count"), [(100, 40_000), (100_000, 300)])
def test_a_frozen_subscriber_is_evicted(
    size: int, count: int, events: bool, spawn: Spawn, endpoints: Endpoints
) -> None:
    """It stalls the ring with small messages, and the pool with large ones."""
    other = endpoints.subscriber()
    frozen = spawn(keep_some, 5, size, events)
    publisher = spawn(publish_while_one_sleeps, {"max_stall": STALL, "max_memory": 8 * MIB}, count, size)
    assert publisher.hear() == "there"
    publisher.tell([0, 5])
    assert publisher.hear() == "sent"
    assert frozen.hear() == "keeps"
    os.kill(frozen.process.pid, signal.SIGSTOP)
    publisher.tell([5, count])
    for seed in range(count):
        assert is_payload(other.recv(timeout=30), seed, size)
    assert publisher.hear() == "sent"
    os.kill(frozen.process.pid, signal.SIGCONT)
    frozen.tell()
    outcome, right = frozen.hear()
    if events:
        assert outcome == "evicted t"
    else:
        assert outcome.startswith("Evicted: topic 't'")
        assert f"max_stall={STALL}" in outcome
        assert str(publisher.process.pid) in outcome
    assert right == [True] * 5
    publisher.tell([count, count + 10])
    assert publisher.hear() == "sent"
    publisher.tell(None)
    log = publisher.output()
    assert f"evicted process {frozen.process.pid} ('sleepyhead')" in log
    assert log.count("evicted") == 1


def test_an_operator_sees_and_evicts_a_frozen_subscriber(spawn: Spawn, endpoints: Endpoints) -> None:
    pub, other = endpoints.publisher(max_memory=8 * MIB), endpoints.subscriber()
    frozen = spawn(keep_some, 3, 100_000, False)
    pub.wait_for_subscribers(2, timeout=30)
    for seed in range(3):
        pub.send(payload(seed, 100_000))
    assert frozen.hear() == "keeps"
    os.kill(frozen.process.pid, signal.SIGSTOP)
    sent = 3
    with pytest.raises(byref.Timeout, match="sleepyhead"):  # noqa: PT012
        while True:
            pub.send(payload(sent, 100_000), timeout=0.2)
            other.recv(timeout=30).release()
            sent += 1
    [culprit] = [info for info in pub.subscribers if info.lag > 20]
    assert (culprit.pid, culprit.name, culprit.policy) == (frozen.process.pid, "sleepyhead", "block")
    waiting = threading.Thread(target=lambda: pub.send(payload(sent, 100_000), timeout=30))
    waiting.start()
    assert pub.evict(culprit)
    waiting.join()
    assert not pub.evict(culprit)
    assert [info.pid for info in pub.subscribers] == [os.getpid()]
    os.kill(frozen.process.pid, signal.SIGCONT)
    frozen.tell()
    outcome, right = frozen.hear()
    assert outcome.startswith("Evicted")
    assert right == [True] * 3
    assert pub.outstanding.holders[0].pid == frozen.process.pid
    frozen.tell()
    assert frozen.hear() == "let go"
    assert eventually(lambda: not any(h.pid == frozen.process.pid for h in pub.outstanding.holders), "it holds nothing")


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_a_greedy_subscriber_is_evicted(policy: str, endpoints: Endpoints) -> None:
    pub = endpoints.publisher(max_memory=64 * MIB, max_held=4 * MIB)
    greedy, modest = endpoints.subscriber(policy=policy, name="greedy"), endpoints.subscriber()
    pub.wait_for_subscribers(2, timeout=30)
    kept: list[byref.Message] = []
    with pytest.raises(byref.Evicted, match="max_held"):  # noqa: PT012
        for seed in range(100):
            pub.send(payload(seed, 100_000))
            assert is_payload(modest.recv(timeout=30), seed, 100_000)
            kept.append(greedy.recv(timeout=30))
    assert 4 * MIB <= sum(msg.nbytes for msg in kept) <= 5 * MIB
    for seed in range(1000, 1200):
        pub.send(payload(seed, 100_000))
        assert is_payload(modest.recv(timeout=30), seed, 100_000)
    assert all(is_payload(msg, seed, 100_000) for seed, msg in enumerate(kept))
    [holder] = pub.outstanding.holders
    assert (holder.name, holder.messages) == ("greedy", len(kept))
    again = endpoints.subscriber(policy=policy)
    pub.wait_for_subscribers(2, timeout=30)
    again.wait_for_publishers(timeout=30)
    pub.send(payload(7, 100))
    assert is_payload(again.recv(timeout=30), 7, 100)
    kept.clear()
    assert pub.outstanding.messages == 0


def test_who_reads_on_is_not_evicted(endpoints: Endpoints) -> None:
    """A slow subscriber that does something within the time stays, however long it takes all in all."""
    pub = endpoints.publisher(max_stall=STALL, max_memory=8 * MIB)
    sub = endpoints.subscriber(depth=2)
    pub.wait_for_subscribers(timeout=30)

    def publish() -> None:
        for seed in range(40):
            pub.send(payload(seed, 1000), timeout=30)

    sender = threading.Thread(target=publish)
    sender.start()
    for seed in range(40):
        threading.Event().wait(2 * STALL / 40)
        assert is_payload(sub.recv(timeout=30), seed, 1000)
    sender.join()
    assert sub.lost == 0


def test_an_evicted_receiver_of_a_queue(endpoints: Endpoints) -> None:
    pub, other = endpoints.publisher(), endpoints.publisher("u")
    seen: list[str] = []
    with byref.EventQueue() as queue:
        queue.subscribe("*", lambda item: seen.append(getattr(item, "kind", item.topic)), events=True)
        pub.wait_for_subscribers(timeout=30)
        other.wait_for_subscribers(timeout=30)
        [info] = pub.subscribers
        assert pub.evict(info)
        other.send(b"x")
        assert eventually(lambda: (queue.dispatch(0), {"evicted", "u"} <= set(seen))[1], "both come")


@pytest.mark.parametrize(
    "options", [{"max_held": -1}, {"max_stall": 0}, {"max_stall": -1.0}, {"max_stall": float("nan")}], ids=repr
)
def test_limits_that_are_none(options: dict[str, Any], endpoints: Endpoints) -> None:
    with pytest.raises(ValueError, match="max_"):
        endpoints.publisher(**options)
