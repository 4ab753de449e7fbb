"""CASCADE's decoder (Rahman & Marculescu, WACV 2023): attention gates, channel and spatial attention, convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.layers import Checkpointed, conv_bn_relu, named


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU, twice."""
    return named(conv=conv_bn_relu(in_channels, out_channels, out_channels, bias=True))


def up_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Double the resolution by nearest neighbor, then 3x3 convolution, batch norm and ReLU."""
    return named(up=nn.Sequential(nn.Upsample(scale_factor=2), *conv_bn_relu(in_channels, out_channels, bias=True)))


class AttentionGate(nn.Module):
    """Weight a skip connection, pixel by pixel, by how it agrees with the decoder's map (Oktay et al., 2018)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.W_g = nn.Sequential(nn.Conv2d(channels, width, kernel_size=1), nn.BatchNorm2d(width))
        self.W_x = nn.Sequential(nn.Conv2d(channels, width, kernel_size=1), nn.BatchNorm2d(width))
        self.psi = nn.Sequential(nn.Conv2d(width, 1, kernel_size=1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        return skip * self.psi(F.relu(self.W_g(gate) + self.W_x(skip)))


class ChannelAttention(nn.Module):
    """Weight channels by their means and maxima (Woo et al., 2018)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.fc1 = nn.Conv2d(channels, hidden, kernel_size=1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2)
        mean, largest = pixels.mean(dim=2), pixels.max(dim=2).values  # max, not amax: one pixel gets the gradient
        return x * torch.sigmoid(self._score(mean) + self._score(largest))

    def _score(self, channels: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(channels[:, :, None, None])))


class SpatialAttention(nn.Module):
    """Weight pixels by the mean and the maximum of their channels (Woo et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = x.mean(dim=1, keepdim=True), x.max(dim=1, keepdim=True).values
        return x * torch.sigmoid(self.conv1(torch.cat([mean, largest], dim=1)))


class CascadeDecoder(Checkpointed):
    """Attention gates on the skips, then channel and spatial attention and convolutions (CAM) at four resolutions.

    Args:
        channels: of the encoder's maps, coarse to fine; those of the decoder's maps are the same.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        c4, c3, c2, c1 = channels
        self.Conv_1x1 = nn.Conv2d(c4, c4, kernel_size=1)
        self.ConvBlock4 = conv_block(c4, c4)
        for i, (coarser, width, finer) in zip((3, 2, 1), ((c4, c3, c2), (c3, c2, c1), (c2, c1, c1 // 2)), strict=True):
            self.add_module(f"Up{i}", up_conv(coarser, width))
            self.add_module(f"AG{i}", AttentionGate(width, finer))
            self.add_module(f"ConvBlock{i}", conv_block(2 * width, width))
        for i, width in zip((4, 3, 2, 1), (c4, 2 * c3, 2 * c2, 2 * c1), strict=True):
            self.add_module(f"CA{i}", ChannelAttention(width))
        self.SA = SpatialAttention()  # one for all resolutions

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> list[Tensor]:
        """The coarsest map and the skips, coarse to fine, to four maps, coarse to fine."""
        maps = [self._attend(self.Conv_1x1(x), 4)]
        for i, skip in zip((3, 2, 1), skips, strict=True):
            x = self.run(self.get_submodule(f"Up{i}"), maps[-1])
            skip = self.run(self.get_submodule(f"AG{i}"), x, skip)
            maps.append(self._attend(torch.cat([skip, x], dim=1), i))
        return maps

    def _attend(self, x: Tensor, i: int) -> Tensor:
        for part in (self.get_submodule(f"CA{i}"), self.SA, self.get_submodule(f"ConvBlock{i}")):
            x = self.run(part, x)
        return x
