"""Timers of event queues: when they are called, beside what, and what ends them."""

import asyncio
import functools
import gc
import logging
import math
import os
import re
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import byref
import pytest

from tests import processes
from tests.conftest import Endpoints
from tests.processes import Child, Line, eventually, settled

Spawn = Callable[..., Child]

MS = 1_000_000


@pytest.fixture
def queue() -> Iterator[byref.EventQueue]:
    """A queue that is closed at the test's end."""
    with byref.EventQueue() as made:
        yield made


# ---- when ------------------------------------------------------------------------------------------------------------


def test_each_is_called_once_in_the_order_of_its_time_and_not_before_it(queue: byref.EventQueue) -> None:
    called: list[tuple[str, int]] = []
    waits = {"c": 0.03, "a": 0.0, "b": 0.01, "b too": 0.01, "last": 0.05}
    while True:
        begun = time.monotonic_ns()
        timers = {
            name: queue.call_later(seconds, lambda name: called.append((name, time.monotonic_ns())), name, name=name)
            for name, seconds in waits.items()
        }
        if time.monotonic_ns() - begun < 5 * MS:
            break
        for timer in timers.values():  # Made so slowly that their times may be in another order.
            timer.cancel()
    later = queue.call_later(3600, called.append, ("never", 0))
    assert all(timer.remaining is not None and timer.calls == 0 for timer in timers.values())
    queue.call_later(0.06, queue.stop)
    queue.run(timeout=30)
    assert [name for name, _ in called] == ["a", "b", "b too", "c", "last"]
    for name, at in called:
        assert at - begun >= waits[name] * 1e9, f"{name} came early"
    assert [(timer.calls, timer.remaining, timer.period) for timer in timers.values()] == [(1, None, None)] * 5
    assert later.remaining is not None
    assert 3590 < later.remaining <= 3600


def test_calls_stay_in_step_and_what_is_missed_is_counted(queue: byref.EventQueue) -> None:
    begun = time.monotonic_ns()
    period = 0.004
    numbers: list[int] = []

    def tick() -> None:
        number = timer.calls + timer.missed
        # The calls before it were made, or left out while this thread was busy.
        assert time.monotonic_ns() - begun >= number * period * 1e9
        assert number > (numbers[-1] if numbers else 0)
        numbers.append(number)
        if len(numbers) == 5:
            time.sleep(3.5 * period)
        if len(numbers) == 20:
            queue.stop()

    timer = queue.call_every(period, tick)
    queue.run(timeout=30)
    assert timer.calls == 20
    assert timer.missed >= 2
    assert timer.period == period
    (told,) = queue.stats()["timers"]
    assert (told["callbacks"], told["missed"]) == (20, timer.missed)
    timer.cancel()
    # It never had more calls than periods: nothing is made up for.
    assert timer.calls + timer.missed <= (time.monotonic_ns() - begun) / (period * 1e9)


def test_a_queue_that_does_not_run_misses_calls_and_begins_with_one(queue: byref.EventQueue) -> None:
    called: list[int] = []
    timer = queue.call_every(0.001, called.append, 1)
    time.sleep(0.05)
    assert timer.remaining is not None
    assert timer.remaining < 0
    queue.dispatch()
    assert called == [1]
    assert timer.missed >= 45


def test_a_timer_from_another_thread_ends_a_wait(queue: byref.EventQueue) -> None:
    threads: list[int] = []

    def call() -> None:
        threads.append(threading.get_ident())
        queue.stop()

    queue.call_later(3600, call)
    before = settled(processes.threads)
    from_another = threading.Timer(0.05, lambda: queue.call_later(0.01, call))
    from_another.start()
    queue.run(timeout=30)
    assert threads == [threading.get_ident()]
    from_another.join()
    eventually(lambda: processes.threads() <= before, "no thread was made for it")


def flood(line: Line) -> None:
    """Sends without a pause until told to stop."""
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=30)
        while not line.has_something():
            pub.send(b"x", timeout=30)


def test_messages_and_timers_do_not_starve_each_other(queue: byref.EventQueue, spawn: Spawn) -> None:
    counts = {"messages": 0, "ticks": 0, "always": 0}

    def count(what: str, _msg: object = None) -> None:
        counts[what] += 1
        if min(counts.values()) >= 50 and counts["messages"] > 5000:
            queue.stop()

    queue.subscribe("t", functools.partial(count, "messages"))
    queue.call_every(0.002, count, "ticks")
    queue.call_every(1e-9, count, "always")
    publisher = spawn(flood)
    queue.run(timeout=30)
    queue.close()
    publisher.tell()
    publisher.finish()
    assert counts["ticks"] >= 50


def test_a_timer_that_sets_itself_anew_does_not_keep_messages_away(
    queue: byref.EventQueue, endpoints: Endpoints
) -> None:
    got: list[bytes] = []

    def again() -> None:
        queue.call_later(0, again)

    queue.subscribe("t", lambda msg: got.append(bytes(msg)))
    pub = endpoints.publisher()
    pub.wait_for_subscribers(timeout=20)
    again()
    pub.send(b"x")
    eventually(lambda: (queue.dispatch(), got)[1], "the message comes")
    assert queue.dispatch() == 0, "timers are no messages"


