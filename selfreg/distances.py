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
    a, b = a.flatten(2), b.flatten(2)
    products = a.square().sum(2) * b.square().sum(2)
    alive = products > 0
    # The root has no slope at 0, so what is dead leaves before it.
    lengths = torch.where(alive, products, 1).sqrt()
    return 1 - torch.where(alive, (a * b).sum(2) / lengths, 0).mean()


def normalized_mse(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance over the energy of both, `sum((a - b)^2) / (sum(a^2) + sum(b^2))`, from 0 to 2.

    Scaling both by one number leaves it as it is, so it can neither outgrow the segmentation loss nor be lowered by
    making all features small. Two maps that are dead throughout are at distance 0.
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
