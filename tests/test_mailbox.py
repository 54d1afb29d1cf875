"""Mailboxes across processes: addresses, order, fair turns, depth, and accounts of what those that end never took."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest

from tests.processes import PATIENCE, Child, Line, descriptors, eventually

Spawn = Callable[..., Child]


def holder(line: Line, address: str, settings: dict[str, Any]) -> None:
    """Has an address; does what it is told."""
    box = byref.Mailbox(address, **settings)
    line.tell("there")
    kept = []
    while (order := line.hear()) != "end":
        match order:
            case ["take", count]:
                line.tell(
                    [
                        [bytes(message).decode(), message.sequence]
                        for message in (box.recv(PATIENCE) for _ in range(count))
                    ]
                )
            case ["keep", count]:
                kept += [box.recv(PATIENCE) for _ in range(count)]
                line.tell(len(kept))
            case ["send", to, texts]:
                line.tell([box.send(to, text.encode(), timeout=PATIENCE) for text in texts])
            case ["close"]:
                box.close()
                line.tell("closed")
            case ["why"]:
                try:
                    box.recv(PATIENCE)
                except byref.Error as why:
                    line.tell([type(why).__name__, str(why)])
    box.close()


class Other:
    """A mailbox in a process of its own."""

    def __init__(self, spawn: Spawn, address: str, **settings: Any) -> None:
        self.child = spawn(holder, address, settings)
        assert self.child.hear() == "there"

    def __call__(self, *order: Any) -> Any:
        self.child.tell(list(order))
        return self.child.hear()

    def end(self) -> None:
        self.child.tell("end")
        self.child.finish()


def test_messages_go_there_and_back(spawn: Spawn) -> None:
    other = Other(spawn, "worker/1")
    with byref.Mailbox("scheduler") as box:
        assert box.wait_for_peer("worker/*", timeout=PATIENCE).process == other.child.pid
        assert [box.send("worker/1", f"{n}".encode()) for n in range(3)] == [0, 1, 2]
        assert other("take", 3) == [["0", 0], ["1", 1], ["2", 2]]
        assert other("send", "scheduler", ["a", "b"]) == [0, 1]
        first, second = box.recv(PATIENCE), box.recv(PATIENCE)
        assert (bytes(first), bytes(second)) == (b"a", b"b")
        sender = first.sender
        assert sender is not None
        assert sender == second.sender
        assert (sender.address, sender.process, len(sender.incarnation)) == ("worker/1", other.child.pid, 32)
        assert box.peers == [sender]
        box.send(sender, b"answer")
        assert other("take", 1) == [["answer", 3]]
        assert hash(sender) == hash(second.sender)
        assert {sender: 1}[sender] == 1
        assert "worker/1" in repr(sender)
        assert "scheduler" in repr(box)
    other.end()


@pytest.mark.parametrize("size", [1, 300, 1 << 20])
def test_every_format(size: int) -> None:
    with byref.Mailbox("a") as one, byref.Mailbox("b", allow_pickle=True) as other:
        array = np.arange(size, dtype=np.int32)
        table = pa.table({"x": array})
        one.send("b", array, headers={"n": 1}, timestamp_ns=5)
        message = other.recv(PATIENCE)
        assert np.array_equal(np.asarray(message), array)
        assert (message.headers, message.timestamp_ns, message.dtype) == ({"n": 1}, 5, np.int32)
        one.send("b", table)
        assert pa.table(other.recv(PATIENCE).value).equals(table)
        one.send("b", {"k": [array, 1.5, "text"]})
        value = other.recv(PATIENCE).value
        assert np.array_equal(value["k"][0], array)
        assert value["k"][1:] == [1.5, "text"]
        one.send_pickle("b", {1, 2})
        assert other.recv(PATIENCE).value == {1, 2}
        with one.loan("b", (size, 2), "f4") as lent:
            lent[:] = 3
        assert np.asarray(other.recv(PATIENCE)).shape == (size, 2)
        assert one.send_many("b", np.arange(6).reshape(3, 2)) == range(5, 8)
        assert [message.value.tolist() for message in (other.recv(PATIENCE) for _ in range(3))] == [
            [0, 1],
            [2, 3],
            [4, 5],
        ]
        ticket = one.send_tracked("b", array)
        message = other.recv(PATIENCE)
        assert not ticket.released
        del message
        ticket.wait_released(PATIENCE)
        one.send("b", b"x")
        one.send("b", other.recv(PATIENCE))
        assert bytes(other.recv(PATIENCE)) == b"x"


def test_receiving_in_every_way() -> None:
    with byref.Mailbox("a") as box, byref.Mailbox() as sender:
        assert box.try_recv() is None
        with pytest.raises(byref.Timeout, match="recv on mailbox 'a' timed out"):
            box.recv(timeout=0.01)
        for n in range(10):
            sender.send("a", bytes([n]))
        assert [bytes(message)[0] for message in box.recv_batch(4, PATIENCE)] == [0, 1, 2, 3]
        assert bytes(next(box)) == b"\4"
        for message in box:
            if bytes(message) == b"\7":
                break

        async def rest() -> list[bytes]:
            found = [bytes(await box.recv_async())]
            async for message in box:
                found.append(bytes(message))
                return found
            return []

        assert asyncio.run(rest()) == [b"\10", b"\11"]
        assert isinstance(box.fileno(), int)
        sender_identity = sender.identity
        assert sender_identity.address.startswith("anonymous/")
        assert box.peers == [sender_identity]
        threading.Timer(0.1, box.close).start()
        assert list(box) == []
        with pytest.raises(byref.Closed, match="the mailbox 'a' is closed"):
            box.recv()


def test_messages_of_subscribers_have_no_sender() -> None:
    with byref.Publisher("t") as publisher, byref.Subscriber("t") as subscriber:
        publisher.wait_for_subscribers(timeout=PATIENCE)
        publisher.send(b"")
        assert subscriber.recv(PATIENCE).sender is None


def test_an_address_is_unique_and_that_of_the_dead_is_free_at_once(spawn: Spawn) -> None:
    for _ in range(5):
        other = Other(spawn, "unique")
        with pytest.raises(
            byref.AddressInUse, match=f"'unique' is in use by a mailbox of process {other.child.pid}"
        ) as caught:
            byref.Mailbox("unique")
        assert (caught.value.address, caught.value.process) == ("unique", other.child.pid)
        assert caught.value.name
        assert caught.value.name.startswith("python")
        other.child.kill()
        with byref.Mailbox("unique") as box:  # No pause: the kernel has given the address back.
            assert box.address == "unique"


def test_an_address_is_free_though_a_forked_child_lives_on(spawn: Spawn) -> None:
    other = spawn(forks_and_waits)
    assert other.hear() == "there"
    with pytest.raises(byref.AddressInUse):
        byref.Mailbox("forked")
    child = other.hear()
    other.kill()
    os.kill(child, 0)
    byref.Mailbox("forked").close()
    os.kill(child, signal.SIGKILL)


def forks_and_waits(line: Line) -> None:
    box = byref.Mailbox("forked")
    line.tell("there")
    child = os.fork()
    if child == 0:
        time.sleep(PATIENCE)
        os._exit(0)
    line.tell(child)
    line.hear()
    box.close()


def forks_and_asks(line: Line) -> None:
    with byref.Mailbox("a") as box:
        box.send("a", b"before")
        child = os.fork()
        if child == 0:
            calls: list[Callable[[], object]] = [
                lambda: box.send("a", b""),
                lambda: box.recv(),
                lambda: box.peers,
                lambda: box.undelivered("a"),
                lambda: box.loan("a", 1),
                lambda: box.send_to_all("a", b""),
                lambda: byref.Mailbox("a"),
            ]
            raised = []
            for call in calls:
                try:
                    raised.append(repr(call()))
                except byref.Error as why:
                    raised.append(type(why).__name__)
            box.close()  # Closes nothing.
            byref.Mailbox("b").close()
            line.tell(raised)
            os._exit(0)
        line.tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        box.send("a", b"after")
        line.tell([bytes(box.recv(PATIENCE)).decode() for _ in range(2)])


def test_a_mailbox_in_a_forked_child_belongs_to_the_parent(spawn: Spawn) -> None:
    """In a process of its own: libraries that other tests have imported object to a fork of this one."""
    parent = spawn(forks_and_asks)
    assert parent.hear() == ["Forked"] * 6 + ["AddressInUse"]
    assert parent.hear() == 0
    assert parent.hear() == ["before", "after"]
    parent.finish()


def test_a_takeover_is_learned_of(spawn: Spawn) -> None:
    other = Other(spawn, "precious")
    with byref.Mailbox("sender") as sender, byref.Mailbox() as third:
        old = sender.wait_for_peer("precious", PATIENCE)
        for n in range(3):
            sender.send("precious", f"{n}".encode())
        assert other("take", 1) == [["0", 0]]
        with byref.Mailbox("precious", takeover=True) as box:
            kind, text = other("why")
            assert kind == "AddressInUse"
            assert f"process {os.getpid()} ('" in text
            assert "took the address over" in text
            with pytest.raises(byref.PeerLost) as caught:
                sender.send(old, b"")
            assert caught.value.peer == old
            assert [bytes(it) for it in caught.value.undelivered] == [b"1", b"2"]
            for message in sender.undelivered(old):
                sender.send("precious", message)
            assert [bytes(box.recv(PATIENCE)) for _ in range(2)] == [b"1", b"2"]
            assert third.wait_for_peer("precious", PATIENCE) == box.identity != old
    other.end()


def claims(line: Line, address: str, takeover: bool) -> None:
    """Claims when told to, and tells whether it has the address in the end."""
    line.tell("ready")
    line.hear()
    try:
        box = byref.Mailbox(address, takeover=takeover)
    except byref.AddressInUse as why:
        line.tell(["in use", why.process])
        line.hear()
        return
    line.tell(["claimed", os.getpid()])
    line.hear()
    with contextlib.suppress(byref.Timeout):
        try:
            box.recv(0)
        except byref.AddressInUse as why:
            line.tell(["taken over", why.process])
            return
    line.tell(["has it", os.getpid()])
    line.hear()


@pytest.mark.parametrize("takeover", [False, True])
def test_of_several_processes_that_claim_at_once_one_has_it(spawn: Spawn, takeover: bool) -> None:
    for round_ in range(3):
        claimants = [spawn(claims, f"wanted/{round_}", takeover) for _ in range(4)]
        for each in claimants:
            assert each.hear() == "ready"
        for each in claimants:
            each.tell()
        outcomes = [each.hear() for each in claimants]
        for each in claimants:
            each.tell()
        won = [(each, pid) for each, (what, pid) in zip(claimants, outcomes, strict=True) if what == "claimed"]
        assert len(won) == (4 if takeover else 1), outcomes
        assert all(what == "claimed" or pid == won[0][1] for what, pid in outcomes), outcomes
        ends = [each.hear()[0] for each, _ in won]
        assert sorted(ends) == ["has it"] + ["taken over"] * (len(won) - 1)
        for each in claimants:
            each.kill()


def test_a_frozen_holder_keeps_its_address_and_is_named(spawn: Spawn) -> None:
    other = Other(spawn, "frozen")
    other.child.signal(signal.SIGSTOP)
    with pytest.raises(byref.AddressInUse, match="does not answer"):
        byref.Mailbox("frozen", takeover=True)
    with byref.Mailbox("a") as box:
        with pytest.raises(byref.Timeout, match=f"'frozen' of process {other.child.pid} does not answer"):
            box.send("frozen", b"", timeout=0.1)
        other.child.signal(signal.SIGCONT)
        box.send("frozen", b"now", timeout=PATIENCE)
    assert other("take", 1) == [["now", 0]]
    other.end()


def test_bad_arguments() -> None:
    with byref.Mailbox("a") as box:
        for bad in ["", "a/*", "**", "x" * 1025, "a//b", "line\nbreak"]:
            with pytest.raises(byref.InvalidTopic):
                byref.Mailbox(bad)
            with pytest.raises(byref.InvalidTopic):
                box.send(bad, b"")
        for wrong in [7, None, b"a", box]:
            with pytest.raises(TypeError, match="an address"):
                box.send(wrong, b"")  # type: ignore[arg-type]
        box.send("a", b"to itself")
        with pytest.raises(TypeError, match=r"msg\.sender"):
            box.send(box.recv(PATIENCE), b"")  # type: ignore[arg-type]
        with pytest.raises(byref.Unroutable, match="nobody has the address 'nobody'") as caught:
            box.send("nobody", b"")
        assert caught.value.address == "nobody"
        for settings in [{"depth": 0}, {"depth": -1}, {"max_memory": 0}, {"depth": 1 << 40}]:
            with pytest.raises(ValueError, match=next(iter(settings))):
                byref.Mailbox("b", **settings)
        for wait in [-1.0, float("nan")]:
            with pytest.raises(ValueError, match="wait"):
                box.send("a", b"", wait=wait)
        with pytest.raises(byref.InvalidTopic):
            box.send_to_all("a*", b"")
        with pytest.raises(byref.InvalidTopic):
            box.wait_for_peer("a*")
        with pytest.raises(byref.PoolExhausted):
            byref.Mailbox("small", max_memory=1 << 16).send("a", bytes(1 << 20))
        with pytest.raises(TypeError):
            box.send("a", object())  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            pickle.dumps(box)


def test_an_address_may_come_late(spawn: Spawn) -> None:
    with byref.Mailbox("a") as box:
        began = time.monotonic()
        with pytest.raises(byref.Unroutable):
            box.send("late", b"", wait=0.2)
        assert time.monotonic() - began >= 0.2
        sent: list[int] = []
        waiting = threading.Thread(target=lambda: sent.append(box.send("late", b"hello", wait=PATIENCE)))
        waiting.start()
        other = Other(spawn, "late")
        waiting.join(PATIENCE)
        assert sent == [0]
        assert other("take", 1) == [["hello", 0]]
        other.end()


def test_a_full_mailbox_delays_its_senders_only(spawn: Spawn) -> None:
    slow, quick = Other(spawn, "slow"), Other(spawn, "quick")
    with byref.Mailbox("a", depth=10) as box:
        for n in range(10):
            box.send("slow", f"{n}".encode())
        with pytest.raises(byref.Timeout, match="'slow'"):
            box.send("slow", b"", timeout=0.05)
        waiting = threading.Thread(target=lambda: box.send("slow", b"last"))
        waiting.start()
        eventually(lambda: box.stats()["waits"] >= 2, "it waits")
        for n in range(50):
            box.send("quick", f"{n}".encode())
            assert quick("take", 1) == [[f"{n}", n]]
        assert waiting.is_alive()
        assert [text for text, _ in slow("take", 11)] == [f"{n}" for n in range(10)] + ["last"]
        waiting.join(PATIENCE)
    slow.end()
    quick.end()


def test_control_c_ends_a_wait_for_room(spawn: Spawn) -> None:
    slow = Other(spawn, "slow")
    with byref.Mailbox("a", depth=1) as box:
        box.send("slow", b"")
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            box.send("slow", b"")
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            box.send("nobody", b"", wait=PATIENCE)
    slow.end()


def test_messages_to_oneself() -> None:
    with byref.Mailbox("me", depth=4) as box:
        for n in range(4):
            box.send("me", bytes([n]))
        with pytest.raises(ValueError, match="does not wait for itself"):
            box.send("me", b"")
        assert [bytes(box.recv(PATIENCE))[0] for _ in range(4)] == [0, 1, 2, 3]
        assert box.send("me", b"") == 4


def takes_until_killed(line: Line, address: str, diary: str) -> None:
    """Takes messages as fast as it can, and notes each before it takes the next."""
    with open(diary, "ab", buffering=0) as noted, byref.Mailbox(address) as box:
        line.tell("there")
        for message in box:
            noted.write(bytes(message)[:8])


@pytest.mark.parametrize("size", [8, 100_000])
def test_the_accounts_of_a_kill_are_exact(spawn: Spawn, tmp_path: Path, size: int) -> None:
    """What the dead one never took is given back, all of it and nothing else."""
    with byref.Mailbox("sender", events=True) as box, byref.Mailbox("heir", depth=1000) as heir:
        for round_ in range(4):
            diary = tmp_path / f"{round_}"
            child = spawn(takes_until_killed, f"victim/{round_}", str(diary))
            assert child.hear() == "there"
            victim = box.wait_for_peer(f"victim/{round_}", PATIENCE)
            sent = 0
            try:
                while True:
                    box.send(victim, f"{sent:08}".encode() + bytes(size - 8), timeout=PATIENCE)
                    sent += 1
                    if sent == 500 + 300 * round_:
                        child.process.kill()
            except byref.PeerLost as why:
                lost = why
            child.process.wait(PATIENCE)
            noted = diary.read_bytes()
            told = [int(noted[at : at + 8]) for at in range(0, len(noted), 8)]
            untaken = [int(bytes(message)[:8]) for message in lost.undelivered]
            event = box.recv(PATIENCE)
            assert isinstance(event, byref.Event)
            assert (event.kind, event.peer) == ("lost", victim)
            assert [message.sequence for message in event.undelivered] == untaken
            # The last one may have been taken and not noted.
            first = untaken[0] if untaken else sent
            assert untaken == list(range(first, sent))
            assert told == list(range(len(told)))
            assert len(told) <= first <= len(told) + 1, (len(told), first, sent)
            copied = box.stats()["copied_bytes"]
            for message in event.undelivered:
                box.send("heir", message, timeout=PATIENCE)
            assert size < 1000 or box.stats()["copied_bytes"] == copied, "they go on by reference"
            assert [int(bytes(heir.recv(PATIENCE))[:8]) for _ in untaken] == untaken
            assert box.undelivered(victim) == []
            del lost, event
        eventually(lambda: box.stats()["destinations"] == 1, "the dead are forgotten")


def test_a_mailbox_that_closes_gives_back_what_it_did_not_take(spawn: Spawn) -> None:
    with byref.Mailbox("a") as box:
        for keeps in [0, 2]:  # What is kept keeps the connection.
            other = Other(spawn, "b")
            for n in range(6):
                box.send("b", np.full(10_000, n))
            assert other("keep", keeps) == keeps
            other("close")
            left = eventually(lambda: box.undelivered("b"), "it has left")
            assert [int(np.frombuffer(bytes(message), int)[0]) for message in left] == list(range(keeps, 6))
            assert [message.peer.process for message in left] == [other.child.pid] * (6 - keeps)
            with pytest.raises(byref.Unroutable):
                box.send("b", b"")
            other.end()


def test_events_tell_who_comes_and_goes(spawn: Spawn) -> None:
    with byref.Mailbox("a", events=True) as box:
        other = Other(spawn, "b")
        other("send", "a", ["hello"])
        joined, message = box.recv(PATIENCE), box.recv(PATIENCE)
        assert isinstance(joined, byref.Event)
        assert isinstance(message, byref.Message)
        assert (joined.kind, joined.peer, joined.undelivered) == ("joined", message.sender, [])
        assert message.sender is not None
        box.send(message.sender, b"never taken")
        other.child.kill()
        lost = box.recv(PATIENCE)
        assert isinstance(lost, byref.Event)
        assert (lost.kind, lost.peer) == ("lost", message.sender)
        assert [bytes(it) for it in lost.undelivered] == [b"never taken"]
        assert "never" not in repr(lost.undelivered[0])
        assert lost.undelivered[0].nbytes == 11
        with pytest.raises(byref.Timeout):
            box.recv(0.1)


def test_turns_among_senders_are_fair(spawn: Spawn) -> None:
    senders = [Other(spawn, f"sender/{n}") for n in range(3)]
    with byref.Mailbox("sink") as box:
        for sender in senders:
            sender("send", "sink", [f"{n}" for n in range(200)])
        eventually(lambda: len(box.peers) == 3, "all are connected")
        taken: Counter[str] = Counter()
        for _ in range(300):
            message = box.recv(PATIENCE)
            assert message.sender is not None
            assert int(bytes(message)) == taken[message.sender.address]
            taken[message.sender.address] += 1
        assert max(taken.values()) - min(taken.values()) <= 16, taken
    for sender in senders:
        sender.child.kill()


def test_one_copy_for_all(spawn: Spawn) -> None:
    others = [Other(spawn, f"worker/{n}") for n in range(4)]
    with byref.Mailbox("a") as box:
        before = box.stats()["copied_bytes"]
        reached = box.send_to_all("worker/*", b"x" * 100_000)
        assert [peer.address for peer in reached] == [f"worker/{n}" for n in range(4)]
        assert box.stats()["copied_bytes"] - before <= 400_000
        assert box.stats()["pool_used"] < 200_000
        for other in others:
            [[text, sequence]] = other("take", 1)
            assert (len(text), sequence) == (100_000, 0)
        others[0].child.kill()
        assert len(box.send_to_all("worker/*", [1, "two"])) == 3
        assert box.send_to_all("nobody/**", b"") == []
    for other in others[1:]:
        other.end()


def test_one_that_is_slow_to_answer_is_sent_to(spawn: Spawn) -> None:
    """Who sends to all for the first time has to ask who is there; on a busy machine an answer takes its time."""
    others = [Other(spawn, f"worker/{n}") for n in range(2)]
    slow = others[1].child
    with byref.Mailbox("a") as box:
        slow.signal(signal.SIGSTOP)
        assert [peer.address for peer in box.send_to_all("worker/*", b"0", timeout=0.3)] == ["worker/0"]
        going_on = threading.Timer(0.5, slow.signal, [signal.SIGCONT])
        going_on.start()
        assert [peer.address for peer in box.send_to_all("worker/*", b"1")] == ["worker/0", "worker/1"]
        going_on.join()
        assert others[0]("take", 2) == [["0", 0], ["1", 1]]
        assert others[1]("take", 1) == [["1", 0]]
        # What is known is not asked for again.
        slow.signal(signal.SIGSTOP)
        assert [peer.address for peer in box.send_to_all("worker/*", b"2")] == ["worker/0", "worker/1"]
        slow.signal(signal.SIGCONT)
    for other in others:
        other.end()


def test_hundreds_of_mailboxes_in_one_process() -> None:
    before = len(descriptors())
    boxes = [byref.Mailbox(f"many/{n}") for n in range(200)]
    with byref.Mailbox("a") as box:
        for each in boxes:
            box.send(each.address, each.address.encode())
        for each in boxes:
            message = each.recv(PATIENCE)
            assert bytes(message).decode() == each.address
            assert message.sender is not None
            each.send(message.sender, b"")
            del message
        assert len({box.recv(PATIENCE).sender for _ in boxes}) == 200
        assert len(box.peers) == 200
        for each in boxes:
            each.close()
        eventually(lambda: not box.peers, "all have left")
    del boxes, each
    eventually(lambda: len(descriptors()) <= before + 3, "descriptors are given back")


def busy_correspondent(line: Line, own: str, other: str, count: int) -> None:
    """Sends to another one and receives from it at the same time."""
    with byref.Mailbox(own, depth=16) as box:
        line.tell("there")
        line.hear()
        sending = threading.Thread(target=lambda: [box.send(other, f"{n}".encode()) for n in range(count)])
        sending.start()
        got = [int(bytes(box.recv(PATIENCE))) for _ in range(count)]
        sending.join()
        line.tell(got == list(range(count)))
        line.hear()


def test_two_that_send_to_each_other_at_the_same_time(spawn: Spawn) -> None:
    count = 5000
    pair = [spawn(busy_correspondent, own, other, count) for own, other in [("a", "b"), ("b", "a")]]
    for each in pair:
        assert each.hear() == "there"
    for each in pair:
        each.tell()
    assert [each.hear() for each in pair] == [True, True]
    for each in pair:
        each.tell()
        each.finish()


def test_many_threads_share_a_mailbox() -> None:
    with byref.Mailbox("a", depth=8) as box, byref.Mailbox("b", depth=8) as other:
        count, threads = 500, 4

        def send(own: int) -> None:
            for n in range(count):
                box.send("b", f"{own} {n}".encode())

        senders = [threading.Thread(target=send, args=(own,)) for own in range(threads)]
        for sender in senders:
            sender.start()
        got = [bytes(other.recv(PATIENCE)).split() for _ in range(count * threads)]
        for own in range(threads):
            assert [int(n) for who, n in got if int(who) == own] == list(range(count))
        for sender in senders:
            sender.join()


def test_nothing_is_left_behind(rendezvous: Any) -> None:
    box = byref.Mailbox("a")
    box.send("a", bytes(1 << 20))
    box.close()
    left = {entry.name for entry in os.scandir(rendezvous)}
    assert left <= {"addresses"}, left
    assert sys.getrefcount(box) == 2


def test_an_event_queue_serves_a_mailbox_that_goes_on_without_it() -> None:
    with byref.Mailbox("a", events=True) as box, byref.Mailbox("b") as sender, byref.EventQueue() as queue:
        got: list[object] = []
        receiver = queue.subscribe(box, got.append)
        sender.send("a", b"1")
        sender.send("a", b"2")
        while len(got) < 3:
            queue.dispatch(0.1)  # It waits for messages, not for events.
        joined, first, second = got
        assert isinstance(joined, byref.Event)
        assert joined.peer == sender.identity
        assert isinstance(first, byref.Message)
        assert isinstance(second, byref.Message)
        assert (bytes(first), bytes(second), first.sender) == (b"1", b"2", sender.identity)
        assert receiver.topic == "a"
        box.send("b", b"never taken")
        sender.close()
        while len(got) < 4:
            queue.dispatch(0.1)  # It waits for messages, not for events.
        assert isinstance(got[3], byref.Event)
        assert [bytes(message) for message in got[3].undelivered] == [b"never taken"]
        receiver.close()
        box.send("a", b"3")
        assert bytes(take_message(box)) == b"3"
        with pytest.raises(ValueError, match="for topics"):
            queue.subscribe(box, got.append, depth=3)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match=r"a str, a byref\.Mailbox or a byref\.Puller"):
            queue.subscribe(7, got.append)  # type: ignore[call-overload]


def take_message(box: byref.Mailbox[Any]) -> byref.Message:
    """The next message, past events."""
    while not isinstance(received := box.recv(PATIENCE), byref.Message):
        pass
    return received


def test_an_event_queue_tells_of_a_takeover_once() -> None:
    box = byref.Mailbox("a")
    with byref.EventQueue() as queue:
        queue.subscribe(box, print)
        with byref.Mailbox("a", takeover=True):
            with pytest.raises(byref.AddressInUse, match="took the address over"):
                queue.run(PATIENCE)
            with pytest.raises(byref.Timeout):
                queue.run(0.3)


def sends_and_dies(line: Line, count: int) -> None:
    """Its first message is its last, or one of them."""
    box = byref.Mailbox()
    line.hear()
    for n in range(count):
        box.send("sink", f"{n}".encode() + bytes(300 * (n % 2)))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("count", [1, 50])
def test_what_was_sent_before_a_kill_is_received(spawn: Spawn, count: int) -> None:
    with byref.Mailbox("sink") as box:
        for _ in range(5):
            child = spawn(sends_and_dies, count)
            child.tell()
            assert [int(bytes(box.recv(PATIENCE)).rstrip(b"\0")) for _ in range(count)] == list(range(count))
            assert child.wait() == -signal.SIGKILL


# ---- what a review found ---------------------------------------------------------------------------------------------


class Stop(Exception):
    """What a signal's handler raises."""


