"""The networks by name: `build_network("swin_unet", num_classes=9)`.

A network is a module with `forward`, (B, C, H, W) to logits (B, K, H, W) or to a tuple of several heads', and

- `tap_spec`: which of its modules carry its features (`selfreg.TapSpec`);
- `head_prefix`: how the names of the parameters that make the classes begin, one or a tuple of several;
- `has_unused_parameters`, True where some may get no gradient, which several processes have to know;
- where it has positions: `fit_positions(state)`, the tensors of a file with those of another size interpolated;
- where it may start from a public classifier: `from_imagenet(state)`, its own names for such a file's tensors, or None.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from networks.cascade import PVTCascade, TransCascade
from networks.hiformer import hiformer_b, hiformer_l, hiformer_s
from networks.pretrained import load_weights
from networks.swin_unet import SwinUnet
from networks.transunet import TransUNet
from networks.uctransnet import UCTransNet
from networks.unet import UNet

__all__ = ["build_network", "list_networks", "load_weights"]

_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "hiformer_b": hiformer_b,
    "hiformer_l": hiformer_l,
    "hiformer_s": hiformer_s,
    "pvt_cascade": PVTCascade,
    "swin_unet": SwinUnet,
    "trans_cascade": TransCascade,
    "transunet": TransUNet,
    "uctransnet": UCTransNet,
    "unet": UNet,
}
_NOT_OPTIONS = ("num_classes", "img_size", "in_channels", "variant")


def list_networks() -> list[str]:
    """Every name that `build_network` takes."""
    return sorted(_NETWORKS)


def build_network(
    name: str, *, num_classes: int, img_size: int | Sequence[int] = 224, in_channels: int = 1, **options: Any
) -> nn.Module:
    """Build a network with fresh weights: (B, C, H, W) to logits (B, num_classes, H, W) in train and eval mode.

    One under deep supervision gives a tuple of several heads' logits; their sum predicts.

    Args:
        name: one of `list_networks()`.
        num_classes: K, background included.
        img_size: side or (H, W) in pixels.
        in_channels: channels of the images.
        options: whatever the network's own constructor takes beside these.

    Raises:
        ValueError: an unknown name or option (the closest one is named), or values that the network refuses.
    """
    if name not in _NETWORKS:
        raise ValueError(f"unknown network {name!r}; expected one of {', '.join(list_networks())}")
    if not 2 <= num_classes <= 256:  # masks are written as bytes
        raise ValueError(f"{name}: num_classes is {num_classes}; expected 2 to 256, the background included")
    known = [p for p in inspect.signature(_NETWORKS[name]).parameters if p not in _NOT_OPTIONS]
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}"
            raise ValueError(f"{name}: unknown option {option!r}; {hint}")
    return _NETWORKS[name](num_classes=num_classes, img_size=img_size, in_channels=in_channels, **options)
