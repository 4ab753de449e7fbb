"""What a test leaves behind: the summary, the table on the terminal, per-case figures, overlays and one HTML page."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Volume
from evaluation import html
from evaluation.html import MM_METRICS, shown_metrics
from evaluation.metrics import METRICS, ClassScores
from evaluation.overlay import draw_overlay
from utils import atomic_write

CONVENTIONS = ("published", "strict")


@dataclass(frozen=True)
class CaseResult:
    """What was measured on one case: its name and the scores of the classes 1 to K - 1, in that order.

    `scores_mm` has them with the distances in mm, where the size of the voxels is known.
    """

    name: str
    scores: tuple[ClassScores, ...]
    scores_mm: tuple[ClassScores, ...] = ()


def summarise(results: Sequence[CaseResult], class_names: Sequence[str], *, unit: str = "voxels") -> dict[str, Any]:
    """Mean scores in both conventions: overall, per organ and per case, as plain data that JSON can hold.

    A case's mean is taken over its classes, the overall mean over the cases' means; `std` has the sample standard
    deviation of these, None for a single one. A strict figure that is undefined is left out of every mean and counted
    in `strict["undefined"]`; a mean of nothing is None. Where every case has scores in mm, `hd95_mm` and `assd_mm`
    stand beside `hd95` and `assd`. `class_names` names the classes from 1 on, `unit` is that of HD95 and ASSD
    ("voxels" at unit spacing, or "mm").

    Raises:
        ValueError: there are no results, or the names are not as many as the classes, or not all different.
    """
    _check(results, class_names)
    summary: dict[str, Any] = {}
    cases: list[dict[str, Any]] = [{"name": result.name} for result in results]
    for convention in CONVENTIONS:
        table = _figures(results, convention)
        for case, row in zip(cases, table, strict=True):
            per_class = {organ: _means([scores]) for organ, scores in zip(class_names, row, strict=True)}
            case[convention] = _means(row) | {"per_class": per_class}
        columns = dict(zip(class_names, zip(*table, strict=True), strict=True))
        spread = mean_and_spread([case[convention] for case in cases])
        summary[convention] = {name: both["mean"] for name, both in spread.items()}
        summary[convention]["std"] = {name: both["std"] for name, both in spread.items()}
        summary[convention]["per_class"] = {organ: _means(column) for organ, column in columns.items()}
        if convention == "strict":
            summary["strict"]["undefined"] = _undefined(columns)
    return summary | {"unit": unit, "cases": cases}


def mean_and_spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean and sample standard deviation (n - 1) of each metric over the rows where it is defined.

    The mean of none is None, and so is the deviation of fewer than two. Distances in mm are there if every row has
    them.
    """
    return {name: {"mean": mean, "std": _std(_defined(rows, name))} for name, mean in _means(rows).items()}


def format_table(summary: Mapping[str, Any]) -> str:
    """The summary as plain text: a row for each case, a row for each organ, then the means and their spread."""
    unit, cases, metrics = summary["unit"], summary["cases"], shown_metrics(summary)
    organs = [(organ, _by_convention(summary, organ)) for organ in summary["published"]["per_class"]]
    rows = [(case["name"], case) for case in cases]
    spread = {convention: summary[convention]["std"] for convention in CONVENTIONS}
    width = max(len(name) for name, _ in [("case", None), *rows, *organs])
    head = " ".join(f"{html.TITLES[name]:>8}" for name in metrics)
    beside = ", and in mm beside" if len(metrics) > len(METRICS) else ""
    lines = [
        f"cases: {len(cases)}; Dice and Jaccard from 0 to 1, HD95 and ASSD in {unit}{beside}; - is undefined",
        f"{'':{width}}  {'published convention':^{len(head)}}  {'strict convention':^{len(head)}}",
    ]
    for title, block in (("case", rows), ("organ", organs), (None, [("mean", summary), ("std", spread)])):
        lines += [f"{title:{width}}  {head}  {head}"] if title else []
        for name, row in block:
            lines.append("  ".join([f"{name:{width}}", *(_cells(row[kind], metrics) for kind in CONVENTIONS)]))
        lines += ["-" * len(lines[-1])] if title else []
    undefined, total = summary["strict"]["undefined"], len(cases) * len(organs)
    if undefined["hd95"]:
        lines.append(
            f"strict: of {total} figures each, {undefined['dice']} of Dice and {undefined['hd95']} of HD95 are "
            "undefined and left out of the means"
        )
    return "\n".join(lines)


