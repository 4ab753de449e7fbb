"""The published transforms, one slice at a time, as NumPy and SciPy do them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def rot_flip(array: np.ndarray, k: int, axis: int) -> np.ndarray:
    """A slice (H, W) rotated by k*90 degrees, then flipped."""
    return np.flip(np.rot90(array, k), axis=axis)


def rotate(array: np.ndarray, angle: float) -> np.ndarray:
    """A slice (H, W) rotated by `angle` degrees, nearest neighbour, same shape."""
    return ndimage.rotate(array, angle, order=0, reshape=False)


def resize(array: np.ndarray, size: tuple[int, int], order: int) -> np.ndarray:
    """A slice (H, W) resized to `size`: order 3 for images, 0 for labels."""
    if array.shape == size:
        return array
    return ndimage.zoom(array, (size[0] / array.shape[0], size[1] / array.shape[1]), order=order)


def training_transform(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], kind: str, k: int, axis: int, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """A slice and its label augmented as drawn, both (H, W), then resized."""
    pair = (image, label)
    if kind == "rot_flip":
        pair = tuple(rot_flip(array, k, axis) for array in pair)
    elif kind == "rotate":
        pair = tuple(rotate(array, angle) for array in pair)
    return resize(pair[0], size, 3), resize(pair[1], size, 0)
