"""Messages of several parts: nested containers of scalars, arrays, buffers, Arrow data and messages."""

from __future__ import annotations

import array
import math
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import arrow_data
from tests.conftest import Endpoints, examples
from tests.processes import Child, Line, maps, pool_ranges

Spawn = Callable[..., Child]

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**200), 2**200), st.floats(), st.complex_numbers(),
    st.text(max_size=20),
)  # fmt: skip
DTYPES = st.one_of(
    hnp.scalar_dtypes(), hnp.byte_string_dtypes(), hnp.unicode_string_dtypes(), hnp.array_dtypes(max_size=3),
    hnp.nested_dtypes(max_itemsize=64),
)  # fmt: skip


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Arrays of any type in any layout; their bytes are what they are."""
    dtype = draw(DTYPES)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = dtype.itemsize * math.prod(shape)
    made = np.frombuffer(np.random.default_rng(draw(st.integers(0, 99))).bytes(size), np.uint8).view(np.uint8)
    whole = np.ndarray(shape, dtype, made if dtype.kind not in "UObT" and size else None)
    if dtype.kind == "U" or dtype.hasobject or not size:
        whole = np.zeros(shape, dtype)
    layout = draw(st.sampled_from(["C", "F", "reversed", "strided"]))
    if layout == "F":
        return np.asfortranarray(whole)
    if shape and layout != "C":
        return whole[:: -1 if layout == "reversed" else 2]
    return whole


BUFFERS = st.one_of(
    st.binary(max_size=300), st.binary(max_size=30).map(bytearray), st.binary(max_size=30).map(memoryview),
    st.lists(st.integers(-9, 9), max_size=5).map(lambda numbers: array.array("i", numbers)),
)  # fmt: skip
ARROW = st.builds(
    lambda kind, seed, length: arrow_data.array(np.random.default_rng(seed), kind, length),
    st.sampled_from([pa.int32(), pa.string(), pa.list_(pa.bool_()), pa.dictionary(pa.int8(), pa.string())]),
    st.integers(0, 99), st.integers(0, 9),
)  # fmt: skip
NUMPY_SCALARS = st.sampled_from(
    [np.float32(1.5), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1j), np.datetime64("2020-01-01"),
     np.timedelta64(5, "s"), np.str_("text"), np.bytes_(b"bytes"), np.float64(0.5), np.float16(2),
     np.array((1, 2.5), "i4,f8")[()]]
)  # fmt: skip
KEYS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4))


def containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Containers of such parts."""
    lists = st.lists(parts, max_size=4)
    return st.one_of(lists, lists.map(tuple), st.dictionaries(KEYS, parts, max_size=4))


VALUES = containers(
    st.recursive(st.one_of(SCALARS, arrays(), BUFFERS, ARROW, NUMPY_SCALARS), containers, max_leaves=10)
)


def assert_alike(found: Any, sent: Any) -> None:
    """The same, in value and in type; bytes come as memoryviews, other buffers as arrays."""
    if isinstance(sent, dict):
        assert type(found) is dict
        assert list(found) == list(sent)
        assert [type(key) for key in found] == [type(key) for key in sent]
        for key in sent:
            assert_alike(found[key], sent[key])
    elif isinstance(sent, list | tuple):
        assert type(found) is type(sent)
        assert len(found) == len(sent)
        for one, other in zip(found, sent, strict=True):
            assert_alike(one, other)
    elif isinstance(sent, np.ndarray | np.generic):
        assert type(found) is type(sent)
        assert found.dtype == sent.dtype
        assert found.shape == sent.shape
        assert found.tobytes() == sent.tobytes()
    elif isinstance(sent, array.array):
        assert found.tolist() == sent.tolist()
        assert found.dtype == sent.typecode
    elif isinstance(sent, bytes | bytearray | memoryview):
        assert type(found) is memoryview
        assert found.format == "B"
        assert bytes(found) == bytes(sent)
    elif isinstance(sent, pa.Array):
        arrow_data.assert_same(found, sent)
    elif isinstance(sent, float):
        assert struct.pack("d", found) == struct.pack("d", sent)
    elif isinstance(sent, complex):
        assert struct.pack("dd", found.real, found.imag) == struct.pack("dd", sent.real, sent.imag)
    else:
        assert type(found) is type(sent)
        assert found == sent


def leaves(value: Any) -> Iterator[Any]:
    """What is in containers, at whatever depth."""
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def assert_by_reference(value: Any) -> None:
    """Arrays, buffers and Arrow data lie in messages, aligned, and cannot be written."""
    ranges = pool_ranges()
    for leaf in leaves(value):
        if isinstance(leaf, pa.Array):
            arrow_data.assert_by_reference(leaf)
        elif isinstance(leaf, np.ndarray | memoryview):
            assert (leaf.flags.writeable if isinstance(leaf, np.ndarray) else not leaf.readonly) is False
            address = np.asarray(leaf).ctypes.data
            assert address % 64 == 0
            assert any(start <= address and address + leaf.nbytes <= end for start, end in ranges), "a copy"