def write_csv(path: Path, results: Sequence[CaseResult], class_names: Sequence[str]) -> None:
    """Write one row for each case and class with the metrics in both conventions, an empty cell where undefined.

    Raises:
        ValueError: as in `summarise`.
    """
    _check(results, class_names)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    tables = {convention: _figures(results, convention) for convention in CONVENTIONS}
    columns = [(name, kind) for kind, ((first, *_), *_) in tables.items() for name in first]
    writer.writerow(["case", "class", "organ", *(f"{name}_{kind}" for name, kind in columns)])
    for place, result in enumerate(results):
        for label, organ in enumerate(class_names, start=1):
            figures = [tables[kind][place][label - 1][name] for name, kind in columns]
            cells = ["" if math.isnan(value) else repr(float(value)) for value in figures]
            writer.writerow([result.name, label, organ, *cells])
    _write(path, text.getvalue().encode())


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary as JSON."""
    _write(path, (json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_html(path: Path, summary: Mapping[str, Any], overlays: Path | None, provenance: html.Provenance) -> None:
    """Write one HTML file that needs no other: figures, charts, and what is known of the run.

    `overlays` is the folder with the PNG of each case, of which the page embeds those of the worst, the median and the
    best one.

    Raises:
        FileNotFoundError: there is no overlay of one of these.
    """
    pictures = []
    for title, case in _picked(summary) if overlays else []:
        dice = ", ".join(f"{html.number('dice', case[kind]['dice'])} {kind}" for kind in CONVENTIONS)
        pictures.append((title, f"{case['name']}, Dice {dice}", halves(overlays / f"{case['name']}.png")))
    _write(path, html.page(summary, pictures, provenance).encode())


def _picked(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The worst, median and best case by strict Dice, none of them twice; those without a Dice only if none has any."""
    ranked = html.worst_first(summary)
    ranked = [case for case in ranked if case["strict"]["dice"] is not None] or ranked
    if len(ranked) == 1:
        return [("The only case" if len(summary["cases"]) == 1 else "The only case with a Dice", ranked[0])]
    median = [("Median", ranked[(len(ranked) - 1) // 2])] if len(ranked) > 2 else []
    return [("Worst", ranked[0]), *median, ("Best", ranked[-1])]


def halves(path: Path) -> list[bytes]:
    """The left and the right half of a PNG file, which on a narrow page stand one below the other."""
    from PIL import Image

    parts = []
    with Image.open(path) as picture:
        width, height = picture.size
        for left, right in ((0, width // 2), (width // 2, width)):
            buffer = io.BytesIO()
            picture.convert("RGB").crop((left, 0, right, height)).save(buffer, format="PNG", optimize=True)
            parts.append(buffer.getvalue())
    return parts


def write_overlay(path: Path, volume: Volume, prediction: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a PNG of one slice, image to errors, side by side; see `evaluation.overlay.draw_overlay`.

    Raises:
        ValueError: the shapes do not fit together, or a class has no name.
    """
    _write(path, draw_overlay(volume, prediction, class_names))


def _check(results: Sequence[CaseResult], class_names: Sequence[str]) -> None:
    """Refuse results that the names do not fit."""
    if not results:
        raise ValueError("there are no results; expected at least one case")
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"the class names are {', '.join(class_names)}; expected each name once")
    for result in results:
        if len(result.scores) != len(class_names) or not result.scores:
            raise ValueError(
                f"{result.name}: {len(result.scores)} classes were scored but {len(class_names)} are named; expected "
                "one name for each class from 1 on, without the background"
            )
        if len(result.scores_mm) not in (0, len(result.scores)):
            raise ValueError(
                f"{result.name}: {len(result.scores_mm)} classes were scored in mm and {len(result.scores)} in voxels; "
                "expected as many"
            )


def _figures(results: Sequence[CaseResult], convention: str) -> list[list[dict[str, float]]]:
    """The metrics of each case and class, those in mm among them if every case has them."""
    table = [[dict(getattr(scores, convention)) for scores in result.scores] for result in results]
    if all(result.scores_mm for result in results):
        for row, result in zip(table, results, strict=True):
            for figures, scores in zip(row, result.scores_mm, strict=True):
                figures |= {name: getattr(scores, convention)[name.removesuffix("_mm")] for name in MM_METRICS}
    return table


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Each metric's mean over the figures that are defined, None if none is."""
    names = (*METRICS, *(name for name in MM_METRICS if rows and all(name in row for row in rows)))
    defined = {name: _defined(rows, name) for name in names}
    return {name: math.fsum(values) / len(values) if values else None for name, values in defined.items()}


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _defined(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The figures of one metric that are defined."""
    return [float(row[name]) for row in rows if row[name] is not None and not math.isnan(row[name])]


def _undefined(columns: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """How many figures of each metric are undefined, in all and per organ."""
    per_class = {
        organ: {name: len(column) - len(_defined(column, name)) for name in METRICS}
        for organ, column in columns.items()
    }
    return {name: sum(counts[name] for counts in per_class.values()) for name in METRICS} | {"per_class": per_class}


def _by_convention(summary: Mapping[str, Any], organ: str) -> dict[str, dict[str, float | None]]:
    """An organ's scores, laid out as those of a case."""
    return {convention: summary[convention]["per_class"][organ] for convention in CONVENTIONS}


def _cells(scores: Mapping[str, float | None], metrics: Sequence[str]) -> str:
    """The metrics of a table row, each eight characters wide."""
    return " ".join(f"{html.number(name, scores[name], missing='-'):>8}" for name in metrics)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; folders that are missing are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda partial: partial.write_bytes(content))
