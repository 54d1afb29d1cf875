"""What was received can be sent on, in whatever form, and costs one copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest

from tests.arrow_data import assert_by_reference
from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line

Spawn = Callable[..., Child]

COUNT = 10_000


def relayed(endpoints: Endpoints, first: Any, on: Callable[[byref.Message], Any], pickled: bool = False) -> Any:
    """What arrives when `on` of the message that `first` becomes is sent on; one copy was made of it."""
    pub, sub = endpoints.pair()
    there, here = endpoints.publisher("on"), endpoints.subscriber("on", allow_pickle=True)
    there.wait_for_subscribers(timeout=20)
    pub.send(first)
    msg = sub.recv(timeout=20)
    thing = on(msg)
    before = byref.copied_bytes()
    (there.send_pickle if pickled else there.send)(thing)
    second = here.recv(timeout=20)
    value = second.value
    after = byref.copied_bytes()
    assert after.pop("send") - before.pop("send") == second.nbytes
    assert after == before
    assert there.stats()["copied_bytes"] == second.nbytes
    # The first memory is not needed any more, and is used again.
    del msg, thing
    for seed in range(3):
        pub.send(payload(seed, 200_000))
        assert is_payload(sub.recv(timeout=20), seed, 200_000)
    return value


def test_bytes_and_arrays(endpoints: Endpoints) -> None:
    data = payload(7, 50_000)
    assert is_payload(relayed(endpoints, data, lambda msg: msg), 7, 50_000)
    endpoints.close()
    assert bytes(relayed(endpoints, data, lambda msg: memoryview(msg)[100:900:2])) == bytes(data[100:900:2])


IMAGE = np.arange(60_000, dtype="f4").reshape(100, 200, 3)
FORMS: dict[str, Callable[[byref.Message], Any]] = {
    "message": lambda msg: msg,
    "array": np.asarray,
    "value": lambda msg: msg.value,
    "private": lambda msg: msg.writable(),
}


@pytest.mark.parametrize("form", FORMS)
def test_arrays(form: str, endpoints: Endpoints) -> None:
    found = relayed(endpoints, IMAGE, FORMS[form])
    assert found.dtype == IMAGE.dtype
    assert (found == IMAGE).all()


@pytest.mark.parametrize("cut", [np.s_[10:20], np.s_[::-1, ::2], np.s_[..., 1], np.s_[3:5, :, 0:1]], ids=str)
def test_slices_of_arrays(cut: Any, endpoints: Endpoints) -> None:
    assert (relayed(endpoints, IMAGE, lambda msg: msg.value[cut]) == IMAGE[cut]).all()


BATCH = pa.record_batch({"a": range(1000), "b": [str(number) * (number % 5) for number in range(1000)]})


@pytest.mark.parametrize("cut", [slice(None), slice(3, 20), slice(990, 1000), slice(0, 0)], ids=str)
def test_arrow_data(cut: slice, endpoints: Endpoints) -> None:
    found = relayed(endpoints, BATCH, lambda msg: msg if cut == slice(None) else msg.value[cut])
    assert found.equals(BATCH[cut])
    assert_by_reference(found)


def test_a_column_of_a_batch(endpoints: Endpoints) -> None:
    found = relayed(endpoints, BATCH, lambda msg: {"column": msg.value["b"][5:9], "whole": msg})
    assert found["column"].to_pylist() == BATCH["b"][5:9].to_pylist()
    assert found["whole"].equals(BATCH)


def test_parts(endpoints: Endpoints) -> None:
    first = {"image": IMAGE, "batch": BATCH, "pose": (1.5, [None, "x"]), "raw": b"y" * 500}
    found = relayed(
        endpoints, first, lambda msg: [msg, msg.value, {"cut": msg.value["image"][:, 5]}, msg.value["raw"][9:]]
    )
    for each in found[:2]:
        assert (each["image"] == IMAGE).all()
        assert each["batch"].equals(BATCH)
        assert each["pose"] == (1.5, [None, "x"])
        assert bytes(each["raw"]) == b"y" * 500
    assert (found[2]["cut"] == IMAGE[:, 5]).all()
    assert bytes(found[3]) == b"y" * 491


def test_pickles_of_views(endpoints: Endpoints) -> None:
    found = relayed(endpoints, IMAGE, lambda msg: {"view": msg.value, "cut": msg.value[5:9]}, pickled=True)
    assert (found["view"] == IMAGE).all()
    assert (found["cut"] == IMAGE[5:9]).all()


def test_a_pickle_goes_on_without_being_unpickled(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    there, here = endpoints.publisher("on"), endpoints.subscriber("on", allow_pickle=True)
    there.wait_for_subscribers(timeout=20)
    pub.send_pickle({"image": IMAGE, "set": {1, 2}})
    msg = sub.recv(timeout=20)
    there.send(msg)
    there.send([msg, "more"])
    alone, part = (here.recv(timeout=20).value for _ in range(2))
    assert part[1] == "more"
    for found in (alone, part[0]):
        assert (found["image"] == IMAGE).all()
        assert found["set"] == {1, 2}


# ---- three processes ----


def made(kind: str, seed: int) -> Any:
    """The value that belongs to a seed."""
    data = payload(seed, 200 + seed % 3 * 704)
    if kind == "bytes":
        return data.tobytes()
    numbers = data.view(np.uint64)[:25]
    if kind == "array":
        return numbers.reshape(5, 5)
    if kind == "arrow":
        return pa.record_batch({"number": numbers, "text": [str(seed)] * 25})
    return {"numbers": numbers, "seed": seed, "more": [data.tobytes(), pa.array([seed])]}


def is_right(value: Any, kind: str, seed: int) -> bool:
    """Whether it is that value."""
    sent = made(kind, seed)
    if kind == "bytes":
        return bytes(value) == sent
    if kind == "array":
        return bool((value == sent).all())
    if kind == "arrow":
        return bool(value.equals(sent))
    same = (value["numbers"] == sent["numbers"]).all() and value["seed"] == seed
    return bool(same and bytes(value["more"][0]) == sent["more"][0] and value["more"][1].to_pylist() == [seed])


def source(line: Line, kind: str) -> None:
    """Sends as fast as it can."""
    with byref.Publisher("first") as pub:
        pub.wait_for_subscribers(timeout=30)
        for seed in range(COUNT):
            pub.send(made(kind, seed))
    line.tell("sent")
    line.hear()


def relay(line: Line) -> None:
    """Sends on what it gets, messages and values in turns."""
    with byref.Subscriber("first") as sub, byref.Publisher("second") as pub:
        pub.wait_for_subscribers(timeout=30)
        line.tell("ready")
        for number in range(COUNT):
            msg = sub.recv(timeout=40)
            pub.send(msg if number % 2 else msg.value)
    line.hear()


@pytest.mark.parametrize("kind", ["bytes", "array", "arrow", "parts"])
def test_a_relay_with_a_slow_last_stage(kind: str, spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("second")
    middle = spawn(relay)
    assert middle.hear() == "ready"
    first = spawn(source, kind)
    for seed in range(COUNT):
        assert is_right(sub.recv(timeout=40).value, kind, seed), seed
        if seed % 1000 == 0:
            time.sleep(0.05)
    assert sub.lost == 0
    for child in (first, middle):
        child.tell()
        child.finish()
