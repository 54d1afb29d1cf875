"""A job is done by itself when the body of a `for` statement over its puller ends without an exception; never else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import byref
import pytest

from tests.processes import PATIENCE, eventually


class Queue:
    """A pusher and a puller, connected; jobs with their numbers as text."""

    def __init__(self) -> None:
        self.push = byref.Pusher("loops")
        self.pull = byref.Puller("loops", prefetch=8)
        self.push.wait_for_pullers(1, PATIENCE)

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self.push.send(b"job")

    def is_done(self, count: int = 1, failed: int = 0) -> None:
        """So many are done, and so many attempts have failed."""
        gc.collect()
        self.push.pullers  # noqa: B018  # A turn.
        stats = self.push.stats()
        assert (stats["done"], stats["failed"]) == (count, failed)

    def again(self) -> byref.Job:
        """A job that comes again."""
        job = self.pull.recv(PATIENCE)
        assert job.attempt > 1
        return job


@pytest.fixture
def queue() -> Iterator[Queue]:
    queue = Queue()
    with queue.push, queue.pull:
        yield queue


def test_a_body_that_ends(queue: Queue) -> None:
    queue.send(4)

    def returns() -> int:
        for job in queue.pull:
            return job.number
        return -1

    seen = [returns()]
    for job in queue.pull:
        seen.append(job.number)
        if len(seen) == 2:
            continue
        break
    else:
        raise AssertionError
    queue.is_done(3)
    for job in iter(queue.pull):  # It may be written so, too.
        seen.append(job.number)
        break
    queue.is_done(4)
    assert seen == [0, 1, 2, 3]


def test_a_body_that_raises(queue: Queue) -> None:
    queue.send(1)
    for error in (ValueError, KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit):
        with contextlib.suppress(error):
            for _job in queue.pull:
                raise error
        gc.collect()
    queue.is_done(0, failed=5)
    try:
        raise ValueError
    except ValueError:
        for job in queue.pull:  # Another exception is being handled: that is none of this body's.
            assert job.attempt == 6
            break
    queue.is_done(1, failed=5)


def test_an_exception_that_the_body_handles_is_none(queue: Queue) -> None:
    queue.send()
    for _job in queue.pull:
        with contextlib.suppress(ValueError):
            raise ValueError
        break
    queue.is_done(1)


@pytest.mark.parametrize(
    "take",
    [
        lambda pull: next(iter(pull)),
        lambda pull: next(iter(iter(pull))),
        lambda pull: next(zip(pull, "a", strict=False))[0],
        lambda pull: next(map(lambda job: job, pull)),
        lambda pull: next(filter(None, pull)),
        lambda pull: next(enumerate(pull))[1],
        lambda pull: next(itertools.islice(pull, 1)),
        lambda pull: pull.__iter__().__next__(),
    ],
)
def test_who_takes_one_by_hand_answers_it(queue: Queue, take: Callable[[byref.Puller], byref.Job]) -> None:
    queue.send()
    job = take(queue.pull)
    queue.is_done(0)
    assert not job.answered
    del job
    queue.is_done(0, failed=1)
    job = take(queue.pull)
    assert job.attempt == 2
    job.done()
    queue.is_done(1, failed=1)


def test_what_takes_several_answers_none(queue: Queue) -> None:
    queue.send(6)
    jobs = list(itertools.islice(queue.pull, 2))
    first, second, *_ = itertools.islice(queue.pull, 2)
    jobs += [first, second]
    with ThreadPoolExecutor(2) as pool:
        jobs += pool.map(lambda job: job, itertools.islice(queue.pull, 2))
    queue.is_done(0)
    for job in jobs:
        job.done()
    queue.is_done(6)


def test_zip_gives_jobs_to_be_answered_and_loses_none(queue: Queue) -> None:
    queue.send(3)
    for job, _letter in zip(queue.pull, "ab", strict=False):
        job.done()
    # It took a third one, for which there was no letter.
    queue.is_done(2, failed=1)
    queue.again().done()
    queue.is_done(3, failed=1)


def test_one_that_is_taken_by_hand_beside_a_loop(queue: Queue) -> None:
    queue.send(4)
    jobs = iter(queue.pull)
    first = next(jobs)
    second = None
    for job in jobs:
        if second is None:
            second = next(jobs)
            continue
        assert job.number == 3
        break
    queue.is_done(2)
    assert second is not None
    assert (first.number, second.number) == (0, 2)
    second.done()
    del first
    queue.is_done(3, failed=1)


def test_comprehensions_are_loops(queue: Queue) -> None:
    queue.send(3)

    def work(job: byref.Job) -> int:
        if job.number == 2:
            queue.pull.close()
        return job.number

    assert [work(job) for job in queue.pull] == [0, 1, 2]
    queue.is_done(3)


def test_generator_expressions_that_are_given_up(queue: Queue) -> None:
    queue.send(2)
    assert any(job.number == 0 for job in queue.pull)
    queue.is_done(0, failed=1)  # It was never resumed: its body has not ended.
    numbers = (job.number for job in queue.pull)
    assert next(numbers) == 1
    assert next(numbers) == 0
    queue.is_done(1, failed=1)
    numbers.close()
    queue.is_done(1, failed=2)
    queue.again().done()


def test_a_generator_answers_when_it_goes_on(queue: Queue) -> None:
    def jobs() -> Iterator[byref.Job]:
        for job in queue.pull:  # noqa: UP028
            yield job

    queue.send(3)
    for job in jobs():
        if job.number == 1:
            break
    queue.is_done(1, failed=1)
    with contextlib.suppress(ZeroDivisionError):
        for _job in jobs():
            raise ZeroDivisionError
    queue.is_done(1, failed=2)

    def forwarded() -> Iterator[byref.Job]:
        yield from queue.pull

    for job in itertools.islice(forwarded(), 2):
        job.done()
    queue.is_done(3, failed=2)


def test_a_loop_in_another_iterator(queue: Queue) -> None:
    """A class of the user's that hands jobs on: its own loop is none over the puller."""

    class Logged:
        def __iter__(self) -> Iterator[byref.Job]:
            return iter(queue.pull)

    queue.send(1)
    for job in Logged():
        assert not job.answered
        break
    queue.is_done(0)
    job.done()
    queue.is_done(1)


def test_coroutines(queue: Queue) -> None:
    async def numbers(pull: Any) -> AsyncIterator[int]:
        async for job in pull:
            yield job.number

    async def main() -> None:
        queue.send(5)
        async for _job in queue.pull:
            break
        queue.is_done(1)
        with contextlib.suppress(ZeroDivisionError):
            async for _job in queue.pull:
                raise ZeroDivisionError
        queue.is_done(1, failed=1)
        by_hand = await anext(aiter(queue.pull))
        queue.is_done(1, failed=1)
        by_hand.done()
        async for _job in aiter(queue.pull):
            break
        queue.is_done(3, failed=1)
        given_up = numbers(queue.pull)
        assert [await anext(given_up), await anext(given_up)] == [4, 1]
        queue.is_done(4, failed=1)
        await given_up.aclose()
        queue.is_done(4, failed=2)

        async def work() -> None:
            async for _job in queue.pull:
                await asyncio.sleep(PATIENCE)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        queue.is_done(4, failed=3)
        queue.again().done()

    asyncio.run(main())
    eventually(lambda: queue.push.pending == 0, "each is answered")
