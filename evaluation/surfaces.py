"""Voxel counts and surface distances of the classes of two label arrays, on NumPy arrays and on tensors alike.

All classes are looked at together: a surface point is a voxel that touches any other label, and the nearest point of
its class on the other surface is looked up among the voxels around it, ring after ring. What is farther away is
measured class by class.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

Array = np.ndarray | Tensor

# How far the rings reach, in shortest edges of a voxel; farther out a tree costs less than looking at every voxel.
_REACH = 4
# Voxels or pairs of points looked at in one go: on the CPU what its caches hold, on a device what keeps it busy.
_TILE, _DEVICE_TILE = 2**19, 2**24
# Far points that a thread measures at once, in some 30 MB.
_FAR = 2**18
# What a tree takes to find the nearest point, in sums of two squares: from 2**11 for one close by to 2**17 where many
# are about equally far.
_TREE_SEARCH = 2**13
# What a device takes for a pair of points, in the same unit.
_PAIR = 4


@dataclass(frozen=True)
class ClassMeasure:
    """Voxels of a class in both arrays, and the distances between its surfaces.

    `pred_size`, `truth_size` and `shared` count voxels. `to_truth` has the distance of each surface point of the
    prediction to the nearest one of the truth, `to_pred` of each of the truth: float64, in no order, both empty
    where the class is missing in one of the arrays.
    """

    pred_size: int
    truth_size: int
    shared: int
    to_truth: np.ndarray
    to_pred: np.ndarray


def measure_classes(
    pred: Array, truth: Array, num_classes: int, spacing: np.ndarray | None, workers: int
) -> list[ClassMeasure]:
    """Measure the classes from 1 to `num_classes` - 1, with background all around the arrays.

    `pred` and `truth` are (H, W) or (D, H, W), uint8 or int32, both arrays or both tensors on one device; they are left
    as they are. `spacing` is the size of a voxel in mm along each axis, None for unit spacing. Arrays are shared among
    `workers` threads, which changes no figure.
    """
    with ThreadPoolExecutor(workers) as pool:
        # What is looked at in one go would only wait for its thread.
        each = pool.map if workers > 1 and isinstance(pred, np.ndarray) and pred.size > _TILE else map
        box = _box([one | other for one, other in zip(*each(_occupied, (pred, truth)), strict=True)])
        grid = _Grid.around(box, spacing)
        pred, truth = each(lambda labels: grid.flat(labels[box]), (pred, truth))
        sizes = _sizes(pred, truth, num_classes, grid, each)
        one, other = (_Surface.of(labels, grid, each) for labels in (pred, truth))
        to_truth = _directed(one, other, num_classes, grid, each)
        to_pred = _directed(other, one, num_classes, grid, each)
    return [ClassMeasure(*row) for row in zip(*sizes.tolist(), to_truth, to_pred, strict=True)][1:]


def count(labels: Array, num_classes: int) -> np.ndarray:
    """How often each label from 0 to `num_classes` - 1 occurs, (num_classes,)."""
    # NumPy's own count makes eight bytes of each label first.
    tensor = torch.from_numpy(labels) if isinstance(labels, np.ndarray) else labels
    return torch.bincount(tensor.reshape(-1), minlength=num_classes).cpu().numpy()


@dataclass(frozen=True)
class _Grid:
    """The places of the voxels in flat arrays that have margins of background as wide as the rings reach."""

    shape: tuple[int, ...]
    margins: tuple[int, ...]
    scale: np.ndarray  # size of a voxel along each axis
    whole: bool  # whether squared distances are whole numbers that int32 holds, even the sum of two

    @classmethod
    def around(cls, box: Sequence[slice], spacing: np.ndarray | None) -> _Grid:
        """The grid of what a box holds, and margins around it."""
        scale = np.ones(len(box)) if spacing is None else spacing
        # One voxel at least keeps the end of a row from touching the start of the next.
        margins = tuple(max(1, int(_REACH * scale.min() / edge)) for edge in scale)
        shape = tuple(max(1, cut.stop - cut.start) + 2 * margin for cut, margin in zip(box, margins, strict=True))
        return cls(shape, margins, scale, spacing is None and sum(size**2 for size in shape) < 2**30)

    @cached_property
    def strides(self) -> list[int]:
        """Steps to the next voxel along each axis."""
        return [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]

    @cached_property
    def rings(self) -> list[tuple[float, np.ndarray]]:
        """Distances in rising order from 0, each with the steps (n, 1) to the voxels at that distance."""
        offsets = np.array(list(itertools.product(*(range(-margin, margin + 1) for margin in self.margins))))
        lengths = np.sqrt(((offsets * self.scale) ** 2).sum(axis=1))
        steps = offsets @ np.array(self.strides)
        return [
            (float(length), steps[lengths == length, None])
            for length in np.unique(lengths[lengths <= _REACH * self.scale.min()])
        ]

    def flat(self, labels: Array) -> Array:
        """The labels with their margins, flat."""
        padded = _full(self.shape, 0, labels)
        inner = (slice(margin, margin + size) for margin, size in zip(self.margins, labels.shape, strict=True))
        padded[tuple(inner)] = labels
        return padded.reshape(-1)

    def pieces(self, size: int) -> list[slice]:
        """The flat array but for its first and last margins, piece by piece."""
        margin, end = self.strides[0], math.prod(self.shape) - self.strides[0]
        return [slice(first, min(first + size, end)) for first in range(margin, end, size)]

    def places(self, points: Array) -> list[Array]:
        """Where flat indices are along each of three axes."""
        places = [points // stride % size for stride, size in zip(self.strides, self.shape, strict=True)]
        return [points * 0] * (3 - len(places)) + places

    def scaled(self, places: Sequence[Array]) -> list[Array]:
        """Places along each of three axes in units of length, int32 if that holds their squares, else float64."""
        kind = "int32" if self.whole else "float64"
        edges = [1.0] * (3 - len(self.scale)) + self.scale.tolist()
        return [_typed(_typed(at, "float64") * edge, kind) for at, edge in zip(places, edges, strict=True)]


@dataclass(frozen=True)
class _Surface:
    """Surface points of all classes: labels in the flat array, 0 elsewhere; indices into it, rising; their labels."""

    flat: Array
    points: Array
    labels: Array

    @classmethod
    def of(cls, flat: Array, grid: _Grid, each: Callable[..., Iterable]) -> _Surface:
        """The voxels of each class that touch another label (6 neighbours in 3-D, 4 in 2-D)."""
        surface = _full(flat.shape, 0, flat)
        steps = [step for stride in grid.strides for step in (-stride, stride)]

        def mark(piece: slice) -> Array:
            here = flat[piece]
            edge = reduce(or_, (here != flat[piece.start + step : piece.stop + step] for step in steps))
            surface[piece] = here * edge
            return _nonzero(surface[piece] != 0) + piece.start

        points = _joined(list(each(mark, grid.pieces(_tile(flat)))))
        return cls(surface, points, surface[points])


def _occupied(labels: Array) -> list[Array]:
    """For each axis, where along it anything but background is."""
    lines = []
    while labels.ndim > 1:
        lines.append(labels.any(axis=tuple(range(1, labels.ndim))))
        labels = labels.any(axis=0)
    return [*lines, labels != 0]


def _box(occupied: Sequence[Array]) -> tuple[slice, ...]:
    """The smallest box around what is occupied."""
    found = [_nonzero(lines) for lines in occupied]
    return tuple(slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0) for at in found)


def _sizes(pred: Array, truth: Array, num_classes: int, grid: _Grid, each: Callable[..., Iterable]) -> np.ndarray:
    """Voxels of each class in the prediction, in the truth and in both, (3, num_classes)."""

    def of(piece: slice) -> np.ndarray:
        ours, theirs = pred[piece], truth[piece]
        return np.stack([count(labels, num_classes) for labels in (ours, theirs, ours * (ours == theirs))])

    return sum(each(of, grid.pieces(_tile(pred))))


def _directed(
    start: _Surface, goal: _Surface, num_classes: int, grid: _Grid, each: Callable[..., Iterable]
) -> list[np.ndarray]:
    """For each class from 0 on, the distance of each point of one surface to the nearest one of the other."""
    lengths = [length for length, _ in grid.rings]
    rings = [_like(steps, start.points) for _, steps in grid.rings]
    size = _tile(start.flat) // 16  # a ring has some sixteen voxels
    parts = [slice(first, first + size) for first in range(0, max(1, len(start.points)), size)]

    def look(part: slice) -> tuple[np.ndarray, Array, Array]:
        return _look_around(start.points[part], start.labels[part], goal.flat, rings, num_classes)

    looked = list(each(look, parts))
    counts = sum(found for found, _, _ in looked)

    def measure(label: int) -> np.ndarray:
        near = np.repeat(lengths, counts[:, label])
        far = _joined([points[labels == label] for _, points, labels in looked])
        goals = goal.points[goal.labels == label]
        starts = range(0, len(far), _FAR) if len(goals) else ()
        return np.concatenate([near, *(_far_distances(far[first : first + _FAR], goals, grid) for first in starts)])

    return list(each(measure, range(num_classes)))


def _look_around(
    points: Array, labels: Array, goal: Array, rings: Sequence[Array], num_classes: int
) -> tuple[np.ndarray, Array, Array]:
    """How many points of each class meet it first on each ring, (rings, num_classes), and the points that do not."""
    counts = np.zeros((len(rings), num_classes), dtype=np.int64)
    for ring, steps in enumerate(rings):
        if not len(points):
            break
        found = (goal.take(points + steps) == labels).any(axis=0)
        counts[ring] = count(labels[found], num_classes)
        points, labels = points[~found], labels[~found]
    return counts, points, labels


def _far_distances(points: Array, goals: Array, grid: _Grid) -> np.ndarray:
    """Distance of each point to the nearest goal, both as flat indices, the cheapest way."""
    on_cpu = isinstance(points, np.ndarray)
    start, goal = grid.places(points), grid.places(goals)
    (depth, height, _), (_, rows, columns) = ([int(at.max() - at.min()) + 1 for at in ats] for ats in (start, goal))
    # A map serves points that are crowded, as in the speckle of an untrained network.
    if depth * height * rows * columns < len(points) * (_TREE_SEARCH if on_cpu else _PAIR * len(goals)):
        squared = _by_axes(start, goal, grid)
    elif on_cpu:
        # Among many goals at about one distance large leaves and no compact nodes make the search three times as fast.
        goal, start = (np.stack(grid.scaled(places), axis=1) for places in (goal, start))
        return cKDTree(goal, leafsize=64, compact_nodes=False, balanced_tree=False).query(start)[0]
    else:
        squared = _by_pairs(start, goal, grid)
    return np.sqrt(np.asarray(squared if on_cpu else squared.cpu(), dtype=np.float64))


def _by_pairs(start: Sequence[Tensor], goal: Sequence[Tensor], grid: _Grid) -> Tensor:
    """Squared distance of each point to the nearest goal, from all pairs."""
    axes = list(zip(grid.scaled(start), grid.scaled(goal), strict=True))
    size = max(1, _DEVICE_TILE // len(goal[0]))
    nearest = []
    for first in range(0, len(start[0]), size):
        ways = (ours[first : first + size, None] - theirs for ours, theirs in axes)
        nearest.append(sum(way.square_() for way in ways).amin(dim=1))
    return torch.cat(nearest)


def _by_axes(start: Sequence[Array], goal: Sequence[Array], grid: _Grid) -> Array:
    """Squared distance of each point to the nearest goal, from a distance map made one axis after the other.

    The depths of the points do not fall.
    """
    depths, rows, _ = (at - at.min() for at in start)
    levels, heights, _ = grid.scaled([_span(at) for at in start])
    spans = grid.scaled([_span(at) for at in goal])
    across = grid.scaled(start)[2]
    volume = _full([len(span) for span in spans], 2**30 if grid.whole else math.inf, across)
    volume[tuple(at - at.min() for at in goal)] = 0
    blocks = depths // max(1, _tile(across) // (len(heights) * len(spans[2])))
    cuts = [0, *(_nonzero(blocks[1:] != blocks[:-1]) + 1).tolist(), len(blocks)]
    size = max(1, _tile(across) // len(spans[2]))
    nearest = []
    for first, last in itertools.pairwise(cuts):
        low, high = int(depths[first]), int(depths[last - 1])
        layers = _spread(volume, spans[0], levels[low : high + 1])
        lines = _spread(layers.swapaxes(0, 1), spans[1], heights)
        for part in (slice(at, min(at + size, last)) for at in range(first, last, size)):
            sums = lines[rows[part], depths[part] - low] + (across[part, None] - spans[2]) ** 2
            nearest.append(sums.min(axis=1) if isinstance(sums, np.ndarray) else sums.amin(dim=1))
    return _joined(nearest)


def _span(places: Array) -> Array:
    """Every place from the first to the last."""
    return _like(np.arange(int(places.min()), int(places.max()) + 1), places)


def _spread(values: Array, places: Array, targets: Array) -> Array:
    """At each target (m,) the least sum of a value (n, ...) and the squared way from its place (n,): (m, ...)."""
    smaller = np.minimum if isinstance(values, np.ndarray) else torch.minimum
    targets = targets.reshape(-1, *[1] * (values.ndim - 1))
    return reduce(smaller, (value + (targets - place) ** 2 for value, place in zip(values, places, strict=True)))


def _tile(like: Array) -> int:
    return _TILE if isinstance(like, np.ndarray) else _DEVICE_TILE


def _nonzero(flat: Array) -> Array:
    """Indices (n,) of what is not zero, rising."""
    return np.flatnonzero(flat) if isinstance(flat, np.ndarray) else flat.nonzero().squeeze(1)


def _joined(arrays: Sequence[Array]) -> Array:
    """Arrays (n,) one after the other."""
    return np.concatenate(arrays) if isinstance(arrays[0], np.ndarray) else torch.cat(arrays)


def _full(shape: Sequence[int], value: float, like: Array) -> Array:
    """An array of one value, in the form and of the type of another."""
    if isinstance(like, np.ndarray):
        return np.full(shape, value, like.dtype)
    return torch.full(tuple(shape), value, dtype=like.dtype, device=like.device)


def _like(array: np.ndarray, like: Array) -> Array:
    """The array in the form and on the device of another."""
    return array if isinstance(like, np.ndarray) else torch.from_numpy(array).to(like.device)


def _typed(array: Array, dtype: str) -> Array:
    """The array in a type that NumPy and torch have by the same name."""
    return array.astype(dtype) if isinstance(array, np.ndarray) else array.to(getattr(torch, dtype))
