"""Charts as inline SVG, in the colors and the font of the page around them, dark or light."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _SOFT, _LINE, _ACCENT = "#010101", "#020202", "#030303", "#040404"  # in place of the page's own
_WIDTH = 340  # pixels; fills a phone, where text then has its nominal size
_FONT_SIZE = 12  # pixels

# What makes a file of matplotlib's part of a page: its colors, and nothing that points outside or may occur twice.
_REPLACED = {
    **{r"<(metadata|style|clipPath).*?</\1>": "", r' clip-path="[^"]*"': "", r'font-family: [^;"]*;? ?': ""},
    **{_INK: "currentColor", _SOFT: "var(--soft)", _LINE: "var(--line)", _ACCENT: "var(--accent)"},
    **{r'<g id="[^"]*"': "<g", r" xlink:href=": " href="},
}


def dice_boxes(values: Mapping[str, Sequence[float]], lowest: float, label: str) -> str:
    """An SVG box plot of the Dice of each class over the cases, every case a point; a single case has no box.

    The axis runs from `lowest` to 1. `label` is what a screen reader reads, another one for each chart of a page.
    """
    figure, axes = _rows(values)
    axes.boxplot(
        [column if len(column) > 1 else [] for column in values.values()],
        positions=range(len(values), 0, -1),
        orientation="horizontal",
        showfliers=False,
        patch_artist=True,
        widths=0.62,
        boxprops={"facecolor": _ACCENT, "alpha": 0.16, "linewidth": 0},
        medianprops={"color": _INK, "linewidth": 2, "solid_capstyle": "butt"},
        whiskerprops={"color": _SOFT},
        capprops={"color": _SOFT},
        manage_ticks=False,
    )
    margin = 0.02 * (1 - lowest)
    axes.set_xlim(lowest - margin, 1 + margin)
    return _svg(figure, label)


def difference_dots(values: Mapping[str, tuple[Sequence[float], float, float]], label: str) -> str:
    """An SVG chart of differences by class, every case a point, the mean a bar on its interval.

    `values` has by class the differences and the ends of the interval, nan where there is none.
    """
    figure, axes = _rows({name: column for name, (column, _, _) in values.items()})
    axes.axvline(0, color=_SOFT, linewidth=1)
    for place, (column, low, high) in zip(range(len(values), 0, -1), values.values(), strict=True):
        if len(column):
            axes.plot([low, high], [place, place], color=_INK, linewidth=2, solid_capstyle="butt")
            axes.plot([np.mean(column)] * 2, [place - 0.3, place + 0.3], color=_INK, linewidth=2)
    axes.locator_params(axis="x", nbins=5)
    return _svg(figure, label)


def curve(steps: Sequence[int], values: Sequence[float], label: str, mark: int | None = None) -> str:
    """An SVG line over the steps of a run, on a logarithmic axis where it spans more than two orders of magnitude.

    What is not finite leaves a gap. `mark` is the index of a point to be marked.
    """
    figure, axes = _empty_chart(200)
    marker = "o" if len(values) == 1 else None
    axes.plot(steps, values, color=_ACCENT, linewidth=1.75, marker=marker, markersize=5)
    if mark is not None:
        axes.plot(steps[mark], values[mark], "o", color=_INK, markersize=6)
    known = np.array(values)[np.isfinite(values)]
    if len(known) and known.min() > 0 and known.max() > 100 * known.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # powers of ten have exponents too small to read
    axes.set_xlabel("step", color=_SOFT, fontsize=_FONT_SIZE)
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.grid(axis="y", color=_LINE, linewidth=1)
    return _svg(figure, label)


def _rows(values: Mapping[str, Sequence[float]]) -> tuple[Figure, Axes]:
    """A chart of a row for each class, the first on top, with a point for each value."""
    figure, axes = _empty_chart(36 + 26 * len(values))
    places = range(len(values), 0, -1)
    for place, column in zip(places, values.values(), strict=True):
        # By steps of the golden ratio equal values stay apart, and a single one stands in the middle.
        apart = 0.36 * ((0.5 + 0.618034 * np.arange(len(column))) % 1 - 0.5)
        axes.scatter(column, place + apart, s=14, color=_ACCENT, alpha=0.7, linewidths=0, zorder=3)
    axes.set_yticks(places, list(values), color=_INK, parse_math=False)
    axes.set_ylim(0.4, len(values) + 0.6)
    axes.grid(axis="x", color=_LINE, linewidth=1)
    return figure, axes


def _empty_chart(height: int) -> tuple[Figure, Axes]:
    """A chart of the usual width and `height` pixels, without a frame."""
    figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")  # an SVG has 72 pixels an inch
    axes = figure.subplots()
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=_FONT_SIZE, labelcolor=_SOFT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_fontsize(_FONT_SIZE)
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    """The figure as an element of the page."""
    buffer = io.StringIO()
    # The salt makes the ids the chart's own; of a long line, points within a pixel are left out. The warnings are of
    # characters that the font lacks: the page's own font has them.
    options = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "path.simplify_threshold": 1.0})
    with options, warnings.catch_warnings(action="ignore"):
        figure.savefig(buffer, format="svg", transparent=True)
    content = buffer.getvalue().partition("<svg")[2].partition(">")[2]
    for pattern, text in _REPLACED.items():
        content = re.sub(pattern, text, content, flags=re.DOTALL)
    width, height = 72 * figure.get_size_inches()
    return f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{content}'
