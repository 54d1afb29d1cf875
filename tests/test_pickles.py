"""Pickles with their buffers beside them: for who trusts the sender, by reference."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import byref
import numpy as np
import pandas
import polars as pl
import pytest

from tests.conftest import Endpoints
from tests.processes import Child, Line, is_in_pool

Spawn = Callable[..., Child]


class Frame:
    """An object with an array, and more."""

    def __init__(self, image: np.ndarray[Any, Any], name: str) -> None:
        self.image, self.name = image, name


def trusting(endpoints: Endpoints, **options: Any) -> tuple[byref.Publisher, byref.Subscriber]:
    """A publisher, and a subscriber that unpickles."""
    return endpoints.pair(allow_pickle=True, **options)


@pytest.mark.parametrize("value", [Frame(np.zeros(1000), "x"), {3, 1}], ids=["buffers beside it", "one piece"])
def test_only_who_says_so_unpickles(value: object, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send_pickle(value)
    msg = sub.recv(timeout=20)
    for look in (lambda: msg.value, msg.writable):
        with pytest.raises(byref.Error, match=r"'t'.*allow_pickle=True"):
            look()
    with pytest.raises(TypeError, match=r"msg\.value"):
        np.asarray(msg)
    assert (msg.nbytes > 8000) == isinstance(value, Frame)
    msg.release()
    pub.send(b"next")
    assert bytes(sub.recv(timeout=20)) == b"next"


def test_arrays_are_views_and_hold_the_lease(endpoints: Endpoints) -> None:
    pub, sub = trusting(endpoints)
    image = np.arange(120_000, dtype="u1").reshape(200, 200, 3)
    sent = {
        "frame": Frame(image, "front"),
        "same": [image, image],
        "turned": np.asfortranarray(image),
        "raw": bytearray(9000),
    }
    pub.send_pickle(sent, headers={"a": 1})
    msg = sub.recv(timeout=20)
    found = msg.value
    assert msg.headers == {"a": 1}
    assert found["frame"].name == "front"
    assert found["same"][0] is found["same"][1]
    for array in (found["frame"].image, found["same"][0], found["turned"]):
        assert (array == image).all()
        assert is_in_pool(array.ctypes.data)
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert found["turned"].flags.f_contiguous
    with pytest.raises(BufferError, match="views"):
        msg.release()
    kept = found["frame"].image[5:7]
    del found, array
    with pytest.raises(BufferError, match="views"):
        msg.release()
    del kept
    msg.release()


def test_private_arrays(endpoints: Endpoints) -> None:
    pub, sub = trusting(endpoints, writable=True)
    other = endpoints.subscriber(allow_pickle=True)
    pub.wait_for_subscribers(2, timeout=20)
    for size in (10, 100_000):
        pub.send_pickle([np.arange(size), "text"])
        msg = sub.recv(timeout=20)
        mine, second = msg.value[0], msg.value[0]
        mine[:] = -1
        assert (second == np.arange(size)).all()
        assert (other.recv(timeout=20).value[0] == np.arange(size)).all()
        del msg
        assert (mine == -1).all()


@pytest.mark.parametrize(
    "thing", [lambda: 0, threading.Lock(), (x for x in ()), sys], ids=["lambda", "lock", "generator", "module"]
)
def test_what_cannot_be_pickled(thing: Any, endpoints: Endpoints) -> None:
    pub, sub = trusting(endpoints)
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for sent in (thing, {"good": np.zeros(9000), "bad": thing}, deep):
        with pytest.raises(TypeError, match=f"cannot pickle an object of type {type(sent).__name__}"):
            pub.send_pickle(sent)
    assert sub.try_recv() is None
    assert pub.stats()["pool_used"] == 0
    pub.send_pickle(5)
    assert sub.recv(timeout=20).value == 5


class Bomb:
    """Fails where it is unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def send_what_others_do_not_know(line: Line) -> None:
    """Sends an object of a class that only this process has, one that fails, and one that is right."""
    here = type("Local", (), {"__module__": "__main__"})
    sys.modules["__main__"].Local = here  # type: ignore[attr-defined]
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=30)
        for sent in (here(), Bomb(), {"right": np.arange(5)}):
            pub.send_pickle(sent)
        pub.flush(timeout=30)
        line.hear()


def test_what_cannot_be_unpickled_here(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber(allow_pickle=True)
    child = spawn(send_what_others_do_not_know)
    for why in ("AttributeError.*Local", "ValueError.*no number"):
        msg = sub.recv(timeout=30)
        with pytest.raises(byref.Error, match=rf"'t'.*cannot be unpickled here: {why}") as failed:
            _ = msg.value
        assert failed.value.__cause__ is not None
        del failed
        msg.release()
    assert (sub.recv(timeout=30).value["right"] == np.arange(5)).all()
    child.tell()
    child.finish()


def test_frames_of_other_libraries(endpoints: Endpoints) -> None:
    pub, sub = trusting(endpoints)
    frame = pandas.DataFrame({"a": np.arange(1000), "b": np.linspace(0, 1, 1000), "c": ["text"] * 1000})
    pub.send_pickle(frame)
    found = sub.recv(timeout=20).value
    pandas.testing.assert_frame_equal(found, frame)
    assert is_in_pool(found["a"].to_numpy().ctypes.data)
    polars = pl.DataFrame({"a": [1, 2, None], "b": ["x", None, "z"]})
    pub.send_pickle({"frame": polars, "series": polars["a"]})
    assert sub.recv(timeout=20).value["frame"].equals(polars)


def test_in_batches_and_queues(endpoints: Endpoints) -> None:
    pub, sub = trusting(endpoints)
    for number in range(5):
        pub.send_pickle({"number": number, "array": np.full(1000, number)})
    batch = sub.recv_batch(5, timeout=20)
    assert [msg.value["number"] for msg in batch] == list(range(5))
    kept = [msg.value["array"] for msg in batch]
    assert all(is_in_pool(array.ctypes.data) for array in kept)
    del batch
    assert [array.sum() for array in kept] == [1000 * number for number in range(5)]
    got: list[Any] = []
    with byref.EventQueue() as queue:
        queue.subscribe("t", lambda msg: got.append(msg.value), allow_pickle=True)
        queue.subscribe("t", lambda msg: got.append(refusal(msg)))
        pub.wait_for_subscribers(3, timeout=20)
        pub.send_pickle({"x": (1, 2)})
        while len(got) < 2:
            with contextlib.suppress(byref.Timeout):
                queue.run(timeout=0.05)
    assert sorted(got, key=str) == ["refused", {"x": (1, 2)}]


def refusal(msg: byref.Message) -> str:
    """What becomes of a message whose receiver does not unpickle."""
    with pytest.raises(byref.Error, match="allow_pickle"):
        _ = msg.value
    return "refused"
