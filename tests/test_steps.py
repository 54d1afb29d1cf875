"""A process dies, or stops, at a step of a protocol: a sample of `make steps`."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import byref
import pytest

from tests.processes import Child, Line, eventually, state_of

ROOT = Path(__file__).parent.parent
# The package with fault points.
FAULTS = ROOT / "target/faults/python"


def has_faults() -> bool:
    """Whether the package is there, for this interpreter."""
    command = [sys.executable, "-c", "import byref"]
    environment = {**os.environ, "PYTHONPATH": str(FAULTS)}
    return FAULTS.exists() and not subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode


needs_faults = pytest.mark.skipif(not has_faults(), reason="needs `make build-faults`, with this interpreter")


def run_steps(*options: str) -> None:
    """The publisher dies, or stops, or is frozen, and so do readers; the others survive it."""
    command = [sys.executable, "-m", "tests.torture.steps", *options]
    environment = {**os.environ, "PYTHONPATH": str(FAULTS)}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180
    )
    assert run.returncode == 0, run.stdout
    assert "kill: publisher" in run.stdout
    assert "freeze: publisher" in run.stdout


@needs_faults
def test_the_others_survive_whatever_step_it_was() -> None:
    run_steps("--sample", "25")


@needs_faults
@pytest.mark.parametrize("steps", ["grow.ring", "grow.before", "region_"])
def test_a_ring_grows_whatever_step_it_was(steps: str) -> None:
    run_steps("--traffic", "longer", "--only", steps)


def test_an_ordinary_build_has_no_fault_points() -> None:
    command = [sys.executable, "-c", "import byref; print(hasattr(byref._byref, 'faults'))"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def send_into_a_full_pool(line: Line) -> None:
    os.environ["BYREF_FAULT"] = "publish.pool_full:1:stop"
    with byref.Publisher("t", max_memory=1 << 20) as pub:
        pub.wait_for_subscribers(timeout=30)
        line.tell([pub.send(bytes(200 << 10), timeout=30) for _ in range(6)])


@needs_faults
def test_a_pool_that_empties_while_it_is_found_full(
    spawn: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is released between two looks of a publisher: that is no reason to give up."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    with byref.Subscriber("t") as sub:
        publisher = spawn(send_into_a_full_pool)
        eventually(lambda: state_of(publisher.pid) == "T", "it has found its pool full")
        received = 0
        while (msg := sub.try_recv()) is not None:
            received += msg.nbytes > 0
        publisher.signal(signal.SIGCONT)
        while received < 6:
            received += sub.recv(timeout=30).nbytes > 0
        assert publisher.hear() == list(range(6))
        publisher.finish()


def join_slowly(line: Line) -> None:
    os.environ["BYREF_FAULT"] = "connect.welcomed:1:stop"
    with byref.Subscriber("t") as sub:
        line.tell(bytes(sub.recv(timeout=30)).decode())
        line.hear()


@needs_faults
def test_who_is_waited_for_has_joined(spawn: Callable[..., Child], monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscriber that was welcomed, but has not heard it, is connected: it misses nothing, but does not look yet."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    with byref.Publisher("t") as pub:
        subscriber = spawn(join_slowly)
        eventually(lambda: state_of(subscriber.pid) == "T", "it has got its welcome")
        assert pub.stats()["subscribers"] == 1
        pub.send(b"early")
        with pytest.raises(byref.Timeout, match="waiting for subscribers"):
            pub.wait_for_subscribers(timeout=0.1)
        subscriber.signal(signal.SIGCONT)
        pub.wait_for_subscribers(timeout=30)
        assert subscriber.hear() == "early"
        subscriber.tell()
        subscriber.finish()
