"""A subscriber's life: it receives in all ways, and has every message checked."""

from __future__ import annotations

import select
import time
from contextlib import suppress
from typing import Any, Literal, get_args

import byref

from .checking import Checking
from .context import Context

Policy = Literal["block", "drop_oldest", "latest"]

# Whoever waits at least so long (s) for a message that is there all the time has slept through its wake-up ...
_LONG_WAIT = 1.0
# ... if the message was there for this time (ns).
_SLEPT = 500_000_000


class Subscribing:
    """One subscriber, from its birth to its end."""

    def __init__(self, context: Context, topic: str) -> None:
        self._rng = rng = context.rng
        self._signals = context.signals
        policy: Policy = rng.choice(get_args(Policy))
        depth = rng.choice((None, None, 1, 3, 100, 3000))
        self._depth = 1 if policy == "latest" else depth if policy == "drop_oldest" else None
        history = rng.choice((0, 0, 1, 5, 2000))
        writable, self._events = rng.random() < 0.2, rng.random() < 0.5
        self._polls = rng.random() < 0.3
        self._timeouts = (0, 0.001, 0.1, _LONG_WAIT) if context.patient else (0, 0.001)
        self._pauses = rng.choice((0, 0, 0.001, 0.02))
        self._end = time.monotonic() + rng.choice((0.1, 1, 5))
        text = f"subscriber to {topic!r}, {policy}, {depth=}, {history=}, {writable=}"
        text += f", events={self._events}, polls={self._polls}"
        self._checking = Checking(text, policy, rng, context.board, context.report, context.keep)
        self._subscriber: byref.Subscriber[Any] = byref.Subscriber(
            topic, policy, depth, history, writable, events=self._events
        )

    def is_over(self) -> bool:
        return time.monotonic() > self._end

    def step(self) -> None:
        """Receive some messages."""
        self._look_around()
        for _ in range(self._rng.choice((1, 10, 100))):
            floors = {} if self._depth is None else self._checking.floors(self._depth)
            received = self._receive(self._rng.choice(self._timeouts))
            if not received:
                self._checking.note_endings()
                break
            for each in received:
                if isinstance(each, byref.Event):
                    self._checking.happened(each)
                else:
                    self._checking.take(each, floors)
            if isinstance(received, byref.Batch):
                self._checking.check_batch(received)
        time.sleep(self._pauses)

    def close(self) -> None:
        # Without events, a publisher may have come, and gone, since it last looked around.
        self._checking.check_losses(self._subscriber.stats(), knows_all=self._events)
        self._subscriber.close()

    def expect_forked(self) -> None:
        """In a forked child: the subscriber must refuse."""
        try:
            self._subscriber.try_recv()
        except byref.Forked:
            return
        self._checking.violation("receives in a forked child")

    def _look_around(self) -> None:
        """Note who came and who went."""
        present, known = set(self._subscriber.publishers), self._checking.seen
        for publisher in present - known.keys():
            self._checking.meet(publisher)
        for publisher, seen in known.items():
            seen.leaving = publisher not in present

    def _receive(self, timeout: float) -> list[byref.Message | byref.Event] | byref.Batch:
        asked = time.monotonic()
        if self._polls:
            messages = self._try_receive()
            if messages or select.select([self._subscriber], (), (), timeout)[0]:
                return messages or self._try_receive()
        else:
            with suppress(byref.Timeout):
                if self._rng.random() < 0.3:
                    batch = self._subscriber.recv_batch(self._rng.choice((1, 3, 20, 1000)), timeout)
                    return batch if isinstance(batch, byref.Batch) else [batch]
                return [self._subscriber.recv(timeout)]
        if timeout < _LONG_WAIT or self._signals.thawed > asked:
            return []
        messages = self._try_receive()
        for message in messages:
            if isinstance(message, byref.Event) or message.publisher not in self._checking.seen:
                continue
            late = time.time_ns() - message.timestamp_ns
            if self._checking.seen[message.publisher].received and late > _SLEPT:
                self._checking.violation(f"waited {timeout} s, but {message} was there for {late / 1e9:.3f} s of it")
        return messages

    def _try_receive(self) -> list[byref.Message | byref.Event]:
        message = self._subscriber.try_recv()
        return [] if message is None else [message]
