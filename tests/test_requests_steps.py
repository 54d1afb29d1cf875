"""A client or a server is killed, or stopped and then killed, at each step of a request."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

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
        assert victim.hear() == "there"
        other = byref.Server("s", prefetch=64)
        eventually(lambda: other.identity in client.servers, "they have met")
        # Those that are for the victim alone, if they can be sent to it at all.
        payloads = [b"inline", np.arange(5000).tobytes(), b"third"]
        pending = []
        for server in client.servers:
            if server != other.identity:
                for payload in payloads:
                    pending.append((payload, client.submit(payload, to=server, timeout=PATIENCE)))
        if point != "collect.admitted":
            eventually(lambda: pending, "it was asked")
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
