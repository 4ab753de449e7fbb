"""One slice of a case as a picture: the image, the truth, the prediction and what is wrong with it side by side."""

from __future__ import annotations

import colorsys
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.base import Geometry, Volume
from utils import release_pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Class 1 has the first. Seven of Okabe and Ito, then those that stay farthest from these and from grey for readers
# who see all colours, no red or no green.
_COLOURS = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
    *("#1111FF", "#77FF99", "#991111", "#111199", "#1177FF"),
)
# Far from each other, from these and from dark grey for the same readers.
ERRORS = (("false negative", "#FF9F60"), ("false positive", "#BF80FF"), ("wrong class", "#FFFFFF"))
_PANEL = 400  # pixels, the side of a panel with the space around it
_LEGEND_ROW = 28  # pixels
_LONGEST_TITLE = 60  # letters; as many stand above two panels
Entry = tuple[str, Any]  # what a legend says of a colour, and the colour


def draw_overlay(volume: Volume, prediction: np.ndarray, class_names: Sequence[str]) -> bytes:
    """A PNG of one slice: image, truth, prediction and errors side by side, 1600 pixels wide.

    The slice is the one whose truth has most classes, then most labelled voxels. Without a label the prediction
    decides, and truth and errors are left out. Two panels and what explains them fill half of the width each: the
    picture may be cut in the middle. `prediction` is (D, H, W), classes numbered from 1 as in `class_names`; the image
    is (D, H, W), or in colour (D, H, W, 3) or (D, 3, H, W). Where the geometry is known, an axial slice lies as a
    radiologist reads it.

    Raises:
        ValueError: the shapes do not fit together, or a class has no name.
    """
    _check_overlay(volume, prediction, class_names)
    has_truth = volume.label is not None and volume.label.any()
    index = richest_slice(volume.label if has_truth else prediction)
    picture, predicted = display(volume.image[index : index + 1][0]), prediction[index]
    panels = [("image", picture)]
    wrong, shown = None, predicted
    if volume.label is not None:
        truth = volume.label[index]
        wrong, shown = errors(predicted, truth), np.stack([truth, predicted])
        panels.append(("truth", _paint(picture, truth, _colour)))
    panels.append(("prediction", _paint(picture, predicted, _colour)))
    if wrong is not None:
        panels.append(("errors", _paint(_dimmed(picture), wrong, lambda kind: _rgb(ERRORS[kind - 1][1]), 1.0)))
    title = volume.name if volume.is_picture else f"{volume.name}, slice {index + 1} of {len(prediction)}"
    classes = [(class_names[label - 1], _colour(label)) for label in _occurring(shown)]
    kinds = [] if wrong is None else [ERRORS[kind - 1] for kind in _occurring(wrong)] or [("no errors", "none")]
    panels = [(name, upright(panel, volume.geometry)) for name, panel in panels]
    return _drawn(title, panels, classes, kinds)


