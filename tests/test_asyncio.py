"""Subscribers in event loops: `async for`, `fileno()` and selectors."""

import asyncio
import contextlib
import gc
import selectors
import threading
import weakref
from collections.abc import Callable

import byref
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import PATIENCE, Child, Line, count_of_descriptors

Spawn = Callable[..., Child]


def publish(line: Line, count: int, pause: float, subscribers: int = 1) -> None:
    """Sends in bursts with pauses in between."""
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(subscribers, timeout=30)
        for seed in range(count):
            pub.send(payload(seed, 1000 if seed % 2 else 10))
            if pause and seed % 10 == 0:
                threading.Event().wait(pause)
        pub.flush(timeout=30)
        line.hear()


@pytest.mark.parametrize(("count", "pause"), [(20_000, 0.0), (500, 0.003)])
def test_async_for(count: int, pause: float, spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    publisher = spawn(publish, count, pause)

    async def receive() -> int:
        beats = 0

        async def heartbeat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.001)
                beats += 1

        beating = asyncio.create_task(heartbeat())
        expected = 0
        async for msg in sub:
            assert msg.sequence == expected
            assert is_payload(msg, expected, 1000 if expected % 2 else 10)
            expected += 1
            if expected == count:
                break
        beating.cancel()
        return beats

    assert asyncio.run(asyncio.wait_for(receive(), 60)) > 3, "other tasks had their turns"
    publisher.tell()
    publisher.finish()


