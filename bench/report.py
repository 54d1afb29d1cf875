"""What a run prints and writes."""

import json
import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.cases import Metric
from bench.runner import Outcome

SUBJECT = "byref"
"""The system whose values are set beside those of the others."""

_HEADER = ("metric", "system", "median", "min .. max", "byref / it", "target", "reached")


@dataclass(frozen=True)
class Figure:
    """One metric of one case, by system."""

    metric: Metric
    trials: dict[str, list[float]]
    failures: dict[str, str]

    @classmethod
    def all_of(cls, outcome: Outcome) -> list["Figure"]:
        return [
            cls(metric, {system: outcome.of(system, i) for system in outcome.case.systems}, outcome.failures)
            for i, metric in enumerate(outcome.case.metrics)
        ]

    def ratio(self, system: str) -> float | None:
        """How many times a system's median fits into byref's; None where one is missing or nought."""
        theirs = self.trials.get(system)
        ours = self.trials[SUBJECT]
        return median(ours) / median(theirs) if ours and theirs and median(theirs) else None

    @property
    def reached(self) -> bool | None:
        """Whether byref reaches its target; None where there is none, or nothing to tell it by."""
        target, ours = self.metric.target, self.trials[SUBJECT]
        if target is None or not ours:
            return None
        value = self.ratio(target.of) if target.of else median(ours)
        return None if value is None else target.reached(value)

    def rows(self) -> list[tuple[str, ...]]:
        """One for each system, with the cells of `_HEADER`."""
        return [self._row(system) for system in self.trials]

    def _row(self, system: str) -> tuple[str, ...]:
        label = f"{self.metric.name} [{self.metric.unit}]" if self.metric.unit else self.metric.name
        trials = self.trials[system]
        if not trials:
            return (label, system, "failed", "", "", *self._verdict(system))
        ratio = self.ratio(system) if system != SUBJECT else None
        return (
            label,
            system,
            _number(median(trials)),
            f"{_number(min(trials))} .. {_number(max(trials))}" if len(trials) > 1 else "",
            _number(ratio) if ratio is not None else "",
            *self._verdict(system),
        )

    def _verdict(self, system: str) -> tuple[str, str]:
        """The cells on the target, in the row of the system it refers to."""
        target = self.metric.target
        if target is None or system != (target.of or SUBJECT):
            return "", ""
        return str(target), {True: "yes", False: "NO", None: "unknown"}[self.reached]

    def as_json(self) -> dict[str, Any]:
        target = self.metric.target
        return {
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "target": target and str(target),
            "reached": self.reached,
            "systems": {
                system: {"median": median(trials), "ratio": self.ratio(system), "trials": trials}
                for system, trials in self.trials.items()
                if trials
            },
            "failures": self.failures,
        }


def environment() -> dict[str, str]:
    """What the figures depend on besides the systems."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processors": f"{len(os.sched_getaffinity(0))} x {model[1] if model else platform.machine()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def others_cpu_seconds() -> float:
    """Processor time used, since the system started, by all but this process and its children that have ended."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy = user + nice + system + sum(interrupts)
    return busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def text(outcome: Outcome) -> str:
    """The table of a case, for the terminal."""
    rows = [_HEADER, *(row for figure in Figure.all_of(outcome) for row in figure.rows())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([f"{outcome.case.name}: {outcome.case.title}", *lines, *_failures(outcome)])


def write(path: Path, facts: dict[str, str], outcomes: list[Outcome]) -> None:
    """Write the report as JSON and as Markdown, to `path` with these suffixes."""
    cases = [(outcome.case, Figure.all_of(outcome)) for outcome in outcomes]
    document = {
        "facts": facts,
        "cases": {
            case.name: {"title": case.title, "figures": [figure.as_json() for figure in figures]}
            for case, figures in cases
        },
    }
    rows = [("case", *_HEADER), ("---",) * (len(_HEADER) + 1)]
    for case, figures in cases:
        rows += [(case.title, *row) for figure in figures for row in figure.rows()]
    notes = [f"{name}: {fact}" for name, fact in facts.items()]
    notes += [f"{outcome.case.title}: {failure}" for outcome in outcomes for failure in _failures(outcome)]
    markdown = [*(f"- {note}" for note in notes), "", *(f"| {' | '.join(row)} |" for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text("\n".join(markdown) + "\n")


def _failures(outcome: Outcome) -> list[str]:
    return [f"{system} failed: {reason}" for system, reason in outcome.failures.items()]


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