# ---- who waits for descriptors, and event loops ----------------------------------------------------------------------


def test_the_descriptor_is_readable_when_a_timer_is_due(queue: byref.EventQueue) -> None:
    called: list[int] = []
    begun = time.monotonic_ns()
    poll = select.epoll()
    poll.register(queue.fileno(), select.EPOLLIN)
    timer = queue.call_every(0.02, called.append, 1)
    while timer.calls < 3:
        assert poll.poll(30), "it is readable in time"
        queue.dispatch()
    assert time.monotonic_ns() - begun >= 60 * MS
    timer.cancel()
    queue.dispatch()
    assert poll.poll(0.1) == [], "nothing is to come"
    queue.call_later(0.01, called.append, 2)
    while called[-1] != 2:
        assert poll.poll(30)
        queue.dispatch()
    poll.close()


def test_coroutines_are_awaited_in_an_event_loop(queue: byref.EventQueue) -> None:
    called: list[str] = []

    async def slow(name: str) -> None:
        called.append(f"{name} begins")
        await asyncio.sleep(0.01)
        called.append(f"{name} ends")
        if name == "two":
            queue.stop()

    async def main() -> None:
        queue.call_later(0.01, slow, "one")
        queue.call_later(0.011, slow, "two")
        await asyncio.wait_for(queue.run_async(), 30)

    asyncio.run(main())
    assert called == ["one begins", "one ends", "two begins", "two ends"]
    every = queue.call_every(0.01, slow, "three")
    with pytest.raises(TypeError, match=r"the timer .*slow is a coroutine function.*run_async"):
        queue.run()
    every.cancel()
    queue.dispatch()


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_cancelled_by_itself_by_another_and_twice(queue: byref.EventQueue) -> None:
    called: list[str] = []

    def by_itself() -> None:
        called.append("itself")
        first.cancel()
        second.cancel()

    first = queue.call_every(0.001, by_itself)
    second = queue.call_every(0.002, called.append, "second")
    with queue.call_later(0, called.append, "third") as third:
        pass
    queue.call_later(0.01, queue.stop)
    queue.run(timeout=30)
    assert called == ["itself"]
    for timer in (first, second, third):
        timer.cancel()
        assert timer.remaining is None
    counted = {one["name"].rpartition(".")[2]: one["callbacks"] for one in queue.stats()["timers"]}
    assert counted == {"by_itself": 1, "append": 0, "stop": 1}


def test_cancel_waits_for_the_call_in_progress(queue: byref.EventQueue) -> None:
    entered, leave, states = threading.Event(), threading.Event(), []

    def call() -> None:
        entered.set()
        leave.wait(30)
        states.append("left")

    timer = queue.call_every(0.001, call)
    thread = queue.start()
    assert entered.wait(30)
    threading.Timer(0.1, leave.set).start()
    timer.cancel()
    assert states == ["left"]
    calls = timer.calls
    time.sleep(0.02)
    assert timer.calls == calls
    queue.stop()
    thread.join(30)
    assert not thread.is_alive()


class Ticker:
    """Refers to its queue, and is referred to by it."""

    def __init__(self) -> None:
        """A queue and two timers of its own."""
        self.queue = byref.EventQueue()
        self.timers = [self.queue.call_every(3600, self.tick), self.queue.call_later(3600, self.tick, 2)]

    def tick(self, *_args: int) -> None:
        """Never called."""


def test_the_queue_alone_keeps_functions(queue: byref.EventQueue) -> None:
    ticker = weakref.ref(Ticker())
    gc.collect()
    assert ticker() is None, "a circle through the queue is found"

    class Function:
        def __call__(self) -> None:
            """Nothing."""

    function = Function()
    gone = weakref.ref(function)
    timers = [queue.call_later(0, function), queue.call_every(3600, function), queue.call_later(3600, function)]
    del function
    queue.dispatch()
    assert gone() is not None
    timers[1].cancel()
    assert gone() is not None
    queue.close()
    assert gone() is None
    assert [timer.remaining for timer in timers] == [None] * 3
    with pytest.raises(byref.Closed):
        queue.call_later(1, print)


# ---- exceptions, bad input, numbers ----------------------------------------------------------------------------------


