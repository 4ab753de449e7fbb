"""Gradient checkpointing: recompute a part in the backward pass instead of keeping what it made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """Call a module; with `recompute`, and where a gradient is wanted, keep its inputs only and run it again later.

    Batch norm counts the first pass alone, so its statistics are those of a network that recomputes nothing. A graph
    that torch.compile makes cannot be told so, and keeps what parts with batch norm made.
    """
    if not (recompute and torch.is_grad_enabled()):
        return module(*inputs)
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return checkpoint(module, *inputs, use_reentrant=False)
    if torch.compiler.is_compiling():
        return module(*inputs)
    contexts = nullcontext(), _StatisticsUntouched(norms)
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: contexts)


class _StatisticsUntouched:
    """Batch norm normalises as before but counts nothing: a pass that is run again must not be counted twice.

    A graph that is kept is run again by every backward pass, so this can be entered more than once.
    """

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
        self.norms = norms
        self.before: list[tuple[float | None, Tensor]] = []

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
