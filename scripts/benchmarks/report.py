"""The figures of a run as one table and as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from scripts.benchmarks.measure import Figure, Timing

_HEAD = ("row", "what", "ours, s", "other, s", "figure", "to reach", "reached", "note")


def number(value: float) -> str:
    """Three digits, without an exponent where one can do without."""
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:.0f}" if abs(value) < 1e7 and abs(value) >= 1000 else f"{value:.1e}"


def table(rows: Mapping[str, Sequence[Figure]]) -> str:
    """All rows as one Markdown table; times are medians with the least and the largest."""
    lines = [_HEAD, *(_cells(name, figure) for name, figures in rows.items() for figure in figures)]
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(_HEAD))]
    rule = ["-" * width for width in widths]
    padded = [[cell.ljust(width) for cell, width in zip(cells, widths, strict=True)] for cells in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [padded[0], rule, *padded[1:]])


def _cells(name: str, figure: Figure) -> tuple[str, ...]:
    value = "not measured" if figure.value is None else f"{number(figure.value)} {figure.unit}".rstrip()
    reached = {True: "yes", False: "no", None: ""}[figure.reached]
    reach = _to_reach(figure)
    return name, figure.what, _time(figure.ours), _time(figure.other), value, reach, reached, figure.note


def _time(timing: Timing | None) -> str:
    if timing is None:
        return ""
    if timing.rounds == 1:
        return number(timing.median)
    return f"{number(timing.median)} ({number(timing.low)}..{number(timing.high)})"


def _to_reach(figure: Figure) -> str:
    limits = ((">=", figure.at_least), ("<=", figure.at_most))
    return " ".join(f"{sign} {number(limit)} {figure.unit}".rstrip() for sign, limit in limits if limit is not None)


def as_data(figure: Figure) -> dict[str, Any]:
    """A figure for a JSON file."""
    times = {side: timing and timing._asdict() for side, timing in (("ours", figure.ours), ("other", figure.other))}
    return {**asdict(figure), **times, "reached": figure.reached}
