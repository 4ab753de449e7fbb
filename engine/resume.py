"""What a run resumes from: its progress, weights, optimizer and random generators, and the check of a save."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.checkpoint import is_dense
from engine.distributed import Ranks
from utils import first_line

# A save is plain data that a stranger may have written, so its values are `Any` until they have been checked.
State = Mapping[str, Any]

# What a save of another run or program can raise where it is restored.
_OF_ANOTHER_RUN = (LookupError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)
_NUMPY_WORDS = 624  # of the state of NumPy's generator, which reads beyond them


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0
    batch_in_epoch: int = 0
    step: int = 0
    accumulated: int = 0  # batches whose gradients the next step takes
    bad_steps: int = 0  # in a row, whose loss or gradient was not finite
    best: float = -math.inf  # validation score
    best_digest: str = ""  # of best.pth
    sums: dict[str, float] = field(default_factory=dict)  # of the terms of this epoch
    summed: int = 0  # batches in these
    metrics_size: int = 0  # bytes of metrics.jsonl

    def means(self) -> dict[str, float]:
        """The mean terms of the epoch so far."""
        return {name: value / self.summed for name, value in self.sums.items()}


def pack_state(
    progress: Progress, network: nn.Module, optimizer: torch.optim.Optimizer, extra: nn.Module | None = None
) -> dict[str, object]:
    """All that resuming needs of one process, as plain data, but for the random generators.

    `extra` holds weights that training alone has.
    """
    return asdict(progress) | {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "gradients": [p.grad for p in trained(optimizer)],  # of an accumulation under way
        **({"extra": extra.state_dict()} if extra else {}),
    }


def trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The weights that an optimizer trains, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def has_ended(state: State, epochs: int, max_steps: int) -> bool:
    """Whether a save is that of the end of a training of so many epochs or, where they are not 0, steps."""
    return not state["batch_in_epoch"] and (state["epoch"] >= epochs or 0 < max_steps <= state["step"])


def restore_state(
    state: State,
    source: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: nn.Module | None,
    ranks: Ranks,
    data: Sequence[str],
    accumulation_steps: int,
) -> Progress:
    """Restore network, optimizer and random generators from a save; returns the progress.

    Args:
        state: the content of the last.pth in `source`: what `pack_state` returned, `slices`, `generators` by rank.
        data: `slices`, a line for each: the slices of an epoch and the cases of the validation, in order.

    Raises:
        ValueError: it is of another network, optimizer, training set or number of processes, or no such file.
    """
    try:
        check_data(state["slices"], data)
        if len(state["generators"]) != ranks.world:
            raise ValueError(f"{len(state['generators'])} processes trained it, here are {ranks.world}")
        # Earlier runs did not save these.
        state = {"accumulated": state["batch_in_epoch"] % accumulation_steps, "best_digest": "", **state}
        for name, value in asdict(Progress()).items():
            if type(state[name]) is not type(value) or (isinstance(value, int) and state[name] < 0):
                raise ValueError(f"its {name} is {state[name]!r:.40}, expected such as {value}")
        check_tensors(state, optimizer)
        network.load_state_dict(state["model"])
        if extra:
            extra.load_state_dict(state["extra"])
        groups = optimizer.state_dict()["param_groups"]  # a file's own would be taken unchecked
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        for parameter, gradient in zip(trained(optimizer), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        restore_generators(state["generators"][ranks.rank], ranks.device)
        return Progress(**{each.name: state[each.name] for each in fields(Progress)})
    except _OF_ANOTHER_RUN as error:
        why = f"it holds no {error}" if isinstance(error, KeyError) else first_line(error)
        raise ValueError(
            f"{source}: the checkpoint does not belong to this run ({why}); "
            "expected a last.pth made with the same configuration (--resume)"
        ) from error


def check_data(theirs: str | int, ours: Sequence[str]) -> None:
    """Check that a save is of the same data, in the same order; of an earlier run it is the number of slices.

    Raises:
        ValueError: they differ; the first line that does is named.
    """
    if isinstance(theirs, int):
        ours, theirs = [f"{sum(line.startswith('slice ') for line in ours)} slices"], f"{theirs} slices"
    for one, other in zip_longest(theirs.splitlines(), ours, fillvalue="nothing"):
        if one != other:
            raise ValueError(f"of its data, {one:.150} is {other:.150} here")


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
    if not 0 <= states["numpy"][2] <= _NUMPY_WORDS:
        raise ValueError(f"its NumPy generator is at word {states['numpy'][2]}, expected 0 to {_NUMPY_WORDS}")
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def check_tensors(state: State, optimizer: torch.optim.Optimizer) -> None:
    """Check what torch does not, gradients and what the optimizer keeps of each weight: a fused step would write beyond
    a tensor of another shape, or an expanded view.

    Raises:
        ValueError: one is not like its weight; KeyError, TypeError, AttributeError: one is missing, or no tensor.
    """
    parameters = trained(optimizer)
    names = {"exp_avg", "exp_avg_sq", "step"} if isinstance(optimizer, torch.optim.AdamW) else {"momentum_buffer"}
    pairs = list(zip(state["gradients"], parameters, strict=True))
    for index, moments in state["optimizer"]["state"].items():
        if moments.keys() != names:
            raise ValueError(f"its optimizer holds {list(moments)!r:.40} of a weight, expected {sorted(names)}")
        pairs += [(moments[name], parameters[index]) for name in names - {"step"}]
    for value, own in pairs:
        if value is None:  # a weight without a gradient
            continue
        is_own = is_dense(value) and value.untyped_storage().nbytes() >= own.nbytes
        if not is_own or value.shape != own.shape or value.dtype != own.dtype:
            raise ValueError(
                f"a gradient or moment is {value.dtype} {tuple(value.shape)}, "
                f"expected a plain tensor, {own.dtype} {tuple(own.shape)}"
            )
