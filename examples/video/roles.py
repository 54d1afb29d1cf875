"""What the processes do: one ``camera`` publishes; ``analyst``, ``keeper`` and ``painter`` subscribe.

Each role runs in a process of its own and returns what it measured. All subscribers see the same bytes
in the same memory: none of them copies a frame, and none can change what the others see.
"""

import time
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple
from zlib import crc32

import byref
import numpy as np
from numpy.typing import NDArray

from .clip import SHAPE, Pixels, decoded_frames, rgb_view
from .ink import Box, draw_target
from .memory import own_memory_bytes, private_bytes
from .report import (
    AnalystReport,
    CameraReport,
    DemoFailure,
    KeeperReport,
    PainterReport,
    Plan,
    Tell,
    Traffic,
)

SUBSCRIBERS = 3
KEPT_FRAMES = 300
RECHECKS_PER_FRAME = 3
MAX_MEMORY = 2 << 30  # bytes; the kept frames alone pin 829 MB of it
CONNECT_S = 20.0
FLUSH_S = 10.0
STALL_S = 15.0  # longer, so that the camera, which can name who is late, is the first to complain
RED = (230, 30, 60)


def camera(plan: Plan, tell: Tell) -> CameraReport:
    """Publish the frames of the clip, at most ``plan.fps`` a second, each with a checksum of its pixels."""
    copying_ns = copied_bytes = 0
    with byref.Publisher(plan.topic, max_memory=MAX_MEMORY) as publisher:
        publisher.wait_for_subscribers(SUBSCRIBERS, timeout=CONNECT_S)
        started = due = time.perf_counter()
        for number, decoded in enumerate(islice(decoded_frames(), plan.frames)):
            time.sleep(max(0.0, due - time.perf_counter()))
            due = max(due + 1 / plan.fps, time.perf_counter())

            rgb = rgb_view(decoded)
            loan = publisher.loan(SHAPE, "uint8")
            with loan as pixels:
                before_ns = time.perf_counter_ns()
                np.copyto(pixels, rgb)
                copying_ns += time.perf_counter_ns() - before_ns
                copied_bytes += pixels.nbytes
                loan.headers.update(frame=number, crc32=crc32(pixels), sent_ns=time.perf_counter_ns())
            tell(number + 1, f"{(number + 1) / (time.perf_counter() - started):.0f} fps")
        seconds = time.perf_counter() - started
        publisher.flush(timeout=FLUSH_S)
        publisher.send(b"", headers={"end": True})
    return CameraReport(
        frames=plan.frames,
        copied_bytes=copied_bytes,
        seconds=seconds,
        copy_ms=copying_ns / plan.frames / 1e6,
    )


class Feed:
    """The frames that a subscriber receives, up to the publisher's end mark, and what their delivery took."""

    def __init__(self, subscriber: byref.Subscriber) -> None:
        self._subscriber = subscriber
        self._latencies_ns: list[int] = []

    def __iter__(self) -> Iterator[byref.Message]:
        while True:
            message = self._subscriber.recv(timeout=STALL_S)
            received_ns = time.perf_counter_ns()
            if message.headers.get("end"):
                return
            self._latencies_ns.append(received_ns - int(message.headers["sent_ns"]))
            yield message

    def traffic(self) -> Traffic:
        """What was received so far."""
        stats = self._subscriber.stats()
        return Traffic(
            frames=len(self._latencies_ns),
            bytes=stats["bytes"],
            copied_bytes=stats["copied_bytes"],
            lost=self._subscriber.lost,
            latencies_ns=np.array(self._latencies_ns),
        )


