"""What an object is, by its exact type: what travels of it, or why it cannot be sent.

`bytes`, arrays, containers, scalars and messages are recognised before anybody asks here. The rule for everything else:

1. A type that is known is sent as what it is: `resolve` gives the array, table or buffer that stands for the object.
   What would get lost is refused (`Refusal`), with what to do instead.
2. A subclass is more than its base: a class that has its protocol, or its content, from a class of another package is
   refused.
3. A type that is not known says by its protocols what it is. Arrow data alone, or memory alone (buffer or DLPack), is
   all that there is; an object that offers both is something third, of which each shows a part, so it is refused.
"""

import dataclasses
import datetime
import decimal
import enum
import functools
import importlib
import json
import re
import sys
import uuid
import weakref
from collections.abc import Callable, Mapping, Set
from os import PathLike
from typing import Any

import numpy as np

_Rule = Callable[[Any], Any]

_ARROW = ("__arrow_c_array__", "__arrow_c_stream__")
_MEMORY = ("__array_interface__", "__array_struct__", "__array__", "__dlpack__")
# Packages whose objects are Arrow data, whatever else they offer.
_ARROW_PACKAGES = {"pyarrow", "polars", "arro3", "nanoarrow", "byref"}
_BUILTINS = (str, int, float, complex, bytes, bytearray, dict, list, tuple)
# The rules of types by their ids, as long as these live. (A WeakKeyDictionary takes longer.)
_rules: dict[int, tuple[weakref.ref[type], _Rule]] = {}


class Refusal(TypeError):
    """Why an object cannot be sent. The binding makes a `TypeError` of it that says where the object is."""


def resolve(obj: Any) -> Any:
    """What travels for `obj`: itself, or an array, Arrow data or a buffer that is all that it is. Refusal otherwise."""
    kind = type(obj)
    known = _rules.get(id(kind))
    if known is not None and known[0]() is kind:
        return known[1](obj)
    rule = _rule(kind, obj)
    key = id(kind)
    # (The callback's argument becomes the default of `pop`, and no global name is needed while the interpreter ends.)
    _rules[key] = (weakref.ref(kind, functools.partial(_rules.pop, key)), rule)
    return rule(obj)


def refuse(obj: Any) -> Refusal:
    """What to say of an object that has nothing to send."""
    what = _name(type(obj))
    advice = _advice(obj)
    if advice is None:
        return Refusal(
            f"cannot send {what}; send bytes, bytearray, memoryview, any object with the buffer protocol or DLPack,"
            " a NumPy array, Arrow data, or a dict, list or tuple of these; send_pickle takes other objects"
        )
    return Refusal(f"cannot send {what}; send {advice}")


def refuse_row(obj: Any) -> Refusal:
    """What to say of an object that cannot be one of several payloads."""
    what = _name(type(obj))
    if isinstance(obj, dict | list | tuple) or any(hasattr(type(obj), name) for name in _ARROW):
        return Refusal(
            f"cannot send {what} with send_many, whose payloads are bytes or arrays of one size and type; send it with"
            " send, or rows of equal size as one array (np.array, with a structured type for several fields)"
        )
    return refuse(obj)


def _name(kind: type) -> str:
    """A class as people know it."""
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _module(name: str) -> Any:
    """A package that byref itself does not need."""
    return importlib.import_module(name)


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _as_it_is(obj: Any) -> Any:
    return obj


def _rule(kind: type, obj: Any) -> _Rule:
    """What to do with objects of that type; Refusal when nothing can be done."""
    package = _package(kind)
    if issubclass(kind, np.ndarray):
        if kind in (np.ndarray, np.memmap):
            return np.asarray
        raise _refuse_subarray(kind, obj)
    if kind not in _BUILTINS and issubclass(kind, _BUILTINS):
        raise refuse(obj)
    if package == "pandas":
        return _rule_of_pandas(kind, obj)
    if package == "pyarrow" or _is_arrow_extension(kind):
        return _rule_of_pyarrow(kind, obj)
    if package == "polars":
        return _rule_of_polars(kind, obj)
    if _is_image(kind):
        return _of_image
    if _is_ctypes(kind):
        return functools.partial(_of_ctypes, *_ctypes_type(kind))
    _refuse_inheritance(kind)
    offered = [name for name in _ARROW if hasattr(kind, name)]
    if offered and package not in _ARROW_PACKAGES:
        others = [name for name in _MEMORY if hasattr(kind, name)]
        if others or _has_buffer(obj):
            raise Refusal(
                f"cannot send {_name(kind)}: it offers itself as Arrow data and as an array, and each may be less than"
                f" what it is; {_choice(kind)}"
            )
    return _as_it_is


