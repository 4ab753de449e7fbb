"""A trained network and its cases as a command line of analysis/ names them, and the files of its results."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import utils
from analysis.layers import Layer, layer_maps, named_layers
from configs.schema import Config
from datasets.base import Volume, Volumes
from datasets.transforms import resize_image
from engine.distributed import Ranks
from evaluation.inference import find_trained, find_volumes, load_network

_log = logging.getLogger(__name__)


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
        text = json.dumps({**source, "img_size": data.img_size, **record}, indent=1) + "\n"
        self.output.mkdir(parents=True, exist_ok=True)
        utils.atomic_write(path["png"], lambda file: figure.savefig(file, format="png"))
        utils.atomic_write(path["npz"], lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
        utils.atomic_write(path["json"], lambda file: file.write_text(text, encoding="utf-8"))
        _log.info("figure: %s", path["png"])


def open_session(args: argparse.Namespace) -> Session:
    """The network and the cases that a command line names, all of it checked before anything is written.

    Raises:
        ValueError, OSError: something that it names is missing or cannot be used.
    """
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
