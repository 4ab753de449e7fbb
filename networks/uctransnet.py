"""UCTransNet (Wang et al., AAAI 2022, arXiv:2109.04335) under the parameter names of the published weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from networks.base import Network
from networks.layers import Checkpointed, Mlp, named
from networks.options import check_multiple
from selfreg import TapSpec

_STRIDE = 16  # of the four poolings, and the patch size on the finest skip map
_SCALES = (1, 2, 3, 4)  # of the skip maps, fine to coarse, as the published names count them
_LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def _add_scales(module: nn.Module, name: str, parts: Iterable[nn.Module]) -> None:
    """Give a module one part a scale, under the published numbered names."""
    for i, part in zip(_SCALES, parts, strict=True):
        module.add_module(f"{name}{i}", part)


def _scales(module: nn.Module, name: str) -> list[nn.Module]:
    """Those parts, fine to coarse."""
    return [getattr(module, f"{name}{i}") for i in _SCALES]


def conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
    return named(conv=conv, norm=nn.BatchNorm2d(out_channels), relu=nn.ReLU(inplace=True))


def two_convs(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(in_channels, out_channels), conv_norm(out_channels, out_channels))


def down_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Halve the resolution by max pooling, then two convolutions."""
    return named(pool=nn.MaxPool2d(2), nConvs=two_convs(in_channels, out_channels))


class ChannelEmbedding(nn.Module):
    """Cut a skip map (B, C, H, W) into patches and embed each with its position: (B, N, C)."""

    def __init__(self, channels: int, patch_size: int, positions: int, drop_rate: float) -> None:
        super().__init__()
        self.position_embeddings = nn.Parameter(torch.zeros(1, positions, channels))
        self.patch_embeddings = nn.Conv2d(channels, channels, kernel_size=patch_size, stride=patch_size)
        self.dropout = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(rearrange(self.patch_embeddings(x), "b c h w -> b (h w) c") + self.position_embeddings)


class Heads(nn.ModuleList):
    """A linear layer a head, each of the full width: (B, N, C) to (B, heads, N, C)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__(nn.Linear(width, width, bias=False) for _ in range(num_heads))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([head(x) for head in self], dim=1)


class ChannelAttention(nn.Module):
    """The channels of each scale attend to the channels of all scales: four (B, N, C_i) to four of the same shapes."""

    def __init__(self, widths: Sequence[int], num_heads: int, drop_rate: float) -> None:
        super().__init__()
        total = sum(widths)
        _add_scales(self, "query", (Heads(width, num_heads) for width in widths))
        self.key = Heads(total, num_heads)
        self.value = Heads(total, num_heads)
        _add_scales(self, "out", (nn.Linear(width, width, bias=False) for width in widths))
        self.psi = nn.InstanceNorm2d(num_heads)
        self.dropout = nn.Dropout(drop_rate)
        self.scale = total**-0.5

    def forward(self, tokens: Sequence[Tensor], everything: Tensor) -> list[Tensor]:
        key, value = self.key(everything), self.value(everything)  # (B, heads, N, sum of C)
        parts = zip(tokens, _scales(self, "query"), _scales(self, "out"), strict=True)
        return [self.dropout(out(self.attend(query(x), key, value))) for x, query, out in parts]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One scale: query (B, heads, N, C), key and value (B, heads, N, sum of C) to the heads' mean (B, N, C)."""
        scores = self.psi((self.scale * query).transpose(2, 3) @ key)  # (B, heads, C, sum of C)
        context = self.dropout(scores.softmax(dim=-1)) @ value.transpose(2, 3)  # (B, heads, C, N)
        return context.mean(dim=1).transpose(1, 2)


class Block(nn.Module):
    """Attention across the channels of all scales, then an MLP a scale, both on normed tokens and added to them."""

    def __init__(
        self, widths: Sequence[int], num_heads: int, expand_ratio: int, attention_drop_rate: float, drop_rate: float
    ) -> None:
        super().__init__()
        _add_scales(self, "attn_norm", map(_LayerNorm, widths))
        self.attn_norm = _LayerNorm(sum(widths))
        self.channel_attn = ChannelAttention(widths, num_heads, attention_drop_rate)
        _add_scales(self, "ffn_norm", map(_LayerNorm, widths))
        _add_scales(self, "ffn", (Mlp(width, expand_ratio * width, drop_rate) for width in widths))

    def forward(self, *tokens: Tensor) -> list[Tensor]:
        everything = self.attn_norm(torch.cat(tokens, dim=2))
        normed = [norm(x) for norm, x in zip(_scales(self, "attn_norm"), tokens, strict=True)]
        attended = [x + y for x, y in zip(tokens, self.channel_attn(normed, everything), strict=True)]
        parts = zip(attended, _scales(self, "ffn_norm"), _scales(self, "ffn"), strict=True)
        return [x + ffn(norm(x)) for x, norm, ffn in parts]


