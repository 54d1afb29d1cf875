"""Two processes publish to each other on many topics, over one connection; a third one takes part, and is killed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from threading import Thread

import byref

from tests.payloads import is_payload, payload
from tests.processes import Line

from . import leaks
from .scenes import PATIENCE, Helper, Scene, stop_for_a_while

_MEMORY = 1 << 20
# Inside of the ring, and in the pool.
_SIZES = (64, 20_000)
# So many topics the third process has.
_VISITORS = 20


class Exchanging(Scene):
    """This process and a helper; some of their publishers are closed as soon as they have sent."""

    counted = "exchanges on many topics"

    def play(self) -> None:
        rng = self._rng
        self._count, self._rounds = rng.choice((10, 40, 120)), rng.choice((1, 2, 5))
        with ExitStack() as stack:
            if rng.random() < 0.4:
                visitor = Helper(self._visit, self._board, self._report)
                stack.callback(visitor.end)
                killer = Thread(target=_kill_after, args=(visitor.pid, rng.choice((0.02, 0.1, 0.3))))
                stack.callback(killer.join)
                killer.start()
                self._report.counts["kills in exchanges"] += 1
            with self.helper(self._be_there) as helper:
                if rng.random() < 0.5:
                    freezer = stop_for_a_while(helper.pid, rng.choice((0, 0.01, 0.1)), rng.choice((0.1, 0.5, 3)))
                    stack.callback(freezer.join)

                def meet() -> None:
                    helper.hear()
                    helper.tell()

                self._exchange("here", "there", meet)
        self._report.counts["messages exchanged"] += 2 * self._count * self._rounds

    def _be_there(self, line: Line) -> None:
        def meet() -> None:
            line.tell()
            line.hear(PATIENCE + 10)

        self._exchange("there", "here", meet)

    def _exchange(self, own: str, other: str, meet: Callable[[], None]) -> None:
        """Send on all topics and receive from all of the other's; `meet` waits until the other one has come as far."""
        with ExitStack() as stack:
            subscriber = stack.enter_context(byref.Subscriber(f"{self._topic}/{other}/*"))
            publishers = [
                stack.enter_context(byref.Publisher(f"{self._topic}/{own}/{number}", _MEMORY))
                for number in range(self._count)
            ]
            subscriber.wait_for_publishers(self._count, timeout=PATIENCE)
            meet()
            for turn in range(self._rounds):
                for number, publisher in enumerate(publishers):
                    publisher.send(payload(number + turn, _SIZES[(number + turn) % 2]), timeout=PATIENCE)
            for publisher in publishers[::3]:
                publisher.close()
            taken: Counter[int] = Counter()
            while taken.total() < self._count * self._rounds:
                message = subscriber.recv(timeout=PATIENCE)
                number = int(message.topic.rpartition("/")[2])
                seed = number + taken[number]
                if message.sequence != taken[number] or not is_payload(message, seed, _SIZES[seed % 2]):
                    self.violation(f"{own} received {message} instead of message {taken[number]} of topic {number}")
                taken[number] += 1
            meet()
            left = {f"{self._topic}/{other}/{number}" for number in range(self._count) if number % 3}

            def are_left() -> bool:
                assert subscriber.try_recv() is None
                return {publisher.topic for publisher in subscriber.publishers} == left

            began = time.monotonic()
            if not leaks.settles(are_left, PATIENCE) and not self._board.was_troubled(began):
                self.violation(f"{own} has {len(subscriber.publishers)} publishers instead of {len(left)}")
            meet()

    def _visit(self, _line: Line) -> None:
        """Follow all of it, and publish, too, until it is killed."""
        publishers = [byref.Publisher(f"{self._topic}/visitor/{number}", _MEMORY) for number in range(_VISITORS)]
        with byref.Subscriber(f"{self._topic}/**") as subscriber:
            while True:
                for number, publisher in enumerate(publishers):
                    publisher.send(payload(number, _SIZES[number % 2]))
                with suppress(byref.Timeout):
                    while True:
                        subscriber.recv(timeout=0.001)


def _kill_after(pid: int, seconds: float) -> None:
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
