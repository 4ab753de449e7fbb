"""HiFormer (Heidari et al., WACV 2023, arXiv 2207.08518) under the published parameter names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from networks.base import Network
from networks.hiformer_parts import GROUPS, STRIDES, All2Cross, ConvUpsample, Pyramid
from networks.layers import BilinearUpsample
from networks.options import check_divides, check_multiple, check_stages
from networks.pretrained import ImageNetStart
from networks.swin_unet import Stage, swin_blocks
from selfreg import TapSpec

_FINAL_WIDTH = 16
_SWIN_T_BLOCKS = 12  # stochastic depth rises over all of Swin-T, whose last two blocks are not used here
_PYRAMID = "All2Cross.pyramid."
# The ResNet's layers: by their index in `resnet_layers`, the last two by a second name too.
_RESNET = {
    "conv1": ("resnet_layers.0",),
    "bn1": ("resnet_layers.1",),
    "layer1": ("resnet_layers.4",),
    "layer2": ("resnet_layers.5", "p2"),
    "layer3": ("resnet_layers.6", "p3"),
}
_SWIN_MERGINGS = {"layers.0.downsample.": "p1_pm.", "layers.1.downsample.": "p2_pm."}


class HiFormer(Network):
    """HiFormer: (B, 1 or 3, H, W) to logits (B, K, H, W); one channel is repeated to three.

    The published code computes its cross-scale fusion (DLF) and throws it away: class tokens, the transformers of both
    levels and their cross attention reach no logit, so that S and L are one function. The decoder reads the pyramid's
    first and last level after position embedding and layer norm. That is the default here; the parameters without
    effect (in B 3.2 M) stay in the state_dict, but are not computed and get no gradient.

    With `use_fusion` the levels go through DLF on their way, as in section 3.2 of the paper. It ends in one class token
    for each level, of which it does not say how it reaches the decoder, which reads patches: here it is added to the
    patches of its level. No published weights were trained so.

    Args, beside those of `networks.build_network`:
        img_size: side or (H, W), from 17 on; filled up to multiples of 16 by zeros below and to the right. Where
            windows do not tile a stage (at 224 they do), those at its border are smaller.
        use_fusion: let the fusion reach the logits, see above.
        embed_dim, swin_depths, num_heads, window_size: of the Swin stages, as in Swin-T by default.
        cnn_width, cnn_depths: of the ResNet's first three stages.
        fusion_heads: attention heads of DLF at the first and the last level.
        decoder_width: channels of the upsampling branches.
        drop_rate, drop_path_rate: dropout, and stochastic depth rising linearly over the twelve blocks of Swin-T.
    """

    head_prefix = "segmentation_head."
    # Stem and levels of the pyramid, strides 2 to 16; the convolutions of the decoder, strides 16 to 4. The logits
    # depend on every one of them, also without the fusion.
    tap_spec = TapSpec(
        encoder=(f"{_PYRAMID}resnet_layers.2", *(f"{_PYRAMID}level_{i}" for i in (1, 2, 3))),
        decoder=("ConvUp_s.conv_tower.2", "ConvUp_s.conv_tower.6", "merge"),
        final="conv_pred",
    )
    class_tokens = 1
    # What differs between the published sizes: the CNN's block, and depths and MLP width of the fusion's transformers.
    block: type[BasicBlock] | type[Bottleneck]
    fusion_depths: tuple[int, int]
    fusion_mlp_ratio: float

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        use_fusion: bool = False,
        embed_dim: int = 96,
        swin_depths: Sequence[int] = (2, 2, 6),
        num_heads: Sequence[int] = (3, 6, 12),
        window_size: int = 7,
        cnn_width: int = 64,
        cnn_depths: Sequence[int] = (3, 4, 6),
        fusion_heads: Sequence[int] = (6, 12),
        decoder_width: int = 128,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__(img_size, in_channels, stride=STRIDES[-1])
        check_stages(self.name, 3, swin_depths=swin_depths, cnn_depths=cnn_depths)
        check_multiple(self.name, 2, embed_dim=embed_dim, cnn_width=cnn_width)
        check_multiple(self.name, GROUPS, decoder_width=decoder_width)
        dims = [embed_dim * 2**i for i in range(3)]
        ends = dims[0], dims[-1]
        check_divides(self.name, "num_heads", num_heads, "embed_dim", dims)
        check_divides(self.name, "fusion_heads", fusion_heads, "embed_dim", ends)
        self.has_unused_parameters = not use_fusion
        depths = list(swin_depths)
        path_rates = torch.linspace(0, drop_path_rate, max(_SWIN_T_BLOCKS, sum(depths)))[: sum(depths)].split(depths)
        # Always partitioned: the relative position bias fits at any image size.
        options: dict[str, Any] = {"window_size": window_size, "always_partition": True, "proj_drop": drop_rate}
        stages = [
            Stage(swin_blocks(dim, self.padded_size, *stage, **options))
            for dim, *stage in zip(dims, STRIDES, num_heads, path_rates, strict=True)
        ]
        pyramid = Pyramid(stages, block=self.block, cnn_width=cnn_width, cnn_depths=cnn_depths, dims=dims)
        self.All2Cross = All2Cross(
            pyramid,
            size=self.padded_size,
            dims=ends,
            use_fusion=use_fusion,
            depth=(*self.fusion_depths, 0),  # a single cross attention
            num_heads=fusion_heads,
            mlp_ratio=(self.fusion_mlp_ratio, self.fusion_mlp_ratio),
            proj_drop=drop_rate,
            drop_path=[0.0] * max(self.fusion_depths),
        )
        self.position_grids = {f"All2Cross.pos_embed.{i}": grid for i, grid in enumerate(self.All2Cross.grids)}
        self.ConvUp_s = ConvUpsample(4 * embed_dim, decoder_width, doublings=2)
        self.ConvUp_l = ConvUpsample(embed_dim, decoder_width, doublings=0)
        self.merge = nn.Identity()  # a module, so that the sum of both branches can be tapped
        self.segmentation_head = nn.Sequential(nn.Conv2d(_FINAL_WIDTH, num_classes, kernel_size=3, padding=1))
        self.conv_pred = nn.Sequential(
            nn.Conv2d(decoder_width, _FINAL_WIDTH, kernel_size=1),
            nn.ReLU(inplace=True),
            BilinearUpsample(STRIDES[0], align_corners=False),
        )

    def from_imagenet(self, state: Mapping[str, Tensor]) -> ImageNetStart | None:
        """torchvision's ResNet or a Swin classifier; the published start has both.

        Each file fills its own part of the pyramid. Swin's patch mergings become those between the levels.
        """
        if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
            sources: dict[str, str] = {}
            for key in state:
                layer, _, rest = key.partition(".")
                sources |= {f"{_PYRAMID}{name}.{rest}": key for name in _RESNET.get(layer, ())}
            required = ("resnet_layers", "p2", "p3")
            if not sources.keys() <= self.state_dict().keys():
                return None  # of a deeper one, whose later blocks would be left out
        elif "patch_embed.proj.weight" in state and "layers.0.blocks.0.norm1.weight" in state:
            sources = {f"{_PYRAMID}swin_transformer.{key}": key for key in state}
            for theirs, ours in _SWIN_MERGINGS.items():
                sources |= {_PYRAMID + key.replace(theirs, ours): key for key in state if key.startswith(theirs)}
            required = ("swin_transformer", "p1_pm", "p2_pm")
            if any(key.startswith("layers_up.") for key in state):
                return None  # a whole Swin-UNet
        else:
            return None
        return ImageNetStart(sources, required=tuple(f"{_PYRAMID}{part}." for part in required))

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.img_size
        fine, coarse = self.All2Cross(self.to_stem(x))
        coarse = self.run(self.ConvUp_s, coarse)
        fine = self.run(self.ConvUp_l, fine)
        return self.segmentation_head(self.conv_pred(self.merge(coarse + fine)))[:, :, :height, :width]


class HiFormerS(HiFormer):
    """HiFormer-S, on a ResNet-34."""

    name = "hiformer_s"
    block, fusion_depths, fusion_mlp_ratio = BasicBlock, (1, 1), 1.0


class HiFormerB(HiFormer):
    """HiFormer-B, on a ResNet-50, of which the first three stages are as deep as ResNet-34's."""

    name = "hiformer_b"
    block, fusion_depths, fusion_mlp_ratio = Bottleneck, (1, 2), 2.0


class HiFormerL(HiFormer):
    """HiFormer-L, on a ResNet-34."""

    name = "hiformer_l"
    block, fusion_depths, fusion_mlp_ratio = BasicBlock, (1, 4), 4.0
