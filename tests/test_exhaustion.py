"""Out of descriptors, memory, address space, mappings: an error says so, and all go on when there is room."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import PATIENCE, Child, Line, descriptors, eventually, settled
from tests.segments import kept_memory
from tests.torture.hardship import address_space, limit

Spawn = Callable[..., Child]

MIB = 1 << 20
# So many of these that a publisher which looks at a few of them only finds none free.
MEDIUM = 16 << 10
# A hundred of these are more than one segment of the pool has room for.
LARGE = MIB
# Enough for Python, and for nothing that byref maps.
LITTLE = 3 * MIB
# More than the depth of a subscriber that is to be waited for.
FULL = 1000
# How version 1 of control groups says it.
UNLIMITED = "9223372036854771712"
MAPPINGS = int(Path("/proc/sys/vm/max_map_count").read_text())
PROT_NONE = 0
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def refusal(call: Callable[[], object]) -> str:
    """The text of the error that a call ends with; one of byref's."""
    try:
        found = call()
    except byref.Error as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"nothing was refused: {found!r}")


def is_shortage(text: str, what: str, option: str, most: int) -> bool:
    """Whether an error says what failed for lack of something, and how much of it `ulimit` allows."""
    unit = {"-v": " KiB", "-n": ";"}[option]
    return text.startswith(f"Error: topic 't': {what}") and f"`ulimit {option}`: {most}{unit}" in text


def once_there_is_room(call: Callable[[], object]) -> None:
    """What was refused in the background may be told once more. Nothing else may go wrong."""

    def works() -> bool:
        try:
            call()
        except byref.Error as error:
            if "a limit was reached" not in str(error):
                raise
            return False
        return True

    eventually(works, "there is room again")


@contextlib.contextmanager
def few_descriptors(spare: int) -> Iterator[int]:
    """This process may open so many more descriptors, and must not raise that limit; gives it."""
    settled(descriptors)  # A service thread closes soon what it has opened in passing.
    highest = max(map(int, os.listdir("/proc/self/fd")))
    between = []
    while (filled := os.dup(0)) < highest:
        between.append(filled)
    os.close(filled)
    most = highest + 1 + spare
    limit(resource.RLIMIT_NOFILE, most)
    os.environ["BYREF_RAISE_NOFILE"] = "0"
    try:
        yield most
    finally:
        limit(resource.RLIMIT_NOFILE, None)
        del os.environ["BYREF_RAISE_NOFILE"]
        for filled in between:
            os.close(filled)


@contextlib.contextmanager
def no_mappings() -> Iterator[None]:
    """This process may have no more mappings."""
    pages = 2 * MAPPINGS
    with mmap.mmap(-1, pages * mmap.PAGESIZE, prot=mmap.PROT_READ) as area:
        anchor = np.frombuffer(area, np.uint8)
        start = anchor.ctypes.data
        split = 0
        while LIBC.mprotect(start + 2 * split * mmap.PAGESIZE, mmap.PAGESIZE, PROT_NONE) == 0:
            split += 1
        last = []
        with contextlib.suppress(OSError):
            while True:
                last.append(mmap.mmap(-1, mmap.PAGESIZE))
        try:
            yield
        finally:
            for each in last:
                each.close()
            LIBC.mprotect(start, pages * mmap.PAGESIZE, mmap.PROT_READ)
            del anchor


