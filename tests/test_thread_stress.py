"""Every Python object in the hands of many threads: whoever comes too late gets an error, nobody wrong bytes."""

import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import eventually

THREADS = 8
ROUNDS = 300
SIZE = 5000
# What a call may give that comes too late, or at the same time as another.
EXPECTED = (byref.Closed, byref.Timeout, byref.PoolExhausted, BufferError, ValueError, RuntimeError)


@pytest.fixture(autouse=True)
def _restless_interpreter() -> Iterator[None]:
    """Threads take turns often, but not so often that they do nothing else."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def together(*calls: Callable[[random.Random], object], rounds: int = ROUNDS) -> Counter[str]:
    """Makes the calls in threads, each in an order of chance; counts the errors that may be."""
    problems: list[BaseException] = []
    errors: Counter[str] = Counter()
    begin = threading.Barrier(THREADS)

    def work(place: int) -> None:
        rng = random.Random(place)
        begin.wait()
        try:
            for _ in range(rounds):
                try:
                    rng.choice(calls)(rng)
                except EXPECTED as error:
                    errors[type(error).__name__] += 1
        except BaseException as problem:
            problems.append(problem)

    workers = [threading.Thread(target=work, args=(place,)) for place in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert problems == []
    return errors


@pytest.mark.parametrize("size", [40, SIZE])
def test_one_message(size: int, endpoints: Endpoints) -> None:
    """Views, copies and releases; a released message has no bytes, any other has the right ones."""
    pub, sub = endpoints.pair()
    for seed in range(20):
        pub.send(payload(seed, size), headers={"seed": seed})
        msg = sub.recv(timeout=20)

        def view(_: random.Random, msg: byref.Message = msg, seed: int = seed) -> None:
            with memoryview(msg) as found:
                assert is_payload(found, seed, size)

        def write(_: random.Random, msg: byref.Message = msg, seed: int = seed) -> None:
            private = msg.writable()
            assert is_payload(private, seed, size)
            private[:] = 0

        def ask(_: random.Random, msg: byref.Message = msg, seed: int = seed) -> None:
            assert (msg.headers, msg.nbytes, msg.sequence) == ({"seed": seed}, size, seed)
            assert is_payload(np.asarray(msg), seed, size)
            assert repr(msg)

        def release(rng: random.Random, msg: byref.Message = msg) -> None:
            if rng.random() < 0.02:
                msg.release()

        together(view, write, ask, release, rounds=30)
        del msg, view, write, ask, release
    pub.flush(timeout=20)
    eventually(lambda: pub.send(payload(0, SIZE)) and pub.stats()["pool_used"] <= 40 * SIZE, "nothing is held")


def test_one_batch(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send_many(np.arange(2000).reshape(100, 20))
    batch = sub.recv_batch(100, timeout=20)
    rows = len(batch)

    def index(rng: random.Random) -> None:
        place = rng.randrange(rows)
        assert (batch[place].value == np.arange(20 * place, 20 * place + 20)).all()

    def iterate(_: random.Random) -> None:
        assert [msg.sequence for msg in batch] == list(range(rows))

    def whole(_: random.Random) -> None:
        assert (np.asarray(batch).ravel() == np.arange(20 * rows)).all()

    together(index, iterate, whole, rounds=60)


def test_one_loan(endpoints: Endpoints) -> None:
    """Filled, sent, discarded and looked at by all: it is sent once at the most."""
    pub, sub = endpoints.pair(max_memory=8 << 20)
    sent = 0
    for _ in range(40):
        loan = pub.loan(SIZE)

        def fill(_: random.Random, loan: byref.Loan = loan) -> None:
            loan.array[:] = 7

        def end(rng: random.Random, loan: byref.Loan = loan) -> None:
            loan.send(timeout=20) if rng.random() < 0.5 else loan.discard()

        def shorten(rng: random.Random, loan: byref.Loan = loan) -> None:
            loan.truncate(rng.randrange(SIZE))

        before = pub.stats()["sent"]
        together(fill, end, shorten, rounds=5)
        loan.discard()
        assert pub.stats()["sent"] - before <= 1
        sent += pub.stats()["sent"] - before
    assert len([sub.recv(timeout=20) for _ in range(sent)]) == sent
    assert sub.try_recv() is None


def test_one_publisher_and_one_subscriber(endpoints: Endpoints) -> None:
    """Everything at once, and closed in the midst of it."""
    for _ in range(4):
        pub, sub = endpoints.pair(max_memory=4 << 20)
        received = []

        def send(rng: random.Random, pub: byref.Publisher = pub) -> None:
            seed = rng.getrandbits(30)
            size = rng.choice([10, 100, SIZE])
            pub.send(payload(seed, size), timestamp_ns=seed, headers={"size": size}, timeout=0.05)

        def send_rows(rng: random.Random, pub: byref.Publisher = pub) -> None:
            seed = rng.getrandbits(30)
            rows = np.stack([payload(seed, 100)] * rng.randrange(1, 9))
            pub.send_many(rows, timestamp_ns=seed, headers={"size": 100}, timeout=0.05)

        def take(rng: random.Random, sub: byref.Subscriber = sub, received: list[Any] = received) -> None:
            messages = sub.recv_batch(9, timeout=0.05) if rng.random() < 0.5 else [sub.recv(timeout=0.05)]
            for msg in messages:
                assert is_payload(np.asarray(msg), msg.timestamp_ns, msg.headers["size"])
                received.append(msg.sequence)

        def ask(rng: random.Random, pub: byref.Publisher = pub, sub: byref.Subscriber = sub) -> None:
            _ = pub.stats(), sub.stats(), pub.subscribers, sub.publishers, sub.lost
            if rng.random() < 0.01:
                (pub if rng.random() < 0.5 else sub).close()

        together(send, send_rows, take, take, ask, rounds=60)
        assert len(received) == len(set(received)), "each message goes to one"


def test_one_queue(endpoints: Endpoints) -> None:
    """Receivers come and go in all threads, while the queue runs in some."""
    pub = endpoints.publisher()
    called: Counter[int] = Counter()
    with byref.EventQueue(name="stress") as queue:
        thread = queue.start()

        def subscribe(_: random.Random) -> None:
            over = threading.Event()

            def count(msg: byref.Message) -> None:
                assert not over.is_set(), "called after its close"
                called[msg.sequence] += 1

            with queue.subscribe("t", count) as receiver:
                receiver.stats()
            over.set()

        def send(_: random.Random) -> None:
            pub.send(b"x", timeout=1)

        def ask(_: random.Random) -> None:
            _ = queue.stats(), byref.monitors()

        together(subscribe, send, send, send, ask, rounds=20)
        queue.stop()
        thread.join(20)
        assert not thread.is_alive()
