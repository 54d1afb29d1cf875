"""NumPy element types in words that another process understands.

A plain type travels as its `dtype.str` ("<f4", "<M8[ns]"). A structured one, or one with a shape of its own, travels as
JSON: names, formats, offsets and the item's size, nested as the type is, so that padding and order survive, and
whether its elements are records (`np.record`). The types of the package ml_dtypes ("ml_dtypes.bfloat16"), which JAX and
others use, travel by name; other packages' types do not.
"""

import importlib
import json
from functools import lru_cache
from typing import Any

import numpy as np

_Words = Any  # str | dict | list, as JSON has it
_BY_NAME = "ml_dtypes."
_MOST_PADDING = 4096


def encode(dtype: np.dtype[Any]) -> bytes:
    """Describe `dtype`; `decode` makes an equal one of it."""
    return _encode(dtype, dtype.type is np.record)


@lru_cache(maxsize=256)
def _encode(dtype: np.dtype[Any], is_record: bool) -> bytes:
    """Remember the words: senders ask again and again for the same few.

    A type whose fields are renamed in place has another hash then. Records equal others.
    """
    words = _describe(dtype)
    if is_record:
        words["record"] = True
    return words.encode() if isinstance(words, str) else json.dumps(words, separators=(",", ":")).encode()


def decode(kind: bytes) -> tuple[np.dtype[Any], str | None]:
    """The type that `encode` described, and its name in the buffer protocol, where NumPy reads that back."""
    text = kind.decode()
    dtype = _build(json.loads(text) if text.startswith(("{", "[")) else text)
    return dtype, _buffer_format(dtype)


def _padding(dtype: np.dtype[Any]) -> int:
    """Bytes of an element that belong to no field."""
    if dtype.subdtype is not None:
        return _padding(dtype.subdtype[0])
    if dtype.fields is None:
        return 0
    fields = [dtype.fields[name][0] for name in dtype.names or ()]
    return max(0, dtype.itemsize - sum(field.itemsize for field in fields)) + sum(map(_padding, fields))


def _buffer_format(dtype: np.dtype[Any]) -> str | None:
    if _padding(dtype) > _MOST_PADDING:
        return None  # The protocol has a letter for each byte of it, which NumPy reads back one by one.
    try:
        view = memoryview(np.empty(1, dtype))
        return view.format if np.asarray(view).dtype == dtype else None
    except (ValueError, BufferError, TypeError, RuntimeError):  # The last: padding that NumPy does not read back.
        return None


def _describe(dtype: np.dtype[Any]) -> _Words:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_describe(base), list(shape)]
    if dtype.fields is None:
        return _name(dtype)
    fields = [dtype.fields[name] for name in dtype.names or ()]
    return {
        "names": list(dtype.names or ()),
        "titles": [field[2] if len(field) > 2 and isinstance(field[2], str) else None for field in fields],
        "formats": [_describe(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def _name(dtype: np.dtype[Any]) -> str:
    if type(dtype).__module__ == "numpy.dtypes":
        return dtype.str
    name = f"{dtype.type.__module__}.{dtype.type.__name__}"
    if name.startswith(_BY_NAME):
        return name
    # What `dtype.str` says of such types ("<V2") is not what they are.
    raise TypeError(
        f"cannot send elements of type {name}, which another process would not know; send a view as integers"
    )


def _build(words: _Words) -> np.dtype[Any]:
    if isinstance(words, str):
        return _known_by_name(words) if words.startswith(_BY_NAME) else np.dtype(words)
    if isinstance(words, list):
        base, shape = words
        return np.dtype((_build(base), tuple(shape)))
    formats = [_build(format) for format in words["formats"]]
    layout: Any = {
        "names": words["names"],
        "titles": words["titles"],
        "formats": formats,
        "offsets": words["offsets"],
        "itemsize": words["itemsize"],
    }
    dtype: np.dtype[Any] = np.dtype(layout, align=words["aligned"])
    return np.dtype((np.record, dtype)) if words.get("record") else dtype


def _known_by_name(name: str) -> np.dtype[Any]:
    package, _, attribute = name.partition(".")
    try:
        found = getattr(importlib.import_module(package), attribute, None)
    except ImportError as problem:
        raise ImportError(f"the sender's elements are of type {name}; install {package} to see them") from problem
    if not (isinstance(found, type) and issubclass(found, np.generic)):
        raise ValueError(f"there is no element type {name} in the {package} that is installed here")
    return np.dtype(found)
