"""Pretrained weights, loaded by a file's content: released or own checkpoints, or an ImageNet classifier."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models import adapt_input_conv
from torch import Tensor, nn

from engine.checkpoint import LAST, PREVIOUS, is_dense, read_checkpoint

_log = logging.getLogger(__name__)

# Published checkpoints carry these; they follow from the architecture and are rebuilt with it.
_DERIVED_BUFFERS = ("attn_mask", "relative_position_index")
# Of our own and released files, Lightning, plain loops and nnU-Net; of DataParallel, torch.compile and Lightning.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "network_weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_COUNTERS = "num_batches_tracked"  # of batch norm; old files lack them
_MIN_COVERAGE = 0.9  # of the network's floats
_REMEDY = "of a run's folder leave out --cfg, else give the --cfg it was trained with"


@dataclass(frozen=True)
class ImageNetStart:
    """What a network takes of an ImageNet classifier."""

    sources: Mapping[str, str]  # the file's names by the network's
    required: tuple[str, ...]  # prefixes of what must all be there and fit; of the others, what fits is loaded
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # those that the file has in another layout
    resized: int = 0  # how many position embeddings were interpolated


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did: names loaded, skipped (in the file alone), and missing (in the network alone)."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]


def find_weights(folder: str | Path, epochs: int) -> Path:
    """The weights of a run: its best, else its last, else those of an export or of a published run."""
    published = ("best_model.pth", f"epoch_{epochs}.pth", f"epoch_{epochs - 1}.pth")
    names = ("best.pth", LAST, PREVIOUS, "weights.safetensors", *published)
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise FileNotFoundError(
        f"{folder}: holds no weights; expected one of {', '.join(names)}: train first, or name a file by --checkpoint"
    )


def load_weights(
    network: nn.Module, path: str | Path, *, ignore_head: bool = False, complete: bool = False, trust: bool = False
) -> LoadReport:
    """Load a file into a network, whatever its form: nothing is changed where an error is raised.

    A bare state_dict, or one in the wrapper and under the prefixes of plain loops, DataParallel, torch.compile,
    Lightning or nnU-Net, or an ImageNet classifier that the network can start from (`Network.from_imagenet`).

    Args:
        network: one of ours, or any module.
        path: a .pth, .safetensors or .npz file.
        ignore_head: leave the output layer as it is, so that a file of another class count loads.
        complete: refuse a file that misses tensors of the network or holds others: for evaluation.
        trust: see `engine.checkpoint.read_checkpoint`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unreadable, of another architecture, width or class count, or holds NaN.
    """
    own = network.state_dict()
    state = _state_dict_of(read_checkpoint(path, trust=trust), path, own)
    head = getattr(network, "head_prefix", ())  # no key starts with one of no prefixes
    start: ImageNetStart | None = getattr(network, "from_imagenet", lambda state: None)(state)
    sources, converted = (start.sources, start.tensors) if start else (_own_names(state, own), {})
    given = {name: converted.get(name, state[key]) for name, key in sources.items() if name in own}
    wanted: dict[str, Tensor] = getattr(network, "fit_positions", dict)(given)
    resized = sum(wanted[k].shape != v.shape for k, v in given.items()) + (start.resized if start else 0)
    if start:
        wanted = {k: _as_wide(v, own[k]) for k, v in wanted.items()}
        wanted = {k: v for k, v in wanted.items() if k.startswith(start.required) or v.shape == own[k].shape}
    elif ignore_head:
        wanted = {k: v for k, v in wanted.items() if not k.startswith(head)}
    _check_fit(wanted, own, head, start, path)
    for name, tensor in wanted.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds NaN or infinite weights; give one from before it diverged")
    used = {sources[name] for name in wanted}
    report = LoadReport(
        loaded=tuple(name for name in own if name in wanted),
        skipped=tuple(key for key in state if not (key in used or key.endswith(_DERIVED_BUFFERS))),
        missing=tuple(name for name in own if name not in wanted),
    )
    if complete and (report.missing or report.skipped):
        what = f"it lacks {report.missing[0]}" if report.missing else f"it also holds {report.skipped[0]}"
        count = len(report.missing) + len(report.skipped)
        raise ValueError(
            f"{path}: is not the whole of this network: {what} ({count} tensors in all); "
            f"give a trained checkpoint; {_REMEDY}"
        )
    network.load_state_dict(wanted, strict=False)
    counts = len(report.loaded), len(report.skipped), len(report.missing)
    _log.info("%s: %d tensors loaded, %d skipped (not in the network), %d missing (left unchanged)", path, *counts)
    if resized:
        _log.info("%s: position embeddings or biases interpolated to another image size or window: %d", path, resized)
    return report


def _as_wide(weight: Tensor, own: Tensor) -> Tensor:
    """The weights of a convolution of RGB, spread over the input channels of our own."""
    if weight.ndim != 4 or weight.shape[1] != 3 or weight.shape[0] != own.shape[0] or weight.shape[2:] != own.shape[2:]:
        return weight
    return adapt_input_conv(own.shape[1], weight)


def _state_dict_of(content: Mapping[str, object], path: str | Path, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The named tensors of a checkpoint's content, out of any wrapper and without the prefixes that it gives names."""
    for key in _WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, Mapping):
            content = inner
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path}: holds no tensors by name; expected a state_dict, bare or under {_WRAPPERS[0]}")
    while prefix := next((one for one in _PREFIXES if _share(state, one) > 0.5 > _share(own, one)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    for name, value in state.items():
        if not is_dense(value):
            raise ValueError(
                f"{path}: {name} is sparse, quantized, complex or empty; expected plain tensors, save it as such"
            )
    return state


def _share(names: Iterable[str], prefix: str) -> float:
    """The fraction of names that begin with a prefix."""
    starts = [name.startswith(prefix) for name in names]
    return sum(starts) / max(1, len(starts))


def _own_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """The file's names by the network's: equal, or without its outermost one (`swin_unet.`), saved from inside."""
    outer = {name.split(".", 1)[0] for name in own}
    prefix = "" if len(outer) > 1 or any(key in own for key in state) else f"{outer.pop()}."
    return {prefix + key: key for key in state}


def _check_fit(
    wanted: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    head: str | tuple[str, ...],
    start: ImageNetStart | None,
    path: str | Path,
) -> None:
    """Refuse tensors of other shapes, an ImageNet classifier that lacks a required one, or too few of the weights."""
    differing = [name for name, value in wanted.items() if value.shape != own[name].shape]
    if differing:
        name = differing[0]
        theirs, ours = wanted[name].shape, own[name].shape
        if theirs and all(k.startswith(head) and wanted[k].shape[:1] != own[k].shape[:1] for k in differing):
            raise ValueError(
                f"{path}: is for {theirs[0]} classes, the network has {ours[0]}; give --num_classes {theirs[0]}, "
                "or --ignore_head to leave the last layer as it is"
            )
        fault = f"{name} has shape {tuple(theirs)}, expected {tuple(ours)} ({len(differing)} tensors differ)"
    elif start:
        missing = [k for k in own if k.startswith(start.required) and k not in wanted and not k.endswith(_COUNTERS)]
        if not missing:
            return
        fault = f"it lacks {missing[0]} and {len(missing) - 1} more of the encoder"
    else:
        total, filled = (sum(own[k].numel() for k in keys if own[k].is_floating_point()) for keys in (own, wanted))
        if filled >= _MIN_COVERAGE * total:
            return
        fault = f"it fills {filled / total:.0%} of the weights, expected at least {_MIN_COVERAGE:.0%}"
    remedy = "give the ImageNet file of the same network" if start else f"{_REMEDY}, or another checkpoint"
    raise ValueError(f"{path}: is of another network: {fault}; {remedy}")


def resize_positions(positions: Tensor, grid: tuple[int, int], *, class_tokens: int = 0) -> Tensor:
    """Position embeddings (1, class_tokens + n*n, C) of a square grid, interpolated bicubically to another grid.

    Class tokens stay as they are. The very same tensor where it has that grid already, or none of 2 x 2 or more, and
    then does not fit.
    """
    count = positions.shape[1] - class_tokens if positions.ndim == 3 else 0
    side = math.isqrt(max(0, count))
    if side**2 != count or side < 2 or grid == (side, side):
        return positions
    square = rearrange(positions[:, class_tokens:].double(), "b (h w) c -> b c h w", h=side)
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    resized = rearrange(resized, "b c h w -> b (h w) c").to(positions.dtype)
    return torch.cat([positions[:, :class_tokens], resized], dim=1)


def resize_bias_table(table: Tensor, window: tuple[int, int]) -> Tensor:
    """Relative position bias ((2w-1)^2, heads) of a square window, interpolated bicubically to another (as in Swin).

    The very same tensor where it has that size already, or is of no square window of two or more.
    """
    rows, columns = 2 * window[0] - 1, 2 * window[1] - 1
    side = math.isqrt(len(table)) if table.ndim == 2 else 0
    if side % 2 == 0 or side**2 != len(table) or len(table) == rows * columns:
        return table
    return resize_positions(table[None], (rows, columns))[0]
