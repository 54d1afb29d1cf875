"""What a message must contain: it all follows from the publisher's run and size limit and the message's number."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kinds import KINDS, Kind

Bytes = NDArray[np.uint8]
Headers = dict[str, str | bytes | int | float | bool]

# The usual limit, and that of a few: hundreds of MiB.
LARGEST, HUGE = 4 << 20, 300 << 20
# So many messages in a row are alike, at the most.
LONGEST_BLOCK = 32
_SHIFTS = 1 << 16
# A payload that is longer repeats itself.
_NOISE: Bytes = np.random.default_rng(1).integers(0, 256, LARGEST + _SHIFTS, np.uint8)
# Every payload begins with it, as far as it fits, so that a wrong one tells where it comes from.
_HEAD = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Payload:
    """One message as it must be."""

    run: int
    sequence: int
    kind: Kind
    shift: int
    headers: Headers = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.kind.size

    def goes_with(self, other: Payload) -> bool:
        """Whether both can be rows of one block."""
        return self.size > 0 and (self.kind, self.headers) == (other.kind, other.headers)

    def fill(self, out: Bytes) -> None:
        """Write the content into `out`, which is as long as the payload."""
        for part, noise in self._parts(out):
            part[:] = noise
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
        if self._is_content(got):
            return None
        wrong = np.flatnonzero(got != self.content())
        says = _HEAD.unpack(got[: _HEAD.size].tobytes()) if len(got) >= _HEAD.size else "nothing"
        text = f"{len(wrong)} of {len(got)} bytes are wrong, from {wrong[0]} to {wrong[-1]}"
        return f"{text}; its head (run, sequence) says {says}"

    def _is_content(self, got: Bytes) -> bool:
        head = self._head()[: len(got)]
        if not np.array_equal(got[: len(head)], head):
            return False
        skip = len(head)
        for part, noise in self._parts(got):
            if not np.array_equal(part[skip:], noise[skip:]):
                return False
            skip = 0
        return True

    def _head(self) -> Bytes:
        return np.frombuffer(_HEAD.pack(self.run, self.sequence), np.uint8)

    def _parts(self, content: Bytes) -> Iterator[tuple[Bytes, Bytes]]:
        for start in range(0, len(content), LARGEST):
            part = content[start : start + LARGEST]
            yield part, _NOISE[self.shift : self.shift + len(part)]


def payload(run: int, limit: int, sequence: int) -> Payload:
    """Message `sequence` of a publisher whose messages have up to `limit` bytes, most of them far less."""
    # In half of all stretches of numbers the messages have all but their content in common.
    stretch = sequence // LONGEST_BLOCK * LONGEST_BLOCK
    number = stretch if _mix(~(run << 32 | stretch)) % 2 else sequence
    bits = _mix(run << 32 | number)
    bits, text = divmod(bits, 30)
    bits, which = divmod(bits, len(KINDS))
    bits, with_headers = divmod(bits, 4)
    bits, size = divmod(bits, 4096)
    kind = KINDS[which](int((limit + 1) ** (size / 4095)) - 1, bits)
    headers: Headers = {}
    if with_headers == 0:
        headers = {"number": number, "half": number / 2, "text": "é" * text, "raw": b"\0", "yes": True}
    return Payload(run, sequence, kind, _mix(run << 32 | sequence) % _SHIFTS, headers)


def as_bytes(view: Any) -> Bytes:
    """The memory behind a message, an array or a memoryview."""
    return np.asarray(view).reshape(-1).view(np.uint8)


def _mix(value: int) -> int:
    """64 bits that look random (splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