def analyst(plan: Plan, tell: Tell) -> AnalystReport:
    """Look at every frame: its edges, its brightness, and the histogram of it."""
    edge_shares, brightness = [], []
    with byref.Subscriber(plan.topic, policy="block") as subscriber:
        feed = Feed(subscriber)
        for number, message in enumerate(feed, start=1):
            red, green, blue = np.moveaxis(message.value[::2, ::2].astype(np.uint16), 2, 0)
            luma = ((77 * red + 150 * green + 29 * blue) >> 8).astype(np.int16)
            gradient = abs(np.diff(luma, axis=0)[:, 1:]) + abs(np.diff(luma, axis=1)[1:])
            edge_shares.append(float(np.mean(gradient > 32)))
            brightness.append(float(luma.mean()))
            histogram = np.bincount(luma.ravel() // 32, minlength=8)
            tell(number, f"{sparkline(histogram)} edges {edge_shares[-1]:.0%}")
        return AnalystReport(
            traffic=feed.traffic(),
            edge_share=float(np.mean(edge_shares)),
            darkest=min(brightness),
            brightest=max(brightness),
        )


def sparkline(histogram: NDArray[np.int64]) -> str:
    """The histogram as a row of bars."""
    levels = 7 * histogram // max(1, histogram.max())
    return "".join("▁▂▃▄▅▆▇█"[level] for level in levels)


class KeptFrame(NamedTuple):
    """A frame that is held. There is no lease to look after: the view of the pixels is the lease."""

    number: int
    pixels: Pixels
    published_crc32: int

    def check(self) -> None:
        """Compare the pixels with the checksum that the publisher took before it sent them."""
        crc = crc32(self.pixels.data)
        if crc != self.published_crc32:
            raise DemoFailure(
                f"the keeper found frame {self.number} corrupt: its CRC-32 is {crc:08x},"
                f" and was {self.published_crc32:08x} when it was published"
            )


def keeper(plan: Plan, tell: Tell) -> KeeperReport:
    """Hold on to the last frames, and check without end that none of them ever changes."""
    kept: list[KeptFrame] = []
    rechecks = 0
    with byref.Subscriber(plan.topic, policy="block") as subscriber:
        feed = Feed(subscriber)
        for message in feed:
            frame = KeptFrame(int(message.headers["frame"]), message.value, int(message.headers["crc32"]))
            frame.check()
            slot = frame.number % KEPT_FRAMES
            kept[slot : slot + 1] = [frame]  # appends until the list is full, then replaces the oldest
            for _ in range(RECHECKS_PER_FRAME):
                kept[rechecks % len(kept)].check()
                rechecks += 1
            tell(frame.number + 1, f"{len(kept)} held, {rechecks:,} checks passed")
        # By now the painter has drawn on all of them.
        for frame in kept:
            frame.check()
            rechecks += 1
        return KeeperReport(
            traffic=feed.traffic(),
            held_frames=len(kept),
            held_bytes=sum(frame.pixels.nbytes for frame in kept),
            rechecks=rechecks,
            own_memory_bytes=own_memory_bytes(),
            pictured=next(frame.pixels for frame in kept if frame.number == plan.pictured_frame),
        )


class MotionTracker:
    """Finds where things move between one frame and the next. The box follows smoothly."""

    STEP = 8  # looks at one pixel in so many, in either direction
    CHANGE = 35  # the least change of brightness, of 255, that counts as movement
    ENOUGH = 20  # with fewer moving pixels the box stays where it is
    PACE = 0.2  # the part of its way that the box moves per frame

    def __init__(self) -> None:
        height, width, _ = SHAPE
        self._box = np.array([height / 4, width / 4, height * 3 / 4, width * 3 / 4])
        self._last: NDArray[np.int16] | None = None

    def follow(self, image: Pixels) -> Box:
        """The box after this frame."""
        small = image[:: self.STEP, :: self.STEP, 1].astype(np.int16)
        if self._last is not None:
            moving = np.argwhere(abs(small - self._last) > self.CHANGE)
            if len(moving) >= self.ENOUGH:
                seen = self.STEP * np.percentile(moving, [5, 95], axis=0).ravel()
                self._box += self.PACE * (seen - self._box)
        self._last = small
        return Box(*(int(edge) for edge in self._box))


def painter(plan: Plan, tell: Tell) -> PainterReport:
    """Draw on every frame, in a private view: only the pages that it touches are copied, by the kernel."""
    tracker = MotionTracker()
    touched_bytes = 0
    pictured = None
    with byref.Subscriber(plan.topic, policy="block") as subscriber:
        feed = Feed(subscriber)
        for number, message in enumerate(feed):
            canvas = message.writable()
            draw_target(canvas, tracker.follow(message.value), f"FRAME {number}", RED)
            touched_bytes += private_bytes(canvas)
            if number == plan.pictured_frame:
                pictured = canvas
            tell(number + 1, f"{touched_bytes / (number + 1) / canvas.nbytes:.0%} copied")
        if pictured is None:
            raise DemoFailure(f"the painter never received frame {plan.pictured_frame}")
        return PainterReport(feed.traffic(), touched_bytes / plan.frames, pictured)
