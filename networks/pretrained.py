"""Load weights by what a file holds: released or own checkpoints, or the public ImageNet start."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoint import LAST, PREVIOUS, is_dense, read_checkpoint

_log = logging.getLogger(__name__)

_WRAPPERS = ("model", "state_dict")
# Published checkpoints carry these; they follow from the architecture and are rebuilt with it.
_DERIVED_BUFFERS = ("attn_mask", "relative_position_index")
_COUNTERS = ("num_batches_tracked",)  # of batch norm; old files lack them
_ENOUGH = 0.9


@dataclass(frozen=True)
class ImageNetStart:
    """What a network makes of an ImageNet classifier (`from_imagenet`): `tensors` under the network's own names.

    Parameters whose names begin with one of `whole` must all be there and fit; of the others, what fits is taken.
    `resized` names the file's tables of positions that were interpolated.
    """

    tensors: Mapping[str, Tensor]
    whole: tuple[str, ...]
    resized: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did, by names: filled, in the file but unused, in the network but left as it was."""

    loaded: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]


def find_weights(folder: str | Path, epochs: int) -> Path:
    """The weights of a run: its best, else its last, else (of a published run) those of its last epoch.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    names = ("best.pth", LAST, PREVIOUS, "best_model.pth", f"epoch_{epochs}.pth", f"epoch_{epochs - 1}.pth")
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise FileNotFoundError(
        f"{folder}: holds no weights; expected one of {', '.join(names)}: train first, or name a file by --checkpoint"
    )


def state_dict_of(content: Mapping, path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint's content, out of any wrapper and without DataParallel's `module.`.

    Raises:
        ValueError: there are none, or one that is no plain tensor.
    """
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
    state = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(
            f"{path}: holds no tensors by name; expected a state_dict, bare or under 'model' or 'state_dict'"
        )
    strange = next((name for name, value in state.items() if not is_dense(value)), None)
    if strange is not None:
        raise ValueError(
            f"{path}: {strange} is sparse, quantised, complex or empty; expected plain tensors, save it as such"
        )
    return state


def load_weights(
    network: nn.Module,
    path: str | Path,
    *,
    ignore_head: bool = False,
    complete: bool = False,
    least: float = _ENOUGH,
    trust: bool = False,
) -> LoadReport:
    """Fill a network from a file, whatever its form, and say what was filled.

    A bare state_dict, one under `model` or `state_dict`, with or without `module.` or the network's own prefix, or
    an ImageNet classifier that the network knows how to start from (`from_imagenet`).

    Args:
        network: is changed in place, but not at all when an error is raised.
        path: a .pth, .safetensors or .npz file.
        ignore_head: leave the layer that makes the classes as it is, so that a file of another class count loads.
        complete: refuse a file that leaves a tensor of the network as it was, or holds others: for evaluation.
        least: the share of the network's floats that the file must fill; an ImageNet start must fill the encoder.
        trust: see `checkpoint.read_checkpoint`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unreadable, of another architecture, width or class count, or holds NaN.
    """
    state = state_dict_of(read_checkpoint(path, trust=trust), path)
    own = network.state_dict()
    head = getattr(network, "head_prefix", ())  # no key starts with one of no prefixes
    start = getattr(network, "from_imagenet", lambda state: None)(state)
    given = _with_own_prefix(state, own) if start is None else start.tensors
    given = {k: v for k, v in given.items() if k in own}
    wanted = getattr(network, "fit_positions", dict)(given)
    resized = sum(wanted[k].shape != v.shape for k, v in given.items()) + len(start.resized if start else ())
    if start:  # the decoder takes what fits of it
        wanted = {k: v for k, v in wanted.items() if k.startswith(start.whole) or v.shape == own[k].shape}
    elif ignore_head:
        wanted = {k: v for k, v in wanted.items() if not k.startswith(head)}
    _check_shapes(wanted, own, head, path)
    if start:
        _check_whole(wanted, own, start, path)
    else:
        _check_coverage(wanted, own, least, path)
    _check_finite(wanted, path)
    report = _report(state, own, wanted, start.resized if start else ())
    if complete and (report.missing or report.skipped):
        what = f"it lacks {report.missing[0]}" if report.missing else f"it also holds {report.skipped[0]}"
        count = len(report.missing) + len(report.skipped)
        raise ValueError(
            f"{path}: is not the whole of this network: {what} ({count} tensors in all); "
            "give a trained checkpoint, and the --cfg it was trained with"
        )
    try:
        network.load_state_dict(wanted, strict=False)
    except RuntimeError as error:  # sparse, quantised and other tensors that no weight can be copied from
        raise ValueError(f"{path}: its tensors cannot be copied ({str(error).split(chr(10))[0]})") from error
    counts = len(report.loaded), len(report.skipped), len(report.missing)
    _log.info("%s: %d tensors loaded, %d skipped (not in the network), %d missing (left as they were)", path, *counts)
    if resized:
        _log.info("%s: %d tables of positions were interpolated to another image size or window", path, resized)
    return report


