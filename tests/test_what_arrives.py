"""Whatever `send` accepts arrives as what it was, or `send` refuses with a text that says what to do.

Things of many libraries, of each of their types, are sent alone, in dicts, in nested lists and in batches. What "as it
was" means for each library say the functions `assert_...`.
"""

from __future__ import annotations

import array
import collections
import ctypes
import dataclasses
import datetime
import decimal
import enum
import fractions
import gc
import io
import mmap
import pathlib
import pickle
import re
import types
import typing
import uuid
import weakref
from collections.abc import Callable
from typing import Any

import byref
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr
from byref import _kinds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pandas.testing import assert_frame_equal, assert_series_equal
from PIL import Image, ImageSequence

from tests import arrow_data, bare
from tests.conftest import Endpoints, examples
from tests.processes import Child

Pair = Any
Make = Callable[[], Any]
Spawn = Callable[..., Child]


# ---- what "as it was" means ----


def same_bits(found: np.ndarray[Any, Any], sent: np.ndarray[Any, Any]) -> bool:
    """Equal to the bit, but for what no field shows."""
    if sent.dtype.names:
        return all(same_bits(found[name], sent[name]) for name in sent.dtype.names)
    if sent.dtype.kind in "fc" and sent.dtype.itemsize in (16, 32):
        return bool(np.array_equal(found, sent, equal_nan=True))  # A long double has padding.
    return found.tobytes() == sent.tobytes()


def assert_array(found: Any, sent: np.ndarray[Any, Any]) -> None:
    """The same array, down to the type of its elements."""
    assert type(found) is np.ndarray
    assert found.dtype == sent.dtype
    # `longlong` is `int64` by another name: NumPy says that they are equal.
    assert found.dtype.type is sent.dtype.type or sent.dtype.char in "qQ"
    assert found.dtype.isalignedstruct == sent.dtype.isalignedstruct
    assert found.shape == sent.shape
    assert same_bits(found, sent)


def assert_scalar(found: Any, sent: np.generic) -> None:
    """The same NumPy scalar."""
    assert type(found) is type(sent) or sent.dtype.char in "qQ"
    assert_array(np.asarray(found), np.asarray(sent))


def assert_alone(found: Any, sent: np.generic) -> None:
    """A NumPy scalar that was sent alone: an array without dimensions."""
    assert_array(found, np.asarray(sent))


def assert_bytes(found: Any, sent: Any) -> None:
    """The same bytes, as a memoryview."""
    assert type(found) is memoryview
    assert found.format == "B"
    assert bytes(found) == bytes(sent)


def assert_buffer(found: Any, sent: Any) -> None:
    """An array of what the buffer says."""
    assert_array(found, np.asarray(sent))


def assert_ctypes(found: Any, sent: Any) -> None:
    """An array of what ctypes says that it is, with the bytes."""
    dtype: np.dtype[Any] = np.dtype(type(sent))
    shape: tuple[int, ...] = ()
    while dtype.subdtype:
        dtype, extents = dtype.subdtype
        shape += extents
    assert found.dtype == dtype
    assert found.shape == shape
    assert found.tobytes() == bytes(sent)


def assert_image(found: Any, sent: Image.Image) -> None:
    """An array of rows, of which Pillow makes the same image."""
    assert found.shape[:2] == (sent.height, sent.width)
    back = Image.fromarray(found)
    assert back.mode == sent.mode
    assert back.tobytes() == sent.tobytes()


def assert_frame(found: Any, sent: pd.DataFrame) -> None:
    """A table of which pandas makes the same frame."""
    back = found.to_pandas()
    assert_frame_equal(back, sent, check_freq=False, check_column_type=False)
    assert back.attrs == sent.attrs
    assert repr(list(back.columns)) == repr(list(sent.columns))
    assert back.flags.allows_duplicate_labels == sent.flags.allows_duplicate_labels


def assert_series(found: Any, sent: pd.Series[Any]) -> None:
    """A table of one column, which is the series."""
    back = found.to_pandas()
    assert list(back.columns) == [sent.name]
    assert_series_equal(back.iloc[:, 0], sent, check_freq=False)


def assert_arrow_backed(found: Any, sent: Any) -> None:
    """pandas data over Arrow data: the same Arrow data."""
    back = found.to_pandas(types_mapper=pd.ArrowDtype)
    assert_frame_equal(back, sent if isinstance(sent, pd.DataFrame) else sent.to_frame())


def assert_polars(found: Any, sent: Any) -> None:
    """A table of which polars makes the same, by its own types and names."""
    back = pl.DataFrame(found)
    back.columns = found.column_names  # polars itself takes no empty ones.
    expected = sent if isinstance(sent, pl.DataFrame) else sent.to_frame()
    assert back.schema == expected.schema
    assert back.equals(expected, null_equal=True)


def assert_arrow(found: Any, sent: Any) -> None:
    """The same Arrow data, as pyarrow has them."""
    if isinstance(sent, pa.Array):
        arrow_data.assert_same(found, sent)
    else:
        assert type(found) is type(sent)
        assert found.equals(sent)
        kind = "type" if isinstance(sent, pa.ChunkedArray) else "schema"
        assert getattr(found, kind).equals(getattr(sent, kind))


def assert_same(found: Any, sent: Any) -> None:
    """A scalar of Python's own."""
    assert type(found) is type(sent)
    assert repr(found) == repr(sent)


# ---- things ----

PACKED = type(
    "Packed",
    (ctypes.Structure,),
    # Since 3.14, Python wants to be told whose layout this is; others do not ask.
    {"_pack_": 1, "_layout_": "ms", "_fields_": [("a", ctypes.c_uint8), ("b", ctypes.c_double)]},
)
PLAIN = type(
    "Plain", (ctypes.Structure,), {"_fields_": [("a", ctypes.c_uint8), ("p", PACKED), ("b", ctypes.c_int * 3)]}
)
BIG = type("Big", (ctypes.BigEndianStructure,), {"_fields_": [("a", ctypes.c_uint16), ("b", ctypes.c_double)]})
EITHER = type("Either", (ctypes.Union,), {"_fields_": [("a", ctypes.c_int32), ("b", ctypes.c_float)]})
RECORDS = np.rec.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")])
STRUCTURE = np.dtype(
    [("when", "M8[us]"), ("name", "U4"), ("grid", ">f4", (2, 2)), ("pair", [("l", "i1"), ("r", "c8")])]
)

