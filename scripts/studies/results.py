"""The results of a study as plain data, collected from its runs; every table is computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from configs.plain_yaml import read_yaml
from engine.logger import read_curves
from evaluation.comparison import Paired, paired, paired_few
from evaluation.metrics import METRICS, OVERLAPS
from evaluation.summary import CONVENTIONS, is_number, read_json, read_summary
from scripts.studies.execute import SIMILARITY, TIMES, read_times
from scripts.studies.plan import Cell, Plain, Run, Study, as_study

REDUNDANCY = ("effective_rank_share", "mean_abs_correlation", "pair_correlation", "pair_cosine")
_DIGITS = 6


def collect(study: Study, content: Plain, done: Sequence[Run], output_dir: Path) -> dict[str, Any]:
    """The results of the runs that are done: the study's own yaml, and of each run what it was, took and scored."""
    runs = [_of_run(run, output_dir / run.folder) for run in done]
    environments = [read_yaml(output_dir / run.folder / "config.yaml").get("ENVIRONMENT", {}) for run in done]
    return {
        "study": dict(content),
        # Every one that occurs: a study may be finished on another machine.
        "environments": [one for place, one in enumerate(environments) if one not in environments[:place]],
        "runs": runs,
    }


def _of_run(run: Run, folder: Path) -> dict[str, Any]:
    summary, similarity = read_summary(folder), read_json(folder / SIMILARITY, "similarity.py")
    if not isinstance(similarity, Mapping) or not isinstance(similarity.get("layers"), list):
        raise ValueError(f"{folder / SIMILARITY}: has no layers; expected what similarity.py writes, so remove it")
    cases = {
        case["name"]: {convention: {name: case[convention][name] for name in METRICS} for convention in CONVENTIONS}
        for case in summary.to_json()["cases"]
    }
    found = {
        "network": run.cell.network,
        "lambda_1": run.cell.lambda_1,
        "lambda_2": run.cell.lambda_2,
        "seed": run.seed,
        "fold": run.fold,
        "seconds": read_times(folder / TIMES),
        "validation": _best_validation(folder),
        "cases": cases,
        "layers": similarity["layers"],
    }
    return _rounded(found)


def _best_validation(folder: Path) -> dict[str, Any] | None:
    """Epoch and Dice of the validation that chose best.pth; None where nothing is held out."""
    curves = read_curves(folder)
    if "val_dice" not in curves:
        return None
    steps, values = curves["val_dice"]
    dice = max(values)
    step = steps[values.index(dice)]  # the first of equals, as in training
    epochs = dict(zip(*curves["epoch"], strict=True))
    return {"epoch": int(epochs[step]), "dice": dice}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class CellResult:
    """A cell whose seeds are enough; Dice and IoU in per cent, differences in points to the same network without the
    regularizer, on the same seeds and cases."""

    cell: Cell
    seeds: list[int]
    dice_by_seed: list[float]
    dice: tuple[float, float]  # mean and sample standard deviation over the seeds
    iou: tuple[float, float]
    validation: tuple[float, float]  # Dice that chose the weights, nan where nothing is held out
    gain: Paired | None
    published: float | None
    published_gain: float | None
    redundancy: Mapping[str, tuple[float, float]]  # mean over the regularized layers; mean and deviation over seeds
    redundancy_gain: Mapping[str, Paired]

    @property
    def verdict(self) -> str:
        """Whether this many seeds and cases show a gain: `held` if the interval lies above 0, `not held` if it lies
        below, else `not decided`; empty without a difference."""
        if self.gain is None:
            return ""
        if self.gain.low > 0:
            return "held"
        return "not held" if self.gain.high < 0 else "not decided"


@dataclass(frozen=True)
class TooFew:
    """A cell that is not reported, and of how many seeds it has results."""

    cell: Cell
    seeds: list[int]


def summarize(results: Plain) -> tuple[Study, list[CellResult | TooFew]]:
    """Every cell of the grid, from what `collect` gathered.

    A seed counts where all of its folds are there.

    Raises:
        ValueError: these are no results of a study, or runs of one seed were tested on different cases.
    """
    try:
        study = as_study(results["study"], "study")
        _check_runs(results["runs"], study)
        seeds = {cell: _seeds(results["runs"], study, cell) for cell in study.cells()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"these are no results of a study ({error!r}); expected what study.py writes") from None
    _check_cases(seeds)
    return study, [_cell_result(study, cell, seeds) for cell in study.cells()]


def _check_runs(runs: Sequence[Plain], study: Study) -> None:
    """Every run is of the grid, once, and has a Dice, an IoU and layers that are those of its network's other runs."""
    left = set(study.runs())
    layers: dict[str, list[tuple[Any, ...]]] = {}
    for place, run in enumerate(runs):
        which = Run(cell_of(run), run["seed"], run["fold"])
        own = [(layer["layer"], layer["module"], layer["channels"]) for layer in run["layers"]]
        scores = [case["published"][metric] for case in run["cases"].values() for metric in OVERLAPS]
        if which not in left:
            fault = f"{which.folder} is not of the grid, or twice; expected each once"
        elif not scores or not all(is_number(score, highest=1.0) for score in scores):
            fault = "a Dice or IoU is missing or not from 0 to 1; expected what study.py writes"
        elif own != layers.setdefault(run["network"], own):
            fault = f"its layers are not those of the other runs of {run['network']}; expected the same network in all"
        else:
            left.remove(which)
            continue
        raise ValueError(f"runs, number {place}: {fault}")


