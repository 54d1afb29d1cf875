"""Event queues in event loops."""

import asyncio
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import byref
import pytest

from tests.conftest import Endpoints

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
if uvloop is not None:
    LOOPS["uvloop"] = uvloop.new_event_loop


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a coroutine in a loop of each kind, for a minute at the most."""

    def run_in(main: Any) -> Any:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(asyncio.wait_for(main, 60))

    return run_in


@pytest.fixture
def queue() -> Iterator[byref.EventQueue]:
    """A queue that is closed at the test's end."""
    with byref.EventQueue() as made:
        yield made


def publisher(endpoints: Endpoints, topic: str = "t", subscribers: int = 1) -> byref.Publisher:
    """A publisher that its receivers have met."""
    pub = endpoints.publisher(topic)
    pub.wait_for_subscribers(subscribers, timeout=20)
    return pub


async def until(done: Callable[[], bool]) -> None:
    """Waits until something is so; `run` ends what lasts too long."""
    while not done():
        await asyncio.sleep(0.001)


class Receivers:
    """Coroutine functions of several kinds, and a plain one."""

    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []
        self.inside = 0

    async def method(self, msg: byref.Message) -> None:
        assert self.inside == 0, "one after the other"
        self.inside += 1
        await asyncio.sleep(0)
        self.inside -= 1
        self.got.append(("method", msg.sequence))

    async def __call__(self, msg: byref.Message) -> None:
        await asyncio.sleep(0)
        self.got.append(("instance", msg.sequence))

    async def named(self, name: str, msg: byref.Message) -> None:
        await asyncio.sleep(0)
        self.got.append((name, msg.sequence))

    def plain(self, msg: byref.Message) -> None:
        self.got.append(("plain", msg.sequence))

    def all(self) -> dict[str, Callable[[byref.Message], object]]:
        """By the name that they note."""
        return {
            "method": self.method,
            "instance": self,
            "partial": functools.partial(self.named, "partial"),
            "lambda": lambda msg: self.named("lambda", msg),
            "plain": self.plain,
        }


def test_every_kind_of_receiver(run: Callable[..., Any], queue: byref.EventQueue, endpoints: Endpoints) -> None:
    receivers = Receivers()
    for receiver in receivers.all().values():
        queue.subscribe("t", receiver)
    pub = publisher(endpoints, subscribers=5)

    async def main() -> None:
        running = asyncio.create_task(queue.run_async())
        for number in range(200):
            pub.send(b"")
            if number % 20 == 0:
                await asyncio.sleep(0.002)
        await until(lambda: len(receivers.got) == 1000)
        queue.stop()
        await running

    run(main())
    for name in receivers.all():
        assert [number for own, number in receivers.got if own == name] == list(range(200))
    assert queue.stats()["callbacks"] == 1000


def test_coroutine_functions_need_an_event_loop(queue: byref.EventQueue, endpoints: Endpoints) -> None:
    receivers = Receivers()
    receiver = queue.subscribe("t", receivers.method)
    publisher(endpoints).send(b"")
    for call in (queue.run, queue.dispatch, queue.run):
        with pytest.raises(TypeError, match=r"Receivers\.method of topic 't' is a coroutine function.*run_async"):
            call()
    assert receiver.stats()["received"] == 0, "nothing is lost"

    async def main() -> None:
        running = asyncio.create_task(queue.run_async())
        await until(lambda: receivers.got == [("method", 0)])
        queue.stop()
        await running

    asyncio.run(main())
    with pytest.raises(TypeError, match="run_async"):
        queue.dispatch()


def test_cancellation_loses_nothing(run: Callable[..., Any], queue: byref.EventQueue, endpoints: Endpoints) -> None:
    begun: list[int] = []
    finished: list[int] = []
    plain: list[int] = []

    async def receive(msg: byref.Message) -> None:
        begun.append(msg.sequence)
        await asyncio.sleep(0.0005 if msg.sequence % 3 else 0)
        finished.append(msg.sequence)

    queue.subscribe("t", receive)
    queue.subscribe("t", lambda msg: plain.append(msg.sequence))
    pub = publisher(endpoints, subscribers=2)
    count = 300

    async def main() -> None:
        turns = itertools.count()
        sent = 0
        while len(begun) < count or len(plain) < count:
            running = asyncio.create_task(queue.run_async())
            if sent < count:
                pub.send(b"")
                sent += 1
            for _ in range(next(turns) % 5):
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    run(main())
    assert begun == list(range(count))
    assert plain == list(range(count))
    assert set(finished) <= set(begun)


@pytest.mark.parametrize("on_error", ["raise", "log", "detach"])
def test_exceptions_in_coroutines(
    on_error: Any, endpoints: Endpoints, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    got: list[int] = []

    async def receive(msg: byref.Message) -> None:
        await asyncio.sleep(0)
        got.append(msg.sequence)
        if msg.sequence == 3:
            raise LookupError("the third")

    with byref.EventQueue(on_error=on_error) as queue:
        receiver = queue.subscribe("t", receive)
        pub = publisher(endpoints)
        for _ in range(6):
            pub.send(b"")

        async def main() -> None:
            running = asyncio.create_task(queue.run_async())
            if on_error == "raise":
                with pytest.raises(LookupError):
                    await running
                running = asyncio.create_task(queue.run_async())
            await until(lambda: receiver.closed if on_error == "detach" else len(got) == 6)
            queue.stop()
            await running

        run(main())
    assert got == list(range(4 if on_error == "detach" else 6))
    assert ("the third" in caplog.text) == (on_error != "raise")


def test_the_loop_goes_on_under_load(run: Callable[..., Any], queue: byref.EventQueue, endpoints: Endpoints) -> None:
    queue.subscribe("t", lambda _: None)
    pub = publisher(endpoints)
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            pub.send(b"", timeout=20)

    async def main() -> None:
        running = asyncio.create_task(queue.run_async())
        sender = threading.Thread(target=send)
        sender.start()
        for _ in range(100):
            await asyncio.sleep(0.001)
        over.set()
        while sender.is_alive():
            await asyncio.sleep(0.001)
        queue.stop()
        await running

    run(main())
    assert queue.stats()["callbacks"] > 0


def test_from_inside_a_coroutine(run: Callable[..., Any], queue: byref.EventQueue, endpoints: Endpoints) -> None:
    got: list[int] = []

    async def receive(msg: byref.Message) -> None:
        await asyncio.sleep(0)
        got.append(msg.sequence)
        if len(got) == 1:
            first.close()
            queue.subscribe("other", receive)
        if len(got) == 2:
            queue.stop()

    first = queue.subscribe("t", receive)
    pub = publisher(endpoints)
    pub.send(b"")
    pub.send(b"")

    async def main() -> None:
        running = asyncio.create_task(queue.run_async())
        await until(lambda: len(got) == 1)
        other = endpoints.publisher("other")
        await until(lambda: bool(other.subscribers))
        other.send(b"")
        await running

    run(main())
    assert got == [0, 0]


@pytest.mark.parametrize("closer", ["the loop", "a thread"])
def test_closing_ends_the_run(closer: str, run: Callable[..., Any], queue: byref.EventQueue) -> None:
    queue.subscribe("t", print)

    async def main() -> None:
        running = asyncio.create_task(queue.run_async())
        await asyncio.sleep(0.05)
        with pytest.raises(byref.Error, match="runs already"):
            await queue.run_async()
        if closer == "the loop":
            queue.close()
        else:
            threading.Thread(target=queue.close).start()
        await running

    run(main())