NUMPY_TYPES: list[Any] = [
    *sorted(set(np.typecodes["All"]) - set("OSUVmM")),
    "S3",
    "U3",
    "V3",
    "S0",
    "U0",
    "V0",
    "m8",
    "m8[s]",
    "M8[D]",
    "M8[25ns]",
    ">i4",
    ">f8",
    ">c16",
    ">U2",
    ">M8[s]",
    STRUCTURE,
    np.dtype([("a", "u1"), ("b", "f8")], align=True),
    "i4,(2,3)f4",
    {"names": ["a", "b"], "formats": ["u4", "u1"], "offsets": [0, 2], "itemsize": 9},
    np.dtype([(("title", "n"), "i4")]),
    np.dtype((np.record, [("a", "i4"), ("b", "f8")])),
    np.dtype([]),
]


def of_type(dtype: Any, count: int) -> np.ndarray[Any, Any]:
    """An array of that type in which something is."""
    dtype = np.dtype(dtype)
    if dtype.kind == "U":
        return np.array(["aé"] * count, dtype)
    if dtype.hasobject or not dtype.itemsize:
        return np.zeros(count, dtype)
    if dtype.names and any(dtype[name].kind == "U" for name in dtype.names):
        made = np.zeros(count, dtype)
        for name in dtype.names:
            if dtype[name].subdtype is None:
                made[name] = of_type(dtype[name], count)
        return made
    return np.resize(np.arange(count * dtype.itemsize, dtype="u1") % 2, count * dtype.itemsize).view(dtype)


ARRAYS: list[Any] = [of_type(dtype, 3) for dtype in NUMPY_TYPES]
SCALARS: list[Any] = [made[1] for made in ARRAYS] + [
    np.str_(""),
    np.bytes_(b""),
    np.void(b""),
    np.datetime64("NaT", "s"),
    np.float64("nan"),
]
PARTS_ALONE: list[Any] = [
    None,
    True,
    0,
    -(2**63),
    2**63,
    2**200,
    -(2**200),
    0.0,
    -0.0,
    float("nan"),
    1j,
    "",
    "ä\0",
    "x" * 1000,
]
# Python 3.13 brought "w", and 3.16 takes "u" away.
ARRAY_TYPECODES = sorted(set(array.typecodes) - ({"u"} if "w" in array.typecodes else set()))
VIEW_FORMATS = "bhHiIlLqQnNfd?"


def buffers() -> list[Any]:
    """What is memory with a type."""
    views = [memoryview(bytes(range(16))).cast(letter) for letter in VIEW_FORMATS]
    text = {"u": "abé", "w": "abé"}
    arrays = [array.array(letter, text.get(letter, [1, 2, 3])) for letter in ARRAY_TYPECODES if letter != "B"]
    of_bytes = memoryview(bytes(range(24)))
    shaped = [of_bytes.cast("B", (2, 3, 4)), of_bytes[::3], of_bytes.cast("i", (2, 3))]
    return [*views, *arrays, *shaped]


def plain_bytes() -> list[Any]:
    """What is bytes and nothing else."""
    mapped = mmap.mmap(-1, 100)
    mapped[:3] = b"abc"
    return [
        b"",
        b"abc",
        bytearray(b"abc"),
        memoryview(b"abc"),
        memoryview(b"abc").cast("c"),
        array.array("B", b"abc"),
        mapped,
        pa.py_buffer(b"abc"),
        pa.allocate_buffer(3, resizable=True),
        pickle.PickleBuffer(b"abc"),
        io.BytesIO(b"abc").getbuffer(),
    ]


def of_ctypes() -> list[Any]:
    """Numbers, arrays, structures and unions of ctypes."""
    numbers = [
        getattr(ctypes, f"c_{name}")(1)
        for name in (
            "bool",
            "byte",
            "ubyte",
            "short",
            "ushort",
            "int",
            "uint",
            "long",
            "ulong",
            "longlong",
            "float",
            "double",
            "longdouble",
            "size_t",
        )
    ]
    packed = PACKED(1, 2.5)
    return [
        *numbers,
        ctypes.c_char(b"x"),
        packed,
        (PACKED * 2)(packed, PACKED(3, 4.5)),
        (ctypes.c_int * 0)(),
        PLAIN(1, packed),
        (PLAIN * 2 * 3)(),
        BIG(1, 2.5),
        EITHER(7),
        ((ctypes.c_short * 2) * 3)(),
        ctypes.create_string_buffer(b"ab", 4),
        (ctypes.c_ubyte * 4)(1, 2, 3, 4),
    ]


def image(mode: str) -> Image.Image:
    """An image that is not all the same, and not square."""
    colours = Image.radial_gradient("L").resize((7, 5))
    return (
        colours.convert(mode)
        if mode in ("1", "L", "LA", "RGB", "RGBA", "I", "F", "P", "CMYK", "YCbCr")
        else Image.new(mode, (7, 5))
    )


def opened() -> Image.Image:
    """An image that lies in a file."""
    file = io.BytesIO()
    image("RGB").save(file, "PNG")
    return Image.open(file)


