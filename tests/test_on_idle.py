"""`Publisher(on_idle=...)`: told when the last subscriber is gone."""

import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import byref
import pytest

from tests.processes import PATIENCE, Child, Line, eventually, state_of

Spawn = Callable[..., Child]


class Idle:
    """Counts calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.called = threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        self.called.set()

    def wait(self) -> None:
        assert self.called.wait(PATIENCE), "it was not called"
        self.called.clear()


def subscribe(line: Line) -> None:
    with byref.Subscriber("t") as sub:
        line.tell("there")
        line.hear()
        sub.close()
        line.tell("closed")
        line.hear()


@pytest.mark.parametrize("end", ["close", "kill", "evict", "evict while frozen"])
def test_the_last_subscriber_goes(end: str, spawn: Spawn) -> None:
    idle = Idle()
    with byref.Publisher("t", on_idle=idle) as pub:
        child = spawn(subscribe)
        child.hear()
        pub.wait_for_subscribers(timeout=PATIENCE)
        with byref.Subscriber("t"):
            pub.wait_for_subscribers(2, timeout=PATIENCE)
        eventually(lambda: len(pub.subscribers) == 1, "one is gone")
        assert idle.calls == 0
        if end == "close":
            child.tell()
        elif end == "kill":
            child.kill()
        else:
            if end == "evict while frozen":
                child.signal(signal.SIGSTOP)
                eventually(lambda: state_of(child.pid) == "T", "it is frozen")
            pub.evict(pub.subscribers[0])
        idle.wait()
        assert pub.subscribers == []
        for calls in (2, 3):  # It comes again, and goes again.
            with byref.Subscriber("t"):
                pub.wait_for_subscribers(timeout=PATIENCE)
            idle.wait()
            assert idle.calls == calls
        child.kill()


def test_one_that_stalls_is_the_last() -> None:
    idle = Idle()
    with byref.Publisher("t", max_stall=0.05, on_idle=idle) as pub, byref.Subscriber("t", depth=1):
        pub.wait_for_subscribers(timeout=PATIENCE)
        for _ in range(2):
            pub.send(b"x", timeout=PATIENCE)
        idle.wait()


def test_nobody_is_told_when_there_was_nobody_or_the_publisher_closes() -> None:
    idle = Idle()
    with byref.Publisher("t", on_idle=idle):
        pass
    with byref.Subscriber("t") as sub:
        with byref.Publisher("t", on_idle=idle) as pub:
            pub.wait_for_subscribers(timeout=PATIENCE)
        eventually(lambda: sub.try_recv() is None and not sub.publishers, "the publisher is gone")
    assert idle.calls == 0


def test_it_may_use_the_publisher_and_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[BaseException | None] = []
    told = threading.Semaphore(0)

    def hook(what: "sys.UnraisableHookArgs") -> None:
        raised.append(what.exc_value)
        told.release()

    monkeypatch.setattr(sys, "unraisablehook", hook)
    seen: list[int] = []

    def stop() -> None:
        seen.append(len(pub.subscribers))
        pub.send(b"nobody hears it")
        raise ValueError("stopped")

    with byref.Publisher("t", on_idle=stop) as pub:
        for _ in range(2):
            with byref.Subscriber("t"):
                pub.wait_for_subscribers(timeout=PATIENCE)
            assert told.acquire(timeout=PATIENCE), "it did not raise"
    assert [str(error) for error in raised] == ["stopped", "stopped"]
    assert seen == [0, 0]
    with pytest.raises(TypeError, match="on_idle must be callable, not"):
        byref.Publisher("t", on_idle=1)  # type: ignore[arg-type]


def test_a_publisher_that_is_its_own_callbacks_is_collected(rendezvous: Path) -> None:
    class Camera:
        def __init__(self) -> None:
            self.pub = byref.Publisher("t", on_idle=self.stop)

        def stop(self) -> None:
            pass

    camera = weakref.ref(Camera())
    gc.collect()
    assert camera() is None
    eventually(lambda: os.listdir(rendezvous) == [], "it is closed")
