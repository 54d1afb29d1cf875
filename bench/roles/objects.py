"""Streams of objects, and what one process reaches alone."""

import time
from collections.abc import Iterator
from itertools import islice, repeat
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pyarrow as pa

from bench.contents import CONTENTS, Content
from bench.peers import Address, load, meet
from bench.roles import send_same, warm_up


def objects_to_warm_up(content: Content) -> int:
    """Objects that are sent first and not measured."""
    return max(4, warm_up(content.nbytes))


def send_objects(channel: Connection, system: str, address: Address, count: int, name: str) -> int:
    """Send the object of that name `count` times; return when it was first sent."""
    content = CONTENTS[name]
    value = content.make()
    meet(channel)
    with load(system).object_sender(address, name) as send:
        send_same(send, value, objects_to_warm_up(content))
        meet(channel)
        start = time.perf_counter_ns()
        send_same(send, value, count)
        send(content.end_of(value))
        meet(channel)
    return start


def receive_objects(channel: Connection, system: str, address: Address, count: int, name: str) -> int:
    """Receive, look at and check what `send_objects` sends; return when the last one was there."""
    content = CONTENTS[name]
    expected = content.make()
    with load(system).object_receiver(address, name) as objects:
        meet(channel)
        _receive(objects, objects_to_warm_up(content), content, expected)
        meet(channel)
        end = _receive(objects, count, content, expected)
        _receive(objects, 1, content, content.end_of(expected))
        meet(channel)
    return end


def _receive(objects: Iterator[Any], count: int, content: Content, expected: Any) -> int:
    """Look at `count` objects, and check the last one; return when it was there."""
    total = 0
    for value in islice(objects, count):
        total += content.look(value)
    end = time.perf_counter_ns()
    content.check(value, total, count, expected)
    return end


def copy_memory(count: int, nbytes: int) -> float:
    """Copy so many bytes of warm memory into warm memory `count` times; return the seconds that took."""
    source, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
    start = time.perf_counter()
    for _ in range(count):
        np.copyto(target, source)
    return time.perf_counter() - start


def import_batches(count: int) -> float:
    """Export and import a batch by the C data interface, look at it, `count` times; return the seconds that took."""
    content = CONTENTS["batch"]
    batch = content.make()
    imported = (pa.RecordBatch._import_from_c_capsule(*batch.__arrow_c_array__()) for _ in repeat(None))
    start = time.perf_counter_ns()
    return (_receive(imported, count, content, batch) - start) / 1e9
