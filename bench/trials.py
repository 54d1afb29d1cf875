"""Trials: functions in fresh processes, none of which outlives its trial."""

import faulthandler
import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

TIMEOUT = 30.0
"""Seconds after which a trial that has not ended is given up."""

_ORPHAN_TIMEOUT = TIMEOUT + 30.0
"""Seconds after which a worker ends itself, should this process be gone and unable to end it."""

_EXIT_TIMEOUT = 5.0
"""Seconds that a worker has for its clean-up once it has given its result."""

_context = multiprocessing.get_context("spawn")

Role = Callable[..., Any]
"""A module-level function."""


class Trial(NamedTuple):
    """The outcome of one measurement of one system."""

    seconds: float
    """How long it took, without what comes before and after."""

    values: tuple[float, ...]
    """One for each metric of the case."""


class TrialError(Exception):
    """A trial that gave no result, and why."""


def run_alone(role: Role, *arguments: Any) -> Any:
    """Call `role` with the arguments in a process; return what it returns."""
    return _run(_Task(role, [], arguments))[0]


def run_pair(first: Role, second: Role, *arguments: Any) -> tuple[Any, Any]:
    """Call both in processes, with a connection to the other and the arguments; return what they return."""
    near, far = _context.Pipe()
    results = _run(_Task(first, [near], (near, *arguments)), _Task(second, [far], (far, *arguments)))
    return results[0], results[1]


def run_star(centre: Role, other: Role, count: int, *arguments: Any) -> Any:
    """As `run_pair`, with many others; the centre, whose result this returns, gets a list of connections."""
    pipes = [_context.Pipe() for _ in range(count)]
    near = [pipe[0] for pipe in pipes]
    others = [_Task(other, [far], (far, *arguments)) for _, far in pipes]
    return _run(_Task(centre, near, (near, *arguments)), *others)[0]


class _Task(NamedTuple):
    """What a worker does."""

    role: Role
    channels: list[Connection]
    """Those among the arguments, which only the worker may keep open."""
    arguments: tuple[Any, ...]


def _run(*tasks: _Task) -> list[Any]:
    """Do all tasks, each in a process; return their results."""
    workers = [_Worker(task) for task in tasks]
    try:
        deadline = time.monotonic() + TIMEOUT
        pending = list(workers)
        while pending:
            ready = multiprocessing.connection.wait(
                [worker.results for worker in pending], max(0.0, deadline - time.monotonic())
            )
            if not ready:
                raise TrialError(f"no result within {TIMEOUT:.0f} s")
            for worker in [worker for worker in pending if worker.results in ready]:
                worker.collect()
                pending.remove(worker)
        for worker in workers:
            worker.process.join(_EXIT_TIMEOUT)
        return [worker.result for worker in workers]
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()


class _Worker:
    """A process that does one task."""

    def __init__(self, task: _Task) -> None:
        self.result: Any = None
        self.results, results = _context.Pipe(duplex=False)
        self.process = _context.Process(target=_work, args=(results, task.role, task.arguments), daemon=True)
        self.process.start()
        # The worker has its own copies now; it must see the end of a channel whose other side is gone.
        for end in (results, *task.channels):
            end.close()

    def collect(self) -> None:
        """Take the result; raise what went wrong instead, in one line."""
        try:
            error, self.result = self.results.recv()
        except EOFError:
            self.process.join(_EXIT_TIMEOUT)
            error = f"a process ended early, exit status {self.process.exitcode}"
        if error:
            raise TrialError(error)


def _work(results: Connection, role: Role, arguments: tuple[Any, ...]) -> None:
    """The body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    faulthandler.dump_traceback_later(_ORPHAN_TIMEOUT, exit=True)
    try:
        outcome = None, role(*arguments)
    except Exception as error:
        outcome = traceback.format_exception_only(error)[-1].strip(), None
    results.send(outcome)
