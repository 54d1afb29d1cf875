"""Endpoints shared by threads; the interpreter is free while a call waits; `close` ends every wait."""

import threading
from collections import Counter
from collections.abc import Callable

import byref
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import eventually


def test_threads_share_a_publisher_and_a_subscriber(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=16 << 20)
    per_thread, threads = 3000, 4
    sent: list[list[int]] = [[] for _ in range(threads)]
    received: list[list[tuple[int, int]]] = [[] for _ in range(threads)]
    problems: list[BaseException] = []

    def send(place: int) -> None:
        for count in range(per_thread):
            seed = place * per_thread + count
            size = 3000 if seed % 3 else 50
            if seed % 11:
                sent[place].append(pub.send(payload(seed, size), timestamp_ns=seed, timeout=30))
            else:
                loan = pub.loan(size)
                loan.array[:] = payload(seed, size)
                sent[place].append(loan.send(timestamp_ns=seed, timeout=30))

    def receive(place: int) -> None:
        try:
            for msg in sub:
                seed = msg.timestamp_ns
                assert is_payload(msg, seed, 3000 if seed % 3 else 50)
                received[place].append((msg.sequence, seed))
        except BaseException as problem:
            problems.append(problem)

    receivers = [threading.Thread(target=receive, args=(place,)) for place in range(threads)]
    senders = [threading.Thread(target=send, args=(place,)) for place in range(threads)]
    for thread in receivers + senders:
        thread.start()
    for thread in senders:
        thread.join()
    pub.flush(timeout=30)
    sub.close()
    for thread in receivers:
        thread.join(20)
        assert not thread.is_alive()
    assert problems == []
    total = per_thread * threads
    assert Counter(sequence for own in received for sequence, _ in own) == Counter(range(total))
    seeds = dict(pair for own in received for pair in own)
    for place in range(threads):
        assert [seeds[sequence] for sequence in sent[place]] == list(
            range(place * per_thread, (place + 1) * per_thread)
        )
        assert sent[place] == sorted(sent[place])
        # What one thread took, it took in order.
        assert received[place] == sorted(received[place])


WAITS: dict[str, Callable[[byref.Publisher, byref.Subscriber], object]] = {
    "recv": lambda pub, sub: sub.recv(),
    "recv with a timeout": lambda pub, sub: sub.recv(timeout=90),
    "recv_batch": lambda pub, sub: sub.recv_batch(5),
    "iteration": lambda pub, sub: next(sub),
    "wait_for_publishers": lambda pub, sub: sub.wait_for_publishers(9),
    "send": lambda pub, sub: pub.send(b""),
    "send_many": lambda pub, sub: pub.send_many([b"x", b"y"]),
    "send of a large payload": lambda pub, sub: pub.send(bytes(100_000)),
    "loan": lambda pub, sub: pub.loan(2 << 20),
    "flush": lambda pub, sub: pub.flush(),
    "wait_for_subscribers": lambda pub, sub: pub.wait_for_subscribers(9),
}


def waiting_pair(wait: str, endpoints: Endpoints) -> tuple[byref.Publisher, byref.Subscriber, list[byref.Message]]:
    """Endpoints on which `wait` waits: full for a sender, out of memory for a loan, empty for a receiver."""
    pub, sub = endpoints.pair(max_memory=3 << 20, depth=2)
    held = []
    if wait == "loan":
        pub.send(bytes(2 << 20))
        held.append(sub.recv(timeout=30))
    elif "recv" not in wait and wait not in ("iteration", "wait_for_publishers"):
        pub.send(b"")
        pub.send(b"")
    return pub, sub, held


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("wait", WAITS)
def test_close_ends_every_wait_and_others_run_meanwhile(wait: str, threads: int, endpoints: Endpoints) -> None:
    pub, sub, held = waiting_pair(wait, endpoints)
    ends: list[BaseException] = []

    def call() -> None:
        try:
            WAITS[wait](pub, sub)
        except BaseException as end:
            ends.append(end)

    workers = [threading.Thread(target=call) for _ in range(threads)]
    for worker in workers:
        worker.start()
    # If the waiting calls kept the interpreter, this would not run before they have ended.
    for _ in range(10):
        threading.Event().wait(0.01)
    assert all(worker.is_alive() for worker in workers)
    assert ends == []
    (sub if wait in ("recv", "recv with a timeout", "recv_batch", "iteration", "wait_for_publishers") else pub).close()
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()
    expected = StopIteration if wait == "iteration" else byref.Closed
    assert [type(end) for end in ends] == [expected] * threads
    held.clear()


def test_a_message_wakes_one_of_several_waiting_threads(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    received: list[int] = []

    def take() -> None:
        received.append(sub.recv(timeout=30).sequence)

    workers = [threading.Thread(target=take) for _ in range(5)]
    for worker in workers:
        worker.start()
    for count in range(5):
        pub.send(b"")
        eventually(lambda count=count: len(received) == count + 1, "somebody takes it")
    for worker in workers:
        worker.join()
    assert sorted(received) == list(range(5))


def test_endpoints_made_and_closed_by_many_threads(endpoints: Endpoints) -> None:
    problems: list[BaseException] = []

    def live(place: int) -> None:
        try:
            for _ in range(15):
                with byref.Publisher(f"t{place}") as pub, byref.Subscriber(f"t{place}") as sub:
                    pub.wait_for_subscribers(timeout=30)
                    pub.send(bytes(place))
                    assert sub.recv(timeout=30).nbytes == place
        except BaseException as problem:
            problems.append(problem)

    workers = [threading.Thread(target=live, args=(place,)) for place in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert problems == []
