"""The process that attacks."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

from tests.processes import Line

from . import publishing, subscribing
from .tools import Stranger

# By the name that a summary shows.
ATTACKS = {
    f"{module.__name__.rpartition('.')[2]}: {attack.__name__}": attack
    for module in (subscribing, publishing)
    for attack in module.ATTACKS
}


def attack(line: Line, seed: str, names: list[str], seconds: float) -> None:
    """One attack after the other, each in its turn, until it is told something and all had their turn."""
    rng = random.Random(seed)
    stranger = Stranger(Path(os.environ["BYREF_DIR"]), rng, seconds)
    made: Counter[str] = Counter()
    waiting: list[str] = []
    while waiting or not made or not line.has_something():
        waiting = waiting or rng.sample(names, len(names))
        name = waiting.pop()
        ATTACKS[name](stranger)
        made[name] += 1
    line.hear()
    line.tell(made)
    line.hear()
