"""A sender that never pauses, and a receiver that takes the messages in a loop, or has a function called with them."""

import struct
import time
from collections.abc import Callable, Generator
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from types import MethodType
from typing import Any

from bench.peers import Address, Buffer, Messages, Send, load, meet
from bench.roles import BURST, SIZE, check, end_of, payload, receive_same, send_same, warm_up


def send_stream(
    channel: Connection, system: str, address: Address, count: int, content: str = "same", size: int = SIZE
) -> int:
    """Send `count` messages; return when the first was sent."""
    message = payload(size)
    meet(channel)
    with load(system).sender(address, size) as send:
        send_same(send, message, warm_up(size))
        meet(channel)
        start = time.perf_counter_ns()
        _CONTENTS[content][0](send, message, count)
        send(end_of(message))
        meet(channel)
    return start


def receive_stream(
    channel: Connection, system: str, address: Address, count: int, content: str = "same", size: int = SIZE
) -> int:
    """Receive and check what `send_stream` sends; return when the last message was there."""
    message = payload(size)
    with load(system).receiver(address, size) as messages:
        meet(channel)
        receive_same(messages, message, warm_up(size))
        meet(channel)
        _CONTENTS[content][1](messages, message, count)
        end = time.perf_counter_ns()
        check(next(messages), end_of(message))
        meet(channel)
    return end


def receive_called(channel: Connection, system: str, address: Address, count: int, kind: str) -> int:
    """As `receive_stream`, by a callable of that kind."""
    message = payload(SIZE)
    end = 0

    def turns() -> Generator[int, Buffer, None]:
        nonlocal end
        check((yield warm_up(SIZE)), message)
        meet(channel)
        last = yield count
        end = time.perf_counter_ns()
        check(last, message)
        check((yield 1), end_of(message))
        stop()
        yield 1

    with load(system).caller(address, SIZE, counting(kind, turns())) as (run, stop):
        meet(channel)
        run()
        meet(channel)
    return end


def counting(kind: str, turns: Generator[int, Buffer, None]) -> Callable[[Buffer], None]:
    """A callable that counts messages, and gives `turns` the one that is as many after the last as it asked for."""
    left = next(turns)

    def function(message: Buffer) -> None:
        nonlocal left
        left -= 1
        if not left:
            left = turns.send(message)

    def with_owner(_: Any, message: Buffer) -> None:
        nonlocal left
        left -= 1
        if not left:
            left = turns.send(message)

    match kind:
        case "bound method":
            return MethodType(with_owner, object())
        case "partial":
            return partial(with_owner, None)
        case "instance":
            return type("Instance", (), {"__call__": with_owner})()
    return function


def send_bursts(channel: Connection, system: str, address: Address, count: int) -> list[float]:
    """Send bursts, each when the last has been received; return the nanoseconds per message of each."""
    costs = []
    message = payload(SIZE)
    meet(channel)
    with load(system).sender(address, SIZE) as send:
        for _ in range(count):
            start = time.perf_counter_ns()
            send_same(send, message, BURST)
            costs.append((time.perf_counter_ns() - start) / BURST)
            meet(channel)
    return costs


def receive_bursts(channel: Connection, system: str, address: Address, count: int) -> None:
    """Receive what `send_bursts` sends."""
    with load(system).receiver(address, SIZE) as messages:
        meet(channel)
        for _ in range(count):
            receive_same(messages, payload(SIZE), BURST)
            meet(channel)


_NUMBERS = struct.Struct("8Q")


def _send_built(send: Send, _: bytes, count: int) -> None:
    pack = _NUMBERS.pack
    for i in range(count):
        send(pack(i, 1, 2, 3, 4, 5, 6, 7))


def _receive_summed(messages: Messages, _: bytes, count: int) -> None:
    unpack = _NUMBERS.unpack
    total = 0
    for message in islice(messages, count):
        total += sum(unpack(message))
    if total != sum(range(count)) + count * sum(range(8)):
        raise ValueError("the messages received are not those sent")


_CONTENTS = {"same": (send_same, receive_same), "built": (_send_built, _receive_summed)}
