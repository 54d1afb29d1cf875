"""Jobs whose pullers are killed again and again: are all done, is any done twice without need, does the work stall?

Run it with `python -m bench.deaths [--jobs 100000] [--deaths 200]`. Each job takes 100 us of its puller's time. A
puller writes each job down before it answers: what is there twice was taken by one that was killed before its answer.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections import Counter
from multiprocessing.process import BaseProcess

import byref

QUEUE = "bench/deaths"
PULLERS = 4
PREFETCH = 8
LENGTH = 100e-6
"""Seconds of a job."""
RECORD = 4


def work(path: str) -> None:
    """Do jobs until somebody kills this process."""
    diary = os.open(path, os.O_WRONLY | os.O_APPEND)
    with byref.Puller(QUEUE, prefetch=PREFETCH) as pull:
        for job in pull:
            until = time.perf_counter() + LENGTH
            while time.perf_counter() < until:
                pass
            os.write(diary, job.number.to_bytes(RECORD, "little"))


class Pool:
    """The pullers, one of which is killed now and then."""

    def __init__(self, diary: str) -> None:
        self._diary = diary
        self._context = multiprocessing.get_context("forkserver")  # They have nothing of this process.
        self._context.set_forkserver_preload(["byref"])
        self.alive: list[BaseProcess] = []
        for _ in range(PULLERS):
            self.hire()

    def hire(self) -> None:
        """Have one more."""
        process = self._context.Process(target=work, args=(self._diary,), daemon=True)
        process.start()
        self.alive.append(process)

    def kill(self, victim: int) -> None:
        """Kill one."""
        process = self.alive.pop(victim)
        process.kill()
        process.join()


def run(jobs: int, deaths: int, seed: int) -> dict[str, float]:
    """Have so many jobs done while so many pullers die; what was counted, and the longest stall in seconds."""
    rng = random.Random(seed)
    with tempfile.NamedTemporaryFile() as diary:
        pool = Pool(diary.name)
        with byref.Pusher(QUEUE) as push:
            push.wait_for_pullers(PULLERS, 60)
            is_over = threading.Event()
            done: list[tuple[float, int]] = []

            def watch() -> None:
                """Write down when the number of jobs done has changed."""
                last = -1
                while not is_over.wait(0.001):
                    now = push.stats()["done"]
                    if now != last:
                        done.append((time.perf_counter(), now))
                        last = now

            def send() -> None:
                for _ in range(jobs):
                    push.send(b"job")
                push.join()

            watcher, sender = threading.Thread(target=watch), threading.Thread(target=send)
            began = time.perf_counter()
            watcher.start()
            sender.start()
            died = []
            for _ in range(deaths):
                time.sleep(rng.uniform(0, 2 * 0.6 * jobs * LENGTH / deaths))
                if not sender.is_alive():
                    break
                died.append(time.perf_counter())
                pool.kill(rng.randrange(len(pool.alive)))
                pool.hire()
                # A new one is seen before the next one dies, so that somebody works.
                push.wait_for_pullers(PULLERS - 1, 60)
            sender.join()
            seconds = time.perf_counter() - began
            is_over.set()
            watcher.join()
            stats = push.stats()
        while pool.alive:
            pool.kill(0)
        written = diary.read()
    counts = Counter(int.from_bytes(written[at : at + RECORD], "little") for at in range(0, len(written), RECORD))
    gaps = [(later - earlier, later) for (earlier, _), (later, _) in itertools.pairwise(done)]
    after_deaths = [gap for gap, at in gaps if any(at - gap <= death <= at for death in died)]
    return {
        "jobs": jobs,
        "deaths": len(died),
        "seconds": seconds,
        "done": stats["done"],
        "missing": jobs - len(counts),
        "twice": sum(count - 1 for count in counts.values()),
        "failed": stats["failed"],
        "returned": stats["returned"],
        "longest stall": max((gap for gap, _ in gaps), default=0),
        "longest stall after a death": max(after_deaths, default=0),
    }


def main() -> None:
    """Run it, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--deaths", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    found = run(arguments.jobs, arguments.deaths, arguments.seed)
    for name, value in found.items():
        print(f"{name}: {value:,.3f}" if isinstance(value, float) else f"{name}: {value:,}")
    assert found["done"] == arguments.jobs
    assert found["missing"] == 0
    assert found["twice"] <= found["failed"]


if __name__ == "__main__":
    main()
