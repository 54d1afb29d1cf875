"""Whether a loop asks: a `for` statement, or a comprehension, as opposed to whoever else takes from an iterator."""

from __future__ import annotations

import opcode
import sys
from types import FrameType

# What the interpreter executes where a loop begins, before it has anything of the iterator. `iter(x)`, `zip(x)` and
# `list(x)` are calls, `a, b = x` and `[*x]` are instructions of their own.
_BEGIN = frozenset(code for name in ("GET_ITER", "GET_AITER") if (code := opcode.opmap.get(name)) is not None)


def begins(frame: FrameType | None = None) -> bool:
    """Whether a loop is about to begin in that frame, the caller's by default: its iterator is that loop's alone."""
    frame = frame or sys._getframe(1)
    return frame.f_code.co_code[frame.f_lasti] in _BEGIN
