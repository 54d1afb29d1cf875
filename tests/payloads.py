"""Payloads that can be checked byte by byte: every word depends on the seed and on its place."""

from typing import Any

import numpy as np

_STEP = np.uint64(0x9E37_79B9_7F4A_7C15)


def payload(seed: int, nbytes: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The bytes that belong to a seed."""
    words = np.arange(1, (nbytes + 7) // 8 + 1, dtype=np.uint64)
    words += np.uint64(seed)
    words *= _STEP
    return words.view(np.uint8)[:nbytes]


def is_payload(data: Any, seed: int, nbytes: int) -> bool:
    """Whether all of `data` are the bytes that belong to a seed."""
    found = np.frombuffer(data, np.uint8) if nbytes else np.empty(0, np.uint8)
    return len(memoryview(data).cast("B")) == nbytes and bool((found == payload(seed, nbytes)).all())
