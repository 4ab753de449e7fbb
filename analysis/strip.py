"""The picture of a Grad-CAM: the slice, then what every layer looks at, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from analysis.layers import Layer, short_name
from analysis.slices import Subject
from evaluation.overlay import display, upright

_COLUMNS = 9  # an image, four stages of an encoder, three of a decoder, the final map
_WIDTH, _HIGHEST = 2.0, 6.0  # inches of a panel
_LETTERS_AN_INCH = 12  # of the title
_MOST_OUTLINE = 8  # pixels of an outline, over the sum of the picture's sides
_TRUTH, _PREDICTION = "#00E5FF", "#FFFFFF"
_SAID = {_TRUTH: "cyan: truth", _PREDICTION: "white: prediction"}


def draw(subject: Subject, heats: Mapping[Layer, np.ndarray], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the slice with the outlines of the class, then each layer's heat over it; `rows` are their numbers."""
    from matplotlib.figure import Figure

    geometry = subject.volume.geometry
    picture = upright(display(subject.volume.image[subject.index : subject.index + 1][0]), geometry)
    columns = min(_COLUMNS, 1 + len(heats))
    lines = -(-(1 + len(heats)) // columns)
    height = min(_WIDTH * picture.shape[0] / picture.shape[1], _HIGHEST)
    figure = Figure(figsize=(_WIDTH * columns, (height + 0.68) * lines + 0.28), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0.01)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    outlines = _outlines(subject)
    _draw_slice(panels[0], picture, outlines, _share_of_pixels(subject))
    over_heat = outlines if all(map(_is_compact, outlines.values())) else {}
    grey = picture.mean(axis=2, keepdims=True)
    for panel, (layer, heat), row in zip(panels[1:], heats.items(), rows, strict=False):
        panel.imshow(_warmed(grey, upright(heat, geometry)), interpolation="nearest")
        _outline(panel, over_heat, 0.6)
        _caption(panel, layer.label, [short_name(layer), _in_words(row)])
    title = fill(_title(subject), int(_LETTERS_AN_INCH * figure.get_figwidth()))
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.savefig(path, format="png")


def _outlines(subject: Subject) -> dict[str, np.ndarray]:
    """The masks (H, W) of the class that are not empty, by the colour of their outline, as the picture lies."""
    masks = {_TRUTH: subject.truth, _PREDICTION: subject.prediction}
    geometry = subject.volume.geometry
    return {colour: upright(mask, geometry) for colour, mask in masks.items() if mask is not None and mask.any()}


def _is_compact(mask: np.ndarray) -> bool:
    """Whether the outline of a mask leaves most of the picture to be seen; that of hundreds of nuclei does not."""
    edges = (mask[1:, 1:] != mask[:-1, 1:]) | (mask[1:, 1:] != mask[1:, :-1])
    return bool(edges.sum() < _MOST_OUTLINE * sum(mask.shape))


def _share_of_pixels(subject: Subject) -> str:
    """How much of the slice the class is: the share of the heat that chance would put there."""
    mask, where = (subject.prediction, "prediction") if subject.truth is None else (subject.truth, "truth")
    return f"{where}: {mask.mean():.0%} of the pixels"


def _draw_slice(panel: Any, picture: np.ndarray, outlines: Mapping[str, np.ndarray], below: str) -> None:
    """The slice itself; of two outlines that would hide it, only the first."""
    if not all(map(_is_compact, outlines.values())):
        outlines = dict(list(outlines.items())[:1])
    panel.imshow(picture, interpolation="nearest")
    _outline(panel, outlines, 0.8 if all(map(_is_compact, outlines.values())) else 0.4)
    _caption(panel, "image", [*(_SAID[colour] for colour in outlines), below])


def _warmed(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Heat (H, W) in [0, 1] as colours over a grey picture (H, W, 1): the hotter, the less of the picture is seen."""
    from matplotlib import colormaps

    share = 0.15 + 0.7 * heat[..., None]
    return (1 - share) * 0.75 * grey + share * colormaps["inferno"](heat)[..., :3]


def _outline(panel: Any, outlines: Mapping[str, np.ndarray], width: float) -> None:
    for colour, mask in outlines.items():
        if not mask.all() and min(mask.shape) > 1:  # around everything there is no line
            panel.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=width)


def _caption(panel: Any, title: str, lines: Sequence[str]) -> None:
    panel.set_title(title, fontsize=8.5, fontweight="bold", pad=4, parse_math=False)
    below = {"fontsize": 7.5, "ha": "center", "va": "top", "transform": panel.transAxes, "parse_math": False}
    panel.text(0.5, -0.02, "\n".join(lines), **below)


def _in_words(row: Mapping[str, Any]) -> str:
    size = "{} \N{MULTIPLICATION SIGN} {}".format(*row["map_size"])
    if row["peak"] is None:
        return f"{size}\nno heat"
    for key, where in (("share_in_truth", "truth"), ("share_in_prediction", "prediction")):
        if row[key] is not None:
            return f"{size}\n{row[key]:.0%} of the heat in the {where}"
    return size


def _title(subject: Subject) -> str:
    volume = subject.volume
    where = volume.name if volume.is_picture else f"{volume.name}, slice {subject.index + 1} of {len(volume.image)}"
    return f"Grad-CAM of {subject.class_name}: {where}"
