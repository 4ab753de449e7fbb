"""Dice, HD95, Jaccard and ASSD of masks by MedPy's definitions, at the cost of the surface points alone."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.surfaces import Array, ClassMeasure, count, measure_classes

METRICS = ("dice", "hd95", "jaccard", "assd")
OVERLAPS = ("dice", "jaccard")  # of these, those from 0 to 1; the others are distances
METHODS = ("fast", "medpy", "device")
ASSD_FORMS = ("pooled", "directed")  # MedPy from 0.5 on, MedPy up to 0.4


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
    workers: int | None = None,
) -> dict[str, float]:
    """Measure one binary mask against another.

    Where both masks hold something, both conventions give the same figures. Published convention otherwise:
    prediction without truth scores Dice 1, HD95 0, Jaccard 1, ASSD 0, everything else all 0. Strict: a missed or
    invented organ scores Dice 0 and Jaccard 0 and has no distances (nan); both empty, everything is nan.

    `pred` and `truth` are 2-D or 3-D arrays or tensors of the same shape, foreground where not zero; they are left
    as they are. `spacing` is the size of a voxel in mm along each axis of the array; without it HD95 and ASSD are
    in voxels. `method` "medpy" calls MedPy on the whole arrays; "fast" and "device" give the same numbers: "device" by
    tensor operations where the prediction is, "fast" likewise if that is a GPU, else by `workers` threads, None for one
    on each core. `assd` "pooled" is the mean over both directed sets of surface distances together, as in MedPy from
    0.5 on; "directed" is the mean of their two means, as up to 0.4.

    Raises:
        ValueError: shapes, spacing, values or the method are not as described.
    """
    pred, truth = _pair(pred, truth, method)
    # A mask is a label array of two classes.
    labels = (_binary(pred, "prediction"), _binary(truth, "truth"))
    (scores,) = _score(*labels, 2, spacing, method, assd, workers)
    return scores.strict if strict else scores.published


def compare_classes(
    pred: Any,
    truth: Any,
    num_classes: int,
    spacing: Sequence[float] | None = None,
    *,
    method: str = "fast",
    assd: str = "pooled",
    workers: int | None = None,
) -> tuple[ClassScores, ...]:
    """Measure classes 1 to `num_classes` - 1 of two label arrays, each class once for both conventions.

    Shapes, spacing, units and methods as in `compare`; the values are whole numbers from 0, the background, to
    `num_classes` - 1.

    Raises:
        ValueError: as in `compare`, or an array holds something else than these class numbers.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; expected at least 2, the background and one class")
    pred, truth = _pair(pred, truth, method)
    labels = (_labels(pred, num_classes, "prediction"), _labels(truth, num_classes, "truth"))
    return _score(*labels, num_classes, spacing, method, assd, workers)


def dice(pred: Any, truth: Any) -> float:
    """Dice of two binary masks alone: 0 for a missed or invented organ, nan where both are empty.

    Raises:
        ValueError: the masks differ in shape, are not 2-D or 3-D, or hold no numbers.
    """
    pred, truth = _pair(pred, truth, "fast")
    pred, truth = _together(_binary(pred, "prediction"), _binary(truth, "truth"), "fast")
    sizes = [int(count(mask, 2)[1]) for mask in (pred, truth, pred & truth)]
    return _dice(*sizes)


