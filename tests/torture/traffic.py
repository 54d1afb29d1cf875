"""What is sent while a step is watched: small, large, in blocks, and so much that the pool grows and shrinks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import byref
import numpy as np

from tests.payloads import is_payload, payload

_MIB = 1 << 20
# So much of a huge message is written and looked at, at both its ends; the rest is arbitrary.
_EDGE = 4096
# A memory that lossy subscribers have yet to unmap, or that messages hold, is waited for: so long (s) in all.
_PATIENCE = 10.0
_T = TypeVar("_T")


class Traffic:
    """How the messages of a publisher look, and how they are sent and received."""

    def __init__(
        self,
        name: str,
        sizes: tuple[int, ...],
        *,
        rows: int = 1,
        messages: int = 60,
        max_memory: int = _MIB,
        batches: bool = False,
        history: int = 0,
        queue: bool = False,
        moves: bool = False,
    ) -> None:
        self.name, self.rows, self.messages, self.max_memory = name, rows, messages, max_memory
        self.batches, self.history, self.queue = batches, history, queue
        # The rendezvous directory vanishes before the first message.
        self.moves = moves
        self._sizes = sizes

    def size(self, sequence: int) -> int:
        """Of message number `sequence`. The rows of a block are alike."""
        return self._sizes[sequence // self.rows % len(self._sizes)]

    @property
    def is_huge(self) -> bool:
        """Whether copying takes longer than anything else."""
        return _is_huge(max(self._sizes))

    @property
    def keeps(self) -> int:
        """How many messages a subscriber keeps for a while."""
        return 0 if self.is_huge else 3

    def send(self, publisher: byref.Publisher, run: int, sequence: int) -> int:
        """Send what comes at this number; returns how many messages that were."""
        size = self.size(sequence)
        if self.rows > 1 and sequence // self.rows % 4 != 3:
            rows = np.stack([payload(_seed(run, sequence + row), size) for row in range(self.rows)])
            _with_room(lambda: publisher.send_many(rows, timeout=_PATIENCE))
            return self.rows
        if sequence % 5 == 4:
            _with_room(lambda: publisher.loan(size, timeout=_PATIENCE)).discard()
        if _is_huge(size) or sequence % 3 == 2:
            loan = _with_room(lambda: publisher.loan(size, timeout=_PATIENCE))
            for part in _edges(loan.array):
                part[:] = payload(_seed(run, sequence), len(part))
            loan.send(timeout=_PATIENCE)
        else:
            _with_room(lambda: publisher.send(payload(_seed(run, sequence), size), timeout=_PATIENCE))
        return 1

    def is_right(self, data: Any, run: int, sequence: int) -> bool:
        """Whether these are the bytes of that message."""
        content = np.asarray(data).reshape(-1).view(np.uint8)
        whole = len(content) == self.size(sequence)
        return whole and all(is_payload(part, _seed(run, sequence), len(part)) for part in _edges(content))


def _with_room(send: Callable[[], _T]) -> _T:
    """Try again while the pool is exhausted."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return send()
        except byref.PoolExhausted:
            if time.monotonic() > until:
                raise
            time.sleep(0.001)


def _is_huge(size: int) -> bool:
    return size > _MIB


def _edges(content: Any) -> list[Any]:
    return [content[:_EDGE], content[-_EDGE:]] if _is_huge(len(content)) else [content]


def _seed(run: int, sequence: int) -> int:
    return run << 32 | sequence


# Who joins late takes what is kept for it, and the pool has no room for much beside: only for those who are frozen.
JOINING = "joining"
# Only for the steps that nothing else reaches: those of meeting again elsewhere.
MOVING = "moving"
_LARGE = (6000,) * 9 + (300_000,)
TRAFFICS = {
    traffic.name: traffic
    for traffic in (
        Traffic(JOINING, (60_000,), messages=40, history=8),
        Traffic("inline", (0, 1, 40, 200)),
        Traffic("pooled", _LARGE),
        Traffic("blocks", (600, 40), rows=4, messages=120),
        Traffic("batches", (40, 600, 40), rows=4, messages=120, batches=True),
        Traffic("history", (40, 6000), history=8),
        # More than the first region of a ring: it grows.
        Traffic("longer", (0, 40, 200), messages=100, history=100),
        Traffic("queue", (40, 6000), queue=True),
        # More than one ordinary segment, and then a message that needs one of its own, for which they have to go.
        Traffic("growth", (30 * _MIB, 30 * _MIB, 30 * _MIB, 100 * _MIB), messages=8, max_memory=128 * _MIB),
        Traffic(MOVING, (40, 6000), moves=True),
    )
}
