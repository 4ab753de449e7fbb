"""The results of a study as tables in Markdown and one figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.comparison import LEVEL, Paired
from scripts.studies.results import REDUNDANCY, CellResult, Plain, cell_of, layer_table, summarize

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
    reported = [found for found in cells if found.reported]
    parts = [
        _table([_accuracy(found, study.min_seeds) for found in cells]),
        _table([_redundancy(found) for found in reported]),
        *_by_layer(results, reported),
        _table(list(_time(results))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _accuracy(found: CellResult, min_seeds: int) -> dict[str, str]:
    gain, published, seeds = found.gain, found.published, len(found.means)
    row = _row_of(found) | {"seeds": str(seeds)}
    if not found.reported:
        return row | {"seeds": f"{seeds} of the {min_seeds} that it takes: not reported"}
    return row | {
        "validation Dice, %": _spread(found.spread("validation"), 2),
        "Dice, %": _spread(found.spread("dice"), 2),
        "IoU, %": _spread(found.spread("jaccard"), 2),
        f"gain over lambda = 0, points ({LEVEL:.0%} interval)": _difference(gain, 2),
        "median case": "" if gain is None else f"{gain.median:+.2f}",
        "p": "" if gain is None else _plain(gain.p, 3),
        "published Dice": "" if published is None else f"{published:.2f}",
        "published gain": "" if found.published_gain is None else f"{found.published_gain:+.2f}",
        "claim": found.verdict,
    }


def _redundancy(found: CellResult) -> dict[str, str]:
    """Similarity of channels, the mean over the regularized layers."""
    row = _row_of(found)
    for name in REDUNDANCY:
        row[_TITLES[name]] = _spread(found.spread(name), 3)
        # Heads are the same four times: a row keeps them apart by spaces, which Markdown does not show.
        row["against lambda = 0" + " " * REDUNDANCY.index(name)] = _difference(found.redundancy_gain.get(name), 3)
    return row


def _row_of(found: CellResult) -> dict[str, str]:
    cell = found.cell
    return {
        "network": cell.network,
        "lambda_1 (SCR)": f"{cell.lambda_1:g}",
        "lambda_2 (IFD)": f"{cell.lambda_2:g}",
    }


def _by_layer(results: Plain, reported: Sequence[CellResult]) -> Iterator[str]:
    """For each network: of every layer its channels, and effective rank and absolute correlation of each cell."""
    for network in dict.fromkeys(found.cell.network for found in reported):
        rows: dict[tuple[str, str, int], dict[str, str]] = {}
        for found in (found for found in reported if found.cell.network == network):
            runs = [run for run in results["runs"] if cell_of(run) == found.cell and run["seed"] in found.means.index]
            means = layer_table(runs).groupby(["layer", "module", "channels"], sort=False)[list(REDUNDANCY)].mean()
            weights = f"({found.cell.lambda_1:g}, {found.cell.lambda_2:g})"
            for (layer, module, channels), numbers in means.iterrows():
                row = rows.setdefault((layer, module, channels), {network: f"{layer}, `{module}`"})
                row["channels"] = str(channels)
                row[f"rank {weights}"] = _plain(numbers["effective_rank_share"], 3)
                row[f"corr. {weights}"] = _plain(numbers["mean_abs_correlation"], 3)
        yield _table(list(rows.values()))


def _time(results: Plain) -> Iterator[dict[str, str]]:
    seconds = pd.DataFrame([run["seconds"] for run in results["runs"]])
    for step, taken in seconds.items():
        mean, minutes = f"{taken.mean():.0f}", f"{taken.sum() / 60:.1f}"
        yield {"step": step, "runs": str(taken.count()), "seconds a run": mean, "minutes in all": minutes}


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows by head as Markdown; a row may lack the last ones."""
    heads = max(rows, key=len, default={})
    lines = [[head.rstrip() for head in heads], ["---"] * len(heads)]
    lines += [[row.get(head, "") for head in heads] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _plain(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _spread(both: tuple[float, float], digits: int) -> str:
    mean, std = both
    return _plain(mean, digits) if math.isnan(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"


def _difference(gain: Paired | None, digits: int) -> str:
    if gain is None:
        return ""
    interval = "" if math.isnan(gain.low) else f" ({gain.low:+.{digits}f} to {gain.high:+.{digits}f})"
    return f"{gain.mean:+.{digits}f}{interval}"


def draw(results: Plain, path: Path) -> None:
    """The reported cells: Dice of every seed with the published one, gain and effective rank.

    Raises:
        ValueError: as `results.summarize`, or there is no cell to draw.
    """
    study, cells = summarize(results)
    found = [cell for cell in cells if cell.reported]
    if not found:
        raise ValueError(
            f"no cell of the study has the {study.min_seeds} seeds that it takes; there is nothing to draw"
        )
    figure = Figure(figsize=(10, 0.9 + 0.55 * len(found)), dpi=110, layout="constrained")
    figure.suptitle(study.title, fontsize=10, parse_math=False)
    dice, gain, rank = figure.subplots(1, 3, sharey=True)
    for row, cell in enumerate(found):
        mean, values = cell.spread("dice")[0], cell.means["dice"]
        dice.plot(values, [row] * len(values), "o", color=_MEASURED, alpha=0.55, markersize=5, mew=0)
        dice.plot([mean] * 2, [row - 0.28, row + 0.28], color=_MEASURED, linewidth=2)
        _draw_interval(gain, row, cell.gain)
        _draw_interval(rank, row, cell.redundancy_gain.get("effective_rank_share"))
        for panel, published in ((dice, cell.published), (gain, cell.published_gain)):
            if published is not None:
                panel.plot(published, row, "D", color=_PUBLISHED, markersize=5, fillstyle="none")
    dice.set_yticks(range(len(found)), [_name(cell, several=len(study.networks) > 1) for cell in found], fontsize=8)
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
        dice.plot([], [], "D", color=_PUBLISHED, markersize=5, fillstyle="none", label="published")
    figure.legend(loc="outside lower right", fontsize=7.5, frameon=False, ncols=2)
    figure.savefig(path, format="png")


def _name(found: CellResult, several: bool) -> str:
    cell = found.cell
    terms = [f"{name} {weight:g}" for name, weight in (("SCR", cell.lambda_1), ("IFD", cell.lambda_2)) if weight]
    words = ", ".join(terms) or "none"
    return f"{cell.network}: {words}" if several else words


def _draw_interval(panel: Axes, row: int, gain: Paired | None) -> None:
    if gain is not None:
        panel.plot([gain.low, gain.high], [row, row], color=_MEASURED, linewidth=2)
        panel.plot(gain.mean, row, "o", color=_MEASURED, markersize=5)
