"""Children of a test, and what the system knows about processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# How much longer everything takes than usual, under a sanitizer for example.
SLOWNESS = float(os.environ.get("BYREF_TEST_PATIENCE", "1"))
# Nothing in these tests takes so long, on however busy a machine: whoever waits longer waits in vain.
PATIENCE = 60.0 * SLOWNESS

Role = Callable[..., None]


class Line:
    """A line between a test and its child: JSON values, one a line, both ways. Nobody waits for ever."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._received = b""

    def tell(self, value: Any = None) -> None:
        """Say something to the other side."""
        self._end.sendall(json.dumps(value).encode() + b"\n")

    def hear(self, timeout: float = PATIENCE) -> Any:
        """What the other side says next."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._received:
            self._end.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = self._end.recv(1 << 16)
            if not piece:
                raise EOFError("the other side is gone")
            self._received += piece
        text, _, self._received = self._received.partition(b"\n")
        return json.loads(text)

    def has_something(self) -> bool:
        """Whether the other side has said something that was not heard yet."""
        self._end.settimeout(0)
        try:
            return bool(self._received) or bool(self._end.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def fileno(self) -> int:
        """For who waits for others, too."""
        return self._end.fileno()

    def close(self) -> None:
        """Hang up."""
        self._end.close()


class Child:
    """A process that runs `role(line, *arguments)`, a function at the top of a test module."""

    def __init__(self, role: Role, *arguments: Any) -> None:
        ours, theirs = socket.socketpair()
        self.line = Line(ours)
        self.role = role.__name__
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        self._ended = False
        with theirs:
            end = theirs.fileno()
            call = [str(os.getpid()), str(end), role.__module__, role.__name__, json.dumps(arguments)]
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "tests.child", *call],
                cwd=ROOT,
                pass_fds=[end],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
            )
        self.pid = self.process.pid

    def tell(self, value: Any = None) -> None:
        """Say something to the child."""
        try:
            self.line.tell(value)
        except OSError as problem:
            raise AssertionError(f"{self}: {problem!r}\n{self.output()}") from problem

    def hear(self, timeout: float = PATIENCE) -> Any:
        """What the child says next; its own output explains a failure."""
        try:
            return self.line.hear(timeout)
        except (EOFError, OSError) as problem:
            raise AssertionError(f"{self}: {type(problem).__name__}\n{self.output()}") from problem

    def has_something(self) -> bool:
        """Whether the child has said something that was not heard yet; its own output explains a failure."""
        try:
            return self.line.has_something()
        except OSError as problem:
            raise AssertionError(f"{self}: {problem!r}\n{self.output()}") from problem

    def output(self) -> str:
        """Everything that the child printed."""
        return os.pread(self._output.fileno(), 1 << 20, 0).decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a stop is waited for."""
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            eventually(lambda: state_of(self.pid) == "T", "the child stops")

    def kill(self) -> None:
        """SIGKILL, at once."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def finish(self) -> None:
        """Wait for the child's end, which has to be a clean one."""
        status = self.wait()
        assert status == 0, f"{self} ended with {status}\n{self.output()}"

    def wait(self) -> int:
        """Wait for the child's end; gives its exit status."""
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """Kill it if it still runs; complain about what must never happen anywhere."""
        if self._ended:
            return
        self._ended = True
        self.kill()
        output = self.output()
        self.line.close()
        self._output.close()
        assert "panicked" not in output, f"{self}\n{output}"
        assert "Exception ignored" not in output, f"{self}\n{output}"

    def __repr__(self) -> str:
        return f"<child {self.role}, process {self.pid}>"


def forked(look: Callable[[], Any]) -> bool:
    """Whether a forked child of this process finds that true. If it raises, no: it must not go on with other tests."""
    child = os.fork()
    if child == 0:
        found = False
        try:
            found = bool(look())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0 if found else 1)
    return os.waitpid(child, 0)[1] == 0


def eventually(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Wait until `condition()` is true; gives what it gave."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.005)
    return found


def settled(look: Callable[[], Any], moment: float = 0.3) -> Any:
    """What `look()` gives when that has stayed the same for so many seconds."""
    found, since = look(), time.monotonic()
    while time.monotonic() < since + moment:
        time.sleep(0.01)
        if (now := look()) != found:
            found, since = now, time.monotonic()
    return found


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: the state is number 0, utime 11, stime 12."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def state_of(pid: int) -> str:
    """R, S, T (stopped), Z ..."""
    return stat_of(pid)[0]


def cpu_ticks(pid: int) -> int:
    """Processor time used by a process, all its threads, in clock ticks."""
    fields = stat_of(pid)
    return int(fields[11]) + int(fields[12])


def use_no_processor_time(pids: Sequence[int], seconds: float = 5.0) -> bool:
    """Whether processes that have nothing to do use nothing: at most one tick each, over so many seconds.

    The kernel charges a whole tick to whoever runs when it strikes, and what was done before may still be tidied up, so
    one look can be unlucky: who polls or spins shows it in each of six.
    """

    def used() -> int:
        before = [cpu_ticks(pid) for pid in pids]
        time.sleep(seconds)
        return max(cpu_ticks(pid) - ticks for pid, ticks in zip(pids, before, strict=True))

    return any(used() <= 1 for _ in range(6))


def shared_memory() -> int:
    """Bytes of shared memory on this machine (Shmem in /proc/meminfo)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:")) << 10


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) << 10


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """The open descriptors of a process, and what they are."""
    found = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found[int(entry.name)] = os.readlink(entry.path)
        except FileNotFoundError:  # The one that lists the directory.
            continue
    return found


def count_of_descriptors(pid: int | str = "self") -> int:
    """How many a process has, when its service thread has closed what it opened in passing, and what is over."""
    return int(settled(lambda: len(descriptors(pid))))


def threads(pid: int | str = "self") -> int:
    """How many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def maps(pid: int | str = "self") -> list[tuple[int, int, str, str]]:
    """The mappings of a process: start, end, permissions, name."""
    found = []
    for row in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = row.split(maxsplit=5)
        start, _, end = fields[0].partition("-")
        found.append((int(start, 16), int(end, 16), fields[1], fields[5] if len(fields) > 5 else ""))
    return found


def mapping_at(address: int) -> tuple[str, str]:
    """Permissions and name of the mapping of this process in which an address lies; empty where none is."""
    found = (entry[2:] for entry in maps() if entry[0] <= address < entry[1])
    return next(found, ("", ""))


def is_in_pool(address: int) -> bool:
    """Whether an address of this process lies in a publisher's payload memory, mapped for reading only."""
    return any(start <= address < end for start, end in pool_ranges())


def pool_ranges() -> list[tuple[int, int]]:
    """Where this process maps publishers' payload memory for reading only: starts and ends."""
    return [(start, end) for start, end, perms, name in maps() if "memfd:byref-pool" in name and perms == "r--s"]
