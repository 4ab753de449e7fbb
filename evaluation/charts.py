"""Charts as inline SVG, in the colors and the font of the page around them, dark or light."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colors that matplotlib draws with, and those of the page in their place.
_INK, _SOFT, _LINE, _ACCENT = "#010101", "#020202", "#030303", "#040404"
_ON_THE_PAGE = {_INK: "currentColor", _SOFT: "var(--soft)", _LINE: "var(--line)", _ACCENT: "var(--accent)"}

_WIDTH = 340  # pixels; a chart that fills a phone, where its letters then have their size
_FONT_SIZE = 12  # pixels
_POINTS = 400  # more than that no chart of this width can show
_MAX = 1e30  # above, matplotlib's own arithmetic overflows
_DROPPED = ("metadata", "style", "clipPath")


def dice_boxes(values: Mapping[str, Sequence[float]], lowest: float, *, ident: str, label: str) -> str:
    """A box plot of the Dice of each class over the cases, every case a point over the box; an SVG element.

    A single case is a point without a box. `values` has the values by class, none for a class without any; the axis
    runs from `lowest` to 1. `ident` begins the ids of the chart, to be given once in a page, and `label` is what a
    screen reader reads.
    """
    figure, axes = _empty_chart(36 + 26 * len(values))
    places = np.arange(len(values), 0, -1)  # the first class on top
    boxes = axes.boxplot(
        [column if len(column) > 1 else [] for column in map(list, values.values())],
        positions=places,
        orientation="horizontal",
        showfliers=False,
        patch_artist=True,
        widths=0.62,
        boxprops={"facecolor": _ACCENT, "alpha": 0.16, "linewidth": 0},
        medianprops={"color": _INK, "linewidth": 2},
        whiskerprops={"color": _SOFT},
        capprops={"color": _SOFT},
        manage_ticks=False,
    )
    for median in boxes["medians"]:
        median.set_solid_capstyle("butt")
    for place, column in zip(places, values.values(), strict=True):
        axes.scatter(
            column, place + 0.36 * _apart(len(column)), s=14, color=_ACCENT, alpha=0.75, linewidths=0, zorder=3
        )
    axes.set_yticks(places, list(values), color=_INK, parse_math=False)
    axes.set_ylim(0.4, len(values) + 0.6)
    margin = 0.02 * (1 - lowest)
    axes.set_xlim(lowest - margin, 1 + margin)
    axes.grid(axis="x", color=_LINE, linewidth=1)
    return _svg(figure, ident, label)


def _apart(count: int) -> np.ndarray:
    """Places in -0.5..0.5 by steps of the golden ratio: equal values stay apart, a single one in the middle."""
    return (0.5 + 0.618034 * np.arange(count)) % 1 - 0.5


def lowest_shown(values: Sequence[float]) -> float:
    """Lower end of the axis of overlaps: at the tenth below the least of them, at 0.8 at most."""
    return max(0.0, min(0.8, np.floor(10 * min(values, default=0.0)) / 10))


def difference_dots(values: Mapping[str, tuple[Sequence[float], float, float]], *, ident: str, label: str) -> str:
    """Differences over the cases by class, every case a point, their mean a bar on its interval; an SVG element.

    `values` has by class the figures, none for a class without any, and the ends of the interval, nan where there is
    none; `ident` and `label` as in `dice_boxes`.
    """
    figure, axes = _empty_chart(36 + 26 * len(values))
    places = np.arange(len(values), 0, -1)  # the first class on top
    axes.axvline(0, color=_SOFT, linewidth=1)
    for place, (column, low, high) in zip(places, values.values(), strict=True):
        axes.scatter(column, place + 0.36 * _apart(len(column)), s=14, color=_ACCENT, alpha=0.6, linewidths=0)
        if len(column):
            axes.plot([low, high], [place, place], color=_INK, linewidth=2, solid_capstyle="butt")
            axes.plot([np.mean(column)] * 2, [place - 0.3, place + 0.3], color=_INK, linewidth=2)
    axes.set_yticks(places, list(values), color=_INK, parse_math=False)
    axes.set_ylim(0.4, len(values) + 0.6)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color=_LINE, linewidth=1)
    return _svg(figure, ident, label)


def curve(steps: Sequence[int], values: Sequence[float], *, ident: str, label: str, mark: int | None = None) -> str:
    """A line over the steps of a run, on a logarithmic axis where it spans more than two orders; an SVG element.

    Of more than 400 points 400 are drawn; what is not finite leaves a gap. `mark` is the place of the one point to be
    marked; `ident` and `label` as in `dice_boxes`.
    """
    figure, axes = _empty_chart(200)
    drawn = np.unique(np.linspace(0, len(values) - 1, min(_POINTS, len(values))).round().astype(int))
    x, y = (_finite(column) for column in (steps, values))
    marker = "o" if len(drawn) == 1 else None
    axes.plot(x[drawn], y[drawn], color=_ACCENT, linewidth=1.75, solid_joinstyle="round", marker=marker, markersize=5)
    if mark is not None:
        axes.plot(x[mark], y[mark], "o", color=_INK, markersize=6)
    known = y[np.isfinite(y)]
    if len(known) and known.min() > 0 and known.max() > 100 * known.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # powers of ten have exponents too small to read
    axes.set_xlabel("step", color=_SOFT, fontsize=_FONT_SIZE)
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.grid(axis="y", color=_LINE, linewidth=1)
    return _svg(figure, ident, label)


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.abs(array) < _MAX, array, np.nan)


def _empty_chart(height: int) -> tuple[Figure, Axes]:
    """A chart of the usual width and `height` pixels, without a frame."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")  # an SVG has 72 pixels an inch
    axes = figure.subplots()
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=_FONT_SIZE, labelcolor=_SOFT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_fontsize(_FONT_SIZE)
    return figure, axes


def _svg(figure: Figure, ident: str, label: str) -> str:
    """The figure as an element of the page: no color, font, size or id of its own, nothing that points outside."""
    import matplotlib

    buffer = io.BytesIO()
    # Of letters in a name that the font lacks: the page's own font has them.
    with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings(action="ignore"):
        figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in list(root.iter()):
        for child in list(element):
            if _plain(child.tag) in _DROPPED:
                element.remove(child)
    for element in root.iter():
        element.tag = _plain(element.tag)
        element.attrib = {_plain(name): _adapted(value, ident) for name, value in element.items()}
        element.attrib.pop("clip-path", None)
        if "id" in element.attrib:
            element.attrib["id"] = f"{ident}-{element.attrib['id']}"
    attributes = {"class": "chart", "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    root.attrib = attributes
    return ElementTree.tostring(root, encoding="unicode")


def _plain(name: str) -> str:
    """A name without its namespace: inside HTML there is none."""
    return name.rpartition("}")[2]


def _adapted(value: str, ident: str) -> str:
    """The value of an attribute, with the page's colors and font, and references to the ids as they are now."""
    for color, name in _ON_THE_PAGE.items():
        value = value.replace(color, name)
    value = re.sub(r"font-family: [^;]*;? ?", "", value)
    return f"#{ident}-{value[1:]}" if value.startswith("#") else value
