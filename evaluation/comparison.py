"""Two tests of the same cases compared: the differences, their intervals and Wilcoxon's test, as text and as a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from evaluation import charts
from evaluation.metrics import OVERLAPS
from evaluation.paired import LEVEL, paired
from evaluation.report import Chart, Overlay, render
from evaluation.summary import CONVENTIONS, TITLES, Summary, aligned, number, shown_metrics


def compare_summaries(first: Summary, second: Summary) -> dict[str, Any]:
    """The differences, second minus first, between two summaries (see `evaluation.summary.summarize`), as plain data.

    In both conventions `overall` and `per_class` hold for each metric the means of both over the `n` cases that are
    defined in both, their difference, its bootstrap interval (95 %) over the cases and Wilcoxon's p; `only_first` and
    `only_second` count the cases that are defined in one only. `cases` has the differences of each case, and of its
    classes in Dice. Undefined values are None. The distance of a case is the mean over the classes that have one in
    both: an organ that only one found would make it worse. Metrics in mm are there where both have them.

    Raises:
        ValueError: other cases, classes or units of length.
    """
    _check_alike(first, second)
    metrics = [name for name in shown_metrics(first) if name in shown_metrics(second)]
    mine, theirs = ({case["name"]: case for case in summary["cases"]} for summary in (first, second))
    names, classes = list(mine), list(first["published"]["per_class"])
    result: dict[str, Any] = {"unit": first["unit"], "level": LEVEL}
    for convention in CONVENTIONS:
        pairs = [(mine[name][convention], theirs[name][convention]) for name in names]
        whole = [_on_shared_classes(a, b, metrics) for a, b in pairs]
        by_class = {one: [(a["per_class"][one], b["per_class"][one]) for a, b in pairs] for one in classes}
        result[convention] = {
            "overall": {metric: _compared(whole, metric) for metric in metrics},
            "per_class": {one: {m: _compared(rows, m) for m in metrics} for one, rows in by_class.items()},
        }
    result["cases"] = [
        {"name": name} | {c: _of_case(mine[name][c], theirs[name][c], metrics) for c in CONVENTIONS} for name in names
    ]
    return result


def _on_shared_classes(a: Summary, b: Summary, metrics: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of a case in both tests, distances over the classes that have one in both."""
    found: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for metric in metrics:
        if metric in OVERLAPS:
            found[0][metric], found[1][metric] = a[metric], b[metric]
            continue
        pairs = [(a["per_class"][name][metric], b["per_class"][name][metric]) for name in a["per_class"]]
        shared = [pair for pair in pairs if None not in pair]
        for side in (0, 1):
            found[side][metric] = math.fsum(pair[side] for pair in shared) / len(shared) if shared else None
    return found


def _of_case(a: Summary, b: Summary, metrics: Sequence[str]) -> dict[str, Any]:
    """A case's differences, and those of its classes in Dice."""
    per_class = {name: _difference(a["per_class"][name], b["per_class"][name], "dice") for name in a["per_class"]}
    whole = _on_shared_classes(a, b, metrics)
    return {metric: _difference(*whole, metric) for metric in metrics} | {"per_class": per_class}


def _check_alike(first: Summary, second: Summary) -> None:
    cases = [[case["name"] for case in summary["cases"]] for summary in (first, second)]
    classes = [list(summary["published"]["per_class"]) for summary in (first, second)]
    for what, (ours, theirs) in (("cases", cases), ("classes", classes)):
        alone = [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]
        if any(alone):
            raise ValueError(
                f"the two were tested on different {what}: only the first has {_some(alone[0])}, only the second "
                f"{_some(alone[1])}; expected the same of both"
            )
    if first["unit"] != second["unit"]:
        raise ValueError(
            f"distances of the first are in {first['unit']}, of the second in {second['unit']}; expected one unit"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "none") + more


def _difference(a: Summary, b: Summary, metric: str) -> float | None:
    return None if a[metric] is None or b[metric] is None else b[metric] - a[metric]


def _compared(pairs: Sequence[tuple[Summary, Summary]], metric: str) -> dict[str, Any]:
    """Both means, their difference, interval and p, over the pairs where both are defined."""
    defined = [(a[metric], b[metric]) for a, b in pairs if _difference(a, b, metric) is not None]
    alone = [(a[metric] is None, b[metric] is None) for a, b in pairs]
    counts = {"n": len(defined), "only_first": alone.count((False, True)), "only_second": alone.count((True, False))}
    if not defined:
        return dict.fromkeys(("first", "second", "mean", "low", "high", "median", "p"), None) | counts
    found = asdict(paired([[b - a for a, b in defined]]))
    values = {name: None if math.isnan(value) else value for name, value in found.items() if name != "cases"}
    first, second = (math.fsum(column) / len(defined) for column in zip(*defined, strict=True))
    return {"first": first, "second": second, **values, **counts}


