"""A mailbox is killed, or stopped and then killed, at each step of its life, while another one sends to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import byref
import pytest

from tests.processes import Child, Line, eventually, state_of
from tests.test_steps import FAULTS, needs_faults

Spawn = Callable[..., Child]

# In the order of its life: it claims its address, sends to one that it does not know, is sent to, and closes.
BIRTH = ("claim.locked", "claim.taken")
SENDING = ("knock.expecting", "collect.lease_mapped", "collect.admitted")
CLOSING = ("close.mailbox_inbox", "close.mailbox_line", "claim.unlocking")
TAKING_OVER = ("ask.connected", "takeover.asking")
GIVING_WAY = ("takeover.heard", "takeover.given_way")
PARTING = ("part.begun", "part.noted", "resend.begun")


@pytest.fixture(autouse=True)
def faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children have fault points."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))


def live(line: Line, fault: str, takeover: bool) -> None:
    """Claims an address, sends, lives until it is told to close."""
    os.environ["BYREF_FAULT"] = fault
    box = byref.Mailbox("x", takeover=takeover)
    box.send("s", b"x", timeout=20)
    line.tell("made")
    line.hear()
    box.close()
    line.tell("closed")
    line.hear()


def part_and_send_on(line: Line, fault: str) -> None:
    """Parts from one that ends, and sends what that never took to another one."""
    os.environ["BYREF_FAULT"] = fault
    with byref.Mailbox("x") as box:
        victim = byref.Mailbox("victim")
        box.send("victim", bytes(5000))  # By reference.
        victim.close()
        eventually(lambda: [box.send("s", left) for left in box.undelivered("victim")], "it has come back")
        line.tell("sent on")
        line.hear()


def is_over(child: Child, how: str) -> bool:
    """Whether it has come to its point."""
    return child.process.poll() is not None if how == "kill" else state_of(child.pid) == "T"


def has_met(child: Child, how: str) -> None:
    """It has come to its point. One that is stopped goes on living for a while before it is killed."""
    eventually(lambda: is_over(child, how), "it has come to its point")
    if how == "stop":
        child.signal(signal.SIGKILL)
        eventually(lambda: child.process.poll() is not None, "it is dead")


def take_the_address() -> None:
    """The address of the dead is free as soon as the kernel has torn it down."""

    def is_free() -> bool:
        try:
            byref.Mailbox("x").close()
        except byref.AddressInUse:
            return False
        return True

    eventually(is_free, "the address is free")


@needs_faults
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("point", [*BIRTH, *SENDING, *CLOSING])
def test_a_death_at_any_step_frees_the_address_and_the_accounts_are_exact(point: str, how: str, spawn: Spawn) -> None:
    with byref.Mailbox("s") as box:
        victim = spawn(live, f"{point}:1:{how}", False)
        sent = 0
        if point in CLOSING:
            assert victim.hear() == "made"
            for _ in range(5):
                box.send("x", b"never taken", timeout=20)
                sent += 1
            victim.tell()
        has_met(victim, how)
        take_the_address()
        eventually(lambda: not any(peer.address == "x" for peer in box.peers), "its end was noticed")
        assert len(box.undelivered("x")) == sent
        assert box.try_recv() is None or point not in (*BIRTH, "knock.expecting")


@needs_faults
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_death_when_somebody_knocks(how: str, spawn: Spawn) -> None:
    with byref.Mailbox("s") as box:
        victim = spawn(live, f"knock.heard:1:{how}", False)
        assert victim.hear() == "made"
        with pytest.raises((byref.Timeout, byref.PeerLost, byref.Unroutable)):
            box.send("x", b"never taken", timeout=1)
        has_met(victim, how)
        take_the_address()
        assert box.undelivered("x") == []


@needs_faults
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("point", TAKING_OVER)
def test_a_death_of_who_takes_over(point: str, how: str, spawn: Spawn) -> None:
    with byref.Mailbox("s"):
        holder = spawn(live, "", False)
        assert holder.hear() == "made"
        has_met(spawn(live, f"{point}:1:{how}", True), how)
        holder.signal(signal.SIGKILL)
        take_the_address()


@needs_faults
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("point", GIVING_WAY)
def test_a_death_of_who_gives_way(point: str, how: str, spawn: Spawn) -> None:
    with byref.Mailbox("s") as box:
        holder = spawn(live, f"{point}:1:{how}", False)
        assert holder.hear() == "made"
        box.send("x", b"never taken", timeout=20)
        taker = spawn(live, "", True)
        has_met(holder, how)
        taker.signal(signal.SIGKILL)
        eventually(lambda: taker.process.poll() is not None, "it is dead")
        take_the_address()
        assert [bytes(left) for left in box.undelivered("x")] == [b"never taken"]


@needs_faults
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("point", PARTING)
def test_a_death_while_it_parts_from_another(point: str, how: str, spawn: Spawn) -> None:
    with byref.Mailbox("s") as box:
        has_met(spawn(part_and_send_on, f"{point}:1:{how}"), how)
        take_the_address()
        assert box.try_recv() is None or point == "resend.begun"
