"""The layers that are looked at: those that the regulariser reads, or others by name, and their maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from networks.base import round_up
from selfreg import FeatureTap, TapSpec

_NARROW = 22  # letters


class Layer(NamedTuple):
    """A feature map of a network: `label` says its place, as `encoder[1][0]`, `name` the module that carries it."""

    label: str
    name: str
    is_final: bool = False  # the map that the output convolution reads, of which `name` may be the reader

    def __str__(self) -> str:
        return self.label if self.label == self.name else f"{self.label} {self.name}"


def short_name(layer: Layer) -> str:
    """The name of a layer's module for a narrow place: its last parts, as many as fit."""
    parts = layer.name.split(".")
    while len(parts) > 1 and len(".".join(parts)) > _NARROW:
        parts.pop(0)
    short = ".".join(parts)[-_NARROW:]
    return short if short == layer.name else f"\N{HORIZONTAL ELLIPSIS}{short}"


def regularised_layers(network: nn.Module) -> list[Layer]:
    """Every map that the network's `tap_spec` names: encoder fine to coarse, decoder coarse to fine, the final one."""
    return [layer for stage in _stages(network.tap_spec) for layer in stage]


def stage_layers(network: nn.Module) -> list[Layer]:
    """The last block of every encoder and decoder stage, and the final map."""
    return [stage[-1] for stage in _stages(network.tap_spec)]


def named_layers(network: nn.Module, names: Sequence[str]) -> list[Layer]:
    """Layers by their modules' names or by their places, each once, in the order given."""
    known = regularised_layers(network)
    by_name = {layer.name: layer for layer in known if not layer.is_final} | {layer.label: layer for layer in known}
    if network.tap_spec.final_side == "output":
        by_name[known[-1].name] = known[-1]
    return [by_name.get(name, Layer(name, name)) for name in dict.fromkeys(names)]


def _stages(spec: TapSpec) -> list[list[Layer]]:
    parts = (("encoder", spec.encoder), ("decoder", spec.decoder))
    stages = [
        [Layer(f"{part}[{k}][{b}]", name) for b, name in enumerate(stage)]
        for part, stages in parts
        for k, stage in enumerate(stages)
    ]
    return [*stages, [Layer("final", spec.final, is_final=True)]]


class LayerMaps:
    """Call a network and get the maps of layers beside its logits: `LayerMaps(network, layers)(x) -> (logits, maps)`.

    The maps are (B, C, H, W), in the order of the layers, at the sizes that the network has inside, padding included.

    Raises:
        ValueError: a layer that the network does not have (close names are given); or, when called, one that did not
            run, ran more than once, or gave no map.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer]) -> None:
        self.network, self.layers = network, layers
        own = network.tap_spec
        # All in one stage, channels as they come: in a network whose blocks have them last, not every layer has.
        self._names = [layer.name for layer in layers if not layer.is_final] or [own.students()[0]]
        stage = [self._names]
        self._tap = FeatureTap(network, TapSpec(stage, stage, own.final, own.final_side))

    def __call__(self, x: Tensor) -> tuple[Tensor | Sequence[Tensor], list[Tensor]]:
        """Run the network once; returns what it returns, and the maps of this pass."""
        logits, features = self._tap(x)
        maps = dict(zip(self._names, features.encoder[0], strict=True))
        return logits, [
            features.final if layer.is_final else channels_first(self.network, layer, maps[layer.name], x.shape[-2:])
            for layer in self.layers
        ]


def padded_size(network: nn.Module, size: Sequence[int]) -> tuple[int, int]:
    """(H, W) that an image of `size` has inside a network, which pads below and to the right."""
    return round_up(tuple(size), getattr(network, "stride", 1))


def channels_first(network: nn.Module, layer: Layer, feature: Tensor, size: Sequence[int]) -> Tensor:
    """What a layer gave for an image of `size` as (B, C, H, W).

    In a network whose blocks have their channels last, so have other modules whose sides then fit the image's.
    """
    spec = network.tap_spec
    if layer.is_final or not spec.channels_last:
        return feature
    if layer.name in spec.students():
        return feature.movedim(-1, 1)
    whole = padded_size(network, size)
    first, last = (_misfit(space, whole) for space in (feature.shape[2:], feature.shape[1:3]))
    return feature if first < last else feature.movedim(-1, 1)


def _misfit(space: Sequence[int], image: Sequence[int]) -> float:
    """How far the sides of a map are from the proportions of the image; 0 where they are the same."""
    return abs(math.log(space[0] * image[1] / (space[1] * image[0])))
