"""Views that a worker keeps for a while, and looks at again and again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from .board import Report
from .pattern import Payload, as_bytes

_MOST_VIEWS = 300
_MOST_BYTES = 24 << 20


@dataclass(slots=True)
class _Kept:
    view: Any  # A message, or what looks into one.
    payload: Payload
    until: float
    inheritable: bool
    changed: int | None  # The index of a byte that the owner of a writable view has inverted.

    def fault(self) -> str | None:
        if self.changed is None:
            return self.payload.fault(as_bytes(self.view))
        content = as_bytes(self.view).copy()
        content[self.changed] ^= 0xFF
        return self.payload.fault(content)


class Keep:
    """The views of one process, up to a number and a size. They outlive the endpoint that they came from."""

    def __init__(self, rng: random.Random, report: Report) -> None:
        self._rng, self._report = rng, report
        self._kept: list[_Kept] = []
        self._bytes = 0

    def add(self, view: Any, payload: Payload, inheritable: bool = True, changed: int | None = None) -> None:
        """Keep `view` for a random time; `inheritable`: a forked child sees the same bytes."""
        until = time.monotonic() + self._rng.choice((0.01, 0.1, 1))
        self._kept.append(_Kept(view, payload, until, inheritable, changed))
        self._bytes += payload.size
        while len(self._kept) > _MOST_VIEWS or self._bytes > _MOST_BYTES:
            self._release(self._rng.randrange(len(self._kept)))

    def step(self) -> None:
        """Look at some view again, and let go of it when its time is up."""
        if self._kept:
            index = self._rng.randrange(len(self._kept))
            if time.monotonic() > self._kept[index].until:
                self._release(index)
            else:
                self._check(self._kept[index])

    def clear(self) -> None:
        while self._kept:
            self._release(len(self._kept) - 1)

    def inherited(self, rng: random.Random, report: Report) -> Keep:
        """A forked child's: what it can see of its parent's. Sure as long as the parent keeps it or is dead."""
        child = Keep(rng, report)
        for kept in self._kept:
            if kept.inheritable:
                child.add(kept.view, kept.payload, changed=kept.changed)
        return child

    def _release(self, index: int) -> None:
        kept = self._kept[index]
        self._kept[index] = self._kept[-1]
        self._kept.pop()
        self._bytes -= kept.payload.size
        self._check(kept)

    def _check(self, kept: _Kept) -> None:
        self._report.counts["checks of kept views"] += 1
        if fault := kept.fault():
            what = f"kept message {kept.payload.sequence} of run {kept.payload.run}"
            self._report.violation(f"{what} has changed: {fault} (as {type(kept.view).__name__}, {kept.changed=})")
