"""A publisher's life: it sends messages of all kinds in all ways, and keeps the count on the board."""

from __future__ import annotations

import time
from contextlib import suppress

import byref

from .context import Context
from .kinds import Plain
from .names import Source
from .pattern import HUGE, LARGEST, LONGEST_BLOCK, Payload, as_bytes, payload

# A send that gets nowhere for so long is a hang: readers are frozen, and hold messages, for less.
_STALL_LIMIT = 30.0
# A send that waits so long, and in the end for nobody who had not taken everything, has slept through its wake-up.
_LONG_WAIT, _SLEPT = 0.4, 0.2
# So many of the publishers send messages of up to hundreds of MiB now and then.
_HUGE_SHARE = 0.01
# So few bytes travel in the ring: no held memory can be in the way.
_NO_POOL = 32


class _AbortedError(Exception):
    pass


class Publishing:
    """One publisher, from its birth to its end; `run` names it."""

    def __init__(self, context: Context, topic: str, run: int) -> None:
        self._rng = rng = context.rng
        self._board = context.board
        self._report, self._keep, self._signals = context.report, context.keep, context.signals
        self._run = run
        self._limit = rng.choice((byref.INLINE_LIMIT + 8, 1 << 12, 1 << 16, LARGEST))
        max_memory = max(self._limit * rng.choice((4, 8)), 1 << 20)
        if rng.random() < _HUGE_SHARE:
            self._limit, max_memory = HUGE, HUGE * 3 // 2
        history = rng.choice((0, 0, 1, 10, 3000))
        self._timeouts: tuple[float | None, ...] = (None, _LONG_WAIT) if context.patient else (0, 0.001, 0.05)
        self._burst = rng.choice((1, 10, 100))
        self._next = 0
        self._stalled_since: float | None = None
        self._text = f"publisher {run} on {topic!r}, up to {self._limit} bytes, {max_memory=}, {history=}"
        self._text += f", timeouts {self._timeouts}"
        # Some begin before anybody can have come, and some give everybody time to.
        begin = time.monotonic() + rng.choice((0, 0.05, 0.2))
        self._begin, self._end = begin, begin + rng.choice((0.1, 1, 5))
        self._board.clear(run)
        self._publisher = byref.Publisher(
            topic, max_memory=max_memory, history=history, name=str(Source(run, self._limit))
        )

    def __repr__(self) -> str:
        return f"<{self._text}, at message {self._next}>"

    def is_over(self) -> bool:
        return time.monotonic() > self._end

    def step(self) -> None:
        """Send some messages, as far as there is room."""
        if time.monotonic() < self._begin:
            return
        for _ in range(self._rng.randrange(1, self._burst + 1)):
            if not self._send_next() or self.is_over():
                break
        time.sleep(self._rng.choice((0, 0, 0.0005, 0.005)))

    def close(self) -> None:
        if self._rng.random() < 0.3:
            try:
                self._publisher.flush(timeout=0.05)
            except byref.Timeout:
                self._report.counts["unflushed"] += 1
        sent = self._publisher.stats()["sent"]
        if sent != self._next:
            self._report.violation(f"{self} counts {sent} messages sent")
        self._publisher.close()

    def expect_forked(self) -> None:
        """In a forked child: the publisher must refuse."""
        try:
            self._publisher.send(b"from the child", timeout=0)
        except byref.Forked:
            return
        self._report.violation(f"{self} sends in a forked child")

    def _send_next(self) -> bool:
        messages = self._alike()
        message = messages[0]
        timeout = self._rng.choice(self._timeouts)
        send = self._rng.choice((self._send, self._send, self._lend))
        in_ring = isinstance(message.kind, Plain) and message.size <= _NO_POOL
        needs_pool = len(messages) > 1 or send == self._lend or not in_ring
        started = time.monotonic()
        self._board.begin(self._run, self._next + len(messages) - 1)
        try:
            if self._rng.random() < 0.05:
                self._abort(message)
            sequence = self._send_many(messages, timeout) if len(messages) > 1 else send(message, timeout)
        except byref.PoolExhausted:
            self._report.counts["pool exhausted"] += 1
            self._note_stall(started)
            time.sleep(0.001)
            return False
        except byref.Timeout:
            self._report.counts["timeouts"] += 1
            self._note_stall(started)
            if time.monotonic() - started > _LONG_WAIT and self._signals.thawed < started and not needs_pool:
                self._expect_somebody_lags()
            return False
        self._board.finish(self._run, self._next + len(messages) - 1)
        self._note_stall(started)
        self._stalled_since = None
        if sequence != self._next:
            self._report.violation(f"{self} was given number {sequence}")
        self._next += len(messages)
        self._report.counts["sent"] += len(messages)
        self._report.counts["sent in blocks"] += len(messages) if len(messages) > 1 else 0
        self._report.counts["bytes sent"] += message.size * len(messages)
        return True

    def _alike(self) -> list[Payload]:
        """The next message, and sometimes those after it that can be sent along."""
        messages = [payload(self._run, self._limit, self._next)]
        most = self._rng.randrange(2, LONGEST_BLOCK + 1) if self._rng.random() < 0.5 else 1
        while len(messages) < most and messages[0].size * len(messages) < self._limit:
            message = payload(self._run, self._limit, self._next + len(messages))
            if not message.goes_with(messages[0]):
                break
            messages.append(message)
        return messages

    def _note_stall(self, started: float) -> None:
        """The next message has been waiting for room since its first attempt."""
        if self._stalled_since is None:
            self._stalled_since = started
        # What a stop from outside takes is nobody's fault.
        self._stalled_since = max(self._stalled_since, self._signals.thawed)
        stalled = time.monotonic() - self._stalled_since
        self._report.longest_stall = max(self._report.longest_stall, stalled)
        if stalled > _STALL_LIMIT:
            subscribers, stats = self._publisher.subscribers, self._publisher.stats()
            text = f"{self} could not send for {stalled:.1f} s: {subscribers}, {stats}"
            self._report.violation(text, self._stalled_since)
            self._end = 0.0

    def _expect_somebody_lags(self) -> None:
        """Somebody must be what a send has waited for in vain."""
        subscribers = self._publisher.subscribers
        lags = [subscriber.lag for subscriber in subscribers if subscriber.policy == "block"]
        since = self._board.since_taken(self._run)
        if not any(lags) and since > _SLEPT:
            self._report.violation(
                f"{self} waited {_LONG_WAIT} s for nobody; last taken {since:.3f} s ago: {subscribers}"
            )

    def _send(self, message: Payload, timeout: float | None) -> int:
        """Send a copy."""
        data = message.kind.to_send(message.content(), self._rng)
        return self._publisher.send(data, message.headers or None, timeout=timeout)

    def _send_many(self, messages: list[Payload], timeout: float | None) -> int:
        """Send copies of messages that are alike as one block."""
        rows = messages[0].kind.rows_to_send([message.content() for message in messages], self._rng)
        sent = self._publisher.send_many(rows, messages[0].headers or None, timeout=timeout)
        if len(sent) != len(messages):
            self._report.violation(f"{self} sent {len(messages)} messages as numbers {sent}")
        return sent.start

    def _lend(self, message: Payload, timeout: float | None) -> int:
        """Fill a loan, sometimes too long a one, and sometimes keep its array."""
        loan, items = message.kind.loan(self._publisher, self._rng.choice((0, 0, 1, 5)), timeout)
        try:
            if len(loan.array) > items:
                loan.truncate(items)
            message.fill(as_bytes(loan.array))
            loan.headers.update(message.headers)
            sequence = loan.send(timeout=timeout)
        finally:
            loan.discard()  # Nothing happens if it was sent.
        if self._rng.random() < 0.05:
            self._keep.add(loan.array, message, inheritable=False)
        return sequence

    def _abort(self, message: Payload) -> None:
        """Lend memory, write into it, and send nothing."""
        with suppress(_AbortedError), self._publisher.loan(message.size + 1, timeout=0) as array:
            array[:] = 0xEE
            raise _AbortedError
