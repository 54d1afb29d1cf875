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
PATIENCE = 60.0
_PLACES = 8


def _cue(place: int) -> property:
    """A word of the shared memory, as an attribute that is false until it is set."""
    return property(lambda stage: bool(stage._cues[place]), lambda stage, value: stage._cues.__setitem__(place, value))


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
    settled, replaced, finish = _cue(0), _cue(1), _cue(2)
    # What the publisher says: there is a history.
    primed = _cue(3)

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
