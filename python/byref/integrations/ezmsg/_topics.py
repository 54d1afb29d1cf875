"""How the byref topic of an ezmsg publisher is called; ezmsg has it in the place of a name of shared memory.

It tells peers whether they can reach the publisher: those on other hosts are told the same names.
"""

from __future__ import annotations

import functools
import hashlib
import os
import uuid
from pathlib import Path

_PREFIX = "byref.ezmsg"


@functools.cache
def _host() -> str:
    """This host since its last boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _directory() -> str:
    """The rendezvous directory, in few letters: its path, and the mount namespace in which that is one."""
    user = f"/run/user/{os.geteuid()}"
    named = os.environ.get("BYREF_DIR")
    path = named or (f"{user}/byref" if os.path.isdir(user) else f"{os.environ.get('TMPDIR') or '/tmp'}/byref")
    try:
        namespace = os.stat("/proc/self/ns/mnt").st_ino
    except OSError:
        namespace = 0
    return hashlib.sha256(f"{namespace} {os.path.abspath(path)}".encode()).hexdigest()[:16]


def new_topic() -> str:
    """A topic that nobody else has."""
    return f"{_PREFIX}/{_host()}/{_directory()}/{uuid.uuid4().hex}"


def is_topic(name: str) -> bool:
    """Whether a publisher with this adapter gave that name."""
    return name.startswith(f"{_PREFIX}/")


def is_of_this_host(topic: str) -> bool:
    """Whether its publisher runs on this host."""
    return topic.startswith(f"{_PREFIX}/{_host()}/")


def is_of_this_directory(topic: str) -> bool:
    """Whether its publisher is sure to have the same rendezvous directory."""
    return topic.startswith(f"{_PREFIX}/{_host()}/{_directory()}/")
