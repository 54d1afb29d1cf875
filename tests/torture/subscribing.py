"""A subscriber's life: it checks every message, and that none is missing that its policy owes it."""

from __future__ import annotations

import select
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

import byref

from .context import Context
from .pattern import Payload, as_bytes, payload

_Policy = Literal["block", "drop_oldest", "latest"]

# Whoever waits at least so long (s) for a message that is there all the time has slept through its wake-up ...
_LONG_WAIT = 1.0
# ... if the message was there for this time (ns).
_SLEPT = 500_000_000


@dataclass(slots=True)
class _Seen:
    """What came from one publisher."""

    run: int
    limit: int
    joined: int  # The publisher was not beyond this message when this subscriber had joined.
    first: int | None = None
    next: int = 0
    received: int = 0
    leaving: bool = False  # It is gone; what it sent before may still come.
    over: bool = False


class Subscribing:
    """One subscriber, from its birth to its end."""

    def __init__(self, context: Context, topic: str) -> None:
        self._rng = rng = context.rng
        self._board, self._report = context.board, context.report
        self._keep, self._signals = context.keep, context.signals
        self._policy: _Policy = rng.choice(get_args(_Policy))
        depth = rng.choice((None, None, 1, 3, 100, 3000))
        self._depth = 1 if self._policy == "latest" else depth if self._policy == "drop_oldest" else None
        history = rng.choice((0, 0, 1, 5, 2000))
        writable = rng.random() < 0.2
        self._polls = rng.random() < 0.3
        self._timeouts = (0, 0.001, 0.1, _LONG_WAIT) if context.patient else (0, 0.001)
        self._keeps = rng.choice((0, 0.01, 0.3))
        self._pauses = rng.choice((0, 0, 0.001, 0.02))
        self._end = time.monotonic() + rng.choice((0.1, 1, 5))
        self._seen: dict[byref.PublisherInfo, _Seen] = {}
        self._text = f"subscriber to {topic!r}, {self._policy}, {depth=}, {history=}, {writable=}, polls={self._polls}"
        self._subscriber = byref.Subscriber(topic, self._policy, depth, history, writable)

    def __repr__(self) -> str:
        return f"<{self._text}>"

    def is_over(self) -> bool:
        return time.monotonic() > self._end

    def step(self) -> None:
        """Receive some messages."""
        self._look_around()
        for _ in range(self._rng.choice((1, 10, 100))):
            floors = {}
            if self._depth is not None:
                floors = {seen.run: self._board.done(seen.run) - self._depth for seen in self._seen.values()}
            received = self._receive(self._rng.choice(self._timeouts))
            if not received:
                self._note_endings()
                break
            for message in received:
                self._take(message, floors)
            if isinstance(received, byref.Batch):
                self._check_batch(received)
        time.sleep(self._pauses)

    def close(self) -> None:
        stats = self._subscriber.stats()
        self._check_losses(stats)
        self._report.counts[f"lost by {self._policy}"] += stats["lost"]
        self._subscriber.close()

    def expect_forked(self) -> None:
        """In a forked child: the subscriber must refuse."""
        try:
            self._subscriber.try_recv()
        except byref.Forked:
            return
        self._report.violation(f"{self} receives in a forked child")

    def _look_around(self) -> None:
        """Note who came and who went."""
        present = set(self._subscriber.publishers)
        for publisher in present - self._seen.keys():
            self._meet(publisher)
        for publisher, seen in self._seen.items():
            seen.leaving = publisher not in present

    def _meet(self, publisher: byref.PublisherInfo) -> _Seen:
        run, limit = map(int, (publisher.name or "").split("/"))
        seen = self._seen[publisher] = _Seen(run, limit, self._board.begun(run))
        return seen

    def _receive(self, timeout: float) -> list[byref.Message] | byref.Batch:
        asked = time.monotonic()
        if self._polls:
            messages = self._try_receive()
            if messages or select.select([self._subscriber], (), (), timeout)[0]:
                return messages or self._try_receive()
        else:
            with suppress(byref.Timeout):
                if self._rng.random() < 0.3:
                    return self._subscriber.recv_batch(self._rng.choice((1, 3, 20, 1000)), timeout)
                return [self._subscriber.recv(timeout)]
        if timeout < _LONG_WAIT or self._signals.thawed > asked:
            return []
        messages = self._try_receive()
        for message in messages:
            if message.publisher not in self._seen:
                continue
            late = time.time_ns() - message.timestamp_ns
            if self._seen[message.publisher].received and late > _SLEPT:
                self._report.violation(
                    f"{self} waited {timeout} s, but {message} was there for {late / 1e9:.3f} s of it"
                )
        return messages

    def _try_receive(self) -> list[byref.Message]:
        message = self._subscriber.try_recv()
        return [] if message is None else [message]

    def _check_batch(self, batch: byref.Batch) -> None:
        """Check what a batch says of its messages, whose content is checked already, and its array."""
        self._report.counts["batches"] += 1
        owners = [self._seen[publisher] for run, publisher in batch.publishers for _ in run]
        sequences = batch.sequences.tolist()
        if len({len(batch), len(owners), len(sequences), len(batch.timestamps_ns)}) != 1:
            self._report.violation(f"{self} received {batch} of {batch.publishers} with numbers {sequences}")
            return
        expected = [payload(seen.run, seen.limit, number) for seen, number in zip(owners, sequences, strict=True)]
        if batch.nbytes != sum(each.size for each in expected):
            self._report.violation(f"{self} received {batch} instead of {expected}")
        are_alike = len({(each.size, each.dtype is None or (each.dtype, each.shape)) for each in expected}) == 1
        try:
            array = batch.array()
        except ValueError as refused:
            if are_alike:
                self._report.violation(f"{self} received {batch} of messages that are alike: {refused}")
            return
        if not are_alike:
            self._report.violation(f"{self} received {batch} as {array.dtype}, {array.shape} instead of {expected}")
            return
        index = self._rng.randrange(len(batch))
        row, wanted = array[index : index + 1], expected[index]
        if (array.shape, array.dtype) != ((len(batch), *wanted.shape), wanted.dtype or "u1"):
            self._report.violation(f"{self} received {batch} as {array.dtype}, {array.shape} of {wanted}")
        elif fault := wanted.fault(as_bytes(row)):
            self._report.violation(f"{self} received {batch} with {fault} in row {index}")
        elif self._rng.random() < self._keeps:
            self._keep.add(row, wanted)

    def _take(self, message: byref.Message, floors: dict[int, int]) -> None:
        """Check a message against what must come from its publisher, and its content."""
        seen = self._seen.get(message.publisher) or self._meet(message.publisher)
        sequence = message.sequence
        if seen.first is None:
            seen.first = seen.next = sequence
            if self._policy == "block" and sequence > seen.joined:
                self._report.violation(f"{self} joined at {seen.joined}, but first received {message} of {seen}")
        if sequence < seen.next or (self._policy == "block" and sequence > seen.next):
            self._report.violation(f"{self} received {message} of {seen} out of order")
        if sequence < floors.get(seen.run, 0):
            self._report.violation(f"{self} received stale {message}, not {floors[seen.run]} or later, of {seen}")
        if sequence >= self._board.begun(seen.run):
            self._report.violation(f"{self} received {message}, which was not sent yet, of {seen}")
        if self._policy == "block":
            self._board.take(seen.run)
        seen.next = sequence + 1
        seen.received += 1
        self._report.counts["received"] += 1
        self._report.counts["bytes received"] += message.nbytes
        expected = payload(seen.run, seen.limit, sequence)
        for fault in _faults(message, expected):
            self._report.violation(f"{self} received {message} of {seen} with {fault}")
        if self._rng.random() < self._keeps:
            self._keep_some_view(message, expected)
        elif self._rng.random() < 0.5:
            message.release()

    def _keep_some_view(self, message: byref.Message, expected: Payload) -> None:
        how = self._rng.randrange(4)
        if how == 0:
            self._keep.add(message, expected)
        elif how == 1 and expected.dtype is None:
            self._keep.add(memoryview(message), expected)
        elif how == 2 and expected.size > 0:
            private = message.writable()
            changed = self._rng.randrange(expected.size)
            as_bytes(private)[changed] ^= 0xFF
            self._keep.add(private, expected, changed=changed)
            if fault := expected.fault(as_bytes(message)):
                self._report.violation(f"{self} wrote into a private view, and {message} changed: {fault}")
        else:
            self._keep.add(message.value, expected)

    def _note_endings(self) -> None:
        """Nothing was there, so everything from those who had left before was taken."""
        for seen in self._seen.values():
            if seen.leaving and not seen.over:
                seen.over = True
                reached, sent = seen.joined if seen.first is None else seen.next, self._board.done(seen.run)
                if self._policy == "block" and reached < sent:
                    self._report.violation(f"{self} lost the end, messages {reached} to {sent - 1}, of {seen}")

    def _check_losses(self, stats: dict[str, int]) -> None:
        """What was lost lies between what is surely missing and what can be missing at most.

        Missing for sure: the gaps, and what was skipped between joining and the first message. At most, also what the
        publisher sent before the first message seen, and since the last one.
        """
        lost, received = stats["lost"], stats["received"]
        least = most = taken = 0
        for seen in self._seen.values():
            taken += seen.received
            begun = self._board.begun(seen.run)
            if seen.first is None:
                most += begun
                continue
            gaps = seen.next - seen.first - seen.received
            least += gaps + max(0, seen.first - seen.joined)
            most += gaps + seen.first + begun - seen.next
        if self._policy == "block":
            most = 0
        if received != taken:
            self._report.violation(f"{self} counts {received} messages received, not {taken}")
        if not least <= lost <= most:
            seen_all = list(self._seen.values())
            self._report.violation(f"{self} counts {lost} messages lost, not {least} to {most}: {seen_all}")
        self._report.counts["exact loss counts"] += least == most


def _faults(message: byref.Message, expected: Payload) -> list[str]:
    """Everything that is not as sent."""
    faults = []
    if message.headers != expected.headers:
        faults.append(f"headers {message.headers}, not {expected.headers}")
    if message.shape != expected.shape or message.dtype != (expected.dtype or "u1"):
        faults.append(f"type {message.dtype}, {message.shape}, not {expected.dtype}, {expected.shape}")
    elif fault := expected.fault(as_bytes(message)):
        faults.append(fault)
    return faults
