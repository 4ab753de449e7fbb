"""Where the golden figures are, and the rules that rebuild their weights and inputs (see the golden README)."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ROOT = Path(__file__).resolve().parents[2]
# All of the figures where they are beside the checkout, else the part that travels with it.
_WHOLE = _ROOT.parent / "shared" / "golden"
FOLDER = _WHOLE if _WHOLE.is_dir() else _ROOT / "tests" / "golden"

_LEFT_AS_BUILT = ("attn_mask", "relative_position_index", "num_batches_tracked")


def available(*names: str) -> list[str]:
    """Those of the named figures (`forward/swin_unet_nc9`) that are here."""
    return [name for name in names if (FOLDER / f"{name}.json").is_file()]


@cache
def figures(name: str) -> dict[str, Any]:
    """The JSON of a set of figures."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays beside it."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def generator(seed: int) -> np.random.Generator:
    """The generator of all draws."""
    return np.random.Generator(np.random.PCG64(seed))


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal input, float32."""
    return generator(seed).standard_normal(tuple(shape)).astype(np.float32)


def image(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Standard normal input as a tensor; float64 casts the float32 values up."""
    return torch.from_numpy(normal(seed, shape)).to(dtype)


def block_labels(seed: int, batch: int, classes: int) -> Tensor:
    """(batch, 224, 224) labels in cells of 16 x 16."""
    cells = generator(seed).integers(0, classes, (batch, 14, 14))
    return torch.from_numpy(cells.repeat(16, axis=1).repeat(16, axis=2))


def fill(key: str, shape: tuple[int, ...], draw: str = "") -> np.ndarray:
    """The value that the rule gives a parameter, float32; `draw` names another key to seed by."""
    value = normal(zlib.crc32((draw or key).encode()), shape)
    if key.endswith("relative_position_bias_table") or "pos_embed" in key or "position_embed" in key:
        return np.float32(0.02) * value
    if key.endswith("running_mean"):
        return np.float32(0.1) * value
    if key.endswith("running_var"):
        return np.float32(1) + np.float32(0.1) * np.abs(value)
    if len(shape) == 1 and key.endswith(".weight"):
        return np.float32(1) + np.float32(0.1) * value
    if len(shape) == 1 and key.endswith(".bias"):
        return np.float32(0.1) * value
    return value * np.float32(1 / np.sqrt(np.prod(shape[1:])))


def fill_network(network: nn.Module) -> nn.Module:
    """Give a network the weights of the rule, in its own dtype; of tied ones the last in sorted order wins."""
    with torch.no_grad():
        for key, value in sorted(network.state_dict().items()):
            if value.is_floating_point() and not key.endswith(_LEFT_AS_BUILT):
                value.copy_(torch.from_numpy(fill(key, tuple(value.shape))))
    return network


def published_keys(name: str) -> list[dict[str, Any]]:
    """The published parameters and buffers in order, those that follow from the architecture left out."""
    return [entry for entry in figures(f"keys/{name}")["keys"] if not entry["key"].endswith(_LEFT_AS_BUILT[:2])]


def sampled(value: Tensor, found: dict[str, np.ndarray], name: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Our values and the recorded ones at the recorded places."""
    flat = value.detach().reshape(-1)
    places = torch.from_numpy(found[f"{name}__idx"].astype(np.int64))
    return flat[places].double().numpy(), found[f"{name}__{dtype}"].astype(np.float64)


def relative(ours: np.ndarray | float, theirs: np.ndarray | float) -> float:
    """Largest difference, relative to the largest recorded value."""
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), np.finfo(np.float64).tiny))
