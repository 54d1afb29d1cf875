"""The kinds of payload: what is handed to a publisher, and what a receiver must find. A class for each.

`pattern` says which kind a message is of, and what bytes it has; nothing else here knows more than one kind. Another
kind is another class in `KINDS`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import byref
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Kind(Protocol):
    """How some payloads look. Instances are compared: those that are equal can be rows of one block, or of an array."""

    @property
    def size(self) -> int:
        """In bytes."""

    def to_send(self, content: Bytes, rng: random.Random) -> Any:
        """What to send so that `content` arrives."""

    def rows_to_send(self, contents: Sequence[Bytes], rng: random.Random) -> Any:
        """The same for a block."""

    def loan(self, publisher: byref.Publisher, spare: int, timeout: float | None) -> tuple[byref.Loan, int]:
        """A loan that is `spare` items too long, and how many items it should have."""

    def faults(self, message: byref.Message) -> list[str]:
        """What a received message says wrongly about its form."""

    def view(self, message: byref.Message) -> Any:
        """Some view onto a message."""

    @property
    def in_array(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of a message in the array of a batch."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Bytes, from any buffer."""

    size: int

    def to_send(self, content: Bytes, rng: random.Random) -> Any:
        return rng.choice((bytes, bytearray, memoryview))(content)

    def rows_to_send(self, contents: Sequence[Bytes], rng: random.Random) -> Any:
        return [self.to_send(content, rng) for content in contents]

    def loan(self, publisher: byref.Publisher, spare: int, timeout: float | None) -> tuple[byref.Loan, int]:
        return publisher.loan(self.size + spare, timeout=timeout), self.size

    def faults(self, message: byref.Message) -> list[str]:
        return _form_faults(message, *self.in_array)

    def view(self, message: byref.Message) -> Any:
        return memoryview(message)

    @property
    def in_array(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return (self.size,), np.dtype("u1")


@dataclass(frozen=True, slots=True)
class Array:
    """A NumPy array, in one piece or in several."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    DTYPES: ClassVar = [
        np.dtype(kind)
        for kind in ("u1", "<i2", "<f4", "<c16", "<M8[ns]", [("id", "<u4"), ("value", "<f8"), ("tag", "S3")])
    ]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def to_send(self, content: Bytes, rng: random.Random) -> Any:
        return _perhaps_in_pieces(self._view(content), rng)

    def rows_to_send(self, contents: Sequence[Bytes], rng: random.Random) -> Any:
        if rng.random() < 0.3:
            return [self._view(content) for content in contents]
        rows = np.stack(contents).view(self.dtype).reshape(len(contents), *self.shape)
        return _perhaps_in_pieces(rows, rng)

    def loan(self, publisher: byref.Publisher, spare: int, timeout: float | None) -> tuple[byref.Loan, int]:
        rows, *columns = self.shape
        return publisher.loan((rows + spare, *columns), self.dtype, timeout=timeout), rows

    def faults(self, message: byref.Message) -> list[str]:
        return _form_faults(message, *self.in_array)

    def view(self, message: byref.Message) -> Any:
        return np.asarray(message)

    @property
    def in_array(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return self.shape, self.dtype

    def _view(self, content: Bytes) -> NDArray[Any]:
        return content.view(self.dtype).reshape(self.shape)


def _perhaps_in_pieces(array: NDArray[Any], rng: random.Random) -> NDArray[Any]:
    return np.repeat(array, 2, axis=0)[::2] if rng.random() < 0.3 else array


def _form_faults(message: byref.Message, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[str]:
    if message.shape == shape and message.dtype == dtype:
        return []
    return [f"type {message.dtype}, {message.shape}, not {dtype}, {shape}"]


def plain(size: int, _bits: int) -> Kind:
    return Plain(size)


def array(size: int, bits: int) -> Kind:
    """An array of about `size` bytes; `bits` decide of what."""
    bits, kind = divmod(bits, len(Array.DTYPES))
    dtype = Array.DTYPES[kind]
    items = size // dtype.itemsize
    return Array((items // 3, 3) if items % 2 else (items,), dtype)


# Makers: each turns a size and some bits into a kind.
KINDS = (plain, array)
