"""PVT-CASCADE and TransCASCADE (Rahman & Marculescu, WACV 2023) under the parameter names of the published weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import pvt_v2, r50_vit
from networks.cascade_decoder import CascadeDecoder
from networks.common import check_image, check_stem, checked_size, grid_of, pad_to, round_up
from networks.pretrained import ImageNetStart
from networks.pvt_v2 import PVTv2
from networks.r50_vit import R50ViT
from selfreg import TapSpec

# What channel and spatial attention and convolutions make of each resolution, coarse to fine.
_DECODER_TAPS = ("decoder.ConvBlock4", "decoder.ConvBlock3", "decoder.ConvBlock2")
_FINAL_TAP = "decoder.ConvBlock1"


class _Cascade(nn.Module):
    """What the two networks share: image to three channels, encoder, decoder, and a head for each of its four maps.

    A subclass sets what is declared below, and fills in encoder, `decoder` and heads.
    """

    network: str
    stride: int  # pixels a side of one place of the coarsest map
    decoder: CascadeDecoder
    align_corners: bool  # when the heads' maps are upsampled; the published networks differ in it
    head_prefix: tuple[str, ...]  # of the parameters that make the classes, in the order p1..p4
    has_unused_parameters = True  # with three channels `conv`, with recreated embeddings the kept ones

    def __init__(self, img_size: int | Sequence[int], in_channels: int) -> None:
        super().__init__()
        check_stem(self.network, in_channels)
        # Two places a side: batch norm needs more than one value, also in a batch of one.
        why = f"a coarsest map of 1/{self.stride} with at least two places a side"
        self.img_size = checked_size(self.network, img_size, self.stride + 1, why)
        self.conv = nn.Sequential(nn.Conv2d(1, 3, kernel_size=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.check(x)
        height, width = x.shape[2:]
        x = pad_to(x, round_up((height, width), self.stride))
        logits = self.segment(self.conv(x) if x.shape[1] == 1 else x)
        return tuple(p[:, :, :height, :width] for p in logits)

    def check(self, x: Tensor) -> None:
        """Refuse what is no image for this network, by a ValueError."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) to the coarsest map and the skips, coarse to fine."""
        raise NotImplementedError

    def segment(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W), whole multiples of the stride, to the logits of the four heads at that size."""
        maps = self.decoder(*self.encode(x))
        heads = [self.get_submodule(prefix[:-1]) for prefix in self.head_prefix]
        return [
            F.interpolate(head(m), size=x.shape[2:], mode="bilinear", align_corners=self.align_corners)
            for head, m in zip(heads, maps, strict=True)
        ]


class PVTCascade(_Cascade):
    """PVT-CASCADE: (B, 1 or 3, H, W) to the logits (p1, p2, p3, p4), each (B, K, H, W); prediction sums them.

    One channel goes through the network's own 1-to-3 convolution. Inside, the image is padded to multiples of 32.

    Args:
        num_classes: K, background included.
        img_size: side or (H, W), each above 32; only checked, the network takes any such size.
        in_channels: 1 or 3; the network takes either.
        embed_dims, depths, num_heads, mlp_ratios: of the encoder's four stages, see `PVTv2`.
        drop_rate, attn_drop_rate, drop_path_rate: of the encoder, see `PVTv2`.
        use_checkpoint: recompute blocks in the backward pass, which saves memory and costs time.

    Raises:
        ValueError: a size that is too small, an input of another shape, or options that are impossible or disagree.
    """

    network = "pvt_cascade"
    stride = pvt_v2.STRIDE
    align_corners = False
    head_prefix = ("out_head1.", "out_head2.", "out_head3.", "out_head4.")

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__(img_size, in_channels)
        self.backbone = PVTv2(
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            mlp_ratios=mlp_ratios,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            use_checkpoint=use_checkpoint,
        )
        channels = embed_dims[::-1]
        self.decoder = CascadeDecoder(channels, use_checkpoint=use_checkpoint)
        for i, width in enumerate(channels, start=1):
            self.add_module(f"out_head{i}", nn.Conv2d(width, num_classes, kernel_size=1))

    @property
    def tap_spec(self) -> TapSpec:
        """The maps of the encoder's four stages (/4 to /32) and of the decoder's; the last head reads the final one."""
        return TapSpec(
            encoder=tuple(f"backbone.norm{i}" for i in (1, 2, 3, 4)), decoder=_DECODER_TAPS, final=_FINAL_TAP
        )

    def from_imagenet(self, state: Mapping[str, Tensor]) -> ImageNetStart | None:
        """Our names for the tensors of a PVTv2 classifier as deep as our encoder, or None where `state` is none."""
        encoder = {f"backbone.{key}": value for key, value in state.items() if not key.startswith("head.")}
        # Deeper ones (B3 to B5) have all of our names and shapes, but their later blocks would be left out.
        if "backbone.patch_embed1.proj.weight" not in encoder or not encoder.keys() <= self.state_dict().keys():
            return None
        return ImageNetStart(encoder, whole=("backbone.",))

    def check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) <= self.stride:
            raise ValueError(
                f"{self.network}: got an input of shape {tuple(x.shape)}; expected (B, 1 or 3, H, W) with sides of at "
                f"least {self.stride + 1}"
            )

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        *skips, bottom = self.backbone(x)
        return bottom, skips[::-1]


class TransCascade(_Cascade):
    """TransCASCADE: (B, 1 or 3, H, W) to the logits (p1, p2, p3, p4), each (B, K, H, W); prediction sums them.

    One channel goes through the network's own 1-to-3 convolution. Inside, the image is padded to multiples of 16.

    Args:
        num_classes: K, background included.
        img_size: side or (H, W), each above 16.
        in_channels: 1 or 3; the network takes either.
        hidden_size, num_heads, num_layers, mlp_dim, cnn_width, cnn_units, norm_groups: of the encoder, see `R50ViT`.
        dropout_rate, attention_dropout_rate: of the transformer, see `R50ViT`.
        recreate_embeddings: as the published code does, draw new patch embeddings (torch's initialisation, float32,
            the CPU's global generator) and zero position embeddings at every forward, in training and in use; those
            of the state_dict are then neither used nor trained, and the network cannot be exported.
        use_checkpoint: recompute stages and layers in the backward pass, which saves memory and costs time.

    Raises:
        ValueError: a size that is too small, an input of another shape, or options that are impossible or disagree.
    """

    network = "trans_cascade"
    stride = r50_vit.STRIDE
    align_corners = True
    head_prefix = ("segmentation_head1.", "segmentation_head2.", "segmentation_head3.", "segmentation_head4.")

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
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        recreate_embeddings: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__(img_size, in_channels)
        self.recreate_embeddings = recreate_embeddings
        self.transformer = R50ViT(
            grid=grid_of(round_up(self.img_size, self.stride), self.stride),
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
        channels = (hidden_size, 8 * cnn_width, 4 * cnn_width, cnn_width)
        self.decoder = CascadeDecoder(channels, use_checkpoint=use_checkpoint)
        for i, width in enumerate(channels, start=1):
            self.add_module(f"segmentation_head{i}", nn.Sequential(nn.Conv2d(width, num_classes, kernel_size=1)))

    @property
    def tap_spec(self) -> TapSpec:
        """The encoder's maps (/2, /4, /8, /16) and the decoder's; the last head reads the final one."""
        return TapSpec(
            encoder=tuple(f"transformer.{name}" for name in R50ViT.taps), decoder=_DECODER_TAPS, final=_FINAL_TAP
        )

    def from_imagenet(self, state: Mapping[str, Tensor]) -> ImageNetStart | None:
        """Our names for the arrays of Google's R50+ViT-B_16.npz, or None where `state` is no such file."""
        return self.transformer.from_imagenet(state, "transformer.")

    def fit_positions(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state` with its position embeddings resized to our grid, bicubically."""
        return self.transformer.fit_positions(state, "transformer.")

    def check(self, x: Tensor) -> None:
        check_image(self.network, x, self.img_size)

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not self.recreate_embeddings:
            return self.transformer(x)
        return torch.func.functional_call(self.transformer, self._fresh_embeddings(), (x,))

    def _fresh_embeddings(self) -> dict[str, Tensor]:
        """New patch embeddings and zero position embeddings under their names in the encoder."""
        kept = self.transformer.embeddings
        patch = nn.Conv2d(
            kept.patch_embeddings.in_channels,
            kept.patch_embeddings.out_channels,
            kernel_size=1,
            device="cpu",
            dtype=torch.float32,
        )
        return {
            "embeddings.patch_embeddings.weight": patch.weight.detach().to(kept.patch_embeddings.weight),
            "embeddings.patch_embeddings.bias": cast(Tensor, patch.bias).detach().to(kept.patch_embeddings.bias),
            "embeddings.position_embeddings": torch.zeros_like(kept.position_embeddings),
        }
