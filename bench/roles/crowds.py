"""One receiver with many senders, and one sender with many receivers."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from multiprocessing.connection import Connection

from bench.peers import Address, Messages, load, meet
from bench.roles import BURST, SIZE, check, end_of, payload, send_same

_BACKLOG = 8_000
"""Messages that each of many senders has waiting; they fit the queues of all systems."""

_WINDOW, _WINDOWS = 500, 4
"""In how many stretches of how many messages, for each sender, its share is looked at. The backlog outlasts them."""


def receive_from_many(channels: Sequence[Connection], system: str, address: Address, count: int) -> tuple[int, float]:
    """Receive from a sender on each channel; return its nanoseconds, and the farthest off a fair share."""
    senders = len(channels)
    with load(system).receiver(address, SIZE) as messages:
        for number, channel in enumerate(channels):
            channel.send(number)
        _meet_all(channels)
        unfairness = max(_unfairness(messages, senders) for _ in range(_WINDOWS))
        _skip(messages, (_BACKLOG - _WINDOW * _WINDOWS) * senders)
        start = time.perf_counter_ns()
        _meet_all(channels)
        _skip(messages, count * senders)
        end = time.perf_counter_ns()
        _meet_all(channels)
        for message in islice(messages, senders):
            check(message, end_of(payload(SIZE)))
        _meet_all(channels)
    return end - start, unfairness


def send_among_many(channel: Connection, system: str, address: Address, count: int) -> None:
    """One of the senders of `receive_from_many`: its messages carry its number."""
    message = bytes([channel.recv()]) * SIZE
    with load(system).sender(address, SIZE) as send:
        send_same(send, message, _BACKLOG)
        meet(channel)
        meet(channel)
        send_same(send, message, count)
        meet(channel)
        send(end_of(payload(SIZE)))
        meet(channel)


def send_to_many(channel: Connection, system: str, address: Address, count: int, receivers: int) -> float:
    """Send bursts, each when all have received the last; return this thread's CPU time per message, in nanoseconds."""
    costs = []
    message = payload(SIZE)
    meet(channel)
    with load(system).sender(address, SIZE, receivers) as send:
        for _ in range(count):
            start = time.thread_time_ns()
            send_same(send, message, BURST)
            costs.append((time.thread_time_ns() - start) / BURST)
            meet(channel)
    return statistics.median(costs)


def poll_by_many(channel: Connection, system: str, address: Address, count: int, receivers: int) -> None:
    """Receivers that never sleep: polled in turn for what `send_to_many` sends."""
    with ExitStack() as stack:
        polls = [stack.enter_context(load(system).poller(address)) for _ in range(receivers)]
        meet(channel)
        for _ in range(count):
            missing = BURST * receivers
            while missing:
                for poll in polls:
                    if poll() is not None:
                        missing -= 1
            meet(channel)


def _unfairness(messages: Messages, senders: int) -> float:
    """How far off a fair share of the next messages any of the senders is, in percent."""
    counts = Counter(bytes(message)[0] for message in islice(messages, _WINDOW * senders))
    return 100 * max(abs(counts[number] / _WINDOW - 1) for number in range(senders))


def _skip(messages: Messages, count: int) -> None:
    for _ in islice(messages, count):
        pass


def _meet_all(channels: Sequence[Connection]) -> None:
    """As `meet`, with all others."""
    for channel in channels:
        channel.send(None)
    for channel in channels:
        channel.recv()
