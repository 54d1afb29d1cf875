"""Takes away each seal, check and hold, one at a time, and sees that a test fails then.

Run it with `make remove`, or for some only with words of theirs (the name of a test, say) as ARGS. It works on a copy
of the sources in target/remove, and writes docs/removals.md from remove.toml when all removals are caught.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib

from mutants import ROOT, Copy, Entry, Trouble, find, go_round, select, table

LIST = ROOT / "tools" / "remove.toml"
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

COLUMNS = {
    "where": lambda entry: entry["where"],
    "kind": lambda entry: entry["kind"],
    "what is removed": lambda entry: entry["removed"],
    "what it prevents": lambda entry: entry["prevents"],
    "test that fails": lambda entry: f"`{entry['test'].removeprefix('tests/')}`",
}


def is_python(test: str) -> bool:
    return ".py::" in test


class Tests:
    """The tests over a copy of the crates and of the package."""

    def __init__(self) -> None:
        self.copy = Copy("remove", "python", "fuzz/corpus")
        self.package = self.copy.root / "python"

    def fails(self, test: str) -> bool:
        """Whether a test does, after it was built anew."""
        try:
            return self._fails_in_python(test) if is_python(test) else self._fails_in_rust(test)
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
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=MOST_SECONDS
        )
        # Whoever is killed by a signal has failed, too.
        if run.returncode > FAILED or "no tests ran" in run.stdout or " skipped" in run.stdout:
            raise Trouble(f"{test} did not run:\n{run.stdout}{run.stderr}")
        return run.returncode != PASSED

    def notice(self, removal: Entry) -> bool:
        """Whether the test that is to catch the removal does."""
        with self.copy.changed(removal["edits"], "."):
            return self.fails(removal["test"])


def describe(removal: Entry) -> str:
    return f"{removal['where']}: without {removal['removed']}"


def main() -> int:
    words = sys.argv[1:]
    groups = tomllib.loads(LIST.read_text())["group"]
    removals = select([removal for group in groups for removal in group["entry"]], words)
    tests = Tests()
    for test in sorted({removal["test"] for removal in removals}):
        if tests.fails(test):
            raise Trouble(f"{test} fails on the sources as they are")
    # The extension takes longer to build: its tests come one after the other.
    removals.sort(key=lambda removal: is_python(removal["test"]))
    if not go_round(removals, describe, tests.notice):
        return 1
    if not words:
        TABLE.write_text(table(HEAD, groups, COLUMNS))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        sys.exit(str(trouble))
