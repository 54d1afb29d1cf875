"""Messages that are the rows of an array, on one side or on both."""

import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import numpy as np

from bench import rust
from bench.peers import BATCH, ROW, Address, load, meet
from bench.trials import Trial

_WARM_UP = 10
"""Batches that are sent first and not measured."""


def send_rows(channel: Connection, system: str, address: Address, count: int) -> int:
    """Send `count` batches of messages; return when the first was sent."""
    rows = np.zeros(BATCH, ROW)
    rows["number"] = np.arange(BATCH)
    meet(channel)
    with load(system).row_sender(address, rows) as send:
        for _ in range(_WARM_UP):
            send()
        meet(channel)
        start = time.perf_counter_ns()
        for _ in range(count):
            send()
        meet(channel)
    return start


def receive_rows(channel: Connection, system: str, address: Address, count: int) -> int:
    """Receive and check what `send_rows` sends, as arrays; return when the last was there."""
    with load(system).row_receiver(address) as arrays:
        meet(channel)
        _receive(arrays, _WARM_UP * BATCH, _WARM_UP * sum(range(BATCH)))
        meet(channel)
        _receive(arrays, count * BATCH, count * sum(range(BATCH)))
        end = time.perf_counter_ns()
        meet(channel)
    return end


def receive_rows_from_rust(executable: str, system: str, address: Address, count: int) -> Trial:
    """Receive, as arrays, what the Rust half of the suite sends one by one; return what that has measured."""
    with (
        load(system).row_receiver(address) as arrays,
        rust.sender(executable, system, address.name, count) as sender,
    ):
        sender.meet()
        _receive(arrays, sender.WARM_UP, sum(range(sender.WARM_UP)))
        sender.meet()
        _receive(arrays, count, sum(range(count)))
        sender.meet()
        return sender.outcome()


def _receive(arrays: Iterator[np.ndarray], count: int, total: int) -> None:
    while count > 0:
        rows = next(arrays)
        count -= len(rows)
        total -= int(rows["number"].sum())
    if count or total:
        raise ValueError("the messages received are not those sent")
