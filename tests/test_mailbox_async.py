"""`Mailbox.send_async` in every kind of event loop."""

from collections.abc import Callable
from typing import Any

import anyio
import byref
import numpy as np
import pytest

from tests.processes import PATIENCE, Child, Line
from tests.test_async import LOOPS, Main

Spawn = Callable[..., Child]
Run = Callable[[Main], Any]

DATA: dict[str, Any] = {
    "bytes": b"few",
    "an array": np.arange(5000),
    "a column": np.asfortranarray(np.arange(5000).reshape(50, 100)),
    "a dict": {"a": [np.arange(3000)]},
}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return LOOPS[request.param]


def collect(line: Line, count: int) -> None:
    """Takes so many messages when it is told to."""
    with byref.Mailbox("there") as box:
        line.tell("there")
        line.hear()
        line.tell([[box.recv(PATIENCE).nbytes for _ in range(count)], box.recv(PATIENCE).tag])


def test_a_send_waits_for_room_and_lets_others_run(run: Run, spawn: Spawn) -> None:
    child = spawn(collect, 40)
    assert child.hear() == "there"

    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await anyio.sleep(0.001)
                ticks += 1
                if ticks == 20:
                    child.tell("now")

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            for number in range(10):
                for data in DATA.values():
                    sequence = await box.send_async("there", data, {"n": number})
            assert sequence == 39
            await box.send_async("there", b"", tag=7)
            assert ticks >= 20, "it waited, and others ran"
            group.cancel_scope.cancel()

    with byref.Mailbox("here", depth=8) as box:
        run(main)
        sizes, tag = child.hear()
        assert sizes == [size_of(data) for data in DATA.values()] * 10
        assert tag == 7
    child.finish()


def size_of(data: Any) -> int:
    """How many bytes a message of it has."""
    with byref.Mailbox("a") as box:
        box.send("a", data, {"n": 0})
        return box.recv(PATIENCE).nbytes


def test_nobody_is_there(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(byref.Unroutable):
            await box.send_async("nobody", b"x")
        with pytest.raises(byref.Unroutable):
            await box.send_async("nobody", b"x", wait=0.05)
        with pytest.raises(byref.PeerLost):
            await box.send_async(gone, b"x")
        with pytest.raises(byref.Timeout):
            await box.send_async("nobody", b"x", wait=PATIENCE, timeout=0.05)
        with pytest.raises(TypeError):
            await box.send_async(7, b"x")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout"):
            await box.send_async("nobody", b"x", timeout=-1)

    with byref.Mailbox("here") as box:
        with byref.Mailbox("gone") as other:
            gone = other.identity
        run(main)
        assert box.stats()["sent"] == 0


def test_an_address_may_come(run: Run) -> None:
    async def main() -> None:
        async def come() -> None:
            await anyio.sleep(0.05)
            made.append(byref.Mailbox("late"))

        async with anyio.create_task_group() as group:
            group.start_soon(come)
            assert await box.send_async("late", np.arange(3000), wait=PATIENCE) == 0

    made: list[byref.Mailbox[Any]] = []
    with byref.Mailbox("here") as box:
        run(main)
        with made[0] as late:
            assert late.recv(PATIENCE).value.sum() == 2999 * 1500


def test_a_cancelled_send_sent_nothing(run: Run) -> None:
    async def main() -> None:
        for data in DATA.values():
            with anyio.move_on_after(0.02) as scope:
                await box.send_async("there", data)
            assert scope.cancelled_caught
        with pytest.raises(byref.Timeout, match="there"):
            await box.send_async("there", b"x", timeout=0.02)

    with byref.Mailbox("here", depth=4) as box, byref.Mailbox("there", depth=4) as there:
        for _ in range(4):
            box.send("there", b"fills it")
        run(main)
        assert [bytes(there.recv(PATIENCE)) for _ in range(4)] == [b"fills it"] * 4
        assert there.try_recv() is None


def stay(line: Line) -> None:
    """Has a mailbox, and takes nothing."""
    with byref.Mailbox("there"):
        line.tell("there")
        line.hear()


def test_its_death_ends_a_send_that_waits(run: Run, spawn: Spawn) -> None:
    child = spawn(stay)
    assert child.hear() == "there"

    async def main() -> list[str]:
        raised = []

        async def send() -> None:
            try:
                await box.send_async("there", b"one more")
            except byref.Error as error:
                raised.append(type(error).__name__)

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await anyio.sleep(0.02)
            child.kill()
        return raised

    with byref.Mailbox("here", depth=1) as box:
        box.send("there", b"fills it")
        assert run(main) == ["PeerLost"]
        assert [bytes(message) for message in box.undelivered("there")] == [b"fills it"]


def test_what_was_never_taken_goes_on(run: Run) -> None:
    async def main() -> None:
        for message in left:
            await box.send_async("other", message)
        with pytest.raises(ValueError, match="keeps its headers"):
            await box.send_async("other", left[0], tag=4)

    with byref.Mailbox("here") as box, byref.Mailbox("other") as other:
        with byref.Mailbox("there"):
            box.send("there", b"small", tag=3)
            box.send("there", np.arange(3000))
        left = box.undelivered("there")
        run(main)
        assert other.recv(PATIENCE).tag == 3
        assert other.recv(PATIENCE).value.sum() == 2999 * 1500
