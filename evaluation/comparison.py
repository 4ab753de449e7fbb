"""Two tests of the same cases against each other: what differs, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from evaluation import charts, html
from evaluation.html import shown_metrics
from evaluation.metrics import OVERLAPS
from evaluation.paired import LEVEL, paired
from evaluation.report import CONVENTIONS
from evaluation.text import aligned


def compare_summaries(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The differences, second less first, between two summaries (see `report.summarise`), as plain data.

    In both conventions `overall` and `per_class` hold for each metric the means of both over the cases that are defined
    in both, `n` of them, their difference, its bootstrap interval (95 %) over the cases and Wilcoxon's p; `only_first`
    and `only_second` count the cases that are defined in one alone, where one found or invented what the other did not.
    `cases` has the differences of each case, and of its classes in Dice. What is undefined is None. The distance of a
    case is the mean over the classes that have one in both: an organ that only one has found would make it look worse.
    The metrics in mm are there where both have them.

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


def _on_shared_classes(
    a: Mapping[str, Any], b: Mapping[str, Any], metrics: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of a case in both tests, distances over the classes that have one in both."""
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


def _of_case(a: Mapping[str, Any], b: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """A case's differences, and those of its classes in Dice."""
    per_class = {name: _difference(a["per_class"][name], b["per_class"][name], "dice") for name in a["per_class"]}
    whole = _on_shared_classes(a, b, metrics)
    return {metric: _difference(*whole, metric) for metric in metrics} | {"per_class": per_class}


def _check_alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
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


def _difference(a: Mapping[str, Any], b: Mapping[str, Any], metric: str) -> float | None:
    return None if a[metric] is None or b[metric] is None else b[metric] - a[metric]


def _compared(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], metric: str) -> dict[str, Any]:
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


def format_comparison(comparison: Mapping[str, Any], first: str, second: str) -> str:
    """The comparison as plain text: a row for each metric, class and convention, then the cases' Dice."""
    level = f"{comparison['level']:.0%}"
    lines = [f"A: {first}", f"B: {second}", f"B - A, with its {level} bootstrap interval over the cases"]
    for convention in CONVENTIONS:
        lines += ["", f"{convention} convention"]
        lines += aligned(_rows(comparison[convention]))
    lines += ["", "Dice of the cases, B - A, largest loss first (published, strict)"]
    ranked = worst_first(comparison)
    cells = [[case["name"], *(_signed("dice", case[c]["dice"]) for c in CONVENTIONS)] for case in ranked]
    return "\n".join([*lines, *aligned(cells)])


def page(
    comparison: Mapping[str, Any], first: str, second: str, pictures: Sequence[tuple[str, str, Sequence[bytes]]]
) -> str:
    """The comparison as an HTML page that needs no other file, with pictures as `html.page` takes them."""
    level = f"{comparison['level']:.0%}"
    parts = [
        f'<p class="soft">A: {escape(first)}<br>B: {escape(second)}</p>',
        f'<p class="soft">B less A over the {len(comparison["cases"])} cases of both, with its {level} bootstrap '
        f"interval over the cases and the p of Wilcoxon's signed-rank test; HD95 and ASSD in "
        f"{escape(comparison['unit'])}, of a case over the classes that have a distance in both; a dash stands for an "
        "undefined figure, and A alone and B alone count the cases where only one has a figure.</p>",
        f'<div class="cards">{"".join(_card(comparison[c], c, level) for c in CONVENTIONS)}</div>',
        "<h2>Cases</h2>",
        f'<div class="charts">{"".join(_dots(comparison, c) for c in CONVENTIONS)}</div>',
        f'<p class="soft">A point is a case; the bar is the mean, on its {level} interval.</p>',
    ]
    if pictures:
        shown = "".join(html.picture_figure(*picture) for picture in pictures)
        parts += ["<h2>Pictures</h2>", f'<div class="pictures">{shown}</div>']
    for convention in CONVENTIONS:
        rows = list(_rows(comparison[convention]))
        parts += [f"<h2>{convention.capitalize()} convention</h2>", html.text_table(f"{convention} figures", rows)]
    ranked = [
        [case["name"], *(_signed("dice", case[c]["dice"]) for c in CONVENTIONS)] for case in worst_first(comparison)
    ]
    parts += [
        "<h2>Dice of the cases, largest loss first</h2>",
        html.text_table("Differences of the cases", [["case", *(f"{c} B - A" for c in CONVENTIONS)], *ranked]),
    ]
    return html.document("Comparison of two tests", parts)


def _card(block: Mapping[str, Any], convention: str, level: str) -> str:
    """The difference in Dice, large, and what it is made of."""
    dice = block["overall"]["dice"]
    a, b, difference, interval, _, p, *_ = _cells("dice", dice)
    large, both = ' class="main"', f"{a} &rarr; {b}"
    entries = [("B - A", difference, large), (f"{level} interval", interval, ""), ("A, B", both, ""), ("p", p, "")]
    cells = "".join(f"<div><dt>{name}</dt><dd{kind}>{value}</dd></div>" for name, value, kind in entries)
    return f'<section class="card"><h2>Dice, {convention} convention</h2><dl class="numbers">{cells}</dl></section>'


def _dots(comparison: Mapping[str, Any], convention: str) -> str:
    """Each case's difference in Dice, over all classes and by class."""
    block = comparison[convention]
    columns = {"all": ([case[convention]["dice"] for case in comparison["cases"]], block["overall"]["dice"])}
    if len(block["per_class"]) > 1:
        columns |= {
            name: ([case[convention]["per_class"][name] for case in comparison["cases"]], metrics["dice"])
            for name, metrics in block["per_class"].items()
        }
    values = {
        name: ([d for d in column if d is not None], *(math.nan if f[e] is None else f[e] for e in ("low", "high")))
        for name, (column, f) in columns.items()
    }
    label = f"Differences in Dice by class, {convention} convention, every case a point."
    drawn = charts.difference_dots(values, ident=f"dots-{convention}", label=label)
    return html.figure("Dice, B - A", f"{convention} convention", drawn)


def worst_first(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The cases by their difference in Dice, strict and then published, the largest loss first."""
    return sorted(comparison["cases"], key=lambda case: (case["strict"]["dice"] or 0.0, case["published"]["dice"]))


def _rows(block: Mapping[str, Any]) -> Iterator[list[str]]:
    """A head, then each metric over all classes, then the Dice of each class."""
    yield ["", "A", "B", "B - A", "interval", "median", "p (Wilcoxon)", "cases", "A alone", "B alone"]
    for metric, found in block["overall"].items():
        yield [html.TITLES[metric], *_cells(metric, found)]
    for name, metrics in block["per_class"].items() if len(block["per_class"]) > 1 else ():
        yield [f"Dice, {name}", *_cells("dice", metrics["dice"])]


def _cells(metric: str, found: Mapping[str, Any]) -> list[str]:
    low, high = (_signed(metric, found[end]) for end in ("low", "high"))
    p = "-" if found["p"] is None else f"{found['p']:.3g}"
    both = [html.number(metric, found[side], missing="-") for side in ("first", "second")]
    interval = "-" if found["low"] is None else f"{low} to {high}"
    counts = [str(found[key]) for key in ("n", "only_first", "only_second")]
    return [*both, _signed(metric, found["mean"]), interval, _signed(metric, found["median"]), p, *counts]


def _signed(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{'-' if value < 0 else '+'}{html.number(metric, abs(value))}"
