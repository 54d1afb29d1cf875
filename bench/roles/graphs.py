"""Programs of ezmsg: a publisher, its subscribers, and stages between; with byref they run on its adapter."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.peers import Address

BUFFERS, LARGE_BUFFERS = 1024, 8
"""Of small and of large messages; measured best for ezmsg alone, see `peers.ezmsg_`."""

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
        publisher = await context.publisher("0", **_options(size))
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
        publisher = await context.publisher(onward, **_options(size)) if onward else None
        subscriber = await context.subscriber(topic)
        channel.send(None)
        await _receive(subscriber, publisher, 0, WARM_UP)
        channel.send(None)
        await _receive(subscriber, publisher, WARM_UP, count)
        channel.send(time.perf_counter_ns())
        await asyncio.to_thread(channel.recv)

    _run(system, address, receive_all)


def _options(size: int) -> dict[str, int]:
    is_small = size < 64 << 10
    return {"num_buffers": BUFFERS if is_small else LARGE_BUFFERS, "buf_size": size + (64 << 10)}


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


async def _send(publisher: Any, first: int, count: int, size: int) -> None:
    array = np.zeros(size // 8, np.int64)
    for number in range(first, first + count):
        array[0] = array[-1] = number
        await publisher.broadcast(array)


async def _receive(subscriber: Any, publisher: Any, first: int, count: int) -> None:
    for number in range(first, first + count):
        array = await subscriber.recv()
        if not array[0] == array[-1] == number:
            raise ValueError(f"message {number} arrived as {array[0]}, {array[-1]}")
        if publisher is not None:
            array[1] += 1
            await publisher.broadcast(array)
