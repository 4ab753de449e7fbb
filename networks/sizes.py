"""Sizes of images and windows: what a caller may say, the error that names what fits, and how a tensor is made to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

_LARGEST_WINDOW = 256  # a table of more is no table: an expanded view may claim any number of rows


def as_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """A side or (H, W) as (H, W) in pixels.

    Raises:
        ValueError: anything but one or two whole numbers above 0.
    """
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
        raise ValueError(f"img_size is {img_size!r}; expected a side or (H, W), whole numbers above 0")
    return size


def nearest_size(side: int, fits: Callable[[int], bool], limit: int = 4096) -> int:
    """The side nearest to `side` that fits, the larger of two equally near ones."""
    return next(
        (
            candidate
            for gap in range(limit)
            for candidate in (side + gap, side - gap)
            if candidate > 0 and fits(candidate)
        ),
        side,
    )


def size_error(network: str, size: tuple[int, int], why: str, nearest: tuple[int, int]) -> ValueError:
    """The refusal of a size, with the size that works."""

    def text(size: tuple[int, int]) -> str:
        return str(size[0]) if size[0] == size[1] else f"{size[0]} {size[1]}"

    return ValueError(
        f"{network}: img_size {text(size)} does not fit {why}; "
        f"the nearest that does is {text(nearest)} (--img_size {text(nearest)})"
    )


def round_up(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The smallest (H, W) of whole multiples that holds `size`."""
    return tuple(-(-side // multiple) * multiple for side in size)


def pad_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) with zeros below and to the right up to `size`; the very same tensor where it has that size."""
    rows, columns = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


def resize_bias_table(table: Tensor, window: tuple[int, int]) -> Tensor:
    """A table of biases at relative positions, ((2w-1)^2, heads), bicubically at those within `window` (Swin's way).

    The very same tensor where it has that size already, or is no table of a square window.
    """
    size = tuple(2 * side - 1 for side in window)
    side = math.isqrt(len(table)) if table.ndim == 2 and table.numel() else 0
    odd_square = side % 2 == 1 and side**2 == len(table)
    if len(table) == math.prod(size) or not odd_square or side > 2 * _LARGEST_WINDOW - 1:
        return table
    grid = rearrange(table.double(), "(h w) heads -> 1 heads h w", h=side)
    grid = F.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    return rearrange(grid, "1 heads h w -> (h w) heads").to(table.dtype)
