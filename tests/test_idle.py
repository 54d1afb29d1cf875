"""Who has nothing to do uses no processor time."""

import asyncio
import time
from collections.abc import Callable

import byref

from tests.processes import Child, Line, cpu_ticks

Spawn = Callable[..., Child]

SECONDS = 6.0


def publish(line: Line) -> None:
    """Sends something first, so that everybody has been awake."""
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(3, timeout=60)
        for size in (10, 100_000) * 50:
            pub.send(bytes(size))
        line.tell("idle")
        line.hear(90)
        pub.send(b"end")
        pub.flush(timeout=30)


def receive(line: Line) -> None:
    """Waits in `recv`."""
    with byref.Subscriber("t") as sub:
        while bytes(sub.recv()) != b"end":
            pass


def receive_async(line: Line) -> None:
    """Waits in an event loop."""

    async def main() -> None:
        async for msg in sub:
            if bytes(msg) == b"end":
                return

    with byref.Subscriber("t") as sub:
        asyncio.run(main())


def ignore(line: Line) -> None:
    """Is subscribed and does something else."""
    with byref.Subscriber("t", policy="latest") as sub:
        sub.wait_for_publishers(timeout=60)
        line.hear(90)


def test_idle_endpoints_use_no_processor_time(spawn: Spawn) -> None:
    readers = [spawn(receive), spawn(receive_async), spawn(ignore)]
    publisher = spawn(publish)
    assert publisher.hear() == "idle"
    time.sleep(0.5)
    children = [publisher, *readers]
    before = [cpu_ticks(child.pid) for child in children]
    time.sleep(SECONDS)
    used = [cpu_ticks(child.pid) - ticks for child, ticks in zip(children, before, strict=True)]
    assert max(used) <= 1, used
    publisher.tell()
    readers[2].tell()
    for child in children:
        child.finish()
