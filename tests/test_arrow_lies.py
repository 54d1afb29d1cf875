"""Arrow data that are not what they say: an error on the side that made the mistake, and the stream goes on."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest

from tests import arrow_data
from tests.conftest import Endpoints
from tests.processes import Child, Line, maps
from tests.strangers import Stranger, varint

Spawn = Callable[..., Child]

MIB = 1 << 20


def numbers(*values: int, kind: str = "i4") -> pa.Buffer:
    """A buffer of integers."""
    return pa.py_buffer(np.array(values, kind).tobytes())


def view(length: int, prefix: bytes, buffer: int, offset: int) -> pa.Buffer:
    """A buffer of one view."""
    return pa.py_buffer(np.array([length], "i4").tobytes() + prefix + np.array([buffer, offset], "i4").tobytes())


TEN = pa.array(range(10), pa.int32())
LONG = pa.py_buffer(b"a text of more than twelve bytes")
BYTES = pa.py_buffer(b"some text")
DENSE = pa.dense_union([pa.field("a", pa.int32())], [5])
RUNS = pa.run_end_encoded(pa.int32(), pa.int32())

LIES: dict[str, tuple[Callable[[], pa.Array], str]] = {
    "offsets decrease": (lambda: pa.Array.from_buffers(pa.binary(), 2, [None, numbers(0, 5, 3), BYTES]), "offsets"),
    "list offsets decrease": (
        lambda: pa.Array.from_buffers(pa.list_(TEN.type), 2, [None, numbers(0, 5, 3)], children=[TEN]), "offsets"),
    "list views beyond the child": (
        lambda: pa.Array.from_buffers(pa.list_view(TEN.type), 1, [None, numbers(8), numbers(3)], children=[TEN]),
        "shorter"),
    "list views with a negative size": (
        lambda: pa.Array.from_buffers(pa.list_view(TEN.type), 1, [None, numbers(8), numbers(-3)], children=[TEN]),
        "negative"),
    "list views that overflow": (
        lambda: pa.Array.from_buffers(
            pa.large_list_view(TEN.type), 1, [None, numbers(2**63 - 1, kind="i8"), numbers(2, kind="i8")],
            children=[TEN]),
        "too long"),
    "a dictionary's index is too large": (
        lambda: pa.DictionaryArray.from_arrays(pa.array([0, 10]), TEN, safe=False), "indices"),
    "a dictionary's index is negative": (
        lambda: pa.DictionaryArray.from_arrays(pa.array([0, -1], pa.int8()), TEN, safe=False), "indices"),
    "a nested dictionary's index": (
        lambda: pa.StructArray.from_arrays(
            [pa.DictionaryArray.from_arrays(pa.array([200], pa.uint8()), TEN, safe=False)], ["x"]), "indices"),
    "text is not UTF-8": (
        lambda: pa.Array.from_buffers(pa.string(), 1, [None, numbers(0, 2), pa.py_buffer(b"\xff\xfe")]), "UTF-8"),
    "text is cut within a letter": (
        lambda: pa.Array.from_buffers(pa.string(), 2, [None, numbers(0, 1, 2), pa.py_buffer("ü".encode())]), "UTF-8"),
    "a view of a buffer that is not there": (
        lambda: pa.Array.from_buffers(pa.binary_view(), 1, [None, view(13, b"a te", 1, 0), LONG]), "not there"),
    "a view beyond its buffer": (
        lambda: pa.Array.from_buffers(pa.binary_view(), 1, [None, view(13, b"a te", 0, 30), LONG]), "not there"),
    "a view with a negative offset": (
        lambda: pa.Array.from_buffers(pa.binary_view(), 1, [None, view(13, b"a te", 0, -1), LONG]), "negative"),
    "a view with a negative length": (
        lambda: pa.Array.from_buffers(pa.binary_view(), 1, [None, view(-1, b"a te", 0, 0), LONG]), "negative"),
    "a view with another prefix": (
        lambda: pa.Array.from_buffers(pa.string_view(), 1, [None, view(13, b"xxxx", 0, 0), LONG]), "begin"),
    "a view with padding": (
        lambda: pa.Array.from_buffers(pa.string_view(), 1, [None, view(1, b"axxx", 0, 0)]), "padding"),
    "a union of an unknown type": (
        lambda: pa.Array.from_buffers(DENSE, 1, [None, numbers(4, kind="i1"), numbers(0)], children=[TEN]), "union"),
    "a union's offset beyond the child": (
        lambda: pa.Array.from_buffers(DENSE, 1, [None, numbers(5, kind="i1"), numbers(10)], children=[TEN]), "union"),
    "a union's offsets decrease": (
        lambda: pa.Array.from_buffers(DENSE, 2, [None, numbers(5, 5, kind="i1"), numbers(3, 2)], children=[TEN]),
        "decrease"),
    "a union's offset is negative": (
        lambda: pa.Array.from_buffers(DENSE, 1, [None, numbers(5, kind="i1"), numbers(-1)], children=[TEN]), "union"),
    "run ends that decrease": (
        lambda: pa.Array.from_buffers(RUNS, 5, [None], children=[pa.array([3, 2, 9], pa.int32()), TEN]), "grow"),
}  # fmt: skip


def refuses(pub: byref.Publisher, sub: byref.Subscriber, lie: Callable[[], Any], why: str) -> None:
    """The sender hears of it, alone and as a part; nothing is sent, and no memory lost."""
    for wrap in (lambda data: data, lambda data: {"good": b"x" * 1000, "bad": data}):
        with pytest.raises(ValueError, match=f"cannot send this Arrow data.*{why}"):
            pub.send(wrap(lie()))
    assert sub.try_recv() is None
    assert pub.stats()["pool_used"] == 0
    pub.send(TEN)
    assert sub.recv(timeout=20).value.equals(TEN)


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_array_is_refused_by_its_sender(lie: str, pair: Any) -> None:
    refuses(*pair, *LIES[lie])


def test_what_lies_under_a_null_or_outside_of_a_slice_may_be_anything(pair: Any) -> None:
    pub, sub = pair
    second = numbers(0b10, kind="u1")
    both = pa.Array.from_buffers(pa.binary_view(), 2, [second, pa.py_buffer(b"\xff" * 16 + bytes(16))])
    index = pa.DictionaryArray.from_buffers(pa.dictionary(pa.int32(), TEN.type), 2, [second, numbers(-9, 3)], TEN)
    text = pa.Array.from_buffers(pa.string(), 2, [second, numbers(0, 2, 3), pa.py_buffer(b"\xff\xfex")])
    for sent in (both, index, text, text.slice(1), both.slice(1)):
        pub.send(sent)
        found = sub.recv(timeout=20).value
        assert found.to_pylist() == sent.to_pylist()
        assert found.slice(len(found) - 1).validate(full=True) is None


# ---- the structs of the C data interface ----


class CArray(ctypes.Structure):
    """`struct ArrowArray`."""


CArray._fields_ = [
    ("length", ctypes.c_int64), ("null_count", ctypes.c_int64), ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64), ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(CArray))), ("dictionary", ctypes.POINTER(CArray)),
    ("release", ctypes.c_void_p), ("private_data", ctypes.c_void_p),
]  # fmt: skip


class CSchema(ctypes.Structure):
    """`struct ArrowSchema`."""


CSchema._fields_ = [
    ("format", ctypes.c_char_p), ("name", ctypes.c_char_p), ("metadata", ctypes.c_char_p), ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64), ("children", ctypes.POINTER(ctypes.POINTER(CSchema))),
    ("dictionary", ctypes.POINTER(CSchema)), ("release", ctypes.c_void_p), ("private_data", ctypes.c_void_p),
]  # fmt: skip

pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


Release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Altered:
    """An array whose exported structs are changed before anybody gets them, and changed back when released."""

    def __init__(self, array: pa.Array, change: Callable[[CSchema, CArray], Any]) -> None:
        self.array, self.change = array, change
        self.keep: list[Any] = []
        self.released = 0

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        capsules = self.array.__arrow_c_array__()
        schema = CSchema.from_address(pointer_of(capsules[0], b"arrow_schema"))
        array = CArray.from_address(pointer_of(capsules[1], b"arrow_array"))
        for struct in (schema, array):
            self._mend_at_release(struct)
        self.keep.append(self.change(schema, array))
        return capsules

    def _mend_at_release(self, struct: CSchema | CArray) -> None:
        honest, release = bytes(struct), Release(struct.release)

        def mend(address: int) -> None:
            ctypes.memmove(address, honest, len(honest))
            self.released += 1
            release(address)

        self.keep.append(Release(mend))
        struct.release = ctypes.cast(self.keep[-1], ctypes.c_void_p).value


def put(struct: str, name: str, value: Any) -> Callable[[CSchema, CArray], Any]:
    """Changes one field of a struct."""

    def change(schema: CSchema, array: CArray) -> Any:
        setattr(schema if struct == "schema" else array, name, value)
        return value

    return change


def child(number: int, name: str, value: int) -> Callable[[CSchema, CArray], Any]:
    """Changes one field of a child's struct."""
    return lambda schema, array: setattr(array.children[number].contents, name, value)


