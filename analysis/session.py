"""What both analysis commands begin with: the network, its layers and its cases, from the command line."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import utils
from analysis.layers import Layer, LayerMaps, named_layers
from configs.config import size_of
from datasets.base import Volume
from engine.distributed import Ranks
from evaluation.inference import find_trained, find_volumes, load_network

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """A trained network in eval mode on its device, and its cases; `layers` are those of --layers, maybe none."""

    cfg: Any
    weights: Path
    device: torch.device
    network: nn.Module
    layers: list[Layer]
    volumes: Sequence[Volume]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the network's input in pixels."""
        return size_of(self.cfg)

    def described(self) -> dict[str, Any]:
        """What the numbers are of, for their file."""
        return {
            "checkpoint": str(self.weights),
            "dataset": self.cfg.DATA.DATASET,
            "network": self.cfg.MODEL.TYPE,
            "img_size": list(self.size),
        }


def open_session(args: argparse.Namespace) -> Session:
    """The network and the cases that a command line names, all of it checked before anything is written.

    Raises:
        ValueError, OSError: something that it names is not there or cannot be used.
    """
    utils.check_writable(Path(args.output), "--output")
    trained = find_trained(args)
    cfg = trained.cfg
    if cfg.TEST.INFERENCE == "slide":
        _log.warning("TEST.INFERENCE is slide: here, every slice is resized to the network's size all the same")
    device = utils.select_device(cfg.GPU_ID, cfg.N_GPU)
    utils.seed_everything(cfg.SEED, cfg.DETERMINISTIC)
    utils.select_precision("float32", device)
    utils.keep_freed_memory()
    network = load_network(trained, device)
    layers = named_layers(network, args.layers)
    if layers:
        check_layers(network, layers, (1, cfg.MODEL.IN_CHANNELS, *size_of(cfg)))
    return Session(cfg, trained.weights, device, network, layers, find_volumes(cfg, args.input, Ranks()))


@torch.inference_mode()
def check_layers(network: nn.Module, layers: Sequence[Layer], shape: Sequence[int]) -> None:
    """See in one pass, of an empty image (1, C, H, W), that every layer gives a map.

    Raises:
        ValueError: one is not there, does not run or gives no map.
    """
    if not all(layer.name for layer in layers):
        raise ValueError("--layers: a name is empty; expected those of modules, or places such as encoder[0][0]")
    try:
        _, maps = LayerMaps(network, layers)(torch.zeros(*shape, device=next(network.parameters()).device))
    except ValueError as error:
        raise ValueError(f"--layers: {str(error).removeprefix('FeatureTap: ')}") from error
    for layer, feature in zip(layers, maps, strict=True):
        if len(feature) != 1:  # windows, or heads, in the place of the batch
            raise ValueError(f"--layers: {layer} gave {len(feature)} maps for one image; expected one, name another")
