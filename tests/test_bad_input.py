"""Every bad input gives the named error, at once, and changes nothing."""

import pickle
import threading
from collections.abc import Callable
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.processes import eventually

TOPICS = {
    "empty": "", "too long": "x" * 1025, "too long in bytes": "ü" * 513, "NUL": "a\0b", "one wildcard": "a/*",
    "wildcards": "a/**", "wildcard inside": "a*b", "empty level": "a//b", "leading slash": "/a", "trailing slash": "a/",
}  # fmt: skip


@pytest.mark.parametrize("topic", TOPICS.values(), ids=TOPICS)
def test_topics(topic: str, rendezvous: Any) -> None:
    with pytest.raises(byref.InvalidTopic) as refused:
        byref.Publisher(topic)
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, byref.Error)
    assert list(rendezvous.iterdir()) == []


@pytest.mark.parametrize("topic", [None, 5, b"bytes", ["t"]])
def test_topics_of_another_type(topic: Any) -> None:
    for make in (byref.Publisher, byref.Subscriber):
        with pytest.raises(TypeError):
            make(topic)


OPTIONS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (byref.Publisher, {"max_memory": 0}),
    (byref.Publisher, {"max_memory": -1}),
    (byref.Publisher, {"max_memory": 2**64}),
    (byref.Publisher, {"max_memory": 2**63}),
    (byref.Publisher, {"history": -1}),
    (byref.Publisher, {"history": 2**63}),
    (byref.Publisher, {"name": "x" * 1025}),
    (byref.Subscriber, {"depth": 0}),
    (byref.Subscriber, {"depth": -1}),
    (byref.Subscriber, {"depth": 2**64}),
    (byref.Subscriber, {"history": -1}),
    (byref.Subscriber, {"policy": "sometimes"}),
    (byref.Subscriber, {"policy": ""}),
    (byref.Subscriber, {"name": "x" * 1025}),
]


