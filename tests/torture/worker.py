"""One process of the stress: endpoints side by side, scenes, forked children, views that are kept."""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import byref

# What is imported at first use cannot be when descriptors are short.
import byref._dtypes
import byref._pickles
import byref._tensors

from . import leaks
from .board import Board, Report
from .bursting import Bursting
from .context import Context
from .exchanging import Exchanging
from .hardship import Hardship
from .hoarding import Hoarding
from .keep import Keep
from .leaving import Leaving
from .names import TOPICS, any_of
from .polling import Polling
from .probing import Probing
from .publishing import Publishing
from .queueing import Queueing
from .relaying import Relaying
from .scenes import Scene
from .signals import Signals
from .subscribing import Subscribing

_Life = Publishing | Subscribing | Queueing | Relaying | Scene
_SCENES = (Bursting, Bursting, Exchanging, Exchanging, Hoarding, Polling, Leaving, Probing)
# So many of the lives of a player are scenes.
_SCENE_SHARE = 0.6
# Endpoints that one worker makes, one after another, its children's among them.
LIVES = 32

_CHILD_LIMIT = 40.0


class Worker:
    """`number` is the worker's own for the whole run; with `seed` it decides all that the worker does.

    A player leads one life at a time, is short of nothing, and plays scenes.
    """

    def __init__(self, number: int, seed: int, board: Board, pipe: int, is_player: bool) -> None:
        self._rng = random.Random(f"{seed}/{number}")
        self._number, self._board, self._pipe = number, board, pipe
        self._report = Report(pipe, number)
        self._signals = Signals()
        self._keep = Keep(self._rng, self._report)
        self._lives: list[_Life] = []
        self._is_player = is_player
        self._hardship = Hardship(self._rng, self._report, never=is_player)
        self._started = 0
        # One that does a single thing at a time may wait long; otherwise it could wait for itself.
        self._at_once = 1 if is_player else self._rng.choice((1, 1, 2, 4))
        self._forks = self._rng.choice((0, 0, 0.003))
        # Children, and what they inherited: it is theirs as long as this process keeps it.
        self._children: dict[int, Keep] = {}

    def run(self) -> None:
        """Until told to stop, or until it has had all its lives. Then everything must be given back."""
        before = leaks.descriptors()
        waiting = None
        with self._forgiving("endpoints refused"):
            if self._forks and self._hardship.never_comes:
                waiting = _Waiting(f"waiting/{self._number}")
        while not self._signals.stopping and (self._started < LIVES or self._lives):
            self._step()
        self._hardship.end()
        while self._lives:
            self._lives.pop().close()
        self._keep.clear()
        if waiting:
            waiting.end()
        if not leaks.settles(self._childless, _CHILD_LIMIT):
            self._report.violation(f"children {list(self._children)} hang")
        gc.collect()
        if not leaks.settles(lambda: leaks.descriptors() <= before and not leaks.mappings(), 5):
            held, maps = leaks.held(), leaks.mappings()
            self._report.counts["leaked descriptors"] += max(0, len(held) - before)
            self._report.counts["leaked mappings"] += len(maps)
            self._report.violation(f"leaks: {before} descriptors before, now {held}; maps {maps}")
        self._report.counts["workers that gave all back"] += 1
        self._report.beat(last=True)

    def _step(self) -> None:
        if len(self._lives) < self._at_once and self._started < LIVES:
            self._begin_life()
        if self._lives:
            life = self._rng.choice(self._lives)
            with self._forgiving("calls refused"):
                life.step()
            if life.is_over():
                self._lives.remove(life)
                life.close()
        self._keep.step()
        with self._forgiving("attempts refused"):
            self._hardship.step()
        if not self._hardship.is_on and self._rng.random() < self._forks and self._started < LIVES:
            self._fork()
        self._childless()
        self._report.beat()

    @contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        """While the process is short of something, or the directory is gone, calls may be refused: they say why."""
        began = time.monotonic()
        try:
            yield
        except byref.Error:
            if not (self._hardship.was_on(began) or self._board.was_troubled(began)):
                raise
            self._report.counts[f"{what} in times of shortage"] += 1

    def _begin_life(self) -> None:
        run = self._number * LIVES + self._started
        patient = self._at_once == 1
        context = Context(self._rng, self._board, self._report, self._keep, self._signals, patient)
        self._started += 1
        with self._forgiving("endpoints refused"):
            self._lives.append(self._make_life(context, run))
            self._report.counts["endpoints"] += 1

    def _make_life(self, context: Context, run: int) -> _Life:
        if self._is_player and self._rng.random() < _SCENE_SHARE:
            return self._rng.choice(_SCENES)(context, run)
        which = self._rng.random()
        if which < 0.35:
            return Publishing(context, self._rng.choice(TOPICS), run)
        if which < 0.45:
            return Relaying(context, run)
        if which < 0.6:
            return Queueing(context)
        return Subscribing(context, any_of(self._rng))

    def _fork(self) -> None:
        self._report.counts["forks"] += 1
        kept = self._keep.inherited(self._rng, self._report)
        if self._rng.random() < 0.5:
            self._fork_here(kept)
            return
        # The child's only thread is then another one than its parent's first.
        self._report.counts["forks from threads"] += 1
        thread = threading.Thread(target=self._fork_here, args=(kept,))
        thread.start()
        thread.join()
        if self._rng.random() < 0.3:
            self._report.counts["children told to stop"] += 1
            os.kill(next(reversed(self._children)), signal.SIGTERM)

    def _fork_here(self, kept: Keep) -> None:
        pid = os.fork()
        if pid:
            self._started += 1
            self._children[pid] = kept
        else:
            end_with(self._report, self._be_child)

    def _be_child(self) -> None:
        """Must be refused by all it inherited; has one life of its own, and looks at what its parent kept."""
        faulthandler.dump_traceback_later(_CHILD_LIMIT, exit=True)
        inherited = self._lives
        for life in inherited:
            life.expect_forked()
        self._rng = random.Random(f"{self._rng.random()} child")
        self._report = Report(self._pipe, self._number)
        self._keep = self._keep.inherited(self._rng, self._report)
        self._lives, self._children, self._forks, self._is_player = [], {}, 0, False
        self._hardship = Hardship(self._rng, self._report)
        if self._rng.random() < 0.5:
            inherited.clear()  # Which must do nothing to the parent's.
        self._begin_life()
        self._at_once = 0
        while self._lives and not self._signals.stopping:
            self._step()
        self._hardship.end()
        if self._rng.random() < 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        while self._lives:
            self._lives.pop().close()
        self._keep.clear()
        self._report.beat(last=True)

    def _childless(self) -> bool:
        """Whether all children are gone; whoever crashed is reported."""
        for pid in list(self._children):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                self._children.pop(pid).clear()
                code = os.waitstatus_to_exitcode(status)
                if code not in (0, -signal.SIGKILL):
                    self._report.violation(f"child {pid} ended with {code}")
        return not self._children


class _Waiting:
    """Threads that wait in byref all the time, so that forks come at every step of that."""

    def __init__(self, topic: str) -> None:
        self._is_over = False
        self._subscriber = byref.Subscriber(topic)
        self._threads = [threading.Thread(target=self._wait, daemon=True) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def _wait(self) -> None:
        while not self._is_over:
            with suppress(byref.Timeout):
                self._subscriber.recv(timeout=0.004)

    def end(self) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()
        self._subscriber.close()


def end_with(report: Report, run: Callable[[], None]) -> NoReturn:
    """Run, report what goes wrong, and end this process without a look at what it inherited."""
    code = 1
    try:
        run()
        code = 0
    except BaseException:
        report.violation(traceback.format_exc()[-2500:])
    finally:
        os._exit(code)
