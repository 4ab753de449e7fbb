"""The summary.json of a test, read back: whoever reads it can rely on every figure in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluation.html import shown_metrics
from evaluation.metrics import OVERLAPS
from evaluation.plain_json import is_number, read_json
from evaluation.report import CONVENTIONS


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
        fault = next(_faults(summary), None)
    except (KeyError, TypeError, AttributeError) as error:
        fault = repr(error)
    if fault:
        raise ValueError(f"{path}: is no summary that test.py wrote ({fault}); test again")
    return summary


def _faults(summary: Mapping[str, Any]) -> Iterator[str]:
    """What is not as `report.summarise` makes it."""
    cases, organs = summary["cases"], set(summary["published"]["per_class"].keys())
    names = [case["name"] for case in cases]
    if not all(isinstance(text, str) for text in [summary["unit"], *names]):
        yield "the unit or the name of a case is no text"
    if not names or not organs or len(set(names)) < len(names):
        yield f"it has {len(organs)} classes and {len(names)} cases of {len(set(names))} names"
    for case in cases:
        for convention in CONVENTIONS:
            scores = case[convention]
            if set(scores["per_class"].keys()) != organs:
                yield f"{case['name']}: its {convention} classes are {', '.join(scores['per_class'])}"
            for row in (scores, *scores["per_class"].values()):
                yield from (f"{case['name']}: {fault}" for fault in _faults_of_row(row, summary, convention))


def _faults_of_row(row: Mapping[str, Any], summary: Mapping[str, Any], convention: str) -> Iterator[str]:
    """What is amiss with the figures of a case, or of its class: by the strict convention some are undefined."""
    for metric in shown_metrics(summary):
        highest = 1.0 if metric in OVERLAPS else sys.float_info.max
        undefined = convention == "strict" and row[metric] is None
        if not undefined and not is_number(row[metric], highest=highest):
            yield f"its {convention} {metric} is {row[metric]!r}"
