"""`send(..., keep=True)`: a lease on one's own message, with or without subscribers."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest

from tests.payloads import is_payload, payload
from tests.processes import PATIENCE, eventually, forked, maps

PAYLOADS: dict[str, Any] = {
    "nothing": b"",
    "a few bytes": b"few",
    "bytes": payload(1, 300_000).tobytes(),
    "an array": np.arange(6000).reshape(2, 3000),
    "a small array": np.arange(6).reshape(2, 3),
    "a dict": {"frame": np.ones((300, 200)), "name": "front", "list": [1, 2.5, None]},
    "a column": np.asfortranarray(np.arange(5000).reshape(50, 100)),
    "a table": pa.table({"a": np.arange(3000), "b": ["text"] * 3000}),
}


@pytest.fixture
def pub() -> Iterator[byref.Publisher]:
    with byref.Publisher("t", max_memory=8 << 20) as pub:
        yield pub


def plain(value: object) -> object:
    if isinstance(value, memoryview):
        return bytes(value)
    return repr(pa.table(value) if hasattr(value, "__arrow_c_stream__") else value)


@pytest.mark.parametrize("what", PAYLOADS)
def test_it_is_what_a_subscriber_has(what: str, pub: byref.Publisher) -> None:
    with byref.Subscriber("t") as sub:
        pub.wait_for_subscribers(timeout=PATIENCE)
        pub.send(b"before")
        own = pub.send(PAYLOADS[what], {"key": 1.5}, keep=True)
        sub.recv(timeout=PATIENCE)
        theirs = sub.recv(timeout=PATIENCE)
        assert bytes(own) == bytes(theirs)
        assert plain(own.value) == plain(theirs.value)
        for name in ("sequence", "timestamp_ns", "topic", "headers", "nbytes", "shape", "dtype", "publisher"):
            if what not in ("a dict", "a table") or name not in ("shape", "dtype"):
                assert getattr(own, name) == getattr(theirs, name), name
    assert own.sequence == 1
    assert own.publisher.pid == os.getpid()


def test_its_memory_is_its_own_and_cannot_be_written(pub: byref.Publisher) -> None:
    kept = [pub.send(payload(number, 1 << 20), keep=True) for number in range(7)]
    arrays = [message.value for message in kept]
    assert pub.stats()["pool_used"] >= 7 << 20
    with pytest.raises(byref.PoolExhausted):
        pub.send(payload(8, 2 << 20), timeout=0.1)
    assert all(is_payload(array, number, 1 << 20) for number, array in enumerate(arrays))
    assert not arrays[0].flags.writeable
    address = arrays[0].__array_interface__["data"][0]
    assert next(flags for start, end, flags, _ in maps() if start <= address < end).startswith("r--")
    del arrays, kept
    gc.collect()
    for number in range(20):
        pub.send(payload(number, 1 << 20), timeout=PATIENCE)


def test_it_outlives_its_publisher_and_shows_in_a_forked_child(pub: byref.Publisher) -> None:
    message = pub.send(payload(3, 1 << 20), keep=True)

    def is_right(message: byref.Message = message) -> bool:
        return is_payload(np.frombuffer(message, np.uint8), 3, 1 << 20)

    assert forked(is_right)
    pub.close()
    gc.collect()
    assert is_right()
    del is_right
    start = message.value.__array_interface__["data"][0]
    del message
    gc.collect()
    eventually(lambda: not any(first <= start < last for first, last, _, _ in maps()), "it is unmapped")


def test_it_can_be_sent_on_and_copied(pub: byref.Publisher) -> None:
    own = pub.send(np.arange(5000.0), {"n": 1}, keep=True)
    with byref.Publisher("other") as other, byref.Subscriber("other") as sub:
        other.wait_for_subscribers(timeout=PATIENCE)
        other.send(own)
        assert (sub.recv(timeout=PATIENCE).value == np.arange(5000.0)).all()
    private = own.writable()
    private[0] = 7
    assert own.value[0] == 0
    with pytest.raises(ValueError, match="acknowledged"):
        own.ack()


def test_what_is_not_sent_is_not_kept(pub: byref.Publisher) -> None:
    with byref.Subscriber("t", depth=1):
        pub.wait_for_subscribers(timeout=PATIENCE)
        pub.send(b"x")
        for data in (b"y", bytes(100_000)):
            with pytest.raises(byref.Timeout):
                pub.send(data, timeout=0.01, keep=True)
    pub.close()
    with pytest.raises(byref.Closed):
        pub.send(b"x", keep=True)
