"""The check of a save before a run resumes from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.resume import check_state, pack_state
from tests.test_trainer import build
from trainer import Trainer

OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, fused=True),
    "no momentum": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.1, fused=True),
}


def state_of(trainer: Trainer, path: Path) -> dict:
    trainer.fit()
    return torch.load(path / "last.pth", weights_only=True)


def check(state: dict, trainer: Trainer) -> None:
    check_state(state, trainer.network, trainer.optimizer, trainer.loader.sampler.per_epoch)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accepts_the_states_of_a_run(name: str, tmp_path: Path) -> None:
    trainer, other = build(tmp_path), build(tmp_path, seed=1)
    for each in (trainer, other):
        each.optimizer = OPTIMIZERS[name](each.network.parameters())
    check(pack_state(trainer.at, trainer.network, trainer.optimizer), other)  # before the first step
    check(state_of(trainer, tmp_path), other)


def _deep(*keys: object, value: object) -> Callable[[dict], None]:
    def change(state: dict) -> None:
        *path, last = keys
        for key in path:
            state = state[key]
        state[last] = value(state[last]) if callable(value) else value

    return change


SPOILED = {
    "its epoch is -1": _deep("epoch", value=-1),
    "its epoch is 3.0": _deep("epoch", value=3.0),
    "its step is 10, expected a whole number from 0 to 9": _deep("step", value=10),
    "its batch_in_epoch is 4": _deep("batch_in_epoch", value=4),
    "its scores are not finite": _deep("best", value=float("nan")),
    "0.weight is not finite": _deep("model", "0.weight", value=lambda t: t * float("nan")),
    "0.weight is torch.float64": _deep("model", "0.weight", value=lambda t: t.double()),
    "a gradient is torch.float32 .2,.*expected": _deep("gradients", 0, value=torch.zeros(2)),
    "momentum of its optimizer is nan": _deep("optimizer", "param_groups", 0, "momentum", value=float("nan")),
    "its optimizer holds .* of weight 1": _deep("optimizer", "state", 1, value={"exp_avg": torch.zeros(4)}),
    "momentum_buffer of weight 0 is a str, expected a tensor": _deep(
        "optimizer", "state", 0, "momentum_buffer", value="much"
    ),
    "momentum_buffer of weight 0 is not finite": _deep(
        "optimizer", "state", 0, "momentum_buffer", value=lambda t: t / 0
    ),
    "momentum_buffer of weight 0 is a view or sparse": _deep(
        "optimizer", "state", 0, "momentum_buffer", value=lambda t: torch.zeros(()).expand(t.shape)
    ),
}


def test_refuses_what_this_run_cannot_have(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    sound = state_of(trainer, tmp_path)
    for message, spoil in SPOILED.items():
        state = copy.deepcopy(sound)
        spoil(state)
        with pytest.raises(ValueError, match=message):
            check(state, trainer)


def test_a_count_of_steps_beyond_the_run_s(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    trainer.optimizer = OPTIMIZERS["adamw"](trainer.network.parameters())
    state = state_of(trainer, tmp_path)
    state["optimizer"]["state"][0]["step"] = torch.tensor(-1.0)
    with pytest.raises(ValueError, match="step of weight 0 is -1.0, expected 0 to 9"):
        check(state, trainer)
