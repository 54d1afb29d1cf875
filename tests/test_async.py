"""`recv_async`, `send_async`, `async for`, tickets and queues in every kind of event loop."""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import byref
import numpy as np
import pyarrow as pa
import pytest
import trio
import uvloop
from PIL import Image

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import PATIENCE, ROOT, Child, Line

Spawn = Callable[..., Child]
Main = Callable[[], Awaitable[Any]]


def with_uvloop(main: Main) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())  # type: ignore[arg-type]


LOOPS: dict[str, Callable[[Main], Any]] = {
    "asyncio": lambda main: asyncio.run(main()),  # type: ignore[arg-type]
    "uvloop": with_uvloop,
    "trio": lambda main: trio.run(main),
    "anyio on asyncio": lambda main: anyio.run(main, backend="asyncio"),
    "anyio on trio": lambda main: anyio.run(main, backend="trio"),
}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    """Runs an asynchronous function; anyio's functions work within."""
    return LOOPS[request.param]


def publish(line: Line, count: int, pause: float) -> None:
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=30)
        for seed in range(count):
            pub.send(payload(seed, 1000 if seed % 2 else 10))
            if pause and seed % 10 == 0:
                time.sleep(pause)
        pub.flush(timeout=30)
        line.hear()


@pytest.mark.parametrize("how", ["recv_async", "async for"])
@pytest.mark.parametrize(("count", "pause"), [(5_000, 0.0), (200, 0.003)])
def test_another_process_sends(
    how: str, count: int, pause: float, run: Callable[[Main], Any], spawn: Spawn, endpoints: Endpoints
) -> None:
    sub = endpoints.subscriber()
    publisher = spawn(publish, count, pause)
    numbers = itertools.count()

    def check(msg: byref.Message) -> int:
        number = next(numbers)
        assert msg.sequence == number
        assert is_payload(msg, number, 1000 if number % 2 else 10)
        return number

    async def main() -> int:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await anyio.sleep(0.001)
                beats += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat)
            with anyio.fail_after(60):
                if how == "recv_async":
                    while check(await sub.recv_async(timeout=30)) < count - 1:
                        pass
                else:
                    async for msg in sub:
                        if check(msg) == count - 1:
                            break
            tasks.cancel_scope.cancel()
        return beats

    assert run(main) > 3, "other tasks had their turns"
    publisher.tell()
    publisher.finish()


