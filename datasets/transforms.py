"""Augmentation and resizing of slices, equal to SciPy, as tensor operations on any device.

Every operation here is linear or a choice of pixels: it is worked out once, as a matrix or a table of indices, which
does the same to any image of that shape.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, special
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)
Bands = tuple[tuple[slice, slice, Tensor], ...]

_SPLINE, _NEAREST = 3, 0

# The published draws need 89 tables of one shape: 40 angles for images, and these, 8 turns and none for labels. One of
# 512 x 512 takes 1 MB and 1.5 ms to make, one of 224 x 224 0.3 ms.
_TABLES = 128
_AXES = 1024
# Measured on one thread of an AVX-512 CPU, 512 pixels to 224: 16 rows are a fifth faster than 12 or 32.
_BAND_ROWS = 16
# torch cannot flip or fill these; to move pixels, only their width matters.
_SAME_WIDTH = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class Draw(NamedTuple):
    """What one sample is to go through: `kind` is "none", "rot_flip" (k, axis) or "rotate" (angle in degrees)."""

    kind: str
    k: int = 0
    axis: int = 0
    angle: float = 0


class _Lookup(NamedTuple):
    """Where the pixels of a result of `shape` come from: flat indices into the slice, and those that lie outside.

    On a GPU the index of a pixel outside is that behind the last one, and `outside` is empty.
    """

    shape: tuple[int, int]
    source: Tensor
    outside: Tensor


@lru_cache(maxsize=_AXES)
def _nearest(old: int, new: int) -> np.ndarray:
    """The pixels of an axis of `old` that nearest neighbor takes for its `new`; -1 outside, where SciPy rounds so."""
    if old == new:
        return np.arange(old)
    return ndimage.zoom(np.arange(1, old + 1), new / old, order=_NEAREST) - 1


def _rotated(shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, angle: float) -> np.ndarray:
    """Flat indices of the pixels that `ndimage.rotate` takes for these rows and columns; -1 outside.

    In SciPy's own order of operations, so that halves are rounded alike.
    """
    cosine, sine = special.cosdg(angle), special.sindg(angle)
    matrix, center = np.array([[cosine, sine], [-sine, cosine]]), (np.array(shape) - 1) / 2
    shifts = center - matrix @ center
    y, x = (rows[:, None] * row[0] + columns * row[1] + shift for row, shift in zip(matrix, shifts, strict=True))
    outside = (y < 0) | (y > shape[0] - 1) | (x < 0) | (x > shape[1] - 1)
    flat = np.floor(y + 0.5) * shape[1] + np.floor(x + 0.5)
    return np.where(outside, -1, flat).astype(np.int32)


@lru_cache(maxsize=_TABLES)
def _lookup(shape: tuple[int, int], size: tuple[int, int], draw: Draw, device: torch.device) -> _Lookup:
    """The table that applies a draw to a slice of `shape` and then resizes it to `size` by nearest neighbor."""
    is_turned = draw.kind == "rot_flip" and draw.k % 2 == 1
    height, width = shape[::-1] if is_turned else shape
    rows, columns = _nearest(height, size[0]), _nearest(width, size[1])
    if draw.kind == "rotate":
        numbers = _rotated(shape, rows, columns, draw.angle)
    else:
        numbers = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
        if draw.kind == "rot_flip":
            numbers = np.flip(np.rot90(numbers, draw.k), axis=draw.axis)
        if numbers.shape != size:
            numbers = numbers[rows[:, None], columns]
    numbers = np.where((rows[:, None] < 0) | (columns < 0), -1, numbers)
    flat = torch.from_numpy(numbers.ravel())
    if device.type == "cuda":
        behind = shape[0] * shape[1]
        return _Lookup(size, send(torch.where(flat < 0, behind, flat.long()), device), torch.empty(0))
    return _Lookup(size, flat.clamp_min(0), (flat < 0).nonzero().flatten())


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU from pinned memory, for which the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _movable(batch: Tensor) -> Tensor:
    """The same bits in a type whose pixels torch can move."""
    return batch.view(_SAME_WIDTH.get(batch.dtype, batch.dtype))


def _pick(batch: Tensor, lookups: Sequence[_Lookup]) -> Tensor:
    """Pick the pixels of (B, C, H, W) by a table for each slice, or one for all, on a GPU; zeros outside."""
    flat = F.pad(_movable(batch).flatten(2), (0, 1))
    tables = torch.stack([lookup.source for lookup in lookups])[:, None]
    return flat.gather(2, tables.expand(*flat.shape[:2], -1)).view(batch.dtype).unflatten(2, lookups[0].shape)


def _gather(batch: Tensor, lookup: _Lookup) -> Tensor:
    """Pick the pixels of (B, H, W) by a table; zeros outside."""
    if batch.is_cuda:
        return _pick(batch[:, None], [lookup])[:, 0]
    flat = _movable(batch).reshape(len(batch), -1)
    result = flat.new_empty(len(flat), len(lookup.source))
    # One slice at a time: on a CPU, index_select along a second axis takes three times as long for uint8.
    for one, out in zip(flat, result, strict=True):
        torch.index_select(one, 0, lookup.source, out=out)
    return result.index_fill_(1, lookup.outside, 0).view(batch.dtype).view(-1, *lookup.shape)


@lru_cache(maxsize=_TABLES)
def _bands(old: int, new: int, dtype: torch.dtype, device: torch.device) -> Bands:
    """The matrix that zooms `old` pixels to `new` by cubic spline, cut into blocks: (rows, columns, block).

    Away from its diagonal the matrix falls by a factor of four a pixel, so that a block of rows needs few columns:
    entries below a hundredth of the type's rounding are left out. A GPU is faster with the whole in one block.
    """
    matrix = np.stack([ndimage.zoom(unit, new / old, order=_SPLINE) for unit in np.eye(old)], axis=1)
    matrix[np.abs(matrix) < torch.finfo(dtype).eps / 100] = 0  # all of them: subnormal numbers would cost time
    height = _BAND_ROWS if device.type == "cpu" else new
    bands = []
    for first in range(0, new, height):
        rows = slice(first, min(first + height, new))
        used = np.flatnonzero(matrix[rows].any(axis=0))
        # SciPy's last pixel may fall outside by rounding: a row of zeros, and perhaps a block of its own.
        columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        bands.append((rows, columns, send(torch.from_numpy(matrix[rows, columns]).to(dtype), device)))
    return tuple(bands)


@contextmanager
def _float32_products() -> Iterator[None]:
    """Keep a GPU from rounding factors to the 10 bits of TF32, whatever the network may run in."""
    backend = torch.backends.cuda.matmul
    before, backend.allow_tf32 = backend.allow_tf32, False
    try:
        yield
    finally:
        backend.allow_tf32 = before


def _zoom_axis(batch: Tensor, axis: int, new: int) -> Tensor:
    """Zoom (B, H, W) to `new` pixels along one axis by cubic spline."""
    old = batch.shape[axis]
    if old == new:
        return batch
    result = batch.new_empty([new if i == axis else length for i, length in enumerate(batch.shape)])
    source, target = (batch, result) if axis == 1 else (batch.mT, result.mT)
    for rows, columns, block in _bands(old, new, batch.dtype, batch.device):
        torch.bmm(block.expand(len(batch), -1, -1), source[:, columns], out=target[:, rows])
    return result


def _spline(batch: Tensor, size: tuple[int, int]) -> Tensor:
    """Zoom (B, H, W) to `size` by cubic spline, in its own dtype; whole numbers are rounded, halves away from zero."""
    dtype, (height, width) = batch.dtype, batch.shape[1:]
    if not dtype.is_floating_point:
        values = batch.to(torch.float64)
    else:
        values = batch if dtype == torch.float64 else batch.to(torch.float32)
    rows_first = size[0] * width <= size[1] * height  # the axis that leaves fewer pixels for the other
    with _float32_products():
        for axis in (1, 2) if rows_first else (2, 1):
            values = _zoom_axis(values, axis, size[axis - 1])
    if not dtype.is_floating_point:
        low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        values = torch.trunc(values + torch.copysign(torch.tensor(0.5), values)).clamp(low, high)
    return values.to(dtype)


def _augment(batch: Tensor, draw: Draw) -> Tensor:
    """Apply a draw to (B, H, W)."""
    if draw.kind == "rot_flip":
        return torch.flip(torch.rot90(_movable(batch), draw.k, (1, 2)), (draw.axis + 1,)).view(batch.dtype)
    if draw.kind == "rotate":
        return _gather(batch, _lookup(tuple(batch.shape[1:]), tuple(batch.shape[1:]), draw, batch.device))
    return batch


def _apply(array: Array, operation: Callable[[Tensor], Tensor]) -> Array:
    """Apply an operation on tensors (B, H, W) to a slice or a batch, NumPy or tensor, on the device where it is."""
    if array.ndim not in (2, 3):
        raise ValueError(f"transforms: got an array of shape {tuple(array.shape)}; expected (H, W) or (B, H, W)")
    if isinstance(array, Tensor):
        tensor = array.detach()
    else:
        # torch takes no foreign byte order, no negative strides and, without a warning, nothing read-only.
        tensor = torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    result = operation(tensor[None])[0] if array.ndim == 2 else operation(tensor)
    return result if isinstance(array, Tensor) else result.numpy()


def rot_flip(image: Array, label: Array, k: int, axis: int) -> tuple[Array, Array]:
    """Rotate by k*90 degrees, then flip along `axis` (0: rows, 1: columns); image and label alike.

    Args:
        image: (H, W) or (B, H, W), a NumPy array or a tensor.
        label: of the same shape.
    """
    if axis not in (0, 1):
        raise ValueError(f"rot_flip: axis is {axis}; expected 0 (rows) or 1 (columns)")
    draw = Draw("rot_flip", k=k, axis=axis)
    return _apply(image, lambda batch: _augment(batch, draw)), _apply(label, lambda batch: _augment(batch, draw))


def rotate(image: Array, label: Array, angle: float) -> tuple[Array, Array]:
    """Rotate by `angle` degrees about the center, nearest neighbor, same shape, zeros outside; image and label alike.

    Args:
        image: (H, W) or (B, H, W), a NumPy array or a tensor.
        label: of the same shape.
    """
    draw = Draw("rotate", angle=angle)
    return _apply(image, lambda batch: _augment(batch, draw)), _apply(label, lambda batch: _augment(batch, draw))


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"resize: size is {size}; expected (H, W) above 0")
    return int(size[0]), int(size[1])


def resize_image(image: Array, size: tuple[int, int]) -> Array:
    """Resize (H, W) or (B, H, W) to `size` by cubic spline, `scipy.ndimage.zoom(order=3)`.

    Equal to SciPy to 1e-6 of the intensities in float32 and 1e-12 in float64.
    """
    size = _checked_size(size)
    return image if tuple(image.shape[-2:]) == size else _apply(image, lambda batch: _spline(batch, size))


def resize_label(label: Array, size: tuple[int, int]) -> Array:
    """Resize (H, W) or (B, H, W) to `size` by nearest neighbor, `scipy.ndimage.zoom(order=0)`."""
    size, shape = _checked_size(size), tuple(label.shape[-2:])
    if shape == size:
        return label
    return _apply(label, lambda batch: _gather(batch, _lookup(shape, size, Draw("none"), batch.device)))


def resize(image: Array, label: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Resize an image by cubic spline and its label by nearest neighbor, each (H, W) or (B, H, W)."""
    return resize_image(image, size), resize_label(label, size)


