"""A process is stopped while it connects, for longer than the other side waits: views stay right, and both meet."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import byref
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, descriptors, eventually, state_of
from tests.test_steps import FAULTS, needs_faults

Spawn = Callable[..., Child]

# A publisher closes a connection that says nothing for so long (ms; 10 s in an ordinary build). A subscriber asks the
# next publisher when one has not answered for 200 ms.
HANDSHAKE_MS = 150
# So long (s) a process stays stopped: all deadlines pass meanwhile.
FROZEN = 0.5
# Two of these have no room in the pool.
LARGE = 700_000
MEMORY = 1 << 20

# Where the one that is stopped has come to when it connects. At the second passing of `accept.before` a publisher has
# just begun to wait for a hello.
PUBLISHER = ["accept.before:1", "accept.before:2", "accept.accepted:1", "accept.paired:1", "pair.called:1"]
PUBLISHER += ["accept.lease_mapped:1"]
PUBLISHER += ["history.start_found:1", "accept.welcomed:1", "accept.counted:1", "announce.before:1", "announce.sent:1"]
SUBSCRIBER = ["connect.connected:1", "connect.lease_made:1", "connect.hello_sent:1", "connect.ring_mapped:1"]
SUBSCRIBER += ["connect.welcomed:1", "connect.watched:1", "connect.joined:1", "segment.received:1"]


def meet_nobody(fault: str) -> byref.Subscriber:
    """Sets the fault, and waits until the directory is cleared, for which this process connects to its sockets."""
    os.environ.update(BYREF_FAULT=fault, BYREF_HANDSHAKE_MS=str(HANDSHAKE_MS))
    stale = Path(os.environ["BYREF_DIR"], f"{0:016x}-{os.getpid():032x}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(stale))
    quiet = byref.Subscriber("elsewhere")
    eventually(lambda: not stale.exists(), "the directory has been cleared")
    return quiet


def publish(line: Line, fault: str) -> None:
    """A message that stays in the history; later others, which have no room beside it; and at last three more."""
    with meet_nobody(fault), byref.Publisher("t", history=1, max_memory=MEMORY) as pub:
        pub.send(payload(0, LARGE))
        line.tell("ready")
        line.hear()
        for seed in range(1, 5):
            try:
                pub.send(payload(seed, LARGE), timeout=0.2)
            except (byref.PoolExhausted, byref.Timeout):
                continue
        line.tell([pub.stats()["sent"], [subscriber.pid for subscriber in pub.subscribers]])
        line.hear()
        for seed in range(3):
            pub.send(payload(seed, 1000), timeout=30)
        line.hear()


def subscribe(line: Line, fault: str) -> None:
    """Keeps the first message, says whether it is right still, and receives three more."""
    quiet = meet_nobody(fault)
    line.tell("ready")
    line.hear()
    with quiet, byref.Subscriber("t", history=1, events=True) as sub:
        while isinstance(kept := sub.recv(timeout=30), byref.Event):
            pass
        line.tell([kept.sequence, is_payload(kept, 0, LARGE)])
        line.hear()
        line.tell([is_payload(kept, 0, LARGE), [publisher.pid for publisher in sub.publishers]])
        kept.release()
        for seed in range(3):
            while isinstance(msg := sub.recv(timeout=30), byref.Event):
                pass
            assert is_payload(msg, seed, 1000)
        line.tell("all")
        line.hear()


@needs_faults
@pytest.mark.parametrize("point", [*PUBLISHER, *SUBSCRIBER])
def test_a_view_survives_a_freeze_while_it_connected(point: str, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    fault = f"{point}:stop"
    subscriber = spawn(subscribe, fault if point in SUBSCRIBER else "")
    assert subscriber.hear() == "ready"
    publisher = spawn(publish, fault if point in PUBLISHER else "")
    assert publisher.hear() == "ready"
    subscriber.tell()
    victim = publisher if point in PUBLISHER else subscriber
    eventually(lambda: state_of(victim.pid) == "T", f"{victim} is stopped at {point}")
    time.sleep(FROZEN)
    victim.signal(signal.SIGCONT)
    assert subscriber.hear() == [0, True], "its first message"
    publisher.tell()
    sent, subscribers = publisher.hear()
    subscriber.tell()
    unchanged, publishers = subscriber.hear()
    assert unchanged, f"the view was overwritten: {sent} messages sent, subscribers {subscribers}"
    assert sent == 1, "there is no room for another beside the one that is held"
    assert subscribers == [subscriber.pid]
    assert publishers == [publisher.pid]
    publisher.tell()
    assert subscriber.hear() == "all"
    for child in (subscriber, publisher):
        child.tell()
        child.finish()


def publish_on_request(line: Line) -> None:
    """Sends a message whenever it is asked to and somebody is there."""
    with byref.Publisher("t") as pub:
        line.tell("ready")
        while (text := line.hear()) is not None:
            pub.wait_for_subscribers(timeout=30)
            line.tell(pub.send(text.encode(), timeout=30))


def connections(rendezvous: Path) -> list[socket.socket]:
    """Duplicates of this process's sockets that are connected to publishers."""
    found = []
    for fd, what in descriptors().items():
        if what.startswith("socket:"):
            one = socket.socket(fileno=os.dup(fd))
            peer = ""
            if one.type == socket.SOCK_SEQPACKET:
                with contextlib.suppress(OSError):
                    peer = one.getpeername()
            found.append(one) if str(peer).startswith(str(rendezvous)) else one.close()
    return found


def test_a_live_publisher_is_asked_again_when_the_connection_ended(
    spawn: Spawn, endpoints: Endpoints, rendezvous: Path
) -> None:
    """Nobody said goodbye and nobody died, so both must meet again."""
    publisher = spawn(publish_on_request)
    assert publisher.hear() == "ready"
    sub = endpoints.subscriber(events=True)
    for count in range(3):
        publisher.tell(f"message {count}")
        assert publisher.hear() == count
        while isinstance(msg := sub.recv(timeout=30), byref.Event):
            pass
        assert (msg.sequence, bytes(msg)) == (count, f"message {count}".encode())
        ends = connections(rendezvous)
        assert len(ends) == 1
        for end in ends:
            end.shutdown(socket.SHUT_RDWR)
            end.close()
        told = [sub.recv(timeout=30), sub.recv(timeout=30)]
        assert [each.kind for each in told if isinstance(each, byref.Event)] == ["lost", "joined"]
    publisher.tell()
    publisher.finish()
