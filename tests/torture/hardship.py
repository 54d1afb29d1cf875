"""Times in which a worker's process is short of descriptors or address space."""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import byref

from .board import Report

# So long (s) descriptors are short.
_SHORT = 0.2
# What was refused in the background is told to a call that comes later, within this time (s).
_AFTERMATH = 2.0
# What is left of the address space: little; more as soon as other mappings go (a lease has 68 MiB).
_ROOM = 24 << 20
# Too large for all that.
_BIG = 1 << 30


class Hardship:
    """Lowers the limits of this process now and then, and says whether a refusal is due to that."""

    def __init__(self, rng: random.Random, report: Report, never: bool = False) -> None:
        self._rng, self._report = rng, report
        self._share = 0 if never else rng.choice((0, 0, 0, 0.01))
        self._until = self._ended = 0.0

    def step(self) -> None:
        """Begin or end a shortage of descriptors; or be short of memory for a moment."""
        now = time.monotonic()
        if self._until:
            if now > self._until:
                self.end()
        elif self._rng.random() < self._share:
            if self._rng.random() < 0.7:
                highest = max(map(int, os.listdir("/proc/self/fd")))
                os.environ["BYREF_RAISE_NOFILE"] = "0"
                limit(resource.RLIMIT_NOFILE, highest + self._rng.choice((1, 2, 4, 9)))
                self._until = now + _SHORT
                self._report.counts["shortages of descriptors"] += 1
            else:
                self._be_short_of_memory()
                # Other endpoints of this process were short of it, too.
                self._ended = time.monotonic()

    def end(self) -> None:
        """Everything is allowed again."""
        if self._until:
            limit(resource.RLIMIT_NOFILE, None)
            self._until, self._ended = 0.0, time.monotonic()

    @property
    def never_comes(self) -> bool:
        return self._share == 0

    @property
    def is_on(self) -> bool:
        return self._until > 0

    def was_on(self, since: float) -> bool:
        """Whether calls since that time may have failed for it."""
        return self.is_on or self._ended + _AFTERMATH > since

    def _be_short_of_memory(self) -> None:
        """Try what needs much address space: it is refused, and afterwards it works."""
        self._report.counts["shortages of memory"] += 1
        topic = f"scarce/{os.getpid()}"
        with byref.Publisher(topic, max_memory=_BIG) as publisher, byref.Subscriber(topic) as subscriber:
            with address_space(_ROOM):
                try:
                    publisher.loan(_BIG, timeout=1)
                    self._report.violation("a pool was made where there was no room for it")
                except byref.Error as refused:
                    if "memory" not in str(refused).lower():
                        self._report.violation(f"no room for a pool: {refused!r}")
            # In this order: a subscriber without room for the ring has gone again, and comes back. What it was refused
            # meanwhile is told to this call.
            while True:
                try:
                    subscriber.wait_for_publishers(timeout=10)
                    break
                except byref.Error as refused:
                    if "a limit was reached" not in str(refused):
                        raise
            sequence = publisher.send(bytes(1 << 20), timeout=10)
            if subscriber.recv(timeout=10).sequence != sequence:
                self._report.violation("a message is missing after a shortage of memory")


@contextmanager
def address_space(room: int) -> Iterator[None]:
    """This process may map so many bytes more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit(resource.RLIMIT_AS, pages * resource.getpagesize() + room)
    try:
        yield
    finally:
        limit(resource.RLIMIT_AS, None)


def limit(what: int, soft: int | None) -> None:
    """Set the soft limit; None: as high as is allowed."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (hard if soft is None else soft, hard))
