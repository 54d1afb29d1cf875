"""What travels where messages are more than bytes: one object, sent over and over."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

MIB = 1 << 20

CHUNKS = 8
"""Record batches that the table consists of."""

_CHUNK_ROWS = 120_000
_NUMBERS = 12
"""Columns of numbers: with the text, 100 MB for the whole table."""

_TEXTS = 10_000


class Content(NamedTuple):
    """An object, and what is done with it."""

    make: Callable[[], Any]

    nbytes: int
    """About how many bytes it has."""

    end_of: Callable[[Any], Any]
    """The object after the last, smaller than the others: if any was lost or doubled, it comes at the wrong time."""

    look: Callable[[Any], int]
    """What the receiver does with each of them; gives its size in some unit."""

    same: Callable[[Any, Any], bool]
    """Whether two are equal throughout."""

    def check(self, last: Any, sizes: int, count: int, expected: Any) -> None:
        """Check the last one of so many that were received, and the sum of all sizes."""
        if sizes != count * self.look(expected) or not self.same(last, expected):
            raise ValueError("the objects received are not those sent")


def _table() -> pa.Table:
    rows = np.arange(CHUNKS * _CHUNK_ROWS)
    numbers = {f"n{i}": (rows + i).astype("f8" if i % 2 else "i8") for i in range(_NUMBERS)}
    texts = pa.array([_text(row) for row in range(_TEXTS)]).take(pa.array(rows % _TEXTS))
    return pa.Table.from_batches(pa.table({**numbers, "text": texts}).to_batches(max_chunksize=_CHUNK_ROWS))


def _text(row: int) -> str:
    return f"{row % _TEXTS:04}"


def _look_at_table(table: pa.Table) -> int:
    last = len(table) - 1
    found = [table[column][last].as_py() for column in ("n0", "n1", "text")]
    if found != [last, last + 1.0, _text(last)]:
        raise ValueError(f"the last row of a table is {found}, not the one that was sent")
    return len(table)


def _batch() -> pa.RecordBatch:
    rows = np.arange(32.0)
    return pa.record_batch({f"n{i}": rows + i for i in range(4)})


def _shorten(data: Any) -> Any:
    return data.slice(0, len(data) - 1)


def _parts() -> dict[str, np.ndarray]:
    """Ten arrays of 1 MiB, filled with 1, 2, 3, ..."""
    types = [np.dtype("f4"), np.dtype("u1")] * 5
    return {f"part {i}": np.full(MIB // dtype.itemsize, i, dtype) for i, dtype in enumerate(types, 1)}


def _shorten_parts(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(list(parts.items())[:-1])


def _look_at_parts(parts: dict[str, np.ndarray]) -> int:
    return sum(int(array[-1]) for array in parts.values())


def _same_parts(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


_PARTS = Content(_parts, 10 * MIB, _shorten_parts, _look_at_parts, _same_parts)

CONTENTS = {
    "table": Content(_table, 100_000_000, _shorten, _look_at_table, pa.Table.equals),
    "batch": Content(_batch, 1 << 10, _shorten, len, pa.RecordBatch.equals),
    "parts": _PARTS,
    "pickle": _PARTS,
}
"""By name."""
