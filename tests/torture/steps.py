"""Kill, stop or freeze a process at each step of the protocols: ``python -m tests.torture.steps``, with fault points.

A *step* is one passing of a fault point (`crates/byref/src/faults.rs`). For each point, each kind of traffic in which
it matters, each role that passes it, and each fate, a publisher and three subscribers meet; one of them, the victim,
meets its fate there; somebody takes its place. The others must not notice more than they have to (`roles`).

At the steps of connecting and parting there is one fate more: a *freeze*, longer than anybody waits in a handshake. The
others give up and go on, or ask again. Afterwards all are connected, and nobody's views have changed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import byref

from tests.child import die_with_parent
from tests.processes import state_of

from . import leaks, roles
from .roles import LOSSLESS, LOSSY, PUBLISHER, WITNESS, Part
from .stage import PATIENCE, Stage, Voice
from .traffic import JOINING, MOVING, TRAFFICS

Fate = Literal["kill", "stop, kill", "stop, continue", "freeze"]
FATES: tuple[Fate, ...] = ("kill", "stop, kill", "stop, continue")
VICTIMS = (PUBLISHER, LOSSLESS, LOSSY)
# So long (s) a victim stays stopped: the others must get on without it, as far as its policy lets them.
_STOPPED = 0.02
# For a step that needs others to come far meanwhile.
_STOPPED_LONG = 0.3
# So long (s) a frozen one stays stopped. A publisher gives up a connection that says nothing after `_HANDSHAKE` (ms;
# in an ordinary build 10 s); a subscriber asks the next publisher after 200 ms.
_FROZEN = 0.4
_HANDSHAKE = 150
# Where a process can be frozen: points at which others wait for it to connect, or to part. A publisher that accepts
# passes the same point for each subscriber, before and after it has begun to wait for a hello.
_CONNECTING = (
    "listen",
    "accept",
    "announce",
    "history",
    "connect",
    "segment",
    "grow",
    "retire",
    "lose",
    "over",
    "close",
)
_CONNECTING += ("meet", "renew")
_PASSINGS = 3
# Points of the data path, which matter in every traffic; the others are tried in the first that reaches them.
_DATA = ("publish", "receive", "hold", "release", "loan", "reclaim")
# A step that only a subscriber reaches that was stopped before, at the middle passing of another point.
_AFTER_A_STOP = {"hold.in_vain": "hold.raised"}
# Of directories that vanish, and of publishers that linger: test_meeting.py and test_linger.py stop and kill there. The
# thread that wakes many is asked for more sleepers than there are here: test_sleeping.py stops and kills its process.
# Of mailboxes: test_mailbox_steps.py; of requests: test_requests_steps.py; of work queues: test_work_steps.py.
_ELSEWHERE = {"meet.moved", "meet.told", "renew.former_left", "close.publisher_lingers", "wake.requested"} | {
    *("ask.connected", "claim.locked", "claim.taken", "claim.unlocking", "close.mailbox_inbox", "close.mailbox_line"),
    *("collect.admitted", "collect.lease_mapped", "knock.expecting", "knock.heard", "part.begun", "part.noted"),
    "part.revoked",
    *("resend.begun", "takeover.asking", "takeover.given_way", "takeover.heard"),
    *("request.flag_cleared", "request.sent", "cancel.before", "cancel.after", "stream.held_up"),
    *("reply.before", "reply.after", "reply.dropping"),
    *("answer.given", "answer.ringing", "answer.written", "job.given", "job.giving", "work.added", "work.admitted"),
    *("work.armed", "work.closing", "work.given_up", "work.lease_mapped", "work.line_removed", "work.parted"),
    "work.parting",
}


@dataclass(frozen=True)
class Step:
    """One step of the campaign. `passing`: at which passing of the point; without a point nothing happens."""

    traffic: str
    role: str
    point: str | None = None
    passing: int = 1
    fate: Fate = "kill"
    after: tuple[str, int] | None = None

    def environment(self) -> str:
        """What the victim's library has to do."""
        stop = f"{self.after[0]}:{self.after[1]}:stop," if self.after else ""
        signal = "kill" if self.fate == "kill" else "stop"
        return f"{stop}{self.point}:{self.passing}:{signal}" if self.point else ""

    def __str__(self) -> str:
        return f"{self.point or 'nothing'}:{self.passing}, {self.fate}, {self.role}, {self.traffic}"