class RandomGenerator:
    """The published training transform: augment at full resolution, then resize.

    With probability `rot_flip` a rotation by k*90 degrees and a flip; else with probability `rotate` a rotation by a
    whole angle from [-20, 20).

    Args:
        size: (H, W) of the result.
        rot_flip, rotate: probabilities; 0.5 each as published.
    """

    def __init__(self, size: tuple[int, int], rot_flip: float = 0.5, rotate: float = 0.5) -> None:
        self.size, self.rot_flip, self.rotate = (size[0], size[1]), rot_flip, rotate

    def draw(self, coins: random.Random | Any = random, integers: np.random.RandomState | Any = np.random) -> Draw:
        """Draw as the published code does: choices from Python's `random`, numbers from NumPy's `randint`.

        Args:
            coins: anything with `random()`; integers: anything with `randint(low, high)`.
        """
        if coins.random() > 1 - self.rot_flip:
            return Draw("rot_flip", k=int(integers.randint(0, 4)), axis=int(integers.randint(0, 2)))
        if coins.random() > 1 - self.rotate:
            return Draw("rotate", angle=int(integers.randint(-20, 20)))
        return Draw("none")

    def __call__(self, image: Array, label: Array, draws: Draw | Sequence[Draw]) -> tuple[Array, Array]:
        """Apply to each slice its own draw, and resize.

        On a CPU the result of a slice does not depend, to the last bit, on the slices beside it.

        Args:
            image, label: a slice (H, W) with its draw, or (B, H, W) with a draw for each, the image also (B, C, H, W);
                NumPy arrays or tensors.
        """
        draws = [draws] if isinstance(draws, Draw) else draws
        if len(draws) != (len(image) if image.ndim > 2 else 1):
            raise ValueError(f"RandomGenerator: got {len(draws)} draws for {tuple(image.shape)}; expected one a slice")
        if isinstance(image, Tensor) and isinstance(label, Tensor) and image.is_cuda and image.ndim > 2:
            return self._together(image, label, draws)
        planes = image.reshape(-1, *image.shape[2:]) if image.ndim == 4 else image  # a color is a slice like any other
        each_plane = [draw for draw in draws for _ in range(len(planes) // len(draws))] if image.ndim > 2 else draws

        def augment_image(batch: Tensor) -> Tensor:
            # Slice by slice, as a quarter turn may change the shape; and on a CPU each then stays in the cache.
            each = zip(batch.split(1), each_plane, strict=True)
            return torch.cat([_spline(_augment(one, draw), self.size) for one, draw in each])

        def augment_label(batch: Tensor) -> Tensor:
            # Both steps are look-ups, so that one in their combined table gives the small result at once.
            each = zip(batch.split(1), draws, strict=True)
            return torch.cat(
                [_gather(one, _lookup(tuple(batch.shape[1:]), self.size, draw, one.device)) for one, draw in each]
            )

        planes = _apply(planes, augment_image)
        return planes.reshape(*image.shape[:-2], *self.size), _apply(label, augment_label)

    def _together(self, image: Tensor, label: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """The same of a batch on a GPU, in as few launches as of one slice."""
        shape, device = (int(label.shape[1]), int(label.shape[2])), label.device
        images = image.reshape(len(image), -1, *shape)
        by_shape: dict[tuple[int, int], list[int]] = {}  # a quarter turn may change it
        for place, draw in enumerate(draws):
            is_turned = draw.kind == "rot_flip" and draw.k % 2 == 1
            by_shape.setdefault((shape[1], shape[0]) if is_turned else shape, []).append(place)
        parts, taken = [], torch.tensor([place for places in by_shape.values() for place in places])
        if len(by_shape) > 1:  # those of a shape one after the other, and back; sent in one copy
            taken, order = send(torch.stack([taken, taken.argsort()]), device)
        for (turned, places), own in zip(by_shape.items(), taken.split([*map(len, by_shape.values())]), strict=True):
            own = images if len(by_shape) == 1 else images.index_select(0, own)
            moved = _pick(own, [_lookup(shape, turned, draws[place], device) for place in places])
            parts.append(_spline(moved.flatten(0, 1), self.size).unflatten(0, moved.shape[:2]))
        labels = _pick(label[:, None], [_lookup(shape, self.size, draw, device) for draw in draws])[:, 0]
        result = parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, order)
        return result.reshape(*image.shape[:-2], *self.size), labels