@examples(80)
@given(sent=VALUES)
def test_anything_nested(sent: Any, pair: Any) -> None:
    pub, sub = pair
    pub.send(sent)
    found = sub.recv(timeout=20).value
    assert_alike(found, sent)
    assert_by_reference(found)


@examples(70)
@given(sent=arrays())
def test_arrays_of_any_type_and_layout(sent: np.ndarray[Any, Any], pair: Any) -> None:
    pub, sub = pair
    pub.send(sent)
    pub.send({"a": sent})
    alone, part = (sub.recv(timeout=20).value for _ in range(2))
    assert_alike(alone, sent)
    assert_alike(part, {"a": sent})


def echo(line: Line, count: int) -> None:
    """Sends so many values that come on "t" back on "back"."""
    with byref.Subscriber("t") as sub, byref.Publisher("back") as pub:
        sub.wait_for_publishers(timeout=30)
        pub.wait_for_subscribers(timeout=30)
        for _ in range(count):
            pub.send(sub.recv(timeout=30).value)
        pub.flush(timeout=30)
        line.hear()


def test_to_another_process_and_back(spawn: Spawn, endpoints: Endpoints) -> None:
    image, depth = np.arange(48000, dtype=np.uint8).reshape(100, 160, 3), np.ones((100, 160), "f4")[::-1]
    pose = {"at": (1.0, -2.5, math.inf), "name": "camera", "seen": None, "count": 2**70, "valid": True}
    table = pa.table({"x": [1, None], "y": ["a", "b"]})
    values: list[Any] = [
        {"rgb": image, "depth": depth, "pose": pose}, [image, [depth, (depth[0, 0], b"bytes")]], [], {}, (),
        [table, table.to_batches()[0], table["x"]], {"nested": {"deeper": [{"deepest": image[::2, ::3]}]}},
    ]  # fmt: skip
    pub, sub = endpoints.publisher(), endpoints.subscriber("back")
    child = spawn(echo, len(values))
    pub.wait_for_subscribers(timeout=30)
    sub.wait_for_publishers(timeout=30)
    for sent in values:
        pub.send(sent)
        found = sub.recv(timeout=30).value
        if any(isinstance(leaf, pa.Table) for leaf in leaves(sent)):
            assert [type(leaf) for leaf in found] == [pa.Table, pa.RecordBatch, pa.ChunkedArray]
            assert all(one.equals(other) for one, other in zip(found, sent, strict=True))
        else:
            assert_alike(found, sent)
        assert_by_reference(found)
    child.tell()
    child.finish()


def test_messages_inside(pair: Any) -> None:
    pub, sub = pair
    kinds: list[Any] = [b"bytes", b"x" * 5000, np.arange(5), np.ones((30, 40)), pa.array(["a", None]), {"p": [1, b"y"]}]
    for kind in kinds:
        pub.send(kind)
    messages = [sub.recv(timeout=20) for _ in kinds]
    pub.send({"all": messages, "again": tuple(messages)})
    found = sub.recv(timeout=20).value
    assert_alike(found, {"all": kinds, "again": tuple(kinds)})
    assert_by_reference(found)


# ---- what cannot be sent ----


def nothing_was_sent(pub: byref.Publisher, sub: byref.Subscriber) -> None:
    """The stream goes on as if nothing had been."""
    assert sub.try_recv() is None
    assert pub.stats()["pool_used"] == 0
    pub.send([1])
    assert sub.recv(timeout=20).value == [1]


@pytest.mark.parametrize(
    ("leaf", "named"),
    [(object(), "object"), ({1, 2}, "set"), (lambda: 0, "function"), (pa.scalar(1), "Int64Scalar"), (range(3), "range"),
     (np.array([{}], object), "pointers"), (np.array(["a"], np.dtypes.StringDType()), "pointers"),
     (np.array([(1, {})], "i4,O")[0], "pointers"), ({(1, 2): 3}, "tuple"), ({b"k": 3}, "bytes"),
     (pa.int8(), "DataType")],
    ids=repr,
)  # fmt: skip
def test_parts_that_cannot_be_sent(leaf: Any, named: str, pair: Any) -> None:
    pub, sub = pair
    for sent in ([leaf], {"good": np.zeros(1000), "bad": [(leaf,)]}):
        with pytest.raises(TypeError, match=named):
            pub.send(sent)
    nothing_was_sent(pub, sub)


