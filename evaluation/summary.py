"""The summary of a test: mean scores in both conventions, as data, as a table, as files, and read back."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics import METRICS, OVERLAPS, ClassScores
from utils import atomic_write, first_line

Summary = Mapping[str, Any]  # nested JSON: mean scores and counts by convention, class and case
Scores = Mapping[str, float | None]  # by metric; None where undefined

CONVENTIONS = ("published", "strict")
MM_METRICS = ("hd95_mm", "assd_mm")  # in addition to those in voxels, where the voxel size is known
TITLES = {
    **{"dice": "Dice", "hd95": "HD95", "jaccard": "Jaccard", "assd": "ASSD"},
    **{"hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"},
}


@dataclass(frozen=True)
class CaseResult:
    """The name of a case and the scores of its classes 1 to K - 1; `scores_mm` has distances in mm, where known."""

    name: str
    scores: tuple[ClassScores, ...]
    scores_mm: tuple[ClassScores, ...] = ()


def summarize(results: Sequence[CaseResult], class_names: Sequence[str], *, unit: str = "voxels") -> dict[str, Any]:
    """Mean scores in both conventions: overall, per class and per case, as plain data that JSON can hold.

    A case's mean is taken over its classes, the overall mean over the cases' means; `std` has the sample standard
    deviation of these, None for a single one. A strict value that is undefined is left out of every mean and counted
    in `strict["undefined"]`; a mean of nothing is None. Where every case has scores in mm, there are `hd95_mm` and
    `assd_mm` too. `class_names` names the classes from 1 on, `unit` is that of HD95 and ASSD at unit spacing.

    Raises:
        ValueError: there are no results, or the names are not as many as the classes, or not all different.
    """
    _check(results, class_names)
    summary: dict[str, Any] = {}
    cases: list[dict[str, Any]] = [{"name": result.name} for result in results]
    for convention in CONVENTIONS:
        table = _values(results, convention)
        for case, row in zip(cases, table, strict=True):
            per_class = {name: _means([scores]) for name, scores in zip(class_names, row, strict=True)}
            case[convention] = _means(row) | {"per_class": per_class}
        columns = dict(zip(class_names, zip(*table, strict=True), strict=True))
        spread = mean_and_spread([case[convention] for case in cases])
        summary[convention] = {name: both["mean"] for name, both in spread.items()}
        summary[convention]["std"] = {name: both["std"] for name, both in spread.items()}
        summary[convention]["per_class"] = {name: _means(column) for name, column in columns.items()}
    undefined = {
        name: {metric: len(column) - len(_defined(column, metric)) for metric in METRICS}
        for name, column in columns.items()  # of the strict convention, the last
    }
    totals = {metric: sum(counts[metric] for counts in undefined.values()) for metric in METRICS}
    summary["strict"]["undefined"] = totals | {"per_class": undefined}
    return summary | {"unit": unit, "cases": cases}


def _check(results: Sequence[CaseResult], class_names: Sequence[str]) -> None:
    if not results:
        raise ValueError("there are no results; expected at least one case")
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"the class names are {', '.join(class_names)}; expected each name once")
    for result in results:
        if not 0 < len(result.scores) == len(class_names):
            raise ValueError(
                f"{result.name}: {len(result.scores)} classes were scored but {len(class_names)} are named; expected "
                "one name for each class from 1 on, without the background"
            )


def _values(results: Sequence[CaseResult], convention: str) -> list[list[dict[str, float]]]:
    """The metrics of each case and class, those in mm among them if every case has them."""
    table = [[dict(getattr(scores, convention)) for scores in result.scores] for result in results]
    if all(result.scores_mm for result in results):
        for row, result in zip(table, results, strict=True):
            for values, scores in zip(row, result.scores_mm, strict=True):
                values |= {name: getattr(scores, convention)[name.removesuffix("_mm")] for name in MM_METRICS}
    return table


def mean_and_spread(rows: Sequence[Scores]) -> dict[str, dict[str, float | None]]:
    """Mean and sample standard deviation (n - 1) of each metric over the rows where it is defined.

    The mean of none is None, and so is the deviation of fewer than two. Distances in mm are there if every row has
    them.
    """
    spread = {name: _defined(rows, name) for name in _means(rows)}
    std = {name: statistics.stdev(values) if len(values) > 1 else None for name, values in spread.items()}
    return {name: {"mean": mean, "std": std[name]} for name, mean in _means(rows).items()}


def _means(rows: Sequence[Scores]) -> dict[str, float | None]:
    names = (*METRICS, *(name for name in MM_METRICS if rows and all(name in row for row in rows)))
    defined = {name: _defined(rows, name) for name in names}
    return {name: math.fsum(values) / len(values) if values else None for name, values in defined.items()}


def _defined(rows: Sequence[Scores], name: str) -> list[float]:
    return [value for row in rows if (value := row[name]) is not None and not math.isnan(value)]


def shown_metrics(summary: Summary) -> tuple[str, ...]:
    """The metrics of a summary: in mm, too, where it has those."""
    return (*METRICS, *(name for name in MM_METRICS if name in summary["published"]))


def number(value: float | None, metric: str, missing: str = "\N{EN DASH}") -> str:
    """A value as text: four decimals for overlaps, two for distances, `missing` where it is undefined."""
    if value is None:
        return missing
    return f"{value:.2f}" if metric.startswith(("hd95", "assd")) else f"{value:.4f}"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """A line for each row, columns two spaces apart, the first aligned left and the others right."""
    rows = list(rows)
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
        for name, *cells in rows
    ]


def format_table(summary: Summary) -> str:
    """The summary as plain text: a row for each case, a row for each class, then the means and their spread."""
    unit, cases, metrics = summary["unit"], summary["cases"], shown_metrics(summary)
    names = summary["published"]["per_class"]
    classes = [(name, {kind: summary[kind]["per_class"][name] for kind in CONVENTIONS}) for name in names]
    rows = [(case["name"], case) for case in cases]
    spread = {convention: summary[convention]["std"] for convention in CONVENTIONS}
    width = max(len(name) for name, _ in [("case", None), *rows, *classes])
    head = " ".join(f"{TITLES[name]:>8}" for name in metrics)
    in_mm = ", and in mm" if len(metrics) > len(METRICS) else ""
    lines = [
        f"cases: {len(cases)}; Dice and Jaccard from 0 to 1, HD95 and ASSD in {unit}{in_mm}; - is undefined",
        f"{'':{width}}  {'published convention':^{len(head)}}  {'strict convention':^{len(head)}}",
    ]
    for title, block in (("case", rows), ("organ", classes), (None, [("mean", summary), ("std", spread)])):
        lines += [f"{title:{width}}  {head}  {head}"] if title else []
        for name, row in block:
            cells = (" ".join(f"{number(row[kind][m], m, '-'):>8}" for m in metrics) for kind in CONVENTIONS)
            lines.append("  ".join([f"{name:{width}}", *cells]))
        lines += ["-" * len(lines[-1])] if title else []
    undefined, total = summary["strict"]["undefined"], len(cases) * len(classes)
    if undefined["hd95"]:
        lines.append(
            f"strict: of {total} values each, {undefined['dice']} of Dice and {undefined['hd95']} of HD95 are "
            "undefined and left out of the means"
        )
    return "\n".join(lines)


def write_csv(path: Path, results: Sequence[CaseResult], class_names: Sequence[str]) -> None:
    """Write one row for each case and class with the metrics in both conventions, an empty cell where undefined.

    Raises:
        ValueError: as in `summarize`.
    """
    _check(results, class_names)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    tables = {convention: _values(results, convention) for convention in CONVENTIONS}
    columns = [(name, kind) for kind, ((first, *_), *_) in tables.items() for name in first]
    writer.writerow(["case", "class", "organ", *(f"{name}_{kind}" for name, kind in columns)])
    for place, result in enumerate(results):
        for label, organ in enumerate(class_names, start=1):
            values = [tables[kind][place][label - 1][name] for name, kind in columns]
            cells = ["" if math.isnan(value) else repr(float(value)) for value in values]
            writer.writerow([result.name, label, organ, *cells])
    atomic_write(path, lambda partial: partial.write_text(text.getvalue(), encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a summary, or another result, as JSON."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path, writer: str) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is none; the command that should have written it is named.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not a JSON file ({first_line(error)}); expected what {writer} writes") from None


def is_number(value: object, lowest: float = 0.0, highest: float = sys.float_info.max) -> bool:
    """Whether this is a finite number from `lowest` to `highest`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= highest


