"""pytest fixtures with which a program's own tests prove that it copies nothing and leaks nothing.

Import them into a `conftest.py` (or say `pytest_plugins = ["byref.testing"]` there):

    from byref.testing import no_copies, no_leaks

    def test_detector(no_leaks, no_copies):
        ...  # fails if payload bytes were copied on receive, or if memory of a publisher is still mapped at the end

Fixtures end in the reverse order of their beginning: name `no_leaks` before the fixtures that make publishers and
subscribers, so that it looks when these are closed.
"""

import gc
import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from . import copied_bytes

__all__ = ["Copies", "no_copies", "no_leaks"]

# What is given back by other threads, or by other processes, is given so many seconds.
_PATIENCE = 5.0


class Copies:
    """Which copies a test allows, by the causes that `byref.copied_bytes()` has."""

    def __init__(self) -> None:
        """Allow what sending costs, and count from here."""
        self._allowed = {"send"}
        self._before = copied_bytes()

    def allow(self, *causes: str) -> None:
        """Do not complain of copies for these causes."""
        self._check(causes)
        self._allowed.update(causes)

    def forbid(self, *causes: str) -> None:
        """Complain of copies for these causes: `forbid("send")` is for programs that fill loans."""
        self._check(causes)
        self._allowed.difference_update(causes)

    def copied(self) -> dict[str, int]:
        """Bytes that were copied since the test began and are not allowed, by cause."""
        now = copied_bytes()
        since = {cause: now[cause] - self._before[cause] for cause in now}
        return {cause: count for cause, count in since.items() if count and cause not in self._allowed}

    def _check(self, causes: tuple[str, ...]) -> None:
        unknown = set(causes) - set(self._before)
        if unknown:
            raise ValueError(f"unknown causes {sorted(unknown)}; there are {sorted(self._before)}")


@pytest.fixture
def no_copies() -> Iterator[Copies]:
    """Fail the test if this process copied payload bytes meanwhile, other than by sending."""
    copies = Copies()
    yield copies
    if found := copies.copied():
        listed = ", ".join(f"{count} bytes ({cause})" for cause, count in found.items())
        pytest.fail(f"payload bytes were copied: {listed}; see byref.copied_bytes()")


def _held() -> Counter[str]:
    """Mappings and descriptors of byref's memory, by name."""
    held: Counter[str] = Counter()
    with open("/proc/self/maps", errors="replace") as maps:
        for line in maps:
            if "memfd:byref-" in line:
                held["mapping of " + line.split("memfd:", 1)[1].split(" ", 1)[0].strip()] += 1
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # The descriptor of the listing itself.
            continue
        if "memfd:byref-" in target:
            held["descriptor of " + target.split("memfd:", 1)[1].split(" ", 1)[0]] += 1
    return held


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if memory of publishers or subscribers that it made is still there at its end.

    That is so as long as a publisher, a subscriber, a message, or any view of one is alive: in a list, in a traceback,
    in another library.
    """
    gc.collect()
    before = _held()
    yield
    deadline = time.monotonic() + _PATIENCE
    while True:
        gc.collect()
        left = _held() - before
        if not left:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    listed = ", ".join(f"{count} x {what}" for what, count in sorted(left.items()))
    pytest.fail(f"still there: {listed}; somebody holds a message, or did not close a publisher or subscriber")
