"""The command line: `python -m bench`."""

import argparse
import signal
import sys
import time
from pathlib import Path

from bench import peers, report
from bench.cases import CASES
from bench.runner import Effort, run


def main() -> int:
    options = _parse()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # by way of `finally`: no worker is left
    facts = {
        **report.environment(),
        "trials": f"{options.repeats} of each system and case, in turn; median, least and most",
        **{system: peers.describe(system) for system in peers.MODULES},
    }
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    begin, others = time.monotonic(), report.others_cpu_seconds()
    effort = Effort(options.repeats, *((0.15, 0.3) if options.quick else (0.7, 1.0)))
    outcomes = []
    for case in CASES:
        if case.name in options.only:
            outcomes.append(run(case, effort, lambda step, name=case.name: _progress(f"{name}: {step}")))
            _progress("")
            print(f"\n{report.text(outcomes[-1])}", flush=True)
    disturbance = (report.others_cpu_seconds() - others) / (time.monotonic() - begin)
    facts["other programs"] = f"kept {disturbance:.2f} processors busy meanwhile"
    print(f"\nother programs: {facts['other programs']}")
    if options.output:
        report.write(options.output, facts, outcomes)
    return int(any(report.SUBJECT in outcome.failures for outcome in outcomes))


def _parse() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure byref beside its peers.")
    parser.add_argument("--repeats", type=int, metavar="N", help="trials of each system (5, or 2 if quick)")
    only = f"only this case; may be given again: {', '.join(names)}"
    parser.add_argument("--only", action="append", choices=names, metavar="CASE", help=only)
    parser.add_argument("--quick", action="store_true", help="short trials, for a first look")
    parser.add_argument("--output", type=Path, metavar="PATH", help="also write PATH.json and PATH.md")
    options = parser.parse_args()
    options.only = options.only or names
    options.repeats = options.repeats or (2 if options.quick else 5)
    return options


def _progress(line: str) -> None:
    """Show what is going on, on a line of the terminal that the next call overwrites."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
