"""TransUNet (Chen et al., 2021, arXiv 2102.04306) under the parameter names of the published weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from networks.common import check_counts, check_image, check_stem, checked_size, grid_of, pad_to, round_up, run
from networks.pretrained import ImageNetStart
from networks.r50_vit import STRIDE, R50ViT
from selfreg import TapSpec

_SMALLEST = STRIDE + 1  # more than one token a side: norms need more than one value a channel, also in a batch of one


def _conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class DecoderBlock(nn.Module):
    """Double the resolution bilinearly, join the skip where there is one, convolve twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn_relu(in_channels + skip_channels, out_channels)
        self.conv2 = _conv_bn_relu(out_channels, out_channels)
        self.up = nn.UpsamplingBilinear2d(scale_factor=2)  # corners aligned

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.up(x)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.conv2(self.conv1(x))


class Decoder(nn.Module):
    """Cascaded upsampler: the map at /16 and the skips at /8, /4 and /2 to the final map at full size."""

    def __init__(
        self,
        in_channels: int,
        head_channels: int,
        skip_channels: Sequence[int],
        channels: Sequence[int],
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.conv_more = _conv_bn_relu(in_channels, head_channels)
        widths = zip((head_channels, *channels), (*skip_channels, 0), channels, strict=False)
        self.blocks = nn.ModuleList(DecoderBlock(*width) for width in widths)

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        x = run(self.conv_more, x, recompute=self.use_checkpoint)
        for block, skip in zip(self.blocks, (*skips, None), strict=True):
            x = run(block, x, skip, recompute=self.use_checkpoint)
        return x


class TransUNet(nn.Module):
    """TransUNet: (B, 1 or 3, H, W) to logits (B, K, H, W); one channel is repeated to three.

    Args:
        num_classes: K, background included.
        img_size: side or (H, W), each above 16; inside, the image is padded to multiples of 16.
        in_channels: 1 or 3; the stem takes either.
        hidden_size, num_heads, num_layers, mlp_dim, cnn_width, cnn_units, norm_groups: of the encoder, see `R50ViT`.
        head_channels: what the decoder makes of the transformer's map first.
        decoder_channels: of the decoder's four blocks, coarse to fine.
        dropout_rate, attention_dropout_rate: of the transformer, see `R50ViT`.
        use_checkpoint: recompute stages and layers in the backward pass, which saves memory and costs time.

    Raises:
        ValueError: a size that is too small, an input of another shape, or options that are impossible or disagree.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        hidden_size: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        mlp_dim: int = 3072,
        cnn_width: int = 64,
        cnn_units: Sequence[int] = (3, 4, 9),
        norm_groups: int = 32,
        head_channels: int = 512,
        decoder_channels: Sequence[int] = (256, 128, 64, 16),
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        why = f"tokens of {STRIDE} pixels, at least two a side"
        self.img_size = checked_size("transunet", img_size, _SMALLEST, why)
        check_stem("transunet", in_channels)
        _check_decoder(head_channels, decoder_channels)
        self.padded_size = round_up(self.img_size, STRIDE)
        self.transformer = R50ViT(
            grid=grid_of(self.padded_size, STRIDE),
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_layers=num_layers,
            mlp_dim=mlp_dim,
            cnn_width=cnn_width,
            cnn_units=cnn_units,
            norm_groups=norm_groups,
            dropout_rate=dropout_rate,
            attention_dropout_rate=attention_dropout_rate,
            use_checkpoint=use_checkpoint,
        )
        skip_channels = (8 * cnn_width, 4 * cnn_width, cnn_width)
        self.decoder = Decoder(hidden_size, head_channels, skip_channels, decoder_channels, use_checkpoint)
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder_channels[-1], num_classes, kernel_size=3, padding=1))

    head_prefix = "segmentation_head."  # of the parameters that make the classes

    @property
    def tap_spec(self) -> TapSpec:
        """The root's map (/2), two residual stages (/4, one row and column short, and /8), the transformer's (/16)."""
        return TapSpec(
            encoder=tuple(f"transformer.{name}" for name in R50ViT.taps),
            decoder=("decoder.blocks.0", "decoder.blocks.1", "decoder.blocks.2"),
            final="decoder.blocks.3",
        )

    def from_imagenet(self, state: Mapping[str, Tensor]) -> ImageNetStart | None:
        """Our names for the arrays of Google's R50+ViT-B_16.npz, or None where `state` is no such file."""
        return self.transformer.from_imagenet(state, "transformer.")

    def fit_positions(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state` with its position embeddings resized to our grid, bicubically."""
        return self.transformer.fit_positions(state, "transformer.")

    def forward(self, x: Tensor) -> Tensor:
        check_image("transunet", x, self.img_size)
        x = pad_to(x, self.padded_size).expand(-1, 3, -1, -1)
        bottom, skips = self.transformer(x)
        logits = self.segmentation_head(self.decoder(bottom, skips))
        return logits[:, :, : self.img_size[0], : self.img_size[1]]


def _check_decoder(head_channels: int, decoder_channels: Sequence[int]) -> None:
    check_counts("transunet", head_channels=head_channels)
    if len(decoder_channels) != 4 or any(width < 2 or width % 2 for width in decoder_channels):
        raise ValueError(
            f"transunet: decoder_channels is {tuple(decoder_channels)}; expected four even numbers above 0"
        )
