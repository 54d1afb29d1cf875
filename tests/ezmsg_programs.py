"""Programs that use ezmsg and know nothing of byref, for tests of the adapter.

With `BYREF_TEST_EZMSG=plain` they run on ezmsg alone: then the tests of what the adapter promises fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import ezmsg.core as ez
import numpy as np
from ezmsg.core.graphserver import GraphServer

from tests.processes import PATIENCE, Line

IS_PLAIN = os.environ.get("BYREF_TEST_EZMSG") == "plain"

# Where a subscriber is, seen from its publisher: in the same process, and by ezmsg's shared memory if so.
LOCAL, SHM, PROCESS = "same process", "shared memory", "another process"


def prepare(adapter: bool = True) -> None:
    """Put the adapter in place."""
    if adapter and not IS_PLAIN:
        from byref.integrations.ezmsg import install

        install()


def serve(line: Line) -> None:
    """A graph server, until it is killed."""
    server = GraphServer()
    server.start(("127.0.0.1", 0))
    line.tell(list(server.address))
    line.hear(10 * PATIENCE)


def run(line: Line, name: str, address: list[Any], allow_local: bool, options: dict[str, Any]) -> None:
    """One of the programs below."""
    prepare(options.pop("adapter", True))
    program: Callable[..., Awaitable[None]] = globals()[name]

    async def main() -> None:
        async with ez.GraphContext((address[0], address[1]), auto_start=False) as context:
            await program(Side(line, context, allow_local), **options)

    asyncio.run(main())


class Side:
    """What a program has."""

    def __init__(self, line: Line, context: Any, allow_local: bool) -> None:
        self.line = line
        self.context = context
        self._allow_local = allow_local

    async def publisher(self, topic: str, **options: Any) -> Any:
        """A publisher; all subscribers that there are know it."""
        return await self.context.publisher(topic, allow_local=self._allow_local, **options)

    async def subscriber(self, topic: str, **options: Any) -> Any:
        """A subscriber."""
        return await self.context.subscriber(topic, **options)

    async def hear(self) -> Any:
        """What the test says next."""
        return await asyncio.to_thread(self.line.hear)


async def both(side: Side, first: str, second: str, options: dict[str, Any]) -> None:
    """Two programs in one process: the second begins when the first has its subscribers."""
    task = asyncio.create_task(globals()[first](side, **options))
    await asyncio.sleep(0.2)
    await asyncio.gather(task, globals()[second](side, **options))


# ---- a publisher that refills its array ------------------------------------------------------------------------------


async def refill(side: Side, count: int, length: int, num_buffers: int, topic: str = "A") -> None:
    """Publish one array again and again, filled with the message's number."""
    publisher = await side.publisher(topic, num_buffers=num_buffers)
    array = np.zeros(length, np.int64)
    for number in range(count):
        array[:] = number
        await publisher.broadcast({"number": number, "array": array})
    await publisher.sync()


async def relay(side: Side, count: int, **_options: Any) -> None:
    """Publish what comes, as it comes."""
    subscriber = await side.subscriber("A")
    publisher = await side.publisher("B")
    side.line.tell("ready")
    for _ in range(count):
        async with subscriber.recv_zero_copy() as message:
            await publisher.broadcast(message)
    await publisher.sync()


async def keep_a_window(side: Side, count: int, topic: str = "A", **_options: Any) -> None:
    """Keep the last 40 arrays, and look at all of them now and then. Tells how many messages were wrong."""
    subscriber = await side.subscriber(topic)
    side.line.tell("ready")
    window: deque[tuple[int, Any]] = deque(maxlen=40)
    wrong = set()
    for expected in range(count):
        with contextlib.suppress(BufferError):  # Of ezmsg alone: that somebody keeps a view.
            async with subscriber.recv_zero_copy() as message:
                if message["number"] != expected:
                    wrong.add(expected)
                window.append((expected, message["array"]))
            del message
        if expected % 20 == 0 or expected == count - 1:
            wrong.update(number for number, array in window if not (array == number).all())
    side.line.tell(len(wrong))


async def relay_and_window(side: Side, count: int, **options: Any) -> None:
    """The relay and the one behind it."""
    window = asyncio.create_task(keep_a_window(side, count, "B"))
    await asyncio.sleep(0.1)
    await asyncio.gather(window, relay(side, count))


# ---- ends ------------------------------------------------------------------------------------------------------------


async def send_and_stay(side: Side, count: int, subscribers: int = 0, **options: Any) -> None:
    """Publish, say so, and then do what the test says: close, or wait to be killed."""
    publisher = await side.publisher("A", num_buffers=count + 1)
    while len(publisher._channels) <= subscribers:  # Its own is one of them.
        await asyncio.sleep(0.01)
    for number in range(count):
        await publisher.broadcast(np.full(10_000, number))
    side.line.tell("sent")
    if await side.hear() == "close":
        publisher.close()
        await publisher.wait_closed()
        side.line.tell("closed")
        await side.hear()


async def receive_late(side: Side, **options: Any) -> None:
    """Begin to receive when the test says so, and tell what came until there was an error, or nothing more."""
    subscriber = await side.subscriber("A")
    side.line.tell("ready")
    clock = asyncio.get_running_loop().time
    while True:
        told = await side.hear()
        if told == "end":
            return
        found: list[Any] = []
        began = clock()
        error = None
        while error is None:
            try:
                async with asyncio.timeout(told):
                    found.append(int((await subscriber.recv())[0]))
            except TimeoutError:
                error = "silence"
            except Exception as problem:
                error = type(problem).__name__
        side.line.tell([found, error, clock() - began])


async def send_late(side: Side, **options: Any) -> None:
    """What the publisher does of a pair in one process: `send_and_stay`, closed at once."""
    publisher = await side.publisher("A", num_buffers=50)
    for number in range(20):
        await publisher.broadcast(np.full(10_000, number))
    publisher.close()
    await publisher.wait_closed()


# ---- messages that grow ----------------------------------------------------------------------------------------------


async def grow(side: Side, steps: int, buf_size: int = 1024, **_options: Any) -> None:
    """Publish larger and larger messages, without a pause."""
    publisher = await side.publisher("A", num_buffers=8, buf_size=buf_size)
    for step in range(steps):
        for number in range(5):
            await publisher.broadcast({"number": 5 * step + number, "array": np.full(1 << step, step)})
    await publisher.sync()


async def receive_growing(side: Side, steps: int, **_options: Any) -> None:
    """Tell which messages came, in order, and whether all were right."""
    subscriber = await side.subscriber("A")
    side.line.tell("ready")
    found, right = [], True
    with contextlib.suppress(TimeoutError):
        while len(found) < 5 * steps:
            async with asyncio.timeout(20):
                try:
                    message = await subscriber.recv()
                except Exception as problem:
                    found.append(type(problem).__name__)
                    break
            found.append(message["number"])
            step = message["number"] // 5
            right = right and message["array"].shape == (1 << step,) and bool((message["array"] == step).all())
            await asyncio.sleep(0.002)
    side.line.tell([found, right])


# ---- units -----------------------------------------------------------------------------------------------------------


def run_units(line: Line, *arguments: Any) -> None:
    """A collection of `ezmsg_units`, until its end."""
    from tests.ezmsg_units import run_collection

    run_collection(*arguments)
    line.tell("over")
