"""Arrow data of every type, made from a seed, and what the tests ask of those that arrive."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from tests.processes import pool_ranges

Random = np.random.Generator


class Labelled(pa.ExtensionType):
    """An extension type with a parameter, over any type."""

    def __init__(self, storage: pa.DataType, label: str = "x") -> None:
        self.label = label
        super().__init__(storage, "byref.tests.labelled")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.label.encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Labelled:
        return cls(storage, serialized.decode())


pa.register_extension_type(Labelled(pa.null()))

INTEGERS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
TIMES = [
    pa.date32(), pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"),
    pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("us", "+02:30"), pa.timestamp("ns", "Europe/Zurich"),
    pa.duration("s"), pa.duration("ms"), pa.duration("us"), pa.duration("ns"),
]  # fmt: skip
DECIMALS = [pa.decimal32(7, 2), pa.decimal64(18, 3), pa.decimal128(38, 10), pa.decimal256(76, 5)]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(0), pa.binary(1), pa.binary(17)]
TEXTS = [pa.string(), pa.large_string(), pa.string_view()]
OTHERS = [pa.null(), pa.bool_(), pa.date64(), pa.month_day_nano_interval()]
LEAVES = [*INTEGERS, *FLOATS, *TIMES, *DECIMALS, *BYTES, *TEXTS, *OTHERS]
NAMES = st.text("abü_ .", max_size=4)


def types() -> st.SearchStrategy[pa.DataType]:
    """Any type, nested at most a few levels."""
    return st.recursive(st.sampled_from(LEAVES), nested, max_leaves=6)


def nested(below: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    """Types over other types."""
    field = st.builds(pa.field, NAMES, below, metadata=metadata())
    fields = st.lists(field, max_size=3)
    several = st.lists(field, min_size=1, max_size=3)
    keys = st.sampled_from([pa.string(), pa.int32(), pa.large_binary()])
    indices = st.sampled_from(INTEGERS)
    ends = st.sampled_from([pa.int16(), pa.int32(), pa.int64()])
    flat = st.sampled_from([*INTEGERS, *FLOATS, *TIMES, *DECIMALS, *BYTES, *TEXTS])
    modes = st.sampled_from(["dense", "sparse"])
    return st.one_of(
        below.map(pa.list_), below.map(pa.large_list), below.map(pa.list_view), below.map(pa.large_list_view),
        st.builds(pa.list_, field, st.integers(0, 3)), fields.map(pa.struct),
        st.builds(pa.map_, keys, below, st.booleans()),
        st.builds(pa.dictionary, indices, st.one_of(flat, below), st.booleans()),
        st.builds(pa.run_end_encoded, ends, flat),
        st.builds(union, several, modes, st.permutations(range(0, 120, 7))),
        st.builds(Labelled, below.filter(may_be_storage), st.text(string.ascii_letters, max_size=5)),
    )  # fmt: skip


def may_be_storage(kind: pa.DataType) -> bool:
    """Whether pyarrow validates, and exports, extension arrays over it."""
    others = (pa.types.is_null, pa.types.is_union, pa.types.is_run_end_encoded)
    return not isinstance(kind, pa.ExtensionType) and not any(is_kind(kind) for is_kind in others)


def union(fields: list[pa.Field], mode: str, codes: list[int]) -> pa.DataType:
    """A union of these fields, with codes in no order."""
    return pa.union(fields, mode, type_codes=codes[: len(fields)])


def metadata() -> st.SearchStrategy[dict[str, str] | None]:
    """Metadata of a schema or a field, perhaps."""
    return st.none() | st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text(max_size=5), max_size=2)


def array(random: Random, kind: pa.DataType, length: int) -> pa.Array:
    """An array of that type, with nulls, and perhaps itself a slice of a longer one."""
    before, behind = (int(random.integers(0, 4)) for _ in range(2))
    whole = _whole(random, kind, before + length + behind)
    return whole.slice(before, length)


def _whole(random: Random, kind: pa.DataType, length: int) -> pa.Array:
    if isinstance(kind, pa.ExtensionType):
        return pa.ExtensionArray.from_storage(kind, array(random, kind.storage_type, length))
    for is_kind, make in NESTED:
        if is_kind(kind):
            return make(random, kind, length)
    draw = next(make for is_kind, make in FLAT if is_kind(kind))
    values = [draw(random, kind) for _ in range(length)]
    if random.integers(3):
        values = [None if random.integers(3) == 0 else value for value in values]
    return pa.array(values, kind)


def _mask(random: Random, length: int) -> pa.Array | None:
    return pa.array(random.integers(3, size=length) == 0) if random.integers(2) else None


def _offsets(random: Random, length: int, kind: pa.DataType) -> tuple[pa.Array, int]:
    steps = random.integers(0, 4, size=length + 1)
    offsets = np.cumsum(steps)
    return pa.array(offsets, kind), int(offsets[-1]) + int(random.integers(3))


def _list(random: Random, kind: Any, length: int) -> pa.Array:
    wide = pa.types.is_large_list(kind)
    offsets, needed = _offsets(random, length, pa.int64() if wide else pa.int32())
    made = pa.LargeListArray if wide else pa.ListArray
    return made.from_arrays(offsets, array(random, kind.value_type, needed), type=kind, mask=_mask(random, length))


def _list_view(random: Random, kind: Any, length: int) -> pa.Array:
    wide = pa.types.is_large_list_view(kind)
    number = pa.int64() if wide else pa.int32()
    child = array(random, kind.value_type, int(random.integers(1, 8)))
    sizes = random.integers(0, len(child) + 1, size=length)
    offsets = [int(random.integers(0, len(child) - size + 1)) for size in sizes]
    made = pa.LargeListViewArray if wide else pa.ListViewArray
    views = pa.array(offsets, number), pa.array(sizes, number)
    return made.from_arrays(*views, child, type=kind, mask=_mask(random, length))


def _fixed_list(random: Random, kind: Any, length: int) -> pa.Array:
    child = array(random, kind.value_type, length * kind.list_size)
    validity = pa.array(random.integers(3, size=length) > 0).buffers()[1]
    return pa.Array.from_buffers(kind, length, [validity if random.integers(2) else None], children=[child])


def _map(random: Random, kind: Any, length: int) -> pa.Array:
    offsets, needed = _offsets(random, length, pa.int32())
    keys = array(random, kind.key_type, needed)
    keys = pa.array([b"" if key is None else key for key in keys.to_pylist()], kind.key_type) if (
        pa.types.is_large_binary(kind.key_type)
    ) else keys.fill_null("" if pa.types.is_string(kind.key_type) else 0)  # fmt: skip
    return pa.MapArray.from_arrays(offsets, keys, array(random, kind.item_type, needed), type=kind)


def _struct(random: Random, kind: Any, length: int) -> pa.Array:
    children = [array(random, field.type, length) for field in kind]
    validity = pa.array(random.integers(3, size=length) > 0).buffers()[1]
    return pa.Array.from_buffers(kind, length, [validity if random.integers(2) else None], children=children)


def _dictionary(random: Random, kind: Any, length: int) -> pa.Array:
    values = array(random, kind.value_type, int(random.integers(1, 6)))
    indices = pa.array(random.integers(0, len(values), size=length), kind.index_type, mask=random.random(length) < 0.2)
    return pa.DictionaryArray.from_arrays(indices, values, ordered=kind.ordered)


def _runs(random: Random, kind: Any, length: int) -> pa.Array:
    ends = np.cumsum(random.integers(1, 4, size=length))
    ends = ends[: int(np.searchsorted(ends, length)) + 1] if length else ends
    values = array(random, kind.value_type, len(ends))
    made = pa.RunEndEncodedArray.from_arrays(pa.array(ends, kind.run_end_type), values, type=kind)
    return made.slice(0, length)


def _union(random: Random, kind: Any, length: int) -> pa.Array:
    fields = [kind.field(index) for index in range(kind.num_fields)]
    picks = random.integers(0, len(fields), size=length)
    codes = pa.array(np.array(kind.type_codes)[picks], pa.int8())
    names = [field.name for field in fields]
    if kind.mode == "sparse":
        children = [array(random, field.type, length) for field in fields]
        plain = pa.UnionArray.from_sparse(codes, children, names, kind.type_codes)
    else:
        counts = [int((picks == index).sum()) for index in range(len(fields))]
        children = [array(random, field.type, count + 1) for field, count in zip(fields, counts, strict=True)]
        offsets = np.array([int((picks[:at] == pick).sum()) for at, pick in enumerate(picks)], np.int32)
        plain = pa.UnionArray.from_dense(codes, pa.array(offsets, pa.int32()), children, names, kind.type_codes)
    # Those constructors lose the fields' metadata.
    return pa.Array.from_buffers(kind, length, plain.buffers()[: 2 + (kind.mode == "dense")], children=children)


NESTED: list[tuple[Callable[[pa.DataType], bool], Callable[[Random, Any, int], pa.Array]]] = [
    (pa.types.is_fixed_size_list, _fixed_list),
    (lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind), _list),
    (lambda kind: pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind), _list_view),
    (pa.types.is_map, _map),
    (pa.types.is_struct, _struct),
    (pa.types.is_dictionary, _dictionary),
    (pa.types.is_run_end_encoded, _runs),
    (pa.types.is_union, _union),
]


def _integer(random: Random, kind: pa.DataType) -> int:
    info = np.iinfo(kind.to_pandas_dtype())
    return int(random.integers(info.min, info.max, endpoint=True, dtype=info.dtype))


def _bytes(random: Random, kind: Any) -> bytes:
    width = kind.byte_width if pa.types.is_fixed_size_binary(kind) else int(random.choice([0, 3, 12, 13, 40]))
    return random.bytes(width)


def _text(random: Random, kind: pa.DataType) -> str:
    return "".join(random.choice(list("aé漢😀"), size=int(random.choice([0, 2, 12, 13, 30]))))


def _decimal(random: Random, kind: Any) -> Any:
    from decimal import Decimal

    digits = tuple(int(digit) for digit in random.integers(0, 10, size=kind.precision))
    return Decimal((int(random.integers(2)), digits, -kind.scale))


FLAT: list[tuple[Callable[[pa.DataType], bool], Callable[[Random, Any], Any]]] = [
    (pa.types.is_null, lambda random, kind: None),
    (pa.types.is_boolean, lambda random, kind: bool(random.integers(2))),
    (pa.types.is_integer, _integer),
    (pa.types.is_float16, lambda random, kind: np.float16(random.normal())),
    (pa.types.is_floating, lambda random, kind: float(np.float32(random.normal()))),
    (pa.types.is_decimal, _decimal),
    (pa.types.is_date64, lambda random, kind: int(random.integers(-9999, 9999)) * 86_400_000),
    (pa.types.is_temporal, lambda random, kind: None if pa.types.is_interval(kind) else int(random.integers(86_400))),
    (lambda kind: any(pa.types.is_string(kind) or kind == text for text in TEXTS), _text),
    (lambda kind: any(kind == other for other in BYTES), _bytes),
]
FLAT.insert(
    0,
    (
        lambda kind: kind == pa.month_day_nano_interval(),
        lambda random, kind: tuple(int(part) for part in random.integers(-9, 9, size=3)),
    ),
)


# ---- what arrives ----


def chunks(data: Any) -> list[pa.Array]:
    """The arrays that an array, a chunked array, a batch or a table consists of."""
    if isinstance(data, pa.Array):
        return [data]
    if isinstance(data, pa.RecordBatch):
        return list(data.columns)
    columns = data.columns if isinstance(data, pa.Table) else [data]
    return [chunk for column in columns for chunk in column.chunks]


def dictionaries(data: pa.Array) -> Iterator[pa.Array]:
    """The dictionaries of an array and of those below it."""
    kind = data.type
    if isinstance(kind, pa.ExtensionType):
        yield from dictionaries(data.storage)
    elif pa.types.is_dictionary(kind):
        yield data.dictionary
        yield from dictionaries(data.dictionary)
    elif pa.types.is_map(kind):
        yield from dictionaries(data.keys)
        yield from dictionaries(data.items)
    elif pa.types.is_struct(kind) or pa.types.is_union(kind):
        for index in range(kind.num_fields):
            yield from dictionaries(data.field(index))
    elif pa.types.is_run_end_encoded(kind) or pa.types.is_nested(kind):
        yield from dictionaries(data.values)


def addresses(data: Any) -> list[tuple[int, int]]:
    """Where all buffers of Arrow data lie: address and length."""
    arrays = chunks(data)
    arrays += [found for chunk in arrays for found in dictionaries(chunk)]
    return [(buffer.address, buffer.size) for each in arrays for buffer in each.buffers() if buffer is not None]


def assert_by_reference(data: Any) -> None:
    """All buffers of Arrow data lie in messages, aligned."""
    ranges = pool_ranges()
    for address, size in addresses(data):
        assert address % 64 == 0
        assert any(start <= address and address + size <= end for start, end in ranges), "a copy"


def assert_same(found: Any, sent: Any) -> None:
    """Equal in type, metadata and values, and valid in every respect."""
    assert type(found) is type(sent)
    found.validate(full=True)
    if isinstance(sent, pa.Table | pa.RecordBatch):
        assert found.schema.equals(sent.schema, check_metadata=True)
        assert found.num_rows == sent.num_rows
    else:
        assert pa.schema([pa.field("", found.type)]).equals(pa.schema([pa.field("", sent.type)]), check_metadata=True)
    assert found.equals(sent)
