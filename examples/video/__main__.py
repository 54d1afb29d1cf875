"""``python -m examples.video``: real video, four processes, no copies on receive."""

import argparse
import os
import sys
from pathlib import Path

from .crew import run
from .display import StatusLine, save_picture, summary
from .report import DemoFailure, Plan, Reports

# With the default number of frames this pictures a moment at which there is something to see.
PICTURED_BEFORE_END = 68


def main() -> int:
    """Run the demo, and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.video", description=__doc__)
    parser.add_argument("--frames", type=int, default=900, help="frames to publish (%(default)s)")
    parser.add_argument("--fps", type=float, default=60, help="at most so many a second (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="directory of the picture")
    options = parser.parse_args()
    if options.frames < 1 or not options.fps > 0:
        parser.error("--frames and --fps must be positive")

    plan = Plan(
        topic=f"demo/video/{os.getpid()}",
        frames=options.frames,
        fps=options.fps,
        pictured_frame=max(0, options.frames - PICTURED_BEFORE_END),
    )
    print("One process publishes 1280x720 video; three more analyse it, keep it and draw on it.\n")
    status = StatusLine(plan)
    try:
        reports = run(plan, status.show)
        status.clear()
        verify(plan, reports)
    except DemoFailure as failure:
        status.clear()
        print(f"The demo failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        status.clear()
        return 130
    picture = options.output / "isolation.png"
    save_picture(plan, reports, picture)
    print(summary(reports, picture))
    return 0


def verify(plan: Plan, reports: Reports) -> None:
    """Raise ``DemoFailure`` unless every subscriber received every frame, without a copy."""
    for traffic in reports.traffic:
        if traffic.frames != plan.frames or traffic.lost:
            raise DemoFailure(f"{traffic.frames} of {plan.frames} frames arrived, {traffic.lost} were lost")
        if traffic.copied_bytes:
            raise DemoFailure(f"{traffic.copied_bytes:,} bytes were copied on receive")
    if (reports.keeper.pictured == reports.painter.pictured).all():
        raise DemoFailure("the painter's drawing cannot be seen in its own view")


if __name__ == "__main__":
    sys.exit(main())
