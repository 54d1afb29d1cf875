"""A client or a server is killed, or stopped and then killed, at each step of a request."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import byref
import numpy as np
import pytest

from tests.processes import PATIENCE, Child, Line, eventually, state_of
from tests.test_steps import FAULTS, needs_faults

Spawn = Callable[..., Child]

ASKING = (
    "connect.hello_sent",
    "collect.admitted",
    "request.flag_cleared",
    "request.sent",
    "cancel.before",
    "cancel.after",
)
SERVING = ("collect.admitted", "receive.after_cursor", "reply.before", "reply.after", "reply.dropping")


@pytest.fixture(autouse=True)
def faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children have fault points."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))


def ask(line: Line, fault: str) -> None:
    """Asks twice, and cancels once."""
    os.environ["BYREF_FAULT"] = fault
    with byref.Client("s") as client:
        client.request(b"x", timeout=20, wait=20)
        pending = client.submit(b"cancel", timeout=20)
        pending.cancel()
        line.tell("asked")
        line.hear()


def serve(line: Line, fault: str) -> None:
    """Answers the first request, drops the second one, and goes on like that."""
    os.environ["BYREF_FAULT"] = fault
    with byref.Server("s", prefetch=4) as server:
        line.tell("there")
        for number, request in enumerate(server):
            if number % 2 == 0:
                request.reply(bytes(request))
            del request


def has_met(child: Child, how: str) -> None:
    """It has come to its point. One that is stopped goes on living for a while before it is killed."""
    if how == "stop":
        eventually(lambda: state_of(child.pid) == "T", "it has come to its point")
        child.signal(signal.SIGKILL)
    eventually(lambda: child.process.poll() is not None, "it is dead")


@needs_faults
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("point", ASKING)
def test_the_death_of_a_client_at_any_step_leaves_the_server_as_it_was(point: str, how: str, spawn: Spawn) -> None:
    queue = byref.EventQueue()
    queue.serve("s", lambda request: request.value, prefetch=4)
    thread = queue.start(daemon=True)
    has_met(spawn(ask, f"{point}:1:{how}"), how)
    with byref.Client("s") as client:
        for number in range(10):
            assert client.request([number], wait=PATIENCE).value == [number]
    queue.stop()
    thread.join(PATIENCE)


@needs_faults
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("point", SERVING)
def test_the_death_of_a_server_at_any_step_has_one_outcome_for_each_request(point: str, how: str, spawn: Spawn) -> None:
    with byref.Client("s") as client:
        victim = spawn(serve, f"{point}:1:{how}")
        if point != "collect.admitted":  # It may come to that before it says so.
            assert victim.hear() == "there"
        other = byref.Server("s", prefetch=64)
        # The victim may die before it has met anybody.
        expected = 1 if point == "collect.admitted" else 2
        eventually(lambda: other.identity in client.servers and len(client.servers) >= expected, "they have met")
        # Those that are for the victim alone, if they can be sent to it at all.
        payloads = [b"inline", np.arange(5000).tobytes(), b"third"]
        pending = []
        for server in client.servers:
            if server != other.identity:
                for payload in payloads:
                    pending.append((payload, client.submit(payload, to=server, timeout=PATIENCE)))
        assert pending or point == "collect.admitted"
        free = [client.submit(payload, timeout=PATIENCE, retry="idempotent") for payload in payloads]
        has_met(victim, how)
        outcomes = []
        for payload, reply in pending:
            try:
                assert bytes(reply.result()) == payload
                outcomes.append("answered")
            except byref.NoReply:
                outcomes.append("dropped")
            except byref.PeerLost as lost:
                outcomes.append(f"taken {lost.taken}")
        first_untaken = outcomes.index("taken False") if "taken False" in outcomes else len(outcomes)
        assert set(outcomes[first_untaken:]) <= {"taken False"}, outcomes
        if point == "reply.after" and pending:
            assert outcomes[0] == "answered"
        if point in ("receive.after_cursor", "reply.before") and pending:
            assert outcomes[0] == "taken True"
        # The others are answered by the one that is left, or were by the one that is dead.
        while not all(reply.done() for reply in free):
            if (request := other.try_recv()) is not None:
                request.reply(bytes(request))
        for payload, reply in zip(payloads, free, strict=True):
            try:
                assert bytes(reply.result()) == payload
            except byref.NoReply:
                assert point == "reply.dropping"
        assert client.stats()["under_way"] == 0
        other.close()


def ask_beside_a_stream(line: Line, fault: str) -> None:
    """Asks for a stream that it does not take, and for something else, again and again."""
    os.environ["BYREF_FAULT"] = fault
    with byref.Client("s") as client:
        _kept = client.submit(b"stream", timeout=None, wait=PATIENCE)
        while True:
            client.request(b"x", timeout=PATIENCE)


@needs_faults
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_death_of_a_client_while_it_holds_a_stream_up_ends_the_stream(how: str, spawn: Spawn) -> None:
    ended = threading.Event()

    def serve_any(request: byref.Request) -> object:
        if bytes(request) != b"stream":
            return request.value
        return for_ever()

    def for_ever() -> Iterator[bytes]:
        try:
            while True:
                yield b"part"
        finally:
            ended.set()

    queue = byref.EventQueue()
    queue.serve("s", serve_any, prefetch=4)
    thread = queue.start(daemon=True)
    has_met(spawn(ask_beside_a_stream, f"stream.held_up:1:{how}"), how)
    with byref.Client("s") as client:
        assert bytes(client.request(b"x", wait=PATIENCE)) == b"x"
    assert ended.wait(PATIENCE)
    queue.stop()
    thread.join(PATIENCE)


def ask_one_that_dies(line: Line, fault: str) -> None:
    """Asks a server that is killed then."""
    os.environ["BYREF_FAULT"] = fault
    with byref.Client("s") as client:
        pending = client.submit(b"x", timeout=PATIENCE, wait=PATIENCE)
        line.tell("asked")
        pending.result()


@needs_faults
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_death_of_a_client_that_parts_from_a_server_is_nothing_to_others(how: str, spawn: Spawn) -> None:
    with byref.Client("s") as client:
        server = spawn(take_none, "")
        assert server.hear() == "there"
        victim = spawn(ask_one_that_dies, f"part.revoked:1:{how}")
        assert victim.hear() == "asked"
        own = client.submit(b"y", timeout=PATIENCE, wait=PATIENCE)
        server.kill()
        has_met(victim, how)
        with pytest.raises(byref.PeerLost) as caught:
            own.result()
        assert caught.value.taken is False


def take_none(line: Line, fault: str) -> None:
    """Serves, and takes nothing."""
    with byref.Server("s", prefetch=4):
        line.tell("there")
        line.hear()


def take_two(line: Line, fault: str) -> None:
    """Says which requests it is given, and what it hears of the connection."""
    os.environ["BYREF_FAULT"] = fault
    with byref.Server("s", prefetch=8) as server:
        line.tell("there")
        while True:
            try:
                request = server.recv(PATIENCE)
            except byref.Error as error:
                line.tell(f"{type(error).__name__}: {error}")
                continue
            line.tell(bytes(request)[:3].decode())
            request.reply(bytes(request))


def hang_up_on(pid: int) -> None:
    """Ends the connection to a process that lives on."""
    ended = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as duplicate:
                peer, _, _ = struct.unpack("3i", duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if peer == pid and duplicate.family == socket.AF_UNIX and duplicate.type == socket.SOCK_SEQPACKET:
                    duplicate.shutdown(socket.SHUT_RDWR)
                    ended += 1
        except OSError:
            continue
    assert ended > 0


@needs_faults
@pytest.mark.parametrize(
    ("point", "passing", "kind"),
    [
        ("receive.inline_copied", 1, "inline"),
        ("receive.before_cursor", 2, "inline"),
        ("hold.raised", 1, "pooled"),
        ("receive.found", 1, "pooled"),
        ("receive.before_cursor", 2, "pooled"),
    ],
)
def test_a_server_that_is_given_up_while_it_takes_a_request_does_not_run_it(
    point: str, passing: int, kind: str, spawn: Spawn
) -> None:
    # The first request is of the other kind, so that the second one is the first to come by.
    first, payload = (b"old" * 3000, b"new") if kind == "inline" else (b"old", b"new" * 3000)
    with byref.Client("s") as client:
        victim = spawn(take_two, f"{point}:{passing}:stop")
        assert victim.hear() == "there"
        assert bytes(client.request(first, wait=PATIENCE)) == first
        assert victim.hear() == "old"
        with byref.Server("s", prefetch=8) as other:
            eventually(lambda: len(client.servers) == 2, "they have met")
            former = next(server for server in client.servers if server != other.identity)
            lost = client.submit(payload, timeout=PATIENCE, to=former)
            free = [client.submit(payload, timeout=PATIENCE) for _ in range(2)]
            eventually(lambda: state_of(victim.pid) == "T", "it has come to its point")
            hang_up_on(victim.pid)
            # What it had not taken when it was given up is answered by the other one.
            taken = []
            while not all(reply.done() for reply in free):
                if (request := other.try_recv()) is not None:
                    taken.append(bytes(request))
                    request.reply(bytes(request))
            victim.signal(signal.SIGCONT)
            with pytest.raises(byref.PeerLost) as caught:
                lost.result()
            assert caught.value.taken is False
            assert [bytes(reply.result()) == payload for reply in free] == [True] * 2
            assert taken == [payload] * 2
            # It is a server again, which was given nothing of that.
            eventually(lambda: len(client.servers) == 2, "they have met again")
            again = next(server for server in client.servers if server != other.identity)
            assert bytes(client.request(b"end", to=again)) == b"end"
            assert victim.hear() == "end"
        victim.kill()
