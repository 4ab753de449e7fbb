"""Swin-UNet (Cao et al., 2021) under the parameter names of the published SelfReg-UNet weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from torch import Tensor, nn

from networks.base import Network
from networks.layers import Checkpointed, init_linear
from networks.options import check_divides, check_multiple, check_stages
from networks.pretrained import ImageNetStart
from selfreg import TapSpec


class PatchMerging(nn.Module):
    """Halve the resolution, double the width: (B, H, W, C) to (B, H/2, W/2, 2C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        # The four neighbors are ordered column by column, as in Swin: (0,0), (1,0), (0,1), (1,1).
        return self.reduction(self.norm(rearrange(x, "b (h p) (w q) c -> b h w (q p c)", p=2, q=2)))


class PatchExpand(nn.Module):
    """Raise the resolution by `scale`: (B, H, W, C) to (B, scale*H, scale*W, width*C/scale^2)."""

    def __init__(self, dim: int, scale: int, width: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim, width * dim, bias=False)
        self.norm = nn.LayerNorm(width * dim // scale**2)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(self.expand(x), "b h w (p q c) -> b (h p) (w q) c", p=self.scale, q=self.scale)
        return self.norm(x)


class Block(SwinTransformerBlock):
    """timm's block on a map (B, H, W, C) that windows need not tile: those at the border are smaller."""

    input_resolution: tuple[int, int]

    def _attn(self, x: Tensor) -> Tensor:
        # timm would pad after the shift, out of step with its mask, and attend to the padding.
        (height, width), (rows, columns) = self.input_resolution, self._padding()
        x = F.pad(x, (0, 0, 0, columns, 0, rows)) if rows or columns else x
        return super()._attn(x)[:, :height, :width]

    def _padding(self) -> list[int]:
        """Rows and columns that the last windows lack."""
        return [-side % window for side, window in zip(self.input_resolution, self.window_size, strict=True)]

    def get_attn_mask(
        self, x: Tensor | None = None, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor | None:
        """-100 between tokens of two windows, or of a window and the padding, (windows, cells, cells); None without."""
        if not any(self.shift_size) and not any(self._padding()):
            return None
        sides = zip(self.input_resolution, self.window_size, self.shift_size, strict=True)
        rows, columns = (_window_index(*side, device=device) for side in sides)
        numbers = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        cells = window_partition(numbers[None], self.window_size).flatten(1, 2)
        apart = (cells[:, :, None] != cells[:, None]).any(dim=-1)
        return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill(apart, -100.0)


def _window_index(length: int, window: int, shift: int, device: torch.device | None) -> Tensor:
    """The window index of every position along a side that is padded to whole windows, then shifted."""
    position = torch.arange(length + -length % window, device=device).roll(-shift)
    return torch.where(position < length, (position - shift) // window, length)


class Stage(Checkpointed):
    """The blocks of one resolution, then the change to the next one, where there is one."""

    def __init__(
        self, blocks: Sequence[nn.Module], downsample: nn.Module | None = None, *, upsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.run(block, x)
        rescale = self.downsample or self.upsample
        return x if rescale is None else rescale(x)


def swin_blocks(
    dim: int, size: tuple[int, int], stride: int, num_heads: int, path_rates: Tensor, window_size: int, **options: Any
) -> list[Block]:
    """The blocks of a stage on images of a size, every second one shifted; `path_rates` are of stochastic depth.

    A side that is no longer than the window is not shifted. With `always_partition` the window, and with it the
    relative position bias, keeps its size on a smaller map; without, it shrinks to the map. See timm's
    `SwinTransformerBlock` for further options.
    """
    grid = size[0] // stride, size[1] // stride
    shifts: Any = 0, tuple(window_size // 2 if side > window_size else 0 for side in grid)
    block = partial(Block, dim, grid, num_heads, window_size=window_size, **options)
    return [block(shift_size=shifts[j % 2], drop_path=rate) for j, rate in enumerate(path_rates.tolist())]


class SwinTransformerSys(nn.Module):
    """Encoder, decoder with skip connections and x`patch_size` head on tokens (B, H, W, C); see `SwinUnet`."""

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: tuple[int, int],
        patch_size: int,
        depths: Sequence[int],
        embed_dim: int = 96,
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        stages = len(depths)
        dims = [embed_dim * 2**i for i in range(stages)]
        check_multiple("swin_unet", 2, embed_dim=embed_dim)
        check_divides("swin_unet", "num_heads", num_heads, "embed_dim", dims)
        strides = [patch_size * 2**i for i in range(stages)]
        sides = [side // stride for side in img_size for stride in strides]
        path_rates = torch.linspace(0, drop_path_rate, sum(depths)).split(list(depths))
        untiled = any(side > window_size and side % window_size for side in sides)
        options = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "proj_drop": drop_rate, "always_partition": untiled}

        def blocks(i: int) -> list[Block]:
            return swin_blocks(dims[i], img_size, strides[i], num_heads[i], path_rates[i], window_size, **options)

        self.patch_embed = PatchEmbed(None, patch_size, 3, embed_dim, nn.LayerNorm, output_fmt="NHWC")
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList()
        for i in range(stages):
            parts = blocks(i), PatchMerging(dims[i]) if i < stages - 1 else None
            self.layers.append(Stage(*parts))
        # The published decoder takes its depths from DEPTHS too; DECODER_DEPTHS of its yaml is read by nothing.
        self.layers_up = nn.ModuleList([PatchExpand(dims[-1], scale=2, width=2)])
        self.concat_back_dim = nn.ModuleList([nn.Identity()])
        for i in reversed(range(stages - 1)):
            upsample = PatchExpand(dims[i], scale=2, width=2) if i > 0 else None
            self.layers_up.append(Stage(blocks(i), upsample=upsample))
            self.concat_back_dim.append(nn.Linear(2 * dims[i], dims[i]))
        self.norm = nn.LayerNorm(dims[-1])
        self.norm_up = nn.LayerNorm(embed_dim)
        self.up = PatchExpand(embed_dim, scale=patch_size, width=patch_size**2)
        self.output = nn.Conv2d(embed_dim, num_classes, kernel_size=1, bias=False)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_drop(self.patch_embed(x))
        skips = []
        for layer in self.layers:
            skips.append(x)
            x = layer(x)
        x = self.layers_up[0](self.norm(x))
        for layer, back, skip in zip(self.layers_up[1:], self.concat_back_dim[1:], skips[-2::-1], strict=True):
            x = layer(back(torch.cat([x, skip], dim=-1)))
        x = self.up(self.norm_up(x))
        return self.output(rearrange(x, "b h w c -> b c h w"))


class SwinUnet(Network):
    """Swin-UNet: (B, 1 or 3, H, W) to logits (B, K, H, W); one channel is repeated to three.

    Args, beside those of `networks.build_network`:
        img_size: side or (H, W), one token at the coarsest stage (32 pixels) or more; filled up to whole ones by zeros
            below and to the right. Where windows do not tile a stage (at 224 they do), those at its border are smaller.
        depths, patch_size, embed_dim, num_heads, window_size, mlp_ratio, qkv_bias: as in Swin-T by default.
        drop_rate, drop_path_rate: dropout, and stochastic depth rising linearly over the encoder's blocks.
    """

    name = "swin_unet"
    head_prefix = "swin_unet.output."
    encoder_type = SwinTransformerSys

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        depths: Sequence[int] = (2, 2, 2, 2),
        patch_size: int = 4,
        **options: Any,
    ) -> None:
        check_stages(self.name, max(len(depths), 2), depths=depths)
        merges = len(depths) - 1
        stride = patch_size * 2**merges
        reason = f"patches of {patch_size} merged {merges} times"
        super().__init__(img_size, in_channels, stride=stride, min_size=stride, reason=reason)
        self.swin_unet = SwinTransformerSys(
            num_classes=num_classes,
            img_size=self.padded_size,
            patch_size=patch_size,
            depths=depths,
            **options,
        )

        def blocks(part: str, i: int, depth: int) -> list[str]:
            """A block's feature is its output after the MLP residual."""
            return [f"swin_unet.{part}.{i}.blocks.{j}" for j in range(depth)]

        self.tap_spec = TapSpec(
            encoder=[blocks("layers", i, depth) for i, depth in enumerate(depths)],
            decoder=[blocks("layers_up", i, depth) for i, depth in enumerate(depths[-2::-1], start=1)],
            final="swin_unet.output",
            final_side="input",
            channels_last=True,
        )

    def from_imagenet(self, state: Mapping[str, Tensor]) -> ImageNetStart | None:
        """A Swin classifier, of which `layers.i` is also copied to `layers_up.(3-i)` of the decoder, as published."""
        stages = {int(key.split(".")[1]) for key in state if re.match(r"layers\.\d+\.blocks\.", key)}
        if not stages or "patch_embed.proj.weight" not in state or any(key.startswith("layers_up.") for key in state):
            return None
        sources = {f"swin_unet.{key}": key for key in state}
        for key in state:
            if re.match(r"layers\.\d+\.", key):
                _, i, rest = key.split(".", 2)
                sources[f"swin_unet.layers_up.{max(stages) - int(i)}.{rest}"] = key
        return ImageNetStart(sources, required=("swin_unet.patch_embed.", "swin_unet.layers."))

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.img_size
        return self.swin_unet(self.to_stem(x))[:, :, :height, :width]
