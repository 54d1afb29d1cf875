"""Pickles whose large buffers lie beside them (protocol 5, PEP 574), and pickles of memoryviews."""

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ._errors import Error


def _bytes_of(view: memoryview) -> tuple[Callable[..., memoryview], tuple[Any]]:
    """How a memoryview of plain bytes is pickled: as a view of a copy, which needs no byref to be unpickled."""
    if sys._getframe(1).f_code is _dumps_plainly.__code__:
        raise _HasView
    if view.format != "B" or view.ndim != 1:
        raise TypeError(
            f"cannot pickle a memoryview of format {view.format!r} and {view.ndim} dimensions; pickle bytes(view)"
        )
    return memoryview, (bytes(view),)


def _buffer_of(view: memoryview) -> tuple[Callable[..., memoryview], tuple[Any]]:
    """The same, its bytes beside the pickle."""
    is_plain = view.format == "B" and view.ndim == 1 and view.contiguous
    return (memoryview, (pickle.PickleBuffer(view),)) if is_plain else _bytes_of(view)


_dispatch_table = copyreg.dispatch_table

# Bytes in a received value are memoryviews, which Python by itself cannot pickle. If somebody taught it to, that stays.
if memoryview not in copyreg.dispatch_table:
    copyreg.pickle(memoryview, _bytes_of)


class _HasView(BaseException):
    """What is pickled contains a memoryview."""


def _dumps_plainly(obj: Any, keep: Callable[[pickle.PickleBuffer], None]) -> bytes:
    """The pickle by the table of types that all pickles have; to make another one takes longer than most pickles do."""
    return pickle.dumps(obj, 5, buffer_callback=keep)


def _dumps(obj: Any) -> tuple[bytes, list[memoryview]]:
    """The same with a table of our own."""
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffers.append(buffer.raw())
        except BufferError:  # Not contiguous: it travels within the pickle.
            return True
        return False

    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=5, buffer_callback=keep)
    pickler.dispatch_table = copyreg.dispatch_table | {memoryview: _buffer_of}
    pickler.dump(obj)
    return stream.getvalue(), buffers


def dumps(obj: Any) -> tuple[bytes, list[memoryview]]:
    """The pickle of `obj`, and its out-of-band buffers as plain bytes, in order."""
    try:
        if _dispatch_table.get(memoryview) is _bytes_of:
            found: list[pickle.PickleBuffer] = []
            try:
                return _dumps_plainly(obj, found.append), [buffer.raw() for buffer in found]
            except (_HasView, BufferError):
                pass
        return _dumps(obj)
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as cause:
        raise TypeError(f"cannot pickle an object of type {type(obj).__qualname__}: {cause}") from cause


def loads(topic: str, stream: bytes | memoryview, buffers: Sequence[memoryview]) -> Any:
    """The object that `dumps` pickled. Its arrays are views of `buffers`."""
    try:
        return pickle.loads(stream, buffers=buffers)
    except Exception as cause:
        text = f"topic '{topic}': the message cannot be unpickled here: {type(cause).__name__}: {cause}"
        raise Error(text) from cause
