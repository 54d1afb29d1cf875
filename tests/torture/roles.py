"""The parts that processes play while one of them is killed, or stopped, at a step.

The victim plays its part to the end, unless it is killed: it sends or receives some messages and closes. The others go
on until the director says so; they meet whoever takes the victim's place, and check everything.
"""

from __future__ import annotations

import gc
import os
import shutil
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import byref

from . import leaks
from .stage import PATIENCE, Stage, Voice
from .traffic import Traffic

TOPIC = "steps/one"
PUBLISHER, LOSSLESS, LOSSY, WITNESS = ROLES = ("publisher", "lossless", "lossy", "witness")
# The publishers' names: the one that everything is about, the witness's, and the one that takes the victim's place.
MAIN, VISITOR, SECOND = range(3)

# A lossless subscriber that is behind by so many records makes the publisher wait; a lossy one loses messages.
_LAG, _DEPTH = 8, 4
# Both sides pause now and then, so that the other one goes to sleep (s).
_PAUSE_AFTER, _PAUSE = 8, 0.002
# A send that takes so long (s) is told: perhaps it was held up by somebody who was dead by then.
_STALL = 0.005
# Messages sent before any subscriber comes, where there is a history.
_PRIMED = 12


@dataclass(frozen=True)
class Part:
    """What a process has to know. `is_second`: it takes the victim's place."""

    stage: Stage
    voice: Voice
    traffic: Traffic
    role: str
    is_victim: bool = False
    is_second: bool = False


def play(part: Part) -> None:
    """Play a part, and see that nothing stays behind."""
    before = leaks.descriptors()
    _leave_stale_name()
    if part.role == PUBLISHER:
        _publish(part)
    else:
        _Receiving(part).run()
    gc.collect()
    if not leaks.settles(lambda: leaks.descriptors() <= before and not leaks.mappings(), 5):
        part.voice.violation(f"leaks: {before} descriptors before, now {leaks.held()}; maps {leaks.mappings()}")


def _leave_stale_name() -> None:
    """As of a publisher that died: who starts meets it."""
    directory = Path(os.environ["BYREF_DIR"])
    directory.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(directory / f"{0:016x}-{os.getpid():032x}"))


