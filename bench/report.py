"""What a run prints and writes: a table with a line for each figure, and the systems side by side."""

import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.figures import SUBJECT, Figure, number
from bench.peers import MODULES
from bench.runner import Outcome

_PEERS = [system for system in MODULES if system != SUBJECT]
_HEADER = (SUBJECT, "min .. max", *_PEERS, "others", "measured", "target", "reached")
_WIDTHS = (34, 9, 16, *(max(9, len(peer)) for peer in _PEERS), 23, 9)

_README = Path(__file__).parents[1] / "README.md"
_BEGIN, _END = "<!-- bench -->\n", "<!-- /bench -->"
# The README shows the first figure of each of these cases.
_SHOWN = (
    *("rate", "callback", "batch", "asyncio", "rate-1048576", "arrow-table", "parts"),
    *("send", "round-trip-64", "round-trip-paced", "round-trip-1048576"),
)


def header() -> str:
    """The names of the columns, for the terminal."""
    return _line(("", *_HEADER))


def text(outcome: Outcome) -> str:
    """The lines of a case, for the terminal."""
    lines = [f"{outcome.case.name}: {outcome.case.title}"]
    for figure in Figure.all_of(outcome):
        lines += [_line((f"  {label}", *cells)) for label, *cells in _rows(figure, figure.label)]
    return "\n".join(lines)


def notes(outcomes: Iterable[Outcome]) -> list[str]:
    """What is to be known about the figures beyond how the systems are set up."""
    lines = []
    for outcome in outcomes:
        lines += [f"{outcome.case.name}: {outcome.case.note}"] if outcome.case.note else []
        lines += [f"{outcome.case.name}: {system} failed: {reason}" for system, reason in outcome.failures.items()]
    return lines


def write(path: Path, facts: dict[str, str], outcomes: list[Outcome]) -> None:
    """Write all values as JSON, and the table and its notes as Markdown, to `path` with these suffixes."""
    document = {"facts": facts, "cases": {outcome.case.name: _as_json(outcome) for outcome in outcomes}}
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [
        "# What a run of the benchmarks said",
        "",
        *_paragraph(
            "Written by `make bench`; [bench/README.md](../bench/README.md) says how it measures. Medians of the "
            "trials; *measured* is byref's ratio to what the target names, or byref's own value."
        ),
        "",
        *_markdown(_all_rows(outcomes)),
        "",
        *(f"- {name}: {fact}" for name, fact in facts.items()),
        *(f"- {note}" for note in notes(outcomes)),
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def write_readme(facts: dict[str, str], outcomes: list[Outcome]) -> None:
    """Put the main figures of byref and its peers into the README, between its marks."""
    section = [
        *_paragraph(
            f"One run of `make bench` on {facts['processors']}, {facts['kernel']}, {facts['python']}: medians of "
            "interleaved trials, peers in their best configuration, 64-byte messages unless said, nothing lost. Such "
            "machines are noisy: read the ratios, and run it on yours. [docs/bench.md](docs/bench.md) has all figures, "
            "what byref was to reach, also where it did not, and how each peer is set up."
        ),
        "",
        "![Bars of the rates and the round trips of byref and its peers](docs/bench.svg)",
        "",
        *_markdown(_main_rows(outcomes)),
    ]
    before, begin, rest = _README.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    _README.write_text("".join([before, begin, "\n".join(section), "\n", end, after]))


def _main_rows(outcomes: Iterable[Outcome]) -> Iterator[tuple[str, ...]]:
    """Of each case that the README shows, the first figure without spread and targets."""
    for outcome in outcomes:
        if outcome.case.name in _SHOWN:
            figure = Figure.all_of(outcome)[0]
            label, ours, _, *rest = next(_rows(figure, f"{outcome.case.title}: {figure.label}"))
            yield label, ours, "", *rest[: len(_PEERS)], "", "", "", ""


def _rows(figure: Figure, label: str) -> Iterator[tuple[str, ...]]:
    """One for each target, or one if there is none: a label and the cells of `_HEADER`."""
    values = (figure.cell(SUBJECT), figure.spread, *map(figure.cell, _PEERS), figure.others)
    if not figure.verdicts:
        yield label, *values, "", "", ""
    for verdict in figure.verdicts:
        measured = "" if verdict.measured is None else number(verdict.measured)
        reached = {True: "yes", False: "NO", None: "unknown"}[verdict.reached]
        yield label, *values, measured, str(verdict.target), reached
        label, values = "", ("",) * len(values)


def _all_rows(outcomes: Iterable[Outcome]) -> Iterator[tuple[str, ...]]:
    for outcome in outcomes:
        for figure in Figure.all_of(outcome):
            yield from _rows(figure, f"{outcome.case.title}: {figure.label}")


def _line(cells: Iterable[str]) -> str:
    """Cells at their places; what is too long moves the rest of its line."""
    padded = [cell.ljust(width) for cell, width in zip(cells, (*_WIDTHS, 0, 0), strict=True)]
    return "  ".join(padded).rstrip()


def _markdown(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table, without the columns in which nothing stands."""
    table = [("case", *_HEADER), *rows]
    kept = [i for i in range(len(table[0])) if any(row[i] for row in table[1:])]
    lines = [f"| {' | '.join(row[i] for i in kept)} |" for row in table]
    rule = " | ".join("---:" if table[0][i] in (*MODULES, "measured") else "---" for i in kept)
    return [lines[0], f"| {rule} |", *lines[1:]]


def _paragraph(content: str) -> list[str]:
    return textwrap.wrap(content, 120, break_on_hyphens=False)


def _as_json(outcome: Outcome) -> dict[str, Any]:
    figures = [
        {
            "metric": figure.metric.name,
            "unit": figure.metric.unit,
            "trials": figure.trials,
            "targets": [
                {"target": str(verdict.target), "measured": verdict.measured, "reached": verdict.reached}
                for verdict in figure.verdicts
            ],
        }
        for figure in Figure.all_of(outcome)
    ]
    return {"title": outcome.case.title, "figures": figures, "failures": outcome.failures}