PANDAS_COLUMNS: dict[str, Make] = {
    **{
        name: lambda name=name: pd.Series([1, 2], dtype=name)
        for name in (
            "i1",
            "i2",
            "i4",
            "i8",
            "u1",
            "u2",
            "u4",
            "u8",
            "f2",
            "f4",
            "f8",
            "bool",
            "Int8",
            "UInt64",
            "Float32",
            "Float64",
        )
    },
    **{
        f"{name} with NA": lambda name=name: pd.Series([True if name == "boolean" else 1, None], dtype=name)
        for name in ("Int64", "Float64", "boolean")
    },
    "str": lambda: pd.Series(["a", None], dtype="str"),
    "string": lambda: pd.Series(["a", None], dtype="string"),
    "category": lambda: pd.Series(["a", None, "b"], dtype="category"),
    "category of ints": lambda: pd.Series([5, 6], dtype="category"),
    "ordered": lambda: pd.Series(pd.Categorical(["a"], ["b", "a", "never"], ordered=True)),
    "dates": lambda: pd.Series(pd.date_range("2020", periods=2)),
    "dates in s": lambda: pd.Series(pd.date_range("2020", periods=2, unit="s")),
    "zoned": lambda: pd.Series(pd.date_range("2020", periods=2, tz="Europe/Zurich")),
    "spans": lambda: pd.Series(pd.to_timedelta([1, None], unit="s")),
    "periods": lambda: pd.Series(pd.period_range("2020", periods=2, freq="M")),
    "intervals": lambda: pd.Series(pd.interval_range(0, 2)),
    "bytes": lambda: pd.Series([b"a", None], dtype=object),
    "date": lambda: pd.Series([datetime.date(2020, 1, 1)], dtype=object),
    "decimals": lambda: pd.Series([decimal.Decimal("1.5")], dtype=object),
    "nothing": lambda: pd.Series([None, None], dtype=object),
    "complex": lambda: pd.Series([1j]),
    "cut": lambda: pd.Series(pd.cut([1, 2, 3], 2)),
    "categories of times": lambda: pd.Series([datetime.time(1, tzinfo=datetime.UTC)]).astype("category"),
    "categories of zoned": lambda: pd.Series(pd.date_range("2020", periods=2, tz="UTC")).astype("category"),
    "categories of periods": lambda: pd.Series(pd.period_range("2020", periods=2, freq="M")).astype("category"),
    "categories of Int64": lambda: pd.Series([1, 2], dtype="Int64").astype("category"),
    "categories of dates": lambda: pd.Series([datetime.date(2020, 1, 1)], dtype=object).astype("category"),
    "times": lambda: pd.Series([datetime.time(1), None], dtype=object),
    "zoned times": lambda: pd.Series([datetime.time(1, tzinfo=datetime.UTC)], dtype=object),
    "truths": lambda: pd.Series([True, False], dtype=object),
    "truths and None": lambda: pd.Series([True, None], dtype=object),
    "truths and NaN": lambda: pd.Series([True, np.nan], dtype=object),
    "texts and NaN": lambda: pd.Series(["a", np.nan], dtype=object),
    "no number": lambda: pd.Series([decimal.Decimal("NaN"), decimal.Decimal(1)], dtype=object),
    "tokens": lambda: pd.Series([Token(b"x")], dtype=object),
    "sparse": lambda: pd.Series([0, 1], dtype=pd.SparseDtype("i8")),
    "objects": lambda: pd.Series([object()]),
    "paths": lambda: pd.Series([pathlib.Path("a")]),
    "sets": lambda: pd.Series([{1}]),
    "dicts": lambda: pd.Series([{"a": 1}, {"b": 2}]),
    "lists": lambda: pd.Series([[1], [2]]),
    "int objects": lambda: pd.Series([1, None], dtype=object),
    "float objects": lambda: pd.Series([1.5, 2.0], dtype=object),
    "mixed": lambda: pd.Series([1, "a"], dtype=object),
    "text objects": lambda: pd.Series(["a", None], dtype=object),
    "NaN among bytes": lambda: pd.Series([b"a", np.nan], dtype=object),
    "datetimes": lambda: pd.Series([datetime.datetime(2020, 1, 1)], dtype=object),
    "empty": lambda: pd.Series([], dtype="f8"),
}
INDICES: dict[str, Make] = {
    "range": lambda: pd.RangeIndex(5, 9, 2, name="r"),
    "texts": lambda: pd.Index(["a", "b"]),
    "named": lambda: pd.Index([3, 1], name="n"),
    "dates": lambda: pd.date_range("2020", periods=2, tz="UTC"),
    "spans": lambda: pd.to_timedelta([1, 5], unit="s"),
    "categories": lambda: pd.CategoricalIndex(["a", "b"], name="c"),
    "periods": lambda: pd.period_range("2020", periods=2, freq="M"),
    "intervals": lambda: pd.interval_range(0, 2),
    "levels": lambda: pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["l", None]),
    "repeated": lambda: pd.Index([1, 1]),
    "bools": lambda: pd.Index([True, False]),
    "truths": lambda: pd.Index([True, False], dtype=object),
    "truths and None": lambda: pd.Index([True, None], dtype=object),
    "nothing": lambda: pd.Index([None, None], dtype=object),
    "zoned times": lambda: pd.Index([datetime.time(each, tzinfo=datetime.UTC) for each in (1, 2)]),
    "Int64": lambda: pd.Index([1, 2], dtype="Int64"),
    "small": lambda: pd.Index([1, 2], dtype="i1"),
    "cut": lambda: pd.CategoricalIndex(pd.cut([1, 2], 2)),
    "levels of Int8": lambda: pd.MultiIndex.from_arrays([pd.array([1, 2], dtype="Int8"), [1, 2]]),
    "levels of texts": lambda: pd.MultiIndex.from_arrays([["a", None], [1, 2]]),
    "levels of zoned times": lambda: pd.MultiIndex.from_arrays(
        [[datetime.time(1, tzinfo=datetime.UTC), datetime.time(2, tzinfo=datetime.UTC)], [1, 2]]
    ),
    "number as name": lambda: pd.Index([1, 2], name=0),
    "objects": lambda: pd.Index([(1,), "x"]),
    "tuple as name": lambda: pd.Index([1, 2], name=("a", "b")),
}
NAMES: list[Any] = [None, "x", "", "None", "values", 3, ("a", "b"), 1.5, datetime.date(2020, 1, 1), ("a", 1)]
FRAMES: dict[str, Make] = {
    "plain": lambda: pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
    "numbered": lambda: pd.DataFrame([[1, 2], [3, 4]]),
    "levels": lambda: pd.DataFrame(
        [[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")], names=["u", "v"])
    ),
    "mixed names": lambda: pd.DataFrame({"a": [1], 2: [3]}),
    "twice the name": lambda: pd.DataFrame([[1, 2]], columns=["a", "a"]),
    "dates as names": lambda: pd.DataFrame([[1, 2]], columns=pd.date_range("2020", periods=2)),
    "no rows": lambda: pd.DataFrame({"a": []}),
    "no columns": lambda: pd.DataFrame(index=[1, 2]),
    "attrs": lambda: with_attrs({"unit": "m", "list": [1]}),
    "other attrs": lambda: with_attrs({"x": {1}}),
    "tuples in attrs": lambda: with_attrs({"x": (1, 2)}),
    "aggregated": lambda: pd.DataFrame({"k": [1, 1, 2], "x": [3, 4, 5]}).groupby("k").agg({"x": ["min", "max"]}),
    "levels of numbers": lambda: pd.DataFrame(
        [[1, 2]], ["i"], pd.MultiIndex.from_tuples([("it's", 1), ("", 2)], names=["u", None])
    ),
    "levels of truths": lambda: pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_product([["a"], [True, False]])),
    "levels without some": lambda: pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", None), ("", "b")])),
    "cross": lambda: pd.crosstab(pd.Series([1, 2]), pd.Series([True, False])),
    "a truth as name": lambda: pd.DataFrame([[1]], columns=[True]),
    "categories as names": lambda: pd.DataFrame([[1, 2]], columns=pd.CategoricalIndex(["a", "b"])),
    "periods as names": lambda: pd.DataFrame([[1, 2]], columns=pd.period_range("2020", periods=2, freq="M")),
    "intervals as names": lambda: pd.DataFrame([[1, 2]], columns=pd.interval_range(0, 2)),
    "spans as names": lambda: pd.DataFrame([[1, 2]], columns=pd.to_timedelta([1, 2], unit="s")),
    "days as names": lambda: pd.DataFrame([[1]], columns=[datetime.date(2020, 1, 1)]),
    "tuples as names": lambda: pd.DataFrame([[1]], columns=pd.Index([("a", "b")], tupleize_cols=False)),
    "floats as names": lambda: pd.DataFrame([[1, 2]], columns=[1.5, 2.0]),
    "bytes as names": lambda: pd.DataFrame([[1, 2]], columns=[b"a", b"b"]),
    "nothing as name": lambda: pd.DataFrame([[1, 2]], columns=["a", None]),
    "no duplicates": lambda: pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False),
    "no name for the index": lambda: pd.DataFrame({"a": [1]}, pd.Index([2], name="__index_level_0__")),
    "named columns": lambda: pd.DataFrame({"a": [1]}).rename_axis(columns="cols"),
    "name of columns": lambda: pd.DataFrame({"a": [1]}).rename_axis(columns=5),
}