def read_summary(run: Path) -> dict[str, Any]:
    """The summary.json of a folder that test.py wrote to.

    Raises:
        ValueError: it has none, or one that test.py did not write.
    """
    path = run / "summary.json"
    if not path.is_file():
        raise ValueError(
            f"{run}: has no summary.json, so nothing was predicted there yet; expected a run that was tested: "
            f"python test.py --output_dir {run}"
        )
    summary = read_json(path, "test.py")
    try:
        fault = _fault(summary)
    except (KeyError, TypeError, AttributeError) as error:
        fault = repr(error)
    if fault:
        raise ValueError(f"{path}: is no summary that test.py wrote ({fault}); test again")
    return summary


def _fault(summary: Summary) -> str:
    """What is not as `summarize` makes it."""
    names, classes = [case["name"] for case in summary["cases"]], list(summary["published"]["per_class"])
    if not all(isinstance(text, str) for text in [summary["unit"], *names]):
        return "the unit or the name of a case is no text"
    if not classes or not 0 < len(set(names)) == len(names):
        return f"it has {len(classes)} classes and {len(names)} cases of {len(set(names))} names"
    for case in summary["cases"]:
        for convention in CONVENTIONS:
            scores = case[convention]
            if list(scores["per_class"]) != classes:
                return f"{case['name']}: its {convention} classes are {', '.join(scores['per_class'])}"
            for row in (scores, *scores["per_class"].values()):
                for metric in shown_metrics(summary):
                    undefined = convention == "strict" and row[metric] is None
                    if not undefined and not is_number(row[metric], highest=1 if metric in OVERLAPS else math.inf):
                        return f"{case['name']}: its {convention} {metric} is {row[metric]!r}"
    return ""
