"""Two processes share one socket for all their topics, and what goes wrong in one topic is nothing to the others."""

import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import byref
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, descriptors, eventually, settled, state_of
from tests.strangers import (
    FIRST,
    GREETING,
    LEASE_SIZE,
    OPEN,
    RING,
    RING_SIZE,
    SAY,
    SEALED,
    Channel,
    accept_process,
    fake_publisher,
    head,
    hello,
    memfd,
    segment,
    send_with_descriptor,
    welcome,
)  # fmt: skip
from tests.test_steps import FAULTS, needs_faults
from tests.torture.leaks import mappings

Spawn = Callable[..., Child]

COUNT = 30


def sockets(pid: int | str = "self") -> int:
    """How many a process has."""
    return sum(name.startswith("socket:") for name in descriptors(pid).values())


def publish(line: Line, topics: list[str], fault: str | None = None) -> None:
    """Sends as many messages on each topic as it hears; -1 closes the first one, 0 ends it."""
    if fault:
        os.environ["BYREF_FAULT"] = fault
    publishers = [byref.Publisher(topic, max_memory=1 << 20) for topic in topics]
    line.tell(settled(sockets))
    while count := line.hear(90):
        if count < 0:
            publishers.pop(0).close()
        for number in range(count):
            for at, pub in enumerate(publishers):
                pub.wait_for_subscribers(timeout=30)
                pub.send(payload(at + number, 10_000 if number % 2 else 64), timeout=30)
        line.tell([settled(sockets), len(descriptors()), [len(pub.subscribers) for pub in publishers]])


def topics_of(name: str) -> list[str]:
    return [f"{name}/{number:02}" for number in range(COUNT)]


# ---- how many ----


def test_many_topics_have_one_socket(spawn: Spawn) -> None:
    child = spawn(publish, topics_of("many"))
    before_there = child.hear()
    before = settled(sockets)
    with byref.Subscriber("many/*") as sub, byref.Subscriber("many/*/more") as nothing:
        child.tell(2)
        kept = [sub.recv(timeout=30) for _ in range(2 * COUNT)]
        there, descriptors_there, subscribers = child.hear()
        assert there == before_there + 1
        assert settled(sockets) == before + 1
        assert subscribers == [1] * COUNT
        assert descriptors_there <= 2 * COUNT + 20
        assert len(descriptors()) <= 2 * COUNT + 60
        assert all(is_payload(msg, int(msg.topic[-2:]) + msg.sequence, msg.nbytes) for msg in kept)
        assert nothing.publishers == []
    del kept
    eventually(lambda: sockets() <= before, "with the last channel the connection ends")
    child.tell(0)
    child.finish()


def test_a_subscription_takes_few_descriptors(spawn: Spawn) -> None:
    """One for the ring, one for the pool's segment, and four more once somebody polls."""
    child = spawn(publish, topics_of("many"))
    child.hear()
    # The service thread's two, the directory, its watch, the connection, and the process at its other end.
    common = len(descriptors()) + 7
    subs = [byref.Subscriber(topic) for topic in topics_of("many")]
    for sub in subs:
        sub.wait_for_publishers(timeout=30)
    assert settled(lambda: len(descriptors())) <= common + COUNT
    child.tell(2)
    for size in (64, 10_000):
        assert all(sub.recv(timeout=30).nbytes == size for sub in subs)
    assert len(descriptors()) <= common + 2 * COUNT
    _, there, _ = child.hear()
    assert there <= 2 * COUNT + 20
    assert all(sub.fileno() > 0 for sub in subs)
    assert settled(lambda: len(descriptors())) <= common + 1 + 6 * COUNT
    for sub in subs:
        sub.close()
    child.tell(0)
    child.finish()


def exchange(line: Line, own: str, other: str) -> None:
    """Publishes on many topics, and receives as many messages from the other process."""
    with byref.Subscriber(f"{other}/*") as sub:
        publishers = [byref.Publisher(topic) for topic in topics_of(own)]
        line.tell()
        line.hear()
        sub.wait_for_publishers(COUNT, timeout=60)
        for pub in publishers:
            pub.wait_for_subscribers(timeout=60)
            pub.send(payload(1, 10_000), timeout=30)
        for _ in range(COUNT):
            assert is_payload(sub.recv(timeout=60), 1, 10_000)
        line.tell([settled(sockets), len(descriptors())])
        line.hear()


def test_processes_that_publish_to_each_other_share_it(spawn: Spawn) -> None:
    """Those that connect to each other at the same moment may have two."""
    one = spawn(exchange, "one", "other")
    one.hear()
    one.tell()
    other = spawn(exchange, "other", "one")
    other.hear()
    other.tell()
    told = [child.hear(90) for child in (one, other)]
    # The test's own, the one that listens, and the common one.
    assert all(count in (3, 4) for count, _ in told), told
    for child in (one, other):
        child.tell()
        child.finish()


