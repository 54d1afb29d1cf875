"""What a message must contain: it all follows from the publisher's run and size limit and the message's number."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Headers = dict[str, str | bytes | int | float | bool]

LARGEST = 4 << 20
# So many messages in a row are alike, at the most.
LONGEST_BLOCK = 32
_SHIFTS = 1 << 16
_NOISE: Bytes = np.random.default_rng(1).integers(0, 256, LARGEST + _SHIFTS, np.uint8)
# Every payload begins with it, as far as it fits, so that a wrong one tells where it comes from.
_HEAD = struct.Struct("<QQ")
_DTYPES: list[np.dtype[Any]] = [
    np.dtype(kind) for kind in ("u1", "<i2", "<f4", "<c16", "<M8[ns]", [("id", "<u4"), ("value", "<f8"), ("tag", "S3")])
]


@dataclass(frozen=True, slots=True)
class Payload:
    """One message as it must be. `dtype` is None for plain bytes."""

    run: int
    sequence: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    headers: Headers
    shift: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * (self.dtype.itemsize if self.dtype else 1)

    def goes_with(self, other: Payload) -> bool:
        """Whether both can be rows of one block."""
        return 0 < self.size == other.size and (self.shape, self.dtype, self.headers) == (
            other.shape, other.dtype, other.headers,
        )  # fmt: skip

    def fill(self, out: Bytes) -> None:
        """Write the content into `out`, which is as long as the payload."""
        out[:] = _NOISE[self.shift : self.shift + len(out)]
        head = self._head()[: len(out)]
        out[: len(head)] = head

    def content(self) -> Bytes:
        """The content, as new memory."""
        out = np.empty(self.size, np.uint8)
        self.fill(out)
        return out

    def fault(self, got: Bytes) -> str | None:
        """What is wrong with these bytes, if anything."""
        if len(got) != self.size:
            return f"{len(got)} bytes instead of {self.size}"
        head = self._head()[: len(got)]
        rest = _NOISE[self.shift + len(head) : self.shift + len(got)]
        if np.array_equal(got[: len(head)], head) and np.array_equal(got[len(head) :], rest):
            return None
        wrong = np.flatnonzero(got != self.content())
        says = _HEAD.unpack(got[: _HEAD.size].tobytes()) if len(got) >= _HEAD.size else "nothing"
        text = f"{len(wrong)} of {len(got)} bytes are wrong, from {wrong[0]} to {wrong[-1]}"
        return f"{text}; its head (run, sequence) says {says}"

    def _head(self) -> Bytes:
        return np.frombuffer(_HEAD.pack(self.run, self.sequence), np.uint8)


def payload(run: int, limit: int, sequence: int) -> Payload:
    """Message `sequence` of a publisher whose messages have up to `limit` bytes, most of them far less."""
    # In half of all stretches of numbers the messages have all but their content in common.
    stretch = sequence // LONGEST_BLOCK * LONGEST_BLOCK
    number = stretch if _mix(~(run << 32 | stretch)) % 2 else sequence
    bits = _mix(run << 32 | number)
    bits, text = divmod(bits, 30)
    bits, kind = divmod(bits, 2 * len(_DTYPES))
    bits, with_headers = divmod(bits, 4)
    size = int((limit + 1) ** (bits % 4096 / 4095)) - 1
    dtype = _DTYPES[kind] if kind < len(_DTYPES) else None
    items = size // dtype.itemsize if dtype else size
    shape = (items // 3, 3) if dtype and items % 2 else (items,)
    headers: Headers = {}
    if with_headers == 0:
        headers = {"number": number, "half": number / 2, "text": "é" * text, "raw": b"\0", "yes": True}
    shift = _mix(run << 32 | sequence) % _SHIFTS
    return Payload(run, sequence, shape, dtype, headers, shift)


def as_bytes(view: Any) -> Bytes:
    """The memory behind a message, an array or a memoryview."""
    return np.asarray(view).reshape(-1).view(np.uint8)


def _mix(value: int) -> int:
    """64 bits that look random (splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
