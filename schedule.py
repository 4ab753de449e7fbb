"""How long a run is, and its learning rate at every step (SPEC section 4)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How long to train and at what rate (SPEC section 4).

    The rate after step n, counted from 0, is `base_lr * (1 - n/N)^power`; it is set after the step, so the first two
    steps both run at `base_lr`. `warmup_steps` first raises it linearly; `power` 0 keeps it constant.
    """

    epochs: int
    steps_per_epoch: int
    base_lr: float
    power: float = 0.9
    max_steps: int = 0
    warmup_steps: int = 0

    @property
    def total_steps(self) -> int:
        """N, in optimiser steps."""
        steps = self.epochs * self.steps_per_epoch
        return min(steps, self.max_steps) if self.max_steps else steps

    def lr_after(self, step: int) -> float:
        """The rate to set after optimiser step `step`; -1 gives the rate of the first one."""
        if step + 1 < self.warmup_steps:
            return self.base_lr * (step + 2) / (self.warmup_steps + 1)
        return self.base_lr * max(0.0, 1 - max(step, 0) / self.total_steps) ** self.power
