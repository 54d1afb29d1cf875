"""Who has nothing to do uses no processor time."""

import asyncio
import resource
from collections.abc import Callable

import byref

from tests.processes import Child, Line, use_no_processor_time

Spawn = Callable[..., Child]


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
    children = [publisher, *readers]
    assert use_no_processor_time([child.pid for child in children])
    publisher.tell()
    readers[2].tell()
    for child in children:
        child.finish()


def many_that_are_idle(line: Line, is_publisher: bool) -> None:
    """A thousand subscribers that nobody receives from, or their publisher."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(1000, hard // 8)
    if is_publisher:
        with byref.Publisher("t") as pub:
            pub.wait_for_subscribers(count, timeout=60)
            pub.send(b"to all")
            line.tell("idle")
            line.hear(90)
            return
    subs = [byref.Subscriber("t") for _ in range(count)]
    for sub in subs:
        assert bytes(sub.recv(timeout=60)) == b"to all"
    line.tell("idle")
    line.hear(90)


def test_a_thousand_idle_subscribers_use_no_processor_time(spawn: Spawn) -> None:
    children = [spawn(many_that_are_idle, is_publisher) for is_publisher in (False, True)]
    assert [child.hear(90) for child in children] == ["idle"] * 2
    assert use_no_processor_time([child.pid for child in children])
    for child in children:
        child.tell()
        child.finish()
