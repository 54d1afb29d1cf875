"""Releases one can watch: what is held and by whom, tickets, warnings, and where messages were received."""

import asyncio
import contextlib
import gc
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import ROOT, Child, Line, descriptors, eventually

Spawn = Callable[..., Child]

MIB = 1 << 20


def hold(line: Line, name: str, options: dict[str, Any]) -> None:
    """Takes as many messages as it hears, all at first sight; lets go of those whose numbers it hears in a list."""
    held: dict[int, byref.Message] = {}
    with byref.Subscriber("t", name=name, **options) as sub:
        line.tell("ready")
        while (order := line.hear()) is not None:
            if isinstance(order, list):
                for sequence in order:
                    del held[sequence]
                line.tell("released")
                continue
            for _ in range(order):
                msg = sub.recv(timeout=30)
                held[msg.sequence] = msg
            del msg
            line.tell("taken")


def order(child: Child, what: Any, answer: str) -> None:
    child.tell(what)
    assert child.hear() == answer


def holders(spawn: Spawn, pub: byref.Publisher, *names: str, **options: Any) -> list[Child]:
    """Processes that hold what they take."""
    children = [spawn(hold, name, options) for name in names]
    for child in children:
        assert child.hear() == "ready"
    pub.wait_for_subscribers(len(names), timeout=30)
    return children


def by_name(pub: byref.Publisher) -> dict[str | None, byref.Holder]:
    return {holder.name: holder for holder in pub.outstanding.holders}


# ---- what is outstanding ---------------------------------------------------------------------------------------------


