"""What a run resumes from: its progress, weights, optimizer and random generators, and the check of a save."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.checkpoint import is_dense
from engine.distributed import Ranks
from utils import first_line

# A save is plain data that a stranger may have written, so its values are `Any` until they have been checked.
State = Mapping[str, Any]

# What a save of another run or program can raise where it is restored.
_OF_ANOTHER_RUN = (LookupError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)
_MAX_COUNT = 2**40
_NUMPY_WORDS = 624  # of the state of NumPy's generator, which reads beyond them
# The trainer sets the rate; the others choose between kernels for the same step.
_MAY_DIFFER = {"lr", "foreach", "fused", "capturable"}


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0
    batch_in_epoch: int = 0
    step: int = 0
    accumulated: int = 0  # batches whose gradients the next step takes
    bad_steps: int = 0  # in a row, whose loss or gradient was not finite
    best: float = -math.inf  # validation score
    sums: dict[str, float] = field(default_factory=dict)  # of the terms of this epoch
    summed: int = 0  # batches in these
    metrics_size: int = 0  # bytes of metrics.jsonl

    def means(self) -> dict[str, float]:
        """The mean terms of the epoch so far."""
        return {name: value / self.summed for name, value in self.sums.items()}


def pack_state(progress: Progress, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """All that resuming needs of one process, as plain data, but for the random generators."""
    return asdict(progress) | {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "gradients": [p.grad for p in network.parameters()],  # of an accumulation under way
    }


def restore_state(
    state: State,
    source: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    slices: int,
    per_epoch: int,
    accumulation_steps: int,
) -> Progress:
    """Restore network, optimizer and random generators from a save; returns the progress.

    Args:
        state: the content of the last.pth in `source`: what `pack_state` returned, `slices`, and `generators`, by rank.
        slices, per_epoch: slices and batches of an epoch.

    Raises:
        ValueError: it is of another network, optimizer, training set or number of processes, or no such file.
    """
    try:
        if state["slices"] != slices:
            raise ValueError(f"it trained on {state['slices']} slices, here are {slices}")
        if len(state["generators"]) != ranks.world:
            raise ValueError(f"{len(state['generators'])} processes trained it, here are {ranks.world}")
        state = {"accumulated": state["batch_in_epoch"] % accumulation_steps, **state}  # earlier runs did not save it
        check_state(state, network, optimizer, per_epoch)
        network.load_state_dict(state["model"])
        groups = optimizer.state_dict()["param_groups"]  # a file's own would be taken unchecked
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        for parameter, gradient in zip(network.parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        restore_generators(state["generators"][ranks.rank], ranks.device)
        return Progress(**{each.name: state[each.name] for each in fields(Progress)})
    except _OF_ANOTHER_RUN as error:
        why = f"it holds no {error}" if isinstance(error, KeyError) else first_line(error)
        raise ValueError(
            f"{source}: the checkpoint does not belong to this run ({why}); "
            "expected a last.pth made with the same configuration (--resume)"
        ) from error


def generator_states(device: torch.device) -> dict[str, object]:
    """The state of every global generator that training on `device` draws from, as plain data."""
    kind, numbers, *rest = np.random.get_state(legacy=True)
    states: dict[str, object] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    states["numpy"] = (kind, np.asarray(numbers).tolist(), *rest)
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: State, device: torch.device) -> None:
    """Restore what `generator_states` returned."""
    kind, numbers, gauss = states["python"]
    random.setstate((kind, tuple(numbers), gauss))
    _check_count("NumPy generator", states["numpy"][2], _NUMPY_WORDS)
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def check_state(state: State, network: nn.Module, optimizer: torch.optim.Optimizer, per_epoch: int) -> None:
    """Check that a run's state is one that this network, optimizer and number of batches an epoch can have.

    Raises:
        ValueError: a value is not; KeyError, TypeError, AttributeError: one is missing, or of another type.
    """
    batches = state["epoch"] * per_epoch + state["batch_in_epoch"]
    of_epoch = dict.fromkeys(("batch_in_epoch", "accumulated", "summed"), per_epoch)
    counts = {"epoch": _MAX_COUNT, **of_epoch, "step": batches, "bad_steps": batches, "metrics_size": _MAX_COUNT}
    for name, most in counts.items():
        _check_count(name, state[name], most)
    if not state["best"] < math.inf or not all(map(math.isfinite, state["sums"].values())):
        raise ValueError("its scores are not finite")
    for name, parameter in network.named_parameters():
        if name in state["model"]:  # `load_state_dict` finds what is missing
            _check_like(state["model"][name], parameter, name)
    for gradient, parameter in zip(state["gradients"], network.parameters(), strict=True):
        if gradient is not None:  # it may be infinite: its step will be skipped
            _check_like(gradient, parameter, "a gradient", finite=False)
    for theirs, ours in zip(state["optimizer"]["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        for key in theirs.keys() & ours.keys() - _MAY_DIFFER:
            if theirs[key] != ours[key]:
                raise ValueError(f"{key} of its optimizer is {theirs[key]!r:.40}, here it is {ours[key]!r:.40}")
    # torch checks none of what the optimizer keeps of a weight, nothing where it never had a gradient.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    expected = {"exp_avg", "exp_avg_sq", "step"} if isinstance(optimizer, torch.optim.AdamW) else {"momentum_buffer"}
    for index, moments in state["optimizer"]["state"].items():
        if moments.keys() != expected:
            raise ValueError(
                f"its optimizer holds {list(moments)!r:.40} of weight {index}, expected {sorted(expected)}"
            )
        if "step" in expected and not 0 <= float(moments["step"]) <= state["step"]:
            raise ValueError(f"the step of weight {index} is {moments['step']}, expected 0 to {state['step']}")
        for name in expected - {"step"}:
            _check_like(moments[name], parameters[index], f"{name} of weight {index}")


def _check_count(name: str, value: object, most: int) -> None:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"its {name} is {value!r:.40}, expected a whole number from 0 to {most}")


def _check_like(value: object, own: Tensor, name: str, *, finite: bool = True) -> None:
    """Refuse a tensor of another shape, or an expanded view: a fused step would write beyond it."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}, expected a tensor")
    if value.shape != own.shape or value.dtype != own.dtype:
        raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}, expected {own.dtype} {tuple(own.shape)}")
    if not is_dense(value) or value.untyped_storage().nbytes() < own.nbytes:
        raise ValueError(f"{name} is a view or sparse, expected a plain tensor of its own")
    if finite and not torch.isfinite(value).all():
        raise ValueError(f"{name} is not finite")
