"""The results of a study: each cell's means and differences over the seeds, as tables in Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from evaluation.comparison import LEVEL, Paired, paired, paired_few
from evaluation.metrics import OVERLAPS
from scripts.studies.plan import Plain, Run, Study, as_study

_CELL = ["network", "lambda_1", "lambda_2", "variant"]
_SEED = [*_CELL, "seed"]
_LAYER = ["layer", "module", "channels"]
_REDUNDANCY = {
    "effective_rank_share": "effective rank, share",
    "mean_abs_correlation": "mean absolute correlation",
    "pair_correlation": "correlation of IFD's pairs",
    "pair_cosine": "cosine of IFD's pairs",
}
_HEADS = ["network", "lambda_1 (SCR)", "lambda_2 (IFD)"]
_DISTANCES = ("hd95", "hd95_mm")
_EQUIVALENT = 0.5  # points of Dice


@dataclass(frozen=True)
class CellResult:
    """The finished seeds of a cell, and their differences to the same network without the regularizer.

    Scores are in the strict convention. Dice and IoU are in per cent, their differences in points; NaN and None are
    undefined.
    """

    cell: tuple[str, float, float, str]  # network, lambda_1, lambda_2, variant
    seeds: pd.DataFrame  # for each dice, jaccard, hd95, validation (Dice), redundancy: its mean over IFD's layers
    layers: pd.DataFrame  # redundancy of each layer, the mean over the runs
    is_reported: bool  # whether the seeds are as many as the study states
    gain: Paired | None  # in Dice, over seeds and cases or their groups
    changes: Mapping[str, Paired]  # of validation and redundancy, over the seeds
    published: float | None
    published_gain: float | None
    p_holm: float = math.nan  # of the gain, corrected for all cells of the network

    @property
    def verdict(self) -> str:
        """`held` or `not held` where the gain is decided, above or below 0; else `equivalent` where its interval lies
        within half a point of 0, else `not decided`; empty without a gain."""
        if self.gain is None:
            return ""
        if self.p_holm < 1 - LEVEL:
            return "held" if self.gain.mean > 0 else "not held"
        return "equivalent" if self.gain.low > -_EQUIVALENT and self.gain.high < _EQUIVALENT else "not decided"


def summarize(results: Plain) -> tuple[Study, list[CellResult]]:
    """Every cell of the grid, from what `study.py` wrote; a seed counts where all of its folds are there.

    Raises:
        ValueError: these are no results of a study, or runs were tested on different cases.
    """
    try:
        study = as_study(results["study"], "study")
        every = [{"variant": "", **run} for run in results["runs"]]
        folds = Counter(tuple(run[key] for key in _SEED) for run in every)
        twice = next((key for key, count in folds.items() if count > max(1, study.folds)), None)
        if twice:
            network, one, two, variant, seed = twice
            raise ValueError(f"{Run(network, one, two, seed, None, variant).folder} is there twice; remove one of them")
        runs = [run for run in every if folds[tuple(run[key] for key in _SEED)] == max(1, study.folds)]
        cases, layers, seeds = _frames(runs)
        groups = {name: case.get("group") or name for run in runs for name, case in run["cases"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"these are no results of a study ({error!r}); expected what study.py writes") from None
    counts = cases["case"].value_counts()
    if counts.nunique() > 1:
        raise ValueError(
            f"not every run was tested on {counts.index[-1]}; expected the same data: begin in another --output_dir"
        )
    dice = cases.pivot(index=_SEED, columns="case", values="dice")[cases["case"].unique()].dropna(axis=1)
    published = {(name, *row[:2], ""): row[2] for name, network in study.networks.items() for row in network.published}
    found = []
    for network in study.networks:
        plain, compared = (network, 0.0, 0.0, ""), []
        for cell in ((network, *one) for one in study.cells()):
            own, baseline = _of_cell(seeds, cell), _of_cell(seeds, plain)
            is_compared = cell != plain and len(own.index.intersection(baseline.index)) >= study.min_seeds
            gain, changes = (_of_cell(dice, cell) - _of_cell(dice, plain)).dropna(), own - baseline
            changed = [name for name in ("validation", *_REDUNDANCY) if changes[name].count() and is_compared]
            is_tested = is_compared and gain.size
            both = cell != plain and {cell, plain} <= published.keys()
            result = CellResult(
                cell=cell,
                seeds=own,
                layers=_of_cell(layers, cell).groupby(_LAYER, sort=False).mean(),
                is_reported=len(own) >= study.min_seeds,
                gain=paired(gain.to_numpy(), [groups[name] for name in gain.columns]) if is_tested else None,
                changes={name: paired_few(changes[name].dropna()) for name in changed},
                published=published.get(cell),
                published_gain=published[cell] - published[plain] if both else None,
            )
            compared.append(result)
        found += _corrected(compared)
    return study, found


def rank_correlation(cells: Sequence[CellResult]) -> tuple[int, tuple[float, float, float] | None]:
    """How many runs the cells have, and Spearman's correlation of effective rank and Dice over them, with the interval
    of 1,000 bootstrap samples of the runs; None for fewer than four runs, or constant ones."""
    both = pd.concat([found.seeds[["effective_rank_share", "dice"]] for found in cells]).dropna()
    if len(both) < 4 or both.nunique().min() < 2:
        return len(both), None
    drawn = np.random.default_rng(0).integers(len(both), size=(1000, len(both)))
    (rho,) = _spearman(both.to_numpy()[None])
    low, high = np.nanquantile(_spearman(both.to_numpy()[drawn]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return len(both), (float(rho), float(low), float(high))


def _spearman(pairs: np.ndarray) -> np.ndarray:
    """The rank correlation of each sample of pairs (S, N, 2); NaN where one side is constant."""
    ranks = rankdata(pairs, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    (one, two), both = (ranks**2).sum(axis=1).T, ranks.prod(axis=2).sum(axis=1)
    return np.divide(both, np.sqrt(one * two), out=np.full(len(both), np.nan), where=one * two > 0)


def _corrected(cells: Sequence[CellResult]) -> list[CellResult]:
    """The cells with Holm's correction of the p values of their gains."""
    raw = {place: found.gain.p_mean for place, found in enumerate(cells) if found.gain}
    ordered, holm, highest = sorted(raw, key=raw.__getitem__), {}, 0.0
    for rank, place in enumerate(ordered):
        highest = max(highest, min(1.0, raw[place] * (len(ordered) - rank)))
        holm[place] = highest
    return [replace(found, p_holm=holm.get(place, math.nan)) for place, found in enumerate(cells)]


