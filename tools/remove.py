"""Takes away each seal, check and hold, one at a time, and sees that a test fails then.

Run it with `make remove`, or for some only with words of theirs (the name of a test, say) as ARGS. It works on a copy
of the sources in target/remove, and writes docs/removals.md from remove.toml when all removals are caught.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from mutants import ROOT, Copy, Entry, Trouble, find, run, table

TABLE = ROOT / "docs" / "removals.md"
# A test that hangs fails; Python's have a limit of their own.
MOST_SECONDS = 180
# Quick to build, fast enough to test.
PROFILE = {"CARGO_PROFILE_DEV_OPT_LEVEL": "1", "CARGO_PROFILE_DEV_DEBUG": "0", "CARGO_PROFILE_TEST_OPT_LEVEL": "1"}
# What pytest exits with when tests ran.
PASSED, FAILED = 0, 1

HEAD = """\
# Removals

<!-- Written by tools/remove.py from tools/remove.toml. -->

Every seal, check, hold and fork guard that [SAFETY.md](../SAFETY.md) names. `make remove` takes each away, alone, in a
copy of the sources, and runs the test that has to fail then; it writes this file when all of them do. The orderings and
fences of the lock-free protocols are in [orderings.md](orderings.md), with the models that fail without them.

Tests are Rust's (`crate::test`, or `file::test` of `crates/byref/tests`) or pytest's (`file.py::test`). Those about
other users need root.
"""

FOOT = """
Not here: copies that are made before something is decoded (attributes, descriptions, types: to see one missing, a
sender has to win a race), and limits that only share time out (connections accepted at once, laps that a receiver
follows).
"""

COLUMNS = {
    "where": lambda entry: entry["where"],
    "kind": lambda entry: entry["kind"],
    "what is removed": lambda entry: entry["removed"],
    "what it prevents": lambda entry: entry["prevents"],
    "test that fails": lambda entry: f"`{entry['test'].removeprefix('tests/')}`",
}


class Ordinary:
    """Rust's and Python's tests over a copy of the crates and of the package."""

    def __init__(self) -> None:
        self.copy = Copy("remove", "python", "fuzz/corpus")
        self.package = self.copy.root / "python"

    def fails(self, test: str) -> bool:
        """Whether a test does, on the copy as it is now."""
        try:
            return self._fails_in_python(test) if ".py::" in test else self._fails_in_rust(test)
        except subprocess.TimeoutExpired:
            return True

    def _fails_in_rust(self, test: str) -> bool:
        program, name = test.split("::", 1)
        where = ["--package=byref", f"--test={program}"]
        if (self.copy.root / "crates" / program).is_dir():
            where = [f"--package={program}", "--lib"]
        (built,) = self.copy.cargo("test", *where, "--no-run", **PROFILE)
        command = [built, "--exact", find(built, name)]
        return subprocess.run(command, capture_output=True, check=False, timeout=MOST_SECONDS).returncode != 0

    def _fails_in_python(self, test: str) -> bool:
        self.copy.cargo("build", "--package=byref-python", PYO3_PYTHON=sys.executable, **PROFILE)
        shutil.copy(self.copy.target / "debug" / "lib_byref.so", self.package / "byref" / "_byref.so")
        environment = os.environ | {"PYTHONPATH": str(self.package), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=MOST_SECONDS
        )
        # Whoever is killed by a signal has failed, too.
        if done.returncode > FAILED or " skipped" in done.stdout:
            raise Trouble(f"{test} did not run:\n{done.stdout}{done.stderr}")
        return done.returncode != PASSED

    def notices(self, entry: Entry) -> bool:
        """Whether the test that is to catch the removal does."""
        with self.copy.changed(entry["edits"], "."):
            return self.fails(entry["test"])


def describe(entry: Entry) -> str:
    return f"{entry['where']}: without {entry['removed']}"


if __name__ == "__main__":
    run("remove.toml", Ordinary, describe, TABLE, lambda groups: table(HEAD, groups, COLUMNS, FOOT))
