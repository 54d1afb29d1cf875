"""What only shows, or shows at once, where threads run Python at the same time: on a free-threaded interpreter.

`make test-threaded` runs this file there. Everything here holds on an ordinary interpreter as well.
"""

import contextlib
import gc
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, eventually
from tests.test_thread_stress import THREADS, together

Spawn = Callable[..., Child]


@pytest.fixture(autouse=True)
def _restless_interpreter() -> Iterator[None]:
    """On an ordinary interpreter threads take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


# ---- what others drop while a thread waits ---------------------------------------------------------------------------
#
# A free-threaded interpreter counts the references of an object's own thread apart. What the other threads give back is
# settled by that thread, when it runs Python code: never, if it waits in a call of ours without a look.


def waits() -> dict[str, Callable[[byref.Publisher, byref.Subscriber], object]]:
    """Calls that have nothing to wait for until their endpoint is closed."""

    def until_released(pub: byref.Publisher, sub: byref.Subscriber) -> object:
        ticket = pub.send_tracked(b"held")
        held = sub.recv(timeout=30)
        try:
            return ticket.wait_released()
        finally:
            del held

    def until_read(pub: byref.Publisher, _: byref.Subscriber) -> object:
        pub.send(b"never read")
        return pub.flush()

    def until_called(*_: object) -> object:
        with byref.EventQueue() as queue:
            queue.subscribe("quiet", print)
            return queue.run(timeout=3)

    def until_there_is_room(pub: byref.Publisher, _: byref.Subscriber) -> object:
        while True:
            pub.send(bytes(200))

    return {
        "recv": lambda _, sub: sub.recv(),
        "next": lambda _, sub: next(iter(sub)),
        "batch": lambda _, sub: sub.recv_batch(9),
        "publishers": lambda _, sub: sub.wait_for_publishers(9),
        "subscribers": lambda pub, _: pub.wait_for_subscribers(9),
        "flush": until_read,
        "send": until_there_is_room,
        "ticket": until_released,
        "queue": until_called,
    }


@pytest.mark.parametrize("kind", list(waits()))
def test_a_waiting_thread_lets_go_of_what_others_drop(kind: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    quiet = byref.Publisher("quiet"), byref.Subscriber("quiet")
    quiet[0].wait_for_subscribers(timeout=30)
    quiet[1].wait_for_publishers(timeout=30)
    received: list[byref.Message] = []
    ready = threading.Event()

    def work() -> None:
        received.append(sub.recv(timeout=30))
        ready.set()
        with pytest.raises((byref.Closed, byref.Timeout, StopIteration)):
            waits()[kind](*quiet)

    thread = threading.Thread(target=work)
    thread.start()
    ticket = pub.send_tracked(bytes(5000))
    try:
        assert ready.wait(30)
        time.sleep(0.3)  # It is asleep by now; where it is not, it runs Python code itself.
        received.clear()
        ticket.wait_released(timeout=2.5 if kind == "queue" else 20)
    finally:
        for endpoint in quiet:
            endpoint.close()
        thread.join(30)
    assert not thread.is_alive()


def test_waiting_threads_hand_messages_to_each_other(endpoints: Endpoints) -> None:
    """Each thread drops what another has received, and waits for the next one: nothing is held in the end."""
    pub, sub = endpoints.pair(max_memory=2 << 20)
    shelf: list[byref.Message | None] = [None] * THREADS
    wrong: list[object] = []

    def work(place: int) -> None:
        while True:
            try:
                msg = sub.recv(timeout=20)
            except (byref.Closed, byref.Timeout):
                return
            if not is_payload(np.asarray(msg), msg.timestamp_ns, 50_000):
                wrong.append(msg)
            shelf[(place + msg.sequence) % THREADS] = msg
            del msg

    workers = [threading.Thread(target=work, args=(place,)) for place in range(THREADS)]
    for worker in workers:
        worker.start()
    for seed in range(600):  # Many times what the memory takes.
        pub.send(payload(seed, 50_000), timestamp_ns=seed, timeout=20)
    ticket = pub.send_tracked(payload(600, 50_000), timestamp_ns=600)
    pub.flush(timeout=20)

    def is_released() -> bool:
        shelf[:] = [None] * THREADS  # Who took the last message may not have put it there yet.
        return ticket.released

    eventually(is_released, "nobody holds the last message")
    sub.close()
    for worker in workers:
        worker.join(20)
    assert not wrong


# ---- locks and Python code -------------------------------------------------------------------------------------------


class Collected:
    """Garbage whose finaliser does something."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.me = self

    def __del__(self) -> None:
        self.call()


