"""PVT-CASCADE and TransCASCADE (Rahman & Marculescu, WACV 2023) under the parameter names of the published weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from networks import pvt_v2, r50_vit
from networks.base import Network
from networks.cascade_decoder import CascadeDecoder
from networks.layers import resize_bilinear
from networks.pretrained import ImageNetStart
from networks.pvt_v2 import PVTv2
from networks.r50_vit import R50ViT
from selfreg import TapSpec

# The decoder's maps of the coarser resolutions, after channel and spatial attention and convolutions.
_DECODER_TAPS = ("decoder.ConvBlock4", "decoder.ConvBlock3", "decoder.ConvBlock2")
_FINAL_TAP = "decoder.ConvBlock1"  # which the last head reads


class _Cascade(Network, ABC):
    """What both networks share: image to three channels, encoder, decoder, and a head for each of its four maps.

    (B, 1 or 3, H, W) to the logits (p1, p2, p3, p4), each (B, K, H, W); prediction sums them. One channel goes through
    the network's own 1-to-3 convolution.

    A subclass sets `align_corners`, `encoder` and `decoder`, and one head for each `head_prefix`, p1 to p4.
    """

    head_prefix: tuple[str, ...]
    align_corners: bool  # when the heads' maps are upsampled; the published networks differ in it
    decoder: CascadeDecoder
    has_unused_parameters = True  # with three channels `conv`, with recreated embeddings the kept ones

    def __init__(self, img_size: int | Sequence[int], in_channels: int, *, stride: int) -> None:
        super().__init__(img_size, in_channels, stride=stride)
        self.conv = nn.Sequential(nn.Conv2d(1, 3, kernel_size=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        images = self.pad(x)
        maps = self.decoder(*self.encode(self.conv(images) if x.shape[1] == 1 else images))
        logits = [self.get_submodule(prefix[:-1])(m) for prefix, m in zip(self.head_prefix, maps, strict=True)]
        full = [resize_bilinear(one, images.shape[2:], self.align_corners) for one in logits]
        return tuple(one[:, :, : x.shape[2], : x.shape[3]] for one in full)

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) to the coarsest map and the skips, coarse to fine."""


class PVTCascade(_Cascade):
    """PVT-CASCADE, for images of any size from 33 x 33 on; see `PVTv2` for the options of its encoder."""

    name = "pvt_cascade"
    encoder_type = PVTv2
    head_prefix = ("out_head1.", "out_head2.", "out_head3.", "out_head4.")
    tap_spec = TapSpec(
        encoder=("backbone.norm1", "backbone.norm2", "backbone.norm3", "backbone.norm4"),  # /4 to /32
        decoder=_DECODER_TAPS,
        final=_FINAL_TAP,
    )
    align_corners = False
    any_size = True

    def __init__(
        self, *, num_classes: int, img_size: int | Sequence[int] = 224, in_channels: int = 1, **options: Any
    ) -> None:
        super().__init__(img_size, in_channels, stride=pvt_v2.STRIDE)
        self.backbone = PVTv2(**options)
        channels = self.backbone.embed_dims[::-1]
        self.decoder = CascadeDecoder(channels)
        for i, width in enumerate(channels, start=1):
            self.add_module(f"out_head{i}", nn.Conv2d(width, num_classes, kernel_size=1))

    def from_imagenet(self, state: Mapping[str, Tensor]) -> ImageNetStart | None:
        """A PVTv2 classifier as deep as our encoder."""
        sources = {f"backbone.{key}": key for key in state if not key.startswith("head.")}
        # Deeper ones (B3 to B5) have all of our names and shapes, but their later blocks would be left out.
        if "patch_embed1.proj.weight" not in state or not sources.keys() <= self.state_dict().keys():
            return None
        return ImageNetStart(sources, required=("backbone.",))

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        *skips, bottom = self.backbone(x)
        return bottom, skips[::-1]


class TransCascade(_Cascade):
    """TransCASCADE.

    Args, beside those of `networks.build_network`:
        recreate_embeddings: as the published code does, draw new patch embeddings (torch's default init, float32,
            the CPU's global generator) and zero position embeddings at every forward, in training and in use; those
            of the state_dict are then neither used nor trained, and the network cannot be exported.
        options: of the encoder, see `R50ViT`.
    """

    name = "trans_cascade"
    encoder_type = R50ViT
    head_prefix = ("segmentation_head1.", "segmentation_head2.", "segmentation_head3.", "segmentation_head4.")
    tap_spec = TapSpec(
        encoder=tuple(f"transformer.{name}" for name in R50ViT.taps),  # /2 to /16
        decoder=_DECODER_TAPS,
        final=_FINAL_TAP,
    )
    align_corners = True

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        recreate_embeddings: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(img_size, in_channels, stride=r50_vit.STRIDE)
        self.recreate_embeddings = recreate_embeddings
        self.transformer = R50ViT(size=self.padded_size, **options)
        self.decoder = CascadeDecoder(self.transformer.channels)
        for i, width in enumerate(self.transformer.channels, start=1):
            self.add_module(f"segmentation_head{i}", nn.Sequential(nn.Conv2d(width, num_classes, kernel_size=1)))
        self.position_grids = {f"transformer.{R50ViT.positions}": self.transformer.grid}

    def from_imagenet(self, state: Mapping[str, Tensor]) -> ImageNetStart | None:
        """The arrays of Google's R50+ViT-B_16.npz, see `R50ViT.from_imagenet`."""
        return self.transformer.from_imagenet(state, "transformer.")

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not self.recreate_embeddings:
            return self.transformer(x)
        return torch.func.functional_call(self.transformer, self._fresh_embeddings(), (x,))

    def _fresh_embeddings(self) -> dict[str, Tensor]:
        """New patch embeddings and zero position embeddings under their names in the encoder."""
        kept = self.transformer.embeddings
        channels = kept.patch_embeddings.in_channels, kept.patch_embeddings.out_channels
        patch = nn.Conv2d(*channels, kernel_size=1, device="cpu", dtype=torch.float32)
        fresh = {f"patch_embeddings.{name}": p.detach() for name, p in patch.named_parameters()}
        fresh["position_embeddings"] = torch.zeros(kept.position_embeddings.shape)
        return {f"embeddings.{name}": value.to(kept.position_embeddings) for name, value in fresh.items()}
