"""The results of a study as tables in Markdown and one figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from evaluation.comparison import LEVEL, Paired
from scripts.studies.plan import Plain, Study
from scripts.studies.results import REDUNDANCY, CellResult, TooFew, cell_of, mean_defined, redundancy_of, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEASURED, _PUBLISHED = "#0b6fb8", "#b5520a"  # colors
_TITLES = {
    "effective_rank_share": "effective rank, share",
    "mean_abs_correlation": "mean absolute correlation",
    "pair_correlation": "correlation of IFD's pairs",
    "pair_cosine": "cosine of IFD's pairs",
}


def format_results(results: Plain) -> str:
    """All tables, in Markdown: accuracy, similarity of channels, the latter layer by layer, and time.

    Raises:
        ValueError: as `results.summarize`.
    """
    study, cells = summarize(results)
    parts = [_accuracy(study, cells), _redundancy(cells), *_by_layer(results, cells), _time(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _accuracy(study: Study, cells: Sequence[CellResult | TooFew]) -> str:
    heads = ["network", "lambda_1 (SCR)", "lambda_2 (IFD)", "seeds", "validation Dice, %", "Dice, %", "IoU, %"]
    heads += [
        f"gain over lambda = 0, points ({LEVEL:.0%} interval)",
        "median case",
        "p",
        "published Dice",
        "published gain",
        "claim",
    ]
    return _table(heads, [_accuracy_row(study, cell) for cell in cells])


def _accuracy_row(study: Study, found: CellResult | TooFew) -> list[str]:
    cell = found.cell
    row = [cell.network, f"{cell.lambda_1:g}", f"{cell.lambda_2:g}"]
    if isinstance(found, TooFew):
        return [*row, f"{len(found.seeds)} of the {study.min_seeds} that it takes: not reported", *[""] * 9]
    gain = found.gain
    return [
        *(*row, str(len(found.seeds)), *(_spread(one, 2) for one in (found.validation, found.dice, found.iou))),
        *([""] * 3 if gain is None else [_difference(gain, 2), f"{gain.median:+.2f}", _plain(gain.p, 3)]),
        "" if found.published is None else f"{found.published:.2f}",
        "" if found.published_gain is None else f"{found.published_gain:+.2f}",
        found.verdict,
    ]


def _redundancy(cells: Sequence[CellResult | TooFew]) -> str:
    """Similarity of channels, the mean over the regularized layers."""
    heads = ["network", "lambda_1 (SCR)", "lambda_2 (IFD)"]
    for name in REDUNDANCY:
        heads += [_TITLES[name], "against lambda = 0"]
    rows = []
    for found in cells:
        if isinstance(found, CellResult):
            cell = found.cell
            row = [cell.network, f"{cell.lambda_1:g}", f"{cell.lambda_2:g}"]
            for name in REDUNDANCY:
                gain = found.redundancy_gain.get(name)
                row += [_spread(found.redundancy[name], 3), "" if gain is None else _difference(gain, 3)]
            rows.append(row)
    return _table(heads, rows) if rows else ""


def _by_layer(results: Plain, cells: Sequence[CellResult | TooFew]) -> Iterator[str]:
    """For each network: of every layer its channels, and effective rank and absolute correlation of each cell."""
    reported = [found for found in cells if isinstance(found, CellResult)]
    for network in dict.fromkeys(found.cell.network for found in reported):
        mine = [found for found in reported if found.cell.network == network]
        layers = [list(_layers(results, found)) for found in mine]
        heads = [network, "channels"]
        for found in mine:
            weights = f"{found.cell.lambda_1:g}, {found.cell.lambda_2:g}"
            heads += [f"rank ({weights})", f"corr. ({weights})"]
        rows = []
        for place in zip(*layers, strict=True):
            row = [f"{place[0]['layer']}, `{place[0]['module']}`", str(place[0]["channels"])]
            for layer in place:
                row += [_plain(layer["effective_rank_share"], 3), _plain(layer["mean_abs_correlation"], 3)]
            rows.append(row)
        yield _table(heads, rows)


def _layers(results: Plain, found: CellResult) -> Iterator[Plain]:
    """The layers of a cell, their numbers averaged over its runs."""
    mine = [run for run in results["runs"] if cell_of(run) == found.cell and run["seed"] in found.seeds]
    runs = [run["layers"] for run in mine]
    for place in zip(*runs, strict=True):
        numbers = [redundancy_of(layer) for layer in place]
        means = {name: mean_defined([row[name] for row in numbers]) for name in REDUNDANCY}
        yield {key: place[0][key] for key in ("layer", "module", "channels")} | means


def _time(results: Plain) -> str:
    runs = results["runs"]
    steps = list(dict.fromkeys(step for run in runs for step in run["seconds"]))
    rows = []
    for step in steps:
        taken = [run["seconds"][step] for run in runs if step in run["seconds"]]
        rows.append([step, str(len(taken)), f"{fmean(taken):.0f}", f"{math.fsum(taken) / 60:.1f}"])
    return _table(["step", "runs", "seconds a run", "minutes in all"], rows) if rows else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _spread(both: tuple[float, float], digits: int) -> str:
    mean, std = both
    return _plain(mean, digits) if math.isnan(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"


def _difference(gain: Paired, digits: int) -> str:
    interval = "" if math.isnan(gain.low) else f" ({gain.low:+.{digits}f} to {gain.high:+.{digits}f})"
    return f"{gain.mean:+.{digits}f}{interval}"


def draw(results: Plain, path: Path) -> None:
    """The reported cells: Dice of every seed with the published one, gain and effective rank.

    Raises:
        ValueError: as `results.summarize`, or there is no cell to draw.
    """
    from matplotlib.figure import Figure

    study, cells = summarize(results)
    found = [cell for cell in cells if isinstance(cell, CellResult)]
    if not found:
        raise ValueError(
            f"no cell of the study has the {study.min_seeds} seeds that it takes; there is nothing to draw"
        )
    figure = Figure(figsize=(10, 0.9 + 0.55 * len(found)), dpi=110, layout="constrained")
    figure.suptitle(study.title, fontsize=10, parse_math=False)
    dice, gain, rank = figure.subplots(1, 3, sharey=True)
    for row, cell in enumerate(found):
        _draw_dice(dice, row, cell)
        if cell.gain is not None:
            _draw_interval(gain, row, cell.gain)
        if "effective_rank_share" in cell.redundancy_gain:
            _draw_interval(rank, row, cell.redundancy_gain["effective_rank_share"])
        if cell.published_gain is not None:
            gain.plot(cell.published_gain, row, "D", color=_PUBLISHED, markersize=5, fillstyle="none")
    names = [_name(cell, several=len(study.networks) > 1) for cell in found]
    dice.set_yticks(range(len(found)), names, fontsize=8)
    dice.invert_yaxis()
    titles = (
        "Dice, % (a point a seed; line: mean)",
        "gain in Dice over none, points",
        "change of effective rank, share",
    )
    for panel, title in zip((dice, gain, rank), titles, strict=True):
        panel.set_title(title, fontsize=8.5)
        panel.tick_params(labelsize=7.5, length=2)
        panel.grid(axis="x", color="0.92")
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.locator_params(axis="x", nbins=6)
    for panel in (gain, rank):
        panel.axvline(0, color="0.4", linewidth=0.8)
    dice.plot([], [], "o-", color=_MEASURED, markersize=5, linewidth=2, label=f"measured, {LEVEL:.0%} interval")
    if any(cell.published is not None for cell in found):
        dice.plot([], [], "D", color=_PUBLISHED, markersize=5, fillstyle="none", label="published", linestyle="none")
    figure.legend(loc="outside lower right", fontsize=7.5, frameon=False, ncols=2)
    figure.savefig(path, format="png")


def _name(found: CellResult, several: bool) -> str:
    cell = found.cell
    terms = [f"{name} {weight:g}" for name, weight in (("SCR", cell.lambda_1), ("IFD", cell.lambda_2)) if weight]
    words = ", ".join(terms) or "none"
    return f"{cell.network}: {words}" if several else words


def _draw_dice(panel: Axes, row: int, found: CellResult) -> None:
    panel.plot(found.dice_by_seed, [row] * len(found.seeds), "o", color=_MEASURED, alpha=0.55, markersize=5, mew=0)
    panel.plot([found.dice[0]] * 2, [row - 0.28, row + 0.28], color=_MEASURED, linewidth=2)
    if found.published is not None:
        panel.plot(found.published, row, "D", color=_PUBLISHED, markersize=5, fillstyle="none")


def _draw_interval(panel: Axes, row: int, gain: Paired) -> None:
    panel.plot([gain.low, gain.high], [row, row], color=_MEASURED, linewidth=2)
    panel.plot(gain.mean, row, "o", color=_MEASURED, markersize=5)
