"""`make soak`, in small."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_none_of_many_messages_is_lost() -> None:
    command = [sys.executable, "-m", "tests.torture.soak", "--small", "3000000", "--large", "200"]
    run = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180)
    # Memory has no time to become flat, so that the exit code says nothing.
    assert "none lost, every byte as sent" in run.stdout, run.stdout
