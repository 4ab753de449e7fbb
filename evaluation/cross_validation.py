"""Cross-validation: one training and test for each fold, and one table of all cases."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from evaluation.inference import is_done
from evaluation.metrics import METRICS, OVERLAPS
from evaluation.summary import CONVENTIONS, Json, Summary, aligned, mean, named, number, read_summary, std, write_json

_log = logging.getLogger("train.py")


def cross_validate(
    words: Sequence[str], device: Sequence[str], folds: int, output_dir: Path, is_trained: Callable[[int, Path], bool]
) -> int:
    """Train and test each fold in a run `fold_0`, `fold_1`, ... of `output_dir`, and write `cross_validation.json`.

    What is tested is skipped, and what was interrupted is resumed. `words` is the command line of train.py, `device`
    test.py's flags of the device; `is_trained` says whether a fold's run was trained with these settings, and raises
    where they differ. Returns 0, or the exit code of the command that failed.
    """
    runs = [output_dir / f"fold_{fold}" for fold in range(folds)]
    done = [is_trained(fold, run) and is_done(run) for fold, run in enumerate(runs)]  # all, before any is begun
    for fold, run in enumerate(runs):
        train = ["train.py", *words, "--fold", str(fold), f"--output_dir={run}", "--resume", "auto"]
        for command in () if done[fold] else (train, ["test.py", f"--output_dir={run}", *device]):
            if code := _run(command):
                return code
        _log.info("fold %d of %d: %s", fold + 1, folds, run)
    content, table = collect([read_summary(run) for run in runs])
    path = output_dir / "cross_validation.json"
    write_json(path, content)
    _log.info("%s\n\nresults: %s", table, path)
    return 0


def collect(summaries: Sequence[Summary]) -> tuple[Json, str]:
    """The summaries of the folds in one, as in cross_validation.json and as a table.

    In both conventions `over_cases` and `over_folds` hold mean and sample standard deviation of each metric, over all
    cases and over the means of the folds; `cases` are those of all folds, each with its `fold`.
    """
    cases = [{**case, "fold": fold} for fold, one in enumerate(summaries) for case in one.to_json()["cases"]]
    name, count = Counter(case["name"] for case in cases).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{name} was tested in two folds; expected one, so begin in another --output_dir")
    metrics = min((one.metrics for one in summaries), key=len)
    overlaps = [METRICS.index(name) for name in OVERLAPS]
    folds = [one.of_cases[..., : len(metrics)] for one in summaries]
    blocks = {"over_cases": np.concatenate(folds), "over_folds": np.stack([mean(fold) for fold in folds])}
    content: Json = {"folds": len(folds), "unit": summaries[0].unit} | {kind: {} for kind in CONVENTIONS}
    rows = [["case", "fold", *(f"{title} ({kind})" for kind in CONVENTIONS for title in ("Dice", "IoU"))]]
    for case, scores in zip(cases, blocks["over_cases"][..., overlaps], strict=True):
        rows.append([case["name"], str(case["fold"]), *(number(value, "dice", "-") for value in scores.flat)])
    for over, values in blocks.items():
        spread = np.stack([mean(values), std(values)], axis=-1)  # (conventions, metrics, 2)
        for kind, row in zip(CONVENTIONS, spread, strict=True):
            content[kind][over] = {name: named(("mean", "std"), one) for name, one in zip(metrics, row, strict=True)}
        cells = [" +- ".join(number(x, "dice", "-") for x in one) for one in spread[:, overlaps].reshape(-1, 2)]
        rows.append([over.replace("_", " "), "", *cells])
    return content | {"cases": cases}, "\n".join(aligned(rows))


def _run(command: Sequence[str]) -> int:
    """Run a command of the repository; an interruption is passed on once, and waits until it has saved."""
    script = Path(__file__).resolve().parent.parent / command[0]
    process = subprocess.Popen([sys.executable, str(script), *command[1:]], start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