class Director:
    """Runs steps one after another, and gathers what goes wrong."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        # Its length, and where it was.
        self.worst_stall = 0.0, "nowhere"
        self._stage = Stage()
        self._pipe, self._report_to = os.pipe()
        os.set_blocking(self._pipe, False)
        self._unread = b""

    def run(self, step: Step) -> tuple[bool, dict[str, int]]:
        """Whether the victim met its fate; and the points that it passed, if it lived to tell."""
        self._step, self._children, self._passed = step, dict[int, str](), dict[str, int]()
        self._stalls: list[tuple[float, float]] = []
        self._died: float | None = None
        self._scratch = Path(tempfile.mkdtemp(prefix="byref-steps-"))
        os.environ["BYREF_DIR"] = str(self._scratch / "meet")
        os.environ.pop("BYREF_HANDSHAKE_MS", None)
        if step.fate == "freeze":
            os.environ["BYREF_HANDSHAKE_MS"] = str(_HANDSHAKE)
        self._stage.clear()
        try:
            met = self._perform()
            self._check_end()
            return met, self._passed
        except _HangError as what:
            self._violation(f"not within {PATIENCE:g} s: {what}; the stacks follow")
            self._dump()
            return False, {}
        finally:
            self._end_all()
            shutil.rmtree(self._scratch)

    def _perform(self) -> bool:
        step, stage, traffic = self._step, self._stage, TRAFFICS[self._step.traffic]
        publishers = {self._start(PUBLISHER)}
        if traffic.history:
            is_stopped = lambda: any(state_of(pid) == "T" for pid in publishers & self._children.keys())  # noqa: E731
            self._until(
                lambda: stage.primed or not publishers & self._children.keys() or is_stopped(),
                "the publisher has a history",
            )
        subscribers = {self._start(role) for role in (LOSSLESS, LOSSY, WITNESS)}
        stage.cast(subscribers)
        victim = next(pid for pid, role in self._children.items() if role == step.role)
        met = self._await_fate(victim)
        stage.settled = True
        second = self._start(step.role, is_second=True)
        publishers, subscribers = publishers - {victim}, subscribers - {victim}
        (publishers if step.role == PUBLISHER else subscribers).add(second)
        stage.cast(subscribers)
        stage.replaced = True
        self._until(lambda: not publishers & self._children.keys(), "the publisher is done")
        stage.finish = True
        self._until(lambda: not self._children, "all end")
        return met

    def _start(self, role: str, is_second: bool = False) -> int:
        is_victim = role == self._step.role and not is_second
        pid = os.fork()
        if not pid:
            self._be(
                Part(
                    self._stage, Voice(self._report_to, role), TRAFFICS[self._step.traffic], role, is_victim, is_second
                )
            )
        self._children[pid] = role
        return pid

    def _be(self, part: Part) -> NoReturn:
        code = 1
        try:
            die_with_parent()
            os.close(self._pipe)
            output = os.open(self._scratch / f"{part.role}-{os.getpid()}", os.O_CREAT | os.O_WRONLY, 0o600)
            for standard in (1, 2):
                os.dup2(output, standard)
            os.close(output)
            faulthandler.enable()
            os.environ["BYREF_FAULT"] = self._step.environment() if part.is_victim else ""
            roles.play(part)
            if part.is_victim:
                passed = {point: count for point, count in byref._byref.faults().items() if count}
                part.voice.say(passed=passed)
            code = 0
        except BaseException:
            part.voice.violation(traceback.format_exc()[-2500:])
        finally:
            os._exit(code)

    def _await_fate(self, victim: int) -> bool:
        """Wait until the victim has died, or has come through; whether anything happened to it."""
        stops = 0
        while victim in self._children:
            stopped = self._attend_until_stopped(victim)
            if not stopped:
                break
            stops += 1
            # Whoever was stopped only so that it meets its fate later goes on.
            is_prelude = self._step.after is not None and stops == 1
            self._pause(_STOPPED_LONG if is_prelude else _FROZEN if self._step.fate == "freeze" else _STOPPED)
            if self._step.fate == "stop, kill" and not is_prelude:
                os.kill(victim, signal.SIGKILL)
            else:
                os.kill(victim, signal.SIGCONT)
        wanted = 1 if self._step.after is None else 2
        return self._died is not None or stops >= wanted

    def _attend_until_stopped(self, victim: int) -> bool:
        """True when the victim stopped, False when it is gone."""
        until = time.monotonic() + PATIENCE
        while victim in self._children:
            self._listen(0.001)
            pid, status = os.waitpid(victim, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                return True
            if pid:
                self._bury(pid, status)
            self._reap()
            if time.monotonic() > until:
                raise _HangError("the victim comes to an end")
        return False

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._listen(left)

    def _until(self, condition: Any, what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            self._listen(0.001)
            self._reap()
            if time.monotonic() > until:
                raise _HangError(what)

    def _reap(self) -> None:
        for pid in list(self._children):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                self._bury(pid, status)

    def _bury(self, pid: int, status: int) -> None:
        role, code = self._children.pop(pid), os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL and role == self._step.role and self._died is None and self._step.point:
            self._died = time.monotonic()
        elif code:
            self._violation(f"{role} ended with {code}")

    def _listen(self, seconds: float) -> None:
        if not select.select([self._pipe], (), (), seconds)[0]:
            return
        self._unread += os.read(self._pipe, 1 << 20)
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            said = json.loads(line)
            self._passed = said.get("passed", self._passed)
            self._stalls += said.get("stalls", ())
            if violation := said.get("violation"):
                self._violation(f"{said['who']}: {violation}")

    def _check_end(self) -> None:
        self._listen(0)
        for path in self._scratch.iterdir():
            if path.is_file():
                lines = path.read_text(errors="replace").splitlines()
                if telling := [line for line in lines if not leaks.is_warning(line)]:
                    self._violation(f"{path.name} wrote to standard error:\n" + "\n".join(telling)[-2000:])
        left = [name for name in os.listdir(self._scratch / "meet") if not name.startswith("tmp-")]
        # The replacement of a publisher may be the last to look, and it came before the others went.
        if left:
            self._violation(f"left in the rendezvous directory: {left}")
        self._measure_stalls()

    def _measure_stalls(self) -> None:
        """How long sends that were under way at a death took from then on."""
        if self._died is None or TRAFFICS[self._step.traffic].is_huge:
            return  # A huge message takes that long by itself.
        for began, ended in self._stalls:
            if began < self._died < ended:
                self.counts["sends held up by the dead"] += 1
                self.worst_stall = max(self.worst_stall, (ended - self._died, str(self._step)))

    def _end_all(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in list(self._children):
            os.waitpid(pid, 0)
        self._children.clear()

    def _dump(self) -> None:
        """The stacks of all that hang."""
        for pid in self._children:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.3)
        for path in self._scratch.iterdir():
            if path.is_file() and (text := path.read_text(errors="replace")):
                self._violation(f"{path.name}:\n{text[-3000:]}")

    def _violation(self, what: str) -> None:
        self.violations.append(f"{self._step}: {what}")


class _HangError(Exception):
    pass


def plan(director: Director, traffics: list[str], only: str) -> tuple[list[Step], list[str]]:
    """All steps, found by runs without a fault, and the points that nobody reaches."""
    steps: list[Step] = []
    points = sorted(byref._byref.faults())
    reached = set(_AFTER_A_STOP) | _ELSEWHERE
    for role in VICTIMS:
        seen, frozen = set[str](), set[str]()
        for traffic in traffics:
            _, passed = director.run(Step(traffic, role))
            if director.violations:
                return [], []
            for point in points:
                if point not in passed:
                    continue
                middle = (passed[point] + 1) // 2
                is_special = traffic in (JOINING, MOVING)
                if traffic != JOINING and (point not in seen or (point.startswith(_DATA) and not is_special)):
                    seen.add(point)
                    steps += [Step(traffic, role, point, middle, fate) for fate in FATES]
                if point.startswith(_CONNECTING) and point not in frozen:
                    frozen.add(point)
                    passings = sorted({*range(1, min(passed[point], _PASSINGS) + 1), middle})
                    steps += [Step(traffic, role, point, passing, "freeze") for passing in passings]
        reached |= seen
    for point, stop_at in _AFTER_A_STOP.items():
        stops = [step for step in steps if (step.point, step.role, step.traffic) == (stop_at, LOSSY, "pooled")]
        steps += [replace(stop, point=point, passing=1, after=(stop_at, stop.passing)) for stop in stops]
    steps = [step for step in steps if only in str(step)]
    return steps, [point for point in points if point not in reached]


def perform(director: Director, step: Step) -> bool:
    """Run a step; if the victim came through, which may happen as processes run as they like, at its first passing."""
    met, _ = director.run(step)
    for _ in range(3):
        if met or director.violations:
            break
        director.counts["repeated"] += 1
        met, _ = director.run(replace(step, passing=1))
    return met


def main() -> int:
    """Run the campaign, print what happened, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.steps", description=__doc__)
    parser.add_argument("--only", default="", help="steps whose description contains this")
    parser.add_argument("--traffic", action="append", choices=list(TRAFFICS), help="only this (may be repeated)")
    parser.add_argument("--sample", type=int, default=1, help="one step in so many (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the steps and do nothing")
    options = parser.parse_args()
    if not hasattr(byref._byref, "faults"):
        parser.error("this build has no fault points: use `make steps`")
    began = time.monotonic()
    director = Director()
    steps, unreached = plan(director, options.traffic or list(TRAFFICS), options.only)
    print(f"{len(byref._byref.faults())} points, {len(steps)} steps", flush=True)
    met, missed = set[str | None](), set[str | None]()
    for step in steps[:: options.sample]:
        if options.list:
            print(step)
            continue
        if director.violations:
            break
        if perform(director, step):
            director.counts[f"{step.fate}: {step.role}"] += 1
            met.add(step.point)
        else:
            # What the first runs passed by chance (a stale socket that was there just then, say).
            director.counts["steps that the victim never came to"] += 1
            missed.add(step.point)
    if options.sample == 1 and missed - met:
        director.violations.append(f"points that no victim came to: {missed - met}")
    if unreached and not options.traffic:
        director.violations.append(f"points that nobody reaches: {unreached}")
    figures = [(name, f"{count:,}") for name, count in sorted(director.counts.items())]
    stall, where = director.worst_stall
    figures.append(("worst stall after a death", f"{stall * 1000:.1f} ms ({where})"))
    figures.append(("time", f"{time.monotonic() - began:.0f} s"))
    figures.append(("violations", str(len(director.violations))))
    print("\n".join(f"{name:>28}  {figure}" for name, figure in figures))
    print(*director.violations, sep="\n")
    return bool(director.violations)


if __name__ == "__main__":
    sys.exit(main())