def test_exceptions(caplog: pytest.LogCaptureFixture) -> None:
    with byref.EventQueue() as queue:
        every = queue.call_every(0.001, lambda: 1 // 0, name="divide")
        for _ in range(2):
            with pytest.raises(ZeroDivisionError) as raised:
                queue.run(timeout=30)
            assert raised.value.__notes__ == ["byref: raised in the timer divide"]
        assert every.calls == 2
    for on_error, calls in (("log", 3), ("detach", 1)):
        with byref.EventQueue(on_error, name=on_error) as queue, caplog.at_level(logging.ERROR, "byref"):
            caplog.clear()
            timer = queue.call_every(0.001, lambda: 1 // 0, name="divide")
            once = queue.call_later(0, lambda: 1 // 0, name="once")
            eventually(
                lambda queue=queue, timer=timer: (queue.dispatch(), timer.calls >= 3)[1] or timer.remaining is None,
                "called",
            )
            assert timer.calls >= calls
            assert (timer.remaining is None) is (on_error == "detach")
            assert once.calls == 1
            texts = [record.getMessage() for record in caplog.records]
            detached = ", which is detached now" if on_error == "detach" else ""
            assert f"event queue '{on_error}': an exception in the timer divide{detached}" in texts
            assert f"event queue '{on_error}': an exception in the timer once" in texts


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, -math.inf, 1e300])
def test_times_that_are_none(queue: byref.EventQueue, seconds: float) -> None:
    for call in (queue.call_later, queue.call_every):
        with pytest.raises(ValueError, match="seconds must be a number of"):
            call(seconds, print)
    with pytest.raises(ValueError, match="more than 0"):
        queue.call_every(0, print)


def test_what_cannot_be_called(queue: byref.EventQueue) -> None:
    with pytest.raises(TypeError, match="has to be callable, and this int is not"):
        queue.call_later(1, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        queue.call_later("soon", print)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name of a timer"):
        queue.call_later(1, print, name="")
    assert queue.stats()["timer_count"] == 0
    far = queue.call_later(1e9, print)
    assert far.remaining is not None
    assert re.fullmatch(r"<byref\.Timer print in \d+\.\d{3} s>", repr(far))
    assert repr(queue.call_every(1.5, print)) == "<byref.Timer print every 1.5s>"
    far.cancel()
    assert repr(far) == "<byref.Timer print over>"


def fork_with_timers(line: Line) -> None:
    """A forked child cannot use them, and does not disturb them."""
    with byref.EventQueue() as queue:
        called: list[int] = []
        timer = queue.call_every(0.005, called.append, 1)
        child = os.fork()
        if not child:
            try:
                for call in (lambda: queue.call_later(0, print), queue.dispatch):
                    try:
                        call()
                    except byref.Forked:
                        continue
                    os._exit(1)
                timer.cancel()
                del timer, queue
                gc.collect()
                os._exit(0)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        eventually(lambda: (queue.dispatch(), timer.calls >= 2)[1], "it is called")
        line.tell([os.waitstatus_to_exitcode(status), called[0]])


def test_a_forked_child(spawn: Spawn) -> None:
    child = spawn(fork_with_timers)
    assert child.hear() == [0, 1]
    child.finish()


def test_timers_in_the_numbers(endpoints: Endpoints) -> None:
    seen: list[Any] = []
    with byref.EventQueue(name="with timers") as queue:

        def look() -> None:
            seen.append(queue.stats()["running"])

        queue.subscribe("t", print)
        timers = [queue.call_later(0, look, name="looks"), queue.call_every(3600, look, name="looks")]
        timers.append(queue.call_every(0.001, time.sleep, 0.003))
        eventually(lambda: (queue.dispatch(), timers[2].missed > 0)[1], "it misses some")
        assert (seen[0]["topic"], seen[0]["name"]) == ("", "looks")
        for stats in (queue.stats(), next(one for one in byref.monitors() if one["name"] == "with timers")):
            assert (stats["receiver_count"], len(stats["receivers"]), stats["timer_count"]) == (1, 1, 2)
            looks, sleeps = sorted(stats["timers"], key=lambda one: one["name"])
            assert (looks["name"], looks["callbacks"], looks["missed"]) == ("looks", 1, 0)
            assert (sleeps["name"], sleeps["callbacks"], sleeps["missed"]) == (
                "sleep",
                timers[2].calls,
                timers[2].missed,
            )
            assert sleeps["longest_callback"] >= 0.003
            assert stats["callbacks"] == 1 + timers[2].calls
            assert stats["lost"] == 0
        for timer in timers:
            timer.cancel()
        assert len(queue.stats()["timers"]) == 2, "the numbers stay"
        for number in range(100):
            queue.call_later(0, print, name=f"once {number}").cancel()
        assert queue.stats()["timer_count"] <= 64 + 2, "but not of any number of names"
        assert queue.stats()["callbacks"] == 1 + timers[2].calls


def be_slow(line: Line) -> None:
    """Has a slow timer."""
    with byref.EventQueue(slow_callback=0.02) as queue:
        queue.call_later(0, time.sleep, 0.2, name="sleeps")
        queue.dispatch()
        line.hear()


def test_a_slow_timer_is_logged(spawn: Spawn) -> None:
    child = spawn(be_slow)
    eventually(lambda: "event queue: timer 'sleeps' still runs after" in child.output(), "it is said while it runs")
    eventually(lambda: "event queue: timer 'sleeps' took" in child.output(), "and afterwards")
    child.tell()
    child.finish()
