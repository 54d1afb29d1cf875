"""Arrow data by reference: of any type, from and to any library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import arro3.core
import byref
import duckdb
import nanoarrow
import numpy as np
import pandas
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import arrow_data, bare
from tests.arrow_data import assert_by_reference, assert_same
from tests.conftest import Endpoints, examples
from tests.processes import Child, Line, is_in_pool

Spawn = Callable[..., Child]

SEEDS = st.integers(0, 2**32)


def columns(random: np.random.Generator, schema: pa.Schema, rows: int) -> list[pa.Array]:
    """The columns of a batch of that schema."""
    return [arrow_data.array(random, field.type, rows) for field in schema]


def schemas() -> st.SearchStrategy[pa.Schema]:
    """Any schema of a few columns, or of none."""
    field = st.builds(pa.field, arrow_data.NAMES, arrow_data.types(), st.just(True), metadata=arrow_data.metadata())
    return st.builds(pa.schema, st.lists(field, max_size=3), metadata=arrow_data.metadata())


@examples(120)
@given(kind=arrow_data.types(), seed=SEEDS, length=st.integers(0, 9))
def test_arrays_of_any_type(kind: pa.DataType, seed: int, length: int, pair: Any) -> None:
    pub, sub = pair
    sent = arrow_data.array(np.random.default_rng(seed), kind, length)
    pub.send(sent)
    found = sub.recv(timeout=20).value
    assert_same(found, sent)
    assert_by_reference(found)


@examples(50)
@given(schema=schemas(), seed=SEEDS, rows=st.lists(st.integers(0, 5), max_size=3))
def test_batches_tables_and_readers(schema: pa.Schema, seed: int, rows: list[int], pair: Any) -> None:
    pub, sub = pair
    random = np.random.default_rng(seed)
    batches = [pa.record_batch(columns(random, schema, count), schema=schema) for count in rows]
    for batch in batches:
        pub.send(batch)
        found = sub.recv(timeout=20).value
        assert_same(found, batch)
        assert_by_reference(found)
    table = pa.Table.from_batches(batches, schema)
    for sent in (table, table.to_reader()):
        pub.send(sent)
        found = sub.recv(timeout=20).value
        if schema.names or sent is not table:
            assert_same(found, pa.table(table.to_reader()))
            assert_by_reference(found)


@examples(50)
@given(kind=arrow_data.types(), seed=SEEDS, lengths=st.lists(st.integers(0, 5), max_size=3))
def test_chunked_arrays(kind: pa.DataType, seed: int, lengths: list[int], pair: Any) -> None:
    pub, sub = pair
    random = np.random.default_rng(seed)
    sent = pa.chunked_array([arrow_data.array(random, kind, length) for length in lengths], kind)
    pub.send(sent)
    found = sub.recv(timeout=20).value
    assert_same(found, sent)
    assert_by_reference(found)


# ---- across processes ----


def echo(line: Line, count: int) -> None:
    """Sends so many values that come on "t" back on "back"."""
    with byref.Subscriber("t") as sub, byref.Publisher("back") as pub:
        sub.wait_for_publishers(timeout=30)
        pub.wait_for_subscribers(timeout=30)
        for _ in range(count):
            pub.send(sub.recv(timeout=30).value)
        pub.flush(timeout=30)
        line.tell("sent")
        line.hear()


def test_there_and_back_again(spawn: Spawn, endpoints: Endpoints) -> None:
    random = np.random.default_rng(4)
    values: list[Any] = [arrow_data.array(random, kind, 50) for kind in arrow_data.LEAVES]
    flat = [value for value in values if value.type not in (pa.null(), pa.binary(0))]
    values += [pa.DictionaryArray.from_arrays(random.integers(0, 50, 90).astype("i1"), value) for value in flat]
    values.append(pa.record_batch([value[:9] for value in values], [str(index) for index in range(len(values))]))
    values.append(pa.Table.from_batches([values[-1], values[-1].slice(3, 5)]))
    pub, sub = endpoints.publisher(), endpoints.subscriber("back")
    child = spawn(echo, len(values))
    pub.wait_for_subscribers(timeout=30)
    sub.wait_for_publishers(timeout=30)
    for value in values:
        pub.send(value)
        found = sub.recv(timeout=30).value
        assert_same(found, value)
        assert_by_reference(found)
    assert child.hear() == "sent"
    child.tell()
    child.finish()


def test_without_pyarrow(spawn: Spawn, endpoints: Endpoints) -> None:
    pub, sub = endpoints.publisher(), endpoints.subscriber("back")
    child = spawn(bare.receive)
    pub.wait_for_subscribers(timeout=30)
    sub.wait_for_publishers(timeout=30)
    table = pa.table({"a": [1, 2, None], "b": ["x", None, "a longer text than that"]})
    pub.send(table.to_batches()[0])
    assert child.hear() == ["Batch", "DataFrame", table.to_pydict()]
    assert pa.table(sub.recv(timeout=30).value).to_pydict() == table.to_pydict()
    pub.send(pa.concat_tables([table, table]))
    assert child.hear() == ["Table", "DataFrame", pa.concat_tables([table, table]).to_pydict()]
    pub.send(table["a"].chunk(0))
    assert child.hear() == ["Array", "Series", [1, 2, None]]
    pub.send(table["b"])
    assert child.hear() == ["Chunked", "Series", table["b"].to_pylist()]
    child.finish()


# ---- other libraries ----

TABLE = pa.table({"number": pa.array([1, 2, None, 4]), "text": ["x", None, "zwölf Boxkämpfer", ""]})


@pytest.mark.parametrize(
    "made",
    [
        lambda: pl.DataFrame(TABLE), lambda: pandas.DataFrame(TABLE.to_pandas(types_mapper=pandas.ArrowDtype)),
        lambda: duckdb.from_arrow(TABLE), lambda: arro3.core.Table(TABLE),
        lambda: arro3.core.RecordBatch(TABLE.to_batches()[0]),
        lambda: nanoarrow.Array(TABLE.to_batches()[0]), lambda: nanoarrow.c_array(TABLE.to_batches()[0]),
        lambda: nanoarrow.ArrayStream(TABLE), lambda: TABLE.to_reader(),
        lambda: arro3.core.RecordBatchReader.from_arrow(TABLE),
    ],
    ids=["polars", "pandas", "duckdb", "arro3", "arro3 batch", "nanoarrow", "nanoarrow C", "nanoarrow stream",
         "pyarrow reader", "arro3 reader"],
)  # fmt: skip
def test_tables_from_any_library(made: Callable[[], Any], pair: Any) -> None:
    pub, sub = pair
    pub.send(made())
    found = sub.recv(timeout=20).value
    assert pa.table(found).to_pydict() == TABLE.to_pydict()
    found.validate(full=True)
    assert_by_reference(found)


@pytest.mark.parametrize(
    "made",
    [lambda: pl.Series(TABLE["text"]), lambda: arro3.core.ChunkedArray(TABLE["text"]),
     lambda: arro3.core.Array(TABLE["text"].chunk(0)),
     lambda: nanoarrow.Array(TABLE["text"])],
    ids=["polars", "arro3", "arro3 array", "nanoarrow"],
)  # fmt: skip
def test_columns_from_any_library(made: Callable[[], Any], pair: Any) -> None:
    pub, sub = pair
    pub.send(made())
    found = sub.recv(timeout=20).value
    found.validate(full=True)
    assert found.to_pylist() == TABLE["text"].to_pylist()
    assert_by_reference(found)


def test_polars_types(pair: Any) -> None:
    pub, sub = pair
    frame = pl.DataFrame(
        {
            "categories": pl.Series(["a", "b", None, "a"], dtype=pl.Categorical),
            "few": pl.Series(["x", "y", "y", None], dtype=pl.Enum(["x", "y"])),
            "money": pl.Series(["1.25", None, "-3.5", "0"]).str.to_decimal(scale=2),
            "lists": [[1, 2], [], None, [3]],
            "pairs": pl.Series([[1, 2], None, [3, 4], [5, 6]], dtype=pl.Array(pl.Int16, 2)),
            "structs": [{"a": 1, "b": "x"}, None, {"a": None, "b": "y" * 20}, {"a": 3, "b": ""}],
            "when": pl.Series([1, 2, None, 4]).cast(pl.Datetime("us", "Europe/Zurich")),
            "bytes": [b"", b"\0" * 30, None, b"x"],
            "nothing": [None] * 4,
        }
    )
    for sent in (frame, frame[1:3], frame[:0], pl.concat([frame, frame], rechunk=False)):
        pub.send(sent)
        msg = sub.recv(timeout=20)
        assert pl.DataFrame(msg.value).equals(sent)
        assert pa.table(msg).equals(msg.value)


def test_any_library_looks_at_the_message(pair: Any) -> None:
    pub, sub = pair
    numbers = pa.table({"a": np.arange(1000), "b": np.linspace(0, 1, 1000)})
    pub.send(numbers)
    msg = sub.recv(timeout=20)
    value = msg.value
    for taken in (pa.table(msg), value, pa.table(arro3.core.Table(msg)), pa.table(nanoarrow.ArrayStream(msg))):
        assert taken.equals(numbers)
        assert_by_reference(taken)
    frame = pl.DataFrame(msg.value)
    assert all(is_in_pool(column.to_numpy(allow_copy=False).ctypes.data) for column in frame)
    assert frame.sum().rows() == [(499500, pytest.approx(500))]
    assert duckdb.sql("select sum(a), count(b) from value").fetchall() == [(499500, 1000)]
    assert is_in_pool(value["a"].chunk(0).to_numpy(zero_copy_only=True).ctypes.data)
    assert value.to_pandas()["a"].sum() == 499500
    assert nanoarrow.Array(msg)[999].as_py() == {"a": 999, "b": 1.0}
    column = nanoarrow.c_array(value["a"].chunk(0))
    assert is_in_pool(column.view().buffer(1)._addr())


def test_numpy_arrays_as_arrow_data(pair: Any) -> None:
    pub, sub = pair
    for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"):
        for shape in ((600,), (40, 6, 5), (0, 3), (300, 0)):
            sent = np.arange(np.prod(shape)).astype(kind).reshape(shape)
            pub.send(sent)
            msg = sub.recv(timeout=20)
            found = pa.array(msg)
            found.validate(full=True)
            assert found.to_pylist() == sent.tolist()
            if sent.nbytes > byref.INLINE_LIMIT:
                assert_by_reference(found)
            del found
            msg.release()
    for refused in (np.zeros(3, "M8[s]"), np.zeros(3, ">i4"), np.array(5), np.zeros(3, "c16")):
        pub.send(refused)
        with pytest.raises(TypeError, match=r"msg\.value"):
            pa.array(sub.recv(timeout=20))


def test_what_is_no_arrow_data(pair: Any) -> None:
    pub, sub = pair
    pub.send([pa.array([1])])
    with pytest.raises(TypeError, match="no Arrow data"):
        pa.array(sub.recv(timeout=20))
    pub.send(pa.chunked_array([[1], [2]]))
    msg = sub.recv(timeout=20)
    with pytest.raises(BufferError, match="2 chunks"):
        pa.array(msg)
    assert pa.chunked_array(msg).to_pylist() == [1, 2]
    for view in (memoryview, np.asarray):
        with pytest.raises((BufferError, TypeError), match=r"msg\.value"):
            view(msg)


# ---- the schema is told once ----


def with_metadata(size: int, number: int = 0) -> pa.RecordBatch:
    """A small batch whose schema takes so many bytes."""
    schema = pa.schema([("a", pa.int64())], metadata={"number": str(number), "long": "x" * size})
    return pa.record_batch([pa.array([number, 2, 3])], schema=schema)


def test_a_long_schema_costs_nothing_per_message(pair: Any) -> None:
    pub, sub = pair
    sizes = []
    for size in (1, 1000, 100_000):
        for number in range(3):
            sent = with_metadata(size, 7)
            pub.send([sent, number])
            msg = sub.recv(timeout=20)
            sizes.append(msg.nbytes)
            assert_same(msg.value[0], sent)
    assert max(sizes) - min(sizes) < 64


def test_late_joiners_and_lossy_subscribers_know_the_schema(endpoints: Endpoints, spawn: Spawn) -> None:
    pub = endpoints.publisher(history=5)
    lossy = endpoints.subscriber(policy="latest")
    pub.wait_for_subscribers(timeout=20)
    for number in range(100):
        pub.send(with_metadata(100, number))
    assert_same(lossy.recv(timeout=20).value, with_metadata(100, 99))
    late = endpoints.subscriber(history=5)
    for number in range(95, 100):
        assert_same(late.recv(timeout=20).value, with_metadata(100, number))


def test_more_schemas_than_there_is_room_for(pair: Any) -> None:
    pub, sub = pair
    sizes = []
    for number in range(2000):
        sent = with_metadata(10_000, number)
        pub.send({"first": number, "second": sent} if number % 2 else sent)
        msg = sub.recv(timeout=20)
        sizes.append(msg.nbytes)
        value = msg.value
        assert_same(value["second"] if number % 2 else value, sent)
    assert max(sizes[:1500]) < 1000
    assert min(sizes[-100:]) > 10_000
    with pytest.raises(ValueError, match="no room"):
        pub.loan_batch(with_metadata(10_000, 5000).schema, 3)
    with pub.loan_batch(with_metadata(10_000, 7).schema, 1) as columns:
        columns["a"][:] = 7
    assert sub.recv(timeout=20).value.schema.equals(with_metadata(10_000, 7).schema, check_metadata=True)
    # What one message describes by itself, another can contain.
    pub.send(with_metadata(10_000, 6000))
    pub.send(["x", sub.recv(timeout=20), [sent]])
    found = sub.recv(timeout=20).value
    assert_same(found[1], with_metadata(10_000, 6000))
    assert_same(found[2][0], sent)
    assert_by_reference(found[1])


def test_a_schema_that_is_too_wide_or_too_deep(pair: Any) -> None:
    pub, sub = pair
    deep = pa.int8()
    for _ in range(70):
        deep = pa.list_(deep)
    wide = pa.schema([(str(number), pa.null()) for number in range(1 << 16)])
    for kind, why in ((pa.struct(list(wide)), "65537 fields"), (deep, "nested deeper")):
        with pytest.raises(ValueError, match=why):
            pub.send(pa.nulls(1, kind))
        with pytest.raises(ValueError, match=why):
            pub.send([pa.nulls(1, kind)])
    pub.send(pa.nulls(1, pa.struct(list(wide)[1:])))
    assert sub.recv(timeout=20).value.type.num_fields == (1 << 16) - 1
