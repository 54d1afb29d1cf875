"""A publisher that sends and ends before anybody listens: it can wait, or says that it was in vain."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import byref
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, eventually, state_of
from tests.test_steps import FAULTS, needs_faults

Spawn = Callable[..., Child]

IN_VAIN = "messages reached nobody"


def send(line: Line, sizes: list[int], linger: float | None, history: int = 0) -> None:
    """Sends at once, and closes."""
    pub = byref.Publisher("t", history=history)
    for seed, size in enumerate(sizes):
        pub.send(payload(seed, size))
    line.tell("sent")
    began = time.monotonic()
    pub.close(linger=linger)
    line.tell(time.monotonic() - began)


def receive(line: Line, sizes: list[int], options: dict[str, Any]) -> None:
    """Tells how many of the messages came, each of them right."""
    with byref.Subscriber("t", **options) as sub:
        line.tell("watching")
        for seed, size in enumerate(sizes):
            msg = sub.recv(timeout=60)
            assert msg.sequence == seed
            assert is_payload(msg, seed, size)
    line.tell(len(sizes))


@pytest.mark.parametrize("sizes", [[50] * 5, [50, 1000, 100_000, 50], [10] * 5000])
def test_the_first_subscriber_gets_everything(sizes: list[int], spawn: Spawn) -> None:
    pub = spawn(send, sizes, 60.0)
    assert pub.hear() == "sent"
    time.sleep(0.3)  # Nobody is in a hurry.
    sub = spawn(receive, sizes, {})
    assert (sub.hear(), sub.hear()) == ("watching", len(sizes))
    assert pub.hear() < 60
    pub.finish()
    assert IN_VAIN not in pub.output()


def test_what_history_keeps_is_there(spawn: Spawn) -> None:
    """Payloads that would be given up otherwise."""
    sizes = [1 << 20] * 6
    pub = spawn(send, sizes, 60.0, 6)
    assert pub.hear() == "sent"
    sub = spawn(receive, sizes, {})
    assert (sub.hear(), sub.hear()) == ("watching", len(sizes))
    pub.hear()
    pub.finish()


def test_who_was_connected_takes_its_time(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    pub = endpoints.publisher()
    pub.wait_for_subscribers(timeout=20)
    for number in range(3):
        pub.send(bytes([number]))
    closing = threading.Thread(target=pub.close, kwargs={"linger": 60})
    closing.start()
    time.sleep(0.2)
    assert closing.is_alive()
    assert [bytes(sub.recv(timeout=20))[0] for _ in range(3)] == [0, 1, 2]
    closing.join(20)
    assert not closing.is_alive()


def test_a_subscriber_that_comes_later_gets_no_more_than_it_asked_for(endpoints: Endpoints) -> None:
    """Only who is first, while the publisher lingers, gets what was sent before."""
    pub = endpoints.publisher()
    pub.send(b"before")
    sub = endpoints.subscriber()
    pub.wait_for_subscribers(timeout=20)
    pub.send(b"after")
    assert bytes(sub.recv(timeout=20)) == b"after"


def test_nobody_comes(spawn: Spawn) -> None:
    pub = spawn(send, [10] * 5, 0.3)
    assert pub.hear() == "sent"
    assert pub.hear() > 0.25
    pub.finish()
    assert f"5 {IN_VAIN}" in pub.output()
    assert os.environ["BYREF_DIR"] in pub.output()


@pytest.mark.parametrize("linger", [None, 0])
def test_it_does_not_wait_unasked(linger: float | None, spawn: Spawn) -> None:
    pub = spawn(send, [10] * 3, linger)
    pub.hear()
    pub.hear()
    pub.finish()
    assert f"3 {IN_VAIN}" in pub.output()


def test_nothing_was_sent(spawn: Spawn) -> None:
    pub = spawn(send, [], 60.0)
    assert (pub.hear(), pub.hear() < 30) == ("sent", True)
    pub.finish()
    assert IN_VAIN not in pub.output()


def test_a_first_subscriber_that_dies(spawn: Spawn) -> None:
    """It was there: the publisher is not in vain, and does not hang."""
    pub = spawn(send, [10] * 5, 60.0)
    assert pub.hear() == "sent"
    sub = spawn(stop_at_once)
    assert sub.hear() == "connected"
    sub.kill()
    assert pub.hear() < 60
    pub.finish()


def stop_at_once(line: Line) -> None:
    with byref.Subscriber("t") as sub:
        sub.wait_for_publishers(timeout=60)
        line.tell("connected")
        line.hear(90)


def interrupted(line: Line) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pub = byref.Publisher("t")
    pub.send(b"")
    try:
        line.tell("lingering")
        pub.close(linger=80)
    except KeyboardInterrupt:
        with pytest.raises(byref.Closed):
            pub.send(b"")
        line.tell("interrupted, and closed")


def test_ctrl_c(spawn: Spawn) -> None:
    pub = spawn(interrupted)
    assert pub.hear() == "lingering"
    time.sleep(0.3)
    pub.signal(signal.SIGINT)
    assert pub.hear() == "interrupted, and closed"
    pub.finish()


def test_closed_meanwhile(endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    pub.send(b"")
    closing = threading.Thread(target=pub.close, kwargs={"linger": float("inf")})
    closing.start()
    time.sleep(0.1)
    pub.close()
    eventually(lambda: not closing.is_alive(), "the other one ends")
    pub.close(linger=1)


def stop_while_it_lingers(line: Line, fate: str) -> None:
    os.environ["BYREF_FAULT"] = f"close.publisher_lingers:1:{fate}"
    send(line, [50] * 5, 60.0)


@needs_faults
@pytest.mark.parametrize("fate", ["stop", "kill"])
def test_a_step_of_it(fate: str, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    pub = spawn(stop_while_it_lingers, fate)
    assert pub.hear() == "sent"
    if fate == "kill":
        assert pub.wait() == -signal.SIGKILL
        with byref.Subscriber("t") as sub, pytest.raises(byref.Timeout):
            sub.recv(timeout=0.2)
        return
    eventually(lambda: state_of(pub.pid) == "T", "it stops")
    sub = spawn(receive, [50] * 5, {})
    assert sub.hear() == "watching"
    pub.signal(signal.SIGCONT)
    assert sub.hear() == 5
    pub.hear()
    pub.finish()


@pytest.mark.parametrize("linger", [-1, float("nan")])
def test_impossible_times(linger: float, endpoints: Endpoints) -> None:
    with pytest.raises(ValueError, match="linger must be"):
        endpoints.publisher().close(linger=linger)
