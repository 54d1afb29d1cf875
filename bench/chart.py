"""The chart of a run: horizontal bars on a logarithmic scale, one panel for each kind of figure, as SVG."""

import math
from collections.abc import Iterable
from html import escape
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from bench.figures import SUBJECT, Figure, number
from bench.runner import Outcome

_WIDTH, _MARGIN = 860, 16
_LABELS, _VALUES = 150, 60
"""Widths left of the bars, for the names of the systems, and right of them, for the values."""
_BAR, _STEP, _TITLE, _GAP = 11, 15, 24, 34
"""Heights: of a bar, from bar to bar, of a case's title, and of a panel's title."""

# Its own background, so that it can be read on any page; the colours follow what the reader prefers.
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .panel { font-size: 15px; font-weight: 600 }
  .case { font-weight: 600 }
  .subject { font-weight: 600; fill: #b3400a }
  .end { text-anchor: end }
  .page { fill: #ffffff }
  .grid { stroke: #d0d7de }
  .bar { fill: #8c959f }
  .bar.subject { fill: #e8590c }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .subject { fill: #ff9b5e }
    .page { fill: #0d1117 }
    .grid { stroke: #30363d }
    .bar { fill: #6e7681 }
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
    shown = [outcome for outcome in outcomes if outcome.case.chart]
    shown.sort(key=lambda outcome: outcome.case.chart)
    parts: list[str] = []
    y = _MARGIN
    for panel, members in groupby(shown, key=lambda outcome: outcome.case.chart):
        bars = [group for member in members if (group := _bars(member)).values]
        if bars:
            y = _panel(parts, panel, bars, y)
    height = y + _MARGIN
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" role="img">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{height}" rx="6"/>',
        *parts,
        "</svg>",
    ]
    path.write_text("\n".join(svg) + "\n")


def _bars(outcome: Outcome) -> _Bars:
    figure = Figure.all_of(outcome)[0]
    values = {system: value for system in outcome.case.systems if (value := figure.value(system))}
    return _Bars(outcome.case.title, values)


def _panel(parts: list[str], title: str, cases: list[_Bars], top: int) -> int:
    """Draw a panel; return where the next may begin."""
    values = [value for case in cases for value in case.values.values()]
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    last += last == first
    scale = (_WIDTH - 2 * _MARGIN - _LABELS - _VALUES) / (last - first)
    zero = _MARGIN + _LABELS

    def x(value: float) -> float:
        return zero + scale * (math.log10(value) - first)

    parts.append(_text(_MARGIN, top + 14, "panel", title))
    y = begin = top + _GAP
    marks = len(parts)
    for case in cases:
        parts.append(_text(_MARGIN, y + 13, "case", case.title))
        y += _TITLE
        for system, value in case.values.items():
            subject = " subject" * (system == SUBJECT)
            middle = y + _BAR - 1
            parts.append(_text(zero - 8, middle, f"end{subject}", system))
            parts.append(
                f'<rect class="bar{subject}" x="{zero}" y="{y}" width="{x(value) - zero:.1f}" height="{_BAR}" rx="1"/>'
            )
            parts.append(_text(x(value) + 6, middle, subject.strip(), number(value)))
            y += _STEP
        y += 6
    # Drawn before the bars, and so behind them.
    for exponent in range(first, last + 1):
        position = x(10**exponent)
        line = f'<line class="grid" x1="{position:.1f}" y1="{begin}" x2="{position:.1f}" y2="{y}"/>'
        parts.insert(marks, line)
        parts.append(_text(position - 4, y + 14, "", f"{10**exponent:g}"))
    return y + _GAP


def _text(x: float, y: float, style: str, content: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" class="{style}">{escape(content)}</text>'
