"""The view is the lease: bytes stay as long as anybody looks at them, and go when nobody does."""

import asyncio
import gc
import io
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import byref
import numpy as np
import pytest
import tqdm

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, available_memory, eventually, maps

Spawn = Callable[..., Child]

MIB = 1 << 20


def publish(line: Line, size: int, max_memory: int) -> None:
    """For each pair heard, sends the payloads of the seeds from the first to before the second."""
    with byref.Publisher("t", max_memory=max_memory) as pub:
        pub.wait_for_subscribers(timeout=30)
        while (order := line.hear()) is not None:
            for seed in range(*order):
                pub.send(payload(seed, size))
            line.tell("sent")


def mapped_pools() -> list[str]:
    """The payload memory of other processes that this process maps."""
    return [name for _, _, perms, name in maps() if "memfd:byref-pool" in name and perms == "r--s"]


def test_a_view_outlives_message_subscriber_and_publisher(spawn: Spawn) -> None:
    sub = byref.Subscriber("t")
    publisher = spawn(publish, MIB, 8 * MIB)
    publisher.tell([0, 3])
    msg, other, third = (sub.recv(timeout=30) for _ in range(3))
    view, buffer, mine = np.asarray(msg), memoryview(other), third.writable()
    sub.close()
    publisher.kill()
    del msg, other, third, sub
    gc.collect()
    assert is_payload(view, 0, MIB)
    assert is_payload(buffer, 1, MIB)
    assert is_payload(mine, 2, MIB)
    assert len(mapped_pools()) == 1
    del view, buffer, mine
    gc.collect()
    assert eventually(lambda: not mapped_pools(), "the memory goes with the last view")


@pytest.mark.parametrize("kind", ["bytes", "numbers"])
def test_a_buffer_alone_holds_its_message(kind: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=8 * MIB)
    sent = payload(0, MIB)
    pub.send(sent.tobytes() if kind == "bytes" else sent.view("<i4"))
    buffer = memoryview(sub.recv(timeout=30))
    assert buffer.format == ("B" if kind == "bytes" else "i")
    for seed in range(1, 40):
        pub.send(payload(seed, MIB))
        assert is_payload(sub.recv(timeout=30), seed, MIB)
    assert is_payload(buffer, 0, MIB)


def test_a_view_outlives_the_subscriber_while_traffic_goes_on(spawn: Spawn, endpoints: Endpoints) -> None:
    sub, other = byref.Subscriber("t"), endpoints.subscriber()
    publisher = spawn(publish, MIB, 8 * MIB)
    sub.wait_for_publishers(timeout=30)
    other.wait_for_publishers(timeout=30)
    publisher.tell([0, 1])
    view = np.asarray(sub.recv(timeout=30))
    sub.close()
    del sub
    publisher.tell([1, 100])
    for seed in range(100):
        assert is_payload(other.recv(timeout=30), seed, MIB)
    assert publisher.hear() == publisher.hear() == "sent"
    assert is_payload(view, 0, MIB)


def fail_with_a_message(sub: byref.Subscriber) -> None:
    """Leaves a view behind in the frame that a traceback keeps."""
    view = np.asarray(sub.recv(timeout=30))
    raise RuntimeError(f"about {len(view)} bytes")


