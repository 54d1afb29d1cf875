"""Empty jobs from one process to a pool of workers, each acknowledged when it is done."""

import concurrent.futures
import multiprocessing
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection

from bench.peers import Address

WORKERS = 4
PENDING = 1000
"""Jobs that may be unfinished at a time."""
PREFETCH = 64
_JOB = struct.Struct("<Q")
_END = _JOB.pack(2**64 - 1)


def push(channels: Sequence[Connection], system: str, address: Address, jobs: int) -> float:
    """Have so many jobs done; return how many seconds that takes."""
    return _PUSHERS[system](channels, address, jobs)


def work(channel: Connection, system: str, address: Address, jobs: int) -> None:
    """A worker of `push`, until that ends."""
    _WORKERS[system](channel, address)


def nothing(job: int) -> int:
    """An empty job, for executors."""
    return job


def _push_byref(channels: Sequence[Connection], address: Address, jobs: int) -> float:
    import byref

    with byref.Pusher(address.name, max_pending=PENDING) as pusher:
        pusher.wait_for_pullers(len(channels))
        _meet(channels)
        start = time.perf_counter()
        for number in range(jobs):
            pusher.send(_JOB.pack(number))
        pusher.join()
        seconds = time.perf_counter() - start
        assert pusher.stats()["done"] == jobs
        for channel in channels:
            channel.send(None)
    return seconds


def _work_byref(channel: Connection, address: Address) -> None:
    import byref

    with byref.Puller(address.name, prefetch=PREFETCH) as puller:
        channel.recv()
        threading.Thread(target=lambda: (channel.recv(), puller.close()), daemon=True).start()
        for job in puller:
            bytes(job)


def _push_pyzmq(channels: Sequence[Connection], address: Address, jobs: int) -> float:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PUSH) as out, context.socket(zmq.PULL) as back:
        out.set_hwm(0)
        back.set_hwm(0)
        out.bind(f"ipc://@{address.name}-out")
        back.bind(f"ipc://@{address.name}-back")
        _meet(channels)
        for _ in channels:
            back.recv()  # It is connected.
        missing = set()
        start = time.perf_counter()
        for number in range(jobs):
            missing.add(number)
            out.send(_JOB.pack(number))
            while len(missing) >= PENDING:
                missing.discard(*_JOB.unpack(back.recv()))
        while missing:
            missing.discard(*_JOB.unpack(back.recv()))
        seconds = time.perf_counter() - start
        for _ in channels:
            out.send(_END)
        for channel in channels:
            channel.recv()
    return seconds


def _work_pyzmq(channel: Connection, address: Address) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as jobs, context.socket(zmq.PUSH) as back:
        jobs.set_hwm(0)
        back.set_hwm(0)
        channel.recv()
        jobs.connect(f"ipc://@{address.name}-out")
        back.connect(f"ipc://@{address.name}-back")
        back.send(_END)
        while (job := jobs.recv()) != _END:
            back.send(job)
        channel.send(None)


def _push_to_executor(channels: Sequence[Connection], address: Address, jobs: int, which: str) -> float:
    """In a process that may have children of its own."""
    command = [sys.executable, "-m", "bench.roles.jobs", which, str(jobs)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _pool(jobs: int) -> float:
    with multiprocessing.get_context("forkserver").Pool(WORKERS) as pool:
        pool.map(nothing, range(WORKERS))
        start = time.perf_counter()
        assert sum(1 for _ in pool.imap_unordered(nothing, range(jobs))) == jobs
        return time.perf_counter() - start


def _executor(jobs: int) -> float:
    context = multiprocessing.get_context("forkserver")
    with concurrent.futures.ProcessPoolExecutor(WORKERS, context) as executor:
        list(executor.map(nothing, range(WORKERS)))
        start = time.perf_counter()
        for first in range(0, jobs, PENDING):
            submitted = [executor.submit(nothing, number) for number in range(first, min(first + PENDING, jobs))]
            concurrent.futures.wait(submitted)
        return time.perf_counter() - start


def _meet(channels: Sequence[Connection]) -> None:
    for channel in channels:
        channel.send(None)


def _no_work(_channel: Connection, _address: Address) -> None:
    """The executors start processes of their own."""


_PUSHERS: dict[str, Callable[[Sequence[Connection], Address, int], float]] = {
    "byref": _push_byref,
    "pyzmq": _push_pyzmq,
    "multiprocessing": partial(_push_to_executor, which="pool"),
    "concurrent.futures": partial(_push_to_executor, which="executor"),
}
_WORKERS = {
    "byref": _work_byref,
    "pyzmq": _work_pyzmq,
    "multiprocessing": _no_work,
    "concurrent.futures": _no_work,
}


if __name__ == "__main__":
    print({"pool": _pool, "executor": _executor}[sys.argv[1]](int(sys.argv[2])))
