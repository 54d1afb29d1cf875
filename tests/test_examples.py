"""The small examples run, across processes, and are as short as they say."""

import os
import signal
import subprocess
import sys

from tests.processes import PATIENCE, ROOT

SERVICE = ROOT / "examples/numpy_service.py"


def test_a_numpy_service() -> None:
    assert len(SERVICE.read_text().splitlines()) < 60
    servers = [
        subprocess.Popen([sys.executable, SERVICE, "serve"], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        asked = subprocess.run([sys.executable, SERVICE], capture_output=True, text=True, timeout=PATIENCE, check=True)
    finally:
        for server in servers:
            os.kill(server.pid, signal.SIGKILL)
        outputs = [server.communicate(timeout=PATIENCE)[1] for server in servers]
    assert "8 images in" in asked.stdout
    assert "refused: an image has 2 dimensions, not 1" in asked.stdout
    assert not any("Traceback" in output for output in outputs), outputs
