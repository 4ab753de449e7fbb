"""A trained network, its cases and its layers, as a command line of analysis/ names them, and files of the results."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import utils
from configs.schema import Config
from datasets.case import Volume, Volumes
from datasets.transforms import resize_image
from engine.distributed import Ranks
from evaluation.inference import Trained, find_trained, find_volumes, identity, load_network
from networks.base import round_up
from selfreg import FeatureTap, TapSpec

_log = logging.getLogger(__name__)


class Layer(NamedTuple):
    """A feature map of a network: `label` is its place, as `encoder[1][0]`, `name` the module that carries it."""

    label: str
    name: str
    is_final: bool = False  # the map that the output convolution reads, of which `name` may be the reader

    @property
    def short_name(self) -> str:
        """The end of the module's name, for a narrow place."""
        return ".".join(self.name.split(".")[-4:])


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
    *blocks, final = (layer for stage in regularized_stages(network) for layer in stage)
    known = {layer.name: layer for layer in blocks} | {layer.label: layer for layer in (*blocks, final)}
    return list(dict.fromkeys(known.get(name, Layer(name, name)) for name in names))


def layer_maps(network: nn.Module, layers: Sequence[Layer], images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits for images (B, C, H, W), of several heads the sum, and what each layer gave for them."""
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
            raise ValueError(f"{layer.name} gave {len(feature)} maps for one image; expected one, name another")
    return utils.sum_heads(logits), maps


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


@dataclass(frozen=True)
class Session:
    """A trained network in eval mode on its device, and its cases; `layers` are those of --layers, maybe none."""

    config: Config
    weights: Path
    device: torch.device
    network: nn.Module
    layers: list[Layer]
    volumes: Volumes
    output: Path

    def find_volume(self, name: str) -> Volume:
        """The case by its name, the first without one."""
        for place in range(len(self.volumes)):
            if name in ("", (volume := self.volumes[place]).name):
                return volume
        known = f"{len(self.volumes)}; expected one such as {self.volumes[0].name}"
        raise ValueError(f"--case: there is no case {name!r} among {known}")

    def network_input(self, volume: Volume, index: int) -> Tensor:
        """A slice as (1, C, H, W) float32 on the device, resized as `evaluation.predict` does."""
        planes = torch.from_numpy(np.array(volume.image[index : index + 1], dtype=np.float32))
        return resize_image(planes.flatten(0, -3), self.config.data.img_size)[None].to(self.device)

    def write(self, name: str, figure: Figure, arrays: Mapping[str, np.ndarray], record: Mapping[str, object]) -> None:
        """NAME.png, .npz and .json in the output folder; the last is written last: where it is, all are."""
        data, path = self.config.data, {kind: self.output / f"{name}.{kind}" for kind in ("png", "npz", "json")}
        source = {"checkpoint": str(self.weights), "dataset": data.dataset, "network": self.config.model.type}
        of = identity(Trained(self.config, self.weights))
        text = json.dumps({**source, "of": of, "img_size": data.img_size, **record}, indent=1) + "\n"
        self.output.mkdir(parents=True, exist_ok=True)
        utils.atomic_write(path["png"], lambda file: figure.savefig(file, format="png"))
        utils.atomic_write(path["npz"], lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
        utils.write_text(path["json"], text)
        _log.info("figure: %s", path["png"])


def open_session(args: argparse.Namespace) -> Session:
    """The network and the cases that a command line names, all of it checked before anything is written."""
    utils.check_writable(Path(args.output), "--output")
    trained = find_trained(args)
    config = trained.config
    if config.test.window_overlap is not None:
        _log.warning("TEST.INFERENCE is slide: here, every slice is resized to the network's size all the same")
    device = utils.select_device(config.gpu_id, config.n_gpu)
    utils.seed_everything(config.seed, config.deterministic)
    utils.select_precision("float32", device)
    utils.tune_malloc()
    network = load_network(trained, device)
    try:
        layers = named_layers(network, args.layers)
        with torch.inference_mode():
            layer_maps(network, layers, torch.zeros(1, config.model.in_channels, *config.data.img_size, device=device))
    except ValueError as error:
        raise ValueError(f"--layers: {str(error).removeprefix('FeatureTap: ')}") from error
    volumes = find_volumes(config, args.input, Ranks())
    return Session(config, trained.weights, device, network, layers, volumes, Path(args.output))


def spread_slices(volumes: Volumes, count: int) -> list[tuple[int, int]]:
    """`count` slices at most, evenly spread over the labeled ones, or all, as (place of the volume, index)."""
    slices = []
    for place in range(len(volumes)):
        volume = volumes[place]
        labeled = [] if volume.label is None else np.flatnonzero(volume.label.any(axis=(1, 2))).tolist()
        slices += [(place, index) for index in labeled or range(len(volume.image))]
    return [slices[i] for i in np.linspace(0, len(slices) - 1, min(count, len(slices))).round().astype(int)]
