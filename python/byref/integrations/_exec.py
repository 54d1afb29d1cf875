"""`byref exec`: becomes a program in whose Python processes adapters are put in place."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ._adapters import ADAPTERS, Unusable

# The folder whose `sitecustomize` every Python process of the program imports at its start.
SITE = Path(__file__).parent / "_site"
# Exit codes of shells: the program is not there, or cannot be run.
NOT_FOUND, NOT_RUNNABLE = 127, 126


def chosen(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The adapters to put in place, and what to say of others; all that can work here where none is named.

    Raises `Unusable` for a named one that cannot work.
    """
    if names:
        for name in names:
            ADAPTERS[name].check()
        return list(names), []
    usable, left_out = [], []
    for name, adapter in ADAPTERS.items():
        if adapter.installed() is None:
            continue
        try:
            adapter.check()
        except Unusable as problem:
            left_out.append(f"{name} left out: {problem}")
        else:
            usable.append(name)
    return usable, left_out


def described(name: str) -> str:
    """An adapter for people."""
    adapter = ADAPTERS[name]
    version = adapter.installed()
    return f"{adapter.distribution}{' ' + version if version else ''} on {adapter.module}"


def environment(names: Sequence[str], quiet: bool) -> dict[str, str]:
    """What the program's environment is to be."""
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{SITE}{os.pathsep}{path}" if path else str(SITE),
        "BYREF_EXEC": ",".join(names),
        "BYREF_EXEC_QUIET": "1" if quiet else "",
    }


def run(names: Sequence[str], quiet: bool, program: Sequence[str]) -> int:
    """Become the program; gives an exit code only if that failed."""
    try:
        names, left_out = chosen(names)
    except Unusable as problem:
        print(f"byref exec: {problem}", file=sys.stderr)
        return 1
    if not quiet:
        said = [", ".join(map(described, names)) or "no adapter: none of the libraries is installed", *left_out]
        print(f"byref exec: {'; '.join(said)}: {shlex.join(program)}", file=sys.stderr, flush=True)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; what is ignored stays so in a new program.
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvpe(program[0], list(program), environment(names, quiet))
    except OSError as problem:
        print(f"byref exec: cannot run {program[0]!r}: {problem.strerror}", file=sys.stderr)
        return NOT_FOUND if isinstance(problem, FileNotFoundError) else NOT_RUNNABLE
