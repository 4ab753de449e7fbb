"""The networks by name: `build_network("swin_unet", num_classes=9)`; what each declares stands in `base.Network`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

from networks.base import Network
from networks.cascade import PVTCascade, TransCascade
from networks.hiformer import HiFormerB, HiFormerL, HiFormerS
from networks.layers import Checkpointed
from networks.options import check_range
from networks.pretrained import find_weights, load_weights
from networks.swin_unet import SwinUnet
from networks.transunet import TransUNet
from networks.uctransnet import UCTransNet
from networks.unet import UNet

__all__ = ["Network", "build_network", "find_weights", "list_networks", "list_options", "load_weights"]

_CLASSES = (HiFormerB, HiFormerL, HiFormerS, PVTCascade, SwinUnet, TransCascade, TransUNet, UCTransNet, UNet)
_NETWORKS: dict[str, Any] = {network.name: network for network in _CLASSES}
_NOT_OPTIONS = ("num_classes", "img_size", "in_channels")


def list_networks() -> list[str]:
    """Every name that `build_network` takes."""
    return sorted(_NETWORKS)


def list_options(name: str) -> dict[str, object]:
    """The further options of a network and of its encoder, with their defaults."""
    makers = [_NETWORKS[name], *filter(None, [_NETWORKS[name].encoder_type])]
    parameters = [p for maker in makers for p in inspect.signature(maker).parameters.values()]
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in _NOT_OPTIONS}


def build_network(
    name: str, *, num_classes: int, img_size: int | Sequence[int] = 224, in_channels: int = 1, **options: object
) -> Network:
    """Build a network with random weights: (B, C, H, W) to logits (B, num_classes, H, W) in train and eval mode.

    One under deep supervision gives a tuple of several heads' logits; their sum predicts.

    Args:
        name: one of `list_networks()`.
        num_classes: K, background included.
        img_size: side or (H, W) in pixels; padded to what the network needs, and the logits are cropped.
        in_channels: channels of the images; where the published stem has three, one is repeated, and others change it.
        options: see `list_options`, and the classes of the networks for what they mean. All take `use_checkpoint`,
            which recomputes activations in the backward pass: it saves memory and costs time.

    Raises:
        ValueError: an unknown name or option (the closest one is named), a size that is too small (the nearest that
            is not is named), `in_channels` that the stem does not take, or options that are impossible or disagree.
    """
    if name not in _NETWORKS:
        raise ValueError(f"unknown network {name!r}; expected one of {', '.join(list_networks())}")
    if not 2 <= num_classes <= 256:  # masks are written as bytes
        raise ValueError(f"{name}: num_classes is {num_classes}; expected 2 to 256, the background included")
    known, use_checkpoint = list_options(name), bool(options.pop("use_checkpoint", False))
    for option, value in options.items():
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}"
            raise ValueError(f"{name}: unknown option {option!r}; {hint}")
        if not isinstance(known[option], bool):
            check_range(name, option, value)
    network = _NETWORKS[name](num_classes=num_classes, img_size=img_size, in_channels=in_channels, **options)
    if in_channels not in (1, 3):
        network.widen_stem(in_channels)
    for module in network.modules():
        if isinstance(module, Checkpointed):
            module.use_checkpoint = use_checkpoint
    return network
