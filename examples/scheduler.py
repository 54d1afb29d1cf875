"""A scheduler whose workers are killed at random: all jobs are done, and the accounts agree.

python -m examples.scheduler [jobs] [kills]
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile

import byref

WORKERS = 4
# One process for each worker, with this module in it before it begins.
processes = multiprocessing.get_context("forkserver")


def work() -> None:
    """Do jobs until somebody kills this process."""
    for job in byref.Puller("numbers", prefetch=64):
        assert sum(job.value) == 10 * job.number + 45


def hire() -> multiprocessing.process.BaseProcess:
    """Start a worker."""
    worker = processes.Process(target=work, daemon=True)
    worker.start()
    return worker


def main(jobs: int = 100_000, kills: int = 20) -> None:
    """Push so many jobs while so many workers are killed."""
    processes.set_forkserver_preload(["examples.scheduler"])
    workers = [hire() for _ in range(WORKERS)]
    doomed = set(random.sample(range(jobs), kills))
    with byref.Pusher("numbers", max_pending=4000) as push:
        push.wait_for_pullers(WORKERS)
        for number in range(jobs):
            push.send([number + i for i in range(10)])
            if number in doomed:
                workers.pop(0).kill()
                workers.append(hire())
        push.join()
        stats = push.stats()
    for worker in workers:
        worker.kill()
    print(f"{stats['done']} of {jobs} jobs done while {kills} workers were killed:", end=" ")
    print(
        f"{stats['failed']} had been taken by one of these, {stats['returned']} had not, {stats['rejected']} rejected"
    )
    assert stats["done"] == jobs
    assert stats["pending"] == stats["rejected"] == 0


if __name__ == "__main__":
    os.environ.setdefault("BYREF_DIR", tempfile.mkdtemp())
    main(*map(int, sys.argv[1:]))