@pytest.mark.parametrize(("make", "options"), OPTIONS)
def test_options(make: Callable[..., Any], options: dict[str, Any], rendezvous: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|can be|at most"):
        make("t", **options)
    assert list(rendezvous.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "options"),
    [(byref.Publisher, {"max_memory": "1"}), (byref.Publisher, {"max_memory": 1.5}), (byref.Publisher, {"colour": 1}),
     (byref.Subscriber, {"depth": "1"}), (byref.Subscriber, {"policy": 3}), (byref.Subscriber, {"name": b"x"})],
)  # fmt: skip
def test_options_of_another_type(make: Callable[..., Any], options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        make("t", **options)


def nothing_was_sent(pub: byref.Publisher, sub: byref.Subscriber, lent: bool = False) -> None:
    """The next message is the first, and no memory is taken but by a loan that is still there."""
    assert sub.try_recv() is None
    assert pub.stats()["sent"] == 0
    assert lent or pub.stats()["pool_used"] == 0
    assert pub.send(b"ok", timeout=30) == 0
    assert bytes(sub.recv(timeout=30)) == b"ok"
    assert sub.try_recv() is None


class Stubborn:
    """Claims to be an array and is none."""

    def __array__(self, *_: object, **__: object) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "data", [None, 5, 1.5, "text", [object()], {"a": {1, 2}}, object(), int, range(3), Stubborn()], ids=repr
)
def test_objects_that_cannot_be_sent(data: Any, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    with pytest.raises(TypeError) as refused:
        pub.send(data)
    assert "topic 't'" in str(refused.value)
    if data is int or type(data) is object:
        for accepted in (
            "bytes",
            "bytearray",
            "memoryview",
            "buffer protocol",
            "NumPy",
            "Arrow",
            "dict",
            "send_pickle",
        ):
            assert accepted in str(refused.value)
    else:
        assert "; send " in str(refused.value)
    culprit = next(iter(data.values() if isinstance(data, dict) else data)) if isinstance(data, dict | list) else data
    assert type(culprit).__name__ in str(refused.value)
    nothing_was_sent(pub, sub)


def test_masked_arrays_cannot_be_sent(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    masked = np.ma.masked_array([1, 2], mask=[True, False])
    for data in (masked, {"a": masked}):
        with pytest.raises(TypeError, match="mask"):
            pub.send(data)
    nothing_was_sent(pub, sub)
    pub.send({"data": masked.data, "mask": masked.mask})
    assert sub.recv(timeout=30).value["mask"].tolist() == [True, False]


@pytest.mark.parametrize(
    "array", [np.array([{}], object), np.empty((2, 0), object), np.zeros(3, [("n", "i4"), ("o", "O")])]
)
def test_arrays_of_objects_cannot_be_sent(array: Any, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    with pytest.raises(TypeError, match="pointers"):
        pub.send(array)
    with pytest.raises(TypeError, match="pointers"):
        pub.loan(3, array.dtype)
    nothing_was_sent(pub, sub)


HEADERS: list[tuple[Any, type[Exception]]] = [
    ("text", TypeError), ([("a", 1)], TypeError), ({1: "a"}, TypeError), ({b"a": "a"}, TypeError),
    ({"a": None}, TypeError),
    ({"a": [1]}, TypeError), ({"a": {}}, TypeError), ({"a": 2**63}, ValueError), ({"a": -(2**63) - 1}, ValueError),
    ({"a": "\ud800"}, ValueError),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "error"), HEADERS)
def test_headers(headers: Any, error: type[Exception], endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for data in (b"small", bytes(10_000)):
        with pytest.raises(error):
            pub.send(data, headers=headers)
    if isinstance(headers, dict):
        loan = pub.loan(100)
        loan.headers.update(headers)
        with pytest.raises(error):
            loan.send()
        loan.discard()
    nothing_was_sent(pub, sub, lent=isinstance(headers, dict))


def test_a_payload_larger_than_the_pool(endpoints: Endpoints) -> None:
    pub = endpoints.publisher(max_memory=1 << 20)
    sub = endpoints.subscriber()
    pub.wait_for_subscribers(timeout=30)
    size = (1 << 20) + 4096
    calls: list[Callable[[], object]] = [
        lambda: pub.send(bytes(size)),
        lambda: pub.send(np.zeros((2, size), np.uint8)[:, ::2]),
        lambda: pub.loan(size),
        lambda: pub.loan((1 << 40,), "f8"),
    ]
    for call in calls:
        with pytest.raises(byref.PoolExhausted) as refused:
            call()
        assert isinstance(refused.value, MemoryError)
        assert f"max_memory={1 << 20}" in str(refused.value)
    with pytest.raises(byref.PoolExhausted, match=str(size)):
        pub.send(bytes(size))
    nothing_was_sent(pub, sub)


@pytest.mark.parametrize("call", ["send", "send_many"])
def test_an_array_that_changes_its_size_meanwhile(call: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=1 << 20)
    pub.send(bytes(900_000))
    array = np.zeros((300, 400), order="F")
    problems: list[Exception] = []

    def send() -> None:
        try:
            getattr(pub, call)(array, timeout=20)
        except Exception as problem:
            problems.append(problem)

    sender = threading.Thread(target=send)
    sender.start()
    eventually(lambda: pub.stats()["waits"], "it waits for memory")
    array.resize((3, 4), refcheck=False)
    sub.recv(timeout=30).release()
    sender.join(20)
    assert [str(problem) for problem in problems] == ["the array changed its size while it was being sent"]
    assert sub.try_recv() is None
    assert pub.send(bytes(900_000), timeout=30) == 1, "its memory is free again"


SHAPES: list[Any] = [
    -1, (-1,), (3, -3), 2**63, (2**32, 2**32), (2**62, 4), (2**63,), (2**64,), 2**100, (0, 2**62, 2**62), (1,) * 65,
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [None, "f8"])
def test_impossible_loans(shape: Any, dtype: Any, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    with pytest.raises(ValueError):  # noqa: PT011 (the texts are several)
        pub.loan(shape, dtype)
    nothing_was_sent(pub, sub)


@pytest.mark.parametrize(
    ("shape", "dtype"), [("3", None), (1.5, None), ((1.5,), None), (None, None), (3, "nonsense"), (3, 5)]
)
def test_loans_of_another_type(shape: Any, dtype: Any, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    with pytest.raises(TypeError):
        pub.loan(shape, dtype)
    nothing_was_sent(pub, sub)


@pytest.mark.parametrize(
    ("shape", "rows"), [(10, 11), (10, -1), ((3, 4), 4), ((3, 4), -1), ((), 0), ((5, 0), 6), (10, 2**62)]
)
def test_impossible_truncations(shape: Any, rows: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    loan = pub.loan(shape)
    with pytest.raises(ValueError, match="truncate"):
        loan.truncate(rows)
    assert loan.send(timeout=30) == 0
    assert sub.recv(timeout=30).shape == ((shape,) if isinstance(shape, int) else shape)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("-inf")])
def test_negative_timeouts(timeout: float, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    loan = pub.loan(100)
    calls: list[Callable[[], object]] = [
        lambda: pub.send(b"x", timeout=timeout),
        lambda: pub.send(bytes(10_000), timeout=timeout),
        lambda: pub.loan(10, timeout=timeout),
        lambda: loan.send(timeout=timeout),
        lambda: pub.flush(timeout=timeout),
        lambda: pub.wait_for_subscribers(timeout=timeout),
        lambda: pub.send_many([b"x", b"y"], timeout=timeout),
        lambda: sub.recv(timeout=timeout),
        lambda: sub.recv_batch(5, timeout=timeout),
        lambda: sub.wait_for_publishers(timeout=timeout),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="timeout"):
            call()
    loan.discard()
    nothing_was_sent(pub, sub, lent=True)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, None])
def test_endless_timeouts(timeout: float | None, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    assert pub.send(b"x", timeout=timeout) == 0
    assert bytes(sub.recv(timeout=timeout)) == b"x"
    pub.flush(timeout=timeout)


@pytest.mark.parametrize("timestamp", [-1, 2**64])
def test_impossible_timestamps(timestamp: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for data in (b"x", bytes(10_000)):
        with pytest.raises((ValueError, OverflowError)):
            pub.send(data, timestamp_ns=timestamp)
    nothing_was_sent(pub, sub)


def test_use_after_close(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    loan = pub.loan(10_000)
    small = pub.loan(10)
    for _ in range(2):
        pub.close()
        sub.close()
    calls: dict[str, Callable[[], object]] = {
        "send": lambda: pub.send(b"x"),
        "send large": lambda: pub.send(bytes(10_000)),
        "send array": lambda: pub.send(np.zeros((30, 40)).T),
        "send_many": lambda: pub.send_many([b"x", b"y"]),
        "loan": lambda: pub.loan(10),
        "loan.send": lambda: loan.send(),
        "small loan.send": lambda: small.send(),
        "flush": lambda: pub.flush(),
        "wait_for_subscribers": lambda: pub.wait_for_subscribers(),
        "subscribers": lambda: pub.subscribers,
        "recv": lambda: sub.recv(),
        "recv with a timeout": lambda: sub.recv(timeout=1),
        "recv_batch": lambda: sub.recv_batch(5),
        "try_recv": lambda: sub.try_recv(),
        "wait_for_publishers": lambda: sub.wait_for_publishers(),
        "publishers": lambda: sub.publishers,
        "fileno": lambda: sub.fileno(),
    }
    for name, call in calls.items():
        with pytest.raises(byref.Closed) as refused:
            call()
        assert "'t'" in str(refused.value), name
    assert list(sub) == []
    assert sub.lost == 0
    loan.discard()
    with pub, sub:  # Leaving the block closes once more.
        pass


def test_messages_cannot_be_pickled(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(b"x")
    with pytest.raises(TypeError, match=r"msg\.value"):
        pickle.dumps(sub.recv(timeout=30))


def test_the_family_of_errors() -> None:
    family = {
        byref.Timeout: TimeoutError, byref.Closed: byref.Error, byref.PoolExhausted: MemoryError,
        byref.VersionMismatch: byref.Error, byref.Forked: byref.Error, byref.InvalidTopic: ValueError,
    }  # fmt: skip
    for error, base in family.items():
        assert issubclass(error, byref.Error)
        assert issubclass(error, base)
        assert error.__module__ == "byref"
    for made in (byref.Message, byref.Batch, byref.Event, byref.Loan, byref.PublisherInfo, byref.SubscriberInfo):
        with pytest.raises(TypeError):
            made()
