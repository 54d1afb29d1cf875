"""Pushers and pullers across processes: each job at one puller, answers, deaths, freezes, bounds."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pytest

from tests.processes import PATIENCE, ROOT, Child, Line, eventually

Spawn = Callable[..., Child]


def puller(line: Line, settings: dict[str, Any]) -> None:
    """Takes jobs and answers them as it is told; says number, attempt and text of each."""
    pull = byref.Puller("jobs", **settings)
    line.tell("there")
    kept: dict[int, byref.Job] = {}
    while (order := line.hear()) != "end":
        match order:
            case ["take", count]:
                taken = [pull.recv(PATIENCE) for _ in range(count)]
                kept |= {job.number: job for job in taken}
                line.tell([[job.number, job.attempt, bytes(job).decode()] for job in taken])
            case ["answer", number, how, *arguments]:
                getattr(kept.pop(number), how)(*arguments)
                line.tell("answered")
            case ["work", count]:
                done = 0
                while done < count:
                    for job in pull:
                        done += 1
                        assert len(job) > 0
                        if done == count:
                            break
                line.tell("worked")
            case ["nothing"]:
                line.tell(pull.try_recv() is None)
            case ["close"]:
                pull.close()
                line.tell("closed")


class Other:
    """A puller in a process of its own."""

    def __init__(self, spawn: Spawn, **settings: Any) -> None:
        self.child = spawn(puller, settings)
        assert self.child.hear() == "there"

    def __call__(self, *order: Any) -> Any:
        self.child.tell(order)
        return self.child.hear()

    def take(self, count: int = 1) -> Any:
        return self("take", count)


def others(spawn: Spawn, push: byref.Pusher, count: int, **settings: Any) -> list[Other]:
    """Pullers, in the order in which they came."""
    made = []
    for number in range(count):
        made.append(Other(spawn, **settings))
        push.wait_for_pullers(number + 1, PATIENCE)
    return made


def test_each_job_goes_to_the_longest_idle_puller(spawn: Spawn) -> None:
    with byref.Pusher("jobs") as push:
        one, two, three = others(spawn, push, 3)
        for text in "abcd":
            push.send(text.encode())
        assert [other.take() for other in (three, two, one)] == [[[2, 1, "c"]], [[1, 1, "b"]], [[0, 1, "a"]]]
        assert push.stats()["waiting"] == 1
        two("answer", 1, "done")
        assert two.take() == [[3, 1, "d"]]
        for other, number in ((three, 2), (one, 0), (two, 3)):
            other("answer", number, "done")
            eventually(lambda: push.pending in {0, 1, 2}, "it is counted")
        push.join(PATIENCE)
        assert push.stats()["done"] == 4


def test_what_is_pushed_before_anybody_comes_is_kept(spawn: Spawn) -> None:
    with byref.Pusher("jobs") as push:
        values = [b"bytes", np.arange(3000), {"a": [1, 2.5, "x"]}, b""]
        for value in values:
            push.send(value, headers={"kind": type(value).__name__})
        with byref.Puller("jobs", prefetch=4) as pull:
            jobs = [pull.recv(PATIENCE) for _ in values]
            assert bytes(jobs[0]) == b"bytes"
            assert jobs[1].value.tolist() == list(range(3000))
            assert np.asarray(jobs[1]).base is not None
            assert jobs[1].shape == (3000,)
            assert memoryview(jobs[1]).readonly
            assert jobs[2].value == {"a": [1, 2.5, "x"]}
            assert jobs[3]
            assert len(jobs[3]) == 0
            assert [job.headers["kind"] for job in jobs] == ["bytes", "ndarray", "dict", "bytes"]
            assert jobs[0].pusher.pid == os.getpid()
            assert [job.attempt for job in jobs] == [1] * 4
            assert pull.unanswered == 4
            for job in jobs:
                job.done()
            push.join(PATIENCE)
            assert jobs[1].value.sum() == 4498500, "a view outlives the answer"


@pytest.mark.parametrize("size", [8, 100_000])
def test_the_jobs_of_a_killed_puller_go_to_another_one(spawn: Spawn, size: int) -> None:
    with byref.Pusher("jobs", max_attempts=9) as push:
        (victim,) = others(spawn, push, 1, prefetch=5)
        for number in range(7):
            push.send(f"{number}".ljust(size).encode())
        assert [job[0] for job in victim.take(3)] == [0, 1, 2]
        victim("answer", 1, "done")
        heir = Other(spawn, prefetch=9)
        push.wait_for_pullers(2, PATIENCE)
        copied = push.stats()["copied_bytes"]
        victim.child.kill()
        got = heir.take(6)
        attempts = sorted((number, attempt) for number, attempt, _ in got)
        assert attempts == [(0, 2), (2, 2), (3, 1), (4, 1), (5, 1), (6, 1)]
        assert all(text == f"{number}".ljust(size) for number, _, text in got)
        assert push.stats()["copied_bytes"] == copied, "by reference"
        for number, *_ in got:
            heir("answer", number, "done")
        push.join(PATIENCE)
        stats = push.stats()
        assert (stats["done"], stats["failed"], stats["rejected"]) == (7, 2, 0)
        assert stats["returned"] >= 2


def test_at_most_once(spawn: Spawn) -> None:
    with byref.Pusher("jobs", redeliver=False) as push:
        (victim,) = others(spawn, push, 1, prefetch=4)
        for text in "abcd":
            push.send(text.encode(), headers={"text": text})
        victim.take(2)
        victim.child.kill()
        (heir,) = others(spawn, push, 1, prefetch=4)
        assert heir.take(2) == [[2, 1, "c"], [3, 1, "d"]], "what was never taken"
        lost = push.rejected
        assert [(bytes(job), job.attempts, job.headers["text"]) for job in lost] == [(b"a", 1, "a"), (b"b", 1, "b")]
        assert all(job.may_have_run and "may have been done" in job.reason for job in lost)
        for job in push.take_rejected():
            push.send(job)
        assert push.rejected == []
        for number in (2, 3):
            heir("answer", number, "done")
        assert [text for _, _, text in heir.take(2)] == ["a", "b"], "whoever wants them done sends them again"
        for number in (4, 5):
            heir("answer", number, "done")
        push.join(PATIENCE)


def test_retry_reject_and_attempts(spawn: Spawn) -> None:
    with byref.Pusher("jobs", max_attempts=3) as push:
        (other,) = others(spawn, push, 1)
        push.send(b"job")
        assert other.take() == [[0, 1, "job"]]
        other("answer", 0, "retry")
        assert other.take() == [[0, 2, "job"]]
        began = time.monotonic()
        other("answer", 0, "retry", 0.2)
        assert other.take() == [[0, 3, "job"]]
        assert time.monotonic() - began >= 0.19
        other("answer", 0, "retry")
        push.join(PATIENCE)
        push.send(b"nonsense")
        other.take()
        other("answer", 1, "reject", "it is nonsense")
        push.join(PATIENCE)
        failed, nonsense = push.rejected
        assert (failed.number, failed.attempts, bytes(failed)) == (0, 3, b"job")
        assert (nonsense.attempts, nonsense.reason, nonsense.may_have_run) == (1, "it is nonsense", False)
        assert "max_attempts" in failed.reason


@pytest.mark.parametrize("redeliver", [True, False])
def test_a_frozen_puller_loses_its_jobs_and_comes_back(spawn: Spawn, redeliver: bool) -> None:
    with byref.Pusher("jobs", max_time=0.5, redeliver=redeliver) as push:
        (frozen,) = others(spawn, push, 1, prefetch=3)
        for text in "abcd":
            push.send(text.encode())
        frozen.take(1)
        frozen.child.signal(signal.SIGSTOP)
        other = Other(spawn, prefetch=4)
        push.wait_for_pullers(2, PATIENCE)
        want = 4 if redeliver else 2
        got = other.take(want)
        numbers = sorted(number for number, *_ in got)
        assert numbers == ([0, 1, 2, 3] if redeliver else [2, 3])
        if not redeliver:
            # Of the next record nobody can tell whether a frozen puller is about to take it.
            assert [job.number for job in push.rejected] == [0, 1]
        for number in numbers:
            other("answer", number, "done")
        push.join(PATIENCE)
        frozen.child.signal(signal.SIGCONT)
        frozen("answer", 0, "done")
        eventually(lambda: push.stats()["late"] == 1, "its answer is late")
        assert frozen("nothing"), "what was taken back is not there any more"
        other.child.end()
        eventually(lambda: push.stats()["pullers"] == 1, "the other one is gone")
        number = push.send(b"again")
        assert frozen.take() == [[number, 1, "again"]]
        frozen("answer", number, "done")
        push.join(PATIENCE)


def test_a_puller_that_closes_keeps_what_it_took(spawn: Spawn) -> None:
    with byref.Pusher("jobs") as push:
        one, two = *others(spawn, push, 1, prefetch=2), Other(spawn, prefetch=2)
        push.wait_for_pullers(2, PATIENCE)
        for text in "abcd":
            push.send(text.encode())
        one.take(1)
        one("close")
        eventually(lambda: push.stats()["pullers"] == 1, "it has left")
        two.take(2)
        one("answer", 0, "done")
        eventually(lambda: push.pending == 3, "it is done")
        for number in (1, 3):
            two("answer", number, "done")
        assert two.take(1)[0][:2] == [2, 1]
        two("answer", 2, "done")
        push.join(PATIENCE)
        assert push.stats()["failed"] == 0


def test_a_send_waits_at_the_bound(spawn: Spawn) -> None:
    with byref.Pusher("jobs", max_pending=10) as push:
        for _ in range(10):
            push.send(b"x")
        with pytest.raises(byref.Timeout, match=r"queue 'jobs'.*10 jobs are pending"):
            push.send(b"x", timeout=0.05)
        with pytest.raises(byref.Timeout):
            push.join(timeout=0.05)
        (other,) = others(spawn, push, 1)
        other.child.tell(["work", 2000])
        for _ in range(1990):
            push.send(b"x", timeout=PATIENCE)
            assert push.pending <= 10
        push.join(PATIENCE)
        assert other.child.hear() == "worked"
        assert push.stats()["done"] == 2000


def test_all_memory_bounds_it_too(spawn: Spawn) -> None:
    with byref.Pusher("jobs", max_memory=1 << 20) as push:
        (other,) = others(spawn, push, 1, prefetch=3)
        other.child.tell(["work", 100])
        for _ in range(100):
            push.send(bytes(200_000), timeout=PATIENCE)
        push.join(PATIENCE)
        with pytest.raises(byref.PoolExhausted):
            push.send(bytes(2 << 20))


def worker(line: Line, queue: str, prefetch: int) -> None:
    """Does jobs until it is told to end; says how many."""
    count = 0
    with byref.Puller(queue, prefetch=prefetch) as pull:
        stop = threading.Thread(target=lambda: (line.hear(), pull.close()), daemon=True)
        stop.start()
        for _job in pull:
            count += 1
    line.tell(count)


def test_several_pushers_and_pullers(spawn: Spawn) -> None:
    pushers = [byref.Pusher("jobs", max_pending=50) for _ in range(3)]
    workers = [spawn(worker, "jobs", prefetch) for prefetch in (1, 4, 20)]
    for push in pushers:
        push.wait_for_pullers(3, PATIENCE)

    def send(push: byref.Pusher) -> None:
        for _ in range(3000):
            push.send(b"x", timeout=PATIENCE)
        push.join(PATIENCE)

    threads = [threading.Thread(target=send, args=(push,)) for push in pushers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in workers:
        child.tell("end")
    counts = [child.hear() for child in workers]
    assert sum(counts) == 9000
    assert min(counts) > 0
    assert [push.stats()["done"] for push in pushers] == [3000] * 3
    for push in pushers:
        push.close()


def mortal(line: Line, seed: int, path: str) -> None:
    """Works until it is killed; writes down what it has done before it says so."""
    diary = os.open(path, os.O_WRONLY | os.O_APPEND)
    with byref.Puller("jobs", prefetch=1 + seed % 5) as pull:
        line.tell("there")
        for job in pull:
            os.write(diary, job.number.to_bytes(4, "little"))


def test_pullers_that_are_killed_at_random(spawn: Spawn, tmp_path: Path) -> None:
    """Every job is done; none is done twice unless the puller that had taken it first was killed."""
    kills, jobs = 25, 4000
    diary = tmp_path / "diary"
    diary.touch()

    def hire(seed: int) -> Child:
        child = spawn(mortal, seed, str(diary))
        assert child.hear() == "there"
        return child

    with byref.Pusher("jobs", max_pending=100) as push:
        pushing = threading.Thread(target=lambda: [push.send(b"x", timeout=PATIENCE) for _ in range(jobs)])
        alive = [hire(number) for number in range(3)]
        pushing.start()
        for number in range(kills):
            victim = alive.pop(0)
            time.sleep(0.005 * (number % 7))
            victim.kill()
            alive.append(hire(number))
        pushing.join()
        push.join(PATIENCE)
        stats = push.stats()
    written = diary.read_bytes()
    done = Counter(int.from_bytes(written[at : at + 4], "little") for at in range(0, len(written), 4))
    assert set(done) == set(range(jobs)), "every job is done"
    assert stats["done"] == jobs
    twice = sum(count - 1 for count in done.values())
    assert twice <= stats["failed"] <= kills * 5, "only what had been taken is given again as an attempt"


def test_the_bench_of_deaths_accounts_for_each_job() -> None:
    command = [sys.executable, "-m", "bench.deaths", "--jobs", "3000", "--deaths", "8"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert run.returncode == 0, run.stderr
    assert "done: 3,000\nmissing: 0\n" in run.stdout


# ---- within one process ----


@pytest.fixture
def queue() -> Any:
    """A pusher and a puller, connected."""
    with byref.Pusher("jobs", max_attempts=2) as push, byref.Puller("jobs", prefetch=2) as pull:
        push.wait_for_pullers(1, PATIENCE)
        yield push, pull


def test_a_loop_answers_by_itself(queue: tuple[byref.Pusher, byref.Puller]) -> None:
    push, pull = queue
    for text in (b"done", b"rejected", b"raises", b"last"):
        push.send(text)
    seen = []

    def work() -> None:
        for job in pull:
            seen.append((bytes(job), job.attempt))
            if bytes(job) == b"rejected":
                job.reject("no")
            if bytes(job) == b"raises":
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert seen == [(b"done", 1), (b"rejected", 1), (b"raises", 1)]
    for job in pull:
        seen.append((bytes(job), job.attempt))
        if len(seen) == 5:
            break
    assert seen[3:] == [(b"last", 1), (b"raises", 2)]
    push.join(PATIENCE)
    assert (push.stats()["done"], push.stats()["failed"]) == (3, 1)
    assert [rejected.reason for rejected in push.rejected] == ["no"]


def test_a_loop_in_a_function_that_raises_or_returns(queue: tuple[byref.Pusher, byref.Puller]) -> None:
    push, pull = queue

    def first(raises: bool) -> int:
        for job in pull:
            if raises:
                raise KeyError
            return job.attempt
        return 0

    push.send(b"x")
    with pytest.raises(KeyError):
        first(True)
    assert first(False) == 2
    push.join(PATIENCE)


def test_a_job_that_is_dropped_has_failed(queue: tuple[byref.Pusher, byref.Puller]) -> None:
    push, pull = queue
    push.send(b"x")
    job = pull.recv(PATIENCE)
    message = job.message
    del job
    gc.collect()
    again = pull.recv(PATIENCE)
    assert again.attempt == 2
    assert bytes(message) == b"x"
    again.done()
    with pytest.raises(ValueError, match="job 0 was answered before"):
        again.retry()
    assert again.answered
    push.join(PATIENCE)


def test_a_puller_that_answers_nothing_is_told_so(queue: tuple[byref.Pusher, byref.Puller]) -> None:
    push, pull = queue
    for _ in range(3):
        push.send(b"x")
    kept = [pull.recv(PATIENCE), pull.recv(PATIENCE)]
    with pytest.raises(byref.Timeout, match="2 of its jobs are not answered"):
        pull.recv(timeout=0.05)
    assert pull.try_recv() is None
    for job in kept:
        job.done()
    pull.recv(PATIENCE).done()


def test_coroutines(queue: tuple[byref.Pusher, byref.Puller]) -> None:
    push, pull = queue

    async def work() -> None:
        async for job in pull:
            assert bytes(job) == b"b"
            await asyncio.sleep(0)
            raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(byref.Timeout):
            await pull.recv_async(timeout=0.02)
        for text in (b"a", b"b", b"c"):
            push.send(text)
        job = await pull.recv_async(timeout=PATIENCE)
        job.done()
        with pytest.raises(ZeroDivisionError):
            await work()
        seen = []
        async for job in pull:
            seen.append((bytes(job), job.attempt))
            if len(seen) == 2:
                break
        assert sorted(seen) == [(b"b", 2), (b"c", 1)]
        closing = asyncio.get_running_loop().call_later(0.05, pull.close)
        async for job in pull:
            raise AssertionError(job)
        closing.cancel()

    asyncio.run(main())
    push.join(PATIENCE)
    assert push.stats()["done"] == 3


def test_an_event_queue_answers_by_itself(queue: tuple[byref.Pusher, byref.Puller]) -> None:
    push, pull = queue
    seen: list[bytes] = []

    def work(job: byref.Job) -> None:
        seen.append(bytes(job))
        if bytes(job) == b"bad":
            raise ZeroDivisionError
        if bytes(job) == b"worse":
            job.reject("worse")

    with byref.EventQueue(on_error="log") as events:
        receiver = events.subscribe(pull, work)
        for text in (b"good", b"bad", b"worse"):
            push.send(text)
        while push.pending:
            events.dispatch(timeout=PATIENCE)
        assert receiver.topic == "jobs"
        receiver.close()
    assert sorted(seen) == [b"bad", b"bad", b"good", b"worse"]
    assert sorted(rejected.reason[:5] for rejected in push.rejected) == ["it fa", "worse"]
    push.send(b"x")
    pull.recv(PATIENCE).done()  # It goes on without the receiver.


def test_an_event_queue_awaits_coroutine_functions(queue: tuple[byref.Pusher, byref.Puller]) -> None:
    push, pull = queue
    seen: list[bytes] = []

    async def work(job: byref.Job) -> None:
        await asyncio.sleep(0.01)
        seen.append(bytes(job))
        if bytes(job) == b"bad":
            raise ZeroDivisionError

    async def main() -> None:
        with byref.EventQueue(on_error="log") as events:
            events.subscribe(pull, work)
            for text in (b"good", b"bad"):
                push.send(text)
            running = asyncio.create_task(events.run_async())
            while push.pending:
                await asyncio.sleep(0.01)
            events.stop()
            await running

    asyncio.run(main())
    assert sorted(seen) == [b"bad", b"bad", b"good"]
    assert (push.stats()["done"], len(push.rejected)) == (1, 1)


@pytest.mark.parametrize("columns", [1, 60])
def test_rows_are_jobs_of_their_own(queue: tuple[byref.Pusher, byref.Puller], columns: int) -> None:
    push, pull = queue
    rows = np.arange(6 * columns, dtype=np.float64).reshape(6, columns)
    for sent in (rows, rows[::-1], np.asfortranarray(rows)):
        numbers = push.send_many(sent, headers={"a": 1}, timeout=PATIENCE)
        for number, row in zip(numbers, sent, strict=True):
            job = pull.recv(PATIENCE)
            assert (job.number, job.headers, job.value.tolist()) == (number, {"a": 1}, row.tolist())
            job.done()
        push.join(PATIENCE)
    assert list(push.send_many([b"ab", b"cd"])) == [18, 19]
    assert [bytes(job) for job in (pull.recv(PATIENCE), pull.recv(PATIENCE))] == [b"ab", b"cd"]
    with pytest.raises(ValueError, match=r"2000 jobs at once are more than max_pending=1000"):
        push.send_many(np.zeros((2000, 2)))
    assert push.stats()["pushed"] == 20


def test_what_makes_no_sense(queue: tuple[byref.Pusher, byref.Puller]) -> None:
    push, pull = queue
    for bad in ("", "jobs/*", "a//b", "x" * 2000):
        with pytest.raises(byref.InvalidTopic):
            byref.Pusher(bad)
        with pytest.raises(byref.InvalidTopic):
            byref.Puller(bad)
    for settings in ({"max_pending": 0}, {"max_attempts": 0}, {"max_time": 0}, {"max_time": -1}, {"max_memory": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            byref.Pusher("jobs", **settings)
    for prefetch in (0, -1, 1 << 40):
        with pytest.raises(ValueError, match="prefetch"):
            byref.Puller("jobs", prefetch=prefetch)
    with pytest.raises(TypeError):
        push.send(object())
    push.send(b"x")
    job = pull.recv(PATIENCE)
    for delay in (-1, float("nan")):
        with pytest.raises(ValueError, match="delay"):
            job.retry(delay)
    with pytest.raises(ValueError, match="one job at a time"):
        byref.EventQueue().subscribe(pull, print, 10)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"job\.value"):
        pickle.dumps(job)
    job.done()
    push.close()
    pull.close()
    for call in (lambda: push.send(b"x"), push.join, lambda: pull.recv(), lambda: push.pending):
        with pytest.raises(byref.Closed, match="queue 'jobs'"):
            call()
    assert list(pull) == []


def forks(line: Line) -> None:
    """Forks with a job in its hands; says how its child ended, and what has become of the job."""
    with byref.Pusher("jobs") as push, byref.Puller("jobs") as pull:
        push.send(b"x")
        job = pull.recv(PATIENCE)
        child = os.fork()
        if child == 0:
            try:
                for call in (job.done, lambda: push.send(b"x"), pull.try_recv):
                    try:
                        call()
                    except byref.Forked:
                        continue
                    os._exit(2)
                del job
                gc.collect()
                os._exit(0)
            finally:
                os._exit(1)
        line.tell(os.waitpid(child, 0)[1])
        time.sleep(0.05)
        line.tell([push.pending, push.stats()["failed"]])
        job.done()
        push.join(PATIENCE)
    line.tell("done")


def test_a_forked_child_answers_for_nobody(spawn: Spawn) -> None:
    child = spawn(forks)
    assert (child.hear(), child.hear(), child.hear()) == (0, [1, 0], "done")


def test_a_puller_that_is_full_of_jobs_costs_no_processor_time() -> None:
    with byref.Pusher("jobs") as push, byref.Puller("jobs") as pull:
        for _ in range(10):
            push.send(b"x")
        kept = pull.recv(PATIENCE)
        time.sleep(0.3)
        began = time.process_time()
        time.sleep(1)
        assert time.process_time() - began < 0.05
        kept.done()
        for _ in range(9):
            pull.recv(PATIENCE).done()
        push.join(PATIENCE)


# ---- examples ----


@pytest.mark.parametrize(("example", "arguments"), [("scheduler", ["100000", "8"]), ("cameras", ["60"])])
def test_example(example: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", f"examples.{example}", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert run.returncode == 0, run.stderr
    assert ("100000 of 100000 jobs done" if example == "scheduler" else "0 bytes copied") in run.stdout
    source = (ROOT / "examples" / f"{example}.py").read_text()
    assert source.count("\n") <= 60