def test_a_connection_serves_whoever_comes_next(spawn: Spawn) -> None:
    child = spawn(publish, topics_of("many"))
    child.hear()
    with byref.Subscriber("many/00") as first:
        first.wait_for_publishers(timeout=20)
        before = settled(sockets)
        for topic in topics_of("many")[1:]:
            with byref.Subscriber(topic) as sub:
                sub.wait_for_publishers(timeout=20)
        assert sockets() == before
    child.tell(0)
    child.finish()


# ---- what one topic does to the others ----


@pytest.mark.parametrize("how", ["close", "kill"])
def test_the_end_of_one_publisher_and_of_a_process(how: str, spawn: Spawn) -> None:
    child = spawn(publish, topics_of("many"))
    child.hear()
    with byref.Subscriber("many/*", events=True) as sub:
        child.tell(1)
        taken = [sub.recv(timeout=30) for _ in range(2 * COUNT)]
        assert sum(isinstance(item, byref.Event) for item in taken) == COUNT
        child.hear()
        if how == "close":
            child.tell(-1)
            event = sub.recv(timeout=30)
            assert (event.kind, event.topic) == ("left", "many/00")
            child.hear()
            assert len(sub.publishers) == COUNT - 1
            child.tell(1)
            for _ in range(COUNT - 1):
                assert isinstance(sub.recv(timeout=30), byref.Message)
            child.hear()
        child.kill()
        lost = [sub.recv(timeout=30) for _ in range(COUNT - (how == "close"))]
        assert {event.kind for event in lost} == {"lost"}
        kept = [item for item in taken if isinstance(item, byref.Message)]
        assert all(is_payload(msg, int(msg.topic[-2:]), 64) for msg in kept)


def test_a_queue_that_is_full_and_an_eviction(spawn: Spawn, endpoints: Endpoints) -> None:
    """One subscriber of another process takes nothing, or is evicted: the one beside it goes on."""
    full, free = endpoints.publisher("full"), endpoints.publisher("free")
    reader = spawn(read_one_of_two)
    for pub in (full, free):
        pub.wait_for_subscribers(timeout=30)
    reader.hear()
    for _ in range(4):
        full.send(payload(0, 10_000), timeout=30)
    with pytest.raises(byref.Timeout):
        full.send(payload(0, 10_000), timeout=0.05)
    for number in range(100):
        free.send(payload(number, 10_000), timeout=30)
    assert reader.hear() == 100
    full.evict(full.subscribers[0])
    for number in range(100):
        free.send(payload(number, 64), timeout=30)
    assert reader.hear() == 100
    assert full.subscribers == []
    assert len(free.subscribers) == 1
    reader.tell()
    assert "was to go" in reader.hear()
    reader.finish()


def read_one_of_two(line: Line) -> None:
    """Takes nothing from one topic and all from the other."""
    with byref.Subscriber("full", depth=4) as full, byref.Subscriber("free") as free:
        for sub in (full, free):
            sub.wait_for_publishers(timeout=30)
        line.tell()
        for size in (10_000, 64):
            line.tell(sum(is_payload(free.recv(timeout=30), number, size) for number in range(100)))
        line.hear()
        try:
            while True:
                full.recv(timeout=30)
        except byref.Evicted as evicted:
            line.tell(str(evicted))


