"""``python -m tests.torture``: random publishers, subscribers, sizes, policies, kills and freezes for a given time."""

import argparse
import random
import sys

from .controller import Controller


def main() -> int:
    """Run it, print what happened, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeats the decisions of an earlier run")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed

    print(f"seed {seed}, {options.seconds:g} s", flush=True)
    controller = Controller(seed)
    controller.run(options.seconds)
    print(summary(controller))
    if not controller.violations:
        return 0
    print(f"\nFAILED, seed {seed}. The last events:", *controller.events, sep="\n")
    print(f"\n{len(controller.violations)} violations:", *controller.violations, sep="\n")
    return 1


def summary(controller: Controller) -> str:
    """What happened, one figure a line."""
    figures = [(name, f"{count:,}") for name, count in sorted(controller.counts.items())]
    figures.append(("longest stall of a send", f"{controller.longest_stall:.3f} s"))
    figures.append(("violations", str(len(controller.violations))))
    return "\n".join(f"{name:>24}  {figure}" for name, figure in figures)


if __name__ == "__main__":
    sys.exit(main())
