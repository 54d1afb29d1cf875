"""A resident that lives as long as the run: newcomers meet it, also when the directory has vanished meanwhile."""

from __future__ import annotations

import signal
import time

import byref

from .scenes import PATIENCE, Scene

_SAYS, _HEARS = "resident/says", "resident/hears"


def reside() -> None:
    """Be the resident: a publisher and a subscriber that do nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with byref.Publisher(_SAYS, 1 << 20), byref.Subscriber(_HEARS):
        while True:
            time.sleep(600)


class Probing(Scene):
    """A newcomer looks for the resident on both sides."""

    counted = "meetings with the resident"

    def play(self) -> None:
        with byref.Subscriber(_SAYS) as subscriber, byref.Publisher(_HEARS, 1 << 20) as publisher:
            for wait in (subscriber.wait_for_publishers, publisher.wait_for_subscribers):
                try:
                    wait(1, PATIENCE)
                except byref.Timeout as late:
                    if self._signals.stopping:  # The resident has gone, too.
                        return
                    self.violation(f"did not meet the resident: {late}")
                self._report.beat()