def with_attrs(attrs: dict[str, Any]) -> pd.DataFrame:
    """A frame with something beside it."""
    frame = pd.DataFrame({"a": [1]})
    frame.attrs.update(attrs)
    return frame


POLARS_COLUMNS: list[tuple[list[Any], Any]] = [
    *(
        ([1, None], getattr(pl, name))
        for name in (
            "Int8",
            "Int16",
            "Int32",
            "Int64",
            "Int128",
            "UInt8",
            "UInt16",
            "UInt32",
            "UInt64",
            "UInt128",
            "Float16",
            "Float32",
            "Float64",
        )
        if hasattr(pl, name)
    ),
    ([True, None], pl.Boolean),
    (["ä", None], pl.String),
    ([b"x", None], pl.Binary),
    ([datetime.date(2020, 1, 1), None], pl.Date),
    ([datetime.time(1, 2, 3), None], pl.Time),
    *(([datetime.datetime(2020, 1, 1), None], pl.Datetime(unit)) for unit in ("ms", "us", "ns")),
    ([datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), None], pl.Datetime("us", "UTC")),
    ([datetime.timedelta(1), None], pl.Duration("ms")),
    (["a", "b", None], pl.Categorical),
    (["b", None], pl.Enum(["never", "b"])),
    ([decimal.Decimal("1.50"), None], pl.Decimal(10, 2)),
    ([None, None], pl.Null),
    ([[1], [], None], pl.List(pl.Int8)),
    ([[1, 2], None], pl.Array(pl.Int8, 2)),
    ([{"a": 1, "b": "x"}, None], pl.Struct({"a": pl.Int8, "b": pl.Categorical})),
    ([[["x"]], None], pl.List(pl.List(pl.Enum(["x"])))),
    ([pathlib.Path("a"), None], pl.Object),
    ([{1, 2}], pl.Object),
    ([[2**100]], pl.List(pl.Int128)),
    ([{"a": 1}], pl.Struct({"a": pl.UInt128})),
]


def polars_things() -> list[Any]:
    """A series and a frame of each type."""
    series = [pl.Series("named", values, dtype=dtype, strict=False) for values, dtype in POLARS_COLUMNS]
    nested = pl.Series("deep", [pathlib.Path("a")], dtype=pl.Object).reshape((1, 1))
    return [
        *series,
        *(pl.DataFrame({"first": [0] * len(each), "it": each}) for each in series),
        nested,
        nested.to_frame(),
        pl.DataFrame(),
        pl.Series("none", [], dtype=pl.Int8),
        pl.Series("", [1]),
        pl.LazyFrame({"a": [1]}),
    ]


def arrow_things() -> list[Any]:
    """Of each flat type and some others: an array, a chunked array, a batch, a table."""
    random = np.random.default_rng(3)
    kinds = [
        *arrow_data.LEAVES,
        pa.list_(pa.int8()),
        pa.struct([("a", pa.int8())]),
        pa.dictionary(pa.int8(), pa.string(), True),
        pa.map_(pa.string(), pa.int8()),
        pa.run_end_encoded(pa.int16(), pa.int8()),
        arrow_data.Labelled(pa.int8(), "l"),
    ]
    made: list[Any] = []
    for kind in kinds:
        one = arrow_data.array(random, kind, 5)
        schema = pa.schema([pa.field("it", kind, metadata={"k": "v"})], metadata={"of": "table"})
        made += [
            one,
            pa.chunked_array([one, one], kind),
            pa.record_batch([one], schema=schema),
            pa.table([one], schema=schema),
        ]
    return made


class Shade(enum.IntEnum):
    """An int that is more."""

    DARK = 1


class Word(enum.StrEnum):
    """A text that is more."""

    YES = "yes"


class Mood(enum.Enum):
    """No value of Python's own."""

    GOOD = 1


class Point(typing.NamedTuple):
    """A tuple that is more."""

    x: int
    y: float


@dataclasses.dataclass
class Reading:
    """No container that travels."""

    when: datetime.date


class Loud(int):
    """An int that is more."""


class Token(bytes):
    """Bytes that are more."""

    label = "x"


class Metres(np.ndarray):  # type: ignore[type-arg]
    """An array with a unit."""

    unit = "m"


class Painting(Image.Image):
    """An image that is more."""


class Labels(array.array):  # type: ignore[type-arg]
    """An array that is more."""


