"""U-Net (Ronneberger et al., 2015) under the parameter names of the published weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.common import check_even, checked_size, run
from selfreg import TapSpec

_SMALLEST = 32  # four poolings leave 2 x 2: batch norm needs more than one value a channel, also in a batch of one


class DoubleConv(nn.Module):
    """3x3 convolution without bias, batch norm, ReLU, twice; the middle width is the output's unless given."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int | None = None) -> None:
        super().__init__()
        mid_channels = mid_channels or out_channels
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    """Halve the resolution by max pooling, then a double convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Double the resolution, join the skip connection, then a double convolution."""

    def __init__(self, in_channels: int, out_channels: int, bilinear: bool) -> None:
        super().__init__()
        self.up: nn.Module
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(in_channels, out_channels, in_channels // 2)
        else:
            self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
            self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        # An odd size loses a row or column in pooling; it is padded back.
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class OutConv(nn.Module):
    """1x1 convolution to the class logits."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class UNet(nn.Module):
    """U-Net: (B, C, H, W) to logits (B, K, H, W), any size from 32 on, odd and non-square ones too.

    Args:
        num_classes: K, background included.
        img_size: side or (H, W), only checked; the network is fully convolutional.
        in_channels: C.
        bilinear: upsample bilinearly (17.3 M parameters at 9 classes) or by transposed convolutions (31.0 M).
        width: channels of the first stage; 64 as published.
        use_checkpoint: recompute each resolution in the backward pass, which saves memory and costs time.

    Raises:
        ValueError: a size below 32, or an input of another number of channels.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        bilinear: bool = True,
        width: int = 64,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        checked_size("unet", img_size, _SMALLEST, "four poolings")
        check_even("unet", width=width)
        self.in_channels, self.use_checkpoint = in_channels, use_checkpoint
        factor = 2 if bilinear else 1
        self.inc = DoubleConv(in_channels, width)
        self.down1 = Down(width, 2 * width)
        self.down2 = Down(2 * width, 4 * width)
        self.down3 = Down(4 * width, 8 * width)
        self.down4 = Down(8 * width, 16 * width // factor)
        self.up1 = Up(16 * width, 8 * width // factor, bilinear)
        self.up2 = Up(8 * width, 4 * width // factor, bilinear)
        self.up3 = Up(4 * width, 2 * width // factor, bilinear)
        self.up4 = Up(2 * width, width, bilinear)
        self.outc = OutConv(width, num_classes)

    head_prefix = "outc."  # of the parameters that make the classes

    @property
    def tap_spec(self) -> TapSpec:
        """The outputs of down1 to down4 and of up1 to up3; up4's is the final map."""
        return TapSpec(encoder=("down1", "down2", "down3", "down4"), decoder=("up1", "up2", "up3"), final="up4")

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < _SMALLEST // 2:
            raise ValueError(
                f"unet: got an input of shape {tuple(x.shape)}; expected (B, {self.in_channels}, H, W) with sides of "
                f"at least {_SMALLEST // 2}"
            )
        skips = self.encode(x)
        return self.outc(self.decode(skips))

    def encode(self, x: Tensor) -> list[Tensor]:
        """The maps of the five resolutions, fine to coarse."""
        maps = [run(self.inc, x, recompute=self.use_checkpoint)]
        for down in (self.down1, self.down2, self.down3, self.down4):
            maps.append(run(down, maps[-1], recompute=self.use_checkpoint))
        return maps

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Back from the coarsest map to the final one, (B, width, H, W)."""
        x = maps[-1]
        for up, skip in zip((self.up1, self.up2, self.up3, self.up4), maps[-2::-1], strict=True):
            x = run(up, x, skip, recompute=self.use_checkpoint)
        return x
