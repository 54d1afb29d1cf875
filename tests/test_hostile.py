"""Strangers that keep no rule: nobody else is harmed, and the log says why they were sent away."""

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import byref
import pytest

from tests.conftest import Endpoints
from tests.hostile.attacker import ATTACKS
from tests.hostile.campaign import Campaign
from tests.hostile.tools import MFD_HUGETLB, is_left_alone, seal
from tests.processes import Child, Line, descriptors, eventually
from tests.strangers import (
    FIRST,
    GREETING,
    LEASE_SIZE,
    SEALED,
    Channel,
    accept_subscriber,
    fake_publisher,
    hello,
    liar,
    memfd,
    pooled_record,
    segment,
    send_with_descriptor,
    welcome,
)  # fmt: skip

Spawn = Callable[..., Child]

# What a log says after each of these attacks.
LOGGED = {
    "hole": "disconnected from process \\d+, which published a record that names a hole of its segment",
    "ring of holes": "no connection to a publisher: its ring has holes",
    "no segment": "disconnected from process \\d+, which published a segment that is none",
    "segments": "which published (a segment twice|more segments than|more memory than)",
    "no lease": "refused a subscriber: (it sent no lease|refused a peer's segment)",
    "garbage": "refused a (connection: it does not speak this protocol|subscriber: it wants what makes no sense)",
    "packets": "disconnected from process \\d+, which published a packet that makes no sense",
    "silence": "more than 64 connections say nothing",
}


def test_every_attack_beside_honest_traffic(rendezvous: Path) -> None:
    missing, log = list(LOGGED), []
    for seed in range(20, 24):  # An attack has 0.3 s, in which a busy machine may do little of it.
        campaign = Campaign(seed=seed)
        campaign.run(seconds=1)
        assert set(ATTACKS) <= set(campaign.counts), "each was made"
        assert campaign.counts["received by block"] > 0
        missing = [what for what in missing if not campaign.logged(LOGGED[what])]
        log += campaign.log
        if not missing:
            break
    assert missing == [], "\n".join(log)


# ---- one by one ----


@contextlib.contextmanager
def left_alone(sub: byref.Subscriber, end: Channel) -> Iterator[None]:
    """What is done within makes the subscriber give up the publisher at the other end, and no other."""
    yield
    end.setblocking(False)

    def has_left() -> bool:
        _ = sub.publishers  # It looks at its sockets.
        assert sub.try_recv() is None
        return is_left_alone(end)

    eventually(has_left, "the subscriber hangs up")
    with byref.Publisher("t") as honest:
        honest.wait_for_subscribers(timeout=20)
        honest.send(b"ab")
        assert bytes(sub.recv(timeout=20)) == b"ab"


RETIRE = b"\5"
PACKETS: dict[str, list[bytes | tuple[bytes, int]]] = {
    "the same segment again": [(segment(0), 4096)],
    "a segment that it retired": [RETIRE + b"\0", (segment(0), 4096)],
    "a segment out of order": [(segment(7), 4096), (segment(6), 4096)],
    "a segment without a descriptor": [segment(1)],
    "a segment of no bytes": [(segment(1), 0)],
    "the last number of all": [(segment(2**32 - 1), 4096)],
    "another welcome": [welcome("t")],
    "garbage": [b"\xff" * 20],
    "a long packet": [bytes(5000)],
    "an empty packet": [b""],
}


