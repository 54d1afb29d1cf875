"""Valgrind's memcheck over the tests of lifetimes: it also sees what unsanitized libraries do with our memory.

Debian's package is used where it is installed; else it is taken apart into target/, which needs no root.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "target" / "valgrind"
FAULT = 99
# Without those that need other processes' speed, or as much memory as there is.
TESTS = [
    "tests/test_lifetime.py",
    "-k",
    "release or traceback or cycles or dropped_by_any_thread or arrays_from_a_loan",
]


def find() -> tuple[str, dict[str, str]]:
    """The program, and the variables that it needs."""
    if installed := shutil.which("valgrind"):
        return installed, {}
    unpacked = TARGET / "usr" / "bin" / "valgrind"
    if not unpacked.exists() and shutil.which("apt-get") and shutil.which("dpkg"):
        TARGET.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "valgrind"], cwd=TARGET, check=False)
        for package in TARGET.glob("valgrind_*.deb"):
            subprocess.run(["dpkg", "-x", package, TARGET], check=True)
    if not unpacked.exists():
        print("valgrind: skipped, it is neither installed nor can its Debian package be downloaded")
        sys.exit(0)
    return str(unpacked), {"VALGRIND_LIB": str(TARGET / "usr" / "libexec" / "valgrind")}


def main() -> None:
    """Runs the tests; fails with the first error of either."""
    program, variables = find()
    settings = {"PYTHONMALLOC": "malloc", "BYREF_TEST_PATIENCE": "20"} | variables
    # Accesses only: an optimised interpreter compares bytes before it knows whether they mean anything.
    checks = ["--undef-value-errors=no", "--leak-check=no"]
    known = f"--suppressions={Path(__file__).with_suffix('.supp')}"
    options = [f"--error-exitcode={FAULT}", "--quiet", "--num-callers=30", known, *checks]
    arguments = [program, *options, sys.executable, "-m", "pytest", "-q", *(sys.argv[1:] or TESTS)]
    sys.exit(subprocess.run(arguments, cwd=ROOT, env=os.environ | settings).returncode)


if __name__ == "__main__":
    main()
