"""What the processes of one step of the campaign share, and what they have to say."""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .board import Board

# Nothing takes so long (s), on however busy a machine.
PATIENCE = 20.0
_PLACES = 8


class Stage:
    """Memory that outlives whoever is killed: cues, who is on stage, and how far each publisher came."""

    def __init__(self) -> None:
        self.board = Board()
        self._cues = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.int64)

    def clear(self) -> None:
        """For the next step."""
        self._cues[:] = 0
        for run in range(_PLACES):
            self.board.clear(run)

    # What the director says, once for all.
    settled = property(lambda self: bool(self._cues[0]), lambda self, value: self._set(0, value))
    replaced = property(lambda self: bool(self._cues[1]), lambda self, value: self._set(1, value))
    finish = property(lambda self: bool(self._cues[2]), lambda self, value: self._set(2, value))
    # What the publisher says: there is a history.
    primed = property(lambda self: bool(self._cues[3]), lambda self, value: self._set(3, value))

    def _set(self, place: int, value: bool) -> None:
        self._cues[place] = value

    def cast(self, subscribers: set[int]) -> None:
        """The subscribers that are expected to connect."""
        self._cues[8 : 8 + _PLACES] = 0
        self._cues[8 : 8 + len(subscribers)] = sorted(subscribers)

    def expected(self) -> set[int]:
        return {int(pid) for pid in self._cues[8 : 8 + _PLACES] if pid}

    @staticmethod
    def wait(condition: Callable[[], Any], what: str) -> None:
        """Wait for it, but not for ever."""
        until = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(f"not within {PATIENCE:g} s: {what}")
            time.sleep(0.0005)


class Voice:
    """A process's line to the director: JSON, one line each, short enough for a pipe to take it whole."""

    def __init__(self, pipe: int, who: str) -> None:
        self._pipe, self._who = pipe, who

    def violation(self, what: str) -> None:
        self.say(violation=what[:3000])

    def say(self, **fields: Any) -> None:
        os.write(self._pipe, json.dumps({"who": self._who, **fields}).encode() + b"\n")
