"""The encoder PVTv2 (Wang et al., 2022, arXiv 2106.13797) under the parameter names of the public weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange
from timm.models.pvt_v2 import Block, OverlapPatchEmbed
from torch import Tensor, nn

from networks.common import check_rates, check_stages, init_weights, run

STRIDE = 32  # pixels a side of one place of the coarsest map

_SR_RATIOS = (8, 4, 2, 1)  # keys and values are reduced by these: from /4, /8, /16 and /32 to /32 everywhere


class PVTBlock(Block):
    """timm's block, with the depthwise convolution one name deeper (`mlp.dwconv.dwconv`), as in the public weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        dwconv = nn.Sequential(OrderedDict(dwconv=self.mlp.dwconv))
        self.mlp.dwconv = dwconv  # type: ignore[assignment]  # another module of the same call


class NormToMap(nn.LayerNorm):
    """Normalize tokens (B, H*W, C) and lay them out as a map (B, C, H, W)."""

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]  # a map needs a size
        return rearrange(super().forward(tokens), "b (h w) c -> b c h w", h=size[0]).contiguous()


class PVTv2(nn.Module):
    """PVTv2: (B, 3, H, W) to four maps, fine to coarse, (B, C_i, H/s, W/s) at s = 4, 8, 16, 32; PVTv2-B2 by default.

    Args:
        embed_dims, depths, num_heads, mlp_ratios: width, blocks, heads and hidden width of each of the four stages.
        drop_rate, attn_drop_rate: dropout of projections and of attention weights.
        drop_path_rate: stochastic depth, rising linearly over the blocks.
        use_checkpoint: recompute blocks in the backward pass.

    H and W are whole multiples of `STRIDE`.

    Raises:
        ValueError: options that are impossible or disagree.
    """

    def __init__(
        self,
        *,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        _check_stages(embed_dims, depths, num_heads, mlp_ratios)
        check_rates("pvt_v2", drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        self.use_checkpoint = use_checkpoint
        path_rates = torch.linspace(0, drop_path_rate, sum(depths)).split(list(depths))
        # All patch embeddings stand before all blocks, in the order of the published names.
        for i, dim in enumerate(embed_dims):
            patch, stride, width = (7, 4, 3) if i == 0 else (3, 2, embed_dims[i - 1])
            self.add_module(f"patch_embed{i + 1}", OverlapPatchEmbed(patch, stride, width, dim))
        for i, dim in enumerate(embed_dims):
            options = {"mlp_ratio": mlp_ratios[i], "sr_ratio": _SR_RATIOS[i], "qkv_bias": True}
            options |= {"proj_drop": drop_rate, "attn_drop": attn_drop_rate}
            blocks = [PVTBlock(dim, num_heads[i], drop_path=rate.item(), **options) for rate in path_rates[i]]
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", NormToMap(dim, eps=1e-6))
        self.apply(partial(init_weights, convolutions=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in range(1, len(_SR_RATIOS) + 1):
            x = getattr(self, f"patch_embed{stage}")(x)  # (B, H/s, W/s, C)
            size = tuple(x.shape[1:3])
            x = x.flatten(1, 2)
            for block in getattr(self, f"block{stage}"):
                x = run(block, x, size, recompute=self.use_checkpoint)
            x = getattr(self, f"norm{stage}")(x, size)
            maps.append(x)
        return maps


def _check_stages(
    embed_dims: Sequence[int], depths: Sequence[int], num_heads: Sequence[int], mlp_ratios: Sequence[float]
) -> None:
    stages = {"embed_dims": embed_dims, "depths": depths, "num_heads": num_heads, "mlp_ratios": mlp_ratios}
    check_stages("pvt_v2", len(_SR_RATIOS), **stages)
    for dim, heads in zip(embed_dims, num_heads, strict=True):
        if dim % 2 or dim % heads:
            raise ValueError(
                f"pvt_v2: embed_dims {tuple(embed_dims)} must be even and multiples of num_heads "
                f"{tuple(num_heads)}: {dim} is not so with {heads}; change one of them"
            )
