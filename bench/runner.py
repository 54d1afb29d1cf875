"""Makes the trials of a case, in turn for each of its systems."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench.metrics import Case
from bench.trials import Trial


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    repeats: int
    """Trials of each system that count."""

    seconds: float
    """What an adaptive trial should take."""

    share: float
    """How much to do of what is not adaptive."""


@dataclass(frozen=True)
class Outcome:
    """What the trials of a case have given."""

    case: Case
    values: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)
    """By system and trial, one value for each metric."""

    failures: dict[str, str] = field(default_factory=dict)
    """Why a system could not be measured."""

    def of(self, system: str, metric: int) -> list[float]:
        """The values of one metric in all trials of a system; none if any of them failed."""
        return [] if system in self.failures else [values[metric] for values in self.values[system]]


def run(case: Case, effort: Effort, progress: Callable[[str], None]) -> Outcome:
    """Make all trials of a case, in rounds in which every system has its turn: all meet the same weather."""
    outcome = Outcome(case, {system: [] for system in case.systems})
    if case.adaptive:
        lengths = dict.fromkeys(case.systems, case.length)
        progress("sizing the trials")
        for system, trial in _round(outcome, lengths):
            lengths[system] = max(case.length // 10, round(lengths[system] * effort.seconds / trial.seconds))
    else:
        lengths = dict.fromkeys(case.systems, round(case.length * effort.share))
    repeats = effort.repeats if case.repeated else 1
    for number in range(1, repeats + 1):
        progress(f"round {number} of {repeats}")
        for system, trial in _round(outcome, lengths):
            outcome.values[system].append(trial.values)
    return outcome


def _round(outcome: Outcome, lengths: dict[str, int]) -> Iterator[tuple[str, Trial]]:
    """One trial of each system that has not failed yet."""
    for system in outcome.case.systems:
        if system not in outcome.failures:
            try:
                trial = outcome.case.trial(system, lengths[system])
            except Exception as error:  # Whatever a peer does wrong, the others have their turn.
                outcome.failures[system] = str(error) or type(error).__name__
            else:
                yield system, trial
