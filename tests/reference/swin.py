"""Swin-UNet as published (arXiv 2105.05537): every window copied, every attention matrix written out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Maps = list[list[Tensor]]


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B * windows, window * window, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window * window, channels)


def from_windows(windows: Tensor, window: int, side: int) -> Tensor:
    """(B * windows, window * window, C) to (B, side, side, C)."""
    channels = windows.shape[-1]
    x = windows.view(-1, side // window, side // window, window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side, side, channels)


def relative_positions(window: int) -> Tensor:
    """For every pair of cells of a window the row of the bias table, (window^2, window^2)."""
    cells = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    apart = cells[:, None] - cells[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """-100 between cells that only the shift has brought together, (windows, window^2, window^2)."""
    regions = torch.zeros(1, side, side, 1)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(bands):
        for j, columns in enumerate(bands):
            regions[:, rows, columns] = 3 * i + j
    cells = to_windows(regions, window).squeeze(-1)
    return torch.where(cells[:, :, None] == cells[:, None, :], 0.0, -100.0)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Leave out the branch of whole samples, and scale up the others."""
    if not training or rate == 0:
        return x
    kept = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - rate)
    return x * kept / (1 - rate)


class WindowAttention(nn.Module):
    """Multi-head attention among the cells of each window, (B * windows, N, C)."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        count, cells, dim = x.shape
        qkv = self.qkv(x).reshape(count, cells, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attention = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(cells, cells, -1)
        attention = attention + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            windows = len(mask)
            attention = attention.view(count // windows, windows, self.heads, cells, cells)
            attention = (attention + mask.unsqueeze(1).unsqueeze(0)).view(-1, self.heads, cells, cells)
        attention = attention.softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(count, cells, dim))


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.fc2 = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention in (shifted) windows and an MLP, each with its residual; maps (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, ratio: float, rate: float = 0.0) -> None:
        super().__init__()
        self.window, self.shift, self.rate = window, shift, rate
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, ratio)
        self.register_buffer("attn_mask", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + drop_path(self.attend(self.norm1(x)), self.rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.rate, self.training)

    def attend(self, x: Tensor) -> Tensor:
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = from_windows(self.attn(to_windows(x, self.window), self.attn_mask), self.window, x.shape[1])
        return torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2)) if self.shift else x


class PatchEmbed(nn.Module):
    """(B, 3, H, W) to tokens of `patch` x `patch` pixels."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Half the side, twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)))


