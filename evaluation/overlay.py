"""One slice of a case as a picture: the image, the truth and the prediction side by side."""

from __future__ import annotations

import colorsys
import io
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from datasets.base import Geometry, Volume
from utils import let_go

# Class 1 has the first. Seven of Okabe and Ito, then those that stay farthest from these and from grey for readers
# who see all colours, no red or no green.
_COLOURS = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
    *("#1111FF", "#77FF99", "#991111", "#111199", "#1177FF"),
)


def draw_overlay(volume: Volume, prediction: np.ndarray, class_names: Sequence[str]) -> bytes:
    """A PNG of one slice, image, truth and prediction side by side, about 1200 x 450 pixels.

    The slice is the one whose truth has most classes, then most labelled voxels; without a label the prediction
    decides and the panel of the truth is left out. `prediction` is (D, H, W), classes numbered from 1 as in
    `class_names`; the image is (D, H, W), or in colour (D, H, W, 3) or (D, 3, H, W). Where the geometry is known,
    an axial slice lies as a radiologist reads it.

    Raises:
        ValueError: the shapes do not fit together, or a class has no name.
    """
    _check_overlay(volume, prediction, class_names)
    has_truth = volume.label is not None and volume.label.any()
    index = _richest_slice(volume.label if has_truth else prediction)
    panels = [("image", None)] if volume.label is None else [("image", None), ("truth", volume.label[index])]
    panels.append(("prediction", prediction[index]))

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(4.0 * len(panels), 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    picture = _display(volume.image[index : index + 1][0])
    for axes, (title, labels) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        shown = _upright(picture if labels is None else _paint(picture, labels), volume.geometry)
        axes.imshow(shown, aspect="equal", interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    title = volume.name if volume.is_picture else f"{volume.name}, slice {index + 1} of {len(prediction)}"
    figure.suptitle(title, fontsize=12, parse_math=False)
    shown = sorted({int(label) for _, labels in panels[1:] for label in np.unique(labels)} - {0})
    if shown:
        handles = [Patch(color=_colour(label), label=class_names[label - 1]) for label in shown]
        # An entry takes its swatch and about 7 pixels a letter; as many fit beside each other as the panels are wide.
        entry = 50 + 7 * max(len(class_names[label - 1]) for label in shown)
        columns = min(len(shown), max(1, 400 * len(panels) // entry))
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of letters in a name that the font lacks: a box stands for each
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


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
        let_go(labels)


def _richest_slice(labels: np.ndarray) -> int:
    """Index of the slice with most classes, then most labelled voxels; the middle one if nothing is labelled."""
    ranks = []
    for index, plane in enumerate(_planes(labels)):
        counts = np.bincount(plane.ravel().astype(np.intp))[1:]
        ranks.append((np.count_nonzero(counts), int(counts.sum()), -index))
    best = max(ranks)
    return -best[2] if best[0] else len(labels) // 2


def _display(plane: np.ndarray) -> np.ndarray:
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


def _upright(picture: np.ndarray, geometry: Geometry | None) -> np.ndarray:
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


def _paint(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The (H, W, 3) picture with each class of (H, W) labels laid over it in its colour."""
    painted = picture.copy()
    for label in set(np.unique(labels).tolist()) - {0}:
        inside = labels == label
        painted[inside] = 0.35 * picture[inside] + 0.65 * np.asarray(_colour(int(label)))
    return painted


def _colour(label: int) -> tuple[float, float, float]:
    """The colour of a class, as red, green and blue from 0 to 1; it depends on the class number alone."""
    if label <= len(_COLOURS):
        code = _COLOURS[label - 1]
        return tuple(int(code[start : start + 2], 16) / 255 for start in (1, 3, 5))
    # Steps of the golden ratio around the hues: no two of them fall together.
    return colorsys.hsv_to_rgb(0.618034 * label % 1.0, 0.6, 0.95)
