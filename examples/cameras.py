"""A camera pool with back-pressure: cameras fill frames in shared memory, a pool of workers looks at them.

    python -m examples.cameras [frames]

A camera whose workers are late waits for them, instead of filling the memory.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time

import byref

CAMERAS, WORKERS, SHAPE = 2, 3, (720, 1280, 3)
processes = multiprocessing.get_context("forkserver")


def camera(number: int, frames: int) -> None:
    """Take pictures; at most 4 of them wait or are being worked on."""
    with byref.Pusher("frames", max_pending=4, name=f"camera {number}") as push:
        for picture in range(frames):
            with push.loan(SHAPE, "uint8") as frame:
                frame[:] = (picture + number) % 256  # A real one would read into it.
            assert push.pending <= 4
        push.join()


def look(counted: multiprocessing.Queue[int]) -> None:
    """Look at frames where they lie."""
    for job in byref.Puller("frames"):
        assert job.value[0, 0, 0] == job.value[-1, -1, -1]
        time.sleep(0.002)
        counted.put(byref.copied_bytes()["receive"])


def main(frames: int = 300) -> None:
    """Run cameras and workers."""
    counted: multiprocessing.Queue[int] = processes.Queue()
    workers = [processes.Process(target=look, args=(counted,), daemon=True) for _ in range(WORKERS)]
    cameras = [processes.Process(target=camera, args=(number, frames)) for number in range(CAMERAS)]
    for process in (*workers, *cameras):
        process.start()
    copied = [counted.get() for _ in range(CAMERAS * frames)]
    for process in cameras:
        process.join()
    print(f"{len(copied)} frames looked at, {max(copied)} bytes copied on receive")
    assert max(copied) == 0
    assert all(process.exitcode == 0 for process in cameras)


if __name__ == "__main__":
    os.environ.setdefault("BYREF_DIR", tempfile.mkdtemp())
    main(*map(int, sys.argv[1:]))
