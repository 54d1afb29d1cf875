"""The life of the interpreter: its beginning, its copies, its kinds, its end."""

import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any

import byref
import numpy as np
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line

Spawn = Callable[..., Child]

SUB_INTERPRETER = """
import sys
if sys.version_info < (3, 13):
    import _xxsubinterpreters as interpreters
else:
    import _interpreters as interpreters
if {first}:
    import byref
number = interpreters.create()
attempt = "try: import byref\\nexcept ImportError as problem: print(problem, flush=True)\\nelse: print('imported')"
interpreters.run_string(number, attempt)
interpreters.destroy(number)
import byref
with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
    pub.wait_for_subscribers(timeout=30)
    pub.send(bytes(10_000))
    print(sub.recv(timeout=30).nbytes)
"""


@pytest.mark.parametrize("first", [False, True])
def test_sub_interpreters_are_refused(first: bool, endpoints: Endpoints) -> None:
    program = [sys.executable, "-W", "ignore", "-c", SUB_INTERPRETER.format(first=first)]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60)
    refused = "byref does not work in sub-interpreters; import it in the main one, or use another process"
    if sys.version_info >= (3, 13):  # Its sub-interpreters are isolated, and take no module that has not asked for it.
        refused = "module byref._byref does not support loading in subinterpreters"
    assert ran.stdout.splitlines() == [refused, "10000"]
    assert (ran.returncode, ran.stderr) == (0, "")


def echo(count: int) -> int:
    """Receives messages of "work", and sends what each of them was on "done"; gives how many there were."""
    with byref.Publisher("done") as pub, byref.Subscriber("work") as sub:
        pub.wait_for_subscribers(timeout=30)
        for _ in range(count):
            pub.send(sub.recv(timeout=30))
        pub.flush(timeout=30)
    return count


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_of_multiprocessing(method: str, endpoints: Endpoints) -> None:
    """Whatever way they start, workers have endpoints of their own, and the parent's go on."""
    context: BaseContext = multiprocessing.get_context(method)
    pub, sub = endpoints.pair()
    work, done = endpoints.publisher("work"), endpoints.subscriber("done")
    pub.send(payload(7, 100_000))
    held = sub.recv(timeout=30)
    view = np.asarray(held)
    workers: list[Any] = [context.Process(target=echo, args=(20,)) for _ in range(2)]  # type: ignore[attr-defined]
    for worker in workers:
        worker.start()
    work.wait_for_subscribers(2, timeout=30)
    for seed in range(20):
        work.send(payload(seed, 30_000))
        pub.send(payload(seed, 30_000))
    for _ in range(40):
        msg = done.recv(timeout=30)
        assert is_payload(msg, msg.sequence, 30_000)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert all(is_payload(sub.recv(timeout=30), seed, 30_000) for seed in range(20))
    assert is_payload(view, 7, 100_000)


def worker_with_inherited_messages(line: Line) -> None:
    """Forks workers while it holds messages and waits in threads; they use what they inherited, and their own."""
    context = multiprocessing.get_context("fork")
    with byref.Publisher("t") as pub, byref.Subscriber("t") as sub, byref.Subscriber("nothing comes") as idle:
        pub.wait_for_subscribers(timeout=30)
        sub.wait_for_publishers(timeout=30)
        pub.send({"a": payload(3, 50_000), "b": [payload(4, 100)]})
        msg = sub.recv(timeout=30)
        value = msg.value
        threading.Thread(target=lambda: list(idle), daemon=True).start()
        time.sleep(0.1)

        def look(answers: Any) -> None:
            right = is_payload(value["a"], 3, 50_000) and is_payload(value["b"][0], 4, 100)
            answers.put(right and is_payload(msg.value["a"], 3, 50_000))

        answers = context.SimpleQueue()
        workers = [context.Process(target=look, args=(answers,)) for _ in range(5)]
        for worker in workers:
            worker.start()
        line.tell([answers.get() for _ in workers])
        for worker in workers:
            worker.join(30)
        line.tell([worker.exitcode for worker in workers])


def test_forked_workers_read_what_their_parent_holds(spawn: Spawn) -> None:
    child = spawn(worker_with_inherited_messages)
    assert child.hear() == [True] * 5
    assert child.hear() == [0] * 5
    child.finish()


def end_in_the_middle(line: Line, how: str) -> None:
    """Ends while threads receive, send, and run a queue."""
    pub, sub, queue = byref.Publisher("t"), byref.Subscriber("t"), byref.EventQueue()
    kept: list[Any] = []
    queue.subscribe("t", lambda msg: kept.append(msg.value) if len(kept) < 100 else None)
    pub.wait_for_subscribers(2, timeout=30)
    globals()["kept"] = kept

    def send() -> None:
        for number in range(1 << 60):
            pub.send({"number": number, "frame": payload(number, 5_000)})

    for job in (send, lambda: [msg.value for msg in sub], queue.run):
        threading.Thread(target=job, daemon=True).start()
    while len(kept) < 10:
        time.sleep(0.01)
    line.tell("ends")
    if how == "exception":
        raise SystemExit(3)


@pytest.mark.parametrize(("how", "code"), [("return", 0), ("exception", 3)])
def test_the_end_finds_threads_at_work(how: str, code: int, spawn: Spawn) -> None:
    for _ in range(3):
        child = spawn(end_in_the_middle, how)
        assert child.hear() == "ends"
        assert child.process.wait(40) == code
        assert child.output() == ""
