"""Many endpoints are made at once while somebody is stopped: all meet, and what is held stays as it is."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress

import byref

from tests.payloads import is_payload, payload
from tests.processes import Line

from .scenes import PATIENCE, Scene, stop_for_a_while

# One fits into the pool beside two more.
_SIZE, _MEMORY = 300_000, 1 << 20
# So long (s) one side is stopped; the last is longer than a handshake may take.
_FREEZES = (0.2, 0.2, 0.5, 1, 3)
_LONG_FREEZE = 10.5


class Bursting(Scene):
    """This process publishes, a helper subscribes; one of them stops the other for a while."""

    counted = "bursts of connects"

    def play(self) -> None:
        rng = self._rng
        self._publishers, self._subscribers = rng.choice((1, 4, 12)), rng.choice((1, 2, 4))
        self._freeze = _LONG_FREEZE if rng.random() < 0.05 else rng.choice(_FREEZES)
        self._pause = rng.choice((0, 0.002, 0.01, 0.03))
        self._helper_freezes = rng.random() < 0.7
        are_first = rng.random() < 0.5
        self._report.counts["freezes in bursts"] += 1
        with ExitStack() as stack, self.helper(self._subscribe) as helper:
            assert helper.hear() == "ready"
            helper.tell()
            thread = None
            if not self._helper_freezes:
                thread = stop_for_a_while(helper.pid, self._pause, self._freeze)
            if not are_first:
                time.sleep(rng.choice((0.001, 0.01, 0.05)))
            publishers = [
                stack.enter_context(byref.Publisher(f"{self._topic}/{number}", _MEMORY, 1))
                for number in range(self._publishers)
            ]
            for number, publisher in enumerate(publishers):
                publisher.send(payload(number, _SIZE))
            if thread is not None:
                thread.join()
            assert helper.hear() == "met"
            for seed in range(1, 5):
                for number, publisher in enumerate(publishers):
                    # What is held may be in the way.
                    with suppress(byref.PoolExhausted, byref.Timeout):
                        publisher.send(payload(number + 100 * seed, _SIZE), timeout=0.001)
            lost = [each.topic for each in publishers if len(each.subscribers) != self._subscribers]
            if lost:
                self.violation(f"publishers {lost} have lost subscribers: {self}")
            helper.tell()
            self._report.counts["met in bursts"] += int(str(helper.hear()))

    def __repr__(self) -> str:
        who = "the publishers" if self._helper_freezes else "the subscribers"
        text = f"{self._publishers} publishers, {self._subscribers} subscribers, {who} stopped after {self._pause} s"
        return f"{text} for {self._freeze} s"

    def _subscribe(self, line: Line) -> None:
        """Meet all of them, keep the first message of each, and look at it again when others were sent."""
        line.tell("ready")
        line.hear()
        freezer = stop_for_a_while(os.getppid(), self._pause, self._freeze) if self._helper_freezes else None
        subscribers = [byref.Subscriber(f"{self._topic}/*", history=1) for _ in range(self._subscribers)]
        if freezer is not None:
            freezer.join()
        kept = []
        for subscriber in subscribers:
            try:
                subscriber.wait_for_publishers(self._publishers, timeout=PATIENCE)
            except byref.Timeout:
                if not self._board.was_troubled(time.monotonic() - PATIENCE - self._freeze):
                    met = [publisher.topic for publisher in subscriber.publishers]
                    self.violation(f"live publishers were not met, only {met}: {self}")
                raise
            for _ in range(self._publishers):
                message = subscriber.recv(timeout=PATIENCE)
                kept.append((message, int(message.topic.rpartition("/")[2])))
        line.tell("met")
        line.hear()
        for message, number in kept:
            if message.sequence != 0 or not is_payload(message, number, _SIZE):
                self.violation(f"{message}, which was held, has changed: {self}")
        for subscriber in subscribers:
            if len(subscriber.publishers) != self._publishers:
                self.violation(f"only {subscriber.publishers} are left: {self}")
            while (message := subscriber.try_recv()) is not None:
                seed = int(message.topic.rpartition("/")[2])
                if not any(is_payload(message, seed + 100 * later, _SIZE) for later in range(1, 5)):
                    self.violation(f"received {message} with wrong bytes: {self}")
        line.tell(len(kept))