class Geo(pd.DataFrame):
    """A frame that is more."""


class Chart(pl.DataFrame):
    """A frame that is more."""


class Both:
    """Something that offers Arrow data and an array."""

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return pa.array([1]).__arrow_c_array__()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.ones(1)


class Pointer(ctypes.Structure):
    """A structure that means nothing elsewhere."""

    _fields_ = (("deep", ctypes.c_void_p * 2),)


class Bits(ctypes.Structure):
    """A structure that NumPy does not know."""

    _fields_ = (("a", ctypes.c_int, 3), ("b", ctypes.c_int, 5))


def data_array() -> xr.DataArray:
    """An array with names, coordinates and a unit."""
    return xr.DataArray(np.ones((2, 3)), dims=("y", "x"), coords={"x": [1.0, 2.0, 3.0]}, name="t", attrs={"units": "K"})


# The type of texts with missing values, by the version of pandas.
TEXT = "str" if pd.Series(["a"]).dtype != object else "string"


def animation(kind: str) -> Image.Image:
    """An image of two frames."""
    file = io.BytesIO()
    image("RGB").save(file, kind, save_all=True, append_images=[Image.new("RGB", (7, 5), "red")])
    return Image.open(file)


REFUSED: dict[str, tuple[Make, str]] = {
    "enum": (lambda: Mood.GOOD, r"x\.value"),
    "int enum": (lambda: Shade.DARK, r"x\.value"),
    "str enum": (lambda: Word.YES, r"x\.value"),
    "named tuple": (lambda: Point(1, 2.0), r"_asdict"),
    "struct_time": (lambda: datetime.date(2020, 1, 1).timetuple(), r"tuple\(x\)"),
    "ordered dict": (lambda: collections.OrderedDict(a=1), r"dict\(x\)"),
    "default dict": (lambda: collections.defaultdict(list), r"dict\(x\)"),
    "counter": (lambda: collections.Counter("abc"), r"dict\(x\)"),
    "int subclass": (lambda: Loud(3), r"int\(x\)"),
    "bytes subclass": (lambda: Token(b"x"), r"bytes\(x\)"),
    "dataclass": (lambda: Reading(datetime.date(2020, 1, 1)), "asdict"),
    "date": (lambda: datetime.date(2020, 1, 1), "isoformat"),
    "datetime": (lambda: datetime.datetime(2020, 1, 1), "datetime64"),
    "time": (lambda: datetime.time(1), "str"),
    "timedelta": (lambda: datetime.timedelta(1), "total_seconds"),
    "zone": (lambda: datetime.UTC, "str"),
    "decimal": (lambda: decimal.Decimal(1), "str"),
    "fraction": (lambda: fractions.Fraction(1, 3), "send_pickle"),
    "uuid": (lambda: uuid.uuid4(), r"x\.bytes"),
    "path": (lambda: pathlib.Path("a"), "fspath"),
    "set": (lambda: {1}, r"list\(x\)"),
    "range": (lambda: range(3), "list"),
    "mapping": (lambda: types.MappingProxyType({}), r"dict\(x\)"),
    "object": (lambda: object(), "send_pickle"),
    "class": (lambda: int, "send_pickle"),
    "function": (lambda: len, "send_pickle"),
    "generator": (lambda: (i for i in ()), "send_pickle"),
    "matrix": (lambda: np.ones((2, 2)).view(np.matrix), r"np\.asarray"),
    "record array": (lambda: RECORDS, r"np\.asarray"),
    "characters": (lambda: np.char.array(["a"]), r"np\.asarray"),
    "masked": (lambda: np.ma.masked_array([1, 2], [True, False]), "mask"),
    "masked scalar": (lambda: np.ma.masked, "mask"),
    "units": (lambda: np.ones(3).view(Metres), "unit"),
    "objects": (lambda: np.array([{}], object), "pointers"),
    "strings": (lambda: np.array(["a"], np.dtypes.StringDType()), "pointers"),
    "NUL text": (lambda: np.str_("a\0"), r"str\(x\)"),
    "NUL bytes": (lambda: np.bytes_(b"a\0"), r"bytes\(x\)"),
    "crosstab": (lambda: FRAMES["cross"](), "set_axis"),
    "levels of truths": (lambda: FRAMES["levels of truths"](), r"'_'\.join"),
    "cut": (lambda: PANDAS_COLUMNS["cut"](), "send_pickle"),
    "truths": (lambda: PANDAS_COLUMNS["truths"](), r"astype\('bool'\)"),
    "truths and NaN": (lambda: PANDAS_COLUMNS["truths and NaN"](), r"astype\('boolean'\)"),
    "texts and NA": (lambda: pd.Series(["a", pd.NA], dtype=object), f"astype\\('{TEXT}'\\)"),
    "zoned times": (lambda: PANDAS_COLUMNS["zoned times"](), r"map\(str\)"),
    "no duplicate labels": (lambda: FRAMES["no duplicates"](), "set_flags"),
    "pandas index": (lambda: pd.Index([1]), "to_frame"),
    "pandas categorical": (lambda: pd.Categorical(["a"]), "to_numpy|send_pickle"),
    "pandas array": (lambda: pd.array([1, None]), "to_numpy|send_pickle"),
    "pandas timestamp": (lambda: pd.Timestamp("2020"), "datetime64"),
    "NA": (lambda: pd.NA, "send"),
    "frame subclass": (lambda: Geo({"a": [1]}), "subclass"),
    "polars subclass": (lambda: Chart({"a": [1]}), "subclass"),
    "lazy": (lambda: pl.LazyFrame({"a": [1]}), "collect"),
    "arrow scalar": (lambda: pa.scalar(1), r"pyarrow\.array"),
    "arrow schema": (lambda: pa.schema([]), "empty_table"),
    "named tensor": (lambda: pa.Tensor.from_numpy(np.ones((2, 2)), ["a", "b"]), "dim_names"),
    "both": (Both, "say which"),
    "xarray": (data_array, r"to_dict"),
    "xarray dataset": (lambda: data_array().to_dataset(), "to_dict"),
    "xarray variable": (lambda: data_array().variable, "to_dict"),
    "pointer": (lambda: ctypes.c_void_p(1), "pointers"),
    "char pointer": (lambda: ctypes.c_char_p(b"x"), "pointers"),
    "object pointer": (lambda: ctypes.py_object(1), "pointers"),
    "pointers": (lambda: (Pointer * 2)(), "pointers"),
    "pointer to int": (lambda: ctypes.pointer(ctypes.c_int(1)), "pointers"),
    "C function": (lambda: ctypes.CFUNCTYPE(None)(), "pointers"),
    "bit fields": (Bits, r"bytes\(x\)"),
    "wide characters": (lambda: (ctypes.c_wchar * 2)(), r"bytes\(x\)"),
    "view of pointers": (lambda: memoryview(bytes(8)).cast("P"), r"cast\('B'\)"),
    "array subclass": (lambda: Labels("i", [1]), "memoryview"),
    "image subclass": (lambda: Painting(), r"np\.asarray"),
    **{
        f"image {mode}": (lambda mode=mode: image(mode), "convert")
        for mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "La", "PA")
    },
    "transparent": (lambda: transparent(), "convert"),
    **{
        f"frames of {kind}": (lambda kind=kind: animation(kind), r"copy\(\).*ImageSequence")
        for kind in ("PNG", "TIFF", "WEBP")
    },
}