class Encoder(Checkpointed):
    """The blocks of the transformer, then a norm a scale."""

    def __init__(self, blocks: Sequence[nn.Module], widths: Sequence[int]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(blocks)
        _add_scales(self, "encoder_norm", map(_LayerNorm, widths))

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        for block in self.layer:
            tokens = self.run(block, *tokens)
        return [norm(x) for norm, x in zip(_scales(self, "encoder_norm"), tokens, strict=True)]


class Reconstruct(nn.Module):
    """Tokens (B, N, C) back to the resolution of their skip map, and added to it."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=1)
        self.norm = nn.BatchNorm2d(channels)
        self.scale = scale

    def forward(self, tokens: Tensor, skip: Tensor) -> Tensor:
        x = rearrange(tokens, "b (h w) c -> b c h w", h=skip.shape[2] // self.scale)
        # Repeating pixels before a 1x1 convolution, as published, makes the same map; after it is scale^2 cheaper.
        x = F.interpolate(self.conv(x), scale_factor=self.scale, mode="nearest")
        return skip + F.relu(self.norm(x), inplace=True)


class ChannelTransformer(Checkpointed):
    """Channel-wise cross fusion of the four skip maps, fine to coarse; each keeps its shape."""

    def __init__(self, widths: Sequence[int], positions: int, drop_rate: float, encoder: nn.Module) -> None:
        super().__init__()
        patch_sizes = [_STRIDE // 2**i for i in range(len(widths))]  # one grid for all scales
        embedding = partial(ChannelEmbedding, positions=positions, drop_rate=drop_rate)
        _add_scales(self, "embeddings_", map(embedding, widths, patch_sizes))
        self.encoder = encoder
        _add_scales(self, "reconstruct_", map(Reconstruct, widths, patch_sizes))

    def forward(self, skips: Sequence[Tensor]) -> list[Tensor]:
        tokens = self.encoder([embed(x) for embed, x in zip(_scales(self, "embeddings_"), skips, strict=True)])
        parts = zip(_scales(self, "reconstruct_"), tokens, skips, strict=True)
        return [self.run(reconstruct, x, skip) for reconstruct, x, skip in parts]


class CrossAttention(nn.Module):
    """Channel-wise cross attention: weight the channels of a skip map by its means and the decoder's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp_x = nn.Sequential(nn.Flatten(), nn.Linear(channels, channels))
        self.mlp_g = nn.Sequential(nn.Flatten(), nn.Linear(channels, channels))

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        weight = (self.mlp_x(F.adaptive_avg_pool2d(skip, 1)) + self.mlp_g(F.adaptive_avg_pool2d(gate, 1))) / 2
        return F.relu(skip * weight.sigmoid()[:, :, None, None], inplace=True)


class UpBlock(nn.Module):
    """Double the resolution, concatenate the weighted skip map of as many channels, then two convolutions."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.coatt = CrossAttention(channels)
        self.nConvs = two_convs(2 * channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.nConvs(torch.cat([self.coatt(skip, x), x], dim=1))


class UCTransNet(Network):
    """UCTransNet: (B, 1 or 3, H, W) to logits (B, K, H, W); one channel is repeated to three.

    Args, beside those of `networks.build_network`:
        base_channel: channels of the first stage.
        num_layers, num_heads, expand_ratio: blocks of the transformer, their heads, and the width of their MLPs.
        embeddings_dropout_rate, attention_dropout_rate, dropout_rate: of the embeddings, the attention, the MLPs.
    """

    name = "uctransnet"
    head_prefix = "outc."
    tap_spec = TapSpec(encoder=("down1", "down2", "down3", "down4"), decoder=("up4", "up3", "up2"), final="up1")

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        base_channel: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        expand_ratio: int = 4,
        embeddings_dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.1,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__(img_size, in_channels, stride=_STRIDE)
        check_multiple(self.name, 2, base_channel=base_channel)
        grid = self.padded_size[0] // _STRIDE, self.padded_size[1] // _STRIDE  # of the patches, at all scales
        self.position_grids = {f"mtc.embeddings_{i}.position_embeddings": grid for i in _SCALES}
        widths = [base_channel * 2**i for i in range(len(_SCALES))]
        self.inc = conv_norm(3, widths[0])
        self.down1 = down_block(widths[0], widths[1])
        self.down2 = down_block(widths[1], widths[2])
        self.down3 = down_block(widths[2], widths[3])
        self.down4 = down_block(widths[3], widths[3])
        options = widths, num_heads, expand_ratio, attention_dropout_rate, dropout_rate
        encoder = Encoder([Block(*options) for _ in range(num_layers)], widths)
        self.mtc = ChannelTransformer(widths, math.prod(grid), embeddings_dropout_rate, encoder)
        self.up4 = UpBlock(widths[3], widths[2])
        self.up3 = UpBlock(widths[2], widths[1])
        self.up2 = UpBlock(widths[1], widths[0])
        self.up1 = UpBlock(widths[0], widths[0])
        self.outc = nn.Conv2d(widths[0], num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.img_size
        maps = [self.run(self.inc, self.to_stem(x))]
        for down in (self.down1, self.down2, self.down3, self.down4):
            maps.append(self.run(down, maps[-1]))
        x, skips = maps.pop(), self.mtc(maps)
        for up, skip in zip((self.up4, self.up3, self.up2, self.up1), skips[::-1], strict=True):
            x = self.run(up, x, skip)
        return self.outc(x)[:, :, :height, :width]
