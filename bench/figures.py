"""What the trials of a case come to: medians, and byref's ratio to what it is to be compared with."""

import math
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from bench.metrics import Metric, Target
from bench.peers import MODULES
from bench.runner import Outcome

SUBJECT = "byref"
"""The system whose values are set beside those of the others."""


class Verdict(NamedTuple):
    """How byref stands to a target."""

    target: Target
    measured: float | None
    """What the target bounds; None where something is missing."""

    @property
    def reached(self) -> bool | None:
        return None if self.measured is None else self.target.reached(self.measured)


@dataclass(frozen=True)
class Figure:
    """One metric of one case, by system."""

    metric: Metric
    trials: dict[str, list[float]]
    """The values of each system that belongs to the case; none if it failed."""

    @classmethod
    def all_of(cls, outcome: Outcome) -> list["Figure"]:
        return [
            cls(metric, {system: outcome.of(system, i) for system in outcome.case.systems})
            for i, metric in enumerate(outcome.case.metrics)
        ]

    @property
    def label(self) -> str:
        return f"{self.metric.name} [{self.metric.unit}]" if self.metric.unit else self.metric.name

    def value(self, system: str) -> float | None:
        """The median of a system's trials."""
        trials = self.trials.get(system)
        return median(trials) if trials else None

    def cell(self, system: str) -> str:
        """The same to be shown; empty for a system that does not belong to the case."""
        if system not in self.trials:
            return ""
        value = self.value(system)
        return "failed" if value is None else number(value)

    @property
    def spread(self) -> str:
        """The least and the most of byref's trials."""
        trials = self.trials[SUBJECT]
        return f"{number(min(trials))} .. {number(max(trials))}" if len(trials) > 1 else ""

    @property
    def others(self) -> str:
        """What stands beside byref without being one of the peers."""
        return ", ".join(f"{system}: {self.cell(system)}" for system in self.trials if system not in MODULES)

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each target."""
        return [Verdict(target, self._measure(target)) for target in self.metric.targets]

    def _measure(self, target: Target) -> float | None:
        ours = self.value(SUBJECT)
        if ours is None or not target.of:
            return ours
        theirs = [value for system in target.of if (value := self.value(system))]
        return ours / target.best(theirs) if theirs else None


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
