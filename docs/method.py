"""Draw docs/method.png: a U-shaped network, and what SCR and IFD compare in it; `python docs/method.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

SCR, IFD, STRONG, WEAK, GREY = "#1f6feb", "#d1570b", "#8fb8de", "#dbe7f3", "#555555"
# Left edge, lower edge and height of each feature map: encoder and bottleneck, decoder, last.
BLOCKS = [(0.6, 3.0, 1.7), (1.9, 1.9, 1.3), (3.2, 1.0, 0.95), (4.5, 0.3, 0.65)]
BLOCKS += [(5.8, 1.0, 0.95), (7.1, 1.9, 1.3), (8.4, 3.0, 1.7), (9.9, 3.0, 1.7)]
WIDTH = 0.8


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, **how: Any) -> None:
    """An arrow between two points; `how` is what matplotlib takes for one."""
    axes.add_patch(FancyArrowPatch(start, end, color=color, mutation_scale=11, **how))


def feature_map(axes: Axes, left: float, low: float, height: float, *, halves: bool) -> None:
    """A map as its channels, the stronger half and the weaker, with what IFD does between the two."""
    axes.add_patch(Rectangle((left, low), WIDTH / 2, height, facecolor=STRONG, edgecolor=GREY))
    color = WEAK if halves else STRONG
    axes.add_patch(Rectangle((left + WIDTH / 2, low), WIDTH / 2, height, facecolor=color, edgecolor=GREY))
    if halves:
        ends = (left + 0.1 * WIDTH, low + height / 2), (left + 0.9 * WIDTH, low + height / 2)
        arrow(axes, *ends, IFD, arrowstyle="<|-|>", linewidth=1.8, shrinkA=0, shrinkB=0)


def draw(path: Path) -> None:
    """The whole figure."""
    figure, axes = plt.subplots(figsize=(9.2, 4.3))
    for (left, low, height), (following, floor, above) in zip(BLOCKS, BLOCKS[1:], strict=False):
        ends = (left + WIDTH, low + height / 2), (following, floor + above / 2)
        arrow(axes, *ends, GREY, arrowstyle="-|>", linewidth=1)
    for index in range(3):
        (left, low, height), (right, *_) = BLOCKS[index], BLOCKS[6 - index]
        ends = (left + WIDTH, low + 0.8 * height), (right, low + 0.8 * height)
        arrow(axes, *ends, GREY, arrowstyle="-|>", linestyle=":")
    last, floor, height = BLOCKS[-1]
    for index, (left, low, own) in enumerate(BLOCKS[:-1]):
        ends = (left + WIDTH / 2, low + own), (last + 0.06 + 0.07 * index, floor + height)
        arrow(axes, *ends, SCR, arrowstyle="-|>", connectionstyle="arc3,rad=-0.28", linewidth=1.4, alpha=0.75)
    for left, low, own in BLOCKS[:-1]:
        feature_map(axes, left, low, own, halves=True)
    feature_map(axes, last, floor, height, halves=False)
    axes.text(last + WIDTH / 2, floor - 0.3, "last map\n(teacher)", ha="center", va="top", fontsize=10, color=GREY)
    arrow(axes, (last + WIDTH, floor + height / 2), (11.3, floor + height / 2), GREY, arrowstyle="-|>")
    axes.text(11.35, floor + height / 2, "Dice + CE", va="center", fontsize=11)
    axes.text(0.5, 6.7, "SCR: every map is pulled towards the last one", color=SCR, fontsize=12)
    text = "IFD: within a map, the stronger and the weaker half of the channels are pulled together"
    axes.text(0.5, -0.55, text, color=IFD, fontsize=12)
    axes.set(xlim=(0.3, 12.8), ylim=(-0.8, 7.1))
    axes.set_axis_off()
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).parent / "method.png")
