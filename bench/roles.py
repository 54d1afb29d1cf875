"""What the two processes of a trial do.

A role gets a channel to the other process, the name of the system, the address to meet at, and the trial's
own arguments. Times are nanoseconds of the system-wide monotonic clock: those taken in one process can be
subtracted from those taken in the other.
"""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

from bench.peers import Address, Buffer, Messages, Send, load, meet

SIZE = 64
"""Bytes of a message, where a trial is not about sizes."""

PAYLOAD = bytes(range(SIZE))

WARM_UP = 1000
"""Messages of a stream that are sent first and not measured."""

BURST = 1000
"""Messages that `send_bursts` sends in one go; they fit the queues of all systems."""

PACE_NS = 1_000_000
"""Least time between two messages of `send_loaned`."""

SETTLE = 1.0
"""Seconds that a receiver may take to fall asleep before `watch_idle` looks at it."""


def send_stream(channel: Connection, system: str, address: Address, count: int, content: str) -> int:
    """Send `count` messages without a pause; return when the first was sent."""
    meet(channel)
    with load(system).sender(address, SIZE) as send:
        _send_same(send, WARM_UP)
        meet(channel)
        start = time.perf_counter_ns()
        _CONTENTS[content][0](send, count)
        send(_end_of(PAYLOAD))
        meet(channel)
    return start


def receive_stream(channel: Connection, system: str, address: Address, count: int, content: str) -> int:
    """Receive and check what `send_stream` sends; return when the last message was there."""
    with load(system).receiver(address, SIZE) as messages:
        meet(channel)
        _receive_same(messages, WARM_UP)
        meet(channel)
        _CONTENTS[content][1](messages, count)
        end = time.perf_counter_ns()
        _check(next(messages), _end_of(PAYLOAD))
        meet(channel)
    return end


def send_bursts(channel: Connection, system: str, address: Address, count: int) -> list[float]:
    """Send bursts, each when the last has been received; return the nanoseconds per message of each."""
    costs = []
    meet(channel)
    with load(system).sender(address, SIZE) as send:
        for _ in range(count):
            start = time.perf_counter_ns()
            _send_same(send, BURST)
            costs.append((time.perf_counter_ns() - start) / BURST)
            meet(channel)
    return costs


def receive_bursts(channel: Connection, system: str, address: Address, count: int) -> None:
    """Receive what `send_bursts` sends."""
    with load(system).receiver(address, SIZE) as messages:
        meet(channel)
        for _ in range(count):
            _receive_same(messages, BURST)
            meet(channel)


def ping(channel: Connection, system: str, address: Address, count: int, size: int) -> list[int]:
    """Send a message and wait for its echo, `count` times; return the nanoseconds that each took."""
    payload = os.urandom(size)
    times = []
    with _duplex(channel, system, address, size, first=True) as (send, messages):
        for _ in range(count):
            start = time.perf_counter_ns()
            send(payload)
            echo = next(messages)
            times.append(time.perf_counter_ns() - start)
        _check(echo, payload)
        send(_end_of(payload))
        _check(next(messages), _end_of(payload))
        meet(channel)
    return times


def pong(channel: Connection, system: str, address: Address, count: int, size: int) -> None:
    """Send back what `ping` sends."""
    with _duplex(channel, system, address, size, first=False) as (send, messages):
        for message in islice(messages, count + 1):
            send(message)
        meet(channel)


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
        _check(message, bytes([(count - 1) % 256]) * size)
        meet(channel)
    return ends


def watch_idle(channel: Connection, system: str, address: Address, seconds: int) -> float:
    """Return the processor time that `stay_idle` uses while nothing comes, in percent of one processor."""
    meet(channel)
    with load(system).sender(address, SIZE) as send:
        _send_same(send, WARM_UP)
        pid = channel.recv()
        time.sleep(SETTLE)
        before = _cpu_seconds(pid)
        time.sleep(seconds)
        used = _cpu_seconds(pid) - before
        send(_end_of(PAYLOAD))
        meet(channel)
    return 100 * used / seconds


def stay_idle(channel: Connection, system: str, address: Address, seconds: int) -> None:
    """Wait for a message that does not come until `watch_idle` has seen enough."""
    with load(system).receiver(address, SIZE) as messages:
        meet(channel)
        _receive_same(messages, WARM_UP)
        channel.send(os.getpid())
        _check(next(messages), _end_of(PAYLOAD))
        meet(channel)


def _send_same(send: Send, count: int) -> None:
    for _ in range(count):
        send(PAYLOAD)


def _receive_same(messages: Messages, count: int) -> None:
    for message in islice(messages, count):  # noqa: B007, the last one is looked at
        pass
    _check(message, PAYLOAD)


_NUMBERS = struct.Struct("8Q")


def _send_built(send: Send, count: int) -> None:
    pack = _NUMBERS.pack
    for i in range(count):
        send(pack(i, 1, 2, 3, 4, 5, 6, 7))


def _receive_summed(messages: Messages, count: int) -> None:
    unpack = _NUMBERS.unpack
    total = 0
    for message in islice(messages, count):
        total += sum(unpack(message))
    if total != sum(range(count)) + count * sum(range(8)):
        raise ValueError("the messages received are not those sent")


_CONTENTS = {"same": (_send_same, _receive_same), "built": (_send_built, _receive_summed)}


def _end_of(payload: bytes) -> bytes:
    """The message after the last: if any was lost or doubled, it does not come where it is expected."""
    return payload[::-1]


def _check(message: Buffer, expected: bytes) -> None:
    if bytes(message) != expected:
        raise ValueError("a message received is not the one sent")


@contextmanager
def _duplex(
    channel: Connection, system: str, address: Address, size: int, first: bool
) -> Iterator[tuple[Send, Messages]]:
    peer = load(system)
    if size < peer.one_cpu_below:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with peer.duplex(address, size, first, channel) as ends:
        yield ends


def _cpu_seconds(pid: int) -> float:
    """Processor time, user and system, that a process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