def cell_of(run: Plain) -> Cell:
    """The cell of the grid that a run, as `collect` gathered it, belongs to."""
    return Cell(run["network"], run["lambda_1"], run["lambda_2"])


@dataclass(frozen=True)
class _Seeds:
    """The finished seeds of a cell, with all of their folds."""

    cases: dict[int, dict[str, dict[str, float]]]  # metrics of each case
    layers: dict[int, dict[str, float]]  # the mean over the layers, and over the folds
    validation: dict[int, float]  # Dice that chose the weights, the mean over the folds; nan where nothing is held out


def _seeds(runs: Sequence[Plain], study: Study, cell: Cell) -> _Seeds:
    found = _Seeds({}, {}, {})
    mine = [run for run in runs if cell_of(run) == cell]
    for seed in study.seeds:
        parts = [run for run in mine if run["seed"] == seed]
        if len(parts) == max(1, study.folds):
            found.cases[seed] = {name: case["published"] for part in parts for name, case in part["cases"].items()}
            numbers = [_redundancy(part["layers"]) for part in parts]
            found.layers[seed] = {name: mean_defined([part[name] for part in numbers]) for name in REDUNDANCY}
            chosen = [math.nan if part["validation"] is None else part["validation"]["dice"] for part in parts]
            found.validation[seed] = mean_defined(chosen)
    return found


def redundancy_of(layer: Plain) -> dict[str, float]:
    """The reported numbers of a layer, over all its channels, nan where one is not defined."""
    values = {name: layer[name]["all"] if isinstance(layer[name], Mapping) else layer[name] for name in REDUNDANCY}
    return {name: math.nan if value is None else value for name, value in values.items()}


def _redundancy(layers: Sequence[Plain]) -> dict[str, float]:
    """The mean over the layers that IFD acts on: the teacher is not one."""
    rows = [redundancy_of(layer) for layer in layers if layer["layer"] != "final"]
    return {name: mean_defined([row[name] for row in rows]) for name in REDUNDANCY}


def mean_defined(values: Sequence[float]) -> float:
    """The mean of those that are not nan, nan where there are none: a layer may have died in one run alone."""
    defined = [value for value in values if not math.isnan(value)]
    return fmean(defined) if defined else math.nan


def _check_cases(every_cell: Mapping[Cell, _Seeds]) -> None:
    every = {(cell, seed): set(cases) for cell, own in every_cell.items() for seed, cases in own.cases.items()}
    first = next(iter(every.values()), set())
    for (cell, seed), names in every.items():
        if names != first:
            other = sorted(names ^ first)[0]
            raise ValueError(
                f"{cell}, seed {seed}: not tested on the cases of the others, {other} is in one alone; expected the "
                "same data for all runs, so begin the study in another --output_dir"
            )


def _cell_result(study: Study, cell: Cell, every_cell: Mapping[Cell, _Seeds]) -> CellResult | TooFew:
    own, base = every_cell[cell], every_cell.get(cell.baseline, _Seeds({}, {}, {}))
    seeds = list(own.cases)
    if len(seeds) < study.min_seeds:
        return TooFew(cell, seeds)
    shared = [seed for seed in seeds if cell != cell.baseline and seed in base.cases]
    enough = len(shared) >= study.min_seeds
    published, plain = study.published(cell), study.published(cell.baseline)
    dice, iou = ([_mean_of(own.cases[seed], metric) for seed in seeds] for metric in OVERLAPS)
    return CellResult(
        cell,
        seeds,
        dice,
        _over_seeds(dice),
        _over_seeds(iou),
        _over_seeds([100 * own.validation[seed] for seed in seeds]),
        paired(list(_case_differences(own, base, shared))) if enough else None,
        published,
        None if published is None or plain is None or cell == cell.baseline else published - plain,
        {name: _over_seeds([own.layers[seed][name] for seed in seeds]) for name in REDUNDANCY},
        _redundancy_gain(own, base, shared) if enough else {},
    )


def _mean_of(cases: Mapping[str, Mapping[str, float]], metric: str) -> float:
    """The mean over the cases, in per cent."""
    return 100 * fmean(case[metric] for case in cases.values())


def _redundancy_gain(own: _Seeds, base: _Seeds, seeds: Sequence[int]) -> dict[str, Paired]:
    """The seeds' differences in each number; one that no seed has in both is left out."""
    found = {}
    for name in REDUNDANCY:
        differences = [own.layers[seed][name] - base.layers[seed][name] for seed in seeds]
        defined = [value for value in differences if not math.isnan(value)]
        if defined:
            found[name] = paired_few(defined)
    return found


def _case_differences(own: _Seeds, base: _Seeds, seeds: Sequence[int]) -> Iterator[list[float]]:
    """Of each seed the cases' differences in Dice, in points."""
    for seed in seeds:
        mine, theirs = own.cases[seed], base.cases[seed]
        yield [100 * (mine[name]["dice"] - theirs[name]["dice"]) for name in mine]


def _over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of what is defined."""
    defined = [value for value in values if not math.isnan(value)]
    return mean_defined(values), stdev(defined) if len(defined) > 1 else math.nan