def send_to_all_and_stop(line: Line) -> None:
    """Is interrupted while one of two is full: the other one has the message, and its memory is given back once."""

    def stop(*_: object) -> None:
        raise Stop

    signal.signal(signal.SIGALRM, stop)
    size = 8 << 10
    with byref.Mailbox("s", depth=1, max_memory=1 << 20) as box:
        one, two = byref.Mailbox("r/1"), byref.Mailbox("r/2")
        box.send("r/2", b"full")

        def take_and_interrupt() -> None:
            assert (one.recv(timeout=PATIENCE).value == 7).all()
            os.kill(os.getpid(), signal.SIGALRM)

        for _ in range(3):
            taking = threading.Thread(target=take_and_interrupt)
            taking.start()
            with pytest.raises(Stop):
                box.send_to_all("r/*", np.full(size, 7, "u1"))
            taking.join()
        kept = []
        for number in range(60):
            box.send("r/1", np.full(size, number, "u1"), timeout=20)
            kept.append(one.recv(timeout=20))
        line.tell([int((msg.value == number).all()) for number, msg in enumerate(kept)])
        del kept
        two.close()
        one.close()


def test_a_send_to_all_that_is_interrupted_sent_once(spawn: Spawn) -> None:
    child = spawn(send_to_all_and_stop)
    assert child.hear() == [1] * 60
    child.finish()


def take_turns(line: Line) -> None:
    """Two threads claim one address again and again, and let it go."""
    counts = [0, 0]

    def claim(me: int) -> None:
        while counts[me] < 300:
            with contextlib.suppress(byref.AddressInUse), byref.Mailbox("a"):
                counts[me] += 1

    threads = [threading.Thread(target=claim, args=(me,), daemon=True) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    line.tell(counts)


def test_threads_that_claim_one_address_take_turns(spawn: Spawn) -> None:
    child = spawn(take_turns)
    assert child.hear() == [300, 300]
    child.finish()
