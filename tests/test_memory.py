"""Memory is taken as it is used: rings grow while readers lag, and only then; a pool begins small."""

import errno
import os
from collections.abc import Callable
from typing import Any

import byref
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, eventually
from tests.test_sandbox import MADV_POPULATE_WRITE, forbid

KIB, MIB = 1 << 10, 1 << 20
# What the rings of publishers have in the default size.
RECORDS = 16_384
Spawn = Callable[..., Child]


def taken(what: str) -> int:
    """Bytes of memory that the system has given to this process's segments of that kind."""
    found = {}
    for entry in os.scandir("/proc/self/fd"):
        try:
            if f"memfd:byref-{what}" in os.readlink(entry.path):
                status = os.stat(entry.path)
                found[status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:  # Of this loop.
            continue
    return sum(found.values())


def test_a_publisher_is_small_at_birth_and_stays_so(endpoints: Endpoints) -> None:
    """Whatever it sends, as long as its subscriber keeps up."""
    pub, sub = endpoints.pair()
    # The service thread may be about to close what tests before this one had.
    eventually(lambda: 0 < taken("ring") <= 20 * KIB and taken("pool") == 0, "a small ring alone")
    for number in range(5000):
        pub.send(payload(number, 64))
        assert is_payload(sub.recv(timeout=20), number, 64)
    assert taken("ring") <= 20 * KIB
    assert taken("pool") == 0
    pub.send(bytes(1000))
    assert taken("pool") == 64 * KIB
    pub.send(bytes(100_000))
    assert taken("pool") <= 256 * KIB


@pytest.mark.parametrize("pause", [0, 100])
def test_a_reader_that_lags_has_the_full_depth(pause: int, spawn: Spawn) -> None:
    """However it came about: all is received, in order, and one more send has to wait."""
    with byref.Subscriber("t") as sub:
        publisher = spawn(send_until_full, pause)
        assert publisher.hear() == RECORDS
        for number in range(RECORDS):
            assert is_payload(sub.recv(timeout=20), number, 64)
            if number == 0:
                publisher.tell()
                assert publisher.hear() == RECORDS
        assert is_payload(sub.recv(timeout=20), RECORDS, 64)
        assert sub.lost == 0
        publisher.finish()


def send_until_full(line: Line, pause: int) -> None:
    """As fast as it can, or with a wait for each hundredth message, as of a slow sender."""
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=30)
        sent = 0
        try:
            while True:
                pub.send(payload(sent, 64), timeout=0.3 if sent >= RECORDS else 20)
                sent += 1
                if pause and sent % pause == 0:
                    os.sched_yield()
        except byref.Timeout:
            line.tell(sent)
        line.hear()
        line.tell(pub.send(payload(sent, 64), timeout=20))
        pub.flush(timeout=20)


@pytest.mark.parametrize("policy", ["block", "drop_oldest", "latest"])
def test_who_comes_while_a_ring_grows_misses_nothing(policy: Any, endpoints: Endpoints) -> None:
    """The history lies in two regions of the ring, or in the new one; and so do the positions to skip to."""
    pub = endpoints.publisher(history=1000)
    for number in range(3000):
        pub.send(payload(number, 8))
        if number % 97 in (0, 50) and number > 0:
            with byref.Subscriber("t", policy=policy, history=1000) as sub:
                sub.wait_for_publishers(timeout=20)
                got = [msg.sequence for msg in iter(sub.try_recv, None)]
            least = number if policy == "latest" else max(number - 999, 0)
            assert got == list(range(least, number + 1)), f"after message {number}"


def test_one_that_sleeps_through_a_growth_finds_the_newest(endpoints: Endpoints) -> None:
    """It skips from the first region to the last one."""
    pub, sub = endpoints.pair(policy="drop_oldest", depth=5000)
    for number in range(3 * RECORDS):
        pub.send(payload(number, 8))
    got = [msg.sequence for msg in iter(sub.try_recv, None)]
    assert got == list(range(3 * RECORDS - 5000, 3 * RECORDS))
    assert sub.lost == 3 * RECORDS - 5000


def test_a_ring_that_may_not_grow_serves_as_it_is(spawn: Spawn) -> None:
    """The system gives no more memory: a lossless reader is waited for, one that may lose messages loses them."""
    with byref.Subscriber("t", policy="drop_oldest") as lossy, byref.Subscriber("t") as sub:
        publisher = spawn(send_without_memory)
        first = publisher.hear()
        if first is None:
            pytest.skip("seccomp cannot be had here")
        assert first == 63
        assert [sub.recv(timeout=20).sequence for _ in range(first)] == list(range(first))
        publisher.tell()
        for number in range(first, RECORDS):
            assert sub.recv(timeout=20).sequence == number
        got = [msg.sequence for msg in iter(lossy.try_recv, None)]
        assert got == list(range(RECORDS - len(got), RECORDS))
        assert len(got) >= 31
        assert lossy.lost == RECORDS - len(got)
        assert "no memory for a longer ring" in publisher.output()
        publisher.tell()
        publisher.finish()


def send_without_memory(line: Line) -> None:
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(2, timeout=30)
        try:
            forbid("madvise", errno.ENOMEM, (2, MADV_POPULATE_WRITE))
        except AssertionError:
            line.tell(None)
            return
        sent = 0
        try:
            while True:
                pub.send(payload(sent, 8), timeout=0.3)
                sent += 1
        except byref.Timeout:
            line.tell(sent)
        line.hear()
        for number in range(sent, RECORDS):
            pub.send(payload(number, 8), timeout=20)
        line.hear()
