"""Layers of a network, the regularized ones or others by name, and their feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from networks.base import round_up
from selfreg import FeatureTap, TapSpec
from utils import sum_heads


class Layer(NamedTuple):
    """A feature map of a network: `label` is its place, as `encoder[1][0]`, `name` the module that carries it."""

    label: str
    name: str
    is_final: bool = False  # the map that the output convolution reads, of which `name` may be the reader

    @property
    def short_name(self) -> str:
        """The end of the module's name, for a narrow place."""
        end = self.name[-22:]
        return end if end == self.name else f"...{end.partition('.')[2] or end}"

    def __str__(self) -> str:
        return self.label if self.label == self.name else f"{self.label} {self.name}"


def regularized_stages(network: nn.Module) -> list[list[Layer]]:
    """The layers that the network's `tap_spec` names: encoder fine to coarse, decoder coarse to fine, the final one."""
    spec = FeatureTap(network).spec
    stages = [
        [Layer(f"{part}[{k}][{b}]", name) for b, name in enumerate(stage)]
        for part, stages in (("encoder", spec.encoder), ("decoder", spec.decoder))
        for k, stage in enumerate(stages)
    ]
    return [*stages, [Layer("final", spec.final, is_final=True)]]


def named_layers(network: nn.Module, names: Sequence[str]) -> list[Layer]:
    """Layers by the names of their modules or by their places, each once, in the order given."""
    if "" in names:
        raise ValueError("a name is empty; expected those of modules, or places such as encoder[0][0]")
    *blocks, final = (layer for stage in regularized_stages(network) for layer in stage)
    known = {layer.name: layer for layer in blocks} | {layer.label: layer for layer in (*blocks, final)}
    if FeatureTap(network).spec.final_side == "output":
        known[final.name] = final
    return list(dict.fromkeys(known.get(name, Layer(name, name)) for name in names))


def layer_maps(network: nn.Module, layers: Sequence[Layer], images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits for images (B, C, H, W), of several heads the sum, and what each layer gave for them.

    Raises:
        ValueError: the network has no such layer (close names are given), or it did not give one map for each image.
    """
    for module in network.modules():
        if "inplace" in vars(module):
            vars(module)["inplace"] = False  # the next layer would overwrite what a layer gave
    spec = FeatureTap(network).spec
    names = [layer.name for layer in layers if not layer.is_final]
    # All in one stage, channels as they come: where blocks have them last, other modules may not.
    stage = [names or spec.encoder[0]]
    logits, features = FeatureTap(network, TapSpec(stage, stage, spec.final, spec.final_side))(images)
    blocks = iter(features.encoder[0])
    maps = [features.final if layer.is_final else next(blocks) for layer in layers]
    for layer, feature in zip(layers, maps, strict=True):
        if len(feature) != len(images):  # windows, or heads, in the place of the batch
            raise ValueError(f"{layer} gave {len(feature)} maps for one image; expected one, name another")
    return sum_heads(logits), maps


def padded_size(network: nn.Module, size: Sequence[int]) -> tuple[int, int]:
    """(H, W) that an image of `size` has inside a network, which pads below and to the right."""
    return round_up((size[0], size[1]), getattr(network, "stride", 1))


def channels_first(network: nn.Module, layer: Layer, feature: Tensor, size: Sequence[int]) -> Tensor:
    """What a layer gave for an image of `size`, as (B, C, h, w).

    Where a network's blocks have their channels last, so have other modules whose sides then fit the image's better.
    """
    if layer.is_final or not FeatureTap(network).spec.channels_last:
        return feature
    height, width = padded_size(network, size)
    first, last = (abs(math.log(h * width / (w * height))) for h, w in (feature.shape[2:], feature.shape[1:3]))
    is_block = layer.label != layer.name
    return feature if first < last and not is_block else feature.movedim(-1, 1)