def loan_of_columns(line: Line, seconds: float) -> None:
    """Threads use one loan and change its dict of columns, while one collects garbage all the time."""
    import pyarrow as pa

    with byref.Publisher("t") as pub:
        loan = pub.loan_batch(pa.schema([(f"c{number}", pa.int64()) for number in range(20)]), 50)
        columns: dict[Any, Any] = loan.array

        class Key:
            """A key that looks at the loan when it is written out. As long as it is there, nothing is sent."""

            def __str__(self) -> str:
                assert len(loan.array) > 0
                return "stranger"

        columns[Key()] = None
        stop = threading.Event()

        def collect() -> None:
            while not stop.is_set():
                Collected(lambda: loan.array)
                gc.collect()

        def change(_: random.Random) -> None:
            for number in range(20):
                columns[number] = None
            for number in range(20):
                columns.pop(number, None)

        def refuse(call: Callable[[], object]) -> None:
            with pytest.raises(ValueError, match="replaced by another object"):
                call()

        def look(_: random.Random) -> None:
            assert loan.array is columns
            assert repr(loan)

        collector = threading.Thread(target=collect)
        collector.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            together(change, lambda _: refuse(loan.send), lambda _: refuse(lambda: loan.truncate(40)), look)
        stop.set()
        collector.join()
        columns = loan.array
        for name in [name for name in columns if not isinstance(name, str)]:
            del columns[name]
        loan.send()
        line.tell(pub.stats()["sent"])


def test_a_loan_whose_columns_change(spawn: Spawn) -> None:
    """No lock is held while the dict is looked at: neither a deadlock with the collector, nor a panic."""
    pytest.importorskip("pyarrow")
    child = spawn(loan_of_columns, 5)
    assert child.hear() == 1
    child.finish()


def containers_that_change(line: Line, seconds: float) -> None:
    """Threads send dicts and headers that others change."""
    with byref.Publisher("t") as pub:
        data: dict[str, Any] = {str(number): number for number in range(20)}
        values: list[Any] = [data, [1, 2, 3]]
        stop = threading.Event()

        def change() -> None:
            rng = random.Random(0)
            while not stop.is_set():
                data[str(rng.randrange(1000))] = rng.random()
                if len(data) > 50:
                    data.clear()
                values.append(1)
                if len(values) > 50:
                    del values[2:]

        changer = threading.Thread(target=change)
        changer.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            together(
                lambda _: pub.send(data),
                lambda _: pub.send(values),
                lambda _: pub.send(b"x", headers=data),
                lambda _: pub.send_pickle(b"x", headers=data),
                rounds=50,
            )
        stop.set()
        changer.join()
        line.tell(pub.stats()["sent"])


def test_containers_that_change_while_they_are_sent(spawn: Spawn) -> None:
    child = spawn(containers_that_change, 3)
    assert child.hear() > 0
    child.finish()


# ---- capsules --------------------------------------------------------------------------------------------------------


class Offer:
    """Arrow data that are the same capsules for everybody who asks."""

    def __init__(self, capsules: tuple[object, object]) -> None:
        self._capsules = capsules

    def __arrow_c_array__(self, _schema: object = None) -> tuple[object, object]:
        return self._capsules


class Stream:
    """The same of a stream."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __arrow_c_stream__(self, _schema: object = None) -> object:
        return self._capsule


def capsules_for_all(line: Line, count: int) -> None:
    """Eight threads take the same capsules, in the same order; tells how often the one taken most was taken."""
    with byref.Publisher("t") as pub, byref.Subscriber("t", policy="latest") as sub:
        pub.wait_for_subscribers(timeout=30)
        pub.send(np.arange(1000))
        msg = sub.recv(timeout=30)
        offers = [Offer(msg.__arrow_c_array__()) for _ in range(count)]
        streams = [Stream(msg.__arrow_c_stream__()) for _ in range(count)]
        ready = threading.Barrier(THREADS)
        taken: list[list[int]] = [[] for _ in range(THREADS)]

        def take(place: int) -> None:
            for data in (offers, streams):
                ready.wait()
                for number, offer in enumerate(data):
                    with contextlib.suppress(ValueError):  # Another thread has consumed it already.
                        pub.send(offer)
                        taken[place].append(number if data is offers else -1 - number)

        workers = [threading.Thread(target=take, args=(place,)) for place in range(THREADS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        counts = Counter(number for numbers in taken for number in numbers)
        # Who takes the schema may find that the data are another's already: each is taken once at the most.
        line.tell([max(counts.values()), len(counts) > count])


def test_a_capsule_is_taken_once(spawn: Spawn) -> None:
    child = spawn(capsules_for_all, 40_000)
    assert child.hear() == [1, True]
    child.finish()


def tensors_for_all(line: Line, rounds: int) -> None:
    """Threads make tensors of one message and drop them while others ask to release it."""
    with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
        pub.wait_for_subscribers(timeout=30)
        for seed in range(rounds):
            pub.send(payload(seed, 5000))
            msg = sub.recv(timeout=30)

            def tensor(_: random.Random, msg: byref.Message = msg, seed: int = seed) -> None:
                assert is_payload(np.from_dlpack(msg), seed, 5000)

            def unused(_: random.Random, msg: byref.Message = msg) -> None:
                msg.__dlpack__()

            def relay(_: random.Random, msg: byref.Message = msg) -> None:
                pub.send({"inner": msg}, timeout=0)

            def release(rng: random.Random, msg: byref.Message = msg) -> None:
                if rng.random() < 0.05:
                    msg.release()

            together(tensor, unused, relay, release, rounds=20)
            del msg, tensor, unused, relay, release
            while sub.try_recv() is not None:
                pass
        ticket = pub.send_tracked(bytes(5000))
        sub.recv(timeout=30)
        ticket.wait_released(timeout=30)
        line.tell(pub.outstanding.messages)


def test_tensors_of_one_message(spawn: Spawn) -> None:
    child = spawn(tensors_for_all, 20)
    assert child.hear() == 0
    child.finish()
