"""The parts of HiFormer: its CNN and Swin pyramid, its double-level fusion and its upsampling branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from timm.layers import trunc_normal_
from timm.models.crossvit import MultiScaleBlock
from timm.models.resnet import BasicBlock, Bottleneck, downsample_conv
from torch import Tensor, nn

from networks.layers import BilinearUpsample, Checkpointed, init_conv, init_linear
from networks.swin_unet import PatchMerging

STRIDES = (4, 8, 16)  # of the three levels
GROUPS = 32  # of the decoder's group norms


def resnet_stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    """A stage of torchvision's ResNet; its first block changes resolution and width."""
    out_channels = width * block.expansion
    changes = stride != 1 or in_channels != out_channels
    shortcut = downsample_conv(in_channels, out_channels, kernel_size=1, stride=stride) if changes else None
    first = block(in_channels, width, stride, shortcut)
    return nn.Sequential(first, *(block(out_channels, width) for _ in range(depth - 1)))


class Pyramid(Checkpointed):
    """A ResNet and Swin stages side by side: (B, 3, H, W) to the maps of the first and the last level.

    At each of the strides 4, 8 and 16 the CNN's map, brought to the transformer's width, is added to the tokens. The
    transformer takes the CNN's first map, then each level's sum, merged 2x2.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        *,
        block: type[BasicBlock] | type[Bottleneck],
        cnn_width: int,
        cnn_depths: Sequence[int],
        dims: Sequence[int],
    ) -> None:
        super().__init__()
        widths = [cnn_width * 2**i for i in range(3)]
        channels = [cnn_width] + [width * block.expansion for width in widths]
        # Of Swin-T; the CNN replaces its patch embedding.
        self.swin_transformer = nn.ModuleDict({"layers": nn.ModuleList(stages)})
        self.resnet_layers = nn.Sequential(
            nn.Conv2d(3, cnn_width, kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(cnn_width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            *(resnet_stage(block, channels[i], widths[i], cnn_depths[i], stride=1 if i == 0 else 2) for i in range(3)),
        )
        self.p1_ch = nn.Conv2d(channels[1], dims[0], kernel_size=1)
        self.p1_pm = PatchMerging(dims[0])
        self.norm_1 = nn.LayerNorm(dims[0])
        # The published state_dict holds the last two ResNet stages under two names each.
        self.p2 = self.resnet_layers[5]
        self.p2_ch = nn.Conv2d(channels[2], dims[1], kernel_size=1)
        self.p2_pm = PatchMerging(dims[1])
        self.p3 = self.resnet_layers[6]
        self.p3_ch = nn.Conv2d(channels[3], dims[2], kernel_size=1)
        self.norm_2 = nn.LayerNorm(dims[2])
        # Each level from (B, H, W, C) to a map, as modules, so that they can be tapped.
        self.level_1, self.level_2, self.level_3 = (Rearrange("b h w c -> b c h w") for _ in STRIDES)
        self.resnet_layers.apply(init_conv)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stages = [*self.swin_transformer["layers"].children()]
        x = self.run(self.resnet_layers[:3], x)
        x = self.run(self.resnet_layers[3:5], x)
        tokens = self.p1_ch(x).movedim(1, -1)
        fine = self.level_1(tokens + stages[0](tokens))
        x = self.run(self.p2, x)
        middle = self.level_2(self.p2_ch(x).movedim(1, -1) + stages[1](self.p1_pm(fine.movedim(1, -1))))
        x = self.run(self.p3, x)
        coarse = self.level_3(self.p3_ch(x).movedim(1, -1) + stages[2](self.p2_pm(middle.movedim(1, -1))))
        return fine, coarse


class All2Cross(Checkpointed):
    """The pyramid and the double-level fusion (DLF): (B, 3, H, W) to the maps of stride 4 and of stride 16.

    Position embeddings are added to each level and it is normalized; with `use_fusion` both levels go through DLF
    between the two. See `HiFormer` for what that means, and timm's `MultiScaleBlock` for the options of `fusion`.
    """

    def __init__(
        self, pyramid: Pyramid, *, size: tuple[int, int], dims: tuple[int, int], use_fusion: bool, **fusion: Any
    ) -> None:
        super().__init__()
        self.use_fusion = use_fusion
        self.grids = [(size[0] // stride, size[1] // stride) for stride in (STRIDES[0], STRIDES[-1])]
        self.pyramid = pyramid
        self.pos_embed = nn.ParameterList(
            trunc_normal_(torch.empty(1, 1 + rows * columns, dim), std=0.02)
            for (rows, columns), dim in zip(self.grids, dims, strict=True)
        )
        patches = tuple(rows * columns for rows, columns in self.grids)
        self.blocks = nn.ModuleList([MultiScaleBlock(dim=dims, patches=patches, qkv_bias=True, **fusion)])
        self.norm = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [rearrange(level, "b c h w -> b (h w) c") for level in self.pyramid(x)]
        if self.use_fusion:
            levels = self.fuse(levels)
        else:
            levels = [level + position[:, 1:] for level, position in zip(levels, self.pos_embed, strict=True)]
        return [
            rearrange(norm(level), "b (h w) c -> b c h w", h=grid[0])
            for norm, level, grid in zip(self.norm, levels, self.grids, strict=True)
        ]

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        """Double-level fusion of the patches (B, N, C) of both levels; the class tokens end in their patches."""
        norms = (self.pyramid.norm_1, self.pyramid.norm_2)
        summaries = [norm(level).mean(dim=1, keepdim=True) for norm, level in zip(norms, levels, strict=True)]
        tokens = [
            torch.cat([summary, level], dim=1) + position
            for summary, level, position in zip(summaries, levels, self.pos_embed, strict=True)
        ]
        for block in self.blocks:
            tokens = self.run(block, tokens)
        return [level[:, 1:] + level[:, :1] for level in tokens]


class ConvUpsample(nn.Module):
    """(B, C, H, W) to (B, width, 2^n H, 2^n W): n times a 3x3 convolution, group norm, ReLU and bilinear x2.

    With n = 0 it is the convolution, group norm and ReLU alone.
    """

    def __init__(self, in_channels: int, width: int, doublings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(max(doublings, 1)):
            layers += [
                nn.Conv2d(width if i else in_channels, width, kernel_size=3, padding=1, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.ReLU(inplace=True),
            ]
            if doublings:
                layers.append(BilinearUpsample(2, align_corners=False))
        self.conv_tower = nn.Sequential(*layers)
        self.convs_level = self.conv_tower  # the published state_dict holds the tower under two names

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_tower(x)
