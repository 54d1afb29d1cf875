"""The chart of a run: horizontal bars on a logarithmic scale, one panel for each kind of figure, as SVG."""

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import NamedTuple

from bench.figures import SUBJECT, Figure, number
from bench.runner import Outcome

_PANEL, _MARGIN = 450, 16
"""Widths: of a panel, and of the space around it."""

_LABELS, _VALUES = 112, 44
"""Widths left of the bars, for the names of the systems, and right of them, for the values."""

_BAR, _STEP, _TITLE, _HEAD = 10, 14, 20, 30
"""Heights: of a bar, from bar to bar, of a case's title, and of a panel's title."""

# Its own background, so that it can be read on any page; the colours follow what the reader prefers.
_STYLE = """
  text { font: 11px system-ui, sans-serif; fill: #24292f }
  .panel { font-size: 14px; font-weight: 600 }
  .case { font-weight: 600 }
  .end { text-anchor: end }
  .middle { text-anchor: middle }
  .page { fill: #ffffff }
  .grid { stroke: #d0d7de }
  .bar { fill: #8c959f }
  .subject { font-weight: 600; fill: #b3400a }
  .bar.subject { fill: #e8590c }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .page { fill: #0d1117 }
    .grid { stroke: #30363d }
    .bar { fill: #6e7681 }
    .subject { fill: #ff9b5e }
    .bar.subject { fill: #ff7b32 }
  }
"""


class _Bars(NamedTuple):
    """The bars of one case."""

    title: str
    values: dict[str, float]
    """By system."""


def write(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Draw the cases that name a panel; a case in which nothing was measured is left out."""
    panels: dict[str, list[_Bars]] = {}
    for outcome in outcomes:
        bars = _bars(outcome)
        if outcome.case.chart and bars.values:
            panels.setdefault(outcome.case.chart, []).append(bars)
    parts: list[str] = []
    bottoms = [
        _panel(parts, title, cases, _MARGIN + i * (_PANEL + _MARGIN)) for i, (title, cases) in enumerate(panels.items())
    ]
    width, height = _MARGIN + len(panels) * (_PANEL + _MARGIN), max(bottoms, default=0) + _MARGIN
    size = f'width="{width}" height="{height}"'
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size} role="img">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" {size} rx="6"/>',
        *parts,
        "</svg>",
    ]
    path.write_text("\n".join(svg) + "\n")


def _bars(outcome: Outcome) -> _Bars:
    figure = Figure.all_of(outcome)[0]
    values = {system: value for system in outcome.case.systems if (value := figure.value(system))}
    return _Bars(outcome.case.title, values)


def _panel(parts: list[str], title: str, cases: list[_Bars], left: int) -> int:
    """Draw a panel; return where it ends."""
    logarithms = [math.log10(value) for case in cases for value in case.values.values()]
    # The shortest bar is to be seen, too.
    first, last = math.floor(min(logarithms) - 0.1), math.ceil(max(logarithms))
    zero = left + _LABELS
    decade = (_PANEL - _LABELS - _VALUES) / (last - first)
    rows = sum(_TITLE + _STEP * len(case.values) for case in cases)
    top, bottom = _MARGIN + _HEAD, _MARGIN + _HEAD + rows + 4

    parts.append(_text(left, _MARGIN + 14, "panel", title))
    for exponent in range(first, last + 1):
        x = zero + decade * (exponent - first)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 14, "middle", f"{10.0**exponent:,g}"))
    y = top
    for case in cases:
        parts.append(_text(left, y + 14, "case", case.title))
        y += _TITLE
        for system, value in case.values.items():
            subject = " subject" * (system == SUBJECT)
            length = decade * (math.log10(value) - first)
            box = f'x="{zero}" y="{y}" width="{length:.1f}" height="{_BAR}"'
            parts.append(f'<rect class="bar{subject}" {box} rx="1"/>')
            parts.append(_text(zero - 6, y + _BAR - 1, f"end{subject}", system))
            parts.append(_text(zero + length + 5, y + _BAR - 1, subject.strip(), number(value)))
            y += _STEP
    return bottom + 14


def _text(x: float, y: float, style: str, content: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" class="{style}">{escape(content)}</text>'
