"""``python -m tests.hostile``: strangers attack honest processes for a given time."""

import argparse
import os
import random
import shutil
import sys
import tempfile

from .attacker import ATTACKS
from .campaign import Campaign


def main() -> int:
    """Run it, print what happened, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeats the decisions of an earlier run")
    parser.add_argument("--only", choices=sorted(ATTACKS), help="one kind of attack")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed

    print(f"seed {seed}, {options.seconds:g} s", flush=True)
    os.environ["BYREF_DIR"] = tempfile.mkdtemp(prefix="byref-")
    campaign = Campaign(seed, [options.only] if options.only else None)
    try:
        campaign.run(options.seconds)
    except AssertionError as problem:
        print(f"FAILED, seed {seed}: {problem}")
        return 1
    finally:
        shutil.rmtree(os.environ["BYREF_DIR"])
    for name, count in sorted(campaign.counts.items()):
        print(f"{name:>40}  {count:,}")
    print(f"{'the most that one of them had':>40}  {campaign.most}")
    print(f"{'lines logged':>40}  {len(campaign.log):,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
