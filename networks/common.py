"""What the networks share: checks of options and images, padding, gradient checkpointing, weight initialization."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.layers import Mlp as TimmMlp
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Size = tuple[int, int]
Output = TypeVar("Output")


def check_counts(network: str, **options: int) -> None:
    """Whole numbers above 0, else a ValueError that names the option."""
    for option, count in options.items():
        if count < 1:
            raise ValueError(f"{network}: {option} is {count}; expected a whole number above 0")


def check_even(network: str, **options: int) -> None:
    """Widths of maps whose halves the regularizer compares: even numbers above 0."""
    for option, width in options.items():
        if width < 2 or width % 2:
            raise ValueError(f"{network}: {option} is {width}; expected an even number above 0")


def check_rates(network: str, **options: float) -> None:
    """Dropout and stochastic depth: from 0 to below 1."""
    for option, rate in options.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{network}: {option} is {rate}; expected a number from 0 to below 1")


def check_stages(network: str, stages: int, **options: Sequence[float]) -> None:
    """Numbers above 0, one a stage."""
    for option, values in options.items():
        if len(values) != stages or min(values) <= 0:
            count = {2: "two", 3: "three", 4: "four"}[stages]
            raise ValueError(f"{network}: {option} is {tuple(values)}; expected {count} numbers above 0, one a stage")


def check_multiple(network: str, option: str, value: int, of: str, divisor: int) -> None:
    """An even multiple of another option."""
    if value < 2 or value % 2 or value % divisor:
        raise ValueError(
            f"{network}: {option} is {value}; expected an even multiple of {of} {divisor}: change one of them"
        )


def as_size(img_size: int | Sequence[int]) -> Size:
    """A side or (H, W) as (H, W) in pixels.

    Raises:
        ValueError: anything but one or two whole numbers above 0.
    """
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
        raise ValueError(f"img_size is {img_size!r}; expected a side or (H, W), whole numbers above 0")
    return size[0], size[1]


def checked_size(network: str, img_size: int | Sequence[int], least: int, why: str) -> Size:
    """A side or (H, W) as (H, W), for a network whose min. size is `least` pixels a side; `why` says what asks for it.

    Raises:
        ValueError: no such size, or a side below `least`; the nearest size that fits is named.
    """
    size = as_size(img_size)
    if min(size) >= least:
        return size
    found, nearest = (" ".join(map(str, dict.fromkeys(s))) for s in (size, (max(size[0], least), max(size[1], least))))
    raise ValueError(
        f"{network}: img_size {found} does not fit {why}; the nearest that does is {nearest} (--img_size {nearest})"
    )


def check_stem(network: str, in_channels: int) -> None:
    """One channel, which a three-channel stem repeats, or three; else a ValueError."""
    if in_channels not in (1, 3):
        raise ValueError(f"{network}: in_channels is {in_channels}; expected 1 or 3")


def check_image(network: str, x: Tensor, size: Size) -> None:
    """An input (B, 1 or 3, H, W) of the network's size, else a ValueError."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or tuple(x.shape[2:]) != size:
        raise ValueError(
            f"{network}: got an input of shape {tuple(x.shape)}; expected (B, 1 or 3, {size[0]}, {size[1]}): "
            "resize it, or build the network with its img_size"
        )


def round_up(size: Size, multiple: int) -> Size:
    """The smallest (H, W) of multiples of the divisor `multiple` that holds `size`."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def grid_of(size: Size, stride: int) -> Size:
    """(H, W) in cells of `stride` pixels a side."""
    return size[0] // stride, size[1] // stride


def pad_to(x: Tensor, size: Size) -> Tensor:
    """(B, C, H, W) with zeros below and to the right up to `size`; the same tensor where it has that size."""
    rows, columns = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


def run(module: Callable[..., Output], *inputs: object, recompute: bool) -> Output:
    """Call a module; with `recompute`, and where a gradient is wanted, by gradient checkpointing.

    Batch norm counts the first pass only, so its statistics are those of a network that recomputes nothing. A graph
    of torch.compile cannot be told so, and keeps the activations of parts with batch norm.
    """
    if not (recompute and torch.is_grad_enabled()):
        return module(*inputs)
    parts = module.modules() if isinstance(module, nn.Module) else ()
    norms = [m for m in parts if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return checkpoint(module, *inputs, use_reentrant=False)
    if torch.compiler.is_compiling():
        return module(*inputs)
    contexts = nullcontext(), _FrozenStatistics(norms)
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: contexts)


class _FrozenStatistics:
    """Batch norm normalizes as before but updates no statistics, in a pass that repeats another.

    A retained graph repeats it in every backward pass, so this can be entered more than once.
    """

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
        self.norms = norms
        self.before: list[tuple[float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        counts = (norm.num_batches_tracked for norm in self.norms)
        counts = (None if count is None else count.clone() for count in counts)
        self.before = [(norm.momentum, count) for norm, count in zip(self.norms, counts, strict=True)]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


class Mlp(TimmMlp):
    """Two linear layers `fc1` and `fc2` with GELU between and dropout after both, initialized as by TransUNet."""

    def __init__(self, width: int, hidden: int, drop_rate: float) -> None:
        super().__init__(width, hidden, drop=drop_rate)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.normal_(linear.bias, std=1e-6)


def init_weights(module: nn.Module, *, convolutions: bool = False) -> None:
    """Random init of vision transformers: linear layers truncated normal, `convolutions` normal by their fan-out."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
    elif convolutions and isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
