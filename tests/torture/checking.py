"""What one subscriber gets, compared with what its publishers sent and what its policy owes it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import byref

from .board import Board, Report
from .keep import Keep
from .names import Source
from .pattern import Payload, as_bytes, payload


@dataclass(slots=True)
class Seen:
    """What came from one publisher."""

    source: Source
    joined: int  # The publisher was not beyond this message when this subscriber had joined.
    first: int | None = None
    next: int = 0
    received: int = 0
    leaving: bool = False  # It is gone; what it sent before may still come.
    over: bool = False

    @property
    def run(self) -> int:
        return self.source.run


class Checking:
    """The messages and events of one subscriber, in the order in which they come. `who` is for the reports."""

    def __init__(self, who: str, policy: str, rng: random.Random, board: Board, report: Report, keep: Keep) -> None:
        self._who, self.policy = who, policy
        self._rng, self._board, self._report, self._keep = rng, board, report, keep
        # How many of the messages are kept, as a share.
        self._keeps = rng.choice((0, 0.01, 0.3))
        self.seen: dict[byref.PublisherInfo, Seen] = {}

    def meet(self, publisher: byref.PublisherInfo) -> Seen:
        """A publisher that was not seen before."""
        source = Source.parse(publisher.name)
        seen = self.seen[publisher] = Seen(source, self._board.begun(source.run))
        return seen

    def floors(self, depth: int) -> dict[int, int]:
        """Of each publisher: an older message than this may not come any more."""
        return {seen.run: self._board.done(seen.run) - depth for seen in self.seen.values()}

    def take(self, message: byref.Message, floors: Mapping[int, int]) -> Payload:
        """Check a message against what must come from its publisher, and its content."""
        seen = self.seen.get(message.publisher) or self.meet(message.publisher)
        sequence = message.sequence
        if seen.first is None:
            seen.first = seen.next = sequence
            if self.policy == "block" and sequence > seen.joined:
                self.violation(f"joined at {seen.joined}, but first received {message} of {seen}")
        if sequence < seen.next or (self.policy == "block" and sequence > seen.next):
            self.violation(f"received {message} of {seen} out of order")
        if sequence < floors.get(seen.run, 0):
            self.violation(f"received stale {message}, not {floors[seen.run]} or later, of {seen}")
        if sequence >= self._board.begun(seen.run):
            self.violation(f"received {message}, which was not sent yet, of {seen}")
        if self.policy == "block":
            self._board.take(seen.run)
        seen.next = sequence + 1
        seen.received += 1
        self._report.counts["received"] += 1
        self._report.counts["bytes received"] += message.nbytes
        expected = self.expected(message)
        for fault in _faults(message, expected):
            self.violation(f"received {message} of {seen} with {fault}")
        if self._rng.random() < self._keeps:
            self._keep_some_view(message, expected)
        elif self._rng.random() < 0.5:
            message.release()
        return expected

    def expected(self, message: byref.Message) -> Payload:
        """What a message must be: its publisher's own, or one that a relay received."""
        source = self.seen[message.publisher].source
        if not source.is_relay:
            return payload(source.run, source.limit, message.sequence)
        relayed = str(message.headers["relayed"])
        origin, _, sequence = relayed.partition(" ")
        known = Source.parse(origin)
        original = payload(known.run, known.limit, int(sequence))
        return replace(original, headers=original.headers | {"relayed": relayed})

    def happened(self, event: byref.Event) -> None:
        """Check what is told of a publisher: nothing may be missing that it does not tell."""
        self._report.counts["events"] += 1
        seen = self.seen.get(event.publisher) or self.meet(event.publisher)
        if event.kind == "gap":
            if self.policy == "block":
                self.violation(f"was told of {event} of {seen}")
            if seen.first is None:
                seen.first = seen.next = event.sequence or 0
            if event.sequence != seen.next:
                self.violation(f"was told of {event}, a gap from {event.sequence}, of {seen}")
            seen.next += event.count
        elif event.kind in ("left", "lost"):
            self._end(seen, owes_all=True)

    def note_endings(self) -> None:
        """Nothing was there, so everything from those who had left before was taken."""
        for seen in self.seen.values():
            if seen.leaving and not seen.over:
                self._end(seen, owes_all=self.policy == "block")

    def _end(self, seen: Seen, owes_all: bool) -> None:
        """`owes_all`: what was not received was told to be lost."""
        seen.over = True
        reached, sent = seen.joined if seen.first is None else seen.next, self._board.done(seen.run)
        if owes_all and reached < sent:
            self.violation(f"lost the end, messages {reached} to {sent - 1}, of {seen}")

    def check_batch(self, batch: byref.Batch) -> None:
        """Check what a batch says of its messages, whose content is checked already, and its array."""
        self._report.counts["batches"] += 1
        owners = [publisher for run, publisher in batch.publishers for _ in run]
        if len({len(batch), len(owners), len(batch.sequences), len(batch.timestamps_ns)}) != 1:
            self.violation(f"received {batch} of {batch.publishers} with numbers {batch.sequences}")
            return
        expected = [self.expected(message) for message in batch]
        if batch.nbytes != sum(each.size for each in expected):
            self.violation(f"received {batch} instead of {expected}")
        are_alike = len({each.kind for each in expected}) == 1
        try:
            array = batch.array()
        except ValueError as refused:
            if are_alike:
                self.violation(f"received {batch} of messages that are alike: {refused}")
            return
        if not are_alike:
            self.violation(f"received {batch} as {array.dtype}, {array.shape} instead of {expected}")
            return
        index = self._rng.randrange(len(batch))
        row, wanted = array[index : index + 1], expected[index]
        if (array.shape[1:], array.dtype) != wanted.kind.in_array or len(array) != len(batch):
            self.violation(f"received {batch} as {array.dtype}, {array.shape} of {wanted}")
        elif fault := wanted.fault(as_bytes(row)):
            self.violation(f"received {batch} with {fault} in row {index}")
        elif self._rng.random() < self._keeps:
            self._keep.add(row, wanted)

    def check_losses(self, stats: Mapping[str, Any], knows_all: bool = True) -> None:
        """What was lost lies between what is surely missing and what can be missing at most.

        Missing for sure: the gaps, and what was skipped between joining and the first message. At most, also what the
        publisher sent before the first message seen, and since the last one. `knows_all`: publishers were met before
        anything of them was lost.
        """
        lost, received = stats["lost"], stats["received"]
        least = taken = 0
        most: float = 0
        for seen in self.seen.values():
            taken += seen.received
            begun = self._board.begun(seen.run)
            if seen.first is None:
                most += begun
                continue
            gaps = seen.next - seen.first - seen.received
            least += gaps + max(0, seen.first - seen.joined)
            most += gaps + seen.first + begun - seen.next
        if self.policy == "block":
            most = 0
        elif not knows_all:
            most = math.inf
        if received != taken:
            self.violation(f"counts {received} messages received, not {taken}")
        if not least <= lost <= most:
            self.violation(f"counts {lost} messages lost, not {least} to {most}: {list(self.seen.values())}")
        self._report.counts["loss counts"] += 1
        self._report.counts["loss counts known exactly"] += least == most
        self._report.counts[f"lost by {self.policy}"] += lost

    def violation(self, what: str) -> None:
        self._report.violation(f"<{self._who}> {what}")

    def _keep_some_view(self, message: byref.Message, expected: Payload) -> None:
        how = self._rng.randrange(4)
        if how == 0:
            self._keep.add(message, expected)
        elif how == 1:
            self._keep.add(expected.kind.view(message), expected)
        elif how == 2 and expected.size > 0:
            private = message.writable()
            changed = self._rng.randrange(expected.size)
            as_bytes(private)[changed] ^= 0xFF
            self._keep.add(private, expected, changed=changed)
            if fault := expected.fault(as_bytes(message)):
                self.violation(f"wrote into a private view, and {message} changed: {fault}")
        else:
            self._keep.add(message.value, expected)


def _faults(message: byref.Message, expected: Payload) -> list[str]:
    """Everything that is not as sent."""
    faults = expected.kind.faults(message)
    if message.headers != expected.headers:
        faults.append(f"headers {message.headers}, not {expected.headers}")
    if not faults and (fault := expected.fault(as_bytes(message))):
        faults.append(fault)
    return faults
