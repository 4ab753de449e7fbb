"""Layers that several networks have, their random init, and gradient checkpointing."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp as TimmMlp
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


class Mlp(TimmMlp):
    """Two linear layers `fc1` and `fc2` with GELU between and dropout after both, initialized as by TransUNet."""

    def __init__(self, width: int, hidden: int, drop_rate: float) -> None:
        super().__init__(width, hidden, drop=drop_rate)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.normal_(parameter, std=1e-6)


def resize_bilinear(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinear interpolation of (B, C, H, W), as `F.interpolate`.

    On a GPU that is to repeat its numbers it is two products of matrices: torch would sort indices, in ten launches.
    """
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)
    rows, columns = (
        _interpolation(old, new, align_corners, x.device) for old, new in zip(x.shape[2:], size, strict=True)
    )
    with torch.autocast(x.device.type, enabled=False):
        return (rows @ (x.float() @ columns.T)).to(x.dtype)


@lru_cache(maxsize=64)
def _interpolation(old: int, new: int, align_corners: bool, device: torch.device) -> Tensor:
    """The matrix (new, old) of linear interpolation, kept for training even where a prediction asks first."""
    with torch.inference_mode(False):
        return F.interpolate(torch.eye(old, device=device)[None], new, mode="linear", align_corners=align_corners)[0].T


class BilinearUpsample(nn.Module):
    """Enlarge (B, C, H, W) by bilinear interpolation; see `resize_bilinear`."""

    def __init__(self, scale: int, *, align_corners: bool) -> None:
        super().__init__()
        self.scale, self.align_corners = scale, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return resize_bilinear(x, [self.scale * side for side in x.shape[2:]], self.align_corners)


def named(**modules: nn.Module) -> nn.Sequential:
    """A sequence of modules under the names that they have in the published weights."""
    return nn.Sequential(OrderedDict(modules))


def conv_bn_relu(*channels: int, bias: bool = False) -> nn.Sequential:
    """3x3 convolution, batch norm and ReLU from each of the numbers of channels to the next."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairwise(channels):
        conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)
        layers += conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    return nn.Sequential(*layers)


def init_linear(module: nn.Module) -> None:
    """Random init of linear layers as in Swin and PVT; other modules stay as they are."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_conv(module: nn.Module) -> None:
    """Random init of convolutions by their fan-out (He et al., 2015); other modules stay as they are."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Checkpointed(nn.Module):
    """A module that can recompute its parts in the backward pass, which saves memory and costs time."""

    use_checkpoint = False  # set by `build_network`

    def run(self, part: nn.Module, *inputs: object) -> Any:
        """Call a part; with `use_checkpoint` its inputs alone are kept for the backward pass.

        The second pass does not update the statistics of batch norm. Within a graph of torch.compile that cannot be
        had, so parts with batch norm are not recomputed there.
        """
        if not (self.use_checkpoint and torch.is_grad_enabled()):
            return part(*inputs)
        norms = [m for m in part.modules() if isinstance(m, BatchNorm)]
        if not norms:
            return checkpoint(part, *inputs, use_reentrant=False)
        if torch.compiler.is_compiling():
            return part(*inputs)
        contexts = nullcontext(), _FrozenStatistics(norms)
        return checkpoint(part, *inputs, use_reentrant=False, context_fn=lambda: contexts)


class _FrozenStatistics:
    """A context in which batch norms normalize as before but leave their running statistics as they are.

    It may be entered several times: every backward pass through a retained graph recomputes.
    """

    def __init__(self, norms: Sequence[Any]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
