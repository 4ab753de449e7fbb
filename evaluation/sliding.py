"""Sliding-window inference with Gaussian weights, as MONAI and nnU-Net do it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# As in MONAI: the corners of a window count at least a thousandth of its center, so that no pixel is divided by 0.
_MIN_WEIGHT = 1e-3


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixel of each window along an axis: every (1 - overlap) * window pixels, the last flush with the end."""
    last = max(length - window, 0)
    return [*range(0, last, max(1, int(window * (1 - overlap)))), last]


def gaussian_weights(window: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Weight of each pixel of a window, (h, w): a Gaussian of sigma = side / 8, 1 at the center."""
    rows, columns = (
        torch.exp(-0.5 * ((torch.arange(side, device=device) - (side - 1) / 2) / (side / 8)) ** 2) for side in window
    )
    return torch.outer(rows, columns).clamp_min(_MIN_WEIGHT)


def sliding_window_logits(
    forward: Callable[[Tensor], Tensor], images: Tensor, *, window: tuple[int, int], overlap: float, batch_size: int
) -> Tensor:
    """Logits of images of any size: the mean over the windows that cover a pixel, weighted by `gaussian_weights`.

    `forward` takes windows (n, C, *window) to logits (n, K, *window), `batch_size` of them at most, those of all images
    (B, C, H, W) at one place together; `overlap` is in [0, 1). An image that fits into one window gets the logits of
    `forward` bit for bit; a side smaller than the window is zero-padded, evenly before and after.
    """
    height, width = images.shape[2:]
    down, across = max(window[0] - height, 0), max(window[1] - width, 0)
    top, left = down // 2, across // 2
    images = F.pad(images, (left, across - left, top, down - top))
    inside = (..., slice(top, top + height), slice(left, left + width))
    rows, columns = (window_starts(*sides, overlap) for sides in zip(images.shape[2:], window, strict=True))
    places = [(..., slice(y, y + window[0]), slice(x, x + window[1])) for y in rows for x in columns]
    if len(places) == 1:
        return forward(images)[inside]
    weights = gaussian_weights(window, images.device)
    total, total_weight = images.new_zeros(0), images.new_zeros(images.shape[2:])
    at_once = max(1, batch_size // len(images))
    for first in range(0, len(places), at_once):
        group = places[first : first + at_once]
        logits = forward(torch.cat([images[place] for place in group])).float()
        if first == 0:  # the number of classes is known
            total = logits.new_zeros(len(images), logits.shape[1], *images.shape[2:])
        for place, one in zip(group, logits.split(len(images)), strict=True):
            total[place] += one * weights
            total_weight[place] += weights
    return total.div_(total_weight)[inside]
