"""What a process and the machine hold."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def settles(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition comes true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def held() -> list[str]:
    """What they are."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # The one by which they are listed.
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def mappings(pid: int | str = "self") -> list[str]:
    """The lines of a process's memory map that show byref's segments; none if the process is gone or out of sight."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return []
    return [line for line in lines if "memfd:byref" in line]


def shared_memory() -> int:
    """The machine's shared memory, in KiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1])
    raise OSError("/proc/meminfo has no Shmem")


def holders() -> list[int]:
    """The processes that map byref's segments."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and mappings(name)]


def is_warning(line: str) -> bool:
    """Whether a line of standard error is a warning of byref's log."""
    return re.match(r"\S+ byref\[\d+\] WARN ", line) is not None
