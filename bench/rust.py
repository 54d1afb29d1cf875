"""Calls the Rust half of the suite, `bench/rust`: a program that makes one trial and prints its outcome."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from bench.trials import TIMEOUT, Trial, TrialError

_CRATE = Path(__file__).parent / "rust"
_BUILD_TIMEOUT = 900.0
"""Seconds; a first build compiles some hundred crates."""


def trial(case: str, system: str, length: int) -> Trial:
    """Make one trial; `length` is in messages or round trips."""
    return outcome_of(_run([program(), case, system, str(length)], TIMEOUT))


def outcome_of(printed: str) -> Trial:
    """What the program has measured."""
    outcome = json.loads(printed)
    return Trial(outcome["seconds"], tuple(outcome["values"]))


class Sender:
    """The sending half of a `rate` trial, for a receiver outside the program."""

    WARM_UP = 1000
    """Messages that it sends first. Each message begins with its number, from 0, and from 0 again after these."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def meet(self) -> None:
        """Return once the sender has come to the same point."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise TrialError("the sender ended early")

    def outcome(self) -> Trial:
        """What it has measured; for when it has nothing left to do."""
        return outcome_of(self._process.stdout.read())


@contextlib.contextmanager
def sender(executable: str, system: str, topic: str, length: int) -> Iterator[Sender]:
    """A sender that runs, and waits for a receiver."""
    command = [executable, "rate", system, str(length), topic, "send"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Sender(process)
        finally:
            process.kill()


@cache
def program() -> str:
    """The path of the program, which is built first."""
    manifest = str(_CRATE / "Cargo.toml")
    build = ["cargo", "build", "--release", "--message-format=json", "--manifest-path", manifest]
    artifacts = map(json.loads, _run(build, _BUILD_TIMEOUT).splitlines())
    return next(artifact["executable"] for artifact in artifacts if artifact.get("executable"))


def _run(command: list[str], timeout: float) -> str:
    """What a command prints. It and its children share a session, which is ended after `timeout` seconds."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise TrialError(f"no result within {timeout:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise TrialError(errors.strip().rpartition("\n")[2] or f"exit status {process.returncode}")
    return output