def _frames(runs: Sequence[Plain]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """A row for each case of each run, for each layer of each run, and for each seed of each cell."""
    rows = [{**run, "case": name, **case["strict"]} for run in runs for name, case in run["cases"].items()]
    cases = pd.DataFrame(rows, columns=[*_SEED, "case", *OVERLAPS, *_DISTANCES])
    cases = cases.astype(dict.fromkeys((*OVERLAPS, *_DISTANCES), float))
    cases["hd95"] = cases.pop("hd95_mm").fillna(cases["hd95"])  # in mm where known
    cases[[*OVERLAPS]] *= 100
    chosen = pd.DataFrame(runs, columns=_SEED)
    chosen["validation"] = [100 * run["validation"]["dice"] if run["validation"] else math.nan for run in runs]
    layers = pd.json_normalize(runs, "layers", _SEED).rename(columns=lambda name: name.removesuffix(".all"))
    layers = layers.reindex(columns=[*_SEED, *_LAYER, *_REDUNDANCY]).astype(dict.fromkeys(_REDUNDANCY, float))
    regularized = layers[layers["layer"] != "final"].drop(columns=_LAYER)
    scores = [frame.groupby(_SEED).mean(numeric_only=True) for frame in (cases, chosen)]
    return cases, layers.set_index(_SEED), pd.concat([*scores, regularized.groupby(_SEED).mean()], axis=1)


def _of_cell(frame: pd.DataFrame, cell: tuple[str, float, float, str]) -> pd.DataFrame:
    """The rows of a cell, by seed."""
    return frame.loc[[key[:4] == cell for key in frame.index]].droplevel(_CELL)


def format_results(results: Plain) -> str:
    """All tables, in Markdown: accuracy, similarity of channels, the latter layer by layer, and time."""
    study, cells = summarize(results)
    times = pd.DataFrame([run["seconds"] for run in results["runs"]])
    time = [["step", "runs", "seconds a run", "minutes in all"]]
    time += [[step, str(s.count()), f"{s.mean():.0f}", f"{s.sum() / 60:.1f}"] for step, s in times.items()]
    if study.development:
        return _join([_development(cells), time])
    heads = [*_HEADS, "seeds", "validation Dice, %", "Dice, %", "IoU, %", "HD95"]
    heads += [f"gain over lambda = 0, points ({LEVEL:.0%} interval)", "p (Holm)", "median case", "p (Wilcoxon)"]
    accuracy = [[*heads, "published Dice", "published gain", "claim"]]
    redundancy = [[*_HEADS, *(head for title in _REDUNDANCY.values() for head in (title, "against lambda = 0"))]]
    for found in cells:
        names, count, gain = [_name(found), *_weights(found)], str(len(found.seeds)), found.gain
        if not found.is_reported:
            accuracy.append([*names, f"{count} of the {study.min_seeds} that it takes: not reported", *[""] * 11])
            continue
        scores = [_spread(found.seeds[name], 2) for name in ("validation", "dice", "jaccard", "hd95")]
        compared = [""] * 4
        if gain:
            p, wilcoxon = _text(found.p_holm, ".3f"), _text(gain.p, ".3f")
            compared = [_difference(gain, 2), p, _text(gain.median, "+.2f"), wilcoxon]
        published = [_text(found.published, ".2f"), _text(found.published_gain, "+.2f")]
        accuracy.append([*names, count, *scores, *compared, *published, found.verdict])
        for name in _REDUNDANCY:
            names += [_spread(found.seeds[name], 3), _difference(found.changes.get(name), 3)]
        redundancy.append(names)
    networks = dict.fromkeys(found.cell[0] for found in cells if found.is_reported)
    related = [["network", "runs", f"rank correlation of effective rank and Dice ({LEVEL:.0%} interval)"]]
    for network in networks:
        number, rho = rank_correlation([found for found in cells if found.cell[0] == network and found.is_reported])
        related.append([network, str(number), "{:+.2f} ({:+.2f} to {:+.2f})".format(*rho) if rho else "-"])
    tables = [accuracy, redundancy, related, *(_by_layer(network, cells) for network in networks), time]
    return _join(tables)


def _join(tables: Sequence[Sequence[Sequence[str]]]) -> str:
    return "\n\n".join(_markdown(*rows) for rows in tables if len(rows) > 1) + "\n"


def _development(cells: Sequence[CellResult]) -> list[list[str]]:
    """The validation Dice of every cell that has all of its seeds."""
    rows = [[*_HEADS, "seeds", "validation Dice, %", f"gain over lambda = 0, points ({LEVEL:.0%} interval)"]]
    for found in cells:
        scores = [_spread(found.seeds["validation"], 2), _difference(found.changes.get("validation"), 2)]
        shown = scores if found.is_reported else ["not reported", ""]
        rows.append([_name(found), *_weights(found), str(len(found.seeds)), *shown])
    return rows


def _by_layer(network: str, cells: Sequence[CellResult]) -> list[list[str]]:
    """Of every layer of a network its channels, and effective rank and absolute correlation in each cell."""
    mine = [found for found in cells if found.cell[0] == network and found.is_reported]
    weights = [found.cell[3] or f"({', '.join(_weights(found))})" for found in mine]
    rows = [[network, "channels", *(f"{what} {pair}" for pair in weights for what in ("rank", "corr."))]]
    frames = [found.layers[["effective_rank_share", "mean_abs_correlation"]] for found in mine]
    for (layer, module, channels), *values in pd.concat(frames, axis=1).itertuples(name=None):
        rows.append([f"`{layer}`, `{module}`", str(channels), *(_text(value, ".3f") for value in values)])
    return rows


def _markdown(heads: Sequence[str], *rows: Sequence[str]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def _name(found: CellResult) -> str:
    return " ".join(filter(None, (found.cell[0], found.cell[3])))


def label(found: CellResult) -> str:
    """A cell by its variant or its weights."""
    scr, ifd = _weights(found)
    return found.cell[3].replace("_", " ") or (f"SCR {scr}, IFD {ifd}" if any(found.cell[1:3]) else "lambda 0")


def _weights(found: CellResult) -> list[str]:
    return [f"{weight:g}" for weight in found.cell[1:3]]


def _text(value: float | None, spec: str) -> str:
    return "" if value is None else "-" if math.isnan(value) else format(value, spec)


def _spread(values: pd.Series, digits: int) -> str:
    """Mean and sample standard deviation over the seeds."""
    mean, std = _text(values.mean(), f".{digits}f"), _text(values.std(), f".{digits}f")
    return mean if std == "-" else f"{mean} ± {std}"


def _difference(gain: Paired | None, digits: int) -> str:
    if gain is None:
        return ""
    mean, low, high = (_text(value, f"+.{digits}f") for value in (gain.mean, gain.low, gain.high))
    return mean if low == "-" else f"{mean} ({low} to {high})"
