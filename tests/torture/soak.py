"""Very many messages between two processes: ``python -m tests.torture.soak``. None may be lost, and memory stays flat.

One process sends, one receives, without loss (`soaking`). Small messages go in blocks and one by one, large ones are
copied from a buffer and lent in turns; they are received in batches and one by one. Every byte is checked. Meanwhile
the resident memory of both is sampled.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.processes import Child

from .soaking import MAX_MEMORY, PATIENCE, receive, send

_REPORT_EVERY = 10.0
# What a process may have more of its own at the end than early on, in KiB: an allocator's caches.
_SLACK = 4 << 10
# What it may have shared at any time, in KiB: the pool (how much of it is in use varies), a ring, a lease.
_MOST_SHARED = (MAX_MEMORY + (8 << 20)) >> 10
# Of the time, before which memory may grow: caches fill, and the pool is taken and mapped.
_WARM_UP = 0.2


@dataclass
class _Sample:
    """Resident memory at one time, in KiB: the process's own, and shared."""

    time: float
    own: int
    shared: int


def _sample(pid: int, began: float) -> _Sample:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    own, shared = (int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))
    return _Sample(time.monotonic() - began, own, shared)


def _growth(samples: list[_Sample], large_began: float) -> int:
    """How much more memory of its own a process has late than early in each half of the run, at most, in KiB."""
    halves = [[each for each in samples if (each.time < large_began) == is_small] for is_small in (True, False)]
    grown = 0
    for half in halves:
        early = half[: max(1, int(len(half) * (_WARM_UP + 0.2)))][int(len(half) * _WARM_UP) :] or half[:1]
        late = half[int(len(half) * 0.8) :]
        if early and late:
            grown = max(grown, max(each.own for each in late) - max(each.own for each in early))
    return grown


def main() -> int:
    """Run it, print what memory did, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.soak", description=__doc__)
    parser.add_argument("--small", type=int, default=1_000_000_000, help="messages of 64 B (%(default)s)")
    parser.add_argument("--large", type=int, default=100_000, help="messages of 1 MiB (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="byref-soak-") as directory:
        os.environ["BYREF_DIR"] = directory
        children = [Child(role, options.small, options.large) for role in (receive, send)]
        try:
            return _watch(children, options.small, options.large)
        finally:
            for child in children:
                child.end()


def _watch(children: list[Child], small: int, large: int) -> int:
    receiver, sender = children
    began = reported = time.monotonic()
    samples: dict[str, list[_Sample]] = {"sender": [], "receiver": []}
    large_began = float("inf")
    while (received := receiver.hear(PATIENCE)) != "received":
        for name, child in (("sender", sender), ("receiver", receiver)):
            samples[name].append(_sample(child.pid, began))
        if received >= small and large_began == float("inf"):
            large_began = time.monotonic() - began
        if time.monotonic() > reported + _REPORT_EVERY:
            reported = time.monotonic()
            print(f"{reported - began:6.0f} s  {received:,} messages  {_memory(samples)}", flush=True)
    assert sender.hear(PATIENCE) == "sent"
    for child in children:
        child.tell()
        child.finish()
    took = time.monotonic() - began
    print(f"{small:,} messages of 64 B and {large:,} of 1 MiB in {took:.0f} s; none lost, every byte as sent")
    print(f"resident at the end: {_memory(samples)}")
    grown = {name: _growth(each, large_began) for name, each in samples.items()}
    shared = max(each.shared for name in samples for each in samples[name])
    print("grown, late against early: " + ", ".join(f"{name} {kib:,} KiB" for name, kib in grown.items()))
    print(f"most shared at any time: {shared:,} KiB of {_MOST_SHARED:,} KiB")
    return int(max(grown.values()) > _SLACK or shared > _MOST_SHARED)


def _memory(samples: dict[str, list[_Sample]]) -> str:
    last = {name: each[-1] for name, each in samples.items()}
    texts = [f"{name} {each.own:,} KiB of its own, {each.shared:,} shared" for name, each in last.items()]
    return "; ".join(texts)


if __name__ == "__main__":
    sys.exit(main())
