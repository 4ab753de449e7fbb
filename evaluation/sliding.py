"""Sliding windows: scores of images larger than the network's, each window at the image's own resolution."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

# As in MONAI: a window's corners count a thousandth of its centre, so that every pixel has a weight that divides well.
_LEAST_WEIGHT = 1e-3


def check_overlap(overlap: float | None) -> None:
    """Refuse what is neither None (no sliding windows) nor a share in [0, 1).

    Raises:
        ValueError: it is something else.
    """
    if overlap is not None and not (isinstance(overlap, Real) and 0 <= overlap < 1):
        raise ValueError(
            f"overlap is {overlap!r}; expected a number from 0 to below 1, such as 0.5, or None to zoom each slice"
        )


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side: every (1 - overlap) * window pixels, the last one flush with the end."""
    stride = max(1, int(window * (1 - overlap)))
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def gaussian_weights(window: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """The weight of every pixel of a window, (h, w): a Gaussian of sigma = side / 8 with 1 at the centre."""
    down, right = (
        torch.exp(-0.5 * ((torch.arange(side, device=device) - (side - 1) / 2) / (side / 8)) ** 2) for side in window
    )
    return torch.outer(down, right).clamp_min(_LEAST_WEIGHT)


def sliding_scores(
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    window: tuple[int, int],
    overlap: float,
    batch_size: int,
) -> Tensor:
    """Scores of images of any size: the mean over the windows that hold a pixel, weighted by `gaussian_weights`.

    What is averaged is what `score` returns. Logits are meant: heads are summed as logits too, nothing more is
    computed, and a mean of logits is what MONAI and nnU-Net take. Of images no larger than the window there is one
    window and no mean, so that its scores are those of `score` bit for bit; a smaller side is filled up with zeros, as
    much before as after, and cropped.

    Args:
        score: windows (n, C, *window) to scores (n, K, *window).
        images: (B, C, H, W).
        window: (h, w) of a window in pixels.
        overlap: of neighbouring windows, in [0, 1); see `window_starts`.
        batch_size: windows a call of `score` at most, but all B of one place always go together.

    Returns:
        (B, K, H, W) float32, in the type of `score` where there is one window.
    """
    height, width = images.shape[2:]
    (top, bottom), (left, right) = (_margins(*sides) for sides in zip((height, width), window, strict=True))
    images = F.pad(images, (left, right, top, bottom)) if top or bottom or left or right else images
    inside = (..., slice(top, top + height), slice(left, left + width))
    rows, columns = (window_starts(*sides, overlap) for sides in zip(images.shape[2:], window, strict=True))
    places = [(..., slice(y, y + window[0]), slice(x, x + window[1])) for y in rows for x in columns]
    if len(places) == 1:
        return score(images)[inside]
    weights = gaussian_weights(window, images.device)
    total, weight = None, images.new_zeros(images.shape[2:])
    together = max(1, batch_size // len(images))
    for first in range(0, len(places), together):
        some = places[first : first + together]
        scores = score(torch.cat([images[place] for place in some])).float()
        for place, one in zip(some, scores.split(len(images)), strict=True):
            if total is None:
                total = one.new_zeros(len(images), one.shape[1], *images.shape[2:])
            total[place] += one * weights
            weight[place] += weights
    return total.div_(weight)[inside]


def _margins(length: int, window: int) -> tuple[int, int]:
    """What a side lacks of a window, before it and after it."""
    lacking = max(window - length, 0)
    return lacking // 2, lacking - lacking // 2
