"""A process that dies of a signal leaves a dump of its own memory, not of what it shares: holes would be filled."""

import ctypes
import mmap
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.processes import Child, Line, maps

Spawn = Callable[..., Child]

TOPICS = 20
MIB = 1 << 20
# No private memory contains so many of them in a row.
MARK = 0xB7
RUN = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MREMAP_MAYMOVE = 1


def allow_dumps() -> None:
    """As large as the process may have them."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory in which a process leaves its dump when it dies there."""
    probe = tmp_path / "probe"
    probe.mkdir()
    subprocess.run([sys.executable, "-c", "import os; os.abort()"], cwd=probe, preexec_fn=allow_dumps)
    if not list(probe.iterdir()):
        pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
        limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
        pytest.skip(f"processes leave no dump where they work: core_pattern is {pattern!r}, the hard limit {limit}")
    found = tmp_path / "place"
    found.mkdir()
    return found


class Lasting:
    """A second mapping of shared memory, which stays when byref gives up its own."""

    def __init__(self, start: int, length: int) -> None:
        self._length = length
        self._start = _libc.mremap(start, 0, length, _MREMAP_MAYMOVE)
        assert self._start != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())

    def resident(self) -> int:
        """So many bytes of it take memory."""
        pages = ctypes.create_string_buffer(self._length // mmap.PAGESIZE)
        assert _libc.mincore(self._start, self._length, pages) == 0, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in pages.raw) * mmap.PAGESIZE

    def close(self) -> None:
        """Unmap it."""
        _libc.munmap(self._start, self._length)


@pytest.fixture
def leases(endpoints: Endpoints) -> Iterator[list[Lasting]]:
    """Filled by the test."""
    found: list[Lasting] = []
    yield found
    for each in found:
        each.close()


def dump_of(child: Child, place: Path) -> os.stat_result:
    """Have the child die of SIGABRT; what its dump takes."""
    child.signal(signal.SIGABRT)
    assert child.wait() == -signal.SIGABRT
    (dump,) = place.iterdir()
    return dump.stat()


def memory_of(pid: int) -> tuple[int, int]:
    """What a process has in memory, and what it has mapped for itself alone; in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) << 10
    return resident, sum(end - start for start, end, perms, _ in maps(pid) if perms.endswith("p"))


def subscribe(line: Line, place: str) -> None:
    allow_dumps()
    os.chdir(place)
    subs = [byref.Subscriber(f"t/{number}") for number in range(TOPICS)]
    kept = [sub.recv(timeout=30) for sub in subs]
    line.tell(sum(int(message.value[-1]) for message in kept))
    line.hear()


def test_a_subscriber_of_many_topics_leaves_a_small_dump(
    place: Path, spawn: Spawn, endpoints: Endpoints, leases: list[Lasting]
) -> None:
    pubs = [endpoints.publisher(f"t/{number}") for number in range(TOPICS)]
    child = spawn(subscribe, str(place))
    for pub in pubs:
        pub.wait_for_subscribers(timeout=30)
        with pub.loan(MIB, "u1") as loan:
            loan[:] = MARK
    assert child.hear() == TOPICS * MARK

    # Publishers read what their subscribers write: the leases.
    shared = [(start, end) for start, end, perms, name in maps() if "memfd:byref" in name and perms == "r--s"]
    leases.extend(Lasting(start, end - start) for start, end in shared)
    assert leases
    segments = [fd for fd in map(int, os.listdir("/proc/self/fd")) if is_ours(fd)]
    assert segments
    before = [each.resident() for each in leases], [os.fstat(fd).st_blocks for fd in segments]

    resident, private = memory_of(child.pid)
    dump = dump_of(child, place)
    assert ([each.resident() for each in leases], [os.fstat(fd).st_blocks for fd in segments]) == before
    assert dump.st_blocks * 512 <= resident
    assert dump.st_size <= private + MIB
    (file,) = place.iterdir()
    assert not contains_payload(file)


def is_ours(fd: int) -> bool:
    """Whether it is a segment of byref's."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:byref")
    except FileNotFoundError:  # The one that listed the directory.
        return False


def contains_payload(dump: Path) -> bool:
    """Whether what was sent is in it."""
    with dump.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        return content.find(bytes([MARK]) * RUN) >= 0


def publish(line: Line, place: str) -> None:
    allow_dumps()
    os.chdir(place)
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=30)
        with pub.loan(MIB, "u1") as loan:
            loan[:] = MARK
        line.tell("sent")
        line.hear()


@pytest.mark.parametrize("wanted", ["", "payloads"])
def test_a_publisher_leaves_payloads_only_where_they_are_wanted(
    wanted: str, place: Path, spawn: Spawn, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    sub = endpoints.subscriber()
    monkeypatch.setenv("BYREF_CORE_DUMPS", wanted)
    child = spawn(publish, str(place))
    message = sub.recv(timeout=30)
    assert child.hear() == "sent"
    resident, private = memory_of(child.pid)
    dump = dump_of(child, place)
    (file,) = place.iterdir()
    assert contains_payload(file) == (wanted == "payloads")
    assert dump.st_blocks * 512 <= resident
    assert dump.st_size <= private + (16 if wanted else 1) * MIB
    assert (np.asarray(message) == MARK).all()