def test_receiving_times_out(run: Callable[[Main], Any], endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    nobody = endpoints.subscriber("nobody")

    async def main() -> None:
        began = time.monotonic()
        with pytest.raises(byref.Timeout, match=r"recv on topic 't' timed out after 100ms$"):
            await sub.recv_async(timeout=0.1)
        with pytest.raises(byref.Timeout, match="no publisher is connected"):
            await nobody.recv_async(0)
        assert time.monotonic() - began >= 0.1
        pub.send(b"x")
        assert bytes(await sub.recv_async(timeout=0)) == b"x"
        with pytest.raises(ValueError, match="timeout must be"):
            await sub.recv_async(timeout=-1)
        sub.close()
        with pytest.raises(byref.Closed):
            await sub.recv_async()

    run(main)


def test_a_cancelled_receive_loses_nothing(run: Callable[[Main], Any], endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    received: list[int] = []

    async def take() -> None:
        received.append((await sub.recv_async()).sequence)

    async def main() -> None:
        sent = 0
        for turn in range(300):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                for _ in range(turn % 3):
                    await anyio.sleep(0)
                if turn % 2:
                    pub.send(b"")
                    sent += 1
                for _ in range(turn % 5):
                    await anyio.sleep(0)
                tasks.cancel_scope.cancel()
        with anyio.move_on_after(0.2):
            while True:
                await take()
        assert received == list(range(sent))

    run(main)


@pytest.mark.parametrize("closes", [False, True])
def test_several_tasks_on_one_subscriber(closes: bool, run: Callable[[Main], Any], endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    received: list[list[int]] = [[] for _ in range(3)]

    async def take(place: int) -> None:
        async for msg in sub:
            received[place].append(msg.sequence)
            await anyio.sleep(0)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for place in range(3):
                tasks.start_soon(take, place)
            for _ in range(50):
                for _ in range(3):
                    pub.send(b"")
                await anyio.sleep(0.001)
            with anyio.fail_after(20):
                while sum(map(len, received)) < 150:
                    await anyio.sleep(0.01)
                if closes:
                    sub.close()
                else:
                    tasks.cancel_scope.cancel()

    run(main)
    assert sorted(number for own in received for number in own) == list(range(150))
    assert all(own == sorted(own) and own for own in received)


def batches() -> pa.RecordBatchReader:
    """A stream that can be read once."""
    batch = pa.record_batch({"a": np.arange(10_000)})
    return pa.RecordBatchReader.from_batches(batch.schema, [batch])


KINDS: dict[str, tuple[Callable[[], Any], Callable[[byref.Message], bool]]] = {
    "small": (lambda: b"small", lambda msg: bytes(msg) == b"small"),
    "large": (lambda: payload(3, 80_000), lambda msg: is_payload(msg, 3, 80_000)),
    "with headers": (lambda: np.arange(5), lambda msg: msg.headers == {"a": 1} and list(msg.value) == [0, 1, 2, 3, 4]),
    "array in pieces": (
        lambda: np.arange(20_000)[::2],
        lambda msg: bool((np.asarray(msg) == np.arange(0, 20_000, 2)).all()),
    ),
    "small dict": (lambda: {"a": [1, 2.5]}, lambda msg: msg.value == {"a": [1, 2.5]}),
    "dict of scalars": (
        lambda: {"a": list(range(20_000)), "headers": None},
        lambda msg: msg.value == {"a": list(range(20_000)), "headers": None},
    ),
    "dict": (
        lambda: {"a": np.arange(10_000), "b": [1, "x"]},
        lambda msg: msg.value["b"] == [1, "x"] and bool((msg.value["a"] == np.arange(10_000)).all()),
    ),
    "stream": (batches, lambda msg: msg.value.column("a").to_pylist() == list(range(10_000))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("short", ["records", "memory"])
def test_sending_to_the_same_loop(kind: str, short: str, run: Callable[[Main], Any], endpoints: Endpoints) -> None:
    """A send that had to wait on this thread would wait for ever."""
    make, is_right = KINDS[kind]
    pub = endpoints.publisher(max_memory=1 << 17)
    sub = endpoints.subscriber(**({"depth": 1} if short == "records" else {}))
    pub.wait_for_subscribers(timeout=20)
    received: list[byref.Message] = []
    count = 100

    async def send() -> None:
        for number in range(count):
            options = {"headers": {"a": 1}} if kind == "with headers" else {}
            assert await pub.send_async(make(), **options) == number

    async def receive() -> None:
        for number in range(count):
            await anyio.sleep(0.0005 if number % 10 else 0.005)
            msg = await sub.recv_async()
            assert msg.sequence == number
            assert is_right(msg)
            del msg  # There is no memory for two.

    async def main() -> None:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                tasks.start_soon(receive)

    run(main)
    assert received == []
    assert pub.stats()["sent"] == count


@pytest.mark.parametrize("where", ["image", "tensor"])
def test_a_send_that_waits_converts_once(
    where: str, run: Callable[[Main], Any], endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = payload(3, 90_000).reshape(150, 200, 3)
    pub, sub = endpoints.publisher(max_memory=1 << 17), endpoints.subscriber()
    pub.wait_for_subscribers(timeout=20)
    pub.send(bytes((1 << 17) - 64))
    conversions: list[None] = []
    to_bytes = Image.Image.tobytes

    def count(image: Any, *args: Any) -> bytes:
        conversions.append(None)
        return to_bytes(image, *args)

    monkeypatch.setattr(Image.Image, "tobytes", count)

    class Tensor:
        def __dlpack__(self, **options: Any) -> Any:
            conversions.append(None)
            return pixels.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return pixels.__dlpack_device__()

    async def main() -> None:
        sent = Image.fromarray(pixels) if where == "image" else Tensor()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pub.send_async, sent)
            await anyio.sleep(0.1)
            assert pub.stats()["sent"] == 1
            await sub.recv_async(timeout=20)
            msg = await sub.recv_async(timeout=20)
            assert (np.asarray(msg) == pixels).all()

    run(main)
    assert len(conversions) == 1


@pytest.mark.parametrize("headers", [None, {"a": 1}])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_message_as_that_of_send(
    kind: str, headers: Any, run: Callable[[Main], Any], endpoints: Endpoints
) -> None:
    make, _ = KINDS[kind]
    pub, sub = endpoints.pair()

    async def main() -> None:
        await pub.send_async(make(), headers)

    before = pub.stats()["pool_used"]
    run(main)
    used = pub.stats()["pool_used"] - before
    pub.send(make(), headers)
    assert pub.stats()["pool_used"] - before == 2 * used
    one, other = sub.recv(timeout=20), sub.recv(timeout=20)
    assert bytes(one) == bytes(other)
    assert one.headers == other.headers == (headers or {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("short", ["records", "memory"])
def test_a_cancelled_send_sent_nothing(kind: str, short: str, run: Callable[[Main], Any], endpoints: Endpoints) -> None:
    if short == "memory" and kind in ("small", "small dict", "with headers"):
        pytest.skip("it needs no memory")
    make, is_right = KINDS[kind]
    pub = endpoints.publisher(max_memory=1 << 17)
    sub = endpoints.subscriber(**({"depth": 1} if short == "records" else {}))
    pub.wait_for_subscribers(timeout=20)
    options: Any = {"headers": {"a": 1}} if kind == "with headers" else {}
    outcomes = []

    async def send() -> None:
        outcomes.append(await pub.send_async(make(), **options))

    async def main() -> None:
        filler = b"x" if short == "records" else bytes((1 << 17) - 64)
        pub.send(filler)
        for turn in range(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                await anyio.sleep(turn / 1000)
                tasks.cancel_scope.cancel()
        assert outcomes == []
        with pytest.raises(byref.Timeout, match=r"send on topic 't' timed out after 20ms"):
            await pub.send_async(make(), timeout=0.02, **options)
        assert pub.stats()["sent"] == 1
        if short == "records":
            assert pub.stats()["pool_used"] == 0, "what was taken is given back"
        assert len(bytes(await sub.recv_async(timeout=0))) == len(filler)
        with anyio.fail_after(20):
            assert await pub.send_async(make(), **options) == 1
        assert is_right(await sub.recv_async(timeout=0))
        assert sub.try_recv() is None

    run(main)


def test_arguments_and_errors_of_sends(run: Callable[[Main], Any], endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=1 << 20)

    async def main() -> None:
        assert await pub.send_async(b"x", {"a": "b"}, 17, 5.0) == 0
        msg = await sub.recv_async()
        assert (bytes(msg), msg.headers, msg.timestamp_ns) == (b"x", {"a": "b"}, 17)
        with pytest.raises(ValueError, match="timeout must be"):
            await pub.send_async(b"x", timeout=float("nan"))
        with pytest.raises(TypeError, match="cannot send"):
            await pub.send_async(object())
        with pytest.raises(byref.PoolExhausted):
            await pub.send_async(bytes(1 << 21))
        pub.close()
        with pytest.raises(byref.Closed):
            await pub.send_async(b"x")

    run(main)


def test_closing_ends_a_send_that_waits(run: Callable[[Main], Any], endpoints: Endpoints) -> None:
    pub, _sub = endpoints.pair(depth=1)

    async def main() -> None:
        await pub.send_async(b"1")

        async def close() -> None:
            await anyio.sleep(0.02)
            pub.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            with anyio.fail_after(20), pytest.raises(byref.Closed):
                await pub.send_async(b"2")

    run(main)


def test_a_stalled_send_evicts(run: Callable[[Main], Any], endpoints: Endpoints) -> None:
    pub = endpoints.publisher(max_stall=0.2)
    sub = endpoints.subscriber(depth=1)
    pub.wait_for_subscribers(timeout=20)

    async def main() -> None:
        with anyio.fail_after(20):
            assert [await pub.send_async(b"") for _ in range(3)] == [0, 1, 2]

    run(main)
    with pytest.raises(byref.Evicted):
        sub.recv(timeout=30)


def test_tickets(run: Callable[[Main], Any], endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    released: list[int] = []

    async def main() -> None:
        async def wait(ticket: byref.Ticket) -> None:
            await ticket
            released.append(ticket.sequence)

        tickets = [pub.send_tracked(b"x") for _ in range(3)]
        held = [await sub.recv_async() for _ in tickets]
        with anyio.move_on_after(0.05) as scope:
            await tickets[0]
        assert scope.cancelled_caught
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for ticket in tickets:
                    tasks.start_soon(wait, ticket)
                await anyio.sleep(0.01)
                while held:
                    held.pop().release()
                    while len(released) + len(held) < len(tickets):
                        await anyio.sleep(0.005)
        assert released == [2, 1, 0]

    run(main)


def test_queues(run: Callable[[Main], Any], endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    got: list[Any] = []
    with byref.EventQueue() as queue:

        async def slowly(msg: byref.Message) -> None:
            await anyio.sleep(0.001)
            got.append(msg.sequence)

        queue.subscribe("t", slowly)
        queue.subscribe("t", lambda msg: got.append(str(msg.sequence)))
        pub.wait_for_subscribers(2, timeout=20)

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(queue.run_async)
                for _ in range(20):
                    await pub.send_async(b"")
                    await anyio.sleep(0.001)
                with anyio.fail_after(20):
                    while len(got) < 40:
                        await anyio.sleep(0.01)
                queue.stop()

        run(main)
    assert [one for one in got if isinstance(one, int)] == list(range(20))
    assert [one for one in got if isinstance(one, str)] == [str(number) for number in range(20)]


def test_outside_of_any_loop(endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("byref._aio._in_a_row", 0)  # Nobody is to have a turn before these.
    pub, sub = endpoints.pair(depth=1)
    with pytest.raises(RuntimeError, match="no running event loop"):
        sub.recv_async().send(None)
    assert pub.send(b"x") == 0
    with pytest.raises(StopIteration) as ended:
        sub.recv_async().send(None)
    assert bytes(ended.value.value) == b"x"


def test_trio_that_asyncio_hosts(endpoints: Endpoints) -> None:
    """Both are there at once: what counts is who runs the task."""
    pub, sub = endpoints.pair(depth=1)

    async def in_trio() -> list[int]:
        received = []
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for _ in range(20):
                    await pub.send_async(b"")

            nursery.start_soon(send)
            for _ in range(20):
                await trio.sleep(0.001)
                received.append((await sub.recv_async()).sequence)
        return received

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            in_trio,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda outcome: done.set_result(outcome.unwrap()),
        )
        return await asyncio.wait_for(done, 30)  # type: ignore[no-any-return]

    assert asyncio.run(main()) == list(range(20))


# ---- a warning -------------------------------------------------------------------------------------------------------

SILENT = """
import asyncio, byref, threading, time
pub = byref.Publisher("t", max_memory=1 << 20)
sub = byref.Subscriber("t", depth=2, name="sleeper")
other = byref.Subscriber("t", name="reader")
threading.Thread(target=lambda: [None for _ in other], daemon=True).start()
pub.wait_for_subscribers(2, timeout=20)
def stall(seconds):
    try: send(b"x", timeout=seconds)
    except byref.Timeout: pass
def send(*arguments, **options):
    {send}
send(b"1"); send(b"2")
{body}
"""

STALLS = {
    "one long wait": ("stall(7)", 1),
    "several short ones": ("stall(3); stall(3); stall(3)", 0),
    "once for each stall": ("stall(6); stall(6); sub.recv(); sub.recv(); send(b'3'); send(b'4'); stall(6)", 2),
    "one that reads slowly": (
        "threading.Thread(target=lambda: [(time.sleep(1.5), sub.recv()) for _ in range(4)], daemon=True).start()\n"
        "[send(b'x') for _ in range(4)]",
        0,
    ),
    "memory that is held": (
        "sub.recv(); sub.recv(); sub.close(); sub = byref.Subscriber('t', name='holder')\n"
        "pub.wait_for_subscribers(2, timeout=20); send(bytes(1 << 19)); held = sub.recv(); other.close()\n"
        "try: send(bytes(1 << 20), timeout=7)\n"
        "except byref.Timeout: pass",
        0,
    ),
}
SENDS = {"send": "pub.send(*arguments, **options)", "send_async": "asyncio.run(pub.send_async(*arguments, **options))"}


def test_a_send_that_waits_long_names_who_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = {}
    for number, (send, stall) in enumerate(itertools.product(SENDS, STALLS)):
        directory = tmp_path / str(number)
        directory.mkdir(0o700)
        monkeypatch.setenv("BYREF_DIR", str(directory))
        program = SILENT.replace("{send}", SENDS[send]).replace("{body}", STALLS[stall][0])
        # They wait most of the time, so all at once.
        child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        children[send, stall] = child
    for (send, stall), child in children.items():
        _, log = child.communicate(timeout=2 * PATIENCE)
        assert child.returncode == 0, log
        warnings = [line for line in log.splitlines() if "does not read" in line]
        assert len(warnings) == STALLS[stall][1], (send, stall, log)
        for line in warnings:
            named = (
                f"topic 't': a send has waited 5 s for process {child.pid} ('sleeper'), which does not read: 2 messages"
            )
            assert named in line
            assert "'reader'" not in line
