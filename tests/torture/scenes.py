"""A scene: a worker and helpers that it forks go through a situation together, on a topic of their own."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

import byref

from tests.child import die_with_parent
from tests.processes import Line

from .board import Board, Report
from .context import Context

# What must happen, happens within this time (s), on however busy a machine, whoever was stopped meanwhile.
PATIENCE = 30.0


class Scene(ABC):
    """One situation, played once. Whoever plays it waits: its worker leads no other life meanwhile."""

    # Its name in the summary.
    counted: ClassVar[str]

    def __init__(self, context: Context, run: int) -> None:
        self._rng, self._board, self._report = context.rng, context.board, context.report
        self._signals = context.signals
        self._topic = f"scene/{run}"
        self._is_over = False

    @abstractmethod
    def play(self) -> None:
        """Play it."""

    def is_over(self) -> bool:
        return self._is_over

    def step(self) -> None:
        """Play it, and count it if nothing was in the way."""
        self._is_over = True
        self.play()
        self._report.counts[self.counted] += 1

    def close(self) -> None:  # noqa: B027 (nothing is left)
        """End it."""

    def expect_forked(self) -> None:  # noqa: B027 (nothing is inherited)
        """In a forked child."""

    def violation(self, what: str) -> None:
        self._report.violation(f"<{self.counted}, {self._topic}> {what}")

    @contextmanager
    def helper(self, part: Callable[[Line], None]) -> Iterator[Helper]:
        """A helper, which has to come to a good end."""
        helper = Helper(part, self._board, self._report)
        try:
            yield helper
            helper.finish()
        finally:
            helper.end()


class Helper:
    """A forked process that plays `part`, with a line to this one."""

    def __init__(self, part: Callable[[Line], None], board: Board, report: Report) -> None:
        ours, theirs = socket.socketpair()
        self._board, self._report = board, report
        self._began = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            ours.close()
            self._be(part, Line(theirs))
        theirs.close()
        self.line = Line(ours)
        self._ended = False

    def _be(self, part: Callable[[Line], None], line: Line) -> None:
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            die_with_parent()
            part(line)
            code = 0
        except byref.Error as refused:
            # Without the directory nobody meets. The other side notices that this one is gone.
            if not self._board.was_troubled(self._began):
                self._report.violation(f"a helper: {refused!r}\n{traceback.format_exc()[-2000:]}")
        except (EOFError, ConnectionError):
            pass  # The other side is gone: it was killed, or has said why.
        except BaseException:
            self._report.violation(f"a helper: {traceback.format_exc()[-2500:]}")
        finally:
            os._exit(code)

    def tell(self, value: object = None) -> None:
        with self._excused():
            self.line.tell(value)

    def hear(self) -> object:
        with self._excused():
            return self.line.hear(PATIENCE + 10)

    @contextmanager
    def _excused(self) -> Iterator[None]:
        """A helper that went for a reason has said so, or had one."""
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError) as gone:
            raise byref.Error("the helper is gone") from gone

    def stop(self) -> None:
        """Freeze it; it is stopped when this returns."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def finish(self) -> None:
        """Wait for its end."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            gone, status = os.waitpid(self.pid, os.WNOHANG)
            if gone:
                self._ended = True
                if status and not self._board.was_troubled(self._began):
                    self._report.violation(f"a helper ended with {os.waitstatus_to_exitcode(status)}")
                return
            time.sleep(0.002)
        self._report.violation("a helper does not end")

    def end(self) -> None:
        """Kill it if it is still there."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._ended = True
        self.line.close()


def stop_for_a_while(pid: int, pause: float, seconds: float) -> threading.Thread:
    """After a pause, freeze another process for so long; to be joined."""

    def freeze() -> None:
        time.sleep(pause)
        with suppress(ProcessLookupError):  # It was killed.
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=freeze)
    thread.start()
    return thread
