"""Messages that their subscriber acknowledges by hand."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import byref
import numpy as np
import pytest

from tests.processes import PATIENCE, Child, Line, eventually, forked

Spawn = Callable[..., Child]


@pytest.fixture
def pub() -> Iterator[byref.Publisher]:
    with byref.Publisher("t") as pub:
        yield pub


@pytest.fixture
def sub(pub: byref.Publisher) -> Iterator[byref.Subscriber]:
    """It takes two messages."""
    with byref.Subscriber("t", depth=2, ack="manual") as sub:
        pub.wait_for_subscribers(timeout=PATIENCE)
        yield sub


def is_full(pub: byref.Publisher) -> bool:
    try:
        pub.send(b"more", timeout=0)
    except byref.Timeout:
        return True
    return False


@pytest.mark.parametrize("size", [8, 100_000])
def test_depth_and_flush_count_what_is_not_acknowledged(size: int, pub: byref.Publisher, sub: byref.Subscriber) -> None:
    for number in range(2):
        pub.send(bytes([number]) * size, timeout=PATIENCE)
    first, second = sub.recv(timeout=PATIENCE), sub.recv(timeout=PATIENCE)
    assert sub.unacknowledged == 2
    assert pub.subscribers[0].lag == 2
    assert is_full(pub)
    with pytest.raises(byref.Timeout):
        pub.flush(timeout=0.01)
    first.ack()
    assert sub.unacknowledged == 1
    pub.send(b"third", timeout=PATIENCE)
    assert is_full(pub)
    second.ack()
    sub.recv(timeout=PATIENCE).ack()
    pub.flush(timeout=PATIENCE)
    assert sub.unacknowledged == 0
    assert bytes(second) == b"\1" * size  # Its memory is its own as long as it is kept.


def test_room_is_made_from_the_oldest_on(pub: byref.Publisher, sub: byref.Subscriber) -> None:
    for number in range(2):
        pub.send(bytes([number]), timeout=PATIENCE)
    first, second = sub.recv(timeout=PATIENCE), sub.recv(timeout=PATIENCE)
    second.ack()
    assert is_full(pub)
    first.ack()
    for _ in range(2):
        pub.send(b"more", timeout=PATIENCE)
    assert is_full(pub)


def test_once_is_enough_and_views_do_not_matter(pub: byref.Publisher, sub: byref.Subscriber) -> None:
    pub.send(np.arange(1000), timeout=PATIENCE)
    message = sub.recv(timeout=PATIENCE)
    array = np.asarray(message)
    for _ in range(2):
        message.ack()
    pub.flush(timeout=PATIENCE)
    assert array.sum() == 499_500
    del array
    pub.send(bytes(100_000), timeout=PATIENCE)
    with sub.recv(timeout=PATIENCE) as message:
        pass
    with pytest.raises(byref.Timeout):
        pub.flush(timeout=0.01)
    message.release()
    message.ack()  # Although it is released.
    message.ack()
    pub.flush(timeout=PATIENCE)


def test_memory_that_is_released_is_not_reused_before(pub: byref.Publisher, sub: byref.Subscriber) -> None:
    ticket = pub.send_tracked(bytes(100_000), timeout=PATIENCE)
    message = sub.recv(timeout=PATIENCE)
    message.release()
    with pytest.raises(byref.Timeout):
        ticket.wait_released(timeout=0.05)
    message.ack()
    ticket.wait_released(timeout=PATIENCE)


def test_batches_and_rows(pub: byref.Publisher, sub: byref.Subscriber) -> None:
    for number in range(2):
        pub.send(bytes([number]), timeout=PATIENCE)
    batch = sub.recv_batch(10, timeout=PATIENCE)
    assert (len(batch), sub.unacknowledged) == (2, 2)
    assert is_full(pub)
    batch[0].ack()
    assert sub.unacknowledged == 1
    batch.ack()
    assert sub.unacknowledged == 0
    pub.send_many(np.arange(6).reshape(3, 2), timeout=PATIENCE)
    rows = [sub.recv(timeout=PATIENCE) for _ in range(2)]
    rows[1].ack()
    last = sub.recv_batch(10, timeout=PATIENCE)
    last.ack()
    with pytest.raises(byref.Timeout):
        pub.flush(timeout=0.01)
    rows[0].ack()
    pub.flush(timeout=PATIENCE)


def test_several_publishers_are_acknowledged_each(pub: byref.Publisher, sub: byref.Subscriber) -> None:
    with byref.Publisher("t") as other:
        other.wait_for_subscribers(timeout=PATIENCE)
        for source in (pub, other):
            for _ in range(2):
                source.send(b"x", timeout=PATIENCE)
        messages = [sub.recv(timeout=PATIENCE) for _ in range(4)]
        first = messages[0].publisher
        for message in messages:
            if message.publisher == first:
                message.ack()
        assert sub.unacknowledged == 2
        assert sorted(is_full(source) for source in (pub, other)) == [False, True]
        for message in messages:
            message.ack()
        assert sub.unacknowledged == 0


def test_what_cannot_be_acknowledged(pub: byref.Publisher, sub: byref.Subscriber) -> None:
    with pytest.raises(ValueError, match="'auto' or 'manual', not"):
        byref.Subscriber("t", ack="later")  # type: ignore[call-overload]
    for policy in ("drop_oldest", "latest"):
        with pytest.raises(ValueError, match="policy 'block'"):
            byref.Subscriber("t", policy=policy, ack="manual")
    with byref.Subscriber("t") as auto:
        pub.wait_for_subscribers(2, timeout=PATIENCE)
        pub.send(b"x", timeout=PATIENCE)
        message, batch = auto.recv(timeout=PATIENCE), sub.recv_batch(1, timeout=PATIENCE)
        assert auto.unacknowledged == 0
        with pytest.raises(ValueError, match="topic 't': this message was acknowledged when it was received"):
            message.ack()
    kept = batch[0]
    sub.close()
    for late in (kept, batch):
        with pytest.raises(byref.Closed):
            late.ack()


def test_an_endpoint_that_is_gone_waits_for_nothing(pub: byref.Publisher, sub: byref.Subscriber) -> None:
    pub.send(b"x", timeout=PATIENCE)
    message = sub.recv(timeout=PATIENCE)
    pub.close()
    eventually(lambda: sub.try_recv() is None and not sub.publishers, "the publisher is gone")
    message.ack()
    assert sub.unacknowledged == 0


def test_acknowledged_by_another_thread_wakes_the_sender(pub: byref.Publisher, sub: byref.Subscriber) -> None:
    count = 2000
    taken: list[byref.Message] = []
    ready = threading.Semaphore(0)

    def acknowledge() -> None:
        for number in range(count):
            ready.acquire()
            taken[number].ack()

    def receive() -> None:
        for number in range(count):
            taken.append(sub.recv(timeout=PATIENCE))
            assert bytes(taken[-1]) == str(number).encode()
            ready.release()

    threads = [threading.Thread(target=target) for target in (acknowledge, receive)]
    for thread in threads:
        thread.start()
    for number in range(count):
        pub.send(str(number).encode(), timeout=PATIENCE)
    pub.flush(timeout=PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)


def keep(line: Line) -> None:
    """Takes messages, and acknowledges as many as it is told to."""
    with byref.Subscriber("t", depth=2, ack="manual") as sub:
        line.tell("ready")
        kept = []
        while (order := line.hear()) != "end":
            if order == "take":
                kept.append(sub.recv(timeout=PATIENCE))
                line.tell(bytes(kept[-1]).decode())
            else:
                kept[order].ack()
                line.tell(sub.unacknowledged)


@pytest.mark.parametrize("end", ["kill", "end"])
def test_another_process_and_its_end(end: str, spawn: Spawn, pub: byref.Publisher) -> None:
    child = spawn(keep)
    child.hear()
    pub.wait_for_subscribers(timeout=PATIENCE)
    for number in range(2):
        pub.send(str(number).encode(), timeout=PATIENCE)
        child.tell("take")
        assert child.hear() == str(number)
    assert is_full(pub)
    child.tell(0)
    assert child.hear() == 1
    pub.send(b"2", timeout=PATIENCE)
    assert is_full(pub)
    if end == "kill":
        child.kill()
    else:
        child.tell("end")
        child.finish()
    pub.flush(timeout=PATIENCE)  # Who is gone acknowledges nothing, and holds nobody up.
    assert not is_full(pub)


def test_a_forked_child_does_not_acknowledge(pub: byref.Publisher, sub: byref.Subscriber) -> None:
    pub.send(b"x", timeout=PATIENCE)
    message = sub.recv(timeout=PATIENCE)

    def is_refused() -> bool:
        with pytest.raises(byref.Forked):
            message.ack()
        return True

    assert forked(is_refused)
    assert sub.unacknowledged == 1
    message.ack()
    pub.flush(timeout=PATIENCE)


def test_queues_and_event_loops(pub: byref.Publisher) -> None:
    with byref.EventQueue() as queue:
        kept: list[byref.Message] = []
        queue.subscribe("t", kept.append, depth=2, ack="manual")
        pub.wait_for_subscribers(timeout=PATIENCE)
        for _ in range(2):
            pub.send(b"x", timeout=PATIENCE)
        eventually(lambda: queue.dispatch(0) or len(kept) == 2, "they were received")
        assert is_full(pub)
        for message in kept:
            message.ack()
        pub.flush(timeout=PATIENCE)

    def send_nine() -> None:
        for _ in range(9):
            pub.send(b"x", timeout=PATIENCE)

    async def receive() -> None:
        with byref.Subscriber("t", depth=1, ack="manual") as sub:
            pub.wait_for_subscribers(timeout=PATIENCE)
            sending = asyncio.create_task(asyncio.to_thread(send_nine))
            for _ in range(9):
                (await sub.recv_async(timeout=PATIENCE)).ack()
            await sending
            pub.flush(timeout=PATIENCE)

    asyncio.run(receive())