def transparent() -> Image.Image:
    """An image in which one colour means nothing."""
    made = image("L")
    made.info["transparency"] = 0
    return made


# ---- sent alone, in dicts, in lists, in batches ----

Case = tuple[Make, Callable[[Any, Any], None]]


def each(made: Callable[[], list[Any]], check: Callable[[Any, Any], None]) -> list[Case]:
    """A case for each thing of a list."""
    return [(lambda thing=thing: thing, check) for thing in made()]


def things() -> dict[str, list[Case]]:
    """All that is tried, by the library that it comes from."""
    return {
        "numpy": [*each(lambda: ARRAYS, assert_array), (lambda: np.asarray(RECORDS), assert_array)],
        "numpy scalars": each(lambda: SCALARS, assert_scalar),
        "python": each(lambda: PARTS_ALONE, assert_same),
        "bytes": each(plain_bytes, assert_bytes),
        "buffers": each(buffers, assert_buffer),
        "ctypes": each(of_ctypes, assert_ctypes),
        "images": [
            *(
                (lambda mode=mode: image(mode), assert_image)
                for mode in ("1", "L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B")
            ),
            (opened, assert_image),
        ],
        "pandas columns": [(made, assert_series) for made in PANDAS_COLUMNS.values()],
        "pandas indices": [
            (lambda made=made: pd.Series([1.5, 2.5], made(), name="x"), assert_series) for made in INDICES.values()
        ],
        "pandas names": [(lambda name=name: pd.Series([1.5, 2.5], name=name), assert_series) for name in NAMES],
        "pandas frames": [
            *((made, assert_frame) for made in FRAMES.values()),
            *(
                (lambda made=made: pd.DataFrame({"it": made(), "other": made()}), assert_frame)
                for made in PANDAS_COLUMNS.values()
            ),
            *((lambda made=made: pd.DataFrame({"it": [1, 2]}, made()), assert_frame) for made in INDICES.values()),
        ],
        "pandas over Arrow": [
            (lambda kind=kind: pd.DataFrame({"it": pd.Series([], dtype=pd.ArrowDtype(kind))}), assert_arrow_backed)
            for kind in (pa.int8(), pa.string(), pa.decimal128(5, 2), pa.list_(pa.int8()), pa.timestamp("s"))
        ],
        "polars": each(polars_things, assert_polars),
        "arrow": each(arrow_things, assert_arrow),
    }


THINGS = things()


def assert_well_put(refused: BaseException, place: str = "") -> None:
    """The text names the topic and the place, and says what to do."""
    text = str(refused) + "".join(getattr(refused, "__notes__", []))
    assert "topic 't'" in text, text
    assert place in text, text
    assert re.search(r"send|convert|cast|rename|install", text.partition(": ")[2]), text


HOWS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], str]] = {
    "alone": (lambda thing: thing, lambda value: value, ""),
    "dict": (
        lambda thing: {"before": [1], "a": {"deep": thing}, "after": b"x"},
        lambda value: value["a"]["deep"],
        "['a']['deep']",
    ),
    "list": (lambda thing: ["x", [np.arange(3), (1, thing)], {}], lambda value: value[1][1][1], "[1][1][1]"),
}


@pytest.mark.filterwarnings("ignore:Mismatched null-like values")  # pandas 2 takes NaN and None for equal.
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("library", THINGS)
def test_it_arrives_as_it_was_or_is_refused(library: str, how: str, pair: Pair) -> None:
    pub, sub = pair
    wrap, unwrap, place = HOWS[how]
    arrived = 0
    for make, check in THINGS[library]:
        thing = make()
        try:
            pub.send(wrap(thing))
        except (TypeError, ValueError) as refused:
            assert_well_put(refused, place)
            assert sub.try_recv() is None
            continue
        arrived += 1
        found = unwrap(sub.recv(timeout=20).value)
        (assert_alone if how == "alone" and check is assert_scalar else check)(found, thing)
    assert arrived > len(THINGS[library]) // 3 or (library == "python" and how == "alone")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:The chararray class is deprecated:DeprecationWarning")
def test_what_would_be_less_is_refused(kind: str, how: str, pair: Pair) -> None:
    pub, sub = pair
    make, advice = REFUSED[kind]
    wrap, _, place = HOWS[how]
    with pytest.raises(TypeError, match=advice) as refused:
        pub.send(wrap(make()))
    assert_well_put(refused.value, place)
    assert sub.try_recv() is None
    assert pub.stats()["pool_used"] == 0


@pytest.mark.parametrize("library", ["numpy", "numpy scalars", "bytes", "buffers", "ctypes", "images"])
def test_batches(library: str, pair: Pair) -> None:
    pub, sub = pair
    for make, check in THINGS[library]:
        thing = make()
        if "numpy" in library and not thing.nbytes:
            continue  # Rows of no bytes are none.
        try:
            pub.send_many([thing] * 3)
        except (TypeError, ValueError) as refused:
            assert_well_put(refused)
            continue
        batch = sub.recv_batch(3, timeout=20)
        for msg in batch:
            (assert_alone if check is assert_scalar else check)(msg.value, thing)
        rows = batch.array()
        if "numpy" in library:
            assert_array(rows, np.array([thing] * 3, np.asarray(thing).dtype))
        else:
            assert len(rows) == 3