def _report(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], wanted: Mapping[str, Tensor], resized: Sequence[str]
) -> LoadReport:
    """By names of the file, `state`, and of the network, `own`; `resized` ones of the file are used, but changed."""
    places = {value.untyped_storage().data_ptr() for value in wanted.values()}

    def used(key: str) -> bool:
        """Under its own name, or the same numbers under another."""
        by_name = key in resized or any(name == key or name.endswith(f".{key}") for name in wanted)
        return by_name or state[key].untyped_storage().data_ptr() in places

    return LoadReport(
        loaded=tuple(k for k in own if k in wanted),
        skipped=tuple(k for k in state if not (k.endswith(_DERIVED_BUFFERS) or used(k))),
        missing=tuple(k for k in own if k not in wanted),
    )


def _with_own_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the network's outermost name (`swin_unet.`) to keys saved from the module inside it."""
    if any(key in own for key in state):
        return state
    outer = {key.split(".", 1)[0] for key in own}
    if len(outer) != 1:
        return state
    prefix = outer.pop()
    return {f"{prefix}.{key}": value for key, value in state.items()}


def _check_shapes(
    wanted: Mapping[str, Tensor], own: Mapping[str, Tensor], head: str | tuple[str, ...], path: str | Path
) -> None:
    differing = [k for k, v in wanted.items() if v.shape != own[k].shape]
    if not differing:
        return
    key = differing[0]
    theirs, ours = wanted[key].shape, own[key].shape
    others = [k for k in differing if not k.startswith(head) or theirs[:1] == ours[:1]]
    if not others and len(theirs) > 0:
        raise ValueError(
            f"{path}: is for {theirs[0]} classes, the network has {ours[0]}; give --num_classes {theirs[0]}, "
            "or --ignore_head to leave the last layer as it is"
        )
    raise ValueError(
        f"{path}: is of another network: {key} has shape {tuple(theirs)}, expected {tuple(ours)} "
        f"({len(differing)} tensors differ); give the --cfg it was trained with, or another checkpoint"
    )


def _check_coverage(wanted: Mapping[str, Tensor], own: Mapping[str, Tensor], least: float, path: str | Path) -> None:
    total = sum(v.numel() for v in own.values() if v.is_floating_point())
    filled = sum(own[k].numel() for k in wanted if own[k].is_floating_point())
    if filled < least * total:
        raise ValueError(
            f"{path}: is of another network: it fills {filled / total:.0%} of the weights, "
            f"expected at least {least:.0%}; give the --cfg it was trained with, or another checkpoint"
        )


def _check_whole(
    wanted: Mapping[str, Tensor], own: Mapping[str, Tensor], start: ImageNetStart, path: str | Path
) -> None:
    absent = [k for k in own if k.startswith(start.whole) and k not in wanted and not k.endswith(_COUNTERS)]
    if absent:
        raise ValueError(
            f"{path}: is of another network: it lacks {absent[0]} and {len(absent) - 1} more of the encoder; "
            "give the ImageNet file of the same network"
        )


def _check_finite(wanted: Mapping[str, Tensor], path: str | Path) -> None:
    for key, value in wanted.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{path}: {key} holds NaN or infinite weights; give one from before it diverged")