class PatchExpand(nn.Module):
    """`scale` times the side; `width` times the channels spread over the new cells."""

    def __init__(self, dim: int, scale: int, width: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim, width * dim, bias=False)
        self.norm = nn.LayerNorm(width * dim // scale**2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        batch, side, _, dim = x.shape
        x = x.view(batch, side, side, self.scale, self.scale, dim // self.scale**2)
        x = x.permute(0, 1, 3, 2, 4, 5).contiguous()
        return self.norm(x.view(batch, side * self.scale, side * self.scale, -1))


class Stage(nn.Module):
    """The blocks of one resolution, then the change to the next one, where there is one."""

    def __init__(
        self, blocks: Sequence[Block], *, downsample: nn.Module | None = None, upsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The map of the next resolution, and every block's feature (B, C, H, W)."""
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x.permute(0, 3, 1, 2))
        rescale = self.downsample or self.upsample
        return (x if rescale is None else rescale(x)), features


class SwinTransformerSys(nn.Module):
    """The U of Swin stages: (B, 3, side, side) to logits, encoder and decoder features, and the final map."""

    def __init__(
        self,
        num_classes: int,
        img_size: int,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        patch_size: int,
        mlp_ratio: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        stages = len(depths)
        dims = [embed_dim * 2**i for i in range(stages)]
        rates = torch.linspace(0, drop_path_rate, sum(depths)).tolist()

        def blocks(i: int) -> list[Block]:
            side, made = img_size // patch_size // 2**i, []
            for j in range(depths[i]):
                # A map of one window has nowhere to shift to.
                shift = window_size // 2 if j % 2 and side > window_size else 0
                rate = rates[sum(depths[:i]) + j]
                made.append(Block(dims[i], num_heads[i], min(side, window_size), shift, mlp_ratio, rate))
                made[-1].attn_mask = shift_mask(side, window_size, shift) if shift else None
            return made

        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.layers = nn.ModuleList()
        for i in range(stages):
            self.layers.append(Stage(blocks(i), downsample=PatchMerging(dims[i]) if i < stages - 1 else None))
        self.norm = nn.LayerNorm(dims[-1])
        self.layers_up = nn.ModuleList([PatchExpand(dims[-1], 2, 2)])
        self.concat_back_dim = nn.ModuleList([nn.Identity()])
        for i in range(stages - 2, -1, -1):
            self.layers_up.append(Stage(blocks(i), upsample=PatchExpand(dims[i], 2, 2) if i > 0 else None))
            self.concat_back_dim.append(nn.Linear(2 * dims[i], dims[i]))
        self.norm_up = nn.LayerNorm(embed_dim)
        self.up = PatchExpand(embed_dim, patch_size, patch_size**2)
        self.output = nn.Conv2d(embed_dim, num_classes, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Maps, Maps, Tensor]:
        x = self.patch_embed(x)
        skips, encoder, decoder = [], [], []
        for layer in self.layers:
            skips.append(x)
            x, features = layer(x)
            encoder.append(features)
        x = self.layers_up[0](self.norm(x))
        for i in range(1, len(self.layers_up)):
            x = self.concat_back_dim[i](torch.cat([x, skips[-1 - i]], dim=-1))
            x, features = self.layers_up[i](x)
            decoder.append(features)
        final = self.up(self.norm_up(x)).permute(0, 3, 1, 2)
        return self.output(final), encoder, decoder, final


class SwinUnet(nn.Module):
    """(B, 1 or 3, side, side) to logits in eval mode, to (logits, encoder, decoder, final map) in train mode.

    Parameters carry the names of `networks.swin_unet`, so its `state_dict` loads; square images, bias in qkv and no
    dropout, as published.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int = 224,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        self.swin_unet = SwinTransformerSys(
            num_classes, img_size, embed_dim, depths, num_heads, window_size, patch_size, mlp_ratio, drop_path_rate
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Maps, Maps, Tensor]:
        if x.shape[1] == 1:
            x = x.repeat(1, 3, 1, 1)
        logits, encoder, decoder, final = self.swin_unet(x)
        return (logits, encoder, decoder, final) if self.training else logits


def bands(side: int, window: int, shift: int) -> list[slice]:
    """Cut a side into windows of which the second begins at `shift`; the first and the last may be smaller."""
    borders = [0, *range(shift or window, side, window), side]
    return [slice(*pair) for pair in itertools.pairwise(borders)]


class PartialWindowBlock(Block):
    """A block on maps of any size: attention in one window after the other, nothing padded or rolled.

    The windows are cut from the corner, or half a window from it, and end at the map's border. A side within one window
    is not shifted. The bias table is that of a whole window.
    """

    def attend(self, x: Tensor) -> Tensor:
        rows, columns = (bands(side, self.window, self.shift if side > self.window else 0) for side in x.shape[1:3])
        attended = torch.empty_like(x)
        for band in rows:
            for column in columns:
                attended[:, band, column] = self.attend_all(x[:, band, column])
        return attended

    def attend_all(self, x: Tensor) -> Tensor:
        """Attention among all cells of (B, h, w, C)."""
        batch, height, width, dim = x.shape
        cells = [(i, j) for i in range(height) for j in range(width)]
        row = [[(i - k + self.window - 1, j - m + self.window - 1) for k, m in cells] for i, j in cells]
        apart = torch.tensor([[down * (2 * self.window - 1) + right for down, right in one] for one in row])
        qkv = self.attn.qkv(x).view(batch, len(cells), 3, self.attn.heads, dim // self.attn.heads)
        q, k, v = qkv.unbind(2)
        heads = []
        for head in range(self.attn.heads):
            score = q[:, :, head] @ k[:, :, head].mT * self.attn.scale
            score = score + self.attn.relative_position_bias_table[apart, head]
            heads.append(score.softmax(dim=-1) @ v[:, :, head])
        return self.attn.proj(torch.cat(heads, dim=-1)).view(batch, height, width, dim)
