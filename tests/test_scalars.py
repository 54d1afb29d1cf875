"""Containers of Python's own scalars: exactly what was sent arrives, and a stranger's lies are refused."""

from __future__ import annotations

import collections
import enum
import random
import re
import resource
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Endpoints, examples
from tests.strangers import Stranger, varint

NAN = struct.unpack("d", struct.pack("Q", 0x7FF8_0000_DEAD_BEEF))[0]
EDGES = [
    edge + step for bits in (7, 8, 15, 16, 31, 32, 63, 64, 127) for edge in (2**bits, -(2**bits)) for step in (-1, 0, 1)
]
INTS = st.one_of(st.integers(-9, 300), st.sampled_from(EDGES), st.integers(), st.integers(-(2**300), 2**300))
FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, NAN, -NAN, 5e-324]))
TEXTS = st.one_of(st.sampled_from(["", "a", "key", "käse", "日本", "\U0001f600", "\0"]), st.text(max_size=12))
SCALARS = st.one_of(st.none(), st.booleans(), INTS, FLOATS, st.complex_numbers(), TEXTS)
KEYS = st.one_of(TEXTS, TEXTS, st.none(), st.booleans(), INTS, st.floats(allow_nan=False))
# Long enough to be packed, and perhaps with something at the end that prevents it.
RUNS = st.tuples(
    st.one_of(
        st.lists(INTS, max_size=40), st.lists(FLOATS, max_size=40), st.lists(st.booleans(), max_size=40),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), st.lists(TEXTS, max_size=40),
    ),
    st.lists(SCALARS, max_size=1),
).map(lambda run: [*run[0], *run[1]])  # fmt: skip


def containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Containers of such parts."""
    lists = st.one_of(st.lists(parts, max_size=5), RUNS)
    dicts = st.dictionaries(KEYS, parts, max_size=5)
    records = st.tuples(
        st.lists(TEXTS, unique=True, max_size=4), st.lists(st.lists(parts, max_size=4), max_size=5)
    ).map(lambda made: [dict(zip(made[0], row, strict=False)) for row in made[1]])
    return st.one_of(lists, lists.map(tuple), dicts, records)


VALUES = containers(st.recursive(SCALARS, containers, max_leaves=30))


def exactly(value: Any) -> Any:
    """What two values have in common only if they are the same, type for type and bit for bit."""
    if isinstance(value, dict):
        return dict, [(exactly(key), exactly(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [exactly(item) for item in value]
    if isinstance(value, float):
        return type(value), struct.pack("d", value)
    if isinstance(value, complex):
        return type(value), struct.pack("dd", value.real, value.imag)
    if isinstance(value, memoryview | np.ndarray):
        return type(value), bytes(value)
    return type(value), value


@examples(400)
@given(sent=VALUES)
def test_exactly_what_was_sent_arrives(sent: Any, pair: Any) -> None:
    pub, sub = pair
    pub.send(sent)
    assert exactly(sub.recv(timeout=20).value) == exactly(sent)


@examples(60)
@given(sent=VALUES, other=VALUES)
def test_inside_of_other_messages(sent: Any, other: Any, pair: Any) -> None:
    pub, sub = pair
    pub.send(sent)
    msg = sub.recv(timeout=20)
    pub.send(msg)
    pub.send([other, msg, {"again": (msg, other)}], headers={"a": 1})
    assert exactly(sub.recv(timeout=20).value) == exactly(sent)
    nested = sub.recv(timeout=20)
    expected = [other, sent, {"again": (sent, other)}]
    assert exactly(nested.value) == exactly(expected)
    pub.send((nested, 1))
    assert exactly(sub.recv(timeout=20).value) == exactly((expected, 1))


@pytest.mark.parametrize("writable", [False, True])
def test_large_ones_with_and_without_arrays(writable: bool, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(writable=writable)
    dice = random.Random(1)
    sent: list[Any] = [
        [dice.randrange(-(2**40), 2**40) for _ in range(50_000)],
        [dice.random() for _ in range(50_000)],
        tuple(f"item {number}" for number in range(20_000)),
        ["red", "green", "blue"] * 10_000,
        [{"id": number, "name": f"n{number}", "x": number / 2, "on": number > 9, 5: None} for number in range(3000)],
        {f"key {number}": number for number in range(5000)},
    ]  # fmt: skip
    for value in [*sent, sent]:
        for mixed in (value, [value, np.arange(5), b"bytes"], {"a": np.arange(5), "v": value}):
            pub.send(mixed, headers={"h": 1})
            msg = sub.recv(timeout=20)
            mixed = {**mixed} if isinstance(mixed, dict) else mixed
            found = msg.value
            if mixed is not value and isinstance(mixed, list):
                assert bytes(found[2]) == b"bytes"
                found, mixed = found[:2], mixed[:2]
            assert exactly(found) == exactly(mixed)
            assert exactly(msg.writable())[1] == exactly(msg.value)[1]
            assert msg.headers == {"h": 1}


def test_others_among_them_keep_their_places(pair: Any) -> None:
    pub, sub = pair
    day = np.datetime64("2020-01-01")
    sent = {
        "a": [1, np.float64(0.5), 2], np.int8(5): {day: [b"x"], "k": day}, "b": ((), [b"y", "t", [np.str_("u")]]),
        "e": np.arange(3), None: [{}, {"f": b"z"}],
    }  # fmt: skip
    pub.send(sent)
    found = sub.recv(timeout=20).value
    assert [type(key) for key in found] == [str, np.int8, str, str, type(None)]
    assert [type(item) for item in found["a"]] == [int, np.float64, int]
    assert found["a"] == [1, 0.5, 2]
    assert list(found[5]) == [day, "k"]
    assert bytes(found[5][day][0]) == b"x"
    assert found[5]["k"] == day
    assert found["b"][0] == ()
    assert bytes(found["b"][1][0]) == b"y"
    assert type(found["b"][1][2][0]) is np.str_
    assert found["e"].tolist() == [0, 1, 2]
    assert found[None][0] == {}
    assert bytes(found[None][1]["f"]) == b"z"


class Text(str):
    """Text of another type."""


class Level(enum.IntEnum):
    """An int of another type."""

    HIGH = 1


class Loud(int):
    """An int that prints as it likes."""

    def __format__(self, spec: str) -> str:
        return "loud"


POINT = collections.namedtuple("POINT", "x y")
SUBCLASSES = [
    Text("t"), Level.HIGH, Loud(2**90), POINT(1, 2), collections.OrderedDict(a=1), collections.defaultdict(int, a=1),
    type("Real", (float,), {})(0.5), type("Pair", (complex,), {})(1j), type("Numbers", (list,), {})([1]),
]  # fmt: skip


@pytest.mark.parametrize("sent", SUBCLASSES, ids=lambda sent: type(sent).__name__)
def test_subclasses_are_never_packed(sent: Any, pair: Any) -> None:
    pub, sub = pair
    for alike in ([], [1] * 3, [2**90] * 3, [0.5] * 3, [1j] * 3, [True] * 3, ["t"] * 3):
        place = re.escape(f"[{len(alike)}]")
        for whole in ([*alike, sent], (*alike, sent), {"k": [*alike, sent, 1]}):
            with pytest.raises(TypeError, match=rf"topic 't', at .*{place}: cannot send .*; send "):
                pub.send(whole)
    if isinstance(sent, str | int | float | complex | tuple):
        with pytest.raises(TypeError, match=r"topic 't', at \[0\]\['in'\]: .*key of type"):
            pub.send([{"in": {"a": 1, sent: 2}}])
    assert sub.try_recv() is None


def test_more_than_a_message_may_have(pair: Any) -> None:
    pub, sub = pair
    some = {complex(number, 1): 1j for number in range(100_000)}  # 34 bytes each.
    with pytest.raises(ValueError, match=r"topic 't'.*more than 1024 MiB of scalars in one message"):
        pub.send([some] * 400)
    assert sub.try_recv() is None


def test_without_memory_it_is_not_the_sender(pair: Any) -> None:
    testcapi = pytest.importorskip("_testcapi")
    pub, sub = pair
    pub.send({f"key {number}": f"text {number}" for number in range(40)})
    msg = sub.recv(timeout=20)
    failed = 0
    for start in range(1, 1000):
        value = None
        testcapi.set_nomemory(start, start + 1)
        try:
            value = msg.value
        except MemoryError:
            failed += 1
        finally:
            testcapi.remove_mem_hooks()
        if value is not None:
            break
    assert failed > 3


def in_lists(depth: int, value: Any) -> Any:
    """So many lists around a value."""
    for _ in range(depth):
        value = [value]
    return value


PLACES = [
    ([1, object()], "[1]"),
    ({"a": [1.0, 2.0], "b": [[1, 2], {"c d": {5: (None, object())}}]}, "['b'][1]['c d'][5][1]"),
    ([b"x", {True: object()}], "[1][True]"),
    ([{}, [], (), "a", "a", Text("t")], "[5]"),
    ([{}, {1: 2, Text("k"): 3}], "[1]"),
    ({"k": ["\ud800"]}, "['k'][0]"),
    ([1, {"\ud800": 1}], "[1]"),
    ({2**70: object()}, "[0x400000000000000000]"),
    ([[2**63, 1j], [object()]], "[1][0]"),
    ({"x" * 99: object()}, f"['{'x' * 39}...]"),
    ([[object()]], "[0][0]"),
    ([[[], [1, object()]]], "[0][1][1]"),
    ([b"x", [b"y", [b"z", object()]]], "[1][1][1]"),
    ({"a": {np.int64(3): object()}}, "['a'][3]"),
    ([{np.int8(7): 1, np.int8(8): {"s": [b"x", object()]}}], "[0][8]['s'][1]"),
    ([b"x", {np.int8(7): [[1], ["\ud800"]]}, 5], "[1][7][1][0]"),
    ([{np.int8(7): {"in": [1, object()]}}, object()], "[0][7]['in'][1]"),
    ([{np.int8(7): {"in": [1, b"x"]}, 8: (1,)}, object()], "[1]"),
    ({np.int8(7): {np.int8(8): 1, Text("k"): 3}}, "[7]"),
    ({"it's": [0.5, np.zeros(3, [("o", "O")])]}, r"['it\'s'][1]"),
    (["same", {"same": ["same", {"same": object()}]}], "[1]['same'][1]['same']"),
    ([[str(number) for number in range(300)], {"299": object()}], "[1]['299']"),
    ([[number * 1000 for number in range(300)], [True] * 200, [0.5] * 200, object()], "[3]"),
    (in_lists(20, object()), "[0][0][0][0][0][0]...[0][0][0]"),
    ([b"x", in_lists(64, 1)], "[1][0][0][0][0][0]...[0][0][0]"),
]


@pytest.mark.parametrize(("sent", "place"), PLACES)
def test_refusals_say_the_place(sent: Any, place: str, pair: Any) -> None:
    pub, sub = pair
    with pytest.raises((TypeError, ValueError), match=re.escape(f"topic 't', at {place}") + r"(:|$)"):
        pub.send(sent)
    assert sub.try_recv() is None


def test_strings_that_are_one_object_travel_once(pair: Any) -> None:
    pub, sub = pair
    long = "x" * 10_000
    pub.send([long] * 1000)
    msg = sub.recv(timeout=20)
    assert msg.nbytes < 20_000
    assert msg.value == [long] * 1000
    names = [f"name {number}" for number in range(700)]
    sent = [names[number * 37 % 700] for number in range(5000)]
    pub.send(sent)
    assert sub.recv(timeout=20).value == sent


def nested(depth: int, value: Any = 1) -> Any:
    """So many lists around a value."""
    for number in range(depth):
        value = [value] if number % 2 else {"in": value}
    return value


def test_depth(pair: Any) -> None:
    pub, sub = pair
    for depth in (63, 64):
        for leaf in (1, [], b"x"):
            pub.send(nested(depth, leaf))
            found = sub.recv(timeout=20).value
            for _ in range(depth):
                found = found["in"] if isinstance(found, dict) else found[0]
            assert found == leaf
    for leaf in (1, [], {}, (), b"x", [1]):
        for deep in (nested(65, leaf), nested(60, nested(5, leaf)), [b"x", nested(64, leaf)]):
            with pytest.raises(ValueError, match="nested deeper than 64"):
                pub.send(deep)
    assert sub.try_recv() is None


def test_containers_that_other_threads_change(pair: Any) -> None:
    pub, sub = pair
    numbers: list[Any] = list(range(1000))
    table: dict[Any, Any] = {str(number): number for number in range(1000)}
    over = threading.Event()

    def change() -> None:
        step = 0
        while not over.is_set():
            step += 1
            numbers.append(step)
            del numbers[: step % 3]
            table[str(step % 1000)] = str(step)
            table.pop(str((step + 500) % 1000), None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(60):
            pub.send({"numbers": numbers, "table": table, "end": "end"})
            found = sub.recv(timeout=20).value
            assert found["end"] == "end"
            assert all(type(number) is int for number in found["numbers"])
            assert all(type(key) is str for key in found["table"])
    finally:
        over.set()
        thread.join()


# ---- strangers ----

PACKED = b"\1\5parts\0\0"
MIB = 1 << 20


def refused(sub: byref.Subscriber, why: str) -> None:
    """The next message has no value, in any way of asking."""
    msg = sub.recv(timeout=20)
    for look in (lambda: msg.value, msg.writable):
        with pytest.raises(byref.Error, match=why):
            look()


LIES = [
    (b"", "too early"), (b"\0", "unknown kind"), (b"\x63", "unknown kind"), (b"\1\1", "more than one value"),
    (b"\x0e\2\1", "too early"), (b"\x0c\1\xff", "not UTF-8"), (b"\x0c\3\xed\xa0\x80", "not UTF-8"),
    (b"\x0d\0", "never told"), (b"\x09\1-", "integer that is none"), (b"\x09\4 0x1", "integer that is none"),
    (b"\x10\1\x0e\0\1", "unknown kind"), (b"\x0e\1\0", "others than announced"), (b"\x0e\1" * 65 + b"\1", "too deep"),
    (b"\x0e" + varint(2**20) + b"\x0e\0" * 2**18, "too early"), (b"\x11\7" + varint(2**62) + b"\0", "too early"),
    (b"\x0e" + b"\xff" * 9 + b"\1", "63 bits"),
]  # fmt: skip


def test_streams_that_lie_are_refused(rendezvous: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    with Stranger(rendezvous, b"") as stranger:
        stranger.publish(b"\x0e\2\x0c\1a\x0d\0", PACKED)
        assert sub.recv(timeout=20).value == ["a", "a"]
        for lie, why in LIES:
            stranger.publish(lie, PACKED)
            refused(sub, why)
        stranger.publish(b"\x0e" + varint(2**18) + b"\x0e\0" * 2**18, PACKED)
        assert len(sub.recv(timeout=20).value) == 2**18


def described(stream: bytes, others: int, rest: bytes = b"", count: int = 1) -> tuple[bytes, bytes]:
    """Payload and attributes of a message of `count` tokens: a packed value, then `rest`."""
    tokens = varint(count) + b"\4" + varint(0) + varint(len(stream)) + varint(others) + rest
    at = (len(stream) + 63) // 64 * 64
    return stream.ljust(at, b"\0") + tokens, b"\1\5parts\2" + varint(at) + varint(len(tokens)) + b"\0"


# A token for no bytes.
NONE = b"\0\0\0"
OTHERS = [
    (described(b"\x0e\1\0", 0), "others than announced"),
    (described(b"\x0e\1\1", 1, NONE, 2), "others than announced"),
    (described(b"\x0e\2\0\0", 1, NONE, 2), "others than announced"),
    (described(b"\x0e\1\0", 2, NONE, 2), "fewer parts"),
    (described(b"\0", 1, NONE, 2), "unknown kind"),
    # One stream in another, deeper than any honest value.
    (described(b"\x0e\1\0", 1, b"\4\0\3\1" * 99 + NONE, 101), "overlap|too deep"),
    # An array is no key.
    (described(b"\x10\1\0\1", 1, b"\1\3|u1\1\0\0\0\0", 2), "key that cannot be one"),
]


def test_descriptions_that_lie_are_refused(rendezvous: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    with Stranger(rendezvous, b"") as stranger:
        stranger.publish(*described(b"\x0e\2\0\1", 1, NONE, 2))
        assert sub.recv(timeout=20).value == [b"", None]
        for lie, why in OTHERS:
            stranger.publish(*lie)
            refused(sub, why)


@pytest.mark.parametrize("lists", [1, 7])
def test_streams_in_streams_are_no_deeper_than_containers(lists: int, rendezvous: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    with Stranger(rendezvous, b"") as stranger:
        for depth, is_fine in ((64 // lists, True), (64 // lists + 1, False), (63, lists == 1), (5000, False)):
            stream = b"\x0e\1" * lists + b"\0"
            streams = stream.ljust(64, b"\0") * depth
            tokens = b"".join(b"\4" + varint(64 * index) + varint(len(stream)) + b"\1" for index in range(depth))
            tokens = varint(depth + 1) + tokens + NONE
            attributes = b"\1\5parts\2" + varint(len(streams)) + varint(len(tokens)) + b"\0"
            stranger.publish(streams + tokens, attributes)
            if is_fine:
                sub.recv(timeout=20).value  # noqa: B018
            else:
                refused(sub, "too deep")


@pytest.mark.parametrize(
    "key",
    [lambda number: number * (2**61 - 1), lambda number: complex(-1000003 * number, number)],
    ids=["int", "complex"],
)
def test_keys_that_share_a_hash(key: Callable[[int], Any], endpoints: Endpoints) -> None:
    """Python compares each of them with all the others: some megabytes of them would stop a receiver for an hour."""
    assert len({hash(key(number)) for number in range(1, 100)}) == 1
    pub, sub = endpoints.pair()
    pub.send({key(number): None for number in range(1, 600)})
    with pytest.raises(byref.Error, match="too many keys of one hash"):
        sub.recv(timeout=20).value  # noqa: B018
    for several in (
        {key(number): number for number in range(1, 200)},
        {complex(number, 0.5): number for number in range(2000)} | {number / 7: None for number in range(2000)},
        {number - 1000: None for number in range(2000)} | {2**70 + number: None for number in range(2000)},
        [{key(number): number for number in range(20)}] * 100,
    ):
        pub.send(several)
        assert sub.recv(timeout=20).value == several


def test_lies_take_no_more_memory_than_they_are_long(rendezvous: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Stranger(rendezvous, b"") as stranger:
        for kind in (b"\x0e", b"\x0f", b"\x10", b"\x11\x07", b"\x12\x04", b"\x0c", b"\x09"):
            for length in (2**28, 2**31, 2**40, 2**62):
                stranger.publish(kind + varint(length) + b"\1" * 1000, PACKED)
                msg = sub.recv(timeout=20)
                with pytest.raises(byref.Error):
                    msg.value  # noqa: B018
                stranger.publish((b"\x0e" + varint(length)) * 60 + b"\1" * 1000, PACKED)
                with pytest.raises(byref.Error):
                    sub.recv(timeout=20).value  # noqa: B018
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_random_lies(rendezvous: Path, endpoints: Endpoints) -> None:
    pub, own = endpoints.publisher("honest"), endpoints.subscriber("honest")
    pub.wait_for_subscribers(timeout=20)
    honest = []
    for value in (
        [{"id": 1, "name": "a", "x": 0.5, "on": True, "note": None}, {"id": 2, "name": "a", "x": 1.5, "on": 2**70}],
        [[1, 2, 300], (1.5, 2.5), [True, False], ["a", "b", "ab" * 30], 1j, 2**63, -(2**90)],
    ):
        pub.send(value)
        honest.append(bytes(own.recv(timeout=20)))
    dice, sub = random.Random(7), endpoints.subscriber()
    outcomes = collections.Counter[str]()
    with Stranger(rendezvous, b"") as stranger:
        for _ in range(3000):
            lie = bytearray(dice.choice(honest))
            for _ in range(dice.choice([1, 1, 2, 5])):
                place = dice.randrange(len(lie))
                lie[place] = dice.choice([*range(19), 64, 127, 128, 255, lie[place] ^ 1 << dice.randrange(8)])
            if dice.random() < 0.1:
                del lie[dice.randrange(len(lie)) :]
            stranger.publish(bytes(lie), PACKED)
            msg = sub.recv(timeout=20)
            try:
                value = msg.value
            except byref.Error:
                outcomes["refused"] += 1
                continue
            assert len(repr(value)) > 0
            outcomes["read"] += 1
    assert min(outcomes["refused"], outcomes["read"]) > 100, outcomes
