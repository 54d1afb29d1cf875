"""The main program of a test's child process: runs one function of a test module with a line to the test."""

import ctypes
import importlib
import json
import os
import signal
import socket
import sys

from tests.processes import Line


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends: a crashed test run leaves nobody behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> None:
    parent, descriptor, module, role, arguments = sys.argv[1:]
    die_with_parent()
    if os.getppid() != int(parent):
        return
    line = Line(socket.socket(fileno=int(descriptor)))
    getattr(importlib.import_module(module), role)(line, *json.loads(arguments))


if __name__ == "__main__":
    main()