def negative_offsets(_schema: CSchema, array: CArray) -> Any:
    """Begins a text before its buffer."""
    offsets = (ctypes.c_int32 * 3)(-4, 0, 1)
    others = (ctypes.c_void_p * 3)(array.buffers[0], ctypes.addressof(offsets), array.buffers[2])
    array.buffers = others
    return offsets, others


def without(buffer: int) -> Callable[[CSchema, CArray], Any]:
    """Takes a buffer away."""

    def change(_schema: CSchema, array: CArray) -> Any:
        others = (ctypes.c_void_p * array.n_buffers)(*array.buffers[: array.n_buffers])
        others[buffer] = None
        array.buffers = others
        return others

    return change


def without_child(_schema: CSchema, array: CArray) -> Any:
    """Gives the array a list of children that has none."""
    nothing = (ctypes.POINTER(CArray) * 1)()
    array.children = nothing
    return nothing


LISTS = pa.array([[1, 2], [3]])
WORDS = pa.array(["a", "bc"])
RUN = pa.RunEndEncodedArray.from_arrays(pa.array([2, 5], pa.int32()), pa.array([1, 2]))
STRUCTS = {
    "a negative length": (TEN, put("array", "length", -1), "length or offset of -1"),
    "a negative offset": (TEN, put("array", "offset", -5), "length or offset of -5"),
    "an offset that overflows": (WORDS, put("array", "offset", 2**63 - 1), "shorter|too long|without its buffer"),
    "a length that overflows": (TEN, put("array", "length", 2**62), "shorter|without its buffer"),
    "too few buffers": (TEN, put("array", "n_buffers", 1), "1 buffers"),
    "too many buffers": (WORDS, put("array", "n_buffers", 9), "9 buffers"),
    "a negative number of buffers": (TEN, put("array", "n_buffers", -2), "0 buffers"),
    "no buffers at all": (TEN, put("array", "buffers", None), "2 buffers"),
    "no values": (TEN, without(1), "without its buffer 1"),
    "no offsets": (WORDS, without(1), "without its buffer 1"),
    "no bytes": (WORDS, without(2), "without its buffer 2"),
    "too many children": (TEN, put("array", "n_children", 1), "1 children"),
    "too few children": (LISTS, put("array", "n_children", 0), "0 children"),
    "a missing child": (LISTS, without_child, "missing child"),
    "a child that is too short": (LISTS, child(0, "length", 1), "shorter"),
    "a child of a negative length": (LISTS, child(0, "length", -1), "length or offset of -1"),
    "an offset of a child that overflows": (LISTS, child(0, "offset", 2**63 - 2), "shorter|without its buffer"),
    "runs that end too early": (RUN, put("array", "length", 99), "too early"),
    "more runs than values": (RUN, child(1, "length", 1), "shorter"),
    "negative offsets": (WORDS, negative_offsets, "offsets"),
    "no dictionary": (WORDS.dictionary_encode(), put("array", "dictionary", None), "missing child"),
    "an unknown type": (TEN, put("schema", "format", b"?"), "not known"),
    "a type without a format": (TEN, put("schema", "format", None), "without a format"),
    "a name that is not UTF-8": (TEN, put("schema", "name", b"\xff"), "not UTF-8"),
    "a type with too few children": (LISTS, put("schema", "n_children", 0), "0 children"),
    "a negative number of children": (LISTS, put("schema", "n_children", -1), "negative number"),
    "a map whose entries are no pairs": (LISTS, put("schema", "format", b"+m"), "no pairs"),
    "negative metadata": (TEN, put("schema", "metadata", b"\xff\xff\xff\xff"), "negative lengths"),
    "a dictionary with indices of text": (WORDS.dictionary_encode(), put("schema", "format", b"f"), "dictionary"),
}  # fmt: skip


