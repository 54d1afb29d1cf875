"""Subscribers that never read, beside a publisher whose segments come and go: its memory stays within bounds."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress

import byref

from tests.processes import Line
from tests.segments import kept_memory

from .scenes import PATIENCE, Helper, Scene

_MIB = 1 << 20
_MEMORY = 80 * _MIB
# Of pages and of what else a segment has.
_SLACK = 64 << 10


class Hoarding(Scene):
    """This process publishes; each helper subscribes, and sleeps in `recv`, does nothing, or is frozen."""

    counted = "publishers whose subscribers did not read"

    def play(self) -> None:
        rng = self._rng
        parts = [
            (rng.choice(("block", "block", "latest", "drop_oldest")), rng.choice(("asleep", "idle", "frozen")))
            for _ in range(rng.choice((1, 1, 2)))
        ]
        self._text = f"beside {parts}"
        before = kept_memory("self", sockets=False).keys()
        with ExitStack() as stack:
            publisher = stack.enter_context(byref.Publisher(self._topic, _MEMORY))
            helpers = [
                stack.enter_context(self.helper(lambda line, part=part: self._subscribe(line, *part))) for part in parts
            ]
            for helper in helpers:
                assert helper.hear() == "there"
            publisher.wait_for_subscribers(len(parts), timeout=PATIENCE)
            publisher.send(b"it has room for one", timeout=PATIENCE)
            frozen = [helper for helper, (_, how) in zip(helpers, parts, strict=True) if how == "frozen"]
            for helper in frozen:
                helper.stop()
            is_lossless = any(policy == "block" for policy, _ in parts)
            # What lossy ones keep is not waited for without end; they get no more then (SAFETY.md).
            most = _MEMORY * (1 + 2 * sum(policy != "block" for policy, _ in parts)) + _SLACK
            for _ in range(rng.randrange(2, 6)):
                self._take_and_give_back(publisher, is_lossless)
                self._measure(publisher, helpers, frozen, before, most)
                self._report.beat()
            for helper in frozen:
                helper.go_on()
            for helper in helpers:
                helper.tell()
            self._expect_room(publisher)
            for helper in helpers:
                helper.tell()

    def _subscribe(self, line: Line, policy: str, how: str) -> None:
        with byref.Subscriber(self._topic, policy, None if policy == "latest" else 1) as subscriber:  # type: ignore[arg-type]
            subscriber.wait_for_publishers(timeout=PATIENCE)
            line.tell("there")
            if how != "asleep":
                line.hear(600)
            while not line.has_something():
                with suppress(byref.Timeout):
                    subscriber.recv(timeout=0.05).release()
            line.hear()
            while how == "asleep" and not line.has_something():
                with suppress(byref.Timeout):
                    subscriber.recv(timeout=0.05).release()

    def _take_and_give_back(self, publisher: byref.Publisher, is_lossless: bool) -> None:
        """All memory in small pieces, and then most of it in one: lent, or sent."""
        loans = []
        with suppress(byref.PoolExhausted, byref.Timeout):
            while True:
                loans.append(publisher.loan(_MIB, timeout=0))
        while loans:
            loans.pop().discard()
        size = int(_MEMORY * self._rng.uniform(0.5, 0.95))
        began = time.monotonic()
        try:
            if self._rng.random() < 0.5:
                publisher.loan(size, timeout=0.2 if is_lossless else 10).discard()
            else:
                publisher.send(bytes(size), timeout=0.2 if is_lossless else 10)
        except (byref.PoolExhausted, byref.Timeout) as refused:
            self._report.counts["refused beside who did not read"] += 1
            if not is_lossless and self._signals.thawed < began:
                self.violation(f"who may lose messages costs a send, {self._text}: {refused}")

    def _measure(
        self, publisher: byref.Publisher, helpers: list[Helper], frozen: list[Helper], before: object, most: int
    ) -> None:
        kept = kept_memory("self", sockets=False)
        for helper in helpers:
            if helper not in frozen:
                helper.stop()
            kept |= kept_memory(helper.pid)
            if helper not in frozen:
                helper.go_on()
        mine = {inode: size for inode, size in kept.items() if inode not in before}  # type: ignore[operator]
        self._report.counts["measurements of memory"] += 1
        if sum(mine.values()) > most:
            self.violation(f"{sum(mine.values()):,} bytes instead of {most:,}, {self._text}: {mine}")
        if publisher.stats()["pool_allocated"] > most:
            self.violation(f"{publisher.stats()}, {self._text}")

    def _expect_room(self, publisher: byref.Publisher) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                publisher.loan(_MEMORY * 9 // 10, timeout=1).discard()
                return
            except (byref.PoolExhausted, byref.Timeout) as refused:
                if time.monotonic() > until:
                    return self.violation(f"memory does not come back, {self._text}: {refused}")
                time.sleep(0.01)
