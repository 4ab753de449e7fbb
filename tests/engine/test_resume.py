"""The check of a save before a run resumes from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.resume import check_tensors, pack_state
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
    check_tensors(state, trainer.optimizer)


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
    "a gradient or moment is torch.float32 .2,.*expected a plain tensor": _deep("gradients", 0, value=torch.zeros(2)),
    "its optimizer holds .* of a weight": _deep("optimizer", "state", 1, value={"exp_avg": torch.zeros(4)}),
    "a gradient or moment is torch.float64": _deep(
        "optimizer", "state", 0, "momentum_buffer", value=lambda t: t.double()
    ),
    "a gradient or moment is torch.float32": _deep(
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
