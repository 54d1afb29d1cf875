"""What many topics between two processes cost in memory."""

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from bench.peers import Address, load, meet
from bench.roles import SIZE, payload

FEW = 3
"""Small messages on each topic, before a large one."""

LARGE = 100_000
"""Bytes of the large one."""


def publish_on_many(channel: Connection, system: str, address: Address, rounds: int, topics: int) -> list[int]:
    """Return the bytes of memory taken once all have met, after a few messages, and after `rounds` on each."""
    with _counted() as taken, ExitStack() as senders:
        meet(channel)
        names = [Address(f"{address.name}/{number}", address.port) for number in range(topics)]
        sends = [senders.enter_context(load(system).sender(name, SIZE)) for name in names]
        meet(channel)
        stages = [taken()]
        meet(channel)
        for size in (*[SIZE] * FEW, LARGE):
            for send in sends:
                send(bytes(size))
        meet(channel)
        stages.append(taken())
        meet(channel)
        small = payload(SIZE)
        for _ in range(rounds):
            for send in sends:
                send(small)
            meet(channel)
        stages.append(taken())
        meet(channel)
    return stages


def subscribe_to_many(channel: Connection, system: str, address: Address, rounds: int, topics: int) -> list[int]:
    """The same for a process with one subscriber to all of them."""
    with (
        _counted() as taken,
        load(system).receiver(Address(f"{address.name}/*", address.port), SIZE) as messages,
    ):
        meet(channel)
        meet(channel)
        stages = [taken()]
        meet(channel)
        for _ in range((FEW + 1) * topics):
            next(messages)
        meet(channel)
        stages.append(taken())
        meet(channel)
        for _ in range(rounds):
            for _ in range(topics):
                next(messages)
            meet(channel)
        stages.append(taken())
        meet(channel)
    return stages


@contextmanager
def _counted() -> Iterator:
    """Gives a function: the bytes that this process has taken since. What it shares counts by halves."""
    resource.setrlimit(resource.RLIMIT_NOFILE, [resource.getrlimit(resource.RLIMIT_NOFILE)[1]] * 2)
    before = _memory()
    yield lambda: _memory() - before


def _memory() -> int:
    """Bytes of memory of this process: its own, its share of what others map too, and its page tables."""
    mapped = _kilobytes("/proc/self/smaps_rollup", "Pss:") + _kilobytes("/proc/self/status", "VmPTE:")
    return mapped << 10


def _kilobytes(path: str, name: str) -> int:
    (line,) = (line for line in Path(path).read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