@examples(60)
@given(
    dtype=st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes(max_size=4), hnp.nested_dtypes(max_itemsize=64)),
    data=st.data(),
)
def test_numpy_scalars_of_any_type(dtype: np.dtype[Any], data: Any, pair: Pair) -> None:
    pub, sub = pair
    raw = data.draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize))
    made = np.frombuffer(bytes(byte % 2 for byte in raw) or b"", "u1")
    sent = made.view(dtype)[0] if dtype.itemsize and not has_text(dtype) else np.zeros((), dtype)[()]
    if not isinstance(sent, np.generic):
        return
    pub.send(sent)
    pub.send({"it": sent, "list": [sent]})
    assert_alone(sub.recv(timeout=20).value, sent)
    found = sub.recv(timeout=20).value
    assert_scalar(found["it"], sent)
    assert_scalar(found["list"][0], sent)


def has_text(dtype: np.dtype[Any]) -> bool:
    """Whether any bytes are not yet one of its elements."""
    below = [dtype[name] for name in dtype.names or ()] + ([dtype.subdtype[0]] if dtype.subdtype else [])
    return dtype.kind == "U" or any(map(has_text, below))


@examples(60)
@given(kind=arrow_data.types(), seed=st.integers(0, 99), length=st.integers(0, 9))
def test_arrow_data_of_any_type(kind: Any, seed: int, length: int, pair: Pair) -> None:
    pub, sub = pair
    sent = arrow_data.array(np.random.default_rng(seed), kind, length)
    pub.send(sent)
    pub.send({"it": [sent]})
    assert_arrow(sub.recv(timeout=20).value, sent)
    assert_arrow(sub.recv(timeout=20).value["it"][0], sent)


@pytest.mark.parametrize("writable", [False, True])
def test_numpy_scalars_as_keys(writable: bool, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(writable=writable)
    keys = [
        np.int8(1),
        np.uint64(2**64 - 1),
        np.float32(0.5),
        np.str_("t"),
        np.bytes_(b"b"),
        np.bool_(False),
        np.datetime64("2020-01-01"),
        np.timedelta64(3, "s"),
        np.complex64(1j),
    ]
    record = np.array([(1, 2.5)], "i4,f8")
    record.flags.writeable = False
    keys.append(record[0])
    pub.send({key: number for number, key in enumerate(keys)})
    found = sub.recv(timeout=20).value
    assert list(found.values()) == list(range(len(keys)))
    for one, other in zip(found, keys, strict=True):
        assert_scalar(one, other)


@pytest.mark.parametrize("key", [(1, 2), b"k", Shade.DARK, Word.YES, datetime.date(2020, 1, 1), frozenset()], ids=repr)
def test_keys_that_cannot_be_sent(key: Any, pair: Pair) -> None:
    pub, _ = pair
    with pytest.raises(TypeError, match=r"topic 't', at \['in'\]: .*key of type.*list\(x\.items\(\)\)"):
        pub.send({"in": {"a": 1, key: 2}})


def test_places(pair: Pair) -> None:
    pub, _ = pair
    today = datetime.date(2020, 1, 1)
    places: list[tuple[Any, str]] = [
        ([today], "[0]"),
        ({"a": [1, {}, (), {"b": 1, "c": today}]}, "['a'][3]['c']"),
        ({1: {None: {True: {1.5: today}}}}, "[1][None][True][1.5]"),
        ({"it's": today}, "['it\\'s']"),
        ([[], {}, {"x": []}, today], "[3]"),
        ({"a": np.arange(3), "b": (pa.array([1]), b"x", today)}, "['b'][2]"),
        ({"k" * 100: today}, "['" + "k" * 39 + "...]"),
        (nested(20, today), "[0][0][0][0][0][0]...[0][0][0]"),
        ({"a": {np.int64(3): today}}, "['a'][3]"),
        ([pl.DataFrame({"a": [1]}), pl.DataFrame({"p": [pathlib.Path()]})], "[1]"),
        ([np.zeros(2), {"x": np.zeros(3, [("o", "O")])}], "[1]['x']"),
    ]
    for sent, place in places:
        with pytest.raises(TypeError) as refused:
            pub.send(sent)
        assert str(refused.value).startswith(f"topic 't', at {place}: cannot send"), refused.value


def nested(depth: int, value: Any) -> Any:
    """So many lists around a value."""
    for _ in range(depth):
        value = [value]
    return value


def test_errors_of_other_libraries_stay_theirs(pair: Pair) -> None:
    pub, _ = pair

    class Failing:
        def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
            raise self.problem

    failing = Failing()
    failing.problem = KeyError("theirs")  # type: ignore[attr-defined]
    with pytest.raises(KeyError, match="theirs") as raised:
        pub.send({"a": [failing]})
    assert raised.value.__notes__ == ["while sending to topic 't', at ['a'][0]"]
    failing.problem = ValueError("theirs")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"topic 't', at \['a'\]: theirs") as refused:
        pub.send({"a": failing})
    assert refused.value.__cause__ is failing.problem  # type: ignore[attr-defined]


HEADERS: list[tuple[Any, Any]] = [
    (np.bool_(True), True),
    (np.int8(-3), -3),
    (np.uint16(7), 7),
    (np.int64(-(2**63)), -(2**63)),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float16(2), 2.0),
    (np.float64(0.5), 0.5),
    (np.str_("t"), "t"),
    (np.bytes_(b"b"), b"b"),
    (Shade.DARK, 1),
    (Word.YES, "yes"),
]


def test_headers_that_numpy_made(pair: Pair) -> None:
    pub, sub = pair
    for value, expected in HEADERS:
        pub.send(b"x", headers={"h": value})
        found = sub.recv(timeout=20).headers["h"]
        assert type(found) is type(expected)
        assert found == expected


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("2020"),
        np.complex64(1),
        np.longdouble(1),
        np.zeros(3),
        None,
        datetime.date(2020, 1, 1),
        [1],
        bytearray(b"x"),
    ],
    ids=repr,
)
def test_headers_that_cannot_be(value: Any, pair: Pair) -> None:
    pub, _ = pair
    found = (
        type(value).__qualname__
        if type(value).__module__ == "builtins"
        else f"{type(value).__module__}.{type(value).__qualname__}"
    )
    with pytest.raises(TypeError, match=f"topic 't': header 'h': values are .* not {found}; convert it"):
        pub.send(b"x", headers={"h": value})


