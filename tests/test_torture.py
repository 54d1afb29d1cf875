"""The random stress of `make torture`, in small."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_nothing_goes_wrong_while_processes_are_killed_and_frozen_at_random() -> None:
    command = [sys.executable, "-m", "tests.torture", "--seconds", "8", "--seed", "20"]
    run = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180)
    assert run.returncode == 0, run.stdout
    assert "kills" in run.stdout
