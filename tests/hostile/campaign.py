"""Honest processes, strangers among them, and what must not change."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.processes import Child, Role, descriptors, eventually, maps, threads

from .attacker import ATTACKS, attack
from .victims import publish, subscribe

# What strangers may cost an honest process while they are there.
MOST_DESCRIPTORS = 700
MOST_MEMORY = 400 << 20
# What may remain of them: an allocator keeps some memory, and the pool may have grown.
SLACK_MAPPINGS = 40
SLACK_MEMORY = 64 << 20
ATTACKERS = 2
POLICIES = ("block", "drop_oldest", "latest")


@dataclass
class Holdings:
    """What a process holds."""

    descriptors: int
    threads: int
    mappings: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> Holdings:
        """Its present ones. The memory is its own, with what it made the system give for what it maps."""
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        return cls(len(descriptors(pid)), threads(pid), len(maps(pid)), int(fields[1]) * 4096)

    def most(self, other: Holdings) -> Holdings:
        """The larger ones of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Holdings(*(max(pair) for pair in pairs))


class Campaign:
    """Runs it; `counts` and `log` tell what happened."""

    def __init__(self, seed: int, attacks: list[str] | None = None, one_attack: float = 0.3) -> None:
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self.most = Holdings(0, 0, 0, 0)
        self._seed = seed
        self._attacks = attacks or list(ATTACKS)
        self._one_attack = one_attack
        self._children: list[Child] = []

    def run(self, seconds: float) -> None:
        """All of it; fails with an `AssertionError` that says what went wrong."""
        try:
            self._run(seconds)
        finally:
            for child in self._children:
                child.process.kill()
            for child in self._children:
                self.log += child.output().splitlines()
                child.end()

    def _start(self, role: Role, *arguments: object) -> Child:
        child = Child(role, *arguments)
        self._children.append(child)
        return child

    def _run(self, seconds: float) -> None:
        publisher = self._start(publish)
        assert publisher.hear() == "ready"
        subscribers = [self._start(subscribe, publisher.pid, policy, self._seed) for policy in POLICIES]
        for subscriber in subscribers:
            assert subscriber.hear() == "ready"
        victims = [publisher, *subscribers]
        time.sleep(0.5)  # Until the pool has its usual size.
        before = [Holdings.of(victim.pid) for victim in victims]

        attackers = [
            self._start(attack, f"{self._seed}-{place}", self._attacks, self._one_attack) for place in range(ATTACKERS)
        ]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.1)
            self._watch(victims, attackers)
        for attacker in attackers:
            attacker.tell("enough")
        for attacker in attackers:
            while not attacker.has_something():  # It makes its last round.
                self._watch(victims, attackers)
                time.sleep(0.1)
            self.counts.update(attacker.hear())
        for attacker in attackers:
            attacker.tell("the end")
            attacker.finish()

        for victim, holdings in zip(victims, before, strict=True):
            self._expect_recovery(victim, holdings)
        publisher.tell("enough")
        told = publisher.hear()
        self.counts.update(told)
        for subscriber, policy in zip(subscribers, POLICIES, strict=True):
            subscriber.tell("enough")
            said = subscriber.hear()
            self.counts[f"received by {policy}"] = said["received"]
            strangers = {name: count for name, count in said.items() if name not in ("received", "next")}
            self.counts.update(strangers)
            if policy == "block":
                assert said["next"] == told["sent"], "a message is missing at the end"
        for victim in victims:
            victim.tell("the end")
            victim.finish()

    def _watch(self, victims: list[Child], attackers: list[Child]) -> None:
        """Nobody ends, and nobody takes too much."""
        for child in victims + attackers:
            assert child.process.poll() is None, f"{child} ended\n{child.output()}"
        for victim in victims:
            now = Holdings.of(victim.pid)
            self.most = self.most.most(now)
            assert now.descriptors < MOST_DESCRIPTORS, f"{victim} has {now}"
            assert now.memory < MOST_MEMORY, f"{victim} has {now}"

    def _expect_recovery(self, victim: Child, before: Holdings) -> None:
        """Once the strangers are gone, nothing of them is left."""

        def has_recovered() -> bool:
            now = Holdings.of(victim.pid)
            return (
                now.descriptors <= before.descriptors
                and now.threads <= before.threads
                and now.mappings <= before.mappings + SLACK_MAPPINGS
                and now.memory <= before.memory + SLACK_MEMORY
            )

        try:
            eventually(has_recovered, "the strangers leave nothing behind", 30)
        except AssertionError as problem:
            now = Holdings.of(victim.pid)
            raise AssertionError(f"{victim} has {now}, before {before}\n{victim.output()[-5000:]}") from problem

    def logged(self, pattern: str) -> int:
        """How many lines of all logs match."""
        return sum(bool(re.search(pattern, line)) for line in self.log)