@pytest.mark.parametrize("lie", STRUCTS)
def test_a_lying_struct_is_refused_by_its_sender(lie: str, pair: Any) -> None:
    array, change, why = STRUCTS[lie]
    made: list[Altered] = []

    def lying() -> Altered:
        made.append(Altered(array, change))
        return made[-1]

    refuses(*pair, lying, why)
    assert [altered.released for altered in made] == [2, 2], "schema and array, once each"


class Capsules:
    """Offers what it is given."""

    def __init__(self, offer: Callable[[], Any]) -> None:
        self.offer = offer

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self.offer()


def test_capsules_that_are_none(pair: Any) -> None:
    pub, sub = pair
    schema, array = TEN.__arrow_c_array__()
    used = Capsules(lambda: (schema, array))
    pub.send(used)
    with pytest.raises(ValueError, match="consumed already"):
        pub.send(used)
    for wrong in (None, (1, 2), (array, schema), (schema,), "ab"):
        with pytest.raises((TypeError, ValueError)):
            pub.send(Capsules(lambda wrong=wrong: wrong))
    assert sub.recv(timeout=20).value.equals(TEN)
    assert sub.try_recv() is None


def test_a_stream_that_fails(pair: Any) -> None:
    pub, sub = pair

    def batches() -> Any:
        yield pa.record_batch([TEN], ["x"])
        raise RuntimeError("no more")

    with pytest.raises(ValueError, match="no more"):
        pub.send(pa.RecordBatchReader.from_batches(pa.schema([("x", TEN.type)]), batches()))
    assert sub.try_recv() is None
    pub.send(TEN)
    assert sub.recv(timeout=20).value.equals(TEN)