def _choice(kind: type) -> str:
    """What to do with a type that is more than each of its protocols."""
    if _package(kind) == "xarray":
        name = f"xarray.{kind.__name__}"
        return f"send x.to_dict(data='array'), and make {name}.from_dict(msg.value) of it; or x.values, the plain array"
    return "say which: send pyarrow.table(x), np.asarray(x), or a dict with all that belongs to it"


def _refuse_inheritance(kind: type) -> None:
    """Refuse a class that is more than the one of another package which it has its protocol from."""
    for name in (*_ARROW, "__dlpack__"):
        owner = next((base for base in kind.__mro__ if name in vars(base)), kind)
        if _package(owner) != _package(kind):
            raise Refusal(
                f"cannot send {_name(kind)}, a subclass of {_name(owner)}: what it adds would be lost; send it as"
                f" {owner.__name__}, with what it adds beside it in a dict, or send_pickle(x)"
            )
    for base in kind.__mro__[1:]:
        if base.__module__ in ("array", "mmap"):
            raise Refusal(f"cannot send {_name(kind)}, a subclass of {_name(base)}; send memoryview(x)")


def _has_buffer(obj: Any) -> bool:
    try:
        memoryview(obj).release()
    except (TypeError, BufferError, ValueError):
        return False
    return True


# ---- NumPy, ctypes ----


def _refuse_subarray(kind: type, obj: Any) -> Refusal:
    what = f"cannot send {_name(kind)}"
    if issubclass(kind, np.ma.MaskedArray):
        return Refusal(f"{what}: its mask would be lost; send {{'data': a.data, 'mask': a.mask}}, or a.filled()")
    for unit, value in (("unit", "value"), ("units", "value")):
        if hasattr(kind, unit):
            advice = f"send {{'{value}': np.asarray(x), '{unit}': str(x.{unit})}}"
            return Refusal(f"{what}: its unit would be lost; {advice}")
    return Refusal(
        f"{what}, a subclass of ndarray: what it adds would be lost; send np.asarray(x), the plain array,"
        " or send_pickle(x)"
    )


def _ctypes() -> Any:
    return sys.modules.get("_ctypes")


def _is_ctypes(kind: type) -> bool:
    module = _ctypes()
    bases = ("Structure", "Union", "Array", "_SimpleCData", "_Pointer", "CFuncPtr")
    return module is not None and issubclass(kind, tuple(getattr(module, name) for name in bases))


