"""What the processes of the demo tell each other beside the video itself."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .clip import Pixels


class DemoFailure(Exception):
    """The demo must not end well; the message says why."""


@dataclass(frozen=True)
class Plan:
    """What all processes have to agree on."""

    topic: str
    frames: int
    fps: float
    pictured_frame: int


@dataclass(frozen=True)
class Progress:
    """How many frames a role has dealt with, and a few words for the status line."""

    frames: int
    note: str


Tell = Callable[[int, str], None]
"""Reports progress: called with the fields of ``Progress``, as often as one likes."""


@dataclass(frozen=True)
class CameraReport:
    """What the publisher measured, and what it copied from PyAV's buffers into its loans (ms per frame)."""

    frames: int
    copied_bytes: int
    seconds: float
    copy_ms: float


@dataclass(frozen=True)
class Traffic:
    """What a subscriber received, by its own count and byref's, and the delivery time of every frame."""

    frames: int
    bytes: int
    copied_bytes: int
    lost: int
    latencies_ns: NDArray[np.int64]


@dataclass(frozen=True)
class AnalystReport:
    """The mean share of edge pixels, and the range of the frames' mean brightness (0 to 255)."""

    traffic: Traffic
    edge_share: float
    darkest: float
    brightest: float


@dataclass(frozen=True)
class KeeperReport:
    """How much was held, how often it was checked again, and a held frame for the picture."""

    traffic: Traffic
    held_frames: int
    held_bytes: int
    rechecks: int
    own_memory_bytes: int
    pictured: Pixels


@dataclass(frozen=True)
class PainterReport:
    """The memory that drawing on a frame took, on average, and a drawn-on frame for the picture."""

    traffic: Traffic
    private_bytes_per_frame: float
    pictured: Pixels


@dataclass(frozen=True)
class Reports:
    """The reports of all roles."""

    camera: CameraReport
    analyst: AnalystReport
    keeper: KeeperReport
    painter: PainterReport

    @property
    def traffic(self) -> tuple[Traffic, ...]:
        """What each of the subscribers received."""
        return self.analyst.traffic, self.keeper.traffic, self.painter.traffic
