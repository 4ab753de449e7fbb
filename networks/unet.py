"""U-Net (Ronneberger et al., 2015) under the parameter names of the published weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.base import Network
from networks.layers import BilinearUpsample, conv_bn_relu, named
from networks.options import check_multiple
from selfreg import TapSpec

_STRIDE = 16  # of the four poolings


def double_conv(in_channels: int, out_channels: int, mid_channels: int | None = None) -> nn.Sequential:
    """Convolution, batch norm and ReLU, twice; the middle width is the output's unless given."""
    return named(double_conv=conv_bn_relu(in_channels, mid_channels or out_channels, out_channels))


def down(in_channels: int, out_channels: int) -> nn.Sequential:
    """Halve the resolution by max pooling, then a double convolution."""
    return named(maxpool_conv=nn.Sequential(nn.MaxPool2d(2), double_conv(in_channels, out_channels)))


class Up(nn.Module):
    """Double the resolution, concatenate the skip connection, then a double convolution."""

    def __init__(self, in_channels: int, out_channels: int, bilinear: bool) -> None:
        super().__init__()
        self.up: nn.Module
        if bilinear:
            self.up = BilinearUpsample(2, align_corners=True)
            self.conv = double_conv(in_channels, out_channels, in_channels // 2)
        else:
            self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
            self.conv = double_conv(in_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        # An odd size loses a row or column in pooling; it is padded back.
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(Network):
    """U-Net: (B, C, H, W) to logits (B, K, H, W), any size from 32 on, odd and non-square ones too.

    Args, beside those of `networks.build_network`:
        bilinear: upsample bilinearly (17.3 M parameters at 9 classes) or by transposed convolutions (31.0 M).
        width: channels of the first stage; 64 as published.
    """

    name = "unet"
    head_prefix = "outc."
    tap_spec = TapSpec(encoder=("down1", "down2", "down3", "down4"), decoder=("up1", "up2", "up3"), final="up4")
    any_size = True

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        bilinear: bool = True,
        width: int = 64,
    ) -> None:
        # Nothing is padded: training needs 2 x 2 at the bottom (batch norm), inference 1 x 1.
        reason = "four poolings"
        super().__init__(img_size, in_channels, stride=1, min_size=2 * _STRIDE, reason=reason)
        self.channels = (in_channels,)
        self.min_size = _STRIDE
        check_multiple(self.name, 2, width=width)
        factor = 2 if bilinear else 1
        self.inc = double_conv(in_channels, width)
        self.down1 = down(width, 2 * width)
        self.down2 = down(2 * width, 4 * width)
        self.down3 = down(4 * width, 8 * width)
        self.down4 = down(8 * width, 16 * width // factor)
        self.up1 = Up(16 * width, 8 * width // factor, bilinear)
        self.up2 = Up(8 * width, 4 * width // factor, bilinear)
        self.up3 = Up(4 * width, 2 * width // factor, bilinear)
        self.up4 = Up(2 * width, width, bilinear)
        self.outc = named(conv=nn.Conv2d(width, num_classes, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.run(self.inc, self.pad(x))]
        for stage in (self.down1, self.down2, self.down3, self.down4):
            skips.append(self.run(stage, skips[-1]))
        x = skips.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            x = self.run(up, x, skips.pop())
        return self.outc(x)
