"""Every registered network, small enough to run in a moment; default sizes are compared with the golden values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from configs.config import get_config
from configs.defaults import SECTION_OF
from networks import build_network
from tests.conftest import ROOT

_HIFORMER = {
    "img_size": 32,
    "embed_dim": 4,
    "swin_depths": (1, 1, 2),
    "num_heads": (1, 1, 2),
    "fusion_heads": (1, 2),
    "window_size": 4,
    "cnn_width": 4,
    "cnn_depths": (1, 1, 1),
    "decoder_width": 32,
}
_R50_VIT = {
    "img_size": 32,
    "hidden_size": 16,
    "num_heads": 2,
    "num_layers": 2,
    "mlp_dim": 32,
    "cnn_width": 8,
    "cnn_units": (1, 1, 1),
    "norm_groups": 4,
}

SMALL: dict[str, dict[str, Any]] = {
    "hiformer_b": _HIFORMER,
    "hiformer_l": _HIFORMER,
    "hiformer_s": _HIFORMER,
    "pvt_cascade": {
        "img_size": 64,
        "embed_dims": (8, 8, 16, 16),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 2, 2),
        "mlp_ratios": (2, 2, 2, 2),
    },
    "swin_unet": {"img_size": 32, "embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 4},
    "trans_cascade": _R50_VIT,
    "transunet": {**_R50_VIT, "head_channels": 16, "decoder_channels": (16, 8, 8, 8)},
    "uctransnet": {"img_size": 32, "base_channel": 8, "num_layers": 1, "num_heads": 2},
    "unet": {"img_size": 32, "width": 4},
}

# Options that switch off what is drawn at random in train mode.
CALM: dict[str, dict[str, float]] = {
    **dict.fromkeys(("hiformer_b", "hiformer_l", "hiformer_s", "pvt_cascade", "swin_unet"), {"drop_path_rate": 0.0}),
    **dict.fromkeys(("trans_cascade", "transunet"), {"dropout_rate": 0.0}),
    "uctransnet": {"embeddings_dropout_rate": 0.0, "attention_dropout_rate": 0.0},
    "unet": {},
}


def build_small(name: str, seed: int = 0, **options: Any) -> nn.Module:
    """A small network for five classes with fresh weights; `options` go before those of `SMALL`."""
    torch.manual_seed(seed)
    return build_network(name, num_classes=5, **{**SMALL[name], **options})


def settled(network: nn.Module) -> nn.Module:
    """With statistics of real batches, and with position embeddings that differ, in eval mode."""
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "position_embeddings" in key or "pos_embed" in key:
                nn.init.normal_(parameter)
        network.train()
        for _ in range(3):
            network(torch.randn(2, 3, *network.img_size))
    return network.eval()


# The shipped yaml of every network; those of another data set have that in their names.
_OF_SYNAPSE = (file for file in sorted((ROOT / "configs").glob("*.yaml")) if get_config(file).data.dataset == "Synapse")
CONFIGS = {get_config(file).model.type: file for file in _OF_SYNAPSE}


def small_config(name: str, folder: Path) -> Path:
    """The shipped yaml of a network, made small enough for a test."""
    content = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))
    options = {**SMALL[name]}
    content.setdefault("DATA", {}).update(IMG_SIZE=options.pop("img_size"), BATCH_SIZE=4, NUM_WORKERS=0)
    section = {key.upper(): list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    content["MODEL"][SECTION_OF[name]] = section
    content.setdefault("TRAIN", {})["EPOCHS"] = 1
    (folder / CONFIGS[name].name).write_text(yaml.safe_dump(content))
    return folder / CONFIGS[name].name
