"""Runs every role in a process of its own, listens to all of them, and never waits for one that failed."""

import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from . import roles
from .report import DemoFailure, Plan, Progress, Reports, Tell

ROLES: dict[str, Callable[[Plan, Tell], object]] = {
    "camera": roles.camera,
    "analyst": roles.analyst,
    "keeper": roles.keeper,
    "painter": roles.painter,
}
PROGRESS_S = 0.25
SPARE_S = 90.0  # beyond the length of the video, for a machine that is busy with other things
EXIT_S = 10.0


def run(plan: Plan, show: Callable[[dict[str, Progress]], None]) -> Reports:
    """Play all roles to their end, calling ``show`` with the latest progress of each meanwhile.

    Raises ``DemoFailure`` as soon as one of them fails or dies, or time runs out. No process outlives it.
    """
    deadline = time.monotonic() + plan.frames / plan.fps + SPARE_S
    progress: dict[str, Progress] = {}
    reports: dict[str, Any] = {}
    workers = [Worker(name, plan) for name in ROLES]
    try:
        busy = {worker.pipe: worker for worker in workers}
        while busy:
            if time.monotonic() > deadline:
                raise DemoFailure("out of time, waiting for " + ", ".join(w.name for w in busy.values()))
            for pipe in wait(list(busy), PROGRESS_S):
                worker = busy[cast(Connection, pipe)]
                news = worker.hear()
                if isinstance(news, Progress):
                    progress[worker.name] = news
                else:
                    reports[worker.name] = news
                    del busy[worker.pipe]
            show(progress)
        for worker in workers:
            worker.finish()
    finally:
        for worker in workers:
            worker.kill()
    return Reports(**reports)


class Worker:
    """A process that plays one role."""

    def __init__(self, name: str, plan: Plan) -> None:
        context = get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_play, args=(name, plan, theirs), name=name, daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    def hear(self) -> object:
        """The next ``Progress``, or the role's report. Raises ``DemoFailure`` if the role failed."""
        try:
            news: object = self.pipe.recv()
        except EOFError:
            self.finish()
            raise DemoFailure(f"the {self.name} ended without a report") from None
        if isinstance(news, DemoFailure):
            raise news
        return news

    def finish(self) -> None:
        """Wait for the end of the process, which must be a clean one."""
        self._process.join(EXIT_S)
        code = self._process.exitcode
        if code is None:
            raise DemoFailure(f"the {self.name} does not exit")
        if code < 0:
            raise DemoFailure(f"the {self.name} was killed by {signal.Signals(-code).name}")
        if code > 0:
            raise DemoFailure(f"the {self.name} failed with exit code {code}")

    def kill(self) -> None:
        """End the process at once, if it still runs."""
        self._process.kill()
        self._process.join()


def _play(name: str, plan: Plan, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then kills this process
    last_told = 0.0

    def tell(frames: int, note: str) -> None:
        nonlocal last_told
        if time.monotonic() - last_told >= PROGRESS_S or frames == plan.frames:
            last_told = time.monotonic()
            pipe.send(Progress(frames, note))

    try:
        pipe.send(ROLES[name](plan, tell))
    except DemoFailure as failure:
        pipe.send(failure)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone, and nobody is left to tell
    except Exception:
        pipe.send(DemoFailure(f"the {name} raised an exception\n\n{traceback.format_exc()}"))
        sys.exit(1)