def _score(
    pred: Array,
    truth: Array,
    num_classes: int,
    spacing: Sequence[float] | None,
    method: str,
    assd: str,
    workers: int | None,
) -> tuple[ClassScores, ...]:
    """Scores of the classes 1 to `num_classes` - 1 of two label arrays that have been checked."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if assd not in ASSD_FORMS:
        raise ValueError(f"assd is {assd!r}; expected one of {', '.join(ASSD_FORMS)}")
    edges, workers = _checked_spacing(spacing, pred.ndim), _checked_workers(workers)
    pred, truth = _together(pred, truth, method)
    if method == "medpy":
        masks = ((pred == label, truth == label) for label in range(1, num_classes))
        return tuple(_by_medpy(*pair, edges, assd) for pair in masks)
    return tuple(_by_surfaces(one, assd) for one in measure_classes(pred, truth, num_classes, edges, workers))


def _score_empty(predicted: bool, present: bool) -> ClassScores:
    """What the two conventions say of a class that is missing in the prediction, in the truth or in both."""
    nan = float("nan")
    published = 1.0 if predicted and not present else 0.0
    strict = 0.0 if predicted or present else nan
    return ClassScores(
        published={"dice": published, "hd95": 0.0, "jaccard": published, "assd": 0.0},
        strict={"dice": strict, "hd95": nan, "jaccard": strict, "assd": nan},
    )


def _dice(pred_size: int, truth_size: int, shared: int) -> float:
    total = pred_size + truth_size
    return 2.0 * shared / total if total else float("nan")


def _by_surfaces(measured: ClassMeasure, assd: str) -> ClassScores:
    """Scores of a class from its voxels and surface distances."""
    pred_size, truth_size, shared = measured.pred_size, measured.truth_size, measured.shared
    if not pred_size or not truth_size:
        return _score_empty(pred_size > 0, truth_size > 0)
    directed = [measured.to_truth, measured.to_pred]
    distances = np.concatenate(directed)
    scores = {
        "dice": _dice(pred_size, truth_size, shared),
        "hd95": float(np.percentile(distances, 95)),
        "jaccard": shared / (pred_size + truth_size - shared),
        "assd": float(distances.mean() if assd == "pooled" else np.mean([one.mean() for one in directed])),
    }
    return ClassScores(published=scores, strict=dict(scores))


def _by_medpy(pred: np.ndarray, truth: np.ndarray, spacing: np.ndarray | None, assd: str) -> ClassScores:
    """Scores of two masks by the package that the published results were measured with."""
    if not pred.any() or not truth.any():
        return _score_empty(pred.any(), truth.any())
    try:
        from medpy.metric import binary
    except ImportError as error:
        raise ImportError("method 'medpy' needs MedPy: pip install MedPy, or use the method 'fast'") from error
    if assd == "pooled":
        average = binary.assd(pred, truth, voxelspacing=spacing)
    else:
        average = np.mean([binary.asd(a, b, voxelspacing=spacing) for a, b in ((pred, truth), (truth, pred))])
    scores = {
        "dice": float(binary.dc(pred, truth)),
        "hd95": float(binary.hd95(pred, truth, voxelspacing=spacing)),
        "jaccard": float(binary.jc(pred, truth)),
        "assd": float(average),
    }
    return ClassScores(published=scores, strict=dict(scores))


def _pair(pred: Any, truth: Any, method: str) -> tuple[Array, Array]:
    """Both as arrays of equal shape, 2-D or 3-D, or a ValueError; tensors stay tensors if tensors will be measured."""
    stay = _by_tensors(pred, method)
    pred, truth = (_array(values, stay) for values in (pred, truth))
    shapes = tuple(pred.shape), tuple(truth.shape)
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the prediction has shape {shapes[0]} but the truth {shapes[1]}; expected the same shape, "
            "so resize the prediction to the truth's grid"
        )
    if pred.ndim not in (2, 3):
        raise ValueError(f"the masks have shape {shapes[0]}; expected 2 or 3 dimensions, so pass one case at a time")
    return pred, truth


def _by_tensors(pred: Any, method: str) -> bool:
    """Whether the measuring is done by tensor operations, where the prediction is."""
    return method == "device" or (method == "fast" and isinstance(pred, Tensor) and pred.is_cuda)


def _array(values: Any, stay: bool) -> Array:
    """A NumPy array, or a tensor that stays one."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach()
    if values.is_floating_point() and values.dtype.itemsize < 4:
        values = values.float()  # NumPy has not all of these types, float32 holds all of their values
    if not stay:
        return values.cpu().numpy()
    # Torch can hardly do anything with the wider unsigned types.
    return values.long() if values.dtype in (torch.uint16, torch.uint32, torch.uint64) else values


def _together(pred: Array, truth: Array, method: str) -> tuple[Array, Array]:
    """Both as they are measured: as NumPy arrays, or as tensors on the prediction's device."""
    if not _by_tensors(pred, method):
        return pred, truth
    # A tensor takes no array that is read-only or runs backwards; a copy is neither.
    pred, truth = (
        labels if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels, order="C"))
        for labels in (pred, truth)
    )
    return pred, truth.to(pred.device)


def _is_float(array: Array) -> bool:
    return array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"


def _numbers(array: Array, what: str) -> Array:
    """The array itself, or a ValueError unless it holds real numbers without a nan."""
    real = not array.is_complex() if isinstance(array, Tensor) else array.dtype.kind in "biuf"
    if not real:
        raise ValueError(f"the {what} has dtype {array.dtype}; expected bool, integer or float numbers")
    if _is_float(array) and (strange := int((array != array).sum())):
        raise ValueError(f"the {what} holds {strange} nan values; expected numbers, mend it before measuring")
    return array


def _binary(array: Array, what: str) -> Array:
    """Labels uint8, 1 where the array is not zero."""
    mask = _numbers(array, what) != 0
    return mask.view(torch.uint8 if isinstance(mask, Tensor) else np.uint8)


def _labels(array: Array, num_classes: int, what: str) -> Array:
    """The array as uint8, or int32 for many classes; a ValueError if it holds anything else than class numbers."""
    array = _numbers(array, what)
    advice = f"expected whole numbers from 0 to {num_classes - 1}, so mend the labels or the number of classes"
    if math.prod(array.shape) and (array.min() < 0 or array.max() >= num_classes):
        stray = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"the {what} holds the label {stray}; {advice}")
    small = num_classes <= 256
    if isinstance(array, Tensor):
        labels = array.to(torch.uint8 if small else torch.int32)
    else:
        labels = array.astype(np.uint8 if small else np.int32, copy=False)
    if _is_float(array) and (labels != array).any():
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


def _checked_workers(workers: int | None) -> int:
    """The number of threads, one for each core that this process may use where nothing is said, or a ValueError."""
    if workers is None:
        # Not every system says which cores a process may use.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers is {workers}; expected at least 1 thread, or None for one on each core")
    return workers
