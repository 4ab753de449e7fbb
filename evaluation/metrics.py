"""Dice, HD95, Jaccard and ASSD of segmentation masks by MedPy's definitions, computed from surface points alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree
from torch import Tensor

METRICS = ("dice", "hd95", "jaccard", "assd")
OVERLAPS = ("dice", "jaccard")  # of these, those from 0 to 1; the others are distances
METHODS = ("fast", "medpy")
ASSD_FORMS = ("pooled", "directed")  # MedPy from 0.5 on, MedPy up to 0.4

_MIN_POINTS_FOR_THREADS = 20_000  # fewer are found before a thread has started

Labels = ArrayLike | Tensor
Spacing = Sequence[float] | None


@dataclass(frozen=True)
class ClassScores:
    """The four metrics of one class in one case, in the published and in the strict convention for empty masks."""

    published: dict[str, float]
    strict: dict[str, float]


def compare(
    pred: Labels,
    truth: Labels,
    spacing: Spacing = None,
    strict: bool = False,
    method: str = "fast",
    assd: str = "pooled",
) -> dict[str, float]:
    """Dice, HD95, Jaccard and ASSD of two binary masks.

    The two conventions differ only where a mask is empty. Published: a prediction without truth scores Dice 1, HD95 0,
    Jaccard 1 and ASSD 0, and an empty prediction 0 in all four. Strict: a false positive or false negative scores
    Dice 0 and Jaccard 0 and has no distances (nan), and two empty masks have no scores at all (nan).

    Args:
        pred: (H, W) or (D, H, W), array or tensor, foreground where not zero.
        truth: of the same shape.
        spacing: size of a voxel in mm along each axis; None measures in voxels.
        strict: use the strict convention instead of the published one.
        method: as of `compare_at_spacings`.
        assd: as of `compare_at_spacings`.

    Raises:
        ValueError: shapes that differ, or are not of 2 or 3 dimensions; an impossible spacing.
    """
    pred, truth = _as_tensor(pred, "prediction") != 0, _as_tensor(truth, "truth") != 0
    (scores,) = compare_classes(pred, truth, 2, spacing, method, assd)
    return scores.strict if strict else scores.published


def compare_classes(
    pred: Labels,
    truth: Labels,
    num_classes: int,
    spacing: Spacing = None,
    method: str = "fast",
    assd: str = "pooled",
) -> tuple[ClassScores, ...]:
    """Scores of the classes 1 to `num_classes` - 1 of two label maps; otherwise as `compare`."""
    return compare_at_spacings(pred, truth, num_classes, [spacing], method, assd)[0]


def compare_at_spacings(
    pred: Labels,
    truth: Labels,
    num_classes: int,
    spacings: Sequence[Spacing],
    method: str = "fast",
    assd: str = "pooled",
) -> list[tuple[ClassScores, ...]]:
    """`compare_classes` at several spacings, such as None (voxels) and the scan's own (mm), from the same surfaces.

    The method "fast" finds surfaces on the prediction's device and distances by k-d trees on the CPU; "medpy" calls
    MedPy on the whole arrays, for the same numbers. ASSD "pooled" is the mean of all surface distances, as MedPy from
    0.5 on, "directed" the mean of the means of both directions, as MedPy up to 0.4.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; expected at least 2, the background and one class")
    for name, value, known in (("method", method, METHODS), ("assd", assd, ASSD_FORMS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    pred, truth = _as_labels(pred, num_classes, "prediction"), _as_labels(truth, num_classes, "truth")
    if pred.shape != truth.shape or pred.ndim not in (2, 3):
        raise ValueError(
            f"the prediction has shape {tuple(pred.shape)} and the truth {tuple(truth.shape)}; expected the same of "
            "2 or 3 dimensions, one case at a time, so resize the prediction to the truth's grid"
        )
    scales = [_check_spacing(spacing, pred.ndim) for spacing in spacings]
    truth = truth.to(pred.device)
    cropped = _crop(pred, truth)
    counts, surfaces = _voxel_counts(*cropped, num_classes).tolist(), [_surface_points(labels) for labels in cropped]
    rows = []
    for label in range(1, num_classes):
        if 0 in counts[label][:2]:
            rows.append([_scores_of_empty(*counts[label][:2])] * len(scales))
            continue
        if method == "medpy":
            masks = [(labels == label).cpu().numpy() for labels in (pred, truth)]
            measured = [_by_medpy(masks, scale, assd) for scale in scales]
        else:
            points = [places[found == label] for places, found in surfaces]
            measured = [_by_surfaces(counts[label], points, scale, assd) for scale in scales]
        rows.append([ClassScores(published=scores, strict=dict(scores)) for scores in measured])
    return list(zip(*rows, strict=True))


def dice_per_class(pred: Labels, truth: Labels, num_classes: int) -> np.ndarray:
    """Strict Dice of the classes 1 to `num_classes` - 1, nan where both label maps lack the class."""
    counts = _voxel_counts(_as_tensor(pred, "prediction"), _as_tensor(truth, "truth"), num_classes)
    with np.errstate(invalid="ignore"):
        return 2 * counts[1:, 2] / counts[1:, :2].sum(axis=1)


def _voxel_counts(pred: Tensor, truth: Tensor, num_classes: int) -> np.ndarray:
    """Voxels of each class in the prediction, in the truth and (not of the background) in both: (num_classes, 3)."""
    maps = (pred, truth, pred * (pred == truth))
    counts = [torch.bincount(labels.flatten(), minlength=num_classes)[:num_classes] for labels in maps]
    return torch.stack(counts, dim=1).cpu().numpy()


def _crop(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both label maps in the bounding box of their foreground."""
    occupied, box = pred | truth, []
    for _ in pred.shape:
        at = occupied.flatten(1).amax(dim=1).nonzero()
        box.append(slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 1))
        occupied = occupied.amax(dim=0) if occupied.ndim > 2 else occupied.T
    return pred[tuple(box)], truth[tuple(box)]


def _surface_points(labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Each class minus its 6-neighbor erosion (4 in 2-D), outside is background: indices (n, dims) and classes (n,)."""
    padded = F.pad(labels, (1, 1) * labels.ndim)
    surface = torch.zeros_like(labels, dtype=torch.bool)
    for axis, size in enumerate(labels.shape):
        lines = padded[tuple(slice(None) if i == axis else slice(1, -1) for i in range(labels.ndim))]
        differs = lines.narrow(axis, 0, size + 1) != lines.narrow(axis, 1, size + 1)
        surface |= differs.narrow(axis, 0, size) | differs.narrow(axis, 1, size)
    points = (surface & (labels != 0)).nonzero()
    return points.cpu().numpy(), labels[tuple(points.T)].cpu().numpy()


def _by_surfaces(
    counts: Sequence[int], surfaces: Sequence[np.ndarray], scale: np.ndarray, assd: str
) -> dict[str, float]:
    """The scores by voxel counts and the distance of each surface point (n, dims) to the nearest of the other mask."""
    pred, truth = (points * scale for points in surfaces)
    # Large leaves search three times as fast where many goals are about equally far, as in noise.
    trees = [cKDTree(goals, leafsize=64, compact_nodes=False, balanced_tree=False) for goals in (truth, pred)]
    threads = torch.get_num_threads() if len(pred) + len(truth) > _MIN_POINTS_FOR_THREADS else 1
    distances = [tree.query(points, workers=threads)[0] for tree, points in zip(trees, (pred, truth), strict=True)]
    pooled, (pred_size, truth_size, shared) = np.concatenate(distances), counts
    return {
        "dice": 2 * shared / (pred_size + truth_size),
        "hd95": float(np.percentile(pooled, 95)),
        "jaccard": shared / (pred_size + truth_size - shared),
        "assd": float(pooled.mean() if assd == "pooled" else np.mean([one.mean() for one in distances])),
    }


def _by_medpy(masks: Sequence[np.ndarray], scale: np.ndarray, assd: str) -> dict[str, float]:
    from medpy.metric import binary  # half a second, which every command would wait for

    directed = (binary.asd(*pair, voxelspacing=scale) for pair in (masks, masks[::-1]))
    return {
        "dice": float(binary.dc(*masks)),
        "hd95": float(binary.hd95(*masks, voxelspacing=scale)),
        "jaccard": float(binary.jc(*masks)),
        "assd": float(np.mean([*directed]) if assd == "directed" else binary.assd(*masks, voxelspacing=scale)),
    }


def _scores_of_empty(predicted: int, present: int) -> ClassScores:
    published = 1.0 if predicted else 0.0
    strict = 0.0 if predicted or present else math.nan
    return ClassScores(
        published={"dice": published, "hd95": 0.0, "jaccard": published, "assd": 0.0},
        strict={"dice": strict, "hd95": math.nan, "jaccard": strict, "assd": math.nan},
    )


def _as_tensor(values: Labels, name: str) -> Tensor:
    """Real numbers as a tensor, uint8 without a copy; a ValueError for anything else."""
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype not in (np.bool_, np.uint8):  # torch has neither every width nor every byte order
            array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        values = torch.from_numpy(np.require(array, requirements=("C", "W")))  # nor a type for read-only arrays
    if values.is_floating_point() and bool(values.isnan().any()):
        raise ValueError(f"the {name} holds nan; expected numbers, fix it before measuring")
    return values.detach()


def _as_labels(values: Labels, num_classes: int, name: str) -> Tensor:
    """Class numbers as uint8, or int32 for many classes; a ValueError for anything else."""
    values = _as_tensor(values, name)
    labels = values.to(torch.uint8 if num_classes <= 256 else torch.int32)
    changed = labels is not values and bool((labels != values).any())
    if changed or labels.min() < 0 or labels.max() >= num_classes:
        wrong = (values < 0) | (values >= num_classes) | (labels != values)
        found = values[wrong][0].item()
        raise ValueError(f"the {name} holds the label {found}; expected whole numbers from 0 to {num_classes - 1}")
    return labels


def _check_spacing(spacing: Spacing, ndim: int) -> np.ndarray:
    """Size of a voxel along each axis, (ndim,) float64; a ValueError unless these are positive numbers."""
    values = np.ones(ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if values.shape != (ndim,) or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(f"spacing is {spacing!r}; expected {ndim} positive numbers, mm along each axis, or None")
    return values
