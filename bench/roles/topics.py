"""Many topics between two processes: a queue with a receiver for each, and a pattern that matches all."""

import statistics
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection

from bench.peers import Address, load, meet
from bench.roles import SIZE, check, payload, send_same
from bench.trials import TIMEOUT

_ROUNDS = 50
"""Messages of each topic, where all are busy."""

_BACKLOG = 1000
"""Messages of one topic that are there before a queue runs."""

_DISPATCHES = 200
"""Empty dispatches whose time is taken."""


def feed_queue(channel: Connection, system: str, address: Address, length: int, topics: int) -> None:
    """Publish on all topics for `time_queue`: first on one of them, then on all."""
    message = payload(SIZE)
    with ExitStack() as stack:
        senders = [stack.enter_context(load(system).topic_sender(address, number)) for number in range(topics)]
        sends = [send for send, _ in senders]
        meet(channel)  # Now it subscribes, and finds them all.
        for _, wait_for_receiver in senders:
            wait_for_receiver()
        send_same(sends[topics // 2], message, _BACKLOG)
        meet(channel)
        meet(channel)  # Now it empties its queue.
        send_same(sends[topics // 2], message, length)
        meet(channel)
        for _ in range(_ROUNDS):
            for send in sends:
                send(message)
        meet(channel)  # Now it empties its queue again.
        meet(channel)


def time_queue(
    channel: Connection, system: str, address: Address, length: int, topics: int
) -> tuple[float, float, float, float]:
    """Return nanoseconds: per callback with one busy receiver and with all, of an empty dispatch, to subscribe one."""
    missing, expected = 0, payload(SIZE)

    def count(message: object) -> None:
        nonlocal missing
        missing -= 1
        if missing == 0:
            check(message, expected)
            stop()

    def run_for(messages: int) -> float:
        """The nanoseconds that each of so many callbacks takes."""
        nonlocal missing
        missing = messages
        start = time.perf_counter_ns()
        run()
        return (time.perf_counter_ns() - start) / messages

    with load(system).topics_queue(address) as (subscribe, run, stop, dispatch):
        meet(channel)
        start = time.perf_counter_ns()
        for number in range(topics):
            subscribe(number, count)
        each = (time.perf_counter_ns() - start) / topics
        meet(channel)
        run_for(_BACKLOG)  # Some of the receivers may be found to be idle only now.
        empty = []
        for _ in range(_DISPATCHES):
            start = time.perf_counter_ns()
            dispatch()
            empty.append(time.perf_counter_ns() - start)
        meet(channel)
        one = run_for(length)
        meet(channel)
        meet(channel)
        among_all = run_for(_ROUNDS * topics)
        meet(channel)
    return one, among_all, statistics.median(empty), each


def publish_on_all(channel: Connection, system: str, address: Address, topics: int) -> float:
    """Open a publisher for each topic, which keeps a message for who comes; return the seconds that opening took."""
    message = payload(SIZE)
    with ExitStack() as stack:
        start = time.perf_counter()
        senders = [stack.enter_context(load(system).topic_sender(address, number, kept=1)) for number in range(topics)]
        took = time.perf_counter() - start
        for send, _ in senders:
            send(message)
        meet(channel)
        meet(channel)
    return took


def receive_from_all(channel: Connection, system: str, address: Address, topics: int) -> float:
    """Return the seconds from the subscription to all topics until a message of each is there."""
    meet(channel)
    start = time.perf_counter()
    with load(system).topics_receiver(address, kept=1) as receive:
        for _ in range(topics):
            message = receive(TIMEOUT)
        took = time.perf_counter() - start
        check(message, payload(SIZE))
        meet(channel)
    return took
