"""Nobody writes what others read: the kernel refuses, and a write through a view hurts the writer alone."""

import ctypes
import fcntl
import mmap
import os
import signal
from collections.abc import Callable

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, descriptors, is_in_pool, maps

Spawn = Callable[..., Child]

SIZE = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
MAP_FAILED = ctypes.c_void_p(-1).value
PUNCH_HOLE = 0x02 | 0x01  # and keep the size


def publish(line: Line, size: int) -> None:
    """Sends a payload, then for each seed heard another one, until told None."""
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(2, timeout=30)
        pub.send(payload(0, size))
        while (seed := line.hear()) is not None:
            pub.send(payload(seed, size))


def overwrite(line: Line, through: str) -> None:
    """Receives a message and writes over it, in one of several ways."""
    with byref.Subscriber("t") as sub:
        msg = sub.recv(timeout=30)
        if through == "array":
            address = np.asarray(msg).ctypes.data
        elif through == "memoryview":
            address = np.frombuffer(memoryview(msg), np.uint8).ctypes.data
        else:  # the header words in front of all payloads, and whatever else is mapped
            name = {"ring": "memfd:byref-ring", "pool": "memfd:byref-pool"}[through]
            address = next(start for start, _, perms, found in maps() if name in found and perms == "r--s")
        line.tell("now")
        ctypes.memset(address, 0xEE, 4096)
        line.tell("survived")


@pytest.mark.parametrize("through", ["array", "memoryview", "ring", "pool"])
def test_who_writes_on_a_message_kills_only_itself(through: str, spawn: Spawn, endpoints: Endpoints) -> None:
    bystander = endpoints.subscriber()
    publisher = spawn(publish, SIZE)
    vandal = spawn(overwrite, through)
    msg = bystander.recv(timeout=30)
    assert vandal.hear() == "now"
    assert vandal.wait() == -signal.SIGSEGV
    assert is_payload(msg, 0, SIZE)
    publisher.tell(1)
    assert is_payload(bystander.recv(timeout=30), 1, SIZE)
    publisher.tell(None)
    publisher.finish()


def byref_ranges() -> list[tuple[int, int, str]]:
    """Everything of a peer that this process maps."""
    return [(start, end, name) for start, end, perms, name in maps() if "memfd:byref" in name and perms == "r--s"]


def byref_descriptors() -> list[int]:
    """The descriptors of messages' memory in this process."""
    return [fd for fd, name in descriptors().items() if "memfd:byref-pool" in name or "memfd:byref-ring" in name]


def try_everything(line: Line) -> None:
    """Receives a message, then tries to get write access to everything that came from the publisher."""
    with byref.Subscriber("t") as sub:
        msg = sub.recv(timeout=30)
        assert is_in_pool(np.asarray(msg).ctypes.data)
        ranges, fds = byref_ranges(), byref_descriptors()
        assert {name.split()[0] for _, _, name in ranges} == {"/memfd:byref-pool", "/memfd:byref-ring"}
        assert fds
        line.tell([attack_mappings(ranges), attack_descriptors(fds)])
        assert is_payload(msg, 0, SIZE)


def attack_mappings(ranges: list[tuple[int, int, str]]) -> list[str]:
    """Asks for write permission on mapped pages; gives what was granted."""
    granted = []
    for start, end, name in ranges:
        for prot in (
            mmap.PROT_WRITE,
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        ):
            if LIBC.mprotect(start, end - start, prot) == 0:
                granted.append(f"mprotect {prot} {name}")
    return granted


