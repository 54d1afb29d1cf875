"""Receivers to which nothing comes."""

import os
import time
from collections.abc import Generator
from multiprocessing.connection import Connection
from pathlib import Path

from bench.peers import Address, Buffer, load, meet
from bench.roles import SIZE, check, end_of, payload, receive_same, send_same, warm_up
from bench.roles.streams import counting

_SETTLE = 1.0
"""Seconds that a receiver may take to fall asleep before it is watched."""


def watch_idle(channel: Connection, system: str, address: Address, seconds: int, receivers: int | None = None) -> float:
    """Return the processor time that the other process uses while nothing comes, in percent of one processor."""
    meet(channel)
    sender = load(system).sender
    with sender(address, SIZE, receivers) if receivers else sender(address, SIZE) as send:
        send_same(send, payload(SIZE), warm_up(SIZE))
        pid = channel.recv()
        time.sleep(_SETTLE)
        before = _cpu_seconds(pid)
        time.sleep(seconds)
        used = _cpu_seconds(pid) - before
        send(end_of(payload(SIZE)))
        meet(channel)
    return 100 * used / seconds


def stay_idle(channel: Connection, system: str, address: Address, seconds: int) -> None:
    """Wait for a message that does not come until `watch_idle` has seen enough."""
    with load(system).receiver(address, SIZE) as messages:
        meet(channel)
        receive_same(messages, payload(SIZE), warm_up(SIZE))
        channel.send(os.getpid())
        check(next(messages), end_of(payload(SIZE)))
        meet(channel)


def stay_idle_in_queue(channel: Connection, system: str, address: Address, seconds: int, receivers: int) -> None:
    """As `stay_idle`, with many receivers in one queue."""

    def turns() -> Generator[int, Buffer, None]:
        check((yield warm_up(SIZE) * receivers), payload(SIZE))
        channel.send(os.getpid())
        check((yield receivers), end_of(payload(SIZE)))
        stop()
        yield 1

    with load(system).caller(address, SIZE, counting("function", turns()), receivers) as (run, stop):
        meet(channel)
        run()
        meet(channel)


def _cpu_seconds(pid: int) -> float:
    """Processor time, user and system, that a process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
