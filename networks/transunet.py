"""TransUNet (Chen et al., 2021, arXiv 2102.04306) under the parameter names of the published weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from networks.base import Network
from networks.layers import Checkpointed, conv_bn_relu
from networks.options import check_multiple, check_stages
from networks.pretrained import ImageNetStart
from networks.r50_vit import STRIDE, R50ViT
from selfreg import TapSpec


class DecoderBlock(nn.Module):
    """Double the resolution bilinearly, join the skip where there is one, convolve twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(in_channels + skip_channels, out_channels)
        self.conv2 = conv_bn_relu(out_channels, out_channels)
        self.up = nn.UpsamplingBilinear2d(scale_factor=2)  # corners aligned

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.up(x)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.conv2(self.conv1(x))


class Decoder(Checkpointed):
    """Cascaded upsampler: the map at /16 and the skips at /8, /4 and /2 to the final map at full size."""

    def __init__(
        self, in_channels: int, head_channels: int, skip_channels: Sequence[int], channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.conv_more = conv_bn_relu(in_channels, head_channels)
        widths = zip((head_channels, *channels), (*skip_channels, 0), channels, strict=False)
        self.blocks = nn.ModuleList(DecoderBlock(*width) for width in widths)

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        x = self.run(self.conv_more, x)
        for block, skip in zip(self.blocks, (*skips, None), strict=True):
            x = self.run(block, x, skip)
        return x


class TransUNet(Network):
    """TransUNet: (B, 1 or 3, H, W) to logits (B, K, H, W); one channel is repeated to three.

    Args, beside those of `networks.build_network`:
        head_channels: what the decoder makes of the transformer's map first.
        decoder_channels: of the decoder's four blocks, coarse to fine.
        options: of the encoder, see `R50ViT`.
    """

    name = "transunet"
    head_prefix = "segmentation_head."
    encoder_type = R50ViT
    # The root's map (/2), two residual stages (/4, one row and column short, and /8), the transformer's (/16).
    tap_spec = TapSpec(
        encoder=tuple(f"transformer.{name}" for name in R50ViT.taps),
        decoder=("decoder.blocks.0", "decoder.blocks.1", "decoder.blocks.2"),
        final="decoder.blocks.3",
    )

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        head_channels: int = 512,
        decoder_channels: Sequence[int] = (256, 128, 64, 16),
        **options: Any,
    ) -> None:
        super().__init__(img_size, in_channels, stride=STRIDE)
        check_multiple(self.name, 2, decoder_channels=decoder_channels)
        check_stages(self.name, 4, decoder_channels=decoder_channels)
        self.transformer = R50ViT(size=self.padded_size, **options)
        hidden_size, *skip_channels = self.transformer.channels
        self.decoder = Decoder(hidden_size, head_channels, skip_channels, decoder_channels)
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder_channels[-1], num_classes, kernel_size=3, padding=1))
        self.position_grids = {f"transformer.{R50ViT.positions}": self.transformer.grid}

    def from_imagenet(self, state: Mapping[str, Tensor]) -> ImageNetStart | None:
        """The arrays of Google's R50+ViT-B_16.npz, see `R50ViT.from_imagenet`."""
        return self.transformer.from_imagenet(state, "transformer.")

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.img_size
        bottom, skips = self.transformer(self.to_stem(x))
        return self.segmentation_head(self.decoder(bottom, skips))[:, :, :height, :width]
