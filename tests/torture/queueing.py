"""An event queue's life: receivers of all kinds, called with messages, batches and events."""

from __future__ import annotations

import time
from typing import Any, get_args

import byref

from .checking import Checking
from .context import Context
from .names import any_of
from .subscribing import Policy


class Queueing:
    """One queue with some receivers, from its birth to its end."""

    def __init__(self, context: Context) -> None:
        self._rng = rng = context.rng
        self._end = time.monotonic() + rng.choice((0.1, 1, 5))
        self._pauses = rng.choice((0, 0, 0.001, 0.02))
        self._timeouts = (0, 0.001, 0.1) if context.patient else (0, 0.001)
        self._queue = byref.EventQueue(name=rng.choice((None, "torture")))
        # With each, whether it is told of publishers before it gets, or loses, messages of them.
        self._receivers: list[tuple[byref.Receiver, Checking, bool]] = []
        try:
            for _ in range(rng.randrange(1, 4)):
                self._subscribe(context)
        except BaseException:
            self._queue.close()
            raise

    def is_over(self) -> bool:
        return time.monotonic() > self._end

    def step(self) -> None:
        """Have some messages handled."""
        self._queue.dispatch(self._rng.choice(self._timeouts))
        if len(self._receivers) > 1 and self._rng.random() < 0.01:
            self._close(*self._receivers.pop())
        time.sleep(self._pauses)

    def close(self) -> None:
        while self._receivers:
            self._close(*self._receivers.pop())
        self._queue.close()

    def expect_forked(self) -> None:
        """In a forked child: the queue must refuse."""
        try:
            self._queue.dispatch()
        except byref.Forked:
            return
        self._receivers[0][1].violation("dispatches in a forked child")

    def _subscribe(self, context: Context) -> None:
        rng, topic = self._rng, any_of(self._rng)
        policy: Policy = rng.choice(get_args(Policy))
        depth, history = rng.choice((None, None, 1, 3, 100)), rng.choice((0, 0, 5))
        batch, events = rng.choice((None, True, 7)), rng.random() < 0.5
        text = f"receiver of {topic!r}, {policy}, {depth=}, {history=}, {batch=}, {events=}"
        checking = Checking(text, policy, rng, context.board, context.report, context.keep)

        def on_anything(told: Any) -> None:
            if isinstance(told, byref.Event):
                checking.happened(told)
            elif isinstance(told, byref.Batch):
                for message in told:
                    checking.take(message, {})
                checking.check_batch(told)
            else:
                checking.take(told, {})

        options: dict[str, Any] = {"policy": policy, "depth": depth, "history": history, "events": events}
        receiver = self._queue.subscribe(topic, on_anything, batch, **options)
        self._receivers.append((receiver, checking, events))

    @staticmethod
    def _close(receiver: byref.Receiver, checking: Checking, knows_all: bool) -> None:
        receiver.close()
        checking.check_losses(receiver.stats(), knows_all)
