"""One sender with many receivers, each a process that sleeps when it has nothing to do."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from bench.peers import Address, load, meet
from bench.roles import SIZE, check, end_of, payload, receive_same, send_same

_PAUSE, _PAUSE_EACH = 0.005, 0.0002
"""Seconds before each send, and for each receiver, so that all receivers sleep again."""

PACE = 0.001
"""Seconds between two messages of `send_paced`."""

_WARM_UP = 100
"""Messages before those of `send_burst` that are measured."""

_SKIPPED = 100
"""First messages of `send_paced` that are not measured: meanwhile the other processes start."""

_LOOPS = 2
"""Busy loops beside `receive_paced`."""

_ORPHAN_TIMEOUT = 60
"""Seconds after which a forked process ends, should the one that made it be gone."""

# Receivers are forked: a hundred fresh interpreters take longer to start than all that is measured. Who forks them has
# used no system yet.


def send_to_sleepers(channel: Connection, system: str, address: Address, count: int, receivers: int) -> list[int]:
    """Send a message whenever all receivers sleep; return the nanoseconds of each `send`."""
    message = payload(SIZE)
    times = []
    meet(channel)
    with load(system).broadcaster(address, SIZE, receivers) as send:
        for _ in range(count):
            time.sleep(_PAUSE + _PAUSE_EACH * receivers)
            start = time.perf_counter_ns()
            send(message)
            times.append(time.perf_counter_ns() - start)
        send(end_of(message))
        meet(channel)
    return times


def sleep(channel: Connection, system: str, address: Address, count: int, receivers: int) -> None:
    """The receivers of `send_to_sleepers`."""
    receive = partial(_receive_bursts, system, address, (1, count - 1))
    with _forked([receive] * receivers) as ends:
        meet(channel)
        for end in ends:
            end.recv()
        meet(channel)


def send_burst(channel: Connection, system: str, address: Address, count: int, receivers: int) -> int:
    """Send `count` messages at once to receivers that sleep; return when the first was sent."""
    message = payload(SIZE)
    meet(channel)
    with load(system).broadcaster(address, SIZE, receivers) as send:
        send_same(send, message, _WARM_UP)
        meet(channel)
        time.sleep(_PAUSE + _PAUSE_EACH * receivers)
        start = time.perf_counter_ns()
        send_same(send, message, count)
        send(end_of(message))
        meet(channel)
    return start


def receive_burst(channel: Connection, system: str, address: Address, count: int, receivers: int) -> int:
    """The receivers of `send_burst`; return when the last of them has received all."""
    with _forked([partial(_receive_bursts, system, address, (_WARM_UP, count))] * receivers) as ends:
        meet(channel)
        for end in ends:
            end.recv()
        meet(channel)
        times: list[int] = [end.recv() for end in ends]
        meet(channel)
    return max(times)


def _receive_bursts(system: str, address: Address, counts: tuple[int, int], end: Connection) -> None:
    """Receive two bursts of the same message, and then the end; tell when each came."""
    message = payload(SIZE)
    with load(system).listener(address, SIZE) as messages:
        receive_same(messages, message, counts[0])
        end.send(time.perf_counter_ns())
        receive_same(messages, message, counts[1])
        check(next(messages), end_of(message))
        end.send(time.perf_counter_ns())


def send_paced(
    channel: Connection, system: str, address: Address, count: int, size: int, receivers: int, others: str
) -> list[int]:
    """Send a message every `PACE`; return when each was sent."""
    message = payload(size)
    times = []
    meet(channel)
    with load(system).broadcaster(address, size, receivers) as send:
        meet(channel)
        due = time.monotonic()
        for _ in range(_SKIPPED + count):
            due = max(due + PACE, time.monotonic())
            time.sleep(max(0, due - time.monotonic()))
            times.append(time.perf_counter_ns())
            send(message)
        send(end_of(message))
        meet(channel)
    return times[_SKIPPED:]


def receive_paced(
    channel: Connection, system: str, address: Address, count: int, size: int, receivers: int, others: str
) -> list[list[int]]:
    """The receivers of `send_paced`, beside other processes; return when each received each message."""
    roles: dict[str, list[Callable[[Connection], Any]]] = {
        "a stream": [
            partial(_receive_endlessly, system, address.at("beside")),
            partial(_send_endlessly, system, address.at("beside")),
        ],
        "busy loops": [_loop] * _LOOPS,
    }
    with _forked(roles[others]), _forked([partial(_receive_paced, system, address, count, size)] * receivers) as ends:
        meet(channel)
        meet(channel)
        times: list[list[int]] = [end.recv() for end in ends]
        meet(channel)
    return times


def _receive_paced(system: str, address: Address, count: int, size: int, end: Connection) -> None:
    times = []
    with load(system).listener(address, size) as messages:
        for message in islice(messages, _SKIPPED + count):  # noqa: B007, the last one is looked at
            times.append(time.perf_counter_ns())
        check(message, payload(size))
        check(next(messages), end_of(payload(size)))
        end.send(times[_SKIPPED:])


def _receive_endlessly(system: str, address: Address, _: Connection) -> None:
    with load(system).receiver(address, SIZE) as messages:
        for _ in messages:
            pass


def _loop(_: Connection) -> None:
    while True:
        pass


def _send_endlessly(system: str, address: Address, _: Connection) -> None:
    with load(system).sender(address, SIZE) as send:
        while True:
            send_same(send, payload(SIZE), 1000)


@contextmanager
def _forked(roles: list[Callable[[Connection], Any]]) -> Iterator[list[Connection]]:
    """Processes that have a role each, and connections to them; at the end they are killed."""
    pids, ends = [], []
    try:
        for role in roles:
            near, far = multiprocessing.Pipe()
            pid = os.fork()
            if not pid:
                _play(role, far)
            pids.append(pid)
            ends.append(near)
            far.close()
        yield ends
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def _play(role: Callable[[Connection], Any], end: Connection) -> NoReturn:
    """Do what a forked process does, and end it."""
    signal.alarm(_ORPHAN_TIMEOUT)
    try:
        role(end)
        end.recv()  # Until it is killed: what it has open stays open.
    except BaseException:
        traceback.print_exc()
    os._exit(1)
