"""Loaned messages, filled beforehand."""

import time
from multiprocessing.connection import Connection

from bench.peers import Address, load, meet
from bench.roles import check

PACE_NS = 1_000_000
"""Least time between two messages."""


def send_loaned(channel: Connection, system: str, address: Address, count: int, size: int) -> list[int]:
    """Fill loans, wait for the time of each, and send them; return when each was sent."""
    starts = []
    meet(channel)
    with load(system).loaner(address, size) as fill:
        due = time.perf_counter_ns()
        for i in range(count):
            send = fill(i % 256)
            # Sleeping instead would add the time that a sleeping processor takes to come up to speed.
            while (start := time.perf_counter_ns()) < due:
                pass
            send()
            starts.append(start)
            due = start + PACE_NS
        meet(channel)
    return starts


def poll_loaned(channel: Connection, system: str, address: Address, count: int, size: int) -> list[int]:
    """Poll for what `send_loaned` sends, without touching it; return when each message was there."""
    ends = []
    with load(system).poller(address) as poll:
        meet(channel)
        for _ in range(count):
            while (message := poll()) is None:
                pass
            ends.append(time.perf_counter_ns())
        check(message, bytes([(count - 1) % 256]) * size)
        meet(channel)
    return ends
