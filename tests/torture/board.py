"""What outlives a killed process: how far every publisher came, and what the workers reported."""

from __future__ import annotations

import json
import mmap
import os
import time
from collections import Counter

import numpy as np

_ROWS = 1 << 16
_BEAT = 0.25
_LONGEST_TEXT = 3000


class Board:
    """Three numbers for each publisher in memory shared by all processes, so that they survive it.

    `begun` is raised before a message is sent, and `done` afterwards: what others see of the publisher lies between.
    `taken` is the time at which a lossless subscriber last took a message of it.
    """

    def __init__(self) -> None:
        self._rows = np.frombuffer(mmap.mmap(-1, _ROWS * 24), np.uint64).reshape(_ROWS, 3)
        self._rows[:] = 0  # Takes the memory now, so that it does not look like a leak later.
        self._trouble = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.float64)

    def clear(self, run: int) -> None:
        self._rows[run % _ROWS] = 0

    def begin(self, run: int, sequence: int) -> None:
        self._rows[run % _ROWS, 0] = sequence + 1

    def finish(self, run: int, sequence: int) -> None:
        self._rows[run % _ROWS, 1] = sequence + 1

    def take(self, run: int) -> None:
        self._rows[run % _ROWS, 2] = time.monotonic_ns()

    def begun(self, run: int) -> int:
        return int(self._rows[run % _ROWS, 0])

    def done(self, run: int) -> int:
        return int(self._rows[run % _ROWS, 1])

    def expect_trouble(self, seconds: float) -> None:
        """For so long the rendezvous directory may be unusable."""
        self._trouble[0] = time.monotonic() + seconds

    def was_troubled(self, since: float) -> bool:
        """Whether it may have been unusable since that time."""
        return bool(since < self._trouble[0])

    def trouble_ended(self) -> float:
        """When it was, or is to be, usable again; another time after another trouble."""
        return float(self._trouble[0])

    def since_taken(self, run: int) -> float:
        """In seconds."""
        return (time.monotonic_ns() - int(self._rows[run % _ROWS, 2])) / 1e9


class Report:
    """What a worker tells the controller: JSON lines, each short enough for a pipe to take it whole."""

    def __init__(self, pipe: int, worker: int) -> None:
        self.counts: Counter[str] = Counter()
        self.longest_stall = 0.0
        self._pipe = pipe
        self._worker = worker
        self._next_beat = 0.0

    def violation(self, what: str, since: float | None = None) -> None:
        """`since`: it took too long since then, which means nothing if all was stopped from outside meanwhile."""
        self._write(violation=what[:_LONGEST_TEXT], since=since)

    def beat(self, last: bool = False) -> None:
        """Tell that this worker lives, and what it has counted since the last time."""
        if last or time.monotonic() > self._next_beat:
            self._next_beat = time.monotonic() + _BEAT
            self._write(counts=self.counts, stall=self.longest_stall)
            self.counts.clear()

    def _write(self, **fields: object) -> None:
        line = json.dumps({"worker": self._worker, "pid": os.getpid(), **fields}) + "\n"
        os.write(self._pipe, line.encode())
