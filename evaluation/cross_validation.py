"""Cross-validation: each part of the cases held out once, trained without, tested on, and all of them in one table."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluation.metrics import OVERLAPS
from evaluation.report import CONVENTIONS, mean_and_spread
from evaluation.summary import read_summary
from utils import atomic_write

_log = logging.getLogger("train.py")

RESULT = "cross_validation.json"
_HERE = Path(__file__).resolve().parent.parent


def cross_validate(
    words: Sequence[str], device: Sequence[str], folds: int, output_dir: Path, is_trained: Callable[[int, Path], bool]
) -> int:
    """Train and test once for each fold, each in a folder of its own, and put the results together.

    A fold that has been tested is not repeated, one that was interrupted goes on: the same command again finishes what
    is left.

    Args:
        words: the command line of train.py, with `--folds`.
        device: what test.py has to be told of the device.
        folds: how many parts there are.
        output_dir: gets `fold_0`, `fold_1`, ..., each a run, and `cross_validation.json`.
        is_trained: whether a fold's run was trained as is asked for; it raises where that was otherwise.

    Returns:
        0, or the exit code of the command that failed.

    Raises:
        ValueError: as `is_trained`, `read_summary` and `collect`.
    """
    runs = [output_dir / f"fold_{fold}" for fold in range(folds)]
    done = [is_trained(fold, run) and is_tested(run) for fold, run in enumerate(runs)]  # all, before any is begun
    for fold, run in enumerate(runs):
        train = ["train.py", *words, "--fold", str(fold), "--output_dir", str(run), "--resume", "auto"]
        for command in () if done[fold] else (train, ["test.py", "--output_dir", str(run), *device]):
            code = _run(command)
            if code:
                return code
        _log.info("fold %d of %d: %s", fold + 1, folds, run)
    result = collect([read_summary(run) for run in runs])
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    atomic_write(output_dir / RESULT, lambda path: path.write_text(text, encoding="utf-8"))
    _log.info("%s\n\nresults: %s", format_result(result), output_dir / RESULT)
    return 0


def is_tested(run: Path) -> bool:
    """Whether the folder of a run holds a test that was made after the training, and after it was last asked for."""
    tested, *before = (run / name for name in ("summary.json", "last.pth", "config.yaml"))
    if not all(path.is_file() for path in (tested, *before)):
        return False
    return tested.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in before)


def collect(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put the summaries of the folds together, in both conventions.

    `cases` are those of all folds, each with its `fold`; `over_cases` and `over_folds` hold the mean and the sample
    standard deviation of each metric, over all cases and over the means of the folds.

    Raises:
        ValueError: a case was tested in two folds.
    """
    cases = [{**case, "fold": fold} for fold, summary in enumerate(summaries) for case in summary["cases"]]
    twice = [name for name, count in Counter(case["name"] for case in cases).items() if count > 1]
    if twice:
        raise ValueError(
            f"{twice[0]} was tested in two folds; expected each case once, so begin in another --output_dir"
        )
    result: dict[str, Any] = {"folds": len(summaries), "unit": summaries[0]["unit"]}
    for convention in CONVENTIONS:
        result[convention] = {
            "over_cases": mean_and_spread([case[convention] for case in cases]),
            "over_folds": mean_and_spread([summary[convention] for summary in summaries]),
        }
    return result | {"cases": cases}


def format_result(result: dict[str, Any]) -> str:
    """The result as plain text: a row for each case, then mean and spread."""
    width = max(len(case["name"]) for case in result["cases"])
    width = max(width, len("over folds"))
    lines = [f"{'case':{width}}  fold  {'Dice':>7} {'IoU':>7}  {'Dice':>7} {'IoU':>7}   (published, strict)"]
    for case in result["cases"]:
        cells = "  ".join(" ".join(_cell(case[convention][name]) for name in OVERLAPS) for convention in CONVENTIONS)
        lines.append(f"{case['name']:{width}}  {case['fold']:4d}  {cells}")
    for over in ("over_cases", "over_folds"):
        for convention in CONVENTIONS:
            row = result[convention][over]
            dice, iou = (f"{_cell(row[name]['mean'])} +- {_cell(row[name]['std'])}" for name in OVERLAPS)
            lines.append(f"{over.replace('_', ' '):{width}}  {convention:9}  Dice {dice}  IoU {iou}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "      -" if value is None else f"{value:7.4f}"


def _run(command: Sequence[str]) -> int:
    """Run one of the commands, and wait for it even where an interruption comes: it saves before it leaves."""
    process = subprocess.Popen([sys.executable, str(_HERE / command[0]), *command[1:]])
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