def format_comparison(comparison: Summary, first: str, second: str) -> str:
    """The comparison as plain text: a row for each metric, class and convention, then the cases' Dice."""
    level = f"{comparison['level']:.0%}"
    lines = [f"A: {first}", f"B: {second}", f"B - A, with its {level} bootstrap interval over the cases"]
    for convention in CONVENTIONS:
        lines += ["", f"{convention} convention"]
        lines += aligned(_rows(comparison[convention]))
    lines += ["", "Dice of the cases, B - A, largest loss first (published, strict)"]
    return "\n".join([*lines, *aligned(_dice_of_cases(comparison))])


def page(comparison: Summary, first: str, second: str, images: Sequence[Overlay]) -> str:
    """The comparison as a self-contained HTML page."""
    return render(
        "comparison.html.j2",
        first=first,
        second=second,
        count=len(comparison["cases"]),
        level=f"{comparison['level']:.0%}",
        unit=comparison["unit"],
        headline=[(kind, _headline(comparison, kind)) for kind in CONVENTIONS],
        dots=[_dots(comparison, kind) for kind in CONVENTIONS],
        images=images,
        tables=[(kind, list(_rows(comparison[kind]))) for kind in CONVENTIONS],
        cases=_dice_of_cases(comparison),
    )


def _headline(comparison: Summary, convention: str) -> list[tuple[str, str, str]]:
    a, b, difference, interval, _, p, *_ = _cells("dice", comparison[convention]["overall"]["dice"])
    level = f"{comparison['level']:.0%}"
    return [
        ("B - A", difference, ""),
        (f"{level} interval", interval, ""),
        ("A, B", f"{a} \u2192 {b}", ""),
        ("p", p, ""),
    ]


def _dots(comparison: Summary, convention: str) -> Chart:
    """Each case's difference in Dice, over all classes and by class."""
    block = comparison[convention]
    columns = {"all": ([case[convention]["dice"] for case in comparison["cases"]], block["overall"]["dice"])}
    if len(block["per_class"]) > 1:
        columns |= {
            name: ([case[convention]["per_class"][name] for case in comparison["cases"]], metrics["dice"])
            for name, metrics in block["per_class"].items()
        }
    values: dict[str, tuple[list[float], float, float]] = {}
    for name, (column, found) in columns.items():
        low, high = (math.nan if found[end] is None else found[end] for end in ("low", "high"))
        values[name] = [d for d in column if d is not None], low, high
    label = f"Differences in Dice by class, {convention} convention, every case a point."
    drawn = charts.difference_dots(values, ident=f"dots-{convention}", label=label)
    return "Dice, B - A", f"{convention} convention", drawn


def _dice_of_cases(comparison: Summary) -> list[list[str]]:
    ranked = worst_first(comparison)
    return [[case["name"], *(_signed("dice", case[kind]["dice"]) for kind in CONVENTIONS)] for case in ranked]


def worst_first(comparison: Summary) -> list[Summary]:
    """The cases by their difference in Dice, strict and then published, the largest loss first."""
    return sorted(comparison["cases"], key=lambda case: (case["strict"]["dice"] or 0.0, case["published"]["dice"]))


def _rows(block: Summary) -> Iterator[list[str]]:
    """A head, then each metric over all classes, then the Dice of each class."""
    yield ["", "A", "B", "B - A", "interval", "median", "p (Wilcoxon)", "cases", "A alone", "B alone"]
    for metric, found in block["overall"].items():
        yield [TITLES[metric], *_cells(metric, found)]
    for name, metrics in block["per_class"].items() if len(block["per_class"]) > 1 else ():
        yield [f"Dice, {name}", *_cells("dice", metrics["dice"])]


def _cells(metric: str, found: Summary) -> list[str]:
    low, high = (_signed(metric, found[end]) for end in ("low", "high"))
    p = "-" if found["p"] is None else f"{found['p']:.3g}"
    both = [number(found[side], metric, "-") for side in ("first", "second")]
    interval = "-" if found["low"] is None else f"{low} to {high}"
    counts = [str(found[key]) for key in ("n", "only_first", "only_second")]
    return [*both, _signed(metric, found["mean"]), interval, _signed(metric, found["median"]), p, *counts]


def _signed(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{'-' if value < 0 else '+'}{number(abs(value), metric)}"
