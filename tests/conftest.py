"""Every test gets a rendezvous directory of its own, a time limit, and help with child processes."""

import faulthandler
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import byref
import pytest
from hypothesis import HealthCheck, settings

from tests.processes import SLOWNESS, Child, Role

# So long a whole test may take; a call that hangs becomes a failure then.
TEST_TIME = 200 * SLOWNESS
_stderr: TextIO | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Keep the real standard error for the last resort, a dump of all threads. Let Ctrl-C do what it usually does."""
    global _stderr
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Started in the background of a shell: Python leaves it so, and children inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        _stderr = os.fdopen(os.dup(2), "w")


def pytest_unconfigure() -> None:
    """Close it again."""
    if _stderr is not None:
        _stderr.close()


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    """An exception in the main thread, and if even that does not help, the end of the run."""

    def out_of_time(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"the test took longer than {TEST_TIME} s")

    before = signal.signal(signal.SIGALRM, out_of_time)
    # Again and again: an event loop catches what is raised in one of its callbacks.
    signal.setitimer(signal.ITIMER_REAL, TEST_TIME, 1)
    faulthandler.dump_traceback_later(TEST_TIME + 20, exit=True, file=_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def rendezvous(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private rendezvous directory; its path is short."""
    path = Path(tempfile.mkdtemp(prefix="byref-"))
    monkeypatch.setenv("BYREF_DIR", str(path))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def spawn(rendezvous: Path) -> Iterator[Callable[..., Child]]:
    """Starts `role(line, *arguments)` in a process of its own; what still runs at the test's end is killed."""
    children: list[Child] = []

    def start(role: Role, *arguments: Any) -> Child:
        children.append(Child(role, *arguments))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
    for child in children:
        child.end()


def examples(count: int) -> settings:
    """So many examples of a property, the same in each run; the test's fixtures serve them all."""
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=health)


@pytest.fixture
def endpoints(rendezvous: Path) -> Iterator["Endpoints"]:
    """Makes publishers and subscribers that are closed at the test's end."""
    made = Endpoints()
    yield made
    made.close()
    gc.collect()


@pytest.fixture
def pair(endpoints: "Endpoints") -> tuple[byref.Publisher, byref.Subscriber]:
    """A publisher and a subscriber, connected."""
    return endpoints.pair()


class Endpoints:
    """Publishers and subscribers of one test, in this process."""

    def __init__(self) -> None:
        self._made: list[byref.Publisher | byref.Subscriber] = []

    def publisher(self, topic: str = "t", **options: Any) -> byref.Publisher:
        """A publisher."""
        made = byref.Publisher(topic, **options)
        self._made.append(made)
        return made

    def subscriber(self, topic: str = "t", **options: Any) -> byref.Subscriber:
        """A subscriber."""
        made = byref.Subscriber(topic, **options)
        self._made.append(made)
        return made

    def pair(self, *, max_memory: int = 1 << 28, **options: Any) -> tuple[byref.Publisher, byref.Subscriber]:
        """A publisher and a subscriber (with these options), connected."""
        pub, sub = self.publisher(max_memory=max_memory), self.subscriber(**options)
        pub.wait_for_subscribers(timeout=20)
        sub.wait_for_publishers(timeout=20)
        return pub, sub

    def close(self) -> None:
        """Close them all."""
        for made in self._made:
            made.close()
