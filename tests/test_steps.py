"""A process dies, or stops, at a step of a protocol: a sample of `make steps`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The package with fault points.
FAULTS = ROOT / "target/faults/python"


def test_the_others_survive_whatever_step_it_was() -> None:
    if not FAULTS.exists():
        pytest.skip("needs `make build-faults`")
    command = [sys.executable, "-m", "tests.torture.steps", "--sample", "25"]
    environment = {**os.environ, "PYTHONPATH": str(FAULTS)}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=95
    )
    assert run.returncode == 0, run.stdout
    assert "kill: publisher" in run.stdout


def test_an_ordinary_build_has_no_fault_points() -> None:
    command = [sys.executable, "-c", "import byref; print(hasattr(byref._byref, 'faults'))"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
