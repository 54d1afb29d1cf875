"""Pickles whose large buffers lie beside them (protocol 5, PEP 574)."""

import pickle
from typing import Any

from ._errors import Error


def dumps(obj: Any) -> tuple[bytes, list[memoryview]]:
    """The pickle of `obj`, and its out-of-band buffers as plain bytes, in order."""
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffers.append(buffer.raw())
        except BufferError:  # Not contiguous: it travels within the pickle.
            return True
        return False

    try:
        return pickle.dumps(obj, protocol=5, buffer_callback=keep), buffers
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as cause:
        raise TypeError(f"cannot pickle an object of type {type(obj).__qualname__}: {cause}") from cause


def loads(topic: str, stream: memoryview, buffers: list[memoryview]) -> Any:
    """The object that `dumps` pickled. Its arrays are views of `buffers`."""
    try:
        return pickle.loads(stream, buffers=buffers)
    except Exception as cause:
        text = f"topic '{topic}': the message cannot be unpickled here: {type(cause).__name__}: {cause}"
        raise Error(text) from cause
