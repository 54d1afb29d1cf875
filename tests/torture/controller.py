"""Starts, freezes and kills workers, listens to them, and checks at the end that nothing is left."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import math
import os
import random
import select
import shutil
import signal
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import byref

from . import leaks
from .board import Board, Report
from .probing import reside
from .worker import Worker, end_with

# So many workers at a time, and so many of them players, who are killed seldom: their scenes take seconds.
_MOST_WORKERS, _PLAYERS = 7, 2
_PLAYER_KILLS = 0.1
_BETWEEN_ACTIONS = 0.3  # seconds, on average
# Freezes take so long (s); a few are longer than a handshake may take.
_FREEZES = (0.01, 0.1, 0.5, 0.5, 1, 3)
_LONG_FREEZE, _LONG_SHARE = 10.5, 0.02
_SILENCE = 40.0  # A worker that says nothing for so many seconds hangs.
_PAUSE = 2.0  # The controller itself is never so long (s) without looking.
_MOST_VIOLATIONS = 20  # Then the run is over.
_SHARED_MEMORY_SLACK = 4 << 10  # KiB; other programs come and go.
# So long (s) the rendezvous directory is read-only.
_TROUBLE = 0.5
# A socket this old that was never announced is swept away (so many seconds).
_ABANDONED = 120

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass
class _Process:
    """A running worker."""

    pid: int
    number: int
    heard: float  # When it last reported.
    thaw_at: float | None = None  # It is frozen until then.
    killed: bool = False
    is_player: bool = False


class Controller:
    """One run. `seed` decides everything except the timing."""

    def __init__(self, seed: int) -> None:
        # What must be zero is told, too.
        self.counts: Counter[str] = Counter({f"leaked {what}": 0 for what in ("descriptors", "mappings", "KiB")})
        self.longest_stall = 0.0
        self.violations: list[str] = []
        self.events: deque[str] = deque(maxlen=100)
        self._seed = seed
        self._rng = random.Random(seed)
        self._began = self._attended = time.monotonic()
        self._paused = 0.0  # The end of the last stop from outside.
        self._workers: dict[int, _Process] = {}
        self._started = 0
        self._unread = b""
        # When the rendezvous directory, which is read-only, is so no more.
        self._writable_at: float | None = None
        self._board = Board()

    def run(self, seconds: float) -> None:
        """Stress for so long, then stop everything and look for leaks."""
        with tempfile.TemporaryDirectory(prefix="byref-torture-") as scratch, _adopting_orphans():
            self._errors, self._rendezvous = Path(scratch, "errors"), Path(scratch, "rendezvous")
            self._errors.mkdir()
            os.environ["BYREF_DIR"] = str(self._rendezvous)
            gc.collect()
            descriptors, shared_memory = leaks.descriptors(), leaks.shared_memory()
            self._pipe, self._report_to = os.pipe()
            resident = self._settle_resident()
            try:
                self._stress(seconds)
                os.kill(resident, signal.SIGTERM)
                self._stop()
            finally:
                self._kill_all()
                os.close(self._pipe)
                os.close(self._report_to)
            self._check_errors()
            self._check_leaks(descriptors, shared_memory)

    def _stress(self, seconds: float) -> None:
        next_action = next_progress = 0.0
        while (elapsed := self._elapsed()) < seconds and len(self.violations) < _MOST_VIOLATIONS:
            while len(self._workers) < _MOST_WORKERS:
                self._spawn()
            if elapsed > next_action:
                next_action = elapsed + self._rng.expovariate(1 / _BETWEEN_ACTIONS)
                self._act()
            if elapsed > next_progress:
                next_progress = elapsed + 10
                print(f"{elapsed:6.0f} s  {self.brief()}", flush=True)
            self._attend(0.02)

    def brief(self) -> str:
        names = ("kills", "freezes", "forks", "sent", "received")
        counts = ", ".join(f"{self.counts[name]:,} {name}" for name in names)
        return f"{counts}, {len(self.violations)} violations"

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _spawn(self) -> None:
        number = self._started
        self._started += 1
        is_player = sum(worker.is_player for worker in self._workers.values()) < _PLAYERS
        self.counts["workers"] += 1
        # Asked to stop, it must not die before it knows how to.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        pid = os.fork()
        if not pid:
            self._be_worker(number, is_player)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        self._workers[pid] = _Process(pid, number, time.monotonic(), is_player=is_player)

    def _be_worker(self, number: int, is_player: bool) -> NoReturn:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(self._pipe)
        errors = os.open(self._errors / str(number), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for standard in (1, 2):
            os.dup2(errors, standard)
        os.close(errors)
        faulthandler.enable()
        worker = Worker(number, self._seed, self._board, self._report_to, is_player)
        end_with(Report(self._report_to, number), worker.run)

    def _settle_resident(self) -> int:
        """Somebody whom newcomers meet, whatever becomes of the directory."""
        pid = os.fork()
        if not pid:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            end_with(Report(self._report_to, -1), reside)
        return pid

    def _act(self) -> None:
        """Kill some worker, or freeze it for a while; seldom, take the directory away."""
        worker = self._rng.choice(list(self._workers.values()))
        if self._rng.random() < 0.03:
            self._trouble_directory()
        elif self._rng.random() < (_PLAYER_KILLS if worker.is_player else 0.7):
            self._kill(worker)
            self.counts["kills"] += 1
        elif worker.thaw_at is None:
            is_long = self._rng.random() < _LONG_SHARE
            worker.thaw_at = time.monotonic() + (_LONG_FREEZE if is_long else self._rng.choice(_FREEZES))
            self.counts["freezes of more than 10 s"] += is_long
            self.counts["freezes"] += 1
            self._signal(worker, signal.SIGSTOP)

    def _trouble_directory(self) -> None:
        """Delete the rendezvous directory, or forbid to write in it for a while. Who is connected stays so."""
        self._board.expect_trouble(_TROUBLE)
        if self._rng.random() < 0.5:
            self._note("the directory is deleted")
            self.counts["directories deleted"] += 1
            shutil.rmtree(self._rendezvous, ignore_errors=True)
        elif self._rendezvous.exists():
            self._note("the directory is read-only")
            self.counts["directories made read-only"] += 1
            self._board.expect_trouble(math.inf)
            self._rendezvous.chmod(0o500)
            self._writable_at = time.monotonic() + _TROUBLE

    def _kill(self, worker: _Process) -> None:
        worker.killed = True
        self._signal(worker, signal.SIGKILL)

    def _signal(self, worker: _Process, number: signal.Signals) -> None:
        self._note(f"{number.name} to worker {worker.number}")
        os.kill(worker.pid, number)

    def _attend(self, seconds: float) -> None:
        """Listen, thaw, bury, and look for whoever hangs."""
        self._note_pause()
        while select.select([self._pipe], (), (), seconds)[0]:
            self._note_pause()
            self._unread += os.read(self._pipe, 1 << 16)
            *lines, self._unread = self._unread.split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
            seconds = 0
        now = time.monotonic()
        if self._writable_at is not None and now > self._writable_at:
            self._allow_writing()
        for worker in self._workers.values():
            if worker.thaw_at is not None and now > worker.thaw_at:
                worker.thaw_at, worker.heard = None, now
                self._signal(worker, signal.SIGCONT)
            if worker.thaw_at is None and now > worker.heard + _SILENCE and not worker.killed:
                self._violation(f"worker {worker.number} hangs; its stack follows")
                worker.killed = True
                self._signal(worker, signal.SIGABRT)
        self._bury()

    def _note_pause(self) -> None:
        """If all was stopped from outside, this process too, then nobody could say anything."""
        now = time.monotonic()
        if now > self._attended + _PAUSE:
            self._note(f"nothing happened for {now - self._attended:.1f} s")
            self.counts["stops from outside"] += 1
            self._paused = now
            for worker in self._workers.values():
                worker.heard = now
        self._attended = now

    def _allow_writing(self) -> None:
        self._writable_at = None
        if self._rendezvous.exists():
            self._rendezvous.chmod(0o700)
        self._board.expect_trouble(0)

    def _hear(self, said: dict[str, Any]) -> None:
        if worker := self._workers.get(said["pid"]):
            worker.heard = time.monotonic()
        if violation := said.get("violation"):
            since = said["since"]
            if since is not None and since < self._paused:
                self._note(f"not judged: {violation}")
                return
            self._violation(f"worker {said['worker']}, process {said['pid']}: {violation}")
        self.counts.update(said.get("counts", {}))
        self.longest_stall = max(self.longest_stall, said.get("stall", 0.0))

    def _bury(self) -> bool:
        """Take note of the dead; True when nobody is left, workers and orphans of theirs."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if not pid:
                return False
            worker, code = self._workers.pop(pid, None), os.waitstatus_to_exitcode(status)
            who = f"worker {worker.number}" if worker else f"an orphan, process {pid},"
            self._note(f"{who} ended with {code}")
            # Children kill themselves now and then, and a worker that failed has said so.
            expected = (0, 1, -signal.SIGKILL, -signal.SIGTERM) if not worker or worker.killed else (0, 1)
            if code not in expected and not (worker and worker.killed):
                self._violation(f"{who} ended with {code}")

    def _stop(self) -> None:
        """Ask all to end; whoever does not is reported."""
        if self._writable_at is not None:
            self._allow_writing()
        for worker in self._workers.values():
            self._signal(worker, signal.SIGCONT)
            self._signal(worker, signal.SIGTERM)
            worker.thaw_at = None
        until = time.monotonic() + 2 * _SILENCE
        while not self._bury():
            if time.monotonic() > until:
                left = [worker.number for worker in self._workers.values()] or "orphans"
                return self._violation(f"these did not end: {left}")
            self._attend(0.02)
        self._attend(0)

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            self._kill(worker)
        leaks.settles(self._bury, _SILENCE)

    def _check_errors(self) -> None:
        """Workers have nothing to write to standard error but warnings: of peers that vanished while they connected."""
        for path in sorted(self._errors.iterdir()):
            lines = path.read_text(errors="replace").splitlines()
            if telling := [line for line in lines if not leaks.is_warning(line)]:
                text = "\n".join(telling)
                self._violation(f"worker {path.name} wrote to standard error:\n{text[-4000:]}")

    def _check_leaks(self, descriptors: int, shared_memory: int) -> None:
        for name in self._rendezvous.glob("tmp-*"):
            # Of a publisher killed before it was announced; it would be swept when it is older.
            os.utime(name, (time.time() - _ABANDONED, time.time() - _ABANDONED))
        # It sweeps in the background, as long as it is there.
        with byref.Publisher("torture/sweep"):
            leaks.settles(lambda: len(os.listdir(self._rendezvous)) == 1, 5)
        if left := os.listdir(self._rendezvous):
            self._violation(f"leaked: the rendezvous directory has {left}")
        if not leaks.settles(lambda: leaks.descriptors() <= descriptors and not leaks.mappings(), 5):
            held, maps = leaks.descriptors() - descriptors, leaks.mappings()
            self.counts["leaked descriptors"] += max(0, held)
            self.counts["leaked mappings"] += len(maps)
            self._violation(f"leaked by the controller: {held} descriptors, {maps}")
        if not leaks.settles(lambda: leaks.shared_memory() <= shared_memory + _SHARED_MEMORY_SLACK, 5):
            more = leaks.shared_memory() - shared_memory
            if others := leaks.holders():
                print(f"not judged: {more:,} KiB of shared memory more, because processes {others} use byref, too")
            else:
                self.counts["leaked KiB"] += more
                self._violation(f"leaked: {more:,} KiB of shared memory")

    def _violation(self, what: str) -> None:
        self.violations.append(what)
        print(f"{self._elapsed():6.0f} s  violation: {what}", flush=True)
        self._note(f"violation: {what}")

    def _note(self, event: str) -> None:
        self.events.append(f"{self._elapsed():8.3f} s  {event}")


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Children of killed workers become this process's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
