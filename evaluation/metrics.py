"""Dice, HD95, Jaccard and ASSD of segmentation masks by MedPy's definitions, computed from surface points alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from medpy.metric import binary
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree
from torch import Tensor

METRICS = ("dice", "hd95", "jaccard", "assd")
OVERLAPS = ("dice", "jaccard")  # of these, those from 0 to 1; the others are distances
METHODS = ("fast", "medpy", "device")
ASSD_FORMS = ("pooled", "directed")  # MedPy from 0.5 on, MedPy up to 0.4

Labels = ArrayLike | Tensor
Spacing = Sequence[float] | None

# A GPU builds distance maps while they cost less (voxels times edges of the box for each point) than k-d trees.
_MAX_MAP_WORK = 2**15
_MAX_MAP_VOXELS = 2**25  # 1.6 GB


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
    *,
    method: str = "fast",
    assd: str = "pooled",
) -> dict[str, float]:
    """Dice, HD95, Jaccard and ASSD of two binary masks.

    The two conventions differ only where a mask is empty. Published: a prediction without truth scores Dice 1, HD95 0,
    Jaccard 1 and ASSD 0, and an empty prediction 0 in all four. Strict: a false positive or false negative scores
    Dice 0 and Jaccard 0 and has no distances (nan), and two empty masks have no scores at all (nan).

    Args:
        pred: (H, W) or (D, H, W), array or tensor, foreground where not zero.
        truth: likewise, of the same shape.
        spacing: size of a voxel in mm along each axis; None measures in voxels.
        strict: use the strict convention instead of the published one.
        method: "medpy" calls MedPy on the whole arrays; the others give the same numbers: "device" by distance maps on
            the prediction's device, "fast" by k-d trees, or on a GPU by such maps where these are faster.
        assd: "pooled" is the mean of all surface distances, as MedPy from 0.5 on; "directed" is the mean of the means
            of both directions, as MedPy up to 0.4.

    Raises:
        ValueError: shapes, spacing, values or the method are not as described.
    """
    pred, truth = _as_tensor(pred, "prediction") != 0, _as_tensor(truth, "truth") != 0
    (scores,) = compare_classes(pred, truth, 2, spacing, method=method, assd=assd)
    return scores.strict if strict else scores.published


def compare_classes(
    pred: Labels,
    truth: Labels,
    num_classes: int,
    spacing: Spacing = None,
    *,
    method: str = "fast",
    assd: str = "pooled",
) -> tuple[ClassScores, ...]:
    """Scores of the classes 1 to `num_classes` - 1 of two label maps; otherwise as `compare`."""
    return compare_at_spacings(pred, truth, num_classes, [spacing], method=method, assd=assd)[0]


def compare_at_spacings(
    pred: Labels,
    truth: Labels,
    num_classes: int,
    spacings: Sequence[Spacing],
    *,
    method: str = "fast",
    assd: str = "pooled",
) -> list[tuple[ClassScores, ...]]:
    """`compare_classes` at several spacings, such as None (voxels) and the scan's own (mm), from the same surfaces."""
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; expected at least 2, the background and one class")
    for name, value, known in (("method", method, METHODS), ("assd", assd, ASSD_FORMS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    pred, truth = _as_labels(pred, num_classes, "prediction"), _as_labels(truth, num_classes, "truth")
    if pred.shape != truth.shape:
        raise ValueError(
            f"the prediction has shape {tuple(pred.shape)} but the truth {tuple(truth.shape)}; expected the same "
            "shape, so resize the prediction to the truth's grid"
        )
    if pred.ndim not in (2, 3):
        raise ValueError(
            f"the masks have {pred.ndim} dimensions; expected 2 or 3 dimensions, so pass one case at a time"
        )
    scales = [_check_spacing(spacing, pred.ndim) for spacing in spacings]
    classes, truth = range(1, num_classes), truth.to(pred.device)
    if method == "medpy":
        return [tuple(_by_medpy(pred == i, truth == i, scale, assd) for i in classes) for scale in scales]
    pred, truth = _crop(pred, truth)
    counts = _voxel_counts(pred, truth, num_classes).tolist()
    surfaces = [_surface_points(labels) for labels in (pred, truth)]
    points = [[places[classes == i] for places, classes in surfaces] for i in range(num_classes)]
    return [
        tuple(_scores(counts[i], _distances(*points[i], scale, method), assd) for i in range(1, num_classes))
        for scale in scales
    ]


def dice_per_class(pred: Labels, truth: Labels, num_classes: int) -> np.ndarray:
    """Strict Dice of the classes 1 to `num_classes` - 1, nan where both label maps lack the class."""
    counts = _voxel_counts(_as_tensor(pred, "prediction"), _as_tensor(truth, "truth"), num_classes)
    with np.errstate(invalid="ignore"):
        return 2 * counts[1:, 2] / counts[1:, :2].sum(axis=1)


def _voxel_counts(pred: Tensor, truth: Tensor, num_classes: int) -> np.ndarray:
    """Voxels of each class in the prediction, in the truth and, except for the background, in both: (num_classes, 3)."""
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


def _surface_points(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each class minus its 6-neighbor erosion (4 in 2-D), outside is background: indices (n, dims) and classes (n,)."""
    padded = F.pad(labels, (1, 1) * labels.ndim)
    surface = torch.zeros_like(labels, dtype=torch.bool)
    for axis, size in enumerate(labels.shape):
        lines = padded[tuple(slice(None) if i == axis else slice(1, -1) for i in range(labels.ndim))]
        differs = lines.narrow(axis, 0, size + 1) != lines.narrow(axis, 1, size + 1)
        surface |= differs.narrow(axis, 0, size) | differs.narrow(axis, 1, size)
    points = (surface & (labels != 0)).nonzero()
    return points, labels[tuple(points.T)]


def _distances(pred: Tensor, truth: Tensor, scale: np.ndarray, method: str) -> list[np.ndarray]:
    """Distance of each surface point (n, dims) of one mask to the nearest of the other, both ways: two (n,) float64."""
    if not len(pred) or not len(truth):
        return []
    points = torch.cat([pred, truth])
    low = points.amin(dim=0)
    shape = (points.amax(dim=0) - low + 1).tolist()
    worth = math.prod(shape) <= min(_MAX_MAP_VOXELS, len(points) * _MAX_MAP_WORK // sum(shape))
    if method == "device" or (pred.is_cuda and worth):
        return _distances_by_maps([pred - low, truth - low], shape, scale)
    ours, theirs = (one.cpu().numpy() * scale for one in (pred, truth))
    # Balanced, compact nodes and small leaves take longer to build than they save.
    trees = [cKDTree(goals, leafsize=64, compact_nodes=False, balanced_tree=False) for goals in (theirs, ours)]
    threads = torch.get_num_threads()
    return [tree.query(start, workers=threads)[0] for tree, start in zip(trees, (ours, theirs), strict=True)]


def _distances_by_maps(surfaces: Sequence[Tensor], shape: Sequence[int], scale: np.ndarray) -> list[np.ndarray]:
    """The same from maps of the squared distance to each surface in their box, made one axis after the other."""
    maps = torch.full((2, *shape), math.inf, dtype=torch.float64, device=surfaces[0].device)
    for squared, points in zip(maps, surfaces, strict=True):
        squared[tuple(points.T)] = 0
    for axis, edge in enumerate(scale.tolist(), start=1):
        along = torch.arange(maps.shape[axis], device=maps.device) * edge
        before = maps.movedim(axis, 0)
        after = torch.empty_like(before)
        for plane, steps in zip(after, (along[:, None] - along).square(), strict=True):
            torch.amin(before + steps.view(-1, *[1] * len(shape)), dim=0, out=plane)
        maps = after.movedim(0, axis)
    return [maps[1 - i][tuple(points.T)].sqrt().cpu().numpy() for i, points in enumerate(surfaces)]


def _scores(pred_size: int, truth_size: int, shared: int, distances: Sequence[np.ndarray], assd: str) -> ClassScores:
    if not pred_size or not truth_size:
        return _scores_of_empty(pred_size > 0, truth_size > 0)
    pooled = np.concatenate(distances)
    scores = {
        "dice": 2 * shared / (pred_size + truth_size),
        "hd95": float(np.percentile(pooled, 95)),
        "jaccard": shared / (pred_size + truth_size - shared),
        "assd": float(pooled.mean() if assd == "pooled" else np.mean([one.mean() for one in distances])),
    }
    return ClassScores(published=scores, strict=dict(scores))


def _scores_of_empty(predicted: bool, present: bool) -> ClassScores:
    published = 1.0 if predicted and not present else 0.0
    strict = 0.0 if predicted or present else math.nan
    return ClassScores(
        published={"dice": published, "hd95": 0.0, "jaccard": published, "assd": 0.0},
        strict={"dice": strict, "hd95": math.nan, "jaccard": strict, "assd": math.nan},
    )


def _by_medpy(pred: Tensor, truth: Tensor, scale: np.ndarray, assd: str) -> ClassScores:
    masks = ours, theirs = pred.cpu().numpy(), truth.cpu().numpy()
    if not ours.any() or not theirs.any():
        return _scores_of_empty(ours.any(), theirs.any())
    directed = [masks] if assd == "pooled" else [masks, masks[::-1]]
    average = binary.assd if assd == "pooled" else binary.asd
    scores = {
        "dice": float(binary.dc(ours, theirs)),
        "hd95": float(binary.hd95(ours, theirs, voxelspacing=scale)),
        "jaccard": float(binary.jc(ours, theirs)),
        "assd": float(np.mean([average(*pair, voxelspacing=scale) for pair in directed])),
    }
    return ClassScores(published=scores, strict=dict(scores))


def _as_tensor(values: Labels, name: str) -> Tensor:
    """Real numbers as a tensor, uint8 without a copy; a ValueError for anything else."""
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"the {name} has dtype {array.dtype}; expected bool, integer or float numbers")
        if array.dtype not in (np.bool_, np.uint8):  # torch has neither every width nor every byte order
            array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        values = torch.from_numpy(np.require(array, requirements="CW"))  # nor a type for read-only arrays
    if values.is_floating_point() and (count := int(values.isnan().sum())):
        raise ValueError(f"the {name} holds {count} nan values; expected numbers, fix it before measuring")
    return values.detach()


def _as_labels(values: Labels, num_classes: int, name: str) -> Tensor:
    """Class numbers as uint8, or int32 for many classes; a ValueError for anything else."""
    values = _as_tensor(values, name)
    labels = values.to(torch.uint8 if num_classes <= 256 else torch.int32)
    changed = labels is not values and bool((labels != values).any())
    if changed or labels.min() < 0 or labels.max() >= num_classes:
        wrong = (values < 0) | (values >= num_classes) | (labels != values)
        raise ValueError(
            f"the {name} holds the label {values[wrong][0].item()}; expected whole numbers from 0 to "
            f"{num_classes - 1}, so fix the labels or the number of classes"
        )
    return labels


def _check_spacing(spacing: Spacing, ndim: int) -> np.ndarray:
    """Size of a voxel along each axis, (ndim,) float64; a ValueError unless these are positive numbers."""
    values = np.ones(ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if values.shape != (ndim,) or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(
            f"spacing is {spacing!r}; expected {ndim} positive numbers, the size of a voxel in mm along each axis "
            "of the array, or None for unit spacing"
        )
    return values