def test_an_exceptions_traceback_holds_a_message(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    publisher = spawn(publish, MIB, 8 * MIB)
    publisher.tell([0, 60])
    with pytest.raises(RuntimeError) as caught:
        fail_with_a_message(sub)
    for seed in range(1, 60):
        assert is_payload(sub.recv(timeout=30), seed, MIB)
    assert is_payload(caught.traceback[-1].frame.f_locals["view"], 0, MIB)


@pytest.mark.parametrize(("count", "size"), [(10_000, 16 << 10), (300, MIB)])
def test_many_held_messages_stay_right_while_traffic_goes_on(
    count: int, size: int, spawn: Spawn, endpoints: Endpoints
) -> None:
    sub = endpoints.subscriber()
    publisher = spawn(publish, size, 1 << 30)
    publisher.tell([0, count * 3])
    held = [sub.recv(timeout=30) for _ in range(count)]
    for seed in range(count, count * 2):
        assert is_payload(sub.recv(timeout=30), seed, size)
    assert all(is_payload(msg, seed, size) for seed, msg in enumerate(held))
    # Half of them go, in no order that a queue would have; the rest must not feel it.
    half = {seed: msg for seed, msg in enumerate(held) if seed % 3}
    del held
    for seed in range(count * 2, count * 3):
        assert is_payload(sub.recv(timeout=30), seed, size)
    assert all(is_payload(msg, seed, size) for seed, msg in half.items())


def test_release(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for size in (10, 10_000):
        pub.send(bytes(size))
        msg = sub.recv(timeout=30)
        views: list[Any] = [np.asarray(msg), memoryview(msg), np.frombuffer(msg, np.uint8)]
        while views:
            with pytest.raises(BufferError, match="views"):
                msg.release()
            assert msg.nbytes == size
            views.pop()
        mine = msg.writable()
        msg.release()
        msg.release()
        assert mine.nbytes == size
        looks: list[Callable[[], object]] = [
            lambda msg=msg: msg.nbytes, lambda msg=msg: msg.value, lambda msg=msg: bytes(msg),
            lambda msg=msg: msg.topic,
            lambda msg=msg: memoryview(msg), lambda msg=msg: msg.writable(), lambda msg=msg: len(msg),
        ]  # fmt: skip
        for look in looks:
            with pytest.raises(byref.Closed):
                look()


def test_a_message_as_context(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for _ in range(2):
        pub.send(bytes(10_000))
    with sub.recv(timeout=30) as msg:
        assert msg.nbytes == 10_000
    with pytest.raises(byref.Closed):
        _ = msg.nbytes
    with pytest.raises(BufferError), sub.recv(timeout=30) as msg:
        view = memoryview(msg)
    assert view.nbytes == 10_000


def test_held_memory_is_not_given_away_and_comes_back(endpoints: Endpoints) -> None:
    pub = endpoints.publisher(max_memory=4 * MIB)
    sub = endpoints.subscriber(policy="drop_oldest", name="hoarder")
    pub.wait_for_subscribers(timeout=30)
    held = []
    with pytest.raises(byref.PoolExhausted, match="hoarder") as refused:  # noqa: PT012
        for seed in range(10):
            pub.send(payload(seed, MIB))
            held.append(sub.recv(timeout=30))
    assert str(4 * MIB) in str(refused.value)
    assert len(held) >= 3
    assert all(is_payload(msg, seed, MIB) for seed, msg in enumerate(held))
    held.pop().release()
    assert pub.send(payload(99, MIB)) == len(held) + 1
    assert is_payload(sub.recv(timeout=30), 99, MIB)


def test_a_lossless_holder_is_waited_for(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 * MIB, name="hoarder")
    held = []
    with pytest.raises(byref.Timeout, match="hoarder"):  # noqa: PT012
        for seed in range(10):
            pub.send(payload(seed, MIB), timeout=0.1)
            held.append(sub.recv(timeout=30))
    count = len(held)
    releaser = threading.Timer(0.1, held.clear)
    releaser.start()
    assert pub.send(payload(99, MIB), timeout=30) == count
    assert is_payload(sub.recv(timeout=30), 99, MIB)
    releaser.join()


def whole_pool_is_free(pub: byref.Publisher, size: int) -> bool:
    """Whether so much can be lent at once."""
    try:
        pub.loan(size, timeout=0.05).discard()
    except (byref.Timeout, byref.PoolExhausted):
        return False
    return True


def test_messages_may_be_dropped_by_any_thread(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=64 * MIB)
    for _ in range(5):
        batches: list[list[byref.Message]] = [[] for _ in range(4)]
        for seed in range(800):
            pub.send(payload(seed, 20_000))
            batches[seed % 4].append(sub.recv(timeout=30))
        workers = [threading.Thread(target=batch.clear) for batch in batches]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert eventually(lambda: whole_pool_is_free(pub, 60 * MIB), "all memory is free again")


def test_views_in_reference_cycles_are_collected(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=8 * MIB)
    for seed in range(50):
        pub.send(payload(seed, MIB), timeout=30)
        cycle: dict[str, Any] = {"view": np.asarray(sub.recv(timeout=30))}
        cycle["self"] = cycle
        if seed % 4 == 3:
            del cycle
            gc.collect()


def exit_with_everything_alive(line: Line) -> None:
    """Ends with views, loans, endpoints, and threads that wait, all still there."""
    pub, sub = byref.Publisher("t"), byref.Subscriber("t")
    pub.wait_for_subscribers(timeout=30)
    sub.wait_for_publishers(timeout=30)
    for seed in range(100):
        pub.send(payload(seed, 50_000))
    msg = sub.recv(timeout=30)
    globals()["kept"] = [msg, np.asarray(msg), memoryview(msg), msg.writable(), msg.publisher]
    loan = pub.loan(100_000)
    globals()["lent"] = [loan, loan.array, loan.array[5:]]
    cycle: dict[str, Any] = {"msg": sub.recv(timeout=30), "sub": sub, "pub": pub}
    cycle["self"] = cycle
    idle = [byref.Subscriber("nothing comes") for _ in range(3)]
    full = byref.Publisher("full")
    globals()["never reads"] = byref.Subscriber("full", depth=1)
    full.wait_for_subscribers(timeout=30)
    full.send(b"")

    def run(call: Callable[[], object]) -> None:
        threading.Thread(target=call, daemon=True).start()

    run(idle[0].recv)
    run(lambda: list(idle[1]))
    run(lambda: idle[2].wait_for_publishers(5))
    run(lambda: full.send(b""))
    run(lambda: full.flush())
    run(lambda: full.wait_for_subscribers(9))
    run(lambda: [np.asarray(msg).sum() for msg in sub])
    time.sleep(0.2)
    line.tell("ends")


def test_interpreter_exit_with_everything_alive(spawn: Spawn) -> None:
    for _ in range(3):
        child = spawn(exit_with_everything_alive)
        assert child.hear() == "ends"
        child.finish()
        assert child.output() == ""


def publish_huge(line: Line) -> None:
    """Fills a loan of 1 GiB."""
    with byref.Publisher("huge", max_memory=2 << 30) as pub:
        pub.wait_for_subscribers(timeout=30)
        with pub.loan(1 << 30) as memory:
            for at in range(0, 1 << 30, 16 * MIB):
                memory[at : at + 16 * MIB] = payload(at, 16 * MIB)
        pub.send(b"")
        line.hear()


@pytest.mark.skipif(available_memory() < 6 << 30, reason="needs 6 GiB of free memory")
def test_one_gibibyte_and_nothing(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("huge")
    publisher = spawn(publish_huge)
    msg = sub.recv(timeout=60)
    assert msg.nbytes == 1 << 30
    view = memoryview(msg)
    for at in range(0, 1 << 30, 16 * MIB):
        assert is_payload(view[at : at + 16 * MIB], at, 16 * MIB)
    nothing = sub.recv(timeout=30)
    assert (nothing.nbytes, bytes(nothing), nothing.shape, nothing.value.nbytes) == (0, b"", (0,), 0)
    publisher.tell()
    publisher.finish()


def test_a_loan_is_filled_in_place(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    with pub.loan((100, 200), "<f4") as frame:
        assert (frame.shape, frame.dtype, frame.flags.writeable) == ((100, 200), np.float32, True)
        frame[:] = 1.5
    msg = sub.recv(timeout=30)
    assert (msg.shape, msg.dtype) == ((100, 200), np.float32)
    assert (np.asarray(msg) == 1.5).all()
    assert pub.stats()["copied_bytes"] == 0
    assert sub.stats()["copied_bytes"] == 0
    loan = pub.loan(5000)
    loan.array[:] = payload(1, 5000)
    loan.headers["k"] = "v"
    assert loan.send(timestamp_ns=77) == 1
    msg = sub.recv(timeout=30)
    assert is_payload(msg, 1, 5000)
    assert (msg.headers, msg.timestamp_ns, msg.shape, msg.dtype) == ({"k": "v"}, 77, (5000,), np.uint8)


@pytest.mark.parametrize("shape", [0, 8, 5000, (3, 4), (100, 100), (0, 5), ()])
def test_a_loan_after_its_end(shape: Any, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    ends: list[Callable[[byref.Loan], object]] = [lambda loan: loan.send(), lambda loan: loan.discard()]
    for end in ends:
        loan = pub.loan(shape)
        array = loan.array
        array[...] = 1
        end(loan)
        assert not array.flags.writeable
        with pytest.raises(byref.Closed):
            loan.send()
        with pytest.raises(byref.Closed):
            loan.truncate(0)
        with pytest.raises(byref.Closed), loan:
            pass
        loan.discard()
    assert (np.asarray(sub.recv(timeout=30)) == 1).all()
    assert sub.try_recv() is None


def test_an_exception_discards_a_loan(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 * MIB)
    for seed in range(50):
        loan = pub.loan(3 * MIB)
        with pytest.raises(ZeroDivisionError), loan:
            loan.array[:] = 1 // 0
        assert not loan.array.flags.writeable
        del loan
        assert pub.send(payload(seed, 1000)) == seed
        assert is_payload(sub.recv(timeout=30), seed, 1000)


def test_an_abandoned_loan_gives_its_memory_back(endpoints: Endpoints) -> None:
    pub, _ = endpoints.pair(max_memory=4 * MIB)
    for _ in range(50):
        pub.loan(3 * MIB)
    assert pub.stats()["sent"] == 0


def test_a_loan_discarded_by_hand_in_its_block(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    loan = pub.loan(1000)
    with loan:
        loan.discard()
    loan = pub.loan(1000)
    with loan as array:
        array[:] = 3
        loan.send()
    msg = sub.recv(timeout=30)
    assert (msg.sequence, bytes(msg)) == (0, b"\3" * 1000)
    assert sub.try_recv() is None


@pytest.mark.parametrize("dtype", ["u1", "<f8"])
def test_truncate(dtype: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    for rows in (10, 7, 1, 0):
        loan = pub.loan((10, 40), dtype)
        before = loan.array
        loan.array[:] = np.arange(10)[:, None]
        loan.truncate(rows)
        assert loan.array.shape == (rows, 40)
        loan.send()
        assert not before.flags.writeable
        msg = sub.recv(timeout=30)
        assert msg.shape == (rows, 40)
        assert (np.asarray(msg) == np.arange(rows)[:, None]).all()
    loan = pub.loan(1000)
    loan.array[:] = payload(1, 1000)
    loan.truncate(500)
    loan.truncate(100)
    with pytest.raises(ValueError, match="truncate"):
        loan.truncate(101)
    loan.send()
    assert is_payload(sub.recv(timeout=30), 1, 100)


def test_arrays_from_a_loan_keep_its_memory(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=8 * MIB)
    for end in ("send", "discard"):
        loan = pub.loan(MIB)
        loan.array[:] = payload(1, MIB)
        derived = loan.array[100:200]
        getattr(loan, end)()
        if end == "send":
            sub.recv(timeout=30).release()
        del loan
        for seed in range(2, 30):
            pub.send(payload(seed, MIB))
            assert is_payload(sub.recv(timeout=30), seed, MIB)
        assert (derived == payload(1, MIB)[100:200]).all()


def test_loans_take_their_number_when_they_are_sent(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    loans = [pub.loan(1000) for _ in range(3)]
    for place, loan in enumerate(loans):
        loan.array[:] = place
    assert [loans[place].send() for place in (2, 0, 1)] == [0, 1, 2]
    assert [np.asarray(sub.recv(timeout=30))[0] for _ in range(3)] == [2, 0, 1]


@pytest.mark.parametrize("size", [10, 10_000])
def test_a_loan_survives_a_send_that_times_out(size: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(depth=1)
    pub.send(b"first")
    loan = pub.loan(size)
    for _ in range(2):
        loan.array[:] = payload(5, size)
        with pytest.raises(byref.Timeout):
            loan.send(timeout=0.02)
    sub.recv(timeout=30)
    assert loan.send(timeout=30) == 1
    assert is_payload(sub.recv(timeout=30), 5, size)


def test_a_loan_beyond_its_publishers_close(endpoints: Endpoints) -> None:
    pub, _ = endpoints.pair()
    loan = pub.loan(MIB)
    pub.close()
    del pub
    gc.collect()
    loan.array[:] = payload(1, MIB)
    with pytest.raises(byref.Closed):
        loan.send()
    assert is_payload(loan.array, 1, MIB)
    loan.discard()


def test_views_survive_within_one_process(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(payload(1, MIB))
    view = np.asarray(sub.recv(timeout=30))
    endpoints.close()
    del pub, sub
    gc.collect()
    assert is_payload(view, 1, MIB)


def test_iterations_that_are_given_up_leave_the_subscriber_open(endpoints: Endpoints) -> None:
    """A generator closes what it yields from when it is closed, or collected."""
    pub, sub = endpoints.pair()

    def delegate() -> Generator[byref.Message, None, None]:
        yield from sub

    def closed() -> int:
        messages = delegate()
        number = next(messages).sequence
        messages.close()
        return number

    def chain() -> Generator[byref.Message, None, None]:
        yield from itertools.chain.from_iterable([sub])

    async def asynchronous() -> AsyncGenerator[byref.Message, None]:
        async for msg in sub:
            yield msg

    async def first(messages: AsyncGenerator[byref.Message, None]) -> int:
        msg = await anext(messages)
        await messages.aclose()
        return msg.sequence

    ways: dict[str, Callable[[], int]] = {
        "yield from, collected": lambda: next(delegate()).sequence,
        "yield from, closed": closed,
        "chain": lambda: next(chain()).sequence,
        "for": lambda: next(msg.sequence for msg in sub),
        "iterator": lambda: next(iter(sub)).sequence,
        "next": lambda: next(sub).sequence,
        "tqdm": lambda: next(msg.sequence for msg in tqdm.tqdm(sub, disable=None, file=io.StringIO())),
        "map": lambda: next(map(lambda msg: msg.sequence, sub)),
        "async generator": lambda: asyncio.run(first(asynchronous())),
    }
    for number, (name, way) in enumerate(ways.items()):
        pub.send(b"")
        assert way() == number, name
        gc.collect()
    assert not hasattr(iter(sub), "close")
    assert not hasattr(aiter(sub), "aclose")
    assert iter(iter(sub)) is not sub
    sub.close()
    assert list(sub) == list(delegate()) == []
    with pytest.raises(StopIteration):
        next(sub)
