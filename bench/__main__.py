"""The command line: `python -m bench`."""

import argparse
import signal
import sys
import time
from pathlib import Path

from bench import chart, machine, peers, report
from bench.cases import CASES
from bench.figures import SUBJECT
from bench.runner import Effort, run

_ROOT = Path(__file__).parents[1]


def main() -> int:
    options = _parse()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # by way of `finally`: no worker is left
    facts = {
        **machine.facts(),
        "trials": f"{options.repeats} of each system and case, in turn; median",
        **{system: peers.describe(system) for system in peers.MODULES},
    }
    begin, others = time.monotonic(), machine.others_cpu_seconds()
    effort = Effort(options.repeats, *((0.15, 0.3) if options.quick else (0.6, 1.0)))
    outcomes = []
    print(report.header())
    for case in CASES:
        if case.name in options.only or case.group in options.only:
            outcomes.append(run(case, effort, lambda step, name=case.name: _progress(f"{name}: {step}")))
            _progress("")
            print(report.text(outcomes[-1]), flush=True)
    seconds = time.monotonic() - begin
    disturbance = (machine.others_cpu_seconds() - others) / seconds
    facts["duration"] = f"{seconds:.0f} s, while other programs kept {disturbance:.2f} processors busy"
    print("", *(f"{name}: {fact}" for name, fact in facts.items()), *report.notes(outcomes), sep="\n")

    options.output.parent.mkdir(parents=True, exist_ok=True)
    report.write(options.output, facts, outcomes)
    chart.write(options.output.with_suffix(".svg"), outcomes)
    print(f"\nwritten: {options.output}.json, .md and .svg")
    if options.readme:
        report.write_readme(facts, outcomes)
    return int(any(SUBJECT in outcome.failures for outcome in outcomes))


def _parse() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure byref beside its peers.")
    parser.add_argument("--repeats", type=int, metavar="N", help="trials of each system (5, or 2 if quick)")
    groups = sorted({case.group for case in CASES if case.group})
    only = f"only this case, or group of cases; may be given again: {', '.join([*groups, *names])}"
    parser.add_argument("--only", action="append", choices=[*groups, *names], metavar="CASE", help=only)
    parser.add_argument("--quick", action="store_true", help="short trials, for a first look")
    output = "where to write PATH.json, PATH.md and PATH.svg (docs/bench; target/bench if quick or not all cases)"
    parser.add_argument("--output", type=Path, metavar="PATH", help=output)
    parser.add_argument("--readme", action="store_true", help="also write the table into README.md")
    options = parser.parse_args()
    complete = not (options.only or options.quick)
    if options.readme and not complete:
        parser.error("--readme wants a complete run")
    options.output = options.output or _ROOT / ("docs/bench" if complete else "target/bench")
    options.only = options.only or names
    options.repeats = options.repeats or (2 if options.quick else 5)
    return options


def _progress(line: str) -> None:
    """Show what is going on, on a line of the terminal that the next call overwrites."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
