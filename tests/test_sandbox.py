"""Sandboxes that forbid system calls: byref does without what it can, and names what it cannot."""

import ctypes
import errno
import platform
import struct
import threading
from collections.abc import Callable

import byref
import pytest

from tests.processes import Child, Line, descriptors, settled

Spawn = Callable[..., Child]

# Numbers of system calls.
CALLS = {
    "x86_64": {"memfd_create": 319, "eventfd2": 290, "epoll_create1": 291, "socket": 41}
    | {"inotify_init1": 294, "inotify_add_watch": 254, "pidfd_open": 434, "membarrier": 324, "madvise": 28, "write": 1}
    | {"futex_waitv": 449},
    "aarch64": {"memfd_create": 279, "eventfd2": 19, "epoll_create1": 20, "socket": 198}
    | {"inotify_init1": 26, "inotify_add_watch": 27, "pidfd_open": 434, "membarrier": 283, "madvise": 233, "write": 64}
    | {"futex_waitv": 449},
}.get(platform.machine(), {})

MADV_POPULATE_WRITE = 23

pytestmark = pytest.mark.skipif(not CALLS, reason="the numbers of this machine's system calls are not listed")


def forbid(call: str, error: int, argument: tuple[int, int] | None = None) -> None:
    """Has a system call of this process refused from now on, by a seccomp filter. With an
    `argument`, its place and value, only calls that have it are refused."""
    load, equal, give = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000
    steps = [(give, 0, 0, refuse | error), (give, 0, 0, allow)]
    if argument is not None:
        place, value = argument
        steps = [(load, 0, 0, 16 + 8 * place), (equal, 0, 1, value), *steps]
    steps = [(load, 0, 0, 0), (equal, 0, len(steps) - 1, CALLS[call]), *steps]
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    described = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_no_new_privs, pr_set_seccomp, filtering = 38, 22, 2
    assert not libc.prctl(pr_set_no_new_privs, 1, 0, 0, 0)
    assert not libc.prctl(pr_set_seccomp, filtering, described, 0, 0)


def endpoints_without(line: Line, call: str, error: int) -> None:
    """Tells what is said of it."""
    try:
        forbid(call, error)
    except AssertionError:
        line.tell(None)
        return
    said = []
    for make in (byref.Publisher, byref.Subscriber):
        try:
            make("t").close()
        except byref.Error as problem:
            said.append(str(problem))
    line.tell(said)


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
@pytest.mark.parametrize("call", ["memfd_create", "eventfd2", "epoll_create1", "socket"])
def test_what_byref_needs_is_named(call: str, error: int, spawn: Spawn) -> None:
    said = spawn(endpoints_without, call, error).hear()
    if said is None:
        pytest.skip("seccomp cannot be had here")
    assert said
    for text in said:
        assert f"{call}: " in text
        assert "seccomp filter" in text
        assert text.startswith(("topic 't': ", "cannot use the rendezvous directory"))


def talk_without(line: Line, call: str) -> None:
    try:
        forbid(call, errno.EPERM)
    except AssertionError:
        line.tell(None)
        return
    with byref.Subscriber("t") as sub, byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=20)
        for size in (10, 100_000):
            pub.send(bytes(size))
            assert sub.recv(timeout=20).nbytes == size
        for _ in range(3):
            threading.Timer(0.1, pub.send, [b"later"]).start()
            assert bytes(sub.recv(timeout=20)) == b"later"  # It slept.
    line.tell("well")


@pytest.mark.parametrize("call", ["inotify_init1", "inotify_add_watch", "pidfd_open", "membarrier", "futex_waitv"])
def test_what_byref_can_do_without(call: str, spawn: Spawn) -> None:
    child = spawn(talk_without, call)
    said = child.hear()
    if said is None:
        pytest.skip("seccomp cannot be had here")
    assert said == "well"
    child.finish()


def grow_without_populating(line: Line, is_known: bool) -> None:
    """Sends and receives in memory of all kinds; tells how many descriptors a publisher has for its segments."""
    if not is_known:
        try:
            forbid("madvise", errno.EINVAL, (2, MADV_POPULATE_WRITE))
        except AssertionError:
            line.tell(None)
            return
    with byref.Subscriber("t") as sub, byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=20)
        ours = settled(lambda: sum("byref-ring" in name for name in descriptors().values()))
        for size in (10, 100_000, 3 << 20, 40 << 20):
            pub.send(bytes(size), timeout=20)
            assert sub.recv(timeout=20).nbytes == size
    line.tell(ours)


def test_memory_of_a_kernel_before_5_14(spawn: Spawn) -> None:
    """It keeps the descriptor through which memory is asked for; a later one needs none."""
    usual = spawn(grow_without_populating, True).hear()
    ours = spawn(grow_without_populating, False).hear()
    if ours is None:
        pytest.skip("seccomp cannot be had here")
    assert ours == usual + 1
