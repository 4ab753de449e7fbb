"""Augmentation and resizing of slices, equal to SciPy (SPEC section 4)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from scipy import ndimage

Array = TypeVar("Array", np.ndarray, torch.Tensor)

_SPLINE, _NEAREST = 3, 0


def _per_slice(array: Array, operation: Callable[[np.ndarray], np.ndarray]) -> Array:
    """Apply an operation on (H, W) NumPy arrays to a slice or a batch, NumPy or tensor, on whatever device."""
    if array.ndim not in (2, 3):
        raise ValueError(f"transforms: got an array of shape {tuple(array.shape)}; expected (H, W) or (B, H, W)")
    values = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array
    result = operation(values) if values.ndim == 2 else np.stack([operation(one) for one in values])
    if isinstance(array, torch.Tensor):
        return torch.from_numpy(np.ascontiguousarray(result)).to(array.device)
    return result


def rot_flip(image: Array, label: Array, k: int, axis: int) -> tuple[Array, Array]:
    """Rotate by k*90 degrees, then flip along `axis` (0: rows, 1: columns); image and label alike.

    Args:
        image, label: (H, W) or (B, H, W), NumPy arrays or tensors.
    """
    if axis not in (0, 1):
        raise ValueError(f"rot_flip: axis is {axis}; expected 0 (rows) or 1 (columns)")

    def operation(array: np.ndarray) -> np.ndarray:
        return np.flip(np.rot90(array, k), axis=axis).copy()

    return _per_slice(image, operation), _per_slice(label, operation)


def rotate(image: Array, label: Array, angle: float) -> tuple[Array, Array]:
    """Rotate by `angle` degrees about the centre, nearest neighbour, same shape, zeros outside; image and label alike.

    Args:
        image, label: (H, W) or (B, H, W), NumPy arrays or tensors.
    """

    def operation(array: np.ndarray) -> np.ndarray:
        return ndimage.rotate(array, angle, order=_NEAREST, reshape=False)

    return _per_slice(image, operation), _per_slice(label, operation)


def _zoom(array: Array, size: tuple[int, int], order: int) -> Array:
    if min(size) < 1:
        raise ValueError(f"resize: size is {size}; expected (H, W) above 0")
    if tuple(array.shape[-2:]) == tuple(size):
        return array

    def operation(one: np.ndarray) -> np.ndarray:
        return ndimage.zoom(one, (size[0] / one.shape[0], size[1] / one.shape[1]), order=order)

    return _per_slice(array, operation)


def resize_image(image: Array, size: tuple[int, int]) -> Array:
    """Resize (H, W) or (B, H, W) to `size` by cubic spline, `scipy.ndimage.zoom(order=3)`."""
    return _zoom(image, size, _SPLINE)


def resize_label(label: Array, size: tuple[int, int]) -> Array:
    """Resize (H, W) or (B, H, W) to `size` by nearest neighbour, `scipy.ndimage.zoom(order=0)`."""
    return _zoom(label, size, _NEAREST)


def resize(image: Array, label: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Resize an image by cubic spline and its label by nearest neighbour, each (H, W) or (B, H, W)."""
    return resize_image(image, size), resize_label(label, size)


class Draw(NamedTuple):
    """What one sample is to go through: `kind` is "none", "rot_flip" (k, axis) or "rotate" (angle in degrees)."""

    kind: str
    k: int = 0
    axis: int = 0
    angle: int = 0


class RandomGenerator:
    """The published training transform: augment at full resolution, then resize.

    With probability `rot_flip` a rotation by k*90 degrees and a flip; else with probability `rotate` a rotation by a
    whole angle from [-20, 20).

    Args:
        size: (H, W) of the result.
        rot_flip, rotate: probabilities; 0.5 each as published.
    """

    def __init__(self, size: tuple[int, int], rot_flip: float = 0.5, rotate: float = 0.5) -> None:
        self.size, self.rot_flip, self.rotate = tuple(size), rot_flip, rotate

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

    def __call__(self, image: np.ndarray, label: np.ndarray, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Apply a draw to one slice, (H, W) each, and resize."""
        if draw.kind == "rot_flip":
            image, label = rot_flip(image, label, draw.k, draw.axis)
        elif draw.kind == "rotate":
            image, label = rotate(image, label, draw.angle)
        return resize(image, label, self.size)
