"""What a case is, what it measures, and what byref is to reach in it."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.trials import Trial


@dataclass(frozen=True)
class Target:
    """A bound on byref's value, or on its ratio to the best of the systems that `of` names."""

    bound: float
    at_least: bool = False
    of: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{self.reference}"

    @property
    def reference(self) -> str:
        """What the bound is a multiple of, to be put behind the number."""
        if not self.of:
            return ""
        return f" x {self.of[0]}" if len(self.of) == 1 else f" x the better of {' and '.join(self.of)}"

    def best(self, values: list[float]) -> float:
        """The best of the values that byref is compared with."""
        return max(values) if self.at_least else min(values)

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float, *of: str) -> tuple[Target]:
    """The one target of a metric that is to be large."""
    return (Target(bound, at_least=True, of=of),)


def at_most(bound: float, *of: str) -> tuple[Target]:
    """The one target of a metric that is to be small."""
    return (Target(bound, of=of),)


@dataclass(frozen=True)
class Metric:
    """One of the figures that a trial yields."""

    name: str
    unit: str
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Case:
    """A measurement, to be made in turn with each of the systems."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    trial: Callable[[str, int], Trial]
    """Makes one trial of the named system; the number says how long it is (see `length`)."""

    systems: tuple[str, ...]

    length: int
    """Messages, batches, round trips, bursts or seconds of a trial; of the first one only, if `adaptive`."""

    adaptive: bool = True
    """After a first trial that does not count, give each system as much to do as fills the same time."""

    repeated: bool = True
    """Make more than one trial that counts."""

    note: str = ""
    """What a reader of the figures should know."""

    chart: str = ""
    """The panel of the chart in which its first metric is shown."""

    group: str = ""
    """What it belongs to, for `--only`."""