@pytest.mark.parametrize("value", [2**63, np.uint64(2**63)])
def test_headers_that_are_too_large(value: Any, pair: Pair) -> None:
    pub, _ = pair
    with pytest.raises(ValueError, match=r"topic 't': header 'h': .*64 bits.*str\(x\)"):
        pub.send(b"x", headers={"h": value})


# ---- what is done with what arrived ----


def test_received_values_can_be_pickled(pair: Pair) -> None:
    pub, sub = pair
    sent = {"bytes": b"x" * 5000, "array": np.arange(3), "list": [b"", (b"y",)], "arrow": pa.array([1])}
    pub.send(sent)
    pub.send(b"alone")
    for expected in (sent, b"alone"):
        value = sub.recv(timeout=20).value
        for protocol in range(2, 6):
            again = pickle.loads(pickle.dumps(value, protocol))
            if isinstance(expected, dict):
                assert bytes(again["bytes"]) == expected["bytes"]
                assert again["list"] == [b"", (b"y",)]
                assert again["array"].tolist() == [0, 1, 2]
            else:
                assert again == expected
                assert type(again) is memoryview


def test_bytes_travel_beside_a_pickle(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(allow_pickle=True)
    pub.send([b"x" * 100_000])
    value = sub.recv(timeout=20).value
    pub.send_pickle({"again": value, "some": memoryview(b"abcdef")[::2]})
    again = sub.recv(timeout=20).value
    assert bytes(again["again"][0]) == b"x" * 100_000
    assert bytes(again["some"]) == b"ace"
    before = byref.copied_bytes()
    with pytest.raises(TypeError, match="memoryview"):
        pickle.dumps(memoryview(bytes(8)).cast("i"))
    assert byref.copied_bytes() == before


@pytest.mark.parametrize(
    "sent", [{"a": 1}, [np.ones(3)], pa.array([1]), pl.DataFrame({"a": [1]})], ids=lambda sent: type(sent).__name__
)
def test_a_batch_of_parts_is_no_array(sent: Any, pair: Pair) -> None:
    pub, sub = pair
    for first in ([], [b"plain"]):
        for each in (*first, sent, sent):
            pub.send(each)
        batch = sub.recv_batch(2 + len(first), timeout=20)
        for dtype in (None, "u1"):
            with pytest.raises(TypeError, match=r"topic 't': message number \d .*parts.*msg\.value for msg in batch"):
                batch.array(dtype)


@pytest.mark.parametrize(
    "row",
    [{"a": 1}, [1, 2], (1,), pa.array([1]), pl.DataFrame({"a": [1]}), pd.Series([1])],
    ids=lambda row: type(row).__name__,
)
def test_rows_that_are_no_rows(row: Any, pair: Pair) -> None:
    pub, sub = pair
    with pytest.raises(TypeError, match=r"topic 't', at \[1\]: cannot send .* with send_many.*send it with send"):
        pub.send_many([row if isinstance(row, np.ndarray) else b"x", row])
    for alone in ("text", 5, None, datetime.date(2020, 1, 1)):
        with pytest.raises(TypeError, match=r"topic 't', at \[0\]: cannot send .*; send "):
            pub.send_many([alone])
    assert sub.try_recv() is None


def test_the_advice_for_pandas_helps(pair: Pair) -> None:
    pub, sub = pair
    cross = FRAMES["cross"]()
    levels = FRAMES["levels of truths"]()
    levels.columns = ["_".join(map(str, c)) for c in levels.columns]
    texts = pd.DataFrame({"a": ["x", np.nan]}, dtype=object)
    for sent in (cross.set_axis([str(c) for c in cross.columns], axis=1), levels, texts.astype(TEXT)):
        pub.send(sent)
        assert_frame(sub.recv(timeout=20).value, sent)


@pytest.mark.parametrize("kind", ["aggregated", "levels", "levels of numbers", "a truth as name", "floats as names"])
def test_names_of_columns_that_come_back(kind: str, pair: Pair) -> None:
    pub, sub = pair
    sent = FRAMES[kind]()
    pub.send(sent)
    assert_frame(sub.recv(timeout=20).value, sent)


def test_categories_in_other_memory(pair: Pair) -> None:
    pub, sub = pair
    for ordered in (False, True):
        kind = pd.CategoricalDtype(pd.Index(["b", "a", "never"], dtype="string"), ordered)
        sent = pd.Series(["a", None, "b"], dtype=kind, name="x")
        pub.send(sent)
        found = sub.recv(timeout=20).value.to_pandas()["x"]
        assert found.cat.categories.tolist() == ["b", "a", "never"]
        assert found.cat.codes.tolist() == [1, -1, 0]
        assert found.cat.ordered == ordered


def test_frames_one_by_one(pair: Pair) -> None:
    pub, sub = pair
    images = animation("TIFF")
    pub.send([frame.copy() for frame in ImageSequence.Iterator(images)])
    pub.send(images.copy())
    for found in sub.recv(timeout=20).value:
        assert found.shape == (5, 7, 3)
    assert sub.recv(timeout=20).value.shape == (5, 7, 3)


def test_classes_are_not_kept(pair: Pair) -> None:
    pub, _ = pair

    def send() -> weakref.ref[type]:
        class Passing:
            def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
                return pa.array([1]).__arrow_c_array__()

        pub.send(Passing())
        return weakref.ref(Passing)

    gc.collect()
    known = len(_kinds._rules)
    kept = send()
    gc.collect()
    assert kept() is None
    assert len(_kinds._rules) == known


def test_libraries_that_are_not_there(spawn: Spawn) -> None:
    child = spawn(bare.send)
    assert "without pyarrow" in child.hear()
    assert "without pyarrow" in child.hear()
    assert "subclass of PIL.Image" in child.hear()
    child.finish()


def test_xarray_by_its_own_words(pair: Pair) -> None:
    pub, sub = pair
    sent = data_array()
    pub.send(sent.to_dict(data="array"))
    pub.send(sent.to_dataset().to_dict(data="array"))
    assert xr.DataArray.from_dict(sub.recv(timeout=20).value).identical(sent)
    assert xr.Dataset.from_dict(sub.recv(timeout=20).value).identical(sent.to_dataset())
