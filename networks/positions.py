"""What networks learn of positions, at another image size or window than it was learned at."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

_LARGEST_SIDE = 512  # of a square of positions; more is no such table: an expanded view may claim any number of them


def resize_positions(positions: Tensor, grid: tuple[int, int], *, extra: int = 0) -> Tensor:
    """Embeddings (1, extra + n*n, C) of a square of places, bicubically at the places of another grid.

    The first `extra`, of class tokens, stay as they are. The very same tensor where it has that grid already, or is
    of no square or of a single place, which says nothing of others and then does not fit.
    """
    count = positions.shape[1] - extra if positions.ndim == 3 else 0
    side = math.isqrt(max(0, count))
    if side**2 != count or not 1 < side <= _LARGEST_SIDE or grid == (side, side):
        return positions
    square = rearrange(positions[:, extra:].double(), "b (h w) c -> b c h w", h=side)
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    resized = rearrange(resized, "b c h w -> b (h w) c").to(positions.dtype)
    return torch.cat([positions[:, :extra], resized], dim=1)


def resize_bias_table(table: Tensor, window: tuple[int, int]) -> Tensor:
    """A table of biases at relative positions, ((2w-1)^2, heads), bicubically at those within `window` (Swin's way).

    The very same tensor where it has that size already, or is no table of a square window of two or more.
    """
    size = (2 * window[0] - 1, 2 * window[1] - 1)
    side = math.isqrt(len(table)) if table.ndim == 2 else 0
    if side % 2 == 0 or side > _LARGEST_SIDE or side**2 != len(table) or len(table) == math.prod(size):
        return table
    return resize_positions(table[None], size)[0]


def fit_bias_tables(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state`, by the network's names, with the tables of another window at those of its window attention."""
    fitted = dict(state)
    for name, module in network.named_modules():
        key = f"{name}.relative_position_bias_table"
        if isinstance(module, WindowAttention) and key in state:
            fitted[key] = resize_bias_table(state[key], module.window_size)
    return fitted


def fit_embeddings(
    state: Mapping[str, Tensor], grids: Mapping[str, tuple[int, int]], *, extra: int = 0
) -> dict[str, Tensor]:
    """`state` with the position embeddings that `grids` names at its grids; as many places stay as they are."""
    fitted = dict(state)
    for key, grid in grids.items():
        if key in state and state[key].ndim == 3 and state[key].shape[1] != extra + math.prod(grid):
            fitted[key] = resize_positions(state[key], grid, extra=extra)
    return fitted
