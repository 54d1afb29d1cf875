"""Calls the Rust half of the suite, `bench/rust`: a program that makes one trial and prints its outcome."""

import contextlib
import json
import os
import signal
import subprocess
from functools import cache
from pathlib import Path

from bench.trials import TIMEOUT, Trial, TrialError

_CRATE = Path(__file__).parent / "rust"
_BUILD_TIMEOUT = 900.0
"""Seconds; a first build compiles some hundred crates."""


def trial(case: str, system: str, length: int) -> Trial:
    """Make one trial; `length` is in messages or round trips."""
    outcome = json.loads(_run([_program(), case, system, str(length)], TIMEOUT))
    return Trial(outcome["seconds"], tuple(outcome["values"]))


@cache
def _program() -> str:
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
