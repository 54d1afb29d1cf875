"""What the controller tells a worker by signals."""

from __future__ import annotations

import signal
import time


class Signals:
    """SIGTERM asks to stop; SIGCONT is noted; Ctrl-C is the controller's business."""

    def __init__(self) -> None:
        self.stopping = False
        self.thawed = 0.0
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGCONT, self._thaw)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _thaw(self, *_: object) -> None:
        self.thawed = time.monotonic()
