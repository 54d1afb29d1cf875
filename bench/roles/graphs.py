"""Programs of ezmsg: a publisher, its subscribers, and stages between; with byref they run on its adapter."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.peers import Address

LARGE = 64 << 10
"""Bytes from which a message is an array, instead of bytes."""

WARM_UP = 50


def publish(channels: list[Connection], system: str, address: Address, count: int, size: int, stages: int) -> float:
    """Send to all others, or to a chain of so many; gives how many nanoseconds that took."""
    # Who is to receive from where, and to send on to where.
    places = [(f"{number}", f"{number + 1}" if number < stages else "") for number in range(stages + 1)]
    roles = places if stages else [("0", "") for _ in channels]
    for channel, role in zip(channels, roles, strict=True):
        channel.send(role)

    async def send_all(context: Any) -> float:
        for channel in channels:
            await asyncio.to_thread(channel.recv)
        publisher = await context.publisher("0", buf_size=size + LARGE)
        await _send(publisher, 0, WARM_UP, size)
        for channel in channels:
            await asyncio.to_thread(channel.recv)
        start = time.perf_counter_ns()
        await _send(publisher, WARM_UP, count, size)
        ends = [await asyncio.to_thread(channel.recv) for channel in channels]
        await publisher.sync()
        for channel in channels:
            channel.send(None)
        return max(ends) - start

    return _run(system, address, send_all)


def receive(channel: Connection, system: str, address: Address, count: int, size: int, stages: int) -> None:
    """Receive all, and pass them on if there is a stage behind this one."""
    topic, onward = channel.recv()

    async def receive_all(context: Any) -> None:
        publisher = await context.publisher(onward, buf_size=size + LARGE) if onward else None
        subscriber = await context.subscriber(topic)
        channel.send(None)
        await _receive(subscriber, publisher, 0, WARM_UP)
        channel.send(None)
        await _receive(subscriber, publisher, WARM_UP, count)
        channel.send(time.perf_counter_ns())
        await asyncio.to_thread(channel.recv)

    _run(system, address, receive_all)


def _run(system: str, address: Address, program: Any) -> Any:
    if system == "byref":
        from byref.integrations.ezmsg import install

        install()
    from ezmsg.core.graphcontext import GraphContext

    logging.getLogger("ezmsg").setLevel(logging.ERROR)  # No word when a subscriber is slow.

    async def main() -> Any:
        async with GraphContext(("127.0.0.1", address.port), auto_start=False) as context:
            work: Coroutine[Any, Any, Any] = program(context)
            return await work

    return asyncio.run(main())


def _number_of(message: Any) -> int:
    """The number of a message; `ValueError` if it is not whole."""
    first, last = (
        (message[0], message[-1]) if isinstance(message, np.ndarray) else np.frombuffer(message, np.int64)[[0, -1]]
    )
    if first != last:
        raise ValueError(f"a message of {first} and {last}")
    return int(first)


async def _send(publisher: Any, first: int, count: int, size: int) -> None:
    array = np.zeros(size // 8, np.int64)
    for number in range(first, first + count):
        array[0] = array[-1] = number
        await publisher.broadcast(array if size >= LARGE else array.tobytes())


async def _receive(subscriber: Any, publisher: Any, first: int, count: int) -> None:
    for number in range(first, first + count):
        message = await subscriber.recv()
        if (found := _number_of(message)) != number:
            raise ValueError(f"message {number} arrived as {found}")
        if publisher is not None:
            message[1] += 1
            await publisher.broadcast(message)