def test_what_several_subscribers_hold(spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    first, second = holders(spawn, pub, "first", "second")
    for seed in range(4):
        pub.send(payload(seed, MIB))
    pub.send(b"small, so copied")
    nothing = pub.outstanding
    assert (nothing.messages, nothing.bytes, nothing.holders, nothing.oldest) == (0, 0, [], None), "unread is not held"
    order(first, 3, "taken")
    order(second, 5, "taken")
    order(second, [0], "released")
    found = pub.outstanding
    assert (found.messages, found.bytes) == (4, 4 * MIB)
    one, two = by_name(pub)["first"], by_name(pub)["second"]
    assert (one.pid, one.messages, one.bytes, one.oldest_sequence) == (first.pid, 3, 3 * MIB, 0)
    assert (two.pid, two.messages, two.bytes, two.oldest_sequence) == (second.pid, 3, 3 * MIB, 1)
    assert one.oldest_age > 0
    assert one.received_at is None
    assert found.oldest is not None
    assert (found.oldest.name, found.oldest.oldest_sequence) == ("first", 0)
    assert "4 messages of 4194304 bytes, 2 holders" in repr(found)
    assert f"'first', process {first.pid}, 3 messages" in repr(one).replace('"', "'")
    order(first, [0, 1, 2], "released")
    assert list(by_name(pub)) == ["second"]
    order(second, [1, 2, 3], "released")
    assert pub.outstanding.messages == 0


def test_a_dead_holder_holds_nothing(spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    killed, lives = holders(spawn, pub, "killed", "lives")
    pub.send(payload(0, MIB))
    ticket = pub.send_tracked(payload(1, MIB))
    for child in (killed, lives):
        order(child, 2, "taken")
    order(lives, [0, 1], "released")
    assert [holder.pid for holder in pub.outstanding.holders] == [killed.pid]
    assert not ticket.released
    killing = threading.Timer(0.2, killed.kill)
    killing.start()
    assert outcome_of(ticket) is None
    assert eventually(lambda: pub.outstanding.messages == 0, "its holds go with it")


def test_a_closed_subscriber_still_holds(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    ticket = pub.send_tracked(payload(0, MIB))
    msg = sub.recv(timeout=30)
    sub.close()
    assert pub.outstanding.messages == 1
    assert not ticket.released
    releasing = threading.Timer(0.05, msg.release)
    releasing.start()
    assert outcome_of(ticket) is None


def views(msg: byref.Message, batch: byref.Batch) -> Iterator[tuple[str, Any]]:
    """Everything that keeps a message; `batch` has the same payload."""
    yield "message", msg
    yield "memoryview", memoryview(msg)
    yield "array", np.asarray(msg)
    yield "slice of an array", np.asarray(msg)[5:9]
    yield "copy-on-write view", msg.writable()
    yield "value", msg.value
    yield "batch", batch
    yield "rows of a batch", batch.array()[0, 3:]
    yield "message of a batch", batch[0]


@pytest.mark.parametrize("number", range(9))
def test_views_and_clones_hold(number: int, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    ticket = pub.send_tracked(payload(7, MIB))
    batch_ticket = pub.send_tracked(payload(7, MIB))
    msg, batch = sub.recv(timeout=30), sub.recv_batch(1, timeout=30)
    name, kept = list(views(msg, batch))[number]
    tickets = [batch_ticket, ticket] if "batch" in name else [ticket, batch_ticket]
    del msg, batch
    gc.collect()
    tickets[1].wait_released(timeout=30)
    assert not tickets[0].released, name
    assert pub.outstanding.messages == 1
    with pytest.raises(byref.Timeout, match=rf"message {tickets[0].sequence} is held by process {os.getpid()}"):
        tickets[0].wait_released(timeout=0)
    del kept
    tickets[0].wait_released(timeout=30)
    assert pub.outstanding.messages == 0


def test_rows_of_a_block_are_held_together(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send_many(payload(0, 64 << 10).reshape(64, 1024))
    row = [sub.recv(timeout=30) for _ in range(64)][40]
    found = pub.outstanding
    assert (found.messages, found.bytes, found.holders[0].oldest_sequence) == (64, 64 << 10, 0)
    del row
    assert pub.outstanding.messages == 0


def test_errors_name_the_oldest(endpoints: Endpoints) -> None:
    pub = endpoints.publisher(max_memory=4 * MIB)
    sub = endpoints.subscriber(policy="drop_oldest", name="hoarder")
    pub.wait_for_subscribers(timeout=20)
    held = []

    def hoard() -> None:
        for seed in range(100):
            pub.send(payload(seed, MIB))
            held.append(sub.recv(timeout=30))

    with pytest.raises(byref.PoolExhausted) as caught:
        hoard()
    assert "('hoarder') holds" in str(caught.value)
    assert "the oldest is message 0, sent 0." in str(caught.value)


@pytest.mark.parametrize(("policy", "error"), [("drop_oldest", byref.PoolExhausted), ("block", byref.Timeout)])
def test_a_full_pool_names_who_holds_and_nobody_else(
    policy: Any, error: type[byref.Error], endpoints: Endpoints
) -> None:
    """Messages that travel in the ring take no payload memory, so who has yet to read them is not in the way."""
    pub = endpoints.publisher(max_memory=MIB)
    innocent = endpoints.subscriber(name="innocent")
    holder = endpoints.subscriber(name="holder", policy=policy)
    pub.wait_for_subscribers(2, timeout=20)
    pub.send(payload(0, 700_000))
    innocent.recv(timeout=20)
    held = holder.recv(timeout=20)
    for _ in range(64):
        pub.send(b"small")
        holder.recv(timeout=20)
    with pytest.raises(error) as caught:
        pub.send(payload(1, 700_000), timeout=0.1)
    told = str(caught.value)
    assert "('holder') holds 1 message (700000 bytes; the oldest is message 0, sent " in told
    assert "innocent" not in told
    assert is_payload(held, 0, 700_000)


def test_after_close(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    early, late = (pub.send_tracked(payload(seed, 5000)) for seed in range(2))
    sub.recv(timeout=30)
    waiting = threading.Thread(target=lambda: outcome.append(outcome_of(late)))
    outcome: list[type[BaseException] | None] = []
    waiting.start()
    time.sleep(0.05)
    pub.close()
    waiting.join(20)
    assert outcome == [byref.Closed]
    assert early.released
    assert not late.released
    early.wait_released()
    with pytest.raises(byref.Closed, match="publisher on topic 't' is closed"):
        late.wait_released()
    with pytest.raises(byref.Closed):
        asyncio.run(asyncio.wait_for(late, 20))
    with pytest.raises(byref.Closed):
        _ = pub.outstanding


def outcome_of(ticket: byref.Ticket, sleeping: bool = True) -> type[BaseException] | None:
    """Waits for a release, `sleeping` in an event loop until it is woken; a waiting thread looks again now and then."""

    async def wait() -> None:
        await asyncio.wait_for(ticket, 30)

    try:
        if sleeping:
            asyncio.run(wait())
        else:
            ticket.wait_released(timeout=30)
    except (byref.Error, TimeoutError) as problem:
        return type(problem)
    return None


# ---- tickets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, 300, MIB])
def test_a_ticket_follows_its_message(size: int, spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    (child,) = holders(spawn, pub, "it")
    ticket = pub.send_tracked(payload(0, size))
    assert ticket.sequence == 0
    assert not ticket.released, "unread"
    with pytest.raises(byref.Timeout, match=rf"message 0 was not taken yet by process {child.pid} \('it'\)"):
        ticket.wait_released(timeout=0.01)
    order(child, 1, "taken")
    assert not ticket.released, "held"
    assert pub.outstanding.bytes == size
    with pytest.raises(byref.Timeout, match=rf"waiting for a release on topic 't'.* held by process {child.pid}"):
        ticket.wait_released(timeout=0.01)
    releasing = threading.Timer(0.05, child.tell, ([0],))
    releasing.start()
    ticket.wait_released(timeout=30)
    assert ticket.released
    assert repr(ticket) == '<byref.Ticket of message 0 on "t">'


def test_all_arguments_and_kinds_of_data(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    strided = np.arange(1000, dtype="<i4").reshape(10, 100)[::2, ::3]
    for data in (b"abc", strided, np.datetime64("2024-01-01", "s")[None]):
        ticket = pub.send_tracked(data, headers={"a": 1}, timestamp_ns=5, timeout=30)
        msg = sub.recv(timeout=30)
        assert (msg.sequence, msg.headers, msg.timestamp_ns) == (ticket.sequence, {"a": 1}, 5)
        assert (np.asarray(msg.value) == np.asarray(memoryview(data) if isinstance(data, bytes) else data)).all()
        assert not ticket.released
        del msg
        assert ticket.released
    with pytest.raises(TypeError):
        pub.send_tracked(object())  # type: ignore[arg-type]


def test_without_subscribers_it_is_released_at_once(endpoints: Endpoints) -> None:
    pub = endpoints.publisher(history=10)
    ticket = pub.send_tracked(payload(0, MIB))
    assert ticket.released, "the publisher's own history does not count"
    late = endpoints.subscriber(history=10)
    msg = late.recv(timeout=30)
    assert ticket.released, "what was released stays so"
    assert is_payload(msg, 0, MIB)


def test_a_late_subscriber_with_history_counts(endpoints: Endpoints) -> None:
    pub = endpoints.publisher(history=10)
    ticket = pub.send_tracked(payload(0, MIB))  # Nobody has looked at it yet.
    late = endpoints.subscriber(history=10)
    pub.wait_for_subscribers(timeout=20)
    assert not ticket.released
    late.recv(timeout=30)
    ticket.wait_released(timeout=30)


def test_a_slot_that_is_used_again(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=4 * MIB)
    old = pub.send_tracked(payload(0, MIB))  # Nobody asks until its memory has another message.
    sub.recv(timeout=30)
    held = []
    for seed in range(1, 40):
        pub.send(payload(seed, MIB), timeout=30)
        msg = sub.recv(timeout=30)
        assert is_payload(msg, seed, MIB)
        held = [msg]
    ticket = pub.send_tracked(payload(40, 100 << 10))
    assert len(held) == 1
    assert old.released
    assert not ticket.released
    assert pub.outstanding.messages == 1


def skip(line: Line, policy: str) -> None:
    """Takes a message whenever it is told to."""
    with byref.Subscriber("t", policy=policy) as sub:  # type: ignore[call-overload]
        while line.hear() is not None:
            line.tell(sub.recv(timeout=30).sequence)


def test_a_lossy_subscriber_that_skips_a_message_releases_it(spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    child = spawn(skip, "latest")
    pub.wait_for_subscribers(timeout=30)
    for _ in range(20):
        ticket = pub.send_tracked(payload(0, 1000))
        last = pub.send(b"newer")
        assert not ticket.released
        asking = threading.Timer(0.02, child.tell, (1,))
        asking.start()
        assert outcome_of(ticket) is None
        assert child.hear() == last


def test_a_lossy_subscriber_that_is_overtaken_releases_it(spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    child = spawn(skip, "drop_oldest")
    pub.wait_for_subscribers(timeout=30)
    ticket = pub.send_tracked(payload(0, 1000))
    child.signal(signal.SIGSTOP)
    outcomes: list[type[BaseException] | None] = []
    waiting = threading.Thread(target=lambda: outcomes.append(outcome_of(ticket)))
    waiting.start()
    time.sleep(0.2)  # Without it the first look may come after all of this.
    for _ in range(40_000):
        pub.send(b"")
    waiting.join(30)
    assert outcomes == [None]
    child.kill()


def release_at_once(line: Line, batches: bool) -> None:
    """Takes messages and lets go of them."""
    with byref.Subscriber("t") as sub:
        line.tell("ready")
        while not line.has_something():
            with contextlib.suppress(byref.Timeout):
                sub.recv_batch(100, timeout=1) if batches else sub.recv(timeout=1)


@pytest.mark.parametrize("batches", [False, True])
def test_thousands_in_flight(batches: bool, spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    children = [spawn(release_at_once, batches) for _ in range(2)]
    pub.wait_for_subscribers(2, timeout=30)

    async def main() -> None:
        tickets = [pub.send_tracked(payload(seed, 10 if seed % 2 else 2000)) for seed in range(5000)]
        await asyncio.gather(*tickets)
        assert all(ticket.released for ticket in tickets)

    asyncio.run(asyncio.wait_for(main(), 60))
    for _ in range(2000):
        pub.send_tracked(b"x").wait_released(timeout=30)
    assert pub.outstanding.messages == 0
    for child in children:
        child.tell()


def test_many_threads_wait(spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    (child,) = holders(spawn, pub, "it")
    tickets = [pub.send_tracked(payload(seed, 1000)) for seed in range(4)]
    outcomes: list[type[BaseException] | None] = []
    ways = [(ticket, sleeping) for ticket in tickets * 3 for sleeping in (True, False)]
    threads = [threading.Thread(target=lambda way=way: outcomes.append(outcome_of(*way))) for way in ways]
    for thread in threads:
        thread.start()
    order(child, 4, "taken")
    order(child, [3, 1, 0, 2], "released")
    for thread in threads:
        thread.join(40)
    assert outcomes == [None] * 24


def test_a_sender_that_waits_for_room_is_woken(spawn: Spawn, endpoints: Endpoints) -> None:
    """It and whoever waits for tickets read the same sockets: what one of them takes, the other hears of."""
    pub = endpoints.publisher()
    (child,) = holders(spawn, pub, "it", depth=1)
    ticket = pub.send_tracked(payload(0, 1000))
    order(child, 1, "taken")
    outcomes: list[type[BaseException] | None] = []
    waiting = threading.Thread(target=lambda: outcomes.append(outcome_of(ticket)))
    waiting.start()
    pub.send(b"")
    for _ in range(100):
        reading = threading.Timer(0.01, order, (child, 1, "taken"))
        reading.start()
        pub.send(b"", timeout=20)
        reading.join()
    assert waiting.is_alive()
    order(child, [0], "released")
    waiting.join(40)
    assert outcomes == [None]


def test_await_cancel_and_close(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()

    async def main() -> None:
        ticket = pub.send_tracked(payload(0, 1000))
        msg = sub.recv(timeout=30)
        before = len(descriptors())
        waiting = [asyncio.create_task(wait(ticket)) for _ in range(10)]
        await asyncio.sleep(0.01)
        for task in waiting[:5]:
            task.cancel()
        await asyncio.sleep(0.01)
        assert [task.done() for task in waiting] == [True] * 5 + [False] * 5
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ticket, 0.01)
        assert len(descriptors()) < before + 10, "one descriptor for all"
        msg.release()
        await asyncio.wait_for(asyncio.gather(*waiting[5:]), 30)
        await ticket
        pending = pub.send_tracked(payload(0, 1000))
        closed = asyncio.create_task(wait(pending))
        await asyncio.sleep(0.01)
        pub.close()
        with pytest.raises(byref.Closed):
            await asyncio.wait_for(closed, 30)

    async def wait(ticket: byref.Ticket) -> None:
        await ticket

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_awaiting_loop_sleeps(spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    (child,) = holders(spawn, pub, "it")

    async def main() -> float:
        tickets = [pub.send_tracked(payload(seed, 1000)) for seed in range(100)]
        order(child, 100, "taken")
        waiting = asyncio.gather(*tickets)
        await asyncio.sleep(0.2)
        used = time.process_time()
        await asyncio.sleep(0.5)
        used = time.process_time() - used
        order(child, list(range(100)), "released")
        await asyncio.wait_for(waiting, 30)
        return used

    assert asyncio.run(main()) < 0.25, "of half a second: no busy loop"


def wait_for_ever(line: Line) -> None:
    """Waits for a release that does not come."""
    with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
        pub.wait_for_subscribers(timeout=30)
        ticket = pub.send_tracked(b"x")
        msg = sub.recv(timeout=30)
        line.tell("waiting")
        try:
            ticket.wait_released()
        except KeyboardInterrupt:
            line.tell("interrupted")
        msg.release()
        assert ticket.released


def test_ctrl_c_ends_a_wait(spawn: Spawn) -> None:
    child = spawn(wait_for_ever)
    assert child.hear() == "waiting"
    time.sleep(0.1)
    child.signal(signal.SIGINT)
    assert child.hear() == "interrupted"
    child.finish()


def test_waiting_leaves_no_descriptors(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    held = []

    def once() -> None:
        held[:] = []
        ticket = pub.send_tracked(b"x")
        held.append(sub.recv(timeout=30))
        with pytest.raises(byref.Timeout):
            ticket.wait_released(timeout=0)

    # The first hundred also give this process's own thread the time to let go of what connecting took.
    for _ in range(100):
        once()
    before = len(descriptors())
    for _ in range(100):
        once()
    eventually(lambda: len(descriptors()) <= before, "waiting leaves no descriptor")


# ---- warnings --------------------------------------------------------------------------------------------------------


def publish_with_warnings(line: Line, options: dict[str, Any], count: int) -> None:
    """Sends so many messages of 1 MiB whenever it hears anything; tells what became of it."""
    with byref.Publisher("t", **options) as pub:
        pub.wait_for_subscribers(timeout=30)
        sequence = 0
        while line.hear() is not None:
            try:
                for _ in range(count):
                    pub.send(payload(sequence, MIB), timeout=0.3)
                    sequence += 1
                line.tell("sent")
            except (byref.Timeout, byref.PoolExhausted) as problem:
                line.tell(str(problem))


def warnings(child: Child) -> list[str]:
    return [row for row in child.output().splitlines() if "still held" in row]


def test_a_warning_about_each_message_that_is_held_long(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber(name="slow")
    publisher = spawn(publish_with_warnings, {"hold_warning": 0.05, "max_memory": 64 * MIB}, 5)
    publisher.tell("go")
    held = [sub.recv(timeout=30) for _ in range(3)]
    assert publisher.hear() == "sent"
    eventually(lambda: len(warnings(publisher)) >= 3, "a warning for each")
    time.sleep(0.3)
    found = sorted(warnings(publisher))
    assert len(found) == 3, "once for each message, and none about those that are unread"
    for sequence, text in enumerate(found):
        assert f"topic 't': held for more than 0.1 s: message {sequence}, sent " in text
        assert f"is still held by process {os.getpid()} ('slow'); it should release" in text
    held.clear()


def test_no_warning_unless_it_was_asked_for(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    publisher = spawn(publish_with_warnings, {"max_memory": 64 * MIB}, 3)
    publisher.tell("go")
    held = [sub.recv(timeout=30) for _ in range(3)]
    assert publisher.hear() == "sent"
    time.sleep(0.3)
    assert warnings(publisher) == []
    assert len(held) == 3


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_impossible_limits(seconds: float) -> None:
    with pytest.raises(ValueError, match="hold_warning must be more than 0 seconds"):
        byref.Publisher("t", hold_warning=seconds)


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_a_warning_when_held_messages_block_a_send(policy: str, spawn: Spawn, endpoints: Endpoints) -> None:
    """A send that waits for held memory warns, and so does one that fails because of it; no more than once a second."""
    sub = endpoints.subscriber(name="keeper", policy=policy)
    publisher = spawn(publish_with_warnings, {"max_memory": 4 * MIB}, 1)
    sub.wait_for_publishers(timeout=30)
    held = []
    publisher.tell("go")
    while (answer := publisher.hear()) == "sent":
        held.append(sub.recv(timeout=30))
        publisher.tell("go")
    assert f"('keeper') holds {len(held)}" in answer
    (text,) = warnings(publisher)
    assert "topic 't': a send finds no memory: message 0, sent " in text
    assert f"is still held by process {os.getpid()} ('keeper'); it should release" in text


def test_no_warning_while_reading_is_all_that_is_waited_for(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    publisher = spawn(publish_with_warnings, {"max_memory": 8 * MIB}, 20)
    sub.wait_for_publishers(timeout=30)
    publisher.tell("go")
    for _ in range(20):
        msg = sub.recv(timeout=30)
        time.sleep(0.02)  # It works on one message while the others wait.
    assert publisher.hear() == "sent"
    assert warnings(publisher) == []
    del msg


# ---- where it was received -------------------------------------------------------------------------------------------


@pytest.fixture
def recording() -> Iterator[None]:
    byref.record_receives()
    yield
    byref.record_receives(False)


def line_of(mark: str) -> str:
    """File and line of the code of this file that ends with a comment."""
    rows = Path(__file__).read_text().splitlines()
    (number,) = (number for number, row in enumerate(rows, 1) if row.endswith(f"# Line {mark}."))
    return f"{__file__}:{number}"[-56:]


def received_at(pub: byref.Publisher) -> str | None:
    found = pub.outstanding.oldest
    assert found is not None
    return found.received_at


@pytest.mark.usefixtures("recording")
def test_places_are_recorded(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    kept: list[Any] = []

    def check(mark: str) -> None:
        assert received_at(pub) == line_of(mark)
        kept.clear()
        assert pub.outstanding.messages == 0

    pub.send(payload(0, 1000))
    kept.append(sub.recv(timeout=30))  # Line recv.
    check("recv")
    pub.send(payload(0, 1000))
    kept.append(sub.try_recv())  # Line try_recv.
    check("try_recv")
    pub.send(payload(0, 1000))
    for msg in sub:  # Line iteration.
        kept.append(msg)
        break
    del msg
    check("iteration")
    pub.send(payload(0, 1000))
    kept.append(sub.recv_batch(5, timeout=30))  # Line recv_batch.
    check("recv_batch")
    pub.send_many(payload(0, 64 << 10).reshape(64, 1024))
    kept.append(sub.recv_batch(64, timeout=30))  # Line rows.
    check("rows")

    async def receive() -> None:
        asyncio.get_running_loop().call_later(0.02, pub.send, payload(0, 1000))
        async for msg in sub:  # Line async.
            kept.append(msg)
            break

    asyncio.run(receive())
    check("async")


@pytest.mark.usefixtures("recording")
def test_the_places_of_receivers_are_recorded(endpoints: Endpoints) -> None:
    kept: list[Any] = []

    def keep(msg: Any) -> None:  # Line function.
        kept.append(msg)

    class Keeper:
        def __call__(self, msg: Any) -> None:  # Line callable.
            kept.append(msg)

        def method(self, msg: Any) -> None:  # Line method.
            kept.append(msg)

    for receiver, place, batch in (
        (keep, line_of("function"), False),
        (Keeper(), line_of("callable"), False),
        (Keeper().method, line_of("method"), True),
        (kept.append, "list.append", False),
    ):
        with byref.EventQueue() as queue, byref.Publisher("t") as pub:
            queue.subscribe("t", receiver, batch=batch)
            pub.wait_for_subscribers(timeout=20)
            pub.send(payload(0, 1000))
            queue.dispatch(30)
            assert len(kept) == 1
            assert received_at(pub) == place
            kept.clear()


def test_places_are_recorded_only_when_asked(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=MIB)
    pub.send(payload(0, 300 << 10))
    held = sub.recv(timeout=30)
    assert received_at(pub) is None
    byref.record_receives()
    held.release()
    pub.send(payload(0, 300 << 10))
    held = sub.recv(timeout=30)
    assert received_at(pub) is not None
    byref.record_receives(False)
    held.release()
    for _ in range(10):  # Soon in the same slot, with the old note in it.
        pub.send(payload(0, 300 << 10))
        held = sub.recv(timeout=30)
        assert received_at(pub) is None
        held.release()


def record(line: Line) -> None:
    """Holds a message; its environment says that places are recorded."""
    with byref.Subscriber("t", name="recorder") as sub:
        msg = sub.recv(timeout=30)  # Line other process.
        line.tell("taken")
        line.hear()
        del msg


def test_places_of_another_process_are_in_warnings_and_errors(
    spawn: Spawn, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYREF_RECORD_RECEIVES", "1")
    child = spawn(record)
    pub = endpoints.publisher(max_memory=2 * MIB)
    pub.wait_for_subscribers(timeout=30)
    ticket = pub.send_tracked(payload(0, MIB))
    assert child.hear() == "taken"
    place = line_of("other process")
    assert received_at(pub) == place
    with pytest.raises(
        byref.Timeout, match=rf"process {child.pid} \('recorder'\), which received it at {re.escape(place)}"
    ):
        ticket.wait_released(timeout=0)
    with pytest.raises(byref.Timeout, match=rf"the oldest is message 0, sent .* ago, received at {re.escape(place)}"):
        pub.send(payload(1, 2 * MIB - 8192), timeout=0.05)
    child.tell()
    ticket.wait_released(timeout=30)


# ---- the documentation -----------------------------------------------------------------------------------------------


def test_the_examples_of_the_documentation(rendezvous: Path) -> None:
    text = Path(ROOT, "docs", "releases.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 4
    for example in examples:
        exec(compile(example, "docs/releases.md", "exec"), {"__name__": "example"})
    byref.record_receives(False)