# ---- lying peers ----


def number(data: bytes) -> tuple[int, bytes]:
    """A variable-length integer, and what follows it."""
    end = next(index for index, byte in enumerate(data) if byte < 128) + 1
    return sum((byte & 127) << 7 * index for index, byte in enumerate(data[:end])), data[end:]


def recorded(msg: byref.Message) -> tuple[bytes, int, bytes]:
    """An honest message, a list that begins with an array: payload, where its description begins, and attributes."""
    start, payload = msg.value[0].ctypes.data, bytes(msg)
    attributes = ctypes.string_at(start + (len(payload) + 7) // 8 * 8, 64)
    assert attributes[:8] == b"\1\5parts\2"
    at, rest = number(attributes[8:])
    length, rest = number(rest)
    assert at + length == len(payload)
    assert rest[:1] == b"\0"
    return payload, at, attributes[: 64 - len(rest) + 1]


def glossary() -> bytes:
    """What the publishers of this process have explained."""
    return next(
        ctypes.string_at(start, end - start) for start, end, _, name in maps() if "memfd:byref-glossary" in name
    )


FITS = [(b"<i8", [8]), (b"<i8", [2, 4]), (b"|u1", [64]), (b"<i8", [8, 1])]
LYING_ARRAYS: list[tuple[bytes, list[int], str]] = [
    (b"<i8", [9], "72 bytes declared, 64 there"),
    (b"<i8", [7], "56 bytes declared, 64 there"),
    (b"<i8", [0], "0 bytes declared, 64 there"),
    (b"<i8", [2**62, 4], "too large"),
    (b"|u1", [1] * 65, "at most 64 dimensions"),
    (b"|O", [8], "objects"),
    (b'{"names":["a"],"titles":[null],"formats":["|O"],"offsets":[0],"itemsize":8,"aligned":false}', [8], "objects"),
]


def layout(kind: bytes, shape: list[int]) -> bytes:
    """The attributes of an array."""
    return b"\1" + varint(len(kind)) + kind + varint(len(shape)) + b"".join(map(varint, shape)) + b"\0"


def test_arrays_that_lie_are_refused(rendezvous: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    with Stranger(rendezvous, b"") as stranger:
        for kind, shape in FITS:
            stranger.publish(bytes(64), layout(kind, shape))
            assert sub.recv(timeout=20).value.shape == tuple(shape)
        for kind, shape, why in LYING_ARRAYS:
            stranger.publish(bytes(64), layout(kind, shape))
            msg = sub.recv(timeout=20)
            for look in (lambda msg=msg: msg.value, lambda msg=msg: np.asarray(msg), msg.writable):
                with pytest.raises(byref.Error, match=why):
                    look()


def read_all(value: Any) -> None:
    """Reads every byte of a value; fails if it is not what it says."""
    if isinstance(value, dict | list | tuple):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            read_all(each)
    elif isinstance(value, pa.Array | pa.ChunkedArray | pa.RecordBatch | pa.Table):
        value.validate(full=True)
    elif isinstance(value, np.ndarray):
        value.tobytes()
    elif isinstance(value, memoryview):
        bytes(value)


def test_parts_that_are_not_aligned_are_refused(rendezvous: Path, endpoints: Endpoints) -> None:
    pub, own = endpoints.publisher("honest"), endpoints.subscriber("honest")
    pub.wait_for_subscribers(timeout=20)
    pub.send([np.arange(8), b"x" * 100])
    payload, _, attributes = recorded(own.recv(timeout=20))
    sub = endpoints.subscriber()
    with Stranger(rendezvous, b"") as stranger:
        for offset in (0, 64):
            stranger.publish(payload, attributes, offset)
            read_all(sub.recv(timeout=20).value)
        for offset in (1, 8, 32):
            stranger.publish(payload, attributes, offset)
            msg = sub.recv(timeout=20)
            with pytest.raises(byref.Error, match="not aligned"):
                read_all(msg.value)


def honest_values() -> list[Any]:
    """Lists that begin with an array."""
    random = np.random.default_rng(1)
    kinds = [
        pa.int32(), pa.bool_(), pa.string(), pa.large_binary(), pa.string_view(), pa.binary(17), pa.list_(pa.int8()),
        pa.large_list_view(pa.string()), pa.list_(pa.float32(), 2), pa.struct([("a", pa.int8()), ("b", pa.string())]),
        pa.dictionary(pa.int8(), pa.string()), pa.run_end_encoded(pa.int16(), pa.string()),
        pa.sparse_union([pa.field("a", pa.int8()), pa.field("b", pa.string())]), DENSE,
        pa.map_(pa.int32(), pa.string()), pa.null(),
    ]  # fmt: skip
    arrays = [arrow_data.array(random, kind, 20) for kind in kinds]
    batch = pa.record_batch(arrays[:5], [str(index) for index in range(5)])
    first = np.arange(8)
    plain = {"text": "x" * 20, "number": -(2**70), "complex": 1j, "none": None, "bytes": b"y" * 100, 5: (True, [1.5])}
    typed = [np.zeros((2, 3), "f4"), np.array(5, "M8[s]"), np.zeros(3, [("a", "i2"), ("b", "f8")]), np.float32(1)]
    return [[first, array] for array in arrays] + [[first, plain], [first, typed], [first, batch, pa.table(batch)]]


def suffer(line: Line, directory: str, seed: int, count: int, full: bool) -> None:
    """Looks at so many messages of a lying publisher; tells how many were refused, and how many were none the worse.

    With a full glossary messages describe the types of their Arrow data themselves, so the lies are about these, too.
    """
    dice, records = random.Random(seed), []
    with byref.Publisher("honest") as pub, byref.Subscriber("honest") as sub:
        pub.wait_for_subscribers(timeout=30)
        for number in range(17 * 16 if full else 0):
            pub.send(pa.table({}, schema=pa.schema([], metadata={str(number): "x" * (MIB >> number // 17)})))
            sub.recv(timeout=30)
        for value in honest_values():
            pub.send(value)
            records.append(recorded(sub.recv(timeout=30)))
        explained = glossary()
    outcomes = {"refused": 0, "read": 0}
    sub = byref.Subscriber("t")
    with Stranger(Path(directory), explained) as stranger:
        for _ in range(count):
            payload, at, attributes = dice.choice(records)
            lie = bytearray(payload)
            for _ in range(dice.choice([1, 1, 1, 2, 5])):
                start = at if dice.random() < (0.4 if full else 0.8) else 0
                place = dice.randrange(start, len(lie))
                lie[place] = dice.choice([0, 1, 2, 63, 64, 127, 128, 255, lie[place] ^ 1 << dice.randrange(8)])
            if dice.random() < 0.1:
                del lie[dice.randrange(len(lie)) :]
            stranger.publish(bytes(lie), attributes)
            msg = sub.recv(timeout=30)
            try:
                read_all(msg.value)
                outcomes["read"] += 1
            except byref.Error:
                outcomes["refused"] += 1
        for payload, _, attributes in records:
            stranger.publish(payload, attributes)
            read_all(sub.recv(timeout=30).value)
    sub.close()
    line.tell(outcomes)


@pytest.mark.parametrize("full", [False, True])
def test_a_lying_peer_harms_nobody(full: bool, rendezvous: Path, spawn: Spawn) -> None:
    child = spawn(suffer, str(rendezvous), 1, 2000, full)
    outcomes = child.hear(timeout=90)
    child.finish()
    assert min(outcomes.values()) > 100, outcomes
