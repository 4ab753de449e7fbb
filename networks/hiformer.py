"""HiFormer (Heidari et al., WACV 2023, arXiv 2207.08518) under the published parameter names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from networks.common import (
    check_counts,
    check_even,
    check_image,
    check_rates,
    check_stages,
    check_stem,
    checked_size,
    pad_to,
    round_up,
    run,
)
from networks.hiformer_parts import GROUPS, STRIDES, All2Cross, ConvUpsample, Sum
from networks.positions import fit_bias_tables, fit_embeddings
from networks.pretrained import ImageNetStart
from selfreg import TapSpec

_FINAL_WIDTH = 16
_SMALLEST = STRIDES[-1] + 1  # padded to 32, the last level is 2 x 2: batch norm needs more than one value a channel
_PYRAMID = "All2Cross.pyramid."
# Where the ResNet's layers stand: by their place in `resnet_layers`, the last two by a second name too.
_RESNET = {
    "conv1": ("resnet_layers.0",),
    "bn1": ("resnet_layers.1",),
    "layer1": ("resnet_layers.4",),
    "layer2": ("resnet_layers.5", "p2"),
    "layer3": ("resnet_layers.6", "p3"),
}
_SWIN_MERGINGS = {"layers.0.downsample.": "p1_pm.", "layers.1.downsample.": "p2_pm."}


@dataclass(frozen=True)
class Variant:
    """What tells the published sizes apart: the CNN's block, and depths and MLP width of the fusion's transformers."""

    block: type[BasicBlock] | type[Bottleneck]
    fusion_depths: tuple[int, int]
    fusion_mlp_ratio: float


# The first three stages of ResNet-34 and ResNet-50 have the same depths.
_VARIANTS = {
    "s": Variant(BasicBlock, (1, 1), 1.0),
    "b": Variant(Bottleneck, (1, 2), 2.0),
    "l": Variant(BasicBlock, (1, 4), 4.0),
}


class HiFormer(nn.Module):
    """HiFormer: (B, 1 or 3, H, W) to logits (B, K, H, W); one channel is repeated to three.

    The published code computes its cross-scale fusion (DLF) and throws it away: class tokens, the transformers of both
    levels and their cross attention reach no logit, so that S and L are one function. The decoder reads the pyramid's
    first and last level after position embedding and layer norm. That is the default here; the parameters without
    effect (in B 3.2 M) stay in the state_dict, but are not computed and get no gradient.

    With `use_fusion` the levels go through DLF on their way, as in section 3.2 of the paper. It ends in one class token
    for each level, of which it does not say how it reaches the decoder, which reads patches: here it is added to the
    patches of its level. No published weights were trained so.

    Args:
        num_classes: K, background included.
        img_size: side or (H, W), from 17 on; filled up to multiples of 16 by zeros below and to the right. Where
            windows do not tile a stage (at 224 they do), those at its border are smaller.
        in_channels: 1 or 3; the stem takes either.
        variant: `s` and `l` on a ResNet-34, `b` on a ResNet-50; they differ further in the depth and width of DLF.
        use_fusion: let the fusion reach the logits, see above.
        embed_dim, swin_depths, num_heads, window_size: of the Swin stages, as in Swin-T by default.
        cnn_width, cnn_depths: of the ResNet's first three stages.
        fusion_heads: attention heads of DLF at the first and the last level.
        decoder_width: channels of the upsampling branches.
        drop_rate, drop_path_rate: dropout, and stochastic depth rising linearly over the twelve blocks of Swin-T.
        use_checkpoint: recompute stages in the backward pass, which saves memory and costs time.

    Raises:
        ValueError: a size below 17, or options that disagree.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 1,
        variant: str = "b",
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
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if variant not in _VARIANTS:
            raise ValueError(f"hiformer: variant is {variant!r}; expected one of {', '.join(_VARIANTS)}")
        self.name = f"hiformer_{variant}"
        check_stem(self.name, in_channels)
        stages = {"swin_depths": swin_depths, "num_heads": num_heads, "cnn_depths": cnn_depths}
        check_stages(self.name, len(STRIDES), **stages)
        check_stages(self.name, len(STRIDES[::2]), fusion_heads=fusion_heads)
        check_even(self.name, embed_dim=embed_dim, cnn_width=cnn_width)
        check_counts(self.name, window_size=window_size)
        if decoder_width < GROUPS or decoder_width % GROUPS:
            raise ValueError(
                f"{self.name}: decoder_width is {decoder_width}; expected a multiple of {GROUPS} (group norm)"
            )
        _check_heads(self.name, embed_dim, num_heads, fusion_heads)
        check_rates(self.name, drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        self.use_checkpoint = use_checkpoint
        self.img_size = checked_size(
            self.name, img_size, _SMALLEST, f"a stride of {STRIDES[-1]} with two places a side"
        )
        self.padded_size = round_up(self.img_size, STRIDES[-1])
        published = _VARIANTS[variant]
        self.All2Cross = All2Cross(
            size=self.padded_size,
            dims=[embed_dim * 2**i for i in range(3)],
            fusion_depths=published.fusion_depths,
            fusion_heads=tuple(fusion_heads),
            fusion_mlp_ratio=published.fusion_mlp_ratio,
            drop_rate=drop_rate,
            use_fusion=use_fusion,
            use_checkpoint=use_checkpoint,
            block=published.block,
            cnn_width=cnn_width,
            cnn_depths=cnn_depths,
            depths=swin_depths,
            num_heads=num_heads,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
        )
        self.ConvUp_s = ConvUpsample(4 * embed_dim, decoder_width, doublings=2)
        self.ConvUp_l = ConvUpsample(embed_dim, decoder_width, doublings=0)
        self.merge = Sum()
        self.segmentation_head = nn.Sequential(nn.Conv2d(_FINAL_WIDTH, num_classes, kernel_size=3, padding=1))
        self.conv_pred = nn.Sequential(
            nn.Conv2d(decoder_width, _FINAL_WIDTH, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=STRIDES[0], mode="bilinear", align_corners=False),
        )

    head_prefix = "segmentation_head."  # of the parameters that make the classes

    @property
    def has_unused_parameters(self) -> bool:
        """Whether some get no gradient: those of the fusion, where it is left out."""
        return not self.All2Cross.use_fusion

    @property
    def tap_spec(self) -> TapSpec:
        """Stem and levels of the pyramid, strides 2 to 16; the convolutions of the decoder, strides 16 to 4.

        Every map lies on the way to the logits, also where the fusion is left out. The final map is the upsampled one
        that the segmentation head reads. Maps have the padded size.
        """
        return TapSpec(
            encoder=[f"{_PYRAMID}resnet_layers.2"] + [f"{_PYRAMID}level_{i}" for i in (1, 2, 3)],
            decoder=["ConvUp_s.conv_tower.2", "ConvUp_s.conv_tower.6", "merge"],
            final="conv_pred",
        )

    def from_imagenet(self, state: Mapping[str, Tensor]) -> ImageNetStart | None:
        """Our names for the tensors of torchvision's ResNet or of a Swin classifier, or None where `state` is neither.

        The published start has both; each file fills its own part of the pyramid. Swin's patch mergings become those
        between the levels.
        """
        if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
            start = {name: value for key, value in state.items() for name in _resnet_names(key)}
            if not start.keys() <= self.state_dict().keys():
                return None  # of a deeper one, whose later blocks would be left out
            return ImageNetStart(
                start,
                whole=tuple(f"{_PYRAMID}{part}." for part in ("resnet_layers", "p2", "p3")),
            )
        if "patch_embed.proj.weight" in state and "layers.0.blocks.0.norm1.weight" in state:
            if any(key.startswith("layers_up.") for key in state):
                return None  # a whole Swin-UNet
            return ImageNetStart(
                {_swin_name(key): value for key, value in state.items()},
                whole=tuple(f"{_PYRAMID}{part}." for part in ("swin_transformer", "p1_pm", "p2_pm")),
            )
        return None

    def fit_positions(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `state` knows of positions, bicubically at ours; the rest as it is.

        Position embeddings of another image size, from a square grid, and tables of relative positions of another
        window.
        """
        grids = {f"All2Cross.pos_embed.{i}": grid for i, grid in enumerate(self.All2Cross.grids)}
        return fit_bias_tables(self, fit_embeddings(state, grids, extra=1))

    def forward(self, x: Tensor) -> Tensor:
        check_image(self.name, x, self.img_size)
        x = pad_to(x, self.padded_size).expand(-1, 3, -1, -1)
        logits = self.decode(*self.All2Cross(x))
        return logits[:, :, : self.img_size[0], : self.img_size[1]]

    def decode(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """The maps of stride 4 and 16 to logits of the padded size."""
        coarse = run(self.ConvUp_s, coarse, recompute=self.use_checkpoint)
        fine = run(self.ConvUp_l, fine, recompute=self.use_checkpoint)
        return self.segmentation_head(self.conv_pred(self.merge(coarse, fine)))


def _check_heads(network: str, embed_dim: int, num_heads: Sequence[int], fusion_heads: Sequence[int]) -> None:
    dims = [embed_dim * 2**i for i in range(len(STRIDES))]
    for option, heads, widths in (("num_heads", num_heads, dims), ("fusion_heads", fusion_heads, dims[::2])):
        if any(width % count for width, count in zip(widths, heads, strict=True)):
            raise ValueError(
                f"{network}: the widths {widths} cannot be divided among {option} {tuple(heads)}; "
                f"change embed_dim or {option}"
            )


def _resnet_names(key: str) -> list[str]:
    layer, _, rest = key.partition(".")
    return [f"{_PYRAMID}{name}.{rest}" for name in _RESNET.get(layer, ())]


def _swin_name(key: str) -> str:
    for theirs, ours in _SWIN_MERGINGS.items():
        if key.startswith(theirs):
            return _PYRAMID + key.replace(theirs, ours)
    return f"{_PYRAMID}swin_transformer.{key}"


hiformer_s = partial(HiFormer, variant="s")
hiformer_b = partial(HiFormer, variant="b")
hiformer_l = partial(HiFormer, variant="l")