def attack_descriptors(fds: list[int]) -> list[str]:
    """Tries every way to write through descriptors, also opened anew; gives what was granted."""
    granted = []

    def attempt(what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except (OSError, ValueError):
            return
        granted.append(what)

    def attack(fd: int, how: str) -> None:
        size = os.fstat(fd).st_size
        attempt(f"{how}: mmap", lambda: mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
        read_only = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if read_only != MAP_FAILED and LIBC.mprotect(read_only, size, mmap.PROT_READ | mmap.PROT_WRITE) == 0:
            granted.append(f"{how}: mmap, then mprotect")
        attempt(f"{how}: write", lambda: os.pwrite(fd, b"\xee" * 100, 0))
        attempt(f"{how}: shrink", lambda: os.ftruncate(fd, 0))
        attempt(f"{how}: grow", lambda: os.ftruncate(fd, size * 2))
        if LIBC.fallocate(fd, PUNCH_HOLE, 0, size) == 0:
            granted.append(f"{how}: punch a hole")
        # One that it has: others may be refused for other reasons.
        attempt(f"{how}: add seals", lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW))

    for fd in fds:
        attack(fd, "received")
        for flags in (os.O_RDWR, os.O_WRONLY):
            try:
                again = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:
                continue  # Refused here (memory of another user): as good.
            attack(again, "opened anew")
            os.close(again)
    return granted


def test_every_way_to_get_write_access_is_refused(spawn: Spawn, endpoints: Endpoints) -> None:
    bystander = endpoints.subscriber()
    publisher = spawn(publish, SIZE)
    attacker = spawn(try_everything)
    assert attacker.hear() == [[], []]
    attacker.finish()
    assert is_payload(bystander.recv(timeout=30), 0, SIZE)
    publisher.tell(None)
    publisher.finish()


def receive_twice(line: Line) -> None:
    """Two subscribers of one process; one mutates its own view, neither can write on the other's."""
    with byref.Subscriber("t") as one, byref.Subscriber("t") as two:
        first, second = one.recv(timeout=30), two.recv(timeout=30)
        mine = first.writable()
        mine[:] = 0
        assert is_payload(second, 0, SIZE)
        assert is_payload(first, 0, SIZE)
        assert attack_mappings(byref_ranges()) == []
        assert attack_descriptors(byref_descriptors()) == []
        line.tell("now")
        ctypes.memset(np.asarray(second).ctypes.data, 0, SIZE)


def test_two_subscribers_in_one_process_are_as_isolated(spawn: Spawn) -> None:
    publisher = spawn(publish, SIZE)
    both = spawn(receive_twice)
    assert both.hear() == "now"
    assert both.wait() == -signal.SIGSEGV
    publisher.tell(None)
    publisher.finish()


def mutate(line: Line) -> None:
    """Draws over private views."""
    with byref.Subscriber("t", writable=True) as sub:
        msg = sub.recv(timeout=30)
        value = msg.value
        value.reshape(-1).view(np.uint8)[:] = 0xEE
        assert is_payload(msg, 0, msg.nbytes)
        line.tell("mutated")
        line.hear()
        assert (value.reshape(-1).view(np.uint8) == 0xEE).all()


@pytest.mark.parametrize("size", [0, 64, 5000, 40_000, SIZE])
def test_private_views_are_private(size: int, spawn: Spawn, endpoints: Endpoints) -> None:
    bystander = endpoints.subscriber()
    publisher = spawn(publish, size)
    mutator = spawn(mutate)
    msg = bystander.recv(timeout=30)
    assert mutator.hear() == "mutated"
    one, two = msg.writable(), msg.writable()
    one.view(np.uint8)[:] = 1
    assert is_payload(two, 0, size)
    two.view(np.uint8)[: size // 2] = 2
    assert (one.view(np.uint8) == 1).all()
    assert is_payload(msg, 0, size)
    assert is_payload(msg.writable(), 0, size)
    mutator.tell()
    mutator.finish()
    publisher.tell(None)
    publisher.finish()


def test_a_private_view_costs_the_pages_it_touches(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(payload(0, 16 << 20))
    msg = sub.recv(timeout=30)
    mine = msg.writable()
    mine[5 << 20] = 1

    def private_dirty() -> int:
        """KiB of its mapping that are this process's own."""
        with open("/proc/self/smaps") as smaps:
            lines = iter(smaps)
            address = f"{mine.ctypes.data & ~4095:x}-"
            next(line for line in lines if line.startswith(address))
            return int(next(line for line in lines if line.startswith("Anonymous:")).split()[1])

    assert 1 <= private_dirty() <= 64
    assert msg.writable()[5 << 20] == payload(0, (5 << 20) + 1)[-1]


def test_a_private_view_holds_the_lease(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair(max_memory=8 << 20)
    pub.send(payload(0, SIZE))
    msg = sub.recv(timeout=30)
    mine = msg.writable()
    mine[0] = ~mine[0]
    del msg
    for seed in range(1, 50):
        pub.send(payload(seed, SIZE))
        assert is_payload(sub.recv(timeout=30), seed, SIZE)
    assert (mine[1:] == payload(0, SIZE)[1:]).all()


@pytest.mark.parametrize("data", [b"small", bytes(5000), np.arange(10), np.arange(5000.0), np.zeros(3, "<M8[s]")])
def test_views_are_read_only(data: object, endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    pub.send(data)
    msg = sub.recv(timeout=30)
    for view in (np.asarray(msg), np.asarray(msg.value)):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = view[1]
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.setflags(write=True)
    with pytest.raises(TypeError, match="item assignment"):
        msg[0] = 1
    with pytest.raises((TypeError, BufferError)):
        (ctypes.c_char * msg.nbytes).from_buffer(msg)


def test_a_subscriber_hands_out_no_writable_memory_of_others(endpoints: Endpoints, spawn: Spawn) -> None:
    sub = endpoints.subscriber()
    other = endpoints.subscriber()
    publisher = spawn(publish, SIZE)
    held = sub.recv(timeout=30), other.recv(timeout=30)
    shared = [(perms, name) for _, _, perms, name in maps() if "memfd:byref" in name and perms.endswith("s")]
    assert {name.split()[0] for perms, name in shared if "w" in perms} == {"/memfd:byref-lease"}
    assert all(is_payload(msg, 0, SIZE) for msg in held)
    publisher.tell(None)
    publisher.finish()