def kilobytes() -> int:
    """What `ulimit -v` says."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] >> 10


# ---- address space ---------------------------------------------------------------------------------------------------


def publish_in_little_space(line: Line) -> None:
    """Is refused a ring, the first segment, and a later one; sends on whenever it can."""
    with byref.Publisher("else"):  # So that the service thread runs.
        with address_space(LITTLE):
            line.tell([refusal(lambda: byref.Publisher("t")), kilobytes()])
        with byref.Publisher("t") as pub:
            pub.wait_for_subscribers(timeout=30)
            with address_space(LITTLE):
                line.tell([refusal(lambda: pub.send(payload(0, MEDIUM), timeout=30)), kilobytes()])
                pub.send(payload(0, 10))
            sent = 1
            with address_space(80 * MIB):
                with contextlib.suppress(byref.Error):
                    while True:
                        pub.send(payload(sent, MEDIUM), timeout=30)
                        sent += 1
                line.tell([refusal(lambda: pub.send(payload(sent, MEDIUM), timeout=30)), kilobytes(), sent])
                line.hear()  # Some are released, which is room.
                pub.send(payload(sent, MEDIUM), timeout=30)
            pub.send(payload(sent + 1, MEDIUM), timeout=30)
            line.hear()


def test_a_publisher_without_address_space(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    publisher = spawn(publish_in_little_space)
    text, most = publisher.hear()
    assert is_shortage(text, "cannot make the ring", "-v", most)
    text, most = publisher.hear()
    assert is_shortage(text, "cannot take more payload memory", "-v", most)
    text, most, sent = publisher.hear()
    assert is_shortage(text, "cannot take more payload memory", "-v", most)
    assert sent > 2000
    held = [sub.recv(timeout=20) for _ in range(sent)]
    # The oldest stay: whoever looks at those only finds nothing.
    del held[-2:]
    publisher.tell()
    for seed, msg in enumerate(held):
        assert msg.sequence == seed
        assert is_payload(msg, seed, MEDIUM if seed else 10)
    for seed in (sent, sent + 1):
        msg = sub.recv(timeout=20)
        assert msg.sequence == seed
        assert is_payload(msg, seed, MEDIUM)
    publisher.tell()
    publisher.finish()


def check(msg: byref.Message, seed: int) -> None:
    """It is the large message that was sent with that seed."""
    assert is_payload(msg, seed, LARGE)


def receive_in_little_space(line: Line) -> None:
    """Is refused a lease, a ring, and a segment; misses nothing."""
    with byref.Publisher("else"):
        # The lease has 68 MiB; the ring, which comes back for it, 4 MiB.
        for room in (LITTLE, 68 * MIB + LITTLE):
            with address_space(room):
                sub = byref.Subscriber("t")
                line.tell([refusal(lambda sub=sub: sub.recv(timeout=PATIENCE)), kilobytes()])
            once_there_is_room(lambda sub=sub: sub.wait_for_publishers(timeout=30))
            if room == LITTLE:
                sub.close()
        line.tell()
        with address_space(LITTLE):
            assert is_payload(sub.recv(timeout=30), 0, 10)
            line.tell()
            for _ in range(2):
                line.tell([refusal(lambda: sub.recv(timeout=PATIENCE)), kilobytes()])
        for seed in (1, 2):
            # That it was refused once more just before may be told only now.
            once_there_is_room(lambda sub=sub, seed=seed: check(sub.recv(timeout=30), seed))
        assert (sub.lost, sub.stats()["received"]) == (0, 3)
        sub.close()


def test_a_subscriber_without_address_space(spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    subscriber = spawn(receive_in_little_space)
    for _ in range(2):
        text, most = subscriber.hear()
        assert is_shortage(text, "cannot connect to a publisher, trying again", "-v", most)
    subscriber.hear()
    eventually(lambda: len(pub.subscribers) == 1, "the first one has left")
    pub.send(payload(0, 10))
    subscriber.hear()
    for seed in (1, 2):
        pub.send(payload(seed, LARGE))
    for _ in range(2):
        text, most = subscriber.hear()
        assert is_shortage(text, "cannot map a publisher's memory", "-v", most)
    subscriber.finish()


def write_in_little_space(line: Line) -> None:
    """Neither a private mapping nor a copy has room."""
    with byref.Subscriber("t") as sub:
        msg = sub.recv(timeout=30)
        with address_space(LITTLE):
            line.tell([refusal(msg.writable), kilobytes()])
            with pytest.raises((byref.Error, MemoryError)):
                np.from_dlpack(msg, copy=True)
        mine = msg.writable()
        mine[0] += 1
        assert is_payload(msg, 0, 64 * MIB)


def test_a_private_view_without_address_space(spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    subscriber = spawn(write_in_little_space)
    pub.wait_for_subscribers(timeout=30)
    pub.send(payload(0, 64 * MIB))
    text, most = subscriber.hear()
    assert is_shortage(text, "cannot make a private view", "-v", most)
    subscriber.finish()


def try_every_limit(line: Line, kind: str) -> None:
    """From nothing to enough: everything is refused or works, and works when there is enough."""
    shortages = {
        "address space": ([address_space(room * MIB) for room in range(0, 400, 8)]),
        "descriptors": ([few_descriptors(spare) for spare in range(30)]),
    }
    refused = worked = 0
    for number, shortage in enumerate(shortages[kind]):
        topic = f"t/{number}"
        pub = sub = None
        with shortage:
            try:
                pub = byref.Publisher(topic)
                sub = byref.Subscriber(topic)
                sub.wait_for_publishers(timeout=0.1)
                pub.wait_for_subscribers(timeout=0.1)
                pub.send(payload(0, LARGE), timeout=1)
                sub.recv(timeout=0.1).writable()
                worked += 1
            except (byref.Error, MemoryError):
                refused += 1
        sub = sub or byref.Subscriber(topic)
        pub = pub or byref.Publisher(topic)
        once_there_is_room(lambda sub=sub: sub.wait_for_publishers(timeout=30))
        pub.wait_for_subscribers(timeout=30)
        sequence = pub.send(payload(1, LARGE), timeout=30)
        msg = sub.recv(timeout=30)
        while msg.sequence < sequence:
            msg = sub.recv(timeout=30)
        assert is_payload(msg, 1, LARGE)
        assert sub.lost == 0
        pub.close()
        sub.close()
    line.tell([refused, worked])


@pytest.mark.parametrize("kind", ["address space", "descriptors"])
def test_whatever_the_limit_nothing_worse_than_an_error(kind: str, spawn: Spawn) -> None:
    child = spawn(try_every_limit, kind)
    refused, worked = child.hear(90)
    assert refused > 5
    assert worked > 2
    child.finish()


# ---- descriptors -----------------------------------------------------------------------------------------------------


def publish_with_few_descriptors(line: Line) -> None:
    """Is refused a ring, a subscriber, and a segment; sends on whenever it can."""
    with byref.Publisher("else"):
        with few_descriptors(1) as most:
            line.tell([refusal(lambda: byref.Publisher("t")), most])
        with byref.Publisher("t") as pub:
            with few_descriptors(0) as most:
                line.tell()

                def waits_in_vain() -> str:
                    text = refusal(lambda: pub.wait_for_subscribers(timeout=0.05))
                    return text if "taken in" in text else ""

                line.tell([eventually(waits_in_vain, "it says why"), most])
            pub.wait_for_subscribers(timeout=30)
            with few_descriptors(1) as most:
                line.tell([refusal(lambda: pub.send(payload(0, LARGE), timeout=30)), most])
                pub.send(payload(0, 10))
            pub.send(payload(1, LARGE), timeout=30)
            line.hear()


def test_a_publisher_without_descriptors(spawn: Spawn, endpoints: Endpoints) -> None:
    endpoints.subscriber("nothing")  # A process looks around, at every socket, with its first endpoint.
    publisher = spawn(publish_with_few_descriptors)
    text, most = publisher.hear()
    assert is_shortage(text, "cannot", "-n", most)
    publisher.hear()
    sub = endpoints.subscriber()
    text, most = publisher.hear()
    assert text.startswith("Timeout: waiting for subscribers on topic 't' timed out ")
    assert f"`ulimit -n`: {most};" in text
    text, most = publisher.hear()
    assert is_shortage(text, "cannot take more payload memory", "-n", most)
    for seed, size in enumerate((10, LARGE)):
        msg = sub.recv(timeout=20)
        assert (msg.sequence, is_payload(msg, seed, size)) == (seed, True)
    publisher.tell()
    publisher.finish()


def take_in_with_few_descriptors(line: Line) -> None:
    """Has a subscriber from another process on one topic, and no descriptor for its second one."""
    with byref.Publisher("first") as first, byref.Publisher("second") as second:
        first.wait_for_subscribers(timeout=30)
        first.send(payload(0, 10_000))
        with few_descriptors(0) as most:
            line.tell()

            def waits_in_vain() -> str:
                text = refusal(lambda: second.wait_for_subscribers(timeout=0.05))
                return text if "taken in" in text else ""

            line.tell([eventually(waits_in_vain, "it says why"), most])
            ticket = first.send_tracked(payload(1, 10_000))
            eventually(lambda: ticket.released, "the other one goes on")
            line.tell()
        second.wait_for_subscribers(timeout=30)
        second.send(payload(1, 10))
        line.hear()


def test_a_subscriber_for_whom_there_is_no_descriptor_holds_up_nobody(spawn: Spawn, endpoints: Endpoints) -> None:
    """Its question comes over the connection that serves the other topic, too."""
    publisher = spawn(take_in_with_few_descriptors)
    first = endpoints.subscriber("first")
    publisher.hear()
    second = endpoints.subscriber("second")
    text, most = publisher.hear()
    assert text.startswith("Timeout: waiting for subscribers on topic 'second' timed out ")
    assert f"`ulimit -n`: {most};" in text
    for seed in range(2):
        assert is_payload(first.recv(timeout=30), seed, 10_000)
    publisher.hear()
    assert is_payload(second.recv(timeout=30), 1, 10)
    publisher.tell()
    publisher.finish()


def wait_without_descriptors(line: Line) -> None:
    """Sends more than a ring takes; what it would sleep at it cannot have."""
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=30)
        with few_descriptors(0):
            for number in range(FULL):
                pub.send(payload(number, 8), timeout=PATIENCE)
            line.tell(pub.stats()["waits"])
        line.hear()


def test_a_sender_waits_without_a_descriptor_too(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber(depth=100)
    publisher = spawn(wait_without_descriptors)
    for number in range(FULL):
        assert is_payload(sub.recv(timeout=30), number, 8)
        if number % 100 == 0:
            time.sleep(0.02)  # It waits longer than it looks without sleeping.
    assert publisher.hear() > 0
    publisher.tell()
    publisher.finish()


def receive_with_few_descriptors(line: Line) -> None:
    """Is refused a connection, and the descriptor of a segment; misses nothing."""
    with byref.Publisher("else"):
        line.hear()
        with byref.Subscriber("t") as sub:
            with few_descriptors(2) as most:
                line.tell()
                line.tell([refusal(lambda: sub.recv(timeout=PATIENCE)), most])
            once_there_is_room(lambda: sub.wait_for_publishers(timeout=30))
            with few_descriptors(0) as most:
                line.tell()
                assert is_payload(sub.recv(timeout=30), 0, 10)
                for _ in range(2):
                    line.tell([refusal(lambda: sub.recv(timeout=PATIENCE)), most])
            for seed in (1, 2):
                # That it was refused once more just before may be told only now.
                once_there_is_room(lambda sub=sub, seed=seed: check(sub.recv(timeout=30), seed))
            assert sub.lost == 0


def test_a_subscriber_without_descriptors(spawn: Spawn, endpoints: Endpoints) -> None:
    endpoints.subscriber("nothing")  # A process looks around, at every socket, with its first endpoint.
    subscriber = spawn(receive_with_few_descriptors)
    subscriber.tell()
    subscriber.hear()
    pub = endpoints.publisher()
    text, most = subscriber.hear()
    assert is_shortage(text, "cannot connect to a publisher, trying again", "-n", most)
    subscriber.hear()
    pub.wait_for_subscribers(timeout=30)
    for seed in range(3):
        pub.send(payload(seed, LARGE if seed else 10).tobytes())  # Arrays need a module, so a file.
    for _ in range(2):
        text, most = subscriber.hear()
        assert is_shortage(text, "cannot map a publisher's memory", "-n", most)
    subscriber.finish()


# ---- mappings, sizes of files ----------------------------------------------------------------------------------------


def be_out_of(line: Line, what: str) -> None:
    """Publishes, receives and connects without mappings, or while files may not grow; then with them."""
    with byref.Publisher("t") as pub, byref.Subscriber("t") as sub, byref.Subscriber("late") as late:
        sub.wait_for_publishers(timeout=30)
        pub.wait_for_subscribers(timeout=30)

        @contextlib.contextmanager
        def short_files() -> Iterator[None]:
            limit(resource.RLIMIT_FSIZE, MIB)
            yield
            limit(resource.RLIMIT_FSIZE, None)

        # Not as arrays: the first one needs a module, for which Python itself would want memory.
        large, small = payload(0, LARGE).tobytes(), payload(0, 10).tobytes()
        with no_mappings() if what == "mappings" else short_files():
            refused = [
                refusal(lambda: byref.Publisher("t")),
                refusal(lambda: pub.send(large, timeout=30)),
            ]
            line.tell()
            refused.append(refusal(lambda: late.recv(timeout=PATIENCE)))
            assert pub.send(small, timeout=30) == 0
            assert is_payload(sub.recv(timeout=30), 0, 10)
        line.tell(refused)
        once_there_is_room(lambda: late.wait_for_publishers(timeout=30))
        assert pub.send(payload(1, LARGE), timeout=30) == 1
        assert is_payload(sub.recv(timeout=30), 1, LARGE)
        assert is_payload(late.recv(timeout=30), 2, LARGE)


@pytest.mark.parametrize("what", ["mappings", "files"])
def test_a_process_that_may_not_have_more(what: str, spawn: Spawn, endpoints: Endpoints) -> None:
    if what == "mappings" and MAPPINGS > 1 << 18:
        pytest.skip(f"vm.max_map_count is {MAPPINGS:,}")
    child = spawn(be_out_of, what)
    child.hear()
    pub = endpoints.publisher("late")
    refused = child.hear()
    beginnings = ("'t': cannot ", "'t': cannot take more payload memory: ", "'late': cannot connect to a publisher")
    for text, beginning in zip(refused, beginnings, strict=True):
        assert text.startswith(f"Error: topic {beginning}")
        assert (f"vm.max_map_count: {MAPPINGS};" if what == "mappings" else "`ulimit -f`: 1024 KiB;") in text
    pub.wait_for_subscribers(timeout=30)
    pub.send(payload(2, LARGE))
    child.finish()


# ---- the system's memory ---------------------------------------------------------------------------------------------


def tell_default_memory(line: Line, limits: dict[str, dict[str, str]]) -> None:
    """In a mount namespace of its own, where control groups have these limits: what `max_memory` is by default."""
    new_namespace, private = 0x00020000, 1 << 18 | 1 << 14
    if LIBC.unshare(new_namespace) or LIBC.mount(b"none", b"/", None, private, None):
        return line.tell("not allowed")
    groups = dict(row.split(":", 2)[1:] for row in Path("/proc/self/cgroup").read_text().splitlines())
    found = {}
    for name, files in limits.items():
        time.sleep(1.1)  # A limit that was read serves for a second.
        if LIBC.mount(b"limits", b"/sys/fs/cgroup", b"tmpfs", 0, None):
            return line.tell("not allowed")
        for file, text in files.items():
            own = groups.get("memory" if file.startswith("memory/") else "", "/")
            place = Path("/sys/fs/cgroup", *(own.strip("/") if part == "OWN" else part for part in file.split("/")))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text + "\n")
        with byref.Publisher("t") as pub:
            found[name] = refusal(lambda pub=pub: pub.send(bytes((1 << 30) + 1)))  # type: ignore[misc]
    return line.tell(found)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a file system of its own for control groups")
def test_the_default_max_memory_respects_the_control_group(spawn: Spawn) -> None:
    limits = {
        "none": ({"memory.max": "max"}, 1 << 30),
        "version 2": ({"OWN/memory.max": str(300 * MIB)}, 150 * MIB),
        "version 1": ({"memory/OWN/memory.limit_in_bytes": str(100 * MIB)}, 50 * MIB),
        "version 1, the group above": (
            {"memory/OWN/memory.limit_in_bytes": UNLIMITED, "memory/memory.limit_in_bytes": str(400 * MIB)},
            200 * MIB,
        ),
        "version 1, unlimited": ({"memory/memory.limit_in_bytes": UNLIMITED}, 1 << 30),
        "more than enough": ({"memory.max": str(64 << 30)}, 1 << 30),
    }
    child = spawn(tell_default_memory, {name: files for name, (files, _) in limits.items()})
    found = child.hear()
    if found == "not allowed":
        pytest.skip("no mount namespaces here")
    for name, (_, most) in limits.items():
        assert f"max_memory={most} bytes" in found[name], name
    child.finish()


def send_in_a_burst(line: Line, count: int) -> None:
    """Sends so many messages at once, then nothing; another one when told."""
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(2, timeout=30)
        for seed in range(count):
            pub.send(payload(seed, LARGE), timeout=30)
        line.tell()
        line.hear()
        line.tell(pub.send(payload(count, LARGE), timeout=30))
        line.hear()


def pool_memory(pid: int) -> int:
    """Bytes of memory behind the pool segments that a process has open."""
    found = {}
    for fd, name in descriptors(pid).items():
        if "memfd:byref-pool" in name:
            with contextlib.suppress(FileNotFoundError):
                stat = os.stat(f"/proc/{pid}/fd/{fd}")
                found[stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_memory_returns_to_the_system_after_a_burst(policy: str, spawn: Spawn, endpoints: Endpoints) -> None:
    """Although the publisher does nothing more, and one of the messages is still held."""
    count = 300
    subs = [endpoints.subscriber(policy=policy) for _ in range(2)]
    publisher = spawn(send_in_a_burst, count)
    publisher.hear()
    assert pool_memory(publisher.pid) >= count * LARGE
    held = [[sub.recv(timeout=20) for _ in range(count)] for sub in subs]
    kept = held[0][200]
    del held
    waiting = [sub.try_recv for sub in subs]  # Who neither receives nor polls keeps its mappings.

    def returned() -> bool:
        assert all(look() is None for look in waiting)
        return max(pool_memory(publisher.pid), pool_memory(os.getpid())) <= 130 * LARGE

    eventually(returned, "two segments are left")
    assert is_payload(kept, 200, LARGE)
    publisher.tell()
    assert publisher.hear() == count
    for sub in subs:
        assert is_payload(sub.recv(timeout=20), count, LARGE)
    publisher.tell()
    publisher.finish()


# ---- who does not read ----

# What a publisher may have, payloads that need a segment of their own, and what a segment may have beside.
SMALL_POOL = 80 * MIB
HUGE = (75 * MIB, 78 * MIB)
PAGES = 16 << 10


def publish_in_shapes(line: Line, how: str) -> None:
    """Takes memory in many small pieces and in large ones, in turn, and sends none of it; tells what was refused."""
    with byref.Publisher("t", max_memory=SMALL_POOL) as pub:
        pub.wait_for_subscribers(timeout=30)
        pub.send(b"it has room for one")
        while (cycle := line.hear()) is not None:
            loans = []
            with contextlib.suppress(byref.PoolExhausted, byref.Timeout):
                while True:
                    loans.append(pub.loan(MIB, timeout=0.2))
            while loans:
                loans.pop().discard()  # Its array must go, too.
            size, refused = HUGE[cycle % 2], ""
            try:
                if how == "loans":
                    pub.loan(size, timeout=0.2).discard()
                else:
                    pub.send(bytes(size), timeout=0.2)
            except (byref.PoolExhausted, byref.Timeout) as error:
                refused = str(error)
            line.tell([refused, pub.stats()["pool_allocated"]])

        def has_room() -> bool:
            try:
                pub.loan(HUGE[0], timeout=30).discard()
            except byref.PoolExhausted:  # Who may lose messages is not waited for; it holds each for a moment.
                return False
            return True

        eventually(has_room, "what is read makes room")
        line.tell("there is room")
        line.hear()


def read_late(line: Line, policy: Any) -> None:
    """Receives nothing until it is told to."""
    with byref.Subscriber("t", policy, None if policy == "latest" else 1) as sub:
        sub.wait_for_publishers(timeout=30)
        line.tell("there")
        line.hear()
        while not line.has_something():
            with contextlib.suppress(byref.Timeout):
                sub.recv(timeout=0.01).release()
        line.hear()


@pytest.mark.parametrize("how", ["loans", "sends"])
@pytest.mark.parametrize("policy", ["block", "latest", "drop_oldest"])
def test_who_does_not_read_keeps_no_more_than_max_memory(policy: str, how: str, spawn: Spawn) -> None:
    """Whoever keeps a segment that the publisher has given up: what the system gave for it counts."""
    publisher = spawn(publish_in_shapes, how)
    subscriber = spawn(read_late, policy)
    assert subscriber.hear() == "there"
    for cycle in range(4):
        publisher.tell(cycle)
        refused, allocated = publisher.hear()
        assert not refused or str(subscriber.pid) in refused, f"it does not name who keeps the memory: {refused}"
        kept: dict[int, int] = {}
        for child in (subscriber, publisher):
            child.signal(signal.SIGSTOP)
            kept |= kept_memory(child.pid)
            child.signal(signal.SIGCONT)
        # One that may lose messages is waited for by a second only, which a busy machine may take from it.
        most = SMALL_POOL * (1 if policy == "block" else 3)
        assert sum(kept.values()) <= most + PAGES, f"cycle {cycle}: {kept}"
        assert allocated >= sum(kept.values()) - PAGES, f"cycle {cycle}: it is not counted, {kept}"
    subscriber.tell()
    publisher.tell()
    assert publisher.hear() == "there is room"
    for child in (subscriber, publisher):
        child.tell()
        child.finish()


# ---- limits that byref raises ----------------------------------------------------------------------------------------


def publish_many(line: Line, soft: int, hard: int, may_raise: bool) -> None:
    """Makes publishers until it has as many as it was told, or fails; tells what became of it."""
    if not may_raise:
        os.environ["BYREF_RAISE_NOFILE"] = "0"
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    publishers: list[byref.Publisher] = []
    count = line.hear()
    try:
        while len(publishers) < count:
            publishers.append(byref.Publisher(f"t/{len(publishers)}", max_memory=MIB))
    except byref.Error as problem:
        line.tell(str(problem))
    else:
        line.tell(resource.getrlimit(resource.RLIMIT_NOFILE))
    line.hear()


@pytest.mark.parametrize("count", [1, 300])
def test_the_limit_of_descriptors_is_raised_when_few_are_left(count: int, spawn: Spawn) -> None:
    child = spawn(publish_many, 200, 4000, True)
    child.tell(count)
    assert child.hear() == [4000 if count > 1 else 200, 4000]


def test_the_limit_of_descriptors_stays_where_that_is_wished(spawn: Spawn) -> None:
    child = spawn(publish_many, 200, 4000, False)
    child.tell(300)
    assert "`ulimit -n`: 200" in child.hear()


def test_a_hard_limit_of_descriptors_is_named(spawn: Spawn) -> None:
    child = spawn(publish_many, 100, 200, True)
    child.tell(300)
    assert "`ulimit -n`: 200" in child.hear()


def publish_on_many(line: Line, count: int, limits: tuple[int, int], sizes: list[int]) -> None:
    """One message of each size on each of so many topics, with few descriptors."""
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(limits))
    publishers = [byref.Publisher(f"many/{number}", max_memory=MIB) for number in range(count)]
    for pub in publishers:
        pub.wait_for_subscribers(timeout=60)
    for size in sizes:
        for number, pub in enumerate(publishers):
            pub.send(payload(number, size))
    line.tell("sent")
    line.hear(90)


def subscribe_to_many(line: Line, count: int, limits: tuple[int, int], sizes: list[int]) -> None:
    """Receives all of that, and keeps it; tells how many descriptors that takes."""
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(limits))
    with byref.Subscriber("many/*") as sub:
        kept = [sub.recv(timeout=60) for _ in range(count * len(sizes))]
        for msg in kept:
            assert is_payload(msg, int(msg.topic.partition("/")[2]), msg.nbytes)
        assert sorted({msg.nbytes for msg in kept}) == sorted(sizes)
        line.tell(len(descriptors()))
        line.hear(90)


@pytest.mark.parametrize(
    ("count", "limits", "sizes"),
    [(1000, (1024, 4096), [64, 10_000]), (100, (256, 256), [64, 10_000])],
    ids=["1,000 topics", "100 topics"],
)
def test_many_topics_need_few_descriptors(count: int, limits: tuple[int, int], sizes: list[int], spawn: Spawn) -> None:
    children = [spawn(role, count, limits, sizes) for role in (subscribe_to_many, publish_on_many)]
    assert children[1].hear(90) == "sent"
    assert children[0].hear(90) < limits[1]
    for child in children:
        child.tell()
        child.finish()
