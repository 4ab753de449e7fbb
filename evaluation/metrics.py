"""Dice, HD95, Jaccard and ASSD of masks by MedPy's definitions, at the cost of the surface points alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.spatial import cKDTree

METRICS = ("dice", "hd95", "jaccard", "assd")
METHODS = ("fast", "medpy")
ASSD_FORMS = ("pooled", "directed")  # MedPy from 0.5 on, MedPy up to 0.4

# From one surface point in so many voxels on, a distance map of the box costs less than looking for neighbours
# can cost at worst; a smooth organ stays far below, the speckle of an untrained network is above.
_CROWDED = 32

Box = tuple[slice, ...]


@dataclass(frozen=True)
class ClassScores:
    """The four metrics of one class in one case, in the published and in the strict convention for empty masks."""

    published: dict[str, float]
    strict: dict[str, float]


def compare(
    pred: Any,
    truth: Any,
    spacing: Sequence[float] | None = None,
    *,
    strict: bool = False,
    method: str = "fast",
    assd: str = "pooled",
) -> dict[str, float]:
    """Measure one binary mask against another.

    Where both masks hold something, both conventions give the same figures. Published convention otherwise:
    prediction without truth scores Dice 1, HD95 0, Jaccard 1, ASSD 0, everything else all 0. Strict: a missed or
    invented organ scores Dice 0 and Jaccard 0 and has no distances (nan); both empty, everything is nan.

    `pred` and `truth` are 2-D or 3-D arrays or tensors of the same shape, foreground where not zero; they are left
    as they are. `spacing` is the size of a voxel in mm along each axis of the array; without it HD95 and ASSD are
    in voxels. `method` "medpy" calls MedPy on the whole arrays; "fast" gives the same numbers. `assd` "pooled" is the
    mean over both directed sets of surface distances together, as in MedPy from 0.5 on; "directed" is the mean of their
    two means, as up to 0.4.

    Raises:
        ValueError: shapes, spacing, values or the method are not as described.
    """
    pred, truth = _pair(pred, truth)
    # A mask is a label array of two classes.
    labels = (_binary(pred, "prediction").view(np.uint8), _binary(truth, "truth").view(np.uint8))
    (scores,) = _score(*labels, 2, _checked_spacing(spacing, pred.ndim), method, assd)
    return scores.strict if strict else scores.published


def compare_classes(
    pred: Any,
    truth: Any,
    num_classes: int,
    spacing: Sequence[float] | None = None,
    *,
    method: str = "fast",
    assd: str = "pooled",
) -> tuple[ClassScores, ...]:
    """Measure classes 1 to `num_classes` - 1 of two label arrays, each class once for both conventions.

    Shapes, spacing and units as in `compare`; the values are whole numbers from 0, the background, to
    `num_classes` - 1.

    Raises:
        ValueError: as in `compare`, or an array holds something else than these class numbers.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; expected at least 2, the background and one class")
    pred, truth = _pair(pred, truth)
    labels = (_labels(pred, num_classes, "prediction"), _labels(truth, num_classes, "truth"))
    return _score(*labels, num_classes, _checked_spacing(spacing, pred.ndim), method, assd)


def dice(pred: Any, truth: Any) -> float:
    """Dice of two binary masks alone: 0 for a missed or invented organ, nan where both are empty.

    Raises:
        ValueError: the masks differ in shape, are not 2-D or 3-D, or hold no numbers.
    """
    pred, truth = _pair(pred, truth)
    pred, truth = _binary(pred, "prediction"), _binary(truth, "truth")
    total = int(np.count_nonzero(pred) + np.count_nonzero(truth))
    return 2.0 * int(np.count_nonzero(pred & truth)) / total if total else float("nan")