def _ctypes_type(kind: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The NumPy type, and the shape, of a ctypes type. (What the buffer of a packed structure says is wrong.)"""
    what = f"cannot send {_name(kind)}"
    if _has_pointers(kind):
        raise Refusal(f"{what}: it holds pointers, which mean nothing in another process; send what they point to")
    try:
        dtype: np.dtype[Any] = np.dtype(kind)
    except (TypeError, ValueError, NotImplementedError) as problem:
        raise Refusal(
            f"{what}, of which NumPy knows no type ({problem}); send bytes(x), or its fields in a dict"
        ) from None

    shape: tuple[int, ...] = ()
    while dtype.subdtype is not None:
        dtype, extents = dtype.subdtype
        shape += extents
    return dtype, shape


def _has_pointers(kind: Any) -> bool:
    module = _ctypes()
    if issubclass(kind, module._Pointer | module.CFuncPtr):
        return True
    if issubclass(kind, module.Array):
        return _has_pointers(kind._type_)
    if issubclass(kind, module.Structure | module.Union):
        fields = [field for base in kind.__mro__ for field in vars(base).get("_fields_", ())]
        return any(_has_pointers(field[1]) for field in fields)
    return kind._type_ in ("P", "z", "Z", "O", "X")


def _of_ctypes(dtype: np.dtype[Any], shape: tuple[int, ...], obj: Any) -> np.ndarray[Any, Any]:
    return np.ndarray(shape, dtype, obj)


# ---- images ----

# Modes of which the array says all: `Image.fromarray` has the same mode again.
_MODES = {"1", "L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B"}


def _is_image(kind: type) -> bool:
    module = sys.modules.get("PIL.Image")
    if module is None or not issubclass(kind, module.Image):
        return False
    files = sys.modules.get("PIL.ImageFile")
    if kind is module.Image or (files is not None and issubclass(kind, files.ImageFile)):
        return True
    raise Refusal(f"cannot send {_name(kind)}, a subclass of PIL.Image: what it adds would be lost; send np.asarray(x)")


def _of_image(image: Any) -> np.ndarray[Any, Any]:
    mode = image.mode
    if mode not in _MODES:
        raise Refusal(
            f"cannot send an image of mode {mode!r}: its array would not say so; send image.convert('RGB') (or 'RGBA'),"
            " or {'mode': image.mode, 'pixels': np.asarray(image)}"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise Refusal(
            f"cannot send an image of {image.n_frames} frames, of which its array is one; send image.copy(), the"
            " current frame, or [frame.copy() for frame in PIL.ImageSequence.Iterator(image)]"
        )
    if "transparency" in image.info:
        raise Refusal(
            "cannot send an image with a transparent colour, which its array has not; send image.convert('RGBA')"
        )
    return np.asarray(image)


# ---- Arrow data ----


def _is_arrow_extension(kind: type) -> bool:
    """Whether it is a user's class for an Arrow extension type, which travels with its name."""
    module = sys.modules.get("pyarrow")
    return module is not None and issubclass(kind, module.ExtensionArray)


def _rule_of_pyarrow(kind: type, obj: Any) -> _Rule:
    pa = _module("pyarrow")
    if issubclass(kind, pa.Buffer):
        return _of_buffer
    if issubclass(kind, pa.Tensor):
        return _of_tensor
    if any(hasattr(kind, name) for name in _ARROW):
        return _as_it_is
    raise refuse(obj)


def _of_buffer(buffer: Any) -> Any:
    # Its format says signed bytes, and it means bytes.
    if not buffer.is_cpu:
        raise Refusal("cannot send a pyarrow.Buffer that is not in main memory; copy it there first")
    return memoryview(buffer).cast("B")


def _of_tensor(tensor: Any) -> Any:
    if tensor.dim_names:
        advice = "{'tensor': x.to_numpy(), 'dim_names': x.dim_names}"
        raise Refusal(f"cannot send a pyarrow.Tensor with names of dimensions, which would be lost; send {advice}")
    return tensor.to_numpy()


def _rule_of_polars(kind: type, obj: Any) -> _Rule:
    if not hasattr(kind, "__arrow_c_stream__"):
        raise refuse(obj)
    return _as_it_is if hasattr(kind, "columns") else _of_polars_series


def _of_polars_series(series: Any) -> Any:
    """A table of one column, whose name is the series' one: an array has no name."""
    return series.to_frame()


def check_polars(frame: Any) -> None:
    """Refuse a polars frame, one that exports elements of 8 bytes or a type that nobody knows, if it is for its types.

    (The types of all columns take many times as long as the export.)
    """
    if _package(type(frame)) == "polars":
        for name, dtype in zip(frame.columns, frame.dtypes, strict=True):
            _check_polars(name, dtype)


def _check_polars(name: str, dtype: Any) -> None:
    """Refuse what polars exports as something else, at any depth."""
    kind = dtype.base_type().__name__
    if kind in ("Object", "Int128", "UInt128"):
        if kind == "Object":
            why = "its elements are pointers into this process; take the column out, or cast it to strings or bytes"
        else:
            why = "no other library knows it; cast it to pl.String, or to pl.Int64 where that is enough"
        raise Refusal(f"cannot send the polars column {name!r} of type {kind}: {why}")
    if dtype.is_nested():
        inner = [field.dtype for field in dtype.fields] if kind == "Struct" else [dtype.inner]
        for below in inner:
            _check_polars(name, below)


# ---- pandas ----


def _rule_of_pandas(kind: type, obj: Any) -> _Rule:
    pd = _module("pandas")

    if kind is pd.DataFrame:
        return _of_frame
    if kind is pd.Series:
        return _of_series
    raise refuse(obj)


def _of_frame(frame: Any) -> Any:
    """A table from which `to_pandas()` makes the same frame."""
    _check_frame(frame)
    _check_labels(frame.columns)
    return _table(frame)


def _of_series(series: Any) -> Any:
    """A table of one column, whose name is the series' one."""
    name = series.name
    if name is None:
        return _nameless(series)
    if type(name) not in (str, int) and not (type(name) is tuple and all(type(part) is str for part in name)):
        raise Refusal(f"cannot send a Series whose name is of type {_name(type(name))}; send x.rename(str(x.name))")
    return _of_frame(series.to_frame())


def _nameless(series: Any) -> Any:
    """A table of one column that pandas knows by the name None."""
    frame = series.to_frame("values")
    _check_frame(frame)
    table = _table(frame)
    metadata = dict(table.schema.metadata)
    words = json.loads(metadata[b"pandas"])
    for column in words["columns"]:
        if column["field_name"] == "values":
            column["name"] = None
    words["column_indexes"][0] |= {"pandas_type": "mixed", "numpy_type": "object", "metadata": None}
    return table.replace_schema_metadata(metadata | {b"pandas": json.dumps(words).encode()})


def _table(frame: Any) -> Any:
    pa = _pyarrow()
    try:
        return pa.Table.from_pandas(frame)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as problem:
        why = " ".join(str(part) for part in problem.args)
        raise Refusal(f"cannot send this DataFrame, of which pandas can make no Arrow data ({why}); {_ELSE}") from None


def _pyarrow() -> Any:
    try:
        return _module("pyarrow")
    except ImportError:
        raise Refusal(
            "cannot send pandas objects without pyarrow, by which pandas makes Arrow data; install it"
        ) from None


_ELSE = "convert what is named, or send_pickle(x)"


# How pandas names an index in Arrow data that has no name.
_NO_NAME = re.compile(r"__index_level_\d+__")


def _check_frame(frame: Any) -> None:
    """Refuse what would not come back from Arrow data, but for the names of columns."""
    index = frame.index
    for name in index.names:
        if name is not None and (type(name) is not str or _NO_NAME.fullmatch(name)):
            raise Refusal(
                f"cannot send pandas objects whose index has the name {name!r}, which would be lost; send"
                " x.rename_axis(index=...) with a str as name"
            )
    for place, dtype in enumerate(frame.dtypes.array):
        if _is_object(dtype):
            _check_objects(repr(frame.columns[place]), frame.iloc[:, place])
        elif not _comes_back(dtype, False):
            raise _lost(repr(frame.columns[place]), dtype)
    _check_index(index)
    if not frame.flags.allows_duplicate_labels:
        raise Refusal(
            "cannot send pandas objects that allow no duplicate labels, which would be lost; send"
            " x.set_flags(allows_duplicate_labels=True)"
        )
    if frame.attrs and not _is_json(frame.attrs):
        raise Refusal(
            "cannot send pandas objects whose attrs are not plain JSON; clear x.attrs, and send them beside it"
        )


def _check_index(index: Any) -> None:
    pd = _module("pandas")

    if type(index) is pd.RangeIndex:
        return
    for values in index.levels if index.nlevels > 1 else [index]:
        if _is_object(values.dtype):
            _check_objects("the index", values)
        elif not _comes_back(values.dtype, True):
            raise _lost("the index", values.dtype)


def _check_labels(labels: Any) -> None:
    """Refuse names of columns that would not come back: Arrow data have texts alone for names."""
    pd, pa = _module("pandas"), _pyarrow()

    is_flat = labels.nlevels == 1
    has_plain_name = all(name is None or type(name) is str for name in labels.names)
    if has_plain_name and (type(labels) is pd.RangeIndex or (is_flat and labels.dtype == np.int64)):
        return
    if has_plain_name and is_flat and labels.inferred_type == "string" and not labels.hasnans:
        return
    if is_flat and labels.inferred_type.startswith("mixed"):
        raise Refusal("cannot send a DataFrame whose column names are of several types; send df.rename(columns=str)")
    frame = pd.DataFrame(np.empty((0, len(labels))), columns=labels)
    try:
        table = pa.Table.from_pandas(frame)
    except Exception:
        return  # What goes wrong when the data are converted says more.
    try:
        found = table.to_pandas().columns
        is_same = (
            found.equals(labels)
            and found.names == labels.names
            and repr(list(found)) == repr(list(labels))
            and all(map(_is_same_type, _types(found), _types(labels)))
        )
    except Exception:
        is_same = False
    if not is_same:
        if is_flat:
            what, advice = labels.inferred_type, "x.set_axis([str(c) for c in x.columns], axis=1), or rename them"
        else:
            what, advice = "several levels", "x after x.columns = ['_'.join(map(str, c)) for c in x.columns]"
        raise Refusal(
            f"cannot send a DataFrame with these column names ({what}), which do not come back from Arrow data;"
            f" send {advice}"
        )


def _types(index: Any) -> list[Any]:
    """The types of an index's levels."""
    return [level.dtype for level in index.levels] if index.nlevels > 1 else [index.dtype]


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _lost(where: str, dtype: Any) -> Refusal:
    return Refusal(
        f"cannot send pandas data of type {dtype} ({where}), which does not come back from Arrow data; {_ELSE}"
    )


def _is_object(dtype: Any) -> bool:
    return dtype.kind == "O" and isinstance(dtype, np.dtype)


def _check_objects(where: str, values: Any) -> None:
    """Refuse Python objects that would come back as others."""
    if _are_kept(values):
        return
    kind = _infer(values)
    if kind == "string":
        # As 'str', missing values would become texts where texts are Python objects.
        advice = f"as x.astype({'string' if _strings_are_objects() else 'str'!r})"
    elif kind == "boolean":
        advice = f"as x.astype({'boolean' if values.isna().any() else 'bool'!r})"
    elif kind == "time":
        advice = "as texts, by x.map(str)"
    else:
        advice = "as a type of its own, by x.astype(...)"
    raise Refusal(
        f"cannot send pandas data of Python objects ({where}, {kind}), which do not come back from Arrow data;"
        f" send it {advice}, or send_pickle(x)"
    )


def _infer(values: Any) -> Any:
    """What objects are in pandas' words, but for missing ones."""
    return _module("pandas").api.types.infer_dtype(values, skipna=True)


def _are_kept(values: Any) -> bool:
    """Whether Python objects, and None among them, come back from Arrow data as what they were."""
    found = set(map(type, values.to_numpy()))
    kinds = found - {type(None)}
    if kinds == {str}:
        return _strings_are_objects()
    if kinds == {str, float}:
        # NaN comes back as None, which pandas takes for equal while texts are objects.
        return _strings_are_objects() and _infer(values) == "string"
    if kinds == {bool}:
        return kinds != found  # Without a None, they come back as a column of type bool.
    if kinds == {datetime.time}:
        return all(time is None or time.tzinfo is None for time in values)
    if kinds == {decimal.Decimal}:
        return not any(number is not None and number.is_nan() for number in values)
    return not kinds or kinds == {bytes} or kinds == {datetime.date}


@functools.cache
def _strings_are_objects() -> bool:
    """Whether texts without a type of their own are Python objects (before pandas 3)."""
    pd = _module("pandas")

    return bool(pd.Series(["a"]).dtype == object)


def _comes_back(dtype: Any, is_index: bool) -> bool:
    """Whether pandas makes the same type again of the Arrow data that it makes of it."""
    pd = _module("pandas")

    if isinstance(dtype, pd.ArrowDtype | pd.StringDtype):
        return True  # They are Arrow data by another name; in what memory pandas keeps texts is its own affair.
    if isinstance(dtype, pd.CategoricalDtype):
        categories = dtype.categories
        if categories.dtype.kind == "O" and categories.inferred_type != "string":
            return _find_out.__wrapped__(dtype, is_index)  # Each of them matters.
        dtype = pd.CategoricalDtype(categories[:1], dtype.ordered)
    return _find_out(dtype, is_index)


@functools.lru_cache(maxsize=256)
def _find_out(dtype: Any, is_index: bool) -> bool:
    pd, pa = _module("pandas"), _pyarrow()

    values = pd.Series([], dtype=dtype)
    frame = pd.DataFrame(index=pd.Index(values, name="x")) if is_index else pd.DataFrame({"x": values})
    try:
        table = pa.Table.from_pandas(frame)
    except Exception:
        return True  # What goes wrong when the data are converted says more.
    try:
        found = table.to_pandas()
    except Exception:
        return False
    return _is_same_type(found.index.dtype if is_index else found["x"].dtype, dtype)


def _is_same_type(found: Any, sent: Any) -> bool:
    """Whether a type came back, whatever memory pandas keeps texts in."""
    pd = _module("pandas")

    if isinstance(sent, pd.CategoricalDtype):
        return (
            isinstance(found, pd.CategoricalDtype)
            and found.ordered == sent.ordered
            and _is_same_type(found.categories.dtype, sent.categories.dtype)
            and list(found.categories) == list(sent.categories)
        )
    return bool(found == sent) or (_is_text(found) and _is_text(sent))


def _is_text(dtype: Any) -> bool:
    pd = _module("pandas")

    return isinstance(dtype, pd.StringDtype) or _is_object(dtype)


# ---- advice ----


def _advice(obj: Any) -> str | None:
    """What to send instead of an object that cannot be sent."""
    base = next((base for base in _BUILTINS if isinstance(obj, base)), None)
    if type(obj) in _BUILTINS or obj is None or isinstance(obj, bool):
        if isinstance(obj, str):
            return "x.encode(), or as a part: {'text': x}"
        return "np.asarray(x), or as a part: [x]" if obj is not None else "a part: [None], or no message at all"
    if isinstance(obj, type) or callable(obj):
        return None
    if isinstance(obj, enum.Enum):
        return "x.value, or x.name"
    if isinstance(obj, tuple) and hasattr(obj, "_asdict"):
        return "tuple(x), or x._asdict()"
    if dataclasses.is_dataclass(obj):
        return "dataclasses.asdict(x), or send_pickle(x)"
    if base is not None:
        return f"{base.__name__}(x): what {type(obj).__name__} adds would be lost; or send_pickle(x)"
    return _advice_by_class(obj)


def _advice_by_class(obj: Any) -> str | None:
    package = _package(type(obj))
    if isinstance(obj, datetime.datetime | datetime.date):
        return "x.isoformat(), np.datetime64(x), or send_pickle(x)"
    if isinstance(obj, datetime.timedelta):
        return "x.total_seconds(), np.timedelta64(x), or send_pickle(x)"
    if isinstance(obj, datetime.time | datetime.tzinfo | decimal.Decimal):
        return "str(x), or send_pickle(x)"
    if isinstance(obj, uuid.UUID):
        return "x.bytes, or str(x)"
    if isinstance(obj, PathLike):
        return "os.fspath(x)"
    if package == "pandas":
        return "x.to_frame() or x.to_numpy(), or send_pickle(x)"
    if package == "polars":
        return "x.collect(), if it is lazy; a DataFrame or a Series"
    if package == "pyarrow":
        return "an Array, RecordBatch or Table: pyarrow.array([x]), or schema.empty_table(); or send_pickle(x)"
    if package == "xarray":
        return "x.to_dict(data='array'), and make the same class's from_dict(msg.value) of it"
    if hasattr(obj, "magnitude") and hasattr(obj, "units"):
        return "{'magnitude': x.magnitude, 'units': str(x.units)}"
    if isinstance(obj, range):
        return "np.asarray(x), or list(x)"
    if isinstance(obj, Mapping):
        return "dict(x)"
    if isinstance(obj, Set):
        return "list(x), or send_pickle(x)"
    if hasattr(obj, "__array__") or hasattr(obj, "__array_interface__"):
        return "np.asarray(x), if the plain array is all that it is; or send_pickle(x)"
    return None