def test_text_that_no_encoding_has(pair: Any) -> None:
    pub, sub = pair
    for sent in (["\ud800"], {"\udfff": 1}):
        with pytest.raises(ValueError, match="surrogates"):
            pub.send(sent)
    nothing_was_sent(pub, sub)


def nested(depth: int, value: Any = 1) -> Any:
    """So many lists around a value."""
    for _ in range(depth):
        value = [value]
    return value


def test_containers_that_are_too_deep(pair: Any) -> None:
    pub, sub = pair
    ring: list[Any] = [1]
    ring.append({"self": ring})
    for sent in (ring, nested(65), nested(100_000)):
        with pytest.raises(ValueError, match="nested deeper than 64"):
            pub.send(sent)
    nothing_was_sent(pub, sub)
    pub.send(nested(64))
    assert sub.recv(timeout=20).value == nested(64)
    pub.send(nested(60))
    msg = sub.recv(timeout=20)
    with pytest.raises(ValueError, match="nested deeper than 64"):
        pub.send(nested(5, msg))
    pub.send(nested(4, msg))
    assert sub.recv(timeout=20).value == nested(64)


def test_more_parts_than_a_message_has(pair: Any) -> None:
    pub, sub = pair
    laughs: list[Any] = [1]
    for _ in range(60):
        laughs = [laughs, laughs]
    for sent in (laughs, [[]] * (1 << 20), [b""] * (1 << 20)):
        with pytest.raises(ValueError, match="more than 1048576 parts"):
            pub.send(sent)
    for half in ([[]] * (1 << 19), [b""] * (1 << 19)):
        pub.send(half)
        msg = sub.recv(timeout=20)
        with pytest.raises(ValueError, match="more than 1048576 parts"):
            pub.send([msg, msg])
    assert sub.try_recv() is None
    pub.send([0] * (1 << 20))
    assert sub.recv(timeout=20).value == [0] * (1 << 20)


# ---- what changes while it is being sent ----


class Meddler:
    """Arrow data that do something when they are asked for."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        self.act()
        return pa.array([7]).__arrow_c_array__()


def test_containers_that_change_themselves_arrive_as_they_were(pair: Any) -> None:
    pub, sub = pair
    growing: dict[str, Any] = {"first": None, "last": 1}
    growing["first"] = Meddler(lambda: growing.update({str(number): 1 for number in range(100)}))
    shrinking: list[Any] = [None, 2]
    shrinking[0] = Meddler(shrinking.clear)
    longer: list[Any] = [None]
    longer[0] = Meddler(lambda: longer.extend([1, 2]))
    pub.send([growing, shrinking, longer])
    found = sub.recv(timeout=20).value
    assert list(found[0]) == ["first", "last"]
    assert found[1][1] == 2
    assert len(found[2]) == 1


def test_containers_that_other_threads_change(pair: Any) -> None:
    pub, sub = pair
    shared: dict[str, Any] = {"array": np.zeros(300_000), "data": pa.array(range(1000))}
    over = threading.Event()

    def change() -> None:
        number = 0
        while not over.is_set():
            number += 1
            shared[str(number % 50)] = number
            shared.pop(str((number + 25) % 50), None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            pub.send({"shared": shared, "end": "end"})
            found = sub.recv(timeout=20).value
            assert found["end"] == "end"
            assert {"array", "data"} <= found["shared"].keys()
    finally:
        over.set()
        thread.join()


# ---- private views ----


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("how", ["subscriber", "message"])
def test_private_parts(how: str, size: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(writable=how == "subscriber")
    other = endpoints.subscriber()
    pub.wait_for_subscribers(2, timeout=20)
    sent = {"a": np.arange(size), "b": [b"x" * size], "arrow": pa.array(range(size)), "t": (1, "z")}
    pub.send(sent)
    msg = sub.recv(timeout=20)

    def take() -> Any:
        return msg.value if how == "subscriber" else msg.writable()

    mine, second = take(), take()
    assert_alike(mine, sent)
    mine["a"][:] = -1
    mine["b"][0][:] = b"y" * size
    assert (mine["a"] == -1).all()
    assert mine["a"].ctypes.data % (64 if size > 10 else 8) == 0
    assert_alike(second, sent)
    assert_alike(take(), sent)
    untouched = other.recv(timeout=20).value
    assert_alike(untouched, sent)
    assert_by_reference(untouched)
    assert_by_reference(mine["arrow"])
    msg = None
    assert (mine["a"] == -1).all()
    names = [(perms, name) for start, end, perms, name in maps() if start <= mine["a"].ctypes.data < end]
    assert ("memfd:byref-pool" in names[0][1]) is (size > 10)
    assert names[0][0].startswith("rw-p")
