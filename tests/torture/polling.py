"""A subscriber that only polls, beside publishers that come and go: it is told in time, and keeps nothing of them."""

from __future__ import annotations

import os
import signal
import time

import byref

from tests.processes import Line

from . import leaks
from .scenes import PATIENCE, Scene

# Ends are told within so many seconds, on however busy a machine.
_TOLD = 10.0


class Polling(Scene):
    """A helper has children that publish, one after another; this process looks 100 or 800 times a second."""

    counted = "subscribers that polled"

    def play(self) -> None:
        rng = self._rng
        self._count, self._messages = rng.choice((10, 40)), rng.choice((0, 1, 3))
        rate, by = rng.choice((100, 800)), rng.choice(("try_recv", "recv", "recv_batch"))
        told: list[str] = []
        text = f"{self._count} publishers of {self._messages} messages, {by} at {rate} Hz"
        with byref.Subscriber(f"{self._topic}/*", events=True) as subscriber, self.helper(self._publish) as helper:
            before, most = leaks.descriptors(), 0
            helper.tell()
            until = time.monotonic() + 2 * PATIENCE
            all_gone: float | None = None
            while not helper.line.has_something() or len(told) < (2 + self._messages) * self._count:
                told += self._look(subscriber, by)
                time.sleep(1 / rate)
                most = max(most, leaks.descriptors() - before)
                if all_gone is None and helper.line.has_something():
                    all_gone = time.monotonic()
                if all_gone is not None:
                    until = max(all_gone, self._signals.thawed) + _TOLD
                if time.monotonic() > until:
                    if not self._board.was_troubled(until - 3 * PATIENCE):
                        self.violation(f"told of {len(told)} in time, the last {told[-5:]}; {text}")
                    break
                self._report.beat()
            helper.hear()
            self._report.counts["ends told to who polled"] += told.count("left") + told.count("lost")
            if most > self._count + 20:
                self.violation(f"{most} descriptors more at a time; {text}")

    @staticmethod
    def _look(subscriber: byref.Subscriber, by: str) -> list[str]:
        found: object
        if by == "try_recv":
            found = subscriber.try_recv()
        else:
            try:
                found = subscriber.recv(timeout=0) if by == "recv" else subscriber.recv_batch(5, timeout=0)
            except byref.Timeout:
                found = None
        if found is None:
            return []
        if isinstance(found, byref.Event):
            return [found.kind]
        return ["message"] * (len(found) if isinstance(found, byref.Batch) else 1)

    def _publish(self, line: Line) -> None:
        """Each is closed, or killed."""
        line.hear()
        for number in range(self._count):
            pid = os.fork()
            if not pid:
                try:
                    publisher = byref.Publisher(f"{self._topic}/{number}", 1 << 20)
                    publisher.wait_for_subscribers(timeout=PATIENCE)
                    for _ in range(self._messages):
                        publisher.send(b"x" * 300, timeout=PATIENCE)
                    if number % 2:
                        publisher.close()
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(pid, 0)
            time.sleep(0.05)
        line.tell("all")
