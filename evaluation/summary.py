"""The scores of a test: as one array, as a table, as files, and read back."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.metrics import METRICS, OVERLAPS, ClassScores
from utils import first_line, write_text

Json = dict[str, Any]  # nested, as it is written to a file and read back; None where undefined

CONVENTIONS = ("published", "strict")
TITLES = {
    **{"dice": "Dice", "hd95": "HD95", "jaccard": "Jaccard", "assd": "ASSD"},
    **{"hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"},  # where the voxel size is known
}


@dataclass(frozen=True)
class CaseResult:
    """The scores of a case's classes 1 to K - 1; `scores_mm` has distances in mm, where known."""

    name: str
    scores: tuple[ClassScores, ...]
    scores_mm: tuple[ClassScores, ...] = ()
    group: str = ""  # such as the person, where there are groups


@dataclass(frozen=True)
class Summary:
    """The scores of a test."""

    unit: str  # of HD95 and ASSD at unit spacing, voxels or pixels
    cases: Sequence[str]
    classes: Sequence[str]  # from 1 on
    metrics: Sequence[str]  # keys of `TITLES`; those in mm only if every case has them
    scores: np.ndarray  # (cases, classes, conventions, metrics), NaN where undefined
    groups: Sequence[str] = ()  # of the cases, such as their persons; none where every case stands for itself

    @property
    def of_cases(self) -> np.ndarray:
        """The mean over the classes of each case (cases, conventions, metrics)."""
        return mean(self.scores, axis=1)

    def undefined(self, metric: str) -> int:
        """How many strict values of cases and classes are undefined."""
        return int(np.isnan(self.scores[:, :, 1, self.metrics.index(metric)]).sum())

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The rows (conventions, metrics) of the cases and the classes, and the mean and std over the cases' means."""
        return {
            "case": dict(zip(self.cases, self.of_cases, strict=True)),
            "class": dict(zip(self.classes, mean(self.scores), strict=True)),
            "total": {"mean": mean(self.of_cases), "std": std(self.of_cases)},
        }

    def to_json(self) -> Json:
        """The content of summary.json."""
        content = self._block(mean(self.of_cases), mean(self.scores))
        for kind, row in zip(CONVENTIONS, std(self.of_cases), strict=True):
            content[kind]["std"] = named(self.metrics, row)
        counts = np.isnan(self.scores[..., : len(METRICS)]).sum(axis=0)
        content["strict"]["undefined"] = self._block(counts.sum(axis=0), counts)["strict"]
        blocks = map(self._block, self.of_cases, self.scores)
        cases: list[Json] = [{"name": name, **block} for name, block in zip(self.cases, blocks, strict=True)]
        for case, group in zip(cases, self.groups, strict=False):
            case["group"] = group
        return {**content, "unit": self.unit, "cases": cases}

    def _block(self, means: np.ndarray, scores: np.ndarray) -> Json:
        """By convention the means and, `per_class`, the scores that they are of."""
        block: Json = {}
        for place, kind in enumerate(CONVENTIONS):
            per_class = {name: named(self.metrics, row[place]) for name, row in zip(self.classes, scores, strict=True)}
            block[kind] = {**named(self.metrics, means[place]), "per_class": per_class}
        return block


def summarize(results: Sequence[CaseResult], class_names: Sequence[str], *, unit: str = "voxels") -> Summary:
    """The summary of scored cases, at least one, whose classes from 1 on are named."""
    metrics = list(TITLES if all(result.scores_mm for result in results) else METRICS)
    scores = _as_array([result.scores for result in results])
    if "hd95_mm" in metrics:
        in_mm = _as_array([result.scores_mm for result in results])
        scores = np.concatenate([scores, in_mm[..., [METRICS.index("hd95"), METRICS.index("assd")]]], axis=-1)
    names, groups = [one.name for one in results], [one.group or one.name for one in results]
    return Summary(unit, names, class_names, metrics, scores, groups if groups != names else [])


def _as_array(cases: Sequence[Sequence[ClassScores]]) -> np.ndarray:
    """(cases, classes, conventions, metrics)."""
    return np.array(
        [[[[getattr(one, kind)[name] for name in METRICS] for kind in CONVENTIONS] for one in case] for case in cases]
    )


def mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of what is not NaN, NaN where nothing is."""
    return np.ma.masked_invalid(values).mean(axis=axis).filled(np.nan)


def std(values: np.ndarray) -> np.ndarray:
    """The sample standard deviation (n - 1) over the first axis of what is not NaN, NaN for fewer than two."""
    return np.ma.masked_invalid(values).std(axis=0, ddof=1).filled(np.nan)


def named(names: Iterable[str], values: np.ndarray) -> dict[str, float | None]:
    """Values by name, None for NaN, as JSON has them."""
    return {name: None if math.isnan(value) else value for name, value in zip(names, values.tolist(), strict=False)}


def number(value: float | None, metric: str, missing: str = "\N{EN DASH}") -> str:
    """A value as text: four decimals for overlaps, two for distances, `missing` for None and NaN."""
    if value is None or math.isnan(value):
        return missing
    return f"{value:.4f}" if metric in OVERLAPS else f"{value:.2f}"


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
    metrics, count = [*summary.metrics] * 2, len(summary.cases)
    in_mm = " and in mm" if "hd95_mm" in metrics else ""
    empty = [""] * (len(summary.metrics) - 1)
    rows = [["", "published", *empty, "strict", *empty]]
    for title, block in summary.tables().items():
        rows.append([title, *(TITLES[name] for name in metrics)])
        rows += [[name, *map(number, row.flat, metrics, "-" * len(metrics))] for name, row in block.items()]
    head = f"cases: {count}; Dice and Jaccard from 0 to 1, HD95 and ASSD in {summary.unit}{in_mm}; - is undefined"
    foot = (
        f"strict: of {count * len(summary.classes)} values each, {summary.undefined('dice')} of Dice and "
        f"{summary.undefined('hd95')} of HD95 are undefined and left out of the means"
    )
    return "\n".join([head, *aligned(rows), foot])


def write_csv(path: Path, summary: Summary) -> None:
    """Write one row for each case and class with the metrics in both conventions, an empty cell where undefined."""
    columns = [f"{metric}_{kind}" for kind in CONVENTIONS for metric in summary.metrics]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "class", "organ", *columns])
    for case, scores in zip(summary.cases, summary.scores, strict=True):
        for label, (name, row) in enumerate(zip(summary.classes, scores, strict=True), start=1):
            table.writerow([case, label, name, *named(columns, row.ravel()).values()])
    write_text(path, text.getvalue())


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a summary, or another result, as JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, writer: str) -> Any:
    """The content of a JSON file; the error for another one names the command that should have written it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not a JSON file ({first_line(error)}); expected what {writer} writes") from None


def is_number(value: object) -> bool:
    """Whether this is a finite number from 0 on."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def read_summary(run: Path) -> Summary:
    """The summary.json of a folder that test.py wrote to."""
    path = run / "summary.json"
    if not path.is_file():
        test = f"python test.py --output_dir {shlex.quote(str(run))}"
        raise ValueError(f"{run}: has no summary.json; expected a tested run: {test}")
    content = read_json(path, "test.py")
    try:
        metrics = [name for name in TITLES if name in content["published"]]
        cases, classes = [case["name"] for case in content["cases"]], list(content["published"]["per_class"])
        "".join([*cases, *classes]).encode()  # no halves of surrogate pairs, which nothing can draw or write
        if any(Path(name).name != name for name in cases):  # it becomes part of a path
            raise ValueError("the name of a case is not that of a file")
        rows = [case[kind]["per_class"][one] for case in content["cases"] for one in classes for kind in CONVENTIONS]
        scores = np.array([[row[name] for name in metrics] for row in rows], np.float64)
        scores = scores.reshape(len(cases), len(classes), len(CONVENTIONS), len(metrics))
        groups = [case["group"] for case in content["cases"]] if "group" in content["cases"][0] else []
        return Summary(content["unit"], cases, classes, metrics, scores, groups)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: is no summary that test.py wrote ({error!r}); test again") from None