def errors(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What is wrong with a prediction, of the truth's shape: 0 nothing, then numbered from 1 as in `ERRORS`."""
    wrong = prediction != truth
    return np.select([wrong & (prediction == 0), wrong & (truth == 0), wrong], [1, 2, 3], 0)


def _drawn(
    title: str, panels: Sequence[tuple[str, np.ndarray]], classes: Sequence[Entry], kinds: Sequence[Entry]
) -> bytes:
    """The PNG of panels by name, with a legend of the classes in its left half and one of the errors in its right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(-(-len(entries) // _columns(entries)) for entries in (classes, kinds))
    tall, wide, _ = panels[0][1].shape
    height = _PANEL * min(1.2, max(0.5, tall / wide)) + 60 + _LEGEND_ROW * rows
    figure = Figure(figsize=(_PANEL * len(panels) / 100, height / 100), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, panel) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.imshow(panel, aspect="equal", interpolation="nearest")
        axes.set_title(name, fontsize=15)
        axes.set_axis_off()
    if len(title) > _LONGEST_TITLE:
        title = f"{title[: _LONGEST_TITLE - 25]} ... {title[-20:]}"
    figure.suptitle(title, x=0.005, ha="left", fontsize=16, parse_math=False)
    _add_legend(figure, classes, "outside lower left")
    _add_legend(figure, kinds, "outside lower right")
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of letters in a name that the font lacks: a box stands for each
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _columns(entries: Sequence[Entry]) -> int:
    """How many entries of a legend fit beside each other below two panels."""
    # An entry takes its swatch and about 12 pixels a letter.
    widest = 60 + 12 * max((len(name) for name, _ in entries), default=0)
    return max(1, min(len(entries), 2 * _PANEL // widest))


def _add_legend(figure: Figure, entries: Sequence[Entry], place: str) -> None:
    from matplotlib.patches import Patch

    if not entries:
        return
    handles = [Patch(facecolor=color, edgecolor="none" if color == "none" else "#888", label=n) for n, color in entries]
    legend = figure.legend(handles=handles, loc=place, ncols=_columns(entries), fontsize=15, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _occurring(labels: np.ndarray) -> list[int]:
    return sorted({int(label) for label in np.unique(labels)} - {0})


def _check_overlay(volume: Volume, prediction: np.ndarray, class_names: Sequence[str]) -> None:
    """Refuse arrays that do not lie on one grid and classes without a name."""
    image, label = volume.image, volume.label
    grids = [image.shape] if image.ndim == 3 else [image.shape[:3], (image.shape[0], *image.shape[2:])]
    if prediction.ndim != 3 or prediction.shape not in grids or not prediction.size:
        raise ValueError(
            f"{volume.name}: the prediction has shape {prediction.shape} and the image {image.shape}; expected "
            "(D, H, W) for both, so resize the prediction to the image's grid"
        )
    if label is not None and label.shape != prediction.shape:
        raise ValueError(
            f"{volume.name}: the truth has shape {label.shape} and the prediction {prediction.shape}; expected the same"
        )
    highest = max(int(plane.max()) for labels in (label, prediction) if labels is not None for plane in _planes(labels))
    if highest > len(class_names):
        raise ValueError(
            f"{volume.name}: class {highest} occurs but {len(class_names)} classes are named; expected one name for "
            "each class from 1 on, without the background"
        )


def _planes(labels: np.ndarray) -> Iterator[np.ndarray]:
    """The slices one after the other; labels that lie in a file may not fit into memory together."""
    for index in range(len(labels)):
        yield labels[index]
        release_pages(labels)


def richest_slice(labels: np.ndarray) -> int:
    """Index of the slice with most classes, then most labelled voxels; the middle one if nothing is labelled."""
    ranks = []
    for index, plane in enumerate(_planes(labels)):
        counts = np.bincount(plane.ravel().astype(np.intp))[1:]
        ranks.append((np.count_nonzero(counts), int(counts.sum()), -index))
    best = max(ranks)
    return -best[2] if best[0] else len(labels) // 2


def display(plane: np.ndarray) -> np.ndarray:
    """A slice as (H, W, 3) in [0, 1], from its 1st to its 99th percentile, whatever its intensities mean."""
    plane = np.asarray(plane, dtype=np.float64)
    if plane.ndim == 3 and plane.shape[-1] != 3:
        plane = np.moveaxis(plane, 0, -1)
    low, high = np.percentile(plane, [1, 99])
    if low == high:
        low, high = plane.min(), plane.max()
    plane = np.clip((plane - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    plane = plane if plane.ndim == 3 else plane[..., None]
    return np.broadcast_to(plane, (*plane.shape[:2], 3))


def upright(picture: np.ndarray, geometry: Geometry | None) -> np.ndarray:
    """An axial slice (H, W, 3) with anterior up and the patient's right at the left; any other one as it is stored."""
    if geometry is None:
        return picture
    # Rows and columns of the file's direction matrix: patient axes (left, posterior, superior) by file axes.
    by_axis = dict(zip("xyz", np.reshape(geometry.direction, (3, 3)).T, strict=True))
    by_axis |= {axis: -by_axis[axis] for axis in geometry.flips}  # our arrays run against these
    towards = [by_axis[axis] for axis in geometry.axis_order[1:]]
    patient_axes = [int(np.abs(direction).argmax()) for direction in towards]
    if sorted(patient_axes) != [0, 1]:
        return picture
    flipped = [i for i, direction in enumerate(towards) if direction[patient_axes[i]] < 0]
    picture = np.flip(picture, axis=flipped)
    return picture.swapaxes(0, 1) if patient_axes == [0, 1] else picture


def _dimmed(picture: np.ndarray) -> np.ndarray:
    """The (H, W, 3) picture in grey, dark enough for every colour of an error to stand out."""
    return np.broadcast_to(0.45 * picture.mean(axis=-1, keepdims=True), picture.shape)


def _paint(picture: np.ndarray, labels: np.ndarray, colour: Callable[[int], Any], opacity: float = 0.65) -> np.ndarray:
    """The (H, W, 3) picture with each label of (H, W) but 0 laid over it in its colour."""
    painted = picture.copy()
    for label in _occurring(labels):
        inside = labels == label
        painted[inside] = (1 - opacity) * picture[inside] + opacity * np.asarray(colour(label))
    return painted


def _colour(label: int) -> tuple[float, float, float]:
    """The colour of a class, as red, green and blue from 0 to 1; it depends on the class number alone."""
    if label <= len(_COLOURS):
        return _rgb(_COLOURS[label - 1])
    # Steps of the golden ratio around the hues: no two of them fall together.
    return colorsys.hsv_to_rgb(0.618034 * label % 1.0, 0.6, 0.95)


def _rgb(code: str) -> tuple[float, float, float]:
    """Red, green and blue from 0 to 1 of a code such as "#E69F00"."""
    return tuple(int(code[start : start + 2], 16) / 255 for start in (1, 3, 5))
