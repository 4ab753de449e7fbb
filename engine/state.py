"""Whether a run can go on from what a save holds: a file from elsewhere may hold anything, anywhere in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import is_dense

_MOST_EPOCHS = 2**31 - 1  # as of TRAIN.EPOCHS
_LONGEST_RECORD = 2**40  # bytes of metrics.jsonl
_NUMPY_WORDS = 624  # of the generator's state; numpy itself reads on beyond them
# The trainer sets the rate; the others choose between kernels for the same step.
_MAY_DIFFER = ("lr", "foreach", "fused", "capturable")


def check_state(state: Mapping[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer, per_epoch: int) -> None:
    """Make sure that each value of a run's state is one that this network, optimiser and training set can have.

    Args:
        per_epoch: batches of an epoch.

    Raises:
        ValueError: one is not.
        KeyError, TypeError, AttributeError: one is missing, or of another kind.
    """
    _check_counters(state, per_epoch)
    _check_means(state["best"], state["sums"], state["summed"])
    _check_weights(state["model"], network)
    for gradient, parameter in zip(state["gradients"], network.parameters(), strict=True):
        if gradient is not None:  # it may be infinite: the step that it is for will be left out
            _check_like(gradient, parameter, "a gradient")
    _check_groups(state["optimizer"]["param_groups"], optimizer)
    _check_moments(state["optimizer"]["state"], optimizer, state["step"])
    for generators in state["generators"]:
        _check_whole("numpy's place", generators["numpy"][2], _NUMPY_WORDS)


def _check_counters(state: Mapping[str, Any], per_epoch: int) -> None:
    _check_whole("epoch", state["epoch"], _MOST_EPOCHS)
    _check_whole("batch_in_epoch", state["batch_in_epoch"], per_epoch)
    batches = state["epoch"] * per_epoch + state["batch_in_epoch"]
    _check_whole("step", state["step"], batches)
    _check_whole("bad_steps", state["bad_steps"], batches)
    _check_whole("summed", state["summed"], state["batch_in_epoch"])
    _check_whole("metrics_size", state["metrics_size"], _LONGEST_RECORD)


def _check_whole(name: str, value: object, most: int) -> None:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"its {name} is {value!r:.40}, expected a whole number from 0 to {most}")


def _check_means(best: object, sums: object, summed: int) -> None:
    if not isinstance(best, (int, float)) or not best < math.inf:  # before the first validation it is -inf
        raise ValueError(f"its best is {best!r:.40}, expected a score")
    if not isinstance(sums, Mapping) or bool(sums) != bool(summed):
        raise ValueError(f"its sums are {sums!r:.40} of {summed} batches, expected numbers by name")
    for name, value in sums.items():
        if not (isinstance(name, str) and name.isprintable() and isinstance(value, float) and math.isfinite(value)):
            raise ValueError(f"its sums hold {name!r:.40}: {value!r:.40}, expected finite numbers by name")


def _check_weights(model: Mapping[str, Tensor], network: nn.Module) -> None:
    """Names that are missing or too many are for `load_state_dict` to find."""
    parameters = dict(network.named_parameters())
    for name, own in network.state_dict().items():
        if name in model:
            _check_like(model[name], own, name)
            if name in parameters:  # the statistics of a normalisation go through batches that are left out, too
                _check_finite(model[name], name)


def _check_groups(groups: list[Mapping[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    """What steers the optimiser comes from the configuration; a save with something else is of another run."""
    for theirs, ours in zip(groups, optimizer.state_dict()["param_groups"], strict=True):
        for key in theirs.keys() & ours.keys() - set(_MAY_DIFFER):
            if theirs[key] != ours[key]:
                raise ValueError(f"its optimiser's {key} is {theirs[key]!r:.40}, here it is {ours[key]!r:.40}")


def _check_moments(saved: Mapping[int, Mapping[str, Tensor]], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Of each weight all that the optimiser keeps of one; or nothing, of a weight that never had a gradient."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if saved.keys() - set(range(len(parameters))):
        raise ValueError(f"its optimiser holds more weights than the {len(parameters)} here")
    usual = _kept_of_a_weight(optimizer)
    for index, parameter in enumerate(parameters):
        kept = saved.get(index, {})
        if kept and kept.keys() != usual.keys():
            raise ValueError(f"its optimiser holds {list(kept)!r:.40} of weight {index}, expected {list(usual)}")
        for name, value in kept.items():
            a_count = not usual[name].ndim
            _check_like(value, usual[name] if a_count else parameter, f"{name} of weight {index}")
            _check_finite(value, f"{name} of weight {index}")
            if a_count and not 0 <= value <= step:
                raise ValueError(f"{name} of weight {index} is {float(value)}, expected 0 to {step}")


def _kept_of_a_weight(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser like this one keeps of a weight of one number once it has taken a step."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    other = type(optimizer)([weight])
    other.param_groups[0].update({**optimizer.param_groups[0], "params": [weight]})
    other.step()
    return dict(other.state.get(weight, {}))


def _check_like(value: object, own: Tensor, name: str) -> None:
    """A view that repeats its numbers is not taken: fused steps write on beyond them."""
    if not isinstance(value, Tensor) or not is_dense(value):
        raise ValueError(f"{name} is no plain tensor")
    if value.shape != own.shape or value.dtype != own.dtype:
        raise ValueError(f"{name} is {_kind(value)}, expected {_kind(own)}")
    if own.is_contiguous() and not value.is_contiguous():
        raise ValueError(f"{name} is a view, expected a tensor of its own")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _check_finite(value: Tensor, name: str) -> None:
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} is not finite")
