"""How the byref topic of an ezmsg publisher is called; ezmsg has it in the place of a name of shared memory."""

from __future__ import annotations

import functools
import uuid
from pathlib import Path

_PREFIX = "byref.ezmsg"


@functools.cache
def _host() -> str:
    """This host since its last boot: peers on other hosts are told the same names, and cannot reach what they name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def new_topic() -> str:
    """A topic that nobody else has."""
    return f"{_PREFIX}/{_host()}/{uuid.uuid4().hex}"


def is_topic(name: str) -> bool:
    """Whether a publisher with this adapter gave that name."""
    return name.startswith(f"{_PREFIX}/")


def is_of_this_host(topic: str) -> bool:
    """Whether its publisher runs on this host."""
    return topic.startswith(f"{_PREFIX}/{_host()}/")
