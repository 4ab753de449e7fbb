"""Cross-validation: one training and test for each fold, and one table of all cases."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluation.metrics import OVERLAPS
from evaluation.summary import CONVENTIONS, Summary, aligned, mean_and_spread, number, read_summary, write_json

_log = logging.getLogger("train.py")

RESULT = "cross_validation.json"
_REPOSITORY = Path(__file__).resolve().parent.parent


def cross_validate(
    words: Sequence[str], device: Sequence[str], folds: int, output_dir: Path, is_trained: Callable[[int, Path], bool]
) -> int:
    """Train and test each fold in a folder of its own, and collect the results.

    A tested fold is not repeated, an interrupted one resumes: the same command again finishes what is left.

    Args:
        words: the command line of train.py, with `--folds`.
        device: the flags of the device for test.py.
        folds: how many folds there are.
        output_dir: gets `fold_0`, `fold_1`, ..., each a run, and `cross_validation.json`.
        is_trained: whether a fold's run was trained with these settings; it raises where they differ.

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
    write_json(output_dir / RESULT, result)
    _log.info("%s\n\nresults: %s", format_result(result), output_dir / RESULT)
    return 0


def is_tested(run: Path) -> bool:
    """Whether the folder of a run holds a test that is newer than its training and its configuration."""
    tested, *before = (run / name for name in ("summary.json", "last.pth", "config.yaml"))
    if not all(path.is_file() for path in (tested, *before)):
        return False
    return tested.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in before)


def collect(summaries: Sequence[Summary]) -> dict[str, Any]:
    """The summaries of the folds in one, in both conventions.

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


def format_result(result: Summary) -> str:
    """The result as plain text: a row for each case, then mean and standard deviation."""
    columns = [(kind, name) for kind in CONVENTIONS for name in OVERLAPS]
    rows = [["case", "fold", *(f"{'IoU' if name == 'jaccard' else 'Dice'} ({kind})" for kind, name in columns)]]
    for case in result["cases"]:
        cells = [number(case[kind][name], name, "-") for kind, name in columns]
        rows.append([case["name"], str(case["fold"]), *cells])
    for over in ("over_cases", "over_folds"):
        spread = [result[kind][over][name] for kind, name in columns]
        cells = [f"{number(one['mean'], 'dice', '-')} +- {number(one['std'], 'dice', '-')}" for one in spread]
        rows.append([over.replace("_", " "), "", *cells])
    return "\n".join(aligned(rows))


def _run(command: Sequence[str]) -> int:
    """Run a command of the repository; an interruption waits for it, as it saves before it ends."""
    process = subprocess.Popen([sys.executable, str(_REPOSITORY / command[0]), *command[1:]])
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
