"""Ctrl-C interrupts every call that waits; other signals do not disturb it."""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import byref
import pytest

from tests.conftest import Endpoints
from tests.processes import PATIENCE, ROOT, Child, Line, eventually
from tests.test_threads import WAITS, waiting_pair

Spawn = Callable[..., Child]

ROUNDS = 10


def typical(took: list[float]) -> float:
    """The median of five in a row, in a quiet moment of the machine: of those there are, the shortest."""
    return min(statistics.median(took[start : start + 5]) for start in range(0, len(took), 5))


def interrupt_soon(sent: list[float]) -> None:
    """Sends this process SIGINT, as a terminal would, in a while; the list gets the time.

    On a busy machine it may come before this returns.
    """

    def send() -> None:
        time.sleep(0.1)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


def wait_to_be_interrupted(line: Line, wait: str) -> None:
    """Waits again and again; tells how long it took from the signal to the exception."""
    endpoints = Endpoints()
    pub, sub, held = waiting_pair(wait, endpoints)
    for _ in range(ROUNDS):
        sent: list[float] = []
        try:
            interrupt_soon(sent)
            WAITS[wait](pub, sub)
            line.tell("returned")
        except KeyboardInterrupt:
            line.tell(time.monotonic() - sent[0])
    held.clear()
    while sub.try_recv() is not None:  # Nothing is spoilt: it still works.
        pass
    pub.send(b"after", timeout=30)
    line.tell(bytes(sub.recv(timeout=30)).decode())
    endpoints.close()


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_interrupts_within_100_ms(wait: str, spawn: Spawn) -> None:
    """The other promise about time: under 100 ms from the signal to the exception, typically."""
    child = spawn(wait_to_be_interrupted, wait)
    took = [child.hear() for _ in range(ROUNDS)]
    assert all(isinstance(one, float) for one in took), took
    assert typical(took) < 0.1, took
    assert child.hear() == "after"
    child.finish()


def fork_in_a_thread(line: Line, wait: str) -> None:
    """A thread that has waited before forks: in the child it is the main thread."""

    def work() -> None:
        with byref.Subscriber("nothing comes") as idle, contextlib.suppress(byref.Timeout):
            idle.recv(timeout=0.01)
        child = os.fork()
        if child:
            line.tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            return
        try:
            wait_to_be_interrupted(line, wait)
        finally:
            os._exit(0)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_in_a_child_that_a_thread_forked(wait: str, spawn: Spawn) -> None:
    child = spawn(fork_in_a_thread, wait)
    took = [child.hear() for _ in range(ROUNDS)]
    assert all(isinstance(one, float) for one in took), took
    assert [child.hear(), child.hear()] == ["after", 0]
    child.finish()


def test_these_tests_run_where_sigint_is_ignored(rendezvous: Path) -> None:
    """As in the background of a shell, or under nohup."""
    some = "ctrl_c and (closing or 100_ms and flush)"
    pytest_ = f"{sys.executable} -m pytest -v -p no:cacheprovider -k '{some}' tests/test_queue.py tests/test_signals.py"
    command = f"trap '' INT HUP; exec {pytest_}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=3 * PATIENCE, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_a_handler_that_raises_nothing_lets_the_call_wait_on(endpoints: Endpoints) -> None:
    pub, sub = endpoints.pair()
    handled = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(time.monotonic()))
    try:

        def interrupt_and_send() -> None:
            for count in range(1, 4):
                time.sleep(0.02)
                os.kill(os.getpid(), signal.SIGUSR1)
                # Two that come at the same time are one.
                eventually(lambda count=count: len(handled) == count, "it is handled")
            time.sleep(0.2)
            pub.send(b"at last")

        sender = threading.Thread(target=interrupt_and_send)
        sender.start()
        assert bytes(sub.recv(timeout=20)) == b"at last"
        sender.join()
        assert len(handled) == 3
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_may_receive_from_the_same_subscriber(endpoints: Endpoints) -> None:
    """The call that it interrupts holds nothing that it would wait for."""
    pub, sub = endpoints.pair()
    received = []

    def send() -> None:
        pub.send(b"first")
        pub.send(b"second")

    def handler(*_: object) -> None:
        sender = threading.Timer(0.3, send)
        sender.start()
        received.append(bytes(sub.recv(timeout=30)))
        sender.join()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        received.append(bytes(sub.recv(timeout=20)))
        assert received == [b"first", b"second"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handlers_own_exception_ends_the_call(endpoints: Endpoints) -> None:
    _, sub = endpoints.pair()

    def handler(*_: object) -> None:
        raise ZeroDivisionError("from the handler")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(ZeroDivisionError, match="from the handler"):
            sub.recv(timeout=30)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_service_thread_takes_no_signals(endpoints: Endpoints) -> None:
    endpoints.pair()
    blocked = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/status") as status:
            fields = {name: value.strip() for name, _, value in (line.partition(":") for line in status)}
        blocked[fields["Name"]] = int(fields["SigBlk"], 16)
    usual = [signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGALRM]
    assert all(blocked["byref"] >> (number - 1) & 1 for number in usual)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
