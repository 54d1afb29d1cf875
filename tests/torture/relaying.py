"""A relay's life: what it receives on one topic it sends on another, by reference in and by copy out."""

from __future__ import annotations

import time
from contextlib import suppress

import byref

from .checking import Checking
from .context import Context
from .names import RELAYED, TOPICS, Source
from .pattern import LARGEST

_MAX_MEMORY = 2 * LARGEST


class Relaying:
    """A lossless subscriber and a publisher, from their birth to their end; `run` names the publisher."""

    def __init__(self, context: Context, run: int) -> None:
        rng = context.rng
        self._board, self._report, self._run = context.board, context.report, run
        # Relays do not listen to relays: nothing goes round in a circle.
        topic, self._topic = rng.choice((*TOPICS, "torture/*")), rng.choice(RELAYED)
        self._timeout = 0.05 if context.patient else 0.001
        self._most = rng.choice((1, 10, 100))
        self._end = time.monotonic() + rng.choice((0.1, 1, 5))
        self._next = 0
        self._waiting: byref.Message | None = None
        who = f"relay {run} from {topic!r} to {self._topic!r}"
        self._checking = Checking(who, "block", rng, context.board, context.report, context.keep)
        self._board.clear(run)
        name = str(Source(run, LARGEST, is_relay=True))
        self._publisher = byref.Publisher(self._topic, _MAX_MEMORY, rng.choice((0, 10)), name)
        try:
            self._subscriber = byref.Subscriber(topic, "block", rng.choice((None, 10)))
        except BaseException:
            self._publisher.close()
            raise

    def is_over(self) -> bool:
        return time.monotonic() > self._end

    def step(self) -> None:
        """Send on what waits, as far as there is room."""
        for _ in range(self._most):
            if self._waiting is None:
                with suppress(byref.Timeout):
                    self._waiting = self._subscriber.recv(self._timeout)
            if self._waiting is None or not self._pass_on(self._waiting):
                break
            self._checking.take(self._waiting, {})
            self._waiting = None

    def close(self) -> None:
        if self._waiting is not None:
            self._checking.take(self._waiting, {})
            self._waiting = None
        self._checking.check_losses(self._subscriber.stats())
        self._subscriber.close()
        if (sent := self._publisher.stats()["sent"]) != self._next:
            self._checking.violation(f"counts {sent} messages sent, not {self._next}")
        self._publisher.close()

    def expect_forked(self) -> None:
        """In a forked child: both must refuse."""
        with suppress(byref.Forked):
            self._subscriber.try_recv()
            self._checking.violation("receives in a forked child")
        with suppress(byref.Forked):
            self._publisher.send(b"from the child", timeout=0)
            self._checking.violation("sends in a forked child")

    def _pass_on(self, message: byref.Message) -> bool:
        """Whether the message was sent, or is none to be sent: one that is too large."""
        if message.nbytes > LARGEST:
            self._report.counts["too large to relay"] += 1
            return True
        headers = dict(message.headers) | {"relayed": f"{message.publisher.name} {message.sequence}"}
        self._board.begin(self._run, self._next)
        try:
            self._publisher.send(message.value, headers, timeout=self._timeout)
        except (byref.Timeout, byref.PoolExhausted):
            return False
        self._board.finish(self._run, self._next)
        self._next += 1
        self._report.counts["relayed"] += 1
        return True
