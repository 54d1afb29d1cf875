"""When does a copy beat a copy-on-write view?  Run: ``.venv/bin/python docs/crossover.py``

For messages of 64 KiB to 64 MiB it compares ``np.array(msg)``, a full private copy, with ``msg.writable()`` and one
byte written to each of k pages, spread evenly. Every figure is the best of many interleaved rounds. docs/copies.md
explains the columns and the result.
"""

import argparse
import mmap
import tempfile
import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import byref
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

PAGE = mmap.PAGESIZE
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def touch(view: Bytes, pages: int) -> None:
    """Write one byte to so many pages of the view, spread evenly."""
    if pages:
        view[:: len(view) // pages] = 1


def copy_fresh(msg: byref.Message) -> None:
    """A copy into memory that is allocated for it, and freed again."""
    np.array(msg)


def copy_kept(msg: byref.Message, target: Bytes) -> None:
    """A copy into memory that is there already."""
    np.copyto(target, np.asarray(msg))


def write_pages(msg: byref.Message, pages: int) -> None:
    """A private view, written to here and there, and let go."""
    touch(msg.writable(), pages)


def read_pages(msg: byref.Message) -> None:
    """A private view of which every page is read and none is written."""
    int(msg.writable()[::PAGE].max())


def kept_memory(size: int, source: int) -> Bytes:
    """Memory to copy into, half a page out of step with the source.

    Where both start at nearly the same place of a page, some processors copy many times slower.
    """
    memory = np.ones(size + PAGE, np.uint8)
    start = (source + PAGE // 2 - memory.ctypes.data) % PAGE
    return memory[start : start + size]


def best_us(actions: list[Callable[[], None]], rounds: int) -> list[float]:
    """The least time that each action took, in microseconds."""
    best = [float("inf")] * len(actions)
    for _ in range(rounds):
        for index, action in enumerate(actions):
            start = time.perf_counter_ns()
            action()
            best[index] = min(best[index], (time.perf_counter_ns() - start) / 1000)
    return best


def crossover(pages: list[int], views: list[float], copy: float) -> float:
    """How many touched pages cost as much as the copy; infinite if not even all of them do."""
    for i in range(1, len(pages)):
        if views[i] >= copy > views[i - 1]:
            between = (copy - views[i - 1]) / (views[i] - views[i - 1])
            return pages[i - 1] + between * (pages[i] - pages[i - 1])
    return 0.0 if views[0] >= copy else float("inf")


def measure(subscriber: byref.Subscriber, publisher: byref.Publisher, size: int, seconds: float) -> str:
    """One row of the table."""
    with publisher.loan(size) as payload:
        payload[:] = 1
    msg = subscriber.recv(timeout=10)
    target = kept_memory(size, np.asarray(msg).ctypes.data)
    pages = [0, 1, *(max(2, int(size // PAGE * share)) for share in SHARES)]
    actions: list[Callable[[], None]] = [partial(copy_fresh, msg), partial(copy_kept, msg, target)]
    actions += [partial(write_pages, msg, n) for n in pages]
    actions += [partial(read_pages, msg)]
    best_us(actions, 2)
    once = sum(best_us(actions, 1)) / 1e6
    fresh, kept, *views, read = best_us(actions, max(5, int(seconds / once)))

    def share(copy: float) -> str:
        number = crossover(pages, views, copy)
        return "never" if number == float("inf") else f"{number:.0f} ({number * PAGE / size:.0%})"

    named = f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"
    times = " | ".join(f"{each:.1f}" for each in (fresh, kept, views[0], views[1], views[4], views[-1], read))
    return f"| {named} | {times} | {share(fresh)} | {share(kept)} |"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="for each size (%(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64 << (10 + 2 * i) for i in range(6)], help="in bytes")
    options = parser.parse_args()
    print(f"Microseconds; pages of {PAGE} bytes.\n")
    print("| message | new copy | kept copy | view: 0 | 1 | 1/8 | all written | all read | = new | = kept |")
    print("| --- " + "| ---: " * 9 + "|")
    with (
        tempfile.TemporaryDirectory() as directory,
        patch.dict("os.environ", BYREF_DIR=directory),
        byref.Publisher("crossover", max_memory=1 << 30) as publisher,
        byref.Subscriber("crossover") as subscriber,
    ):
        publisher.wait_for_subscribers(timeout=10)
        for size in options.sizes:
            print(measure(subscriber, publisher, size, options.seconds), flush=True)


if __name__ == "__main__":
    main()
