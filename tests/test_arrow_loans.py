"""Record batches that are built in the pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import byref
import nanoarrow
import numpy as np
import pyarrow as pa
import pytest

from tests.arrow_data import FLOATS, INTEGERS, assert_by_reference, assert_same
from tests.conftest import Endpoints
from tests.processes import eventually
from tests.test_lifetime import whole_pool_is_free

MIB = 1 << 20
TIMES = [pa.timestamp("s"), pa.timestamp("ns", "Europe/Zurich"), pa.duration("ms"), pa.time32("s"), pa.time64("us")]
FIXED = [*INTEGERS, *FLOATS, *TIMES, pa.binary(16), pa.binary(0)]
SCHEMA = pa.schema([(str(kind), kind) for kind in FIXED], metadata={"made": "in place"})


def fill(columns: dict[str, Any], rows: int) -> None:
    """Numbers from 0 on in each column."""
    for array in columns.values():
        if array.dtype.kind == "V":
            array.view((np.void, array.dtype.itemsize))[:] = b"\1" * array.dtype.itemsize
        else:
            array[:] = np.arange(rows).astype(array.dtype)


@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
def test_a_batch_is_filled_in_place(rows: int, pair: Any) -> None:
    pub, sub = pair
    with pub.loan_batch(SCHEMA, rows) as columns:
        assert list(columns) == SCHEMA.names
        before = byref.copied_bytes()
        fill(columns, rows)
    assert byref.copied_bytes() == before
    found = sub.recv(timeout=20).value
    expected = [
        pa.array([b"\1" * kind.byte_width] * rows, kind) if pa.types.is_fixed_size_binary(kind)
        else pa.array(np.arange(rows).astype(columns[str(kind)].dtype), kind)
        for kind in FIXED
    ]  # fmt: skip
    assert_same(found, pa.record_batch(expected, schema=SCHEMA))
    assert_by_reference(found)


def test_the_arrays_of_a_sent_batch_are_read_only(pair: Any) -> None:
    pub, sub = pair
    loan = pub.loan_batch(pa.schema([("a", pa.int64()), ("b", pa.float32())]), 10)
    whole = loan.array
    loan.truncate(8)
    shorter = loan.array
    shorter["a"][:] = 5
    shorter["b"][:] = 0.5
    assert (whole["a"][:8] == 5).all()
    loan.headers["unit"] = "mm"
    assert loan.send() == 0
    for array in [*whole.values(), *shorter.values()]:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    calls: list[Callable[[], Any]] = [loan.send, lambda: loan.truncate(1), loan.__enter__]
    for call in calls:
        with pytest.raises(byref.Closed):
            call()
    loan.discard()
    msg = sub.recv(timeout=20)
    assert msg.headers == {"unit": "mm"}
    assert msg.value.to_pydict() == {"a": [5] * 8, "b": [0.5] * 8}
    assert_by_reference(msg.value)
    assert repr(loan).endswith("sent or discarded>")


def test_truncate(pair: Any) -> None:
    pub, sub = pair
    schema = pa.schema([("a", pa.int16()), ("b", pa.timestamp("ms"))])
    for rows in (0, 1, 64, 100):
        loan = pub.loan_batch(schema, 100)
        fill(loan.array, 100)
        for wrong in (101, -1, 2**62):
            with pytest.raises(ValueError, match="truncate"):
                loan.truncate(wrong)
        loan.truncate(rows)
        with pytest.raises(ValueError, match="truncate"):
            loan.truncate(rows + 1)
        assert [len(array) for array in loan.array.values()] == [rows, rows]
        loan.send()
        found = sub.recv(timeout=20).value
        found.validate(full=True)
        assert found["a"].to_pylist() == list(range(rows))
        assert found.num_rows == rows


def test_an_exception_discards_the_batch(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 * MIB)
    with pytest.raises(RuntimeError, match="of the block"), pub.loan_batch(SCHEMA, 1000) as columns:
        raise RuntimeError("of the block")
    with pytest.raises(ValueError, match="read-only"):
        columns["int8"][0] = 1
    del columns
    assert sub.try_recv() is None
    assert pub.stats()["sent"] == 0
    assert eventually(lambda: whole_pool_is_free(pub, 3 * MIB), "all memory is free again")


def test_a_column_that_was_replaced_is_not_sent(pair: Any) -> None:
    pub, sub = pair
    schema = pa.schema([("a", pa.int64())])
    with pytest.raises(ValueError, match=r"'?a'?.*replaced"), pub.loan_batch(schema, 3) as columns:
        columns["a"] = np.arange(3)
    loan = pub.loan_batch(schema, 3)
    own = loan.array["a"]
    loan.array["a"] = [1, 2, 3]
    for call in (loan.send, lambda: loan.truncate(2)):
        with pytest.raises(ValueError, match="replaced"):
            call()
    assert sub.try_recv() is None
    loan.array["a"] = own
    loan.array["a"] += np.arange(3) - own
    loan.send()
    assert sub.recv(timeout=20).value["a"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
    "kind",
    [pa.bool_(), pa.string(), pa.list_(pa.int8()), pa.struct([("x", pa.int8())]), pa.null(), pa.decimal128(5),
     pa.dictionary(pa.int8(), pa.string()), pa.run_end_encoded(pa.int16(), pa.int8()), pa.month_day_nano_interval()],
    ids=str,
)  # fmt: skip
def test_columns_that_cannot_be_filled_in_place(kind: pa.DataType, pair: Any) -> None:
    pub, _ = pair
    with pytest.raises(TypeError, match=r"'wrong'.*build the batch and send it"):
        pub.loan_batch(pa.schema([("right", pa.int8()), ("wrong", kind)]), 10)
    assert pub.stats()["pool_used"] == 0


def test_what_is_no_schema_of_a_batch(pair: Any) -> None:
    pub, _ = pair
    for wrong, why in ((pa.int8(), "record batch"), ("int8", "no Arrow schema"), (None, "no Arrow schema")):
        with pytest.raises(TypeError, match=why):
            pub.loan_batch(wrong, 10)
    twice = pa.schema([("a", pa.int8()), ("a", pa.int16())])
    with pytest.raises(ValueError, match="two columns have the name 'a'"):
        pub.loan_batch(twice, 10)
    for rows in (-1, 2**61, 2**64, 2**100):
        with pytest.raises((ValueError, byref.PoolExhausted)):
            pub.loan_batch(SCHEMA, rows)
    with pytest.raises(TypeError):
        pub.loan_batch(SCHEMA, 1.5)
    assert pub.stats()["pool_used"] == 0


def test_no_columns_and_other_libraries_schemas(pair: Any) -> None:
    pub, sub = pair
    with pub.loan_batch(pa.schema([]), 5) as columns:
        assert columns == {}
    assert sub.recv(timeout=20).value.num_rows == 5
    with pub.loan_batch(nanoarrow.struct({"x": nanoarrow.int32()}, nullable=False), 2) as columns:
        columns["x"][:] = 3, 4
    assert sub.recv(timeout=20).value.to_pydict() == {"x": [3, 4]}


def test_timeouts(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 * MIB, depth=1)
    schema = pa.schema([("a", pa.int64())])
    pub.send(b"first")
    loan = pub.loan_batch(schema, 10)
    for rows in (10, 7):
        loan.truncate(rows)
        loan.array["a"][:] = 9
        with pytest.raises(byref.Timeout):
            loan.send(timeout=0.02)
    sub.recv(timeout=20)
    assert loan.send(timeout=20) == 1
    assert sub.recv(timeout=20).value["a"].to_pylist() == [9] * 7
    with pytest.raises(byref.PoolExhausted):
        pub.loan_batch(schema, MIB)