def _score(
    pred: np.ndarray, truth: np.ndarray, num_classes: int, spacing: np.ndarray | None, method: str, assd: str
) -> tuple[ClassScores, ...]:
    """Scores of the classes 1 to `num_classes` - 1 of two label arrays that have been checked."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if assd not in ASSD_FORMS:
        raise ValueError(f"assd is {assd!r}; expected one of {', '.join(ASSD_FORMS)}")
    boxes = zip(_class_boxes(pred, num_classes), _class_boxes(truth, num_classes), strict=True)
    scores = []
    for label, (pred_box, truth_box) in enumerate(boxes, start=1):
        if pred_box is None or truth_box is None:
            scores.append(_score_empty(pred_box is not None, truth_box is not None))
            continue
        if method == "medpy":
            measured = _measure_medpy(pred == label, truth == label, spacing, assd)
        else:
            box = _around(pred_box, truth_box)
            measured = _measure(pred[box] == label, truth[box] == label, spacing, assd)
        scores.append(ClassScores(published=measured, strict=dict(measured)))
    return tuple(scores)


def _score_empty(predicted: bool, present: bool) -> ClassScores:
    """What the two conventions say of a class that is missing in the prediction, in the truth or in both."""
    nan = float("nan")
    published = 1.0 if predicted and not present else 0.0
    strict = 0.0 if predicted or present else nan
    return ClassScores(
        published={"dice": published, "hd95": 0.0, "jaccard": published, "assd": 0.0},
        strict={"dice": strict, "hd95": nan, "jaccard": strict, "assd": nan},
    )


def _measure(pred: np.ndarray, truth: np.ndarray, spacing: np.ndarray | None, assd: str) -> dict[str, float]:
    """The four metrics of two masks that both hold something, from their surface points."""
    both = int(np.count_nonzero(pred & truth))
    total = int(np.count_nonzero(pred) + np.count_nonzero(truth))
    pred_surface, truth_surface = _surface(pred), _surface(truth)
    directed = [_distances(pred_surface, truth_surface, spacing), _distances(truth_surface, pred_surface, spacing)]
    distances = np.concatenate(directed)
    return {
        "dice": 2.0 * both / total,
        "hd95": float(np.percentile(distances, 95)),
        "jaccard": both / (total - both),
        "assd": float(distances.mean() if assd == "pooled" else np.mean([one.mean() for one in directed])),
    }


def _measure_medpy(pred: np.ndarray, truth: np.ndarray, spacing: np.ndarray | None, assd: str) -> dict[str, float]:
    """The same figures from the package that the published results were measured with."""
    try:
        from medpy.metric import binary
    except ImportError as error:
        raise ImportError("method 'medpy' needs MedPy: pip install MedPy, or use the method 'fast'") from error
    if assd == "pooled":
        average = binary.assd(pred, truth, voxelspacing=spacing)
    else:
        average = np.mean([binary.asd(a, b, voxelspacing=spacing) for a, b in ((pred, truth), (truth, pred))])
    return {
        "dice": float(binary.dc(pred, truth)),
        "hd95": float(binary.hd95(pred, truth, voxelspacing=spacing)),
        "jaccard": float(binary.jc(pred, truth)),
        "assd": float(average),
    }


def _surface(mask: np.ndarray) -> np.ndarray:
    """The mask without its erosion by the 6-neighbourhood (4 in 2-D), with background all around the array."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        source, target = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        target[1:] &= source[:-1]
        target[:-1] &= source[1:]
        target[0] = target[-1] = False
    return mask & ~inner


def _distances(start: np.ndarray, goal: np.ndarray, spacing: np.ndarray | None) -> np.ndarray:
    """Distance of each point of one surface to the nearest point of the other, in no particular order."""
    distances = np.zeros(np.count_nonzero(start))
    # A point on both surfaces is at distance 0, and of a good segmentation that is most points.
    apart = start & ~goal
    count = np.count_nonzero(apart)
    if count * _CROWDED > apart.size:
        distances[:count] = distance_transform_edt(~goal, sampling=spacing)[apart]
    elif count:
        scale = 1.0 if spacing is None else spacing
        # Without compact nodes a search from points nearly equally far from many others is four times as fast.
        tree = cKDTree(np.argwhere(goal) * scale, compact_nodes=False)
        distances[:count] = tree.query(np.argwhere(apart) * scale)[0]
    return distances


def _around(one: Box, other: Box) -> Box:
    """The smallest box that holds both boxes."""
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _class_boxes(labels: np.ndarray, num_classes: int) -> list[Box | None]:
    """Bounding box of each class from 1 on, None for a class that does not occur."""
    found = find_objects(labels, max_label=num_classes - 1)
    return found + [None] * (num_classes - 1 - len(found))


def _pair(pred: Any, truth: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as NumPy arrays on the CPU, of equal shape and 2-D or 3-D, or a ValueError."""
    arrays = []
    for values in (pred, truth):
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            # NumPy has no bfloat16; float32 holds each of its values.
            values = values.float() if values.is_floating_point() else values
        arrays.append(np.asarray(values))
    pred, truth = arrays
    if pred.shape != truth.shape:
        raise ValueError(
            f"the prediction has shape {pred.shape} but the truth {truth.shape}; expected the same shape, "
            "so resize the prediction to the truth's grid"
        )
    if pred.ndim not in (2, 3):
        raise ValueError(f"the masks have shape {pred.shape}; expected 2 or 3 dimensions, so pass one case at a time")
    return pred, truth


def _numbers(array: np.ndarray, what: str) -> np.ndarray:
    """The array itself, or a ValueError unless it holds real numbers without a nan."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the {what} has dtype {array.dtype}; expected bool, integer or float numbers")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(
            f"the {what} holds {np.isnan(array).sum()} nan values; expected numbers, mend it before measuring"
        )
    return array


def _binary(array: np.ndarray, what: str) -> np.ndarray:
    """A mask, True where the array is not zero."""
    return np.ascontiguousarray(_numbers(array, what) != 0)


def _labels(array: np.ndarray, num_classes: int, what: str) -> np.ndarray:
    """The array as integers, or a ValueError if it holds anything else than 0 to `num_classes` - 1."""
    array = _numbers(array, what)
    advice = f"expected whole numbers from 0 to {num_classes - 1}, so mend the labels or the number of classes"
    if array.size and (array.min() < 0 or array.max() >= num_classes):
        stray = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"the {what} holds the label {stray}; {advice}")
    labels = array if array.dtype.kind in "iu" else array.astype(np.int32)
    if array.dtype.kind == "f" and (labels != array).any():
        raise ValueError(f"the {what} holds the label {array[labels != array][0]}; {advice}")
    return labels


def _checked_spacing(spacing: Sequence[float] | None, ndim: int) -> np.ndarray | None:
    """The spacing as float64 (ndim,), None for unit spacing, or a ValueError."""
    if spacing is None:
        return None
    try:
        values = np.asarray(spacing, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (ndim,) or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(
            f"spacing is {spacing!r}; expected {ndim} positive numbers, the size of a voxel in mm along each axis "
            "of the array, or None for unit spacing"
        )
    return values
