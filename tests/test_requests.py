"""Requests and replies across processes: deadlines, cancelling, and what is known when one side ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest

from tests.processes import PATIENCE, Child, Line, descriptors, eventually

Spawn = Callable[..., Child]


def serve(line: Line, service: str, settings: dict[str, Any]) -> None:
    """Serves a service; does what it is told with the requests that come."""
    server = byref.Server(service, **settings)
    line.tell("there")
    kept = []
    while (order := line.hear()) != "end":
        match order:
            case ["echo", count]:
                for _ in range(count):
                    request = server.recv(PATIENCE)
                    request.reply(bytes(request), headers=request.headers or None)
                line.tell(count)
            case ["keep", count]:
                kept += [server.recv(PATIENCE) for _ in range(count)]
                line.tell([bytes(request).decode(errors="replace") for request in kept])
            case ["cancelled"]:
                line.tell([request.cancelled for request in kept])
            case ["reply", text]:
                try:
                    line.tell([request.reply(text.encode()) for request in kept])
                except byref.Error as why:
                    line.tell(type(why).__name__)
                kept.clear()
            case ["drop"]:
                kept.clear()
                gc.collect()
                line.tell("dropped")
            case ["stats"]:
                line.tell(server.stats())
            case ["close"]:
                server.close()
                line.tell("closed")
    server.close()


class Other:
    """A server in a process of its own."""

    def __init__(self, spawn: Spawn, service: str = "s", **settings: Any) -> None:
        self.child = spawn(serve, service, settings)
        assert self.child.hear() == "there"

    def do(self, *order: Any) -> Any:
        """Have it do something; gives what it says."""
        self.child.tell(order)
        return self.child.hear()

    def begin(self, *order: Any) -> None:
        """Have it do something, and go on."""
        self.child.tell(order)


@pytest.fixture
def other(spawn: Spawn) -> Other:
    """One server of the service s."""
    return Other(spawn)


@pytest.fixture
def client() -> Iterator[byref.Client]:
    """A client of the service s."""
    with byref.Client("s") as client:
        yield client


def with_servers(client: byref.Client, count: int) -> list[byref.Identity]:
    """The servers, once there are so many."""
    return eventually(lambda: len(client.servers) == count and client.servers, "they have met")


@contextlib.contextmanager
def serving(function: Callable[[byref.Request], object], service: str = "s", **settings: Any) -> Iterator[byref.Server]:
    """A server on a thread of this process, until the block ends."""
    with byref.Server(service, **settings) as server:

        def work() -> None:
            for request in server:
                function(request)

        thread = threading.Thread(target=work)
        thread.start()
        yield server
    thread.join(PATIENCE)
    assert not thread.is_alive()


# ---- requests and replies ----


def test_a_request_has_its_reply(other: Other, client: byref.Client) -> None:
    payloads = [b"", b"x" * 64, bytes(range(256)), os.urandom(1 << 20)]
    other.begin("echo", len(payloads))
    for payload in payloads:
        reply = client.request(payload, headers={"n": len(payload)}, timeout=PATIENCE)
        assert bytes(reply) == payload
        assert reply.headers == {"n": len(payload)}
        assert reply.sender == client.servers[0]
    assert other.child.hear() == len(payloads)
    assert client.stats()["under_way"] == 0


def test_what_can_be_sent_can_be_asked_and_answered(client: byref.Client) -> None:
    with serving(lambda request: request.reply(request.value)):
        image = np.arange(12, dtype=np.float32).reshape(3, 4)
        assert np.array_equal(client.request(image, wait=PATIENCE).value, image)
        assert client.request(np.float64(2.5)).value == 2.5
        table = pa.table({"a": [1, 2, 3]})
        assert client.request(table).value.equals(table)
        assert client.request({"image": image, "n": [1, None, "x"]}).value["n"] == [1, None, "x"]
        assert bytes(client.request(bytearray(b"abc"))) == b"abc"
        with pytest.raises(TypeError, match="cannot send"):
            client.request(object())  # type: ignore[arg-type]


def test_large_arrays_in_loans_are_not_copied(client: byref.Client) -> None:
    def invert(request: byref.Request) -> None:
        loan = request.loan(request.shape, request.dtype)
        np.subtract(255, np.asarray(request), out=loan.array)
        assert request.reply(loan)
        assert not loan.array.flags.writeable

    with serving(invert):
        client.wait_for_server(timeout=PATIENCE)
        before = byref.copied_bytes()
        loan = client.loan((1024, 1024), "uint8")
        loan.array[:] = 7
        reply = client.request(loan)
        assert np.all(reply.value == 248)
        assert not loan.array.flags.writeable
        after = byref.copied_bytes()
        assert after == before
        with pytest.raises(byref.Closed):
            client.request(loan)
        with byref.Client("s") as another, pytest.raises(ValueError, match="another endpoint's"):
            another.request(client.loan(4096))
        with pytest.raises(ValueError, match="giving it to the call"):
            client.loan(4096).send()


def test_a_request_is_a_message(client: byref.Client) -> None:
    seen = []

    def look(request: byref.Request) -> None:
        assert request.sender == client.identity
        assert np.asarray(request).shape == request.shape == (2, 3)
        assert memoryview(request).shape == (2, 3)
        assert len(request) == request.nbytes == 48
        assert bytes(request) == bytes(request.message)
        left = request.deadline - time.monotonic()
        seen.append((request.headers, 0 < left <= 20, request.cancelled, request.answered))
        request.reply(b"")
        assert request.answered
        with pytest.raises(ValueError, match="answered before"):
            request.reply(b"again")
        with pytest.raises(AttributeError):
            _ = request.nothing_of_the_kind

    with serving(look):
        client.request(np.ones((2, 3)), headers={"a": 1}, timeout=20)
    assert seen == [({"a": 1}, True, False, False)]


def test_no_server() -> None:
    with byref.Client("nobody") as client:
        began = time.monotonic()
        with pytest.raises(byref.NoServer, match="nobody serves it; servers were looked for in"):
            client.request(b"x")
        assert time.monotonic() - began < PATIENCE
        with pytest.raises(byref.NoServer):
            client.submit(b"x", wait=0.05)
        with pytest.raises(byref.Timeout):
            client.wait_for_server(timeout=0.05)
        assert client.servers == []


def test_a_server_that_comes_is_waited_for(spawn: Spawn) -> None:
    with byref.Client("s") as client:
        replies = []
        thread = threading.Thread(target=lambda: replies.append(bytes(client.request(b"x", wait=PATIENCE))))
        thread.start()
        other = Other(spawn)
        other.do("echo", 1)
        thread.join(PATIENCE)
        assert replies == [b"x"]


def test_a_deadline_is_the_servers_too(other: Other, client: byref.Client) -> None:
    pending = client.submit(b"slow", timeout=0.3)
    other.do("keep", 1)
    assert other.do("cancelled") == [False]
    with pytest.raises(byref.DeadlineExceeded, match="no reply within 300ms") as caught:
        pending.result()
    assert isinstance(caught.value, byref.Timeout)
    assert other.do("cancelled") == [True]
    assert other.do("reply", "late") == [False]
    assert other.do("stats")["late"] == 1
    eventually(lambda: client.servers and client.stats()["under_way"] == 0, "its place is free")
    other.begin("echo", 1)
    assert bytes(client.request(b"next", timeout=PATIENCE)) == b"next"


def test_a_result_can_be_waited_for_again(other: Other, client: byref.Client) -> None:
    pending = client.submit(b"x", timeout=PATIENCE)
    with pytest.raises(byref.Timeout, match="can be waited for again") as caught:
        pending.result(0.05)
    assert not isinstance(caught.value, byref.DeadlineExceeded)
    assert not pending.done()
    other.do("echo", 1)
    assert bytes(pending.result()) == bytes(pending.result()) == b"x"
    assert pending.done()
    assert not pending.cancel()


def test_cancelling_is_seen_without_receiving(spawn: Spawn, client: byref.Client) -> None:
    other = Other(spawn, prefetch=2)
    pending = [client.submit(text, timeout=PATIENCE) for text in (b"1", b"2")]
    other.do("keep", 2)
    assert pending[0].cancel()
    assert not pending[0].cancel()
    assert other.do("cancelled") == [True, False]
    with pytest.raises(byref.Cancelled):
        pending[0].result()
    del pending[1]
    assert other.do("cancelled") == [True, True]
    assert other.do("reply", "nobody wants it") == [False, False]
    eventually(lambda: client.servers and client.stats()["under_way"] == 0, "their places are free")
    assert client.stats()["late"] == 0


def test_another_thread_cancels(other: Other, client: byref.Client) -> None:
    pending = client.submit(b"x", timeout=PATIENCE)
    other.do("keep", 1)
    timer = threading.Timer(0.2, pending.cancel)
    timer.start()
    with pytest.raises(byref.Cancelled):
        pending.result()
    timer.join()
    assert other.do("cancelled") == [True]


def test_a_dropped_request_is_told(other: Other, client: byref.Client) -> None:
    pending = client.submit(b"x", timeout=PATIENCE)
    other.do("keep", 1)
    other.do("drop")
    with pytest.raises(byref.NoReply, match="dropped the request") as caught:
        pending.result()
    assert caught.value.peer == client.servers[0]


def test_the_end_of_a_client_is_seen(other: Other) -> None:
    with byref.Client("s") as client:
        client.submit(b"x", timeout=PATIENCE).done()
        pending = client.submit(b"y", timeout=PATIENCE)
        other.do("keep", 1)
        pending.done()
    eventually(lambda: other.do("cancelled") == [True], "it sees the end")
    assert other.do("reply", "x") == [False]
    with pytest.raises(byref.Closed, match="the client of service 's' is closed"):
        pending.result()
    with pytest.raises(byref.Closed):
        client.request(b"x")
    client.close()


def asks(line: Line) -> None:
    """Asks, and waits for a reply that does not come."""
    with byref.Client("s") as client:
        pending = client.submit(b"x", timeout=PATIENCE)
        line.tell("asked")
        line.hear()
        pending.cancel()


def test_the_death_of_a_client_is_seen(spawn: Spawn) -> None:
    with byref.Server("s") as server:
        child = spawn(asks)
        assert child.hear() == "asked"
        request = server.recv(PATIENCE)
        assert not request.cancelled
        child.kill()
        eventually(lambda: request.cancelled, "it sees the death")
        assert not request.reply(b"x")
        eventually(lambda: server.stats()["clients"] == 0, "it is gone")


# ---- servers that end ----


@pytest.mark.parametrize("how", ["kill", "close"])
def test_what_a_server_that_ends_had_taken(spawn: Spawn, client: byref.Client, how: str) -> None:
    first = Other(spawn, prefetch=8)
    client.wait_for_server(timeout=PATIENCE)
    pending = [client.submit(str(number).encode(), timeout=PATIENCE) for number in range(5)]
    large = client.submit(np.arange(10_000), timeout=PATIENCE)
    repeated = client.submit(b"repeated", timeout=PATIENCE, retry="idempotent")
    assert first.do("keep", 2) == ["0", "1"]
    second = Other(spawn, prefetch=8)
    with_servers(client, 2)
    second.begin("echo", 5)
    if how == "kill":
        first.child.kill()
    else:
        first.do("close")
    for number, reply in enumerate(pending):
        if number < 2:
            with pytest.raises(byref.PeerLost, match="after it had taken the request") as caught:
                reply.result()
            assert caught.value.taken is True
            assert caught.value.undelivered == []
        else:
            assert bytes(reply.result()) == str(number).encode()
    assert bytes(large.result()) == np.arange(10_000).tobytes()
    assert bytes(repeated.result()) == b"repeated"
    assert client.stats()["resent"] == 5


def test_what_was_taken_is_repeated_only_if_it_may_be(spawn: Spawn, client: byref.Client) -> None:
    first = Other(spawn, prefetch=4)
    client.wait_for_server(timeout=PATIENCE)
    once = client.submit(b"once", timeout=PATIENCE)
    again = client.submit(np.arange(5_000), timeout=PATIENCE, retry="idempotent")
    small = client.submit(b"small", timeout=PATIENCE, retry="idempotent")
    first.do("echo", 0)
    first.begin("keep", 3)
    second = Other(spawn, prefetch=4)
    with_servers(client, 2)
    second.begin("echo", 2)
    eventually(lambda: first.child.has_something(), "it has taken them")
    first.child.kill()
    assert bytes(again.result()) == np.arange(5_000).tobytes()
    assert bytes(small.result()) == b"small"
    with pytest.raises(byref.PeerLost) as caught:
        once.result()
    assert caught.value.taken is True


def test_the_only_server_ends(spawn: Spawn, client: byref.Client) -> None:
    other = Other(spawn, prefetch=2)
    client.wait_for_server(timeout=PATIENCE)
    pending = [client.submit(text, timeout=PATIENCE) for text in (b"taken", b"untaken")]
    other.do("keep", 1)
    waits = threading.Thread(target=lambda: contextlib.suppress(byref.Error).__enter__())
    waits.start()
    other.child.kill()
    for reply, taken in zip(pending, (True, False), strict=True):
        with pytest.raises(byref.PeerLost) as caught:
            reply.result()
        assert caught.value.taken is taken
    eventually(lambda: client.servers == [], "it is gone")
    with pytest.raises(byref.NoServer):
        client.request(b"x")


def test_to_one_server_and_to_a_group(spawn: Spawn, client: byref.Client) -> None:
    others = [Other(spawn, group="cpu"), Other(spawn, group="gpu")]
    servers = with_servers(client, 2)
    for server in servers:
        for other in others:
            other.begin("echo", 1)
        reply = client.request(b"x", to=server)
        assert reply.sender == server
        rest = client.request(b"y", to=next(it for it in servers if it != server))
        assert rest.sender != server
        assert [other.child.hear() for other in others] == [1, 1]
    with pytest.raises(byref.NoServer, match="in the group 'fpga'"):
        client.request(b"x", to="fpga")
    others[1].begin("echo", 1)
    gpu = client.request(b"x", to="gpu").sender
    assert gpu is not None
    assert others[1].child.hear() == 1
    others[1].child.kill()
    with pytest.raises(byref.PeerLost) as caught:
        client.request(b"x", to=gpu)
    assert caught.value.taken is False
    with pytest.raises(TypeError, match=r"to must be a byref\.Identity"):
        client.request(b"x", to=3)  # type: ignore[arg-type]


def test_requests_go_to_the_server_with_the_fewest(spawn: Spawn, client: byref.Client) -> None:
    others = [Other(spawn, prefetch=4) for _ in range(2)]
    with_servers(client, 2)
    pending = [client.submit(str(number).encode(), timeout=PATIENCE) for number in range(10)]
    assert [len(other.do("keep", 4)) for other in others] == [4, 4]
    stats = client.stats()
    assert (stats["under_way"], stats["waiting"]) == (8, 2)
    assert others[0].do("reply", "first") == [True] * 4
    assert [bytes(reply.result()) for reply in pending if reply.done()] == [b"first"] * 4
    others[0].begin("echo", 2)
    eventually(lambda: sum(reply.done() for reply in pending) == 6, "those that waited went to the one with room")
    lost = [reply for reply in pending if not reply.done()]
    assert len(lost) == 4
    others[1].child.kill()
    for reply in lost:
        with pytest.raises(byref.PeerLost):
            reply.result()


def test_a_survey_asks_every_server(spawn: Spawn, client: byref.Client) -> None:
    others = [Other(spawn, group=group) for group in ("a", "a", "b")]
    servers = with_servers(client, 3)
    for other in others:
        other.begin("echo", 1)
    replies = client.survey(b"who?", timeout=PATIENCE)
    assert {reply.sender for reply in replies} == set(servers)
    assert [other.child.hear() for other in others] == [1, 1, 1]
    others[0].begin("echo", 1)
    assert len(client.survey(b"who?", timeout=0.5, to="a")) == 1
    with byref.Client("nobody") as lonely, pytest.raises(byref.NoServer):
        lonely.survey(b"x")


def test_a_server_does_not_wait_for_a_client_that_takes_nothing(client: byref.Client) -> None:
    with byref.Server("s", prefetch=8) as server, byref.Client("s") as slow:
        for one in (slow, client):
            one.wait_for_server(timeout=PATIENCE)
        kept = [slow.submit(b"slow") for _ in range(8)]
        for _ in range(8):
            assert server.recv(PATIENCE).reply(bytes(5000))
        quick = client.submit(b"quick")
        assert server.recv(PATIENCE).reply(b"x")
        assert bytes(quick.result()) == b"x"
        assert [len(reply.result()) for reply in kept] == [5000] * 8


# ---- streams ----


def test_a_streamed_reply(client: byref.Client) -> None:
    def count(request: byref.Request) -> None:
        for number in range(100):
            request.reply(str(number).encode(), more=number < 99)

    with serving(count):
        client.wait_for_server(timeout=PATIENCE)
        assert [int(bytes(part)) for part in client.submit(b"x")] == list(range(100))
        assert int(bytes(client.request(b"x"))) == 99


def test_a_stream_that_nobody_wants_any_more(client: byref.Client) -> None:
    ended = threading.Event()

    def for_ever(request: byref.Request) -> None:
        while request.reply(b"part", more=True):
            pass
        ended.set()

    with serving(for_ever):
        client.wait_for_server(timeout=PATIENCE)
        pending = client.submit(b"x")
        assert bytes(next(iter(pending))) == b"part"
        pending.cancel()
        assert ended.wait(PATIENCE)
        with pytest.raises(byref.Cancelled):
            for _ in pending:
                pass


# ---- event loops ----


def test_asyncio_on_both_sides() -> None:
    async def main() -> None:
        with byref.Server("s", prefetch=64) as server, byref.Client("s") as client:

            async def work() -> None:
                async for request in server:
                    request.reply(request.value)

            worker = asyncio.create_task(work())
            client.wait_for_server(timeout=PATIENCE)
            replies = await asyncio.gather(*[client.submit(str(n).encode()) for n in range(100)])
            assert [int(bytes(reply)) for reply in replies] == list(range(100))
            pending = client.submit(b"never", timeout=0.2)
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker
            with pytest.raises(byref.DeadlineExceeded):
                await pending
            with pytest.raises(byref.Timeout):
                await server.recv_async(0)

    asyncio.run(main())


def test_a_task_that_is_cancelled_cancels_its_request(other: Other, client: byref.Client) -> None:
    async def main() -> None:
        client.wait_for_server(timeout=PATIENCE)

        async def ask() -> None:
            await client.submit(b"x", timeout=PATIENCE)

        task = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        other.do("keep", 1)
        assert other.do("cancelled") == [False]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    gc.collect()
    eventually(lambda: other.do("cancelled") == [True], "it sees that")


def test_a_reply_can_be_awaited_in_another_loop(other: Other, client: byref.Client) -> None:
    pending = client.submit(b"x", timeout=PATIENCE)

    async def wait() -> bytes:
        return bytes(await pending)

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(wait(), 0.05))
    other.do("echo", 1)
    assert asyncio.run(wait()) == b"x"


def test_parts_in_an_event_loop(client: byref.Client) -> None:
    def count(request: byref.Request) -> None:
        for number in range(50):
            request.reply(bytes([number]), more=True)
        request.finish()

    async def main() -> list[int]:
        client.wait_for_server(timeout=PATIENCE)
        return [bytes(part)[0] async for part in client.submit(b"x")]

    with serving(count):
        assert asyncio.run(main()) == list(range(50))


# ---- event queues ----


def test_a_queue_serves(client: byref.Client) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text either")

    def serve_any(request: byref.Request) -> object:
        match bytes(request):
            case b"fail":
                raise KeyError("missing")
            case b"broken":
                raise Broken
            case b"none":
                return None
            case b"self":
                request.reply(b"by itself")
                return b"ignored"
            case b"stream":
                return (bytes([part]) for part in range(3))
            case b"no payload":
                return object()
            case b"code":
                request.fail(404, "not here")
        return request.value

    queue = byref.EventQueue()
    receiver = queue.serve("s", serve_any, prefetch=4)
    thread = queue.start(daemon=True)
    client.wait_for_server(timeout=PATIENCE)
    assert receiver.topic == "s"
    assert bytes(client.request(b"x")) == b"x"
    assert bytes(client.request(b"none")) == b""
    assert bytes(client.request(b"self")) == b"by itself"
    assert [bytes(part)[0] for part in client.submit(b"stream")] == [0, 1, 2]
    with pytest.raises(byref.RemoteError, match="missing") as caught:
        client.request(b"fail")
    failed = caught.value
    assert (failed.code, failed.text) == ("KeyError", "'missing'")
    assert "in serve_any" in failed.traceback
    with pytest.raises(byref.RemoteError, match="its text cannot be had") as caught:
        client.request(b"broken")
    assert "Broken" in str(caught.value.code)
    with pytest.raises(byref.RemoteError, match="cannot send") as caught:
        client.request(b"no payload")
    assert caught.value.code == "TypeError"
    with pytest.raises(byref.RemoteError) as caught:
        client.request(b"code")
    assert (caught.value.code, caught.value.text, caught.value.traceback) == (404, "not here", "")
    assert receiver.stats()["received"] == 8
    receiver.close()
    eventually(lambda: client.servers == [], "it serves no more")
    queue.stop()
    thread.join(PATIENCE)
    with pytest.raises(TypeError, match="callable"):
        queue.serve("s", 3)  # type: ignore[arg-type]


def test_a_queue_serves_with_coroutine_functions() -> None:
    async def double(request: byref.Request) -> object:
        await asyncio.sleep(0)
        if request.value == [0]:
            raise ValueError("nothing to double")
        return [2 * request.value[0]]

    async def count(_request: byref.Request) -> AsyncIterator[bytes]:
        for part in range(3):
            await asyncio.sleep(0)
            yield bytes([part])

    async def main() -> None:
        queue = byref.EventQueue()
        queue.serve("double", double)
        queue.serve("count", count)
        running = asyncio.create_task(queue.run_async())
        with byref.Client("double") as client, byref.Client("count") as counter:
            assert (await client.submit([21], wait=PATIENCE)).value == [42]
            with pytest.raises(byref.RemoteError, match="nothing to double"):
                await client.submit([0])
            assert [bytes(part)[0] async for part in counter.submit(b"", wait=PATIENCE)] == [0, 1, 2]
        queue.stop()
        await running

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["generator", "asynchronous generator"])
def test_a_client_that_takes_no_parts_keeps_no_other_waiting(kind: str) -> None:
    total = 500

    def parts(request: byref.Request) -> Iterator[object]:
        yield from ([number, bytes(8000)] for number in range(total if bytes(request) == b"many" else 1))

    async def parts_async(request: byref.Request) -> AsyncIterator[object]:
        for part in parts(request):
            yield part

    queue = byref.EventQueue()
    queue.serve("s", parts if kind == "generator" else parts_async, prefetch=4)
    over = threading.Event()

    async def run() -> None:
        running = asyncio.create_task(queue.run_async())
        while not over.is_set():
            await asyncio.sleep(0.01)
        queue.stop()
        await running

    thread = threading.Thread(target=lambda: queue.run() if kind == "generator" else asyncio.run(run()), daemon=True)
    thread.start()
    with byref.Client("s") as slow, byref.Client("s") as quick:
        many = slow.submit(b"many", timeout=None, wait=PATIENCE)
        assert next(iter(many)).value[0] == 0
        for _ in range(20):  # Also from the slow client itself, which takes what comes for others.
            for client in (quick, slow):
                assert client.request(b"one", timeout=PATIENCE, wait=PATIENCE).value[0] == 0
        assert [part.value[0] for part in many] == list(range(1, total))
        # Nobody wants the rest.
        given_up = slow.submit(b"many", timeout=PATIENCE)
        assert next(iter(given_up)).value[0] == 0
        given_up.cancel()
        eventually(lambda: slow.servers and slow.stats()["under_way"] == 0, "the stream is over")
    over.set()
    queue.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_generator_that_raises_between_two_parts(client: byref.Client) -> None:
    def broken(_request: byref.Request) -> Iterator[bytes]:
        for number in range(200):
            yield bytes([number])
        raise KeyError("no more")

    queue = byref.EventQueue()
    queue.serve("s", broken)
    thread = queue.start(daemon=True)
    pending = client.submit(b"x", timeout=PATIENCE, wait=PATIENCE)
    time.sleep(0.05)  # In which it comes to where it has to wait.
    assert [bytes(part)[0] for part in itertools.islice(pending, 200)] == list(range(200))
    with pytest.raises(byref.RemoteError, match="no more"):
        next(iter(pending))
    queue.stop()
    thread.join(PATIENCE)


# ---- both at once, bad input ----


def test_a_server_that_is_its_own_client() -> None:
    def fibonacci(request: byref.Request) -> None:
        [number] = request.value
        if number < 2:
            request.reply([number])
        else:
            asked = [client.submit([number - less]) for less in (1, 2)]
            request.reply([sum(reply.result().value[0] for reply in asked)])

    with byref.Client("s") as client, contextlib.ExitStack() as stack:
        with byref.Server("s", prefetch=64) as server:

            def work() -> None:
                for request in server:
                    thread = threading.Thread(target=fibonacci, args=[request])
                    thread.start()
                    threads.append(thread)

            threads: list[threading.Thread] = []
            serving = threading.Thread(target=work)
            serving.start()
            assert client.request([7], wait=PATIENCE).value == [13]
        serving.join(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
        stack.close()


def asks_back(line: Line, own: str, theirs: str) -> None:
    """Serves one service, and asks another at the same time."""
    queue = byref.EventQueue()
    queue.serve(own, lambda request: [request.value[0] + 1])
    queue.start(daemon=True)
    with byref.Client(theirs) as client:
        total = sum(client.request([number], wait=PATIENCE).value[0] for number in range(200))
        line.tell(total)
        line.hear()
    queue.stop()


def test_two_processes_ask_each_other_at_the_same_time(spawn: Spawn) -> None:
    children = [spawn(asks_back, own, theirs) for own, theirs in (("a", "b"), ("b", "a"))]
    assert [child.hear() for child in children] == [sum(range(1, 201))] * 2
    for child in children:
        child.tell()
        child.finish()


def test_bad_arguments(client: byref.Client) -> None:
    for name in ("", "a/*", "x" * 2000):
        for make in (byref.Client, byref.Server):
            with pytest.raises(ValueError, match=r"invalid topic|wildcard|at most"):
                make(name)
    for prefetch in (0, 1025, -1):
        with pytest.raises(ValueError, match="prefetch must be"):
            byref.Server("s", prefetch=prefetch)
    with pytest.raises(ValueError, match="one level"):
        byref.Server("s", group="a/b")
    with serving(lambda request: request.reply(b"x")):
        client.wait_for_server(timeout=PATIENCE)
        for bad in (-1.0, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                client.request(b"x", timeout=bad)
        with pytest.raises(ValueError, match="idempotent"):
            client.request(b"x", retry="always")  # type: ignore[arg-type]
        assert bytes(client.request(b"x", timeout=None)) == b"x"


def test_pickles_need_permission(client: byref.Client) -> None:
    def answer(request: byref.Request) -> None:
        try:
            request.reply(request.value, pickle=True)
        except byref.Error as refused:
            request.fail("refused", str(refused))

    with serving(answer), pytest.raises(byref.RemoteError, match="allow_pickle"):
        client.request({1, 2}, pickle=True, wait=PATIENCE)
    eventually(lambda: client.servers == [], "it is gone")
    with serving(answer, allow_pickle=True):
        reply = client.request({1, 2}, pickle=True, wait=PATIENCE)
        with pytest.raises(byref.Error, match="allow_pickle"):
            _ = reply.value
        with byref.Client("s", allow_pickle=True) as trusting:
            assert trusting.request({1, 2}, pickle=True, wait=PATIENCE).value == {1, 2}


def test_a_request_of_a_closed_server(client: byref.Client) -> None:
    server = byref.Server("s")
    pending = client.submit(b"x", wait=PATIENCE)
    request = server.recv(PATIENCE)
    server.close()
    with pytest.raises(byref.Closed, match="the server of service 's' is closed"):
        request.reply(b"x")
    with pytest.raises(byref.PeerLost):
        pending.result()


def test_a_forked_child_has_neither(client: byref.Client) -> None:
    with serving(lambda request: request.reply(b"x")) as server:
        client.wait_for_server(timeout=PATIENCE)
        pending = client.submit(b"x")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for call in (lambda: client.request(b"x"), server.try_recv, pending.result):
                    with pytest.raises(byref.Forked):
                        call()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert bytes(pending.result()) == b"x"


def test_a_forked_child_can_do_nothing_with_what_is_under_way(client: byref.Client) -> None:
    with byref.Server("s", prefetch=2) as server:
        client.wait_for_server(timeout=PATIENCE)
        pending, other = client.submit(b"x"), client.submit(b"y")
        request, kept = server.recv(PATIENCE), server.recv(PATIENCE)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                calls = (
                    lambda: request.reply(b"child"),
                    lambda: request.fail(1, "child"),
                    lambda: request.reply(bytes(5000)),
                    lambda: request.has_room,
                    lambda: request.loan(100),
                    lambda: client.submit(bytes(5000)),
                    lambda: client.loan(100),
                    lambda: next(iter(pending)),
                    lambda: client.servers,
                )
                for call in calls:
                    with pytest.raises(byref.Forked):
                        call()
                assert not pending.cancel()
                del other
                gc.collect()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not kept.cancelled, "the child's copy was dropped, not this one"
        assert request.reply(b"parent")
        assert kept.reply(b"as well")
        assert [bytes(pending.result()), bytes(other.result())] == [b"parent", b"as well"]


def test_as_many_requests_as_a_server_may_have(spawn: Spawn, client: byref.Client) -> None:
    other = Other(spawn, prefetch=1024)
    client.wait_for_server(timeout=PATIENCE)
    pending = [client.submit(str(number).encode(), timeout=PATIENCE) for number in range(1030)]
    assert client.stats()["waiting"] == 6
    assert other.do("keep", 1024) == [str(number) for number in range(1024)]
    unwanted = [0, 63, 64, 895, 896, 1023]
    for number in unwanted:
        assert pending[number].cancel()
        assert not pending[number].cancel()
    assert [number for number, is_over in enumerate(other.do("cancelled")) if is_over] == unwanted
    sent = other.do("reply", "x")
    assert [number for number, was_wanted in enumerate(sent) if not was_wanted] == unwanted
    for number in set(range(1024)) - set(unwanted):
        assert bytes(pending[number].result()) == b"x"
    # The flags are used again.
    other.begin("echo", 6)
    assert [bytes(reply.result()) for reply in pending[1024:]] == [str(1024 + number).encode() for number in range(6)]


def test_streams_beside_each_other_each_wait_for_who_takes_them(client: byref.Client) -> None:
    def stream(request: byref.Request) -> None:
        def send() -> None:
            for number in range(150):
                request.reply(bytes([number]), more=True)
            request.finish()

        thread = threading.Thread(target=send)
        thread.start()
        threads.append(thread)

    threads: list[threading.Thread] = []
    with serving(stream, prefetch=8):
        client.wait_for_server(timeout=PATIENCE)
        pending = [client.submit(b"x", timeout=PATIENCE) for _ in range(8)]
        for reply in reversed(pending):
            assert [bytes(part)[0] for part in reply] == list(range(150))
        for thread in threads:
            thread.join(PATIENCE)


@pytest.mark.parametrize("large", [False, True])
def test_a_loan_is_sent_once(client: byref.Client, large: bool) -> None:
    def answer(request: byref.Request) -> None:
        loan = request.loan(10_000 if large else 10)
        assert request.reply(loan, more=True)
        for call in (lambda: request.reply(loan), lambda: request.reply(loan, more=True)):
            with pytest.raises(byref.Closed):
                call()
        request.reply(b"end")

    with serving(answer):
        client.wait_for_server(timeout=PATIENCE)
        loan = client.loan(10_000 if large else 10)
        parts = list(client.submit(loan, timeout=PATIENCE))
        assert [len(part) for part in parts] == [10_000 if large else 10, 3]
        for call in (lambda: client.request(loan), lambda: client.submit(loan), loan.discard):
            with contextlib.suppress(byref.Closed):
                call()
        assert client.stats()["under_way"] == 0


def test_ctrl_c_ends_a_request_and_cancels_it(other: Other, client: byref.Client) -> None:
    client.wait_for_server(timeout=PATIENCE)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        client.request(b"x", timeout=PATIENCE)
    timer.join()
    gc.collect()
    assert other.do("keep", 0) == []
    eventually(lambda: other.do("stats")["skipped"] in (0, 1), "it goes on")
    client.submit(b"y")


def test_nothing_is_left(rendezvous: Any) -> None:
    def once() -> None:
        with serving(lambda request: request.reply(bytes(request))):
            clients = [byref.Client("s") for _ in range(5)]
            for client in clients:
                assert len(client.request(bytes(5000), wait=PATIENCE)) == 5000
                client.close()

    once()
    gc.collect()
    before = len(descriptors())
    for _ in range(3):
        once()
    gc.collect()
    eventually(lambda: len(descriptors()) <= before, "the descriptors are closed")
    assert [name for name in os.listdir(rendezvous) if name.startswith(("client-", "server-"))] == []


def test_threads_share_a_client(spawn: Spawn, client: byref.Client) -> None:
    others = [Other(spawn, prefetch=2) for _ in range(2)]
    with_servers(client, 2)
    total = 4 * 50
    wrong = []

    def ask(thread: int) -> None:
        for number in range(50):
            payload = f"{thread} {number}".encode()
            if bytes(client.request(payload, timeout=PATIENCE)) != payload:
                wrong.append(payload)

    threads = [threading.Thread(target=ask, args=[thread]) for thread in range(4)]
    for other in others:
        other.begin("echo", total)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert wrong == []
    assert client.stats()["received"] == total
    for other in others:
        other.child.kill()