@pytest.mark.parametrize("said", PACKETS)
def test_packets_that_end_a_connection(said: str, rendezvous: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    with liar(rendezvous, []) as end:
        sub.wait_for_publishers(timeout=20)
        with left_alone(sub, end):
            for packet in PACKETS[said]:
                if isinstance(packet, tuple):
                    packet, size = packet
                    end.send_with_descriptor(packet, memfd(size, SEALED))
                else:
                    end.send(packet)


@pytest.fixture
def few_descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """This process may have so many."""
    monkeypatch.setenv("BYREF_RAISE_NOFILE", "0")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(descriptors()) + 300
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_segments_end_a_connection_before_the_descriptors_do(
    few_descriptors: int, rendezvous: Path, endpoints: Endpoints
) -> None:
    sub = endpoints.subscriber()
    with liar(rendezvous, []) as end:
        sub.wait_for_publishers(timeout=20)
        end.setblocking(False)
        memory = memfd(4096, SEALED)

        def was_sent(number: int) -> bool:
            _ = sub.publishers  # It reads its socket.
            with contextlib.suppress(BlockingIOError):
                end.send_with_descriptor(segment(number), os.dup(memory))
                return True
            return False

        with left_alone(sub, end), contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number in range(1, few_descriptors // 4 + 2):
                eventually(lambda number=number: was_sent(number), "there is room for a packet")
        os.close(memory)


@pytest.mark.parametrize("offset", [0, 4096, 3 * 4096])
@pytest.mark.parametrize("by", ["recv", "recv_batch"])
def test_holes_are_not_read(offset: int, by: str, rendezvous: Path, endpoints: Endpoints) -> None:
    """Pages 1 and 3 of four have memory; the others stay without."""
    sub = endpoints.subscriber()
    with fake_publisher(rendezvous) as listener, accept_subscriber(listener) as end:
        ring = memfd(512 + 256 * 16)
        os.pwrite(ring, pooled_record(0, 0, 1, 4097 if offset else 64, offset), 512)
        pool = memfd(4 * 4096, holes=True)
        for page in (1, 3):
            os.pwrite(pool, b"x" * 4096, page * 4096)
        for fd in (ring, pool):
            seal(fd)
        end.send_with_descriptor(welcome("t"), ring)
        end.send_with_descriptor(segment(0), os.dup(pool))
        sub.wait_for_publishers(timeout=20)
        with left_alone(sub, end):
            pass
        assert os.fstat(pool).st_blocks * 512 == 2 * 4096
        os.close(pool)


def test_what_lies_behind_a_hole_is_read(rendezvous: Path, endpoints: Endpoints) -> None:
    """Only what a message takes has to be there: chunks may be populated out of order."""
    sub = endpoints.subscriber()
    with fake_publisher(rendezvous) as listener, accept_subscriber(listener) as end:
        ring = memfd(512 + 256 * 16)
        os.pwrite(ring, pooled_record(0, 0, 1, 4096, 4096), 512)
        pool = memfd(2 * 4096, holes=True)
        os.pwrite(pool, b"x" * 4096, 4096)
        for fd in (ring, pool):
            seal(fd)
        end.send_with_descriptor(welcome("t"), ring)
        end.send_with_descriptor(segment(0), pool)
        assert bytes(sub.recv(timeout=20)) == b"x" * 4096


def test_huge_pages_are_refused(rendezvous: Path, endpoints: Endpoints) -> None:
    try:
        pages = memfd(2 << 20, SEALED, holes=True, flags=MFD_HUGETLB)
    except OSError:
        pytest.skip("the kernel has no huge pages")
    sub = endpoints.subscriber()
    with liar(rendezvous, []) as end:
        sub.wait_for_publishers(timeout=20)
        with left_alone(sub, end):
            end.send_with_descriptor(segment(1), pages)


def publish_among_strangers(line: Line) -> None:
    """Tells how many descriptors it has, whenever it is asked."""
    with byref.Publisher("t") as pub:
        line.tell(len(descriptors()))
        while line.hear() == "and now?":
            line.tell([len(descriptors()), len(pub.subscribers)])


def test_the_oldest_of_many_silent_connections_are_closed(spawn: Spawn, rendezvous: Path, endpoints: Endpoints) -> None:
    child = spawn(publish_among_strangers)
    before = child.hear()
    (name,) = os.listdir(rendezvous)
    crowd = []
    for number in range(300):
        crowd.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        crowd[-1].setblocking(False)
        eventually(lambda: crowd[-1].connect_ex(str(rendezvous / name)) == 0, f"number {number} gets in")
    for end in crowd[:200]:
        eventually(lambda end=end: is_left_alone(end), "the oldest are closed")
    child.tell("and now?")
    now, _ = child.hear()
    assert now - before <= 70
    # The newest had no time to speak yet; it is welcome.
    crowd[-1].setblocking(True)
    crowd[-1].send(GREETING)
    send_with_descriptor(crowd[-1], hello(name, "t"), memfd(LEASE_SIZE, SEALED, holes=True))
    crowd[-1].settimeout(20)
    assert crowd[-1].recv(4096) == FIRST
    assert crowd[-1].recv(4096)
    child.tell("and now?")
    assert child.hear()[1] == 1
    assert "say nothing" in child.output()
    assert child.output().count("say nothing") < 10, "not a line for each"
    for end in crowd:
        end.close()
