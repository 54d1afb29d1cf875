"""What is measured, with which systems, and what byref is to reach."""

import itertools
import os
import socket
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from bench import roles, rust
from bench.peers import MODULES, Address
from bench.trials import Trial, run_pair

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Target:
    """A bound on byref's value, or on its ratio to that of the peer that `of` names."""

    bound: float
    at_least: bool = False
    of: str | None = None

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{f' x {self.of}' if self.of else ''}"

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Metric:
    """One of the figures that a trial yields."""

    name: str
    unit: str
    target: Target | None = None


@dataclass(frozen=True)
class Case:
    """A measurement, to be made in turn with each of the systems."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    trial: Callable[[str, int], Trial]
    """Makes one trial of the named system; the number says how long it is (see `length`)."""

    length: int
    """Messages, round trips, bursts or seconds of a trial; of the first one only, if `adaptive`."""

    adaptive: bool = True
    """After a first trial that does not count, give each system as much to do as fills the same time."""

    repeated: bool = True
    """Make more than one trial that counts."""

    systems: tuple[str, ...] = tuple(MODULES)


def _stream(system: str, length: int, content: str) -> Trial:
    start, end = run_pair(roles.send_stream, roles.receive_stream, system, _address(), length, content)
    seconds = (end - start) / 1e9
    return Trial(seconds, (length / seconds / 1e6,))


def _bursts(system: str, length: int) -> Trial:
    costs, _ = run_pair(roles.send_bursts, roles.receive_bursts, system, _address(), length)
    return Trial(sum(costs) * roles.BURST / 1e9, (statistics.median(costs),))


def _round_trip(system: str, length: int, size: int) -> Trial:
    times, _ = run_pair(roles.ping, roles.pong, system, _address(), length, size)
    return Trial(sum(times) / 1e9, (_microseconds(times, 50), _microseconds(times, 99)))


_LOAN_SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB)


def _delivery(system: str, length: int) -> Trial:
    values = []
    for size in _LOAN_SIZES:
        starts, ends = run_pair(roles.send_loaned, roles.poll_loaned, system, _address(), length, size)
        values.append(_microseconds([end - start for start, end in zip(starts, ends, strict=True)], 50))
    return Trial(len(values) * length * roles.PACE_NS / 1e9, (*values, values[-1] / values[0]))


def _idle(system: str, length: int) -> Trial:
    percent, _ = run_pair(roles.watch_idle, roles.stay_idle, system, _address(), length)
    return Trial(length, (percent,))


def _microseconds(nanoseconds: Iterable[int], percentile: int) -> float:
    """A percentile of times, in microseconds."""
    return statistics.quantiles(nanoseconds, n=100, method="inclusive")[percentile - 1] / 1e3


_trial_numbers = itertools.count()


def _address() -> Address:
    """A place to meet at, a new one for each trial."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return Address(f"byref-bench-{os.getpid()}-{next(_trial_numbers)}", port)


def _size(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB" if size >= KIB else f"{size} B"


def _rate(name: str, title: str, content: str, target: Target | None = None) -> Case:
    metric = Metric("rate", "M msg/s", target)
    return Case(name, title, (metric,), partial(_stream, content=content), length=20_000)


def _round_trips(size: int, target: Target | None = None) -> Case:
    metrics = (Metric("p50", "us", target), Metric("p99", "us"))
    title = f"round trip, {_size(size)}"
    return Case(f"round-trip-{size}", title, metrics, partial(_round_trip, size=size), length=200)


CASES = (
    _rate("rate", "64 B, one buffer sent over and over", "same", Target(5, at_least=True, of="pyzmq")),
    _rate("rate-built", "64 B, packed by the sender, unpacked and summed by the receiver", "built"),
    _round_trips(64, Target(1 / 5, of="pyzmq")),
    _round_trips(4 * KIB),
    _round_trips(MIB),
    Case(
        "delivery",
        "loan.send() to try_recv(): loans filled beforehand, receiver polling and not touching the payload",
        (
            *(Metric(_size(size), "us") for size in _LOAN_SIZES),
            Metric(f"{_size(_LOAN_SIZES[-1])} : {_size(_LOAN_SIZES[0])}", "", Target(2)),
        ),
        _delivery,
        length=200,
        adaptive=False,
        systems=("byref",),
    ),
    Case(
        "send",
        f"send(), 64 B, in bursts of {roles.BURST} while the receiver receives",
        (Metric("p50", "ns"),),
        _bursts,
        length=400,
        adaptive=False,
    ),
    Case(
        "idle",
        "subscriber to which nothing comes",
        (Metric("CPU", "%", Target(0)),),
        _idle,
        length=10,
        adaptive=False,
        repeated=False,
    ),
    Case(
        "rust-rate",
        "Rust, 64 B, sequence checked",
        (Metric("rate", "M msg/s", Target(5, at_least=True, of="iceoryx2")),),
        partial(rust.trial, "rate"),
        length=200_000,
        systems=("byref", "iceoryx2"),
    ),
    Case(
        "rust-round-trip",
        "Rust, round trip, 64 B",
        (Metric("p50", "us"), Metric("p99", "us")),
        partial(rust.trial, "round-trip"),
        length=20_000,
        systems=("byref", "iceoryx2", "cache line"),
    ),
)