def test_cancellation_loses_nothing(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()

    async def main() -> list[int]:
        received: list[int] = []

        async def take() -> None:
            received.append((await anext(aiter(sub))).sequence)

        sent = 0
        for turn in range(400):
            task = asyncio.create_task(take())
            await asyncio.sleep(0)
            if turn % 2:
                pub.send(b"")
                sent += 1
            if turn % 3:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(TimeoutError):  # noqa: PT012
            while True:
                await asyncio.wait_for(take(), 0.2)
        assert len(received) == sent
        return received

    received = asyncio.run(main())
    assert received == list(range(len(received)))


def test_several_tasks_on_one_subscriber(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()

    async def main() -> None:
        received: list[list[int]] = [[] for _ in range(3)]

        async def take(place: int) -> None:
            async for msg in sub:
                received[place].append(msg.sequence)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(take(place)) for place in range(3)]
        for _ in range(100):
            for _ in range(3):
                pub.send(b"")
            await asyncio.sleep(0.001)
        while sum(map(len, received)) < 300:
            await asyncio.sleep(0.01)
        sub.close()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert sorted(number for own in received for number in own) == list(range(300))
        assert all(own == sorted(own) and own for own in received)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_reader_of_the_programs_own_stays(endpoints: Endpoints) -> None:
    """A loop knows one reader for each descriptor."""
    pub, sub = endpoints.pair()
    queue = byref.EventQueue()

    async def main() -> None:
        loop, called = asyncio.get_running_loop(), asyncio.Event()

        async def is_called() -> None:
            await asyncio.wait_for(called.wait(), 20)
            called.clear()

        loop.add_reader(sub.fileno(), called.set)
        for receive in (sub.recv_async, lambda: anext(aiter(sub))):
            task = asyncio.ensure_future(receive())
            await asyncio.sleep(0.01)
            pub.send(b"")
            await asyncio.wait_for(task, 20)
            await is_called()
        pub.send(b"")
        await is_called()
        assert loop.remove_reader(sub.fileno())

        loop.add_reader(queue.fileno(), called.set)
        running = asyncio.create_task(queue.run_async())
        await asyncio.sleep(0.05)
        called.clear()
        queue.stop()
        await is_called()
        await asyncio.wait_for(running, 20)
        assert loop.remove_reader(queue.fileno())

    asyncio.run(main())


def test_closed_loops_leave_nothing_behind(endpoints: Endpoints) -> None:
    _, sub = endpoints.pair()

    async def wait(ends: bool) -> None:
        if ends:
            with pytest.raises(byref.Timeout):
                await sub.recv_async(timeout=0.01)
        else:
            asyncio.get_running_loop().call_later(0.01, asyncio.get_running_loop().stop)
            await sub.recv_async()

    def go(ends: bool) -> weakref.ref[asyncio.AbstractEventLoop]:
        loop = asyncio.new_event_loop()
        task = loop.create_task(wait(ends))
        with contextlib.suppress(RuntimeError):
            loop.run_until_complete(task)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()
        return weakref.ref(loop)

    go(True)
    before = count_of_descriptors()
    loops = [go(ends) for ends in (True, False) * 5]
    gc.collect()
    assert [loop() for loop in loops] == [None] * 10
    assert count_of_descriptors() == before


def test_a_loop_that_is_closed_meanwhile(endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber that another thread closes looks at the loop just before that is closed."""
    _, sub = endpoints.pair()
    loop = asyncio.new_event_loop()
    task = loop.create_task(sub.recv_async())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    monkeypatch.setattr(loop, "is_closed", lambda: False)
    sub.close()
    monkeypatch.undo()
    task.get_coro().close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", ["try_recv", "recv", "recv_async", "async for"])
def test_who_takes_at_once_takes_no_wake_up_away(way: str, endpoints: Endpoints) -> None:
    """Who looks first hears of a publisher and its two messages. The task that has been waiting gets one of them."""
    sub = endpoints.subscriber(history=2)

    async def take() -> byref.Message | byref.Event | None:
        match way:
            case "try_recv":
                return sub.try_recv()
            case "recv":
                return sub.recv(timeout=20)
            case "recv_async":
                return await sub.recv_async()
        return await anext(aiter(sub))

    async def main() -> None:
        for _ in range(10):
            waiting = asyncio.create_task(sub.recv_async())
            await asyncio.sleep(0.01)
            with byref.Publisher("t", history=2) as pub:
                pub.send(b"")
                pub.send(b"")
                pub.wait_for_subscribers(timeout=20)
                sub.wait_for_publishers(timeout=20)
                taken = await take()
                assert isinstance(taken, byref.Message)
                assert taken.sequence == 0
                assert (await asyncio.wait_for(waiting, 20)).sequence == 1
            while sub.publishers:
                await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.mark.parametrize("closer", ["the loop", "a thread"])
def test_closing_ends_the_iteration(closer: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()

    async def main() -> int:
        received = 0

        async def take() -> None:
            nonlocal received
            async for _ in sub:
                received += 1

        tasks = [asyncio.create_task(take()) for _ in range(3)]
        pub.send(b"")
        await asyncio.sleep(0.05)
        if closer == "the loop":
            sub.close()
        else:
            threading.Thread(target=sub.close).start()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        async for _ in sub:  # Already closed: it ends at once.
            raise AssertionError
        return received

    assert asyncio.run(main()) == 1


def test_one_loop_after_another(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()

    async def take() -> int:
        return (await asyncio.wait_for(anext(aiter(sub)), 20)).sequence

    for expected in range(5):
        sender = threading.Timer(0.02, pub.send, (b"",))
        sender.start()
        assert asyncio.run(take()) == expected
        sender.join()


def test_two_loops_at_once(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    received: list[int] = []

    async def take() -> None:
        async for msg in sub:
            received.append(msg.sequence)

    workers = [threading.Thread(target=lambda: asyncio.run(take())) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(1000):
        pub.send(b"", timeout=20)
    pub.flush(timeout=20)
    sub.close()
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()
    assert sorted(received) == list(range(1000))


def test_fileno_with_a_selector(spawn: Spawn, endpoints: Endpoints) -> None:
    one, two = endpoints.subscriber(), endpoints.subscriber(policy="drop_oldest")
    with selectors.DefaultSelector() as selector:
        counts = {one: 0, two: 0}
        for sub in counts:
            selector.register(sub.fileno(), selectors.EVENT_READ, sub)
        publisher = spawn(publish, 1000, 0.001, 2)
        while min(counts.values()) < 1000:
            # Meaningful only once there is nothing to take.
            for sub in counts:
                while sub.try_recv() is not None:
                    counts[sub] += 1
            if min(counts.values()) < 1000:
                assert selector.select(30), counts
    assert two.lost == 0
    publisher.tell()
    publisher.finish()


def test_fileno_sees_the_end(endpoints: Endpoints) -> None:
    _, sub = endpoints.pair()
    assert sub.try_recv() is None
    fd = sub.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        sub.close()
        assert selector.select(20)
    assert sub.fileno() == fd


def test_a_task_beside_a_thread_that_receives(endpoints: Endpoints) -> None:
    """What the thread reads of wake-ups was meant for the task, too: both get one of two messages."""
    pub, sub = endpoints.pair()

    async def main() -> None:
        for _ in range(20):
            task = asyncio.create_task(sub.recv_async(timeout=PATIENCE))
            await asyncio.sleep(0.005)
            thread = asyncio.get_running_loop().run_in_executor(None, sub.recv, PATIENCE)
            await asyncio.sleep(0.02)
            pub.send(b"1")
            await asyncio.sleep(0.02)
            pub.send(b"2")
            assert {bytes(msg) for msg in await asyncio.gather(task, thread)} == {b"1", b"2"}

    asyncio.run(main())