NONSENSE = {
    "a packet": head(SAY, 0) + b"\xff" * 20,
    "a bell without a descriptor": head(SAY, 0) + b"\0\1",
    "an unknown kind": head(77, 0),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_subscriber_that_breaks_the_rules_in_one_topic(what: str, rendezvous: Path, endpoints: Endpoints) -> None:
    first, second = endpoints.publisher("first"), endpoints.publisher("second")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        end.settimeout(20)
        names = call_both(end, rendezvous)
        assert len(names) == 2
        subscribers = {pub.topic: lambda pub=pub: len(pub.subscribers) for pub in (first, second)}
        eventually(lambda: sorted(count() for count in subscribers.values()) == [1, 1], "both took it in")
        end.send(NONSENSE[what])
        # Whichever was called first.
        eventually(lambda: sorted(count() for count in subscribers.values()) == [0, 1], "one turns it away")
        end.send(head(RING, 2))
        for pub in (first, second):
            pub.send(b"hello", timeout=30)
        assert sorted(count() for count in subscribers.values()) == [0, 1], "the other one does not"
    eventually(lambda: all(count() == 0 for count in subscribers.values()), "it hung up")


def call_both(end: socket.socket, rendezvous: Path) -> list[str]:
    """Opens a channel to each publisher there is in a process."""
    names = sorted(os.listdir(rendezvous))
    end.connect(str(rendezvous / names[0]))
    end.send(GREETING)
    for number, name in enumerate(names):
        lease = memfd(LEASE_SIZE, SEALED, holes=True)
        send_with_descriptor(end, hello(name, "*", number=2 * number), lease)
    assert end.recv(4096) == FIRST
    return names


def test_a_publisher_that_breaks_the_rules_in_one_topic(rendezvous: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("*")
    with fake_publisher(rendezvous, "first", 1) as listener, accept_process(listener) as end:
        end.send(FIRST)
        (name,) = os.listdir(rendezvous)
        os.link(rendezvous / name, rendezvous / "tmp-1")  # One more name for the same socket.
        os.rename(rendezvous / "tmp-1", rendezvous / f"{name[:17]}{1 << 64:032x}")
        channels = []
        for number in range(2):
            kind, channel = struct.unpack_from("<BI", end.recv(4096))
            while kind == RING and number:  # It may have joined the first one already.
                kind, channel = struct.unpack_from("<BI", end.recv(4096))
            assert kind == OPEN
            channels.append(Channel(end, channel))
            said = bytearray(welcome(f"topic{number}"))
            said[9] += number  # Who publishes.
            channels[-1].send_with_descriptor(bytes(said), memfd(RING_SIZE, SEALED))
            channels[-1].send_with_descriptor(segment(0), memfd(4096, SEALED))
        sub.wait_for_publishers(2, timeout=20)
        channels[0].send(b"\xff" * 20)
        eventually(lambda: sub.try_recv() is None and len(sub.publishers) == 1, "that one is given up")
        assert [publisher.topic for publisher in sub.publishers] == ["topic1"]
        channels[1].send_with_descriptor(segment(1), memfd(4096, SEALED))
        channels[1].ring()
        while channels[0].recv(4096):  # Until it is closed.
            pass
        assert [publisher.topic for publisher in sub.publishers] == ["topic1"]


def test_a_question_without_an_answer_goes_with_its_subscriber(rendezvous: Path) -> None:
    """As of a publisher that is stopped, or busy, when the last subscriber of a process is closed."""
    with fake_publisher(rendezvous, "t", 1):
        before = len(descriptors())
        for _ in range(3):
            with byref.Subscriber("t"):
                eventually(mappings, "somebody was asked")
        eventually(lambda: len(descriptors()) <= before and not mappings(), "all was given back")


# ---- stopped, and killed ----


@needs_faults
@pytest.mark.parametrize("what", ["stop", "kill"])
@pytest.mark.parametrize("point", ["accept.paired:1", "pair.called:1", "pair.called:7", "accept.welcomed:3"])
def test_a_process_that_is_stopped_or_killed_while_it_is_asked(
    point: str, what: str, spawn: Spawn, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = topics_of("many")
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    child = spawn(publish, topics, f"{point}:{what}")
    child.hear()
    with byref.Subscriber("many/*") as sub, byref.Subscriber("other") as other:
        pub = endpoints.publisher("other")
        pub.wait_for_subscribers(timeout=20)
        pub.send(b"hello", timeout=20)
        assert bytes(other.recv(timeout=20)) == b"hello"
        if what == "kill":
            child.wait()
            eventually(lambda: sub.try_recv() is None and sub.publishers == [], "it is gone")
        else:
            eventually(lambda: state_of(child.pid) == "T", "it is stopped")
            child.signal(signal.SIGCONT)
            sub.wait_for_publishers(COUNT, timeout=30)
            child.tell(1)
            assert {sub.recv(timeout=30).topic for _ in range(COUNT)} == set(topics)


def publish_and_fork(line: Line) -> None:
    """A publisher, whose listening socket a forked child keeps."""
    with byref.Publisher("t"):
        keeper = os.fork()
        if not keeper:
            time.sleep(120)
            os._exit(0)
        line.tell(keeper)
        line.hear(90)


def connect_and_stop(line: Line) -> None:
    """Is stopped once it has connected to somebody; meets another one then. Tells how many sockets it has."""
    os.environ["BYREF_FAULT"] = "connect.connected:1:stop"
    with byref.Subscriber("t") as sub:
        sub.wait_for_publishers(timeout=30)
        line.tell(settled(sockets))


@needs_faults
def test_a_process_that_dies_while_somebody_connects_leaves_nothing_to_wait_for(
    spawn: Spawn, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    dying = spawn(publish_and_fork)
    keeper = dying.hear()
    try:
        meeting = spawn(connect_and_stop)
        eventually(lambda: state_of(meeting.pid) == "T", "it has connected")
        dying.kill()
        endpoints.publisher("t")
        meeting.signal(signal.SIGCONT)
        # Its line to this test, and the connection to this process.
        assert meeting.hear(60) == 2
        meeting.finish()
    finally:
        os.kill(keeper, signal.SIGKILL)
