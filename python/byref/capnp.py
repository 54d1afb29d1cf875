"""Cap'n Proto messages, read in place with pycapnp.

    frame = byref.capnp.read(schema.Frame, msg)

The reader keeps the lease: it stays valid beyond the message variable, the subscriber and the publisher. (pycapnp's own
`from_bytes` lets go of the buffer at the end of its `with` block; whoever keeps the reader longer reads what comes next
in that memory.)

byref itself does not need pycapnp; the schema that is handed in brings it along.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from . import Message
from ._errors import Error

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Malformed", "read"]

_WORD = 8
# As in Cap'n Proto's own readers.
_MOST_SEGMENTS = 512


class Malformed(Error, ValueError):
    """The bytes are no Cap'n Proto message; the text says why."""


def read(
    schema: Any,
    data: Message | Buffer,
    *,
    traversal_limit_in_words: int | None = None,
    nesting_limit: int | None = None,
) -> Any:
    """Return a reader of the message in `data`, whose root is the struct `schema` (`schema.Frame` of a loaded file).

    `data`: a `Message`, or any buffer that starts at a multiple of 8 bytes. It is not copied, and kept as long as the
    reader or a part of it. It holds what `to_bytes()` of a builder gives (or segments behind a segment table that were
    filled into a loan), not the packed encoding. `traversal_limit_in_words` and `nesting_limit` are pycapnp's: how much
    may be read through this reader, counted again each time (default: 8 Mi words of 8 bytes), and how deeply.

    Raises `Malformed`, an `Error` and `ValueError`, when the segments are not where the table says; and `ValueError`
    for a buffer that is not aligned.
    """
    view = memoryview(data).cast("B")
    try:
        # Each memoryview keeps the buffer, and the reader keeps the memoryviews.
        segments = [view[begin:end] for begin, end in _bounds(view)]
    except Malformed as problem:
        raise Malformed(f"{_what(data)} is no Cap'n Proto message: {problem}") from None
    finally:
        # The traceback of an exception must not keep the message.
        view.release()
    limits = {"traversal_limit_in_words": traversal_limit_in_words, "nesting_limit": nesting_limit}
    return schema.from_segments(segments, **limits)


def _what(data: Any) -> str:
    return f"message {data.sequence} of {data.topic!r}" if isinstance(data, Message) else f"this {type(data).__name__}"


def _bounds(view: memoryview) -> list[tuple[int, int]]:
    """Where the segments begin and end, by the table in front of them: their count less one, their lengths in words."""
    length = view.nbytes
    if length % _WORD:
        raise Malformed(f"its {length} bytes are no multiple of {_WORD} (is it packed? that cannot be read in place)")
    if not length:
        raise Malformed("it is empty")
    if behind := np.frombuffer(view, np.uint8).ctypes.data % _WORD:
        raise ValueError(
            f"the buffer starts {behind} bytes behind a multiple of {_WORD}, and Cap'n Proto reads whole words; "
            "copy it, or send it as a message of its own"
        )
    # Numbers of 4 bytes, little-endian, padded to whole words.
    count = struct.unpack_from("<I", view)[0] + 1
    if count > _MOST_SEGMENTS:
        raise Malformed(f"it says that it has {count} segments; at most {_MOST_SEGMENTS} are allowed")
    end = (count // 2 + 1) * _WORD
    if end > length:
        raise Malformed(f"it ends within the table of its {count} segments")
    bounds = []
    for number, words in enumerate(struct.unpack_from(f"<{count}I", view, 4)):
        begin, end = end, end + words * _WORD
        if end > length:
            raise Malformed(f"segment {number} of {count} ends at byte {end}, of {length}")
        bounds.append((begin, end))
    return bounds
