"""How far two sets of channels are apart: the published mean squared error, and two that know no scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error, as published: it grows with the square of the features' size."""
    return F.mse_loss(a, b)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean over batch and channels of 1 - cos(a_c, b_c), from 0 to 2; a dead channel has cosine 0 and no gradient.

    Args:
        a, b: (B, n, *space), compared channel by channel.
    """
    return 1 - (_unit(a.flatten(2)) * _unit(b.flatten(2))).sum(2).mean()


def _unit(a: Tensor) -> Tensor:
    """Channels (B, n, N) at length 1; a dead one stays 0, without a slope."""
    peak = a.detach().abs().amax(2, keepdim=True)  # squares of very small or large numbers leave the range of float32
    a = a / torch.where(peak > 0, peak, 1)
    # The root has no slope at 0, so what is dead leaves before it.
    return a / torch.where(peak > 0, a.square().sum(2, keepdim=True), 1).sqrt()


def normalized_mse(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance over the energy of both, `sum((a - b)^2) / (sum(a^2) + sum(b^2))`, from 0 to 2.

    Scaling both by one number leaves it as it is, so it neither grows with the features nor is lowered by making all of
    them small. Two maps that are dead throughout are at distance 0.
    """
    energy = a.square().sum() + b.square().sum()
    return (a - b).square().sum() / energy.clamp_min(torch.finfo(energy.dtype).tiny)


def by_name(name: str) -> Distance:
    """The distance of that name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(name, str) or name not in _DISTANCES:
        raise ValueError(f"KDloss: distance is {name!r}; expected one of {', '.join(_DISTANCES)}")
    return _DISTANCES[name]


_DISTANCES: dict[str, Distance] = {"mse": mse, "cosine": cosine, "normalized_mse": normalized_mse}
