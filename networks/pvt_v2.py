"""The encoder PVTv2 (Wang et al., 2022, arXiv 2106.13797) under the parameter names of the public weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from timm.models.pvt_v2 import Block, OverlapPatchEmbed
from torch import Tensor, nn

from networks.layers import Checkpointed, init_conv, init_linear, named
from networks.options import check_divides, check_multiple, check_stages

STRIDE = 32  # of the coarsest map

_SR_RATIOS = (8, 4, 2, 1)  # keys and values are reduced by these: from /4, /8, /16 and /32 to /32 everywhere


class NormToMap(nn.LayerNorm):
    """Normalize tokens (B, H, W, C) and give them as a map (B, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return rearrange(super().forward(input), "b h w c -> b c h w").contiguous()


class PVTv2(Checkpointed):
    """PVTv2: (B, 3, H, W) to four maps, fine to coarse, (B, C_i, H/s, W/s) at s = 4, 8, 16, 32.

    Args:
        embed_dims, depths, num_heads, mlp_ratios: width, blocks, heads and hidden width of each of the four stages.
        drop_rate, attn_drop_rate: dropout of projections and of attention weights.
        drop_path_rate: stochastic depth, rising linearly over the blocks.

    H and W are whole multiples of `STRIDE`.
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
    ) -> None:
        super().__init__()
        check_stages("pvt_v2", len(_SR_RATIOS), embed_dims=embed_dims, depths=depths, mlp_ratios=mlp_ratios)
        check_multiple("pvt_v2", 2, embed_dims=embed_dims)
        check_divides("pvt_v2", "num_heads", num_heads, "embed_dims", embed_dims)
        self.embed_dims = embed_dims
        path_rates = torch.linspace(0, drop_path_rate, sum(depths)).split(list(depths))
        # All patch embeddings stand before all blocks, in the order of the published names.
        for i, dim in enumerate(embed_dims):
            patch, stride, width = (7, 4, 3) if i == 0 else (3, 2, embed_dims[i - 1])
            self.add_module(f"patch_embed{i + 1}", OverlapPatchEmbed(patch, stride, width, dim))
        for i, dim in enumerate(embed_dims):
            blocks = nn.ModuleList()
            for rate in path_rates[i].tolist():
                block = Block(
                    dim,
                    num_heads[i],
                    mlp_ratio=mlp_ratios[i],
                    sr_ratio=_SR_RATIOS[i],
                    qkv_bias=True,
                    proj_drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=rate,
                )
                # One name deeper than in timm, as in the public weights: `mlp.dwconv.dwconv`.
                block.mlp.add_module("dwconv", named(dwconv=block.mlp.dwconv))
                blocks.append(block)
            self.add_module(f"block{i + 1}", blocks)
            self.add_module(f"norm{i + 1}", NormToMap(dim, eps=1e-6))
        for module in self.modules():
            init_linear(module)
            init_conv(module)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in range(1, len(_SR_RATIOS) + 1):
            x = getattr(self, f"patch_embed{stage}")(x)  # (B, H/s, W/s, C)
            size = tuple(x.shape[1:3])
            x = x.flatten(1, 2)
            for block in getattr(self, f"block{stage}"):
                x = self.run(block, x, size)
            x = getattr(self, f"norm{stage}")(x.unflatten(1, size))
            maps.append(x)
        return maps
