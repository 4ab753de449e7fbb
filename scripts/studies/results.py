"""The results of a study as plain data, collected from its runs; every table is computed from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from configs.plain_yaml import read_yaml
from engine.logger import read_curves
from evaluation.comparison import Paired, paired, paired_few
from evaluation.metrics import METRICS, OVERLAPS
from evaluation.summary import CONVENTIONS, read_json, read_summary
from scripts.studies.execute import SIMILARITY, read_times
from scripts.studies.plan import Cell, Run, Study, as_study

Plain = Mapping[str, Any]  # the content of a JSON file

REDUNDANCY = ("effective_rank_share", "mean_abs_correlation", "pair_correlation", "pair_cosine")
_DIGITS = 6


def collect(content: Plain, done: Sequence[Run], output_dir: Path) -> dict[str, Any]:
    """The results of the runs that are done: the study's own yaml, and of each run what it was, took and scored."""
    environments = [read_yaml(output_dir / run.folder / "config.yaml").get("ENVIRONMENT", {}) for run in done]
    results = {
        "study": content,
        # Every one that occurs: a study may be finished on another machine.
        "environments": [one for place, one in enumerate(environments) if one not in environments[:place]],
        "runs": [_of_run(run, output_dir / run.folder) for run in done],
    }
    return json.loads(json.dumps(results), parse_float=lambda text: round(float(text), _DIGITS))


def _of_run(run: Run, folder: Path) -> dict[str, Any]:
    cases = {
        case["name"]: {convention: {name: case[convention][name] for name in METRICS} for convention in CONVENTIONS}
        for case in read_summary(folder).to_json()["cases"]
    }
    return {
        "network": run.cell.network,
        "lambda_1": run.cell.lambda_1,
        "lambda_2": run.cell.lambda_2,
        "seed": run.seed,
        "fold": run.fold,
        "seconds": read_times(folder),
        "validation": _best_validation(folder),
        "cases": cases,
        "layers": read_json(folder / SIMILARITY, "similarity.py")["layers"],
    }


def _best_validation(folder: Path) -> dict[str, Any] | None:
    """Epoch and Dice of the validation that chose best.pth; None where nothing is held out."""
    curves = read_curves(folder)
    if "val_dice" not in curves:
        return None
    steps, values = curves["val_dice"]
    dice = max(values)
    step = steps[values.index(dice)]  # the first of equals, as in training
    return {"epoch": int(dict(zip(*curves["epoch"], strict=True))[step]), "dice": dice}


@dataclass(frozen=True)
class CellResult:
    """A cell on its finished seeds; differences are to the same network without the regularizer, on the same seeds and
    cases. Too few seeds are not `reported`, and have no differences."""

    cell: Cell
    reported: bool
    means: pd.DataFrame  # (seed, number): Dice, IoU (jaccard), validation Dice in %, and REDUNDANCY
    gain: Paired | None  # in Dice, points
    redundancy_gain: Mapping[str, Paired]
    published: float | None
    published_gain: float | None

    def spread(self, name: str) -> tuple[float, float]:
        """Mean and sample standard deviation of a number over the seeds where it is defined."""
        return float(self.means[name].mean()), float(self.means[name].std())

    @property
    def verdict(self) -> str:
        """Whether this many seeds and cases show a gain: `held` if the interval lies above 0, `not held` if it lies
        below, else `not decided`; empty without a difference."""
        if self.gain is None:
            return ""
        if self.gain.low > 0:
            return "held"
        return "not held" if self.gain.high < 0 else "not decided"


def summarize(results: Plain) -> tuple[Study, list[CellResult]]:
    """Every cell of the grid, from what `collect` gathered.

    A seed counts where all of its folds are there.

    Raises:
        ValueError: these are no results of a study, or runs of one seed were tested on different cases.
    """
    try:
        study = as_study(results["study"], "study")
        frames = {cell: _by_seed(results["runs"], study, cell) for cell in study.cells()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"these are no results of a study ({error!r}); expected what study.py writes") from None
    every = pd.concat([dice for _, dice in frames.values()])
    if every.isna().any(axis=None):
        case = every.columns[every.isna().any()][0]
        raise ValueError(
            f"{case} was tested by some runs only; expected the same data for all, so begin in another --output_dir"
        )
    return study, [_cell_result(study, cell, frames) for cell in frames]


def cell_of(run: Plain) -> Cell:
    """The cell of the grid that a run, as `collect` gathered it, belongs to."""
    return Cell(run["network"], run["lambda_1"], run["lambda_2"])


def layer_table(runs: Sequence[Plain]) -> pd.DataFrame:
    """The layers of some runs: name, module, channels, and REDUNDANCY over all channels, nan where not defined."""
    rows = []
    for layer in (layer for run in runs for layer in run["layers"]):
        numbers = {name: layer[name]["all"] if isinstance(layer[name], Mapping) else layer[name] for name in REDUNDANCY}
        rows.append({name: layer[name] for name in ("layer", "module", "channels")} | numbers)
    return pd.DataFrame(rows).astype(dict.fromkeys(REDUNDANCY, float))


def _by_seed(runs: Sequence[Plain], study: Study, cell: Cell) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of the finished seeds of a cell: means (seed, number) over cases, folds and the layers that IFD acts on, and Dice
    (seed, case), in %."""
    means, dice = {}, {}
    for seed in study.seeds:
        parts = [run for run in runs if cell_of(run) == cell and run["seed"] == seed]
        if len(parts) == max(1, study.folds):
            cases = {name: case["published"] for part in parts for name, case in part["cases"].items()}
            scores = 100 * pd.DataFrame.from_dict(cases, orient="index")[list(OVERLAPS)]
            layers = pd.concat(
                [layer_table([part]).query("layer != 'final'").mean(numeric_only=True) for part in parts]
            )
            chosen = [math.nan if part["validation"] is None else 100 * part["validation"]["dice"] for part in parts]
            means[seed] = {"validation": pd.Series(chosen).mean(), **scores.mean(), **layers.groupby(level=0).mean()}
            dice[seed] = scores["dice"]
    return pd.DataFrame.from_dict(means, orient="index"), pd.DataFrame(dice).T


def _cell_result(study: Study, cell: Cell, frames: Mapping[Cell, tuple[pd.DataFrame, pd.DataFrame]]) -> CellResult:
    means, dice = frames[cell]
    gain, redundancy_gain = None, {}
    if cell != cell.baseline and cell.baseline in frames:
        base_means, base_dice = frames[cell.baseline]
        shared = means.index.intersection(base_means.index)
        if len(shared) >= study.min_seeds:
            gain = paired((dice - base_dice).loc[shared].to_numpy())
            changes = (means - base_means).loc[shared, list(REDUNDANCY)].dropna(axis=1, how="all")
            redundancy_gain = {name: paired_few(change.dropna().tolist()) for name, change in changes.items()}
    reported, published = len(means) >= study.min_seeds, study.published(cell)
    return CellResult(cell, reported, means, gain, redundancy_gain, published, study.published_gain(cell))