class _Sending:
    """One publisher's messages, counted."""

    def __init__(self, part: Part, run: int) -> None:
        self._part, self._run = part, run
        self.sent = 0
        self.stalls: list[tuple[float, float]] = []
        memory, history = part.traffic.max_memory, part.traffic.history
        self.publisher = byref.Publisher(TOPIC, memory, history, name=str(run))

    def some(self, most: int) -> None:
        """Send up to so many messages more, or one block."""
        board, traffic = self._part.stage.board, self._part.traffic
        end = self.sent + most
        while self.sent < end:
            board.begin(self._run, self.sent + traffic.rows - 1)
            began = time.monotonic()
            self.sent += traffic.send(self.publisher, self._run, self.sent)
            ended = time.monotonic()
            board.finish(self._run, self.sent - 1)
            if ended - began > _STALL:
                self.stalls.append((began, ended))
            if self.sent // traffic.rows % _PAUSE_AFTER == 0:
                time.sleep(_PAUSE)

    def wait_for_all(self) -> None:
        def all_are_there() -> bool:
            expected = self._part.stage.expected()
            return bool(expected) and expected <= {subscriber.pid for subscriber in self.publisher.subscribers}

        self._part.stage.wait(all_are_there, f"all subscribers of publisher {self._run} connect")

    def check_memory(self) -> None:
        """Nobody holds anything, so nearly all of the pool is there."""

        def is_free() -> bool:
            with suppress(byref.PoolExhausted, byref.Timeout):
                self.publisher.loan(self._part.traffic.max_memory * 9 // 10, timeout=0.01).discard()
                return True
            return False

        if not leaks.settles(is_free, 5):
            self._part.voice.violation(f"publisher {self._run} has lost memory: {self.publisher.stats()}")


def _publish(part: Part) -> None:
    stage, traffic = part.stage, part.traffic
    # The process listens already, so the publisher that everything is about has a link to its socket.
    beside = byref.Publisher("beside", 1 << 20)
    sending = _Sending(part, SECOND if part.is_second else MAIN)
    with beside, sending.publisher:
        if traffic.history and not part.is_second:
            sending.some(_PRIMED)
        stage.primed = True
        sending.wait_for_all()
        if traffic.moves and not part.is_second:
            _move(part)
        sending.some(traffic.messages)
        if not part.is_victim and not part.is_second:
            while not (stage.settled and stage.replaced):
                sending.some(1)
                time.sleep(0.0005)
            sending.wait_for_all()
            sending.some(traffic.messages // 2)
        sending.publisher.flush(PATIENCE)
        if not part.is_victim:
            sending.check_memory()
        sending.publisher.close(linger=PATIENCE)
    part.voice.say(stalls=sending.stalls)


def _move(part: Part) -> None:
    """The rendezvous directory vanishes, and the next endpoint makes it anew: all others meet there, too."""
    directory, stage = Path(os.environ["BYREF_DIR"]), part.stage
    shutil.rmtree(directory)
    with byref.Publisher(TOPIC, 1 << 20, name=str(VISITOR)) as newcomer:
        stage.wait(lambda: len(os.listdir(directory)) > 1, "a publisher is announced in the new directory")

        def all_are_there() -> bool:
            return stage.settled or stage.expected() <= {subscriber.pid for subscriber in newcomer.subscribers}

        stage.wait(all_are_there, "all subscribers look for publishers in the new directory")


@dataclass
class _Seen:
    """What came from one publisher."""

    first: int
    next: int
    received: int = 0
    kept: deque[tuple[Any, int]] = field(default_factory=deque)


class _Receiving:
    """One subscriber, and what it got."""

    def __init__(self, part: Part) -> None:
        self._part, self._traffic = part, part.traffic
        self._policy: Literal["block", "drop_oldest"] = "drop_oldest" if part.role == LOSSY else "block"
        self._depth = _DEPTH if part.role == LOSSY else _LAG
        self._seen: dict[int, _Seen] = {}
        self._taken = 0
        # Who comes later does not know what was sent before: at most that was lost.
        board = part.stage.board
        self._joined = {run: board.begun(run) if part.is_second else 0 for run in (MAIN, VISITOR, SECOND)}

    def run(self) -> None:
        lost = self._run_queue() if self._traffic.queue else self._run_subscriber()
        self._let_go_of_all()
        self._check(lost)

    def _run_subscriber(self) -> int:
        history = self._traffic.history
        with byref.Subscriber(TOPIC, self._policy, self._depth, history, name=self._part.role) as subscriber:
            if self._part.role == WITNESS and not self._part.is_second and not self._traffic.moves:
                self._visit(subscriber)
            while not self._is_over(subscriber):
                before = self._taken
                with suppress(byref.Timeout):
                    self._receive(subscriber)
                self._idle(before)
            return subscriber.lost

    def _receive(self, subscriber: byref.Subscriber) -> None:
        if self._traffic.batches:
            for message in subscriber.recv_batch(5, timeout=0.02):
                self._take(message)
        else:
            self._take(subscriber.recv(timeout=0.02))

    def _run_queue(self) -> int:
        with byref.EventQueue() as queue:

            def on_message(message: byref.Message) -> None:
                self._take(message)
                if self._has_enough():
                    queue.stop()

            receiver = queue.subscribe(TOPIC, on_message, policy=self._policy, depth=self._depth)
            while True:
                finish, before = self._part.stage.finish, self._taken
                with suppress(byref.Timeout):
                    queue.run(timeout=0.02)
                if self._has_enough() or (finish and self._taken == before):
                    return int(receiver.stats()["lost"])
                self._idle(before)

    def _visit(self, subscriber: byref.Subscriber) -> None:
        """Come and go beside the others, so that they see somebody do so in good order."""
        stage = self._part.stage
        stage.wait(lambda: subscriber.publishers or stage.settled, "the witness sees the publisher")
        byref.Subscriber(TOPIC, "block", _LAG).close()
        sending = _Sending(self._part, VISITOR)
        with sending.publisher:
            sending.wait_for_all()
            sending.some(1)

    def _is_over(self, subscriber: byref.Subscriber) -> bool:
        if self._has_enough():
            return True
        if not self._part.stage.finish or subscriber.publishers:
            return False
        while (message := subscriber.try_recv()) is not None:
            self._take(message)
        return True

    def _has_enough(self) -> bool:
        """A victim that was not killed leaves before the publisher does."""
        return self._part.is_victim and any(seen.next >= self._traffic.messages for seen in self._seen.values())

    def _take(self, message: byref.Message) -> None:
        run, sequence = int(message.publisher.name or ""), message.sequence
        seen = self._seen.setdefault(run, _Seen(sequence, sequence))
        if sequence < seen.next or (self._policy == "block" and sequence > seen.next):
            self._part.voice.violation(f"{self._part.role} received {message} instead of {seen.next}")
        if sequence >= self._part.stage.board.begun(run):
            self._part.voice.violation(f"{self._part.role} received {message}, which was not sent")
        if not self._traffic.is_right(message, run, sequence):
            self._part.voice.violation(f"{self._part.role} received {message} with wrong bytes")
        seen.next = sequence + 1
        seen.received += 1
        seen.kept.append((message.writable() if sequence % 4 == 3 else message, sequence))
        while len(seen.kept) > self._traffic.keeps:
            self._let_go(seen)
        self._taken += 1
        if self._taken // self._traffic.rows % _PAUSE_AFTER == 0:
            time.sleep(_PAUSE)

    def _idle(self, before: int) -> None:
        """A publisher that has sent all wants to see its memory free."""
        if self._taken == before:
            self._let_go_of_all()

    def _let_go_of_all(self) -> None:
        for seen in self._seen.values():
            while seen.kept:
                self._let_go(seen)

    def _let_go(self, seen: _Seen) -> None:
        view, sequence = seen.kept.popleft()
        run = next(run for run, known in self._seen.items() if known is seen)
        if not self._traffic.is_right(view, run, sequence):
            self._part.voice.violation(f"{self._part.role}: a message that it kept has changed, {sequence} of {run}")

    def _check(self, lost: int) -> None:
        """Lossless: nothing is missing. Lossy: what is missing was counted."""
        part, board = self._part, self._part.stage.board
        least = most = 0
        for run in (MAIN, VISITOR, SECOND):
            seen = self._seen.get(run)
            done, begun = board.done(run), board.begun(run)
            if self._policy == "block" and not part.is_victim:
                reached = seen.next if seen else self._joined[run]
                if not done <= reached <= begun:
                    part.voice.violation(f"{part.role} has {reached} of {done} to {begun} messages of publisher {run}")
            if seen is None:
                most += begun
                continue
            if self._policy == "block" and seen.first > self._latest_first(run):
                part.voice.violation(f"{part.role} began at {seen.first} of publisher {run}")
            gaps = seen.next - seen.first - seen.received
            least += gaps
            most += gaps + seen.first + (begun - seen.next)
        if self._policy == "block":
            most = 0
        if not least <= lost <= most:
            part.voice.violation(f"{part.role} counts {lost} messages lost, not {least} to {most}: {self._seen}")

    def _latest_first(self, run: int) -> int:
        """A lossless subscriber that was there before a publisher's first message begins with that."""
        if self._part.is_second:
            return sys.maxsize
        return max(_PRIMED - self._traffic.history, 0) if self._traffic.history and run == MAIN else 0
