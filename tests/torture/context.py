"""What the endpoints of one process share."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .board import Board, Report
from .keep import Keep
from .signals import Signals


@dataclass(frozen=True)
class Context:
    """`patient`: calls may wait long, for there is no other endpoint in this thread that they could wait for."""

    rng: random.Random
    board: Board
    report: Report
    keep: Keep
    signals: Signals
    patient: bool
