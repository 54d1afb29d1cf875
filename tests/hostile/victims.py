"""The honest processes: what one sends the others receive, whatever strangers do meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import resource
from collections import Counter, deque
from typing import Any

import byref
import numpy as np

from tests.payloads import is_payload, payload
from tests.processes import Line

TOPIC = "t"
# A stranger that subscribes may delay a message for as long as it stays.
PATIENCE = 0.2
# What a subscriber keeps for a while, and looks at again.
KEPT = 8
SIZES = (0, 20, 200, 20_000, 100, 64, 3000, 600_000)


def size_of(number: int) -> int:
    """The size of message `number`."""
    return SIZES[number % len(SIZES)] if number % 3 else number % 200


def limit_descriptors() -> None:
    """To the usual number, on a machine that allows more, too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    os.environ["BYREF_RAISE_NOFILE"] = "0"


def publish(line: Line) -> None:
    """Sends until it is told something; tells how many were sent and delayed."""
    limit_descriptors()
    told: Counter[str] = Counter()
    with byref.Publisher(TOPIC, max_memory=32 << 20, name="honest") as pub:
        line.tell("ready")
        while not line.has_something():
            number = told["sent"]
            try:
                sent = pub.send(payload(number, size_of(number)), timeout=PATIENCE)
            except (byref.Timeout, byref.PoolExhausted):
                told["delayed"] += 1
                continue
            assert sent == number
            told["sent"] += 1
            if number % 50 == 0:
                _ = pub.subscribers, pub.stats()
        line.hear()
        pub.flush(timeout=30)
        line.tell(told)
        line.hear()


def subscribe(line: Line, publisher: int, policy: Any, seed: int) -> None:
    """Receives what process `publisher` sends, checks it, and looks at everything that others send."""
    limit_descriptors()
    told: Counter[str] = Counter()
    rng = random.Random(seed)
    kept: deque[tuple[Any, int]] = deque()
    with byref.Subscriber(TOPIC, policy=policy, name=policy) as sub:
        sub.wait_for_publishers(timeout=30)
        line.tell("ready")
        expected = 0  # Whichever is the first.
        while not line.has_something() or told["received"] == 0:
            try:
                messages = [sub.recv(timeout=0.1)] if rng.random() < 0.7 else sub.recv_batch(100, timeout=0.1)
                if isinstance(messages, byref.Batch):
                    look_at_batch(messages)
            except byref.Timeout:
                continue
            except byref.Error as problem:  # What a stranger's nonsense gives, at most.
                told[f"said: {type(problem).__name__}"] += 1
                continue
            for msg in messages:
                if msg.publisher.pid != publisher:
                    look_at(msg)
                    told["strangers' messages"] += 1
                    continue
                number = msg.sequence
                assert is_payload(msg, number, size_of(number)), f"message {number} is wrong"
                is_right = number >= expected if policy != "block" or expected == 0 else number == expected
                assert is_right, f"message {number} came, not {expected}"
                expected = number + 1
                told["received"] += 1
                kept.append((msg, number))
                if len(kept) > KEPT:
                    older, number = kept.popleft()
                    assert is_payload(older, number, size_of(number)), f"message {number} has changed"
            if rng.random() < 0.01:
                byref.monitors()
        line.hear()
        line.tell(told | {"next": expected})
        line.hear()


def look_at(msg: byref.Message) -> None:
    """Every byte of it, and everything it says of itself."""
    _ = sum(bytes(msg)[: 1 << 16]), msg.headers, msg.topic, msg.timestamp_ns, repr(msg)
    with contextlib.suppress(ValueError, TypeError, byref.Error):  # Its layout may be impossible.
        _ = msg.value
    if msg.nbytes:
        msg.writable()


def look_at_batch(batch: byref.Batch) -> None:
    """As one array, if it is one."""
    with contextlib.suppress(ValueError, TypeError, byref.Error):  # Payloads differ in size, for example.
        _ = np.asarray(batch).nbytes
