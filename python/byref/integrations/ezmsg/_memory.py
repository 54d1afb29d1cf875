"""How much payload memory a publisher may take."""

from __future__ import annotations

import functools
import os
from pathlib import Path

# What byref allows at least, and at most.
_LEAST, _MOST = 1 << 20, 128 << 30


@functools.cache
def most_memory() -> int:
    """Half of what this process may have at all: subscribers of ezmsg may keep what they receive, without a limit.

    `BYREF_EZMSG_MAX_MEMORY`, in bytes, has the last word.
    """
    wanted = os.environ.get("BYREF_EZMSG_MAX_MEMORY")
    if wanted:
        return int(wanted)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(_LEAST, min(_MOST, min(machine, *_limits()) // 2))


def _limits() -> list[int]:
    """The memory limits of the control groups that this process is in."""
    found = [_MOST * 2]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            top, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        for place in (group, *group.parents):
            try:
                found.append(int((place / name).read_text()))
            except (OSError, ValueError):  # Not there, or "max".
                continue
    return found
