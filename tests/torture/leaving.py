"""A program ends while its event queue runs on a daemon thread: nothing but its exit code is seen of that."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from .scenes import PATIENCE, Scene

_PROGRAM = """
import sys, threading, time, byref
topic, what, policy = sys.argv[1:]
publisher, queue = byref.Publisher(topic), byref.EventQueue()
def callback(message):
    if what == "sleep": time.sleep(0.02)
    elif what == "file": open("/proc/self/stat").read()
    else: sum(range(2000))
queue.subscribe(topic, callback, policy=policy)
queue.start(daemon=True)
publisher.wait_for_subscribers(timeout=30)
def send():
    while True:
        publisher.send(b"x")
        time.sleep(0.001)
threading.Thread(target=send, daemon=True).start()
time.sleep(0.05)
"""


class Leaving(Scene):
    """A Python process of its own."""

    counted = "programs that left a queue running"

    def play(self) -> None:
        what, policy = self._rng.choice(("sleep", "file", "compute")), self._rng.choice(("latest", "block"))
        began = time.monotonic()
        command = [sys.executable, "-c", _PROGRAM, self._topic, what, policy]
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ))
        try:
            said, _ = program.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            program.kill()
            said, _ = program.communicate()
            said += b" (it did not end)"
        if program.returncode and not self._board.was_troubled(began):
            self.violation(
                f"{what}, {policy}: ended with {program.returncode}: {said.decode(errors='replace')[-1500:]}"
            )
