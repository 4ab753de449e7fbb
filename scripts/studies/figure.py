"""The figure of studies: a forest plot of the gains, and the redundancy of the channels against accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.comparison import LEVEL
from scripts.studies.plan import Plain
from scripts.studies.results import CellResult, label, summarize


def draw(studies: Mapping[str, Plain], path: Path) -> None:
    """Draw studies, by name: a column for each network, above its forest plot (each reported cell's gain in Dice over
    lambda 0, with its interval and the published gain), below effective rank and Dice of its runs.

    Raises:
        ValueError: no cell has its seeds.
    """
    columns: dict[str, list[CellResult]] = {}
    for name, results in studies.items():
        study, cells = summarize(results)
        for network in study.networks:
            reported = [found for found in cells if found.cell[0] == network and found.is_reported]
            if reported:
                columns[f"{name}: {network}" if name else network] = reported
    if not columns:
        raise ValueError("no cell of the study has the seeds that it takes, so none can be drawn")
    rows = max(map(len, columns.values()))
    size = (2.2 + 3.6 * len(columns), 4.2 + 0.3 * rows)
    figure = Figure(size, dpi=110, layout="constrained")
    panels = figure.subplots(2, len(columns), squeeze=False, height_ratios=[1.2 + 0.3 * rows, 3])
    for (name, cells), forest, scatter in zip(columns.items(), *panels, strict=True):
        forest.set_title(name, fontsize=9, parse_math=False)
        _draw_gains(forest, cells)
        _draw_redundancy(scatter, cells)
    figure.savefig(path)


def _draw_gains(axes: Axes, cells: list[CellResult]) -> None:
    """A row for each cell that is compared, and its verdict."""
    compared = [found for found in cells if found.gain is not None]
    for row, found in enumerate(compared):
        gain = found.gain
        assert gain is not None
        axes.plot([gain.low, gain.mean, gain.high], [row] * 3, "C0o-", markevery=[1])
        if found.published_gain is not None:
            axes.plot(found.published_gain, row, "C1D", fillstyle="none")
        axes.annotate(found.verdict, (1.02, row), xycoords=("axes fraction", "data"), fontsize=7, va="center")
    axes.set_yticks(range(len(compared)), [label(found) for found in compared], fontsize=8)
    axes.margins(y=0.15)
    axes.invert_yaxis()
    axes.axvline(0, color="gray", linewidth=0.8)
    published = "; diamond: published" if any(found.published_gain is not None for found in compared) else ""
    axes.set_xlabel(f"gain in Dice over lambda 0, points ({LEVEL:.0%} interval{published})", fontsize=8)


def _draw_redundancy(axes: Axes, cells: list[CellResult]) -> None:
    """A point for each run, a color for each cell."""
    for found in cells:
        axes.plot(found.seeds["effective_rank_share"], found.seeds["dice"], "o", alpha=0.7, label=label(found))
    axes.set_xlabel("effective rank of the channels, share", fontsize=8)
    axes.set_ylabel("Dice, %", fontsize=8)
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
