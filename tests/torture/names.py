"""The topics of the stress, and what a publisher's name tells."""

from __future__ import annotations

import random
from dataclasses import dataclass

TOPICS = ("torture/a", "torture/b/c", "torture/a long name, longer than a socket's path may be, " + "x" * 100)
RELAYED = ("relayed/a", "relayed/b")
_PATTERNS = ("torture/*", "torture/**", "relayed/*", "**/a", "*/a")


def any_of(rng: random.Random) -> str:
    """What a subscriber follows: mostly one topic, sometimes all that a pattern matches."""
    return rng.choice(_PATTERNS) if rng.random() < 0.3 else rng.choice(TOPICS + RELAYED)


@dataclass(frozen=True, slots=True)
class Source:
    """A publisher: `run` is its own for ever. Its messages have up to `limit` bytes; a relay's are those of others."""

    run: int
    limit: int
    is_relay: bool = False

    def __str__(self) -> str:
        return f"{self.run}/{self.limit}" + "/relay" * self.is_relay

    @staticmethod
    def parse(name: str | None) -> Source:
        run, limit, *relay = (name or "").split("/")
        return Source(int(run), int(limit), bool(relay))
