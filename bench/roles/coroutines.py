"""Streams and round trips in an event loop."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Any

from bench.contents import CONTENTS, Content
from bench.peers import Address, AsyncMessages, load, meet
from bench.roles import SIZE, check, end_of, payload, warm_up
from bench.roles.objects import objects_to_warm_up
from bench.roles.trips import share_processor


def send_stream(channel: Connection, system: str, address: Address, count: int) -> int:
    """As `streams.send_stream`."""

    async def send_all() -> int:
        message = payload(SIZE)
        await _meet(channel)
        async with load(system).async_sender(address, SIZE) as send:
            for _ in range(warm_up(SIZE)):
                await send(message)
            await _meet(channel)
            start = time.perf_counter_ns()
            for _ in range(count):
                await send(message)
            await send(end_of(message))
            await _meet(channel)
        return start

    return asyncio.run(send_all())


def receive_stream(channel: Connection, system: str, address: Address, count: int) -> int:
    """As `streams.receive_stream`, with `async for`."""

    async def receive_all() -> int:
        message = payload(SIZE)
        async with load(system).async_receiver(address, SIZE) as messages:
            await _meet(channel)
            await _receive_same(messages, message, warm_up(SIZE))
            await _meet(channel)
            await _receive_same(messages, message, count)
            end = time.perf_counter_ns()
            check(await anext(messages), end_of(message))
            await _meet(channel)
        return end

    return asyncio.run(receive_all())


def send_objects(channel: Connection, system: str, address: Address, count: int, name: str) -> int:
    """As `objects.send_objects`."""

    async def send_all() -> int:
        content = CONTENTS[name]
        value = content.make()
        await _meet(channel)
        async with load(system).async_sender(address, content.nbytes) as send:
            for _ in range(objects_to_warm_up(content)):
                await send(value)
            await _meet(channel)
            start = time.perf_counter_ns()
            for _ in range(count):
                await send(value)
            await send(content.end_of(value))
            await _meet(channel)
        return start

    return asyncio.run(send_all())


def receive_objects(channel: Connection, system: str, address: Address, count: int, name: str) -> int:
    """As `objects.receive_objects`, with `async for`."""

    async def receive_all() -> int:
        content = CONTENTS[name]
        expected = content.make()
        async with load(system).async_receiver(address, content.nbytes) as objects:
            await _meet(channel)
            await _receive_objects(objects, objects_to_warm_up(content), content, expected)
            await _meet(channel)
            end = await _receive_objects(objects, count, content, expected)
            await _receive_objects(objects, 1, content, content.end_of(expected))
            await _meet(channel)
        return end

    return asyncio.run(receive_all())


def ping(channel: Connection, system: str, address: Address, count: int, size: int, pause: float = 0) -> list[int]:
    """As `trips.ping`."""

    async def ping_all() -> list[int]:
        message = os.urandom(size)
        times = []
        peer = load(system)
        share_processor(peer, size)
        async with peer.async_receiver(address.at("back"), size) as messages:
            await _meet(channel)
            async with peer.async_sender(address.at("forth"), size) as send:
                for _ in range(count):
                    if pause:
                        await asyncio.sleep(pause)
                    start = time.perf_counter_ns()
                    await send(message)
                    echo = await anext(messages)
                    times.append(time.perf_counter_ns() - start)
                check(echo, message)
                await _meet(channel)
        return times

    return asyncio.run(ping_all())


def pong(channel: Connection, system: str, address: Address, count: int, size: int, pause: float = 0) -> None:
    """As `trips.pong`."""

    async def pong_all() -> None:
        peer = load(system)
        share_processor(peer, size)
        async with peer.async_receiver(address.at("forth"), size) as messages:
            await _meet(channel)
            async with peer.async_sender(address.at("back"), size) as send:
                for _ in range(count):
                    await send(await anext(messages))
                await _meet(channel)

    asyncio.run(pong_all())


async def _receive_same(messages: AsyncMessages, expected: bytes, count: int) -> None:
    left = count
    async for message in messages:  # noqa: B007, the last one is looked at
        left -= 1
        if not left:
            break
    check(message, expected)


async def _receive_objects(objects: AsyncIterator[Any], count: int, content: Content, expected: Any) -> int:
    total, left = 0, count
    async for value in objects:
        total += content.look(value)
        left -= 1
        if not left:
            end = time.perf_counter_ns()
            content.check(value, total, count, expected)
            break
        del value  # A peer may want its memory back before it gives the next.
    return end


async def _meet(channel: Connection) -> None:
    """As `meet`; the event loop goes on, since a system may have to do with the other process meanwhile."""
    await asyncio.to_thread(meet, channel)
