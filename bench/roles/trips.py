"""Round trips."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection

from bench.peers import Address, Messages, Peer, Send, load, meet
from bench.roles import check, end_of


def ping(channel: Connection, system: str, address: Address, count: int, size: int, pause: float = 0) -> list[int]:
    """Send a message and wait for its echo, `count` times, each after a pause; return the nanoseconds of each."""
    message = os.urandom(size)
    times = []
    with _duplex(channel, system, address, size, first=True) as (send, messages):
        for _ in range(count):
            if pause:
                time.sleep(pause)
            start = time.perf_counter_ns()
            send(message)
            echo = next(messages)
            times.append(time.perf_counter_ns() - start)
        check(echo, message)
        send(end_of(message))
        check(next(messages), end_of(message))
        meet(channel)
    return times


def pong(channel: Connection, system: str, address: Address, count: int, size: int, pause: float = 0) -> None:
    """Send back what `ping` sends."""
    with _duplex(channel, system, address, size, first=False) as (send, messages):
        for message in islice(messages, count + 1):
            send(message)
        meet(channel)


def share_processor(peer: Peer, size: int) -> None:
    """Run both processes of a trial on one processor, if that is faster."""
    if size < peer.one_cpu_below:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@contextmanager
def _duplex(
    channel: Connection, system: str, address: Address, size: int, first: bool
) -> Iterator[tuple[Send, Messages]]:
    peer = load(system)
    share_processor(peer, size)
    with peer.duplex(address, size, first, channel) as ends:
        yield ends
