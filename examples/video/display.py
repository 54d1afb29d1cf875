"""What the demo shows: a status line while it runs, and a summary and a picture at its end."""

import shutil
import sys
import time
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .clip import HEIGHT, WIDTH
from .ink import Colour
from .report import Plan, Progress, Reports

BAR_CELLS = 12
PLAIN_INTERVAL_S = 3.0
FRAME_BYTES = HEIGHT * WIDTH * 3

# The picture; all in pixels.
PANEL = (1024, 576)
MARGIN = 48
HEADER = 130
CAPTION = 120
BACKGROUND, BRIGHT, DIM, ACCENT = (16, 19, 26), (240, 243, 248), (150, 160, 176), (255, 92, 116)


class StatusLine:
    """One line, written over and over on a terminal; elsewhere a new line every few seconds."""

    def __init__(self, plan: Plan) -> None:
        self._frames = plan.frames
        self._live = sys.stdout.isatty()
        self._due = 0.0

    def show(self, progress: dict[str, Progress]) -> None:
        """Show the latest progress of every role."""
        if "camera" not in progress or time.monotonic() < self._due:
            return
        done = progress["camera"].frames
        cells = BAR_CELLS * done // self._frames
        parts = [f"{'█' * cells}{'░' * (BAR_CELLS - cells)} {done}/{self._frames}"]
        parts += [f"{name} {news.note}" for name, news in sorted(progress.items())]
        line = " │ ".join(parts)
        if self._live:
            print("\r" + line[: shutil.get_terminal_size().columns - 1], end="\x1b[K", flush=True)
        else:
            print(line, flush=True)
            self._due = time.monotonic() + PLAIN_INTERVAL_S

    def clear(self) -> None:
        """Give the line back to whatever is printed next."""
        if self._live:
            print("\r", end="\x1b[K", flush=True)


def summary(reports: Reports, picture: Path) -> str:
    """What was measured, for somebody who meets byref for the first time."""
    camera, analyst, keeper, painter = reports.camera, reports.analyst, reports.keeper, reports.painter
    delivered = sum(each.bytes for each in reports.traffic)
    copied = sum(each.copied_bytes for each in reports.traffic)
    latencies_us = np.concatenate([each.latencies_ns for each in reports.traffic]) / 1000
    p50, p99 = np.percentile(latencies_us, [50, 99])
    return f"""\
  Passed by reference  {delivered / 1e9:.2f} GB: {camera.frames} frames of {WIDTH}x{HEIGHT} RGB \
to each of {len(reports.traffic)} processes, in {camera.seconds:.1f} s
  Copied on receive    {copied:,} bytes, by the count that byref keeps wherever it receives
  Delivery latency     p50 {p50:.0f} us, p99 {p99:.0f} us from send to receive, \
over {len(latencies_us):,} deliveries
  Frames lost          {sum(each.lost for each in reports.traffic)}

  Keeper               holds {keeper.held_frames} frames: {keeper.held_bytes / 1e6:.0f} MB of shared memory, \
and {keeper.own_memory_bytes / 1e6:.0f} MB of its own;
                       every frame came as published, and none had changed in {keeper.rechecks:,} later checks
  Painter              drew on {painter.traffic.frames} frames, each for \
{painter.private_bytes_per_frame / 1e6:.2f} MB of private memory (a copy takes {FRAME_BYTES / 1e6:.2f} MB)
  Analyst              saw {analyst.edge_share:.0%} edge pixels, and a mean brightness \
between {analyst.darkest:.0f} and {analyst.brightest:.0f} of 255
  Camera               copied {camera.copied_bytes / 1e9:.2f} GB, each frame once, from PyAV's buffer into \
shared memory: {camera.copy_ms:.2f} ms a frame
  Picture              {picture}: one frame as the keeper sees it, and as the painter does
"""


def save_picture(plan: Plan, reports: Reports, path: Path) -> None:
    """Write the same frame twice, side by side: as the keeper holds it, and as the painter drew on it."""
    keeper, painter = reports.keeper, reports.painter
    changed = np.count_nonzero((keeper.pictured != painter.pictured).any(axis=2))
    copied = painter.private_bytes_per_frame / FRAME_BYTES
    width, height = PANEL
    image = Image.new("RGB", (2 * width + 3 * MARGIN, HEADER + height + CAPTION), BACKGROUND)
    draw = ImageDraw.Draw(image)

    def write(x: int, y: int, text: str, size: int, colour: Colour) -> None:
        draw.text((x, y), text, fill=colour, font=ImageFont.load_default(size))

    write(MARGIN, 30, f"One message in two processes at the same time: frame {plan.pictured_frame}", 34, BRIGHT)
    write(MARGIN, 80, "Published once, into memory that only the publisher can write.", 22, DIM)
    panels = (
        (
            keeper.pictured,
            BRIGHT,
            "The keeper holds what was published",
            f"A read-only view of shared memory. CRC-32 {crc32(keeper.pictured.data):08x}, as published.",
        ),
        (
            painter.pictured,
            ACCENT,
            "The painter has drawn on it",
            f"A private view, msg.writable(): {changed:,} pixels differ, {copied:.0%} of it was copied.",
        ),
    )
    for index, (pixels, colour, title, detail) in enumerate(panels):
        left = MARGIN + index * (width + MARGIN)
        draw.rectangle((left - 3, HEADER - 3, left + width + 2, HEADER + height + 2), fill=colour)
        image.paste(Image.fromarray(pixels).resize(PANEL, Image.Resampling.LANCZOS), (left, HEADER))
        write(left, HEADER + height + 18, title, 28, colour)
        write(left, HEADER + height + 60, detail, 21, DIM)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
