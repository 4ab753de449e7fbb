"""How alike the channels of a feature map are, over many images: correlations and effective rank, by IFD's halves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.layers import Layer, LayerMaps


@dataclass(frozen=True)
class ChannelSimilarity:
    """The channels of one map, sorted by IFD's score, descending (SPEC section 2); C of them.

    The upper half are the first C // 2, the lower half the last C // 2: of an odd number the median channel is in
    neither. A channel that is constant over all images and positions has no correlation: its row and column are nan,
    and every number leaves it out.
    """

    order: np.ndarray  # (C,) the channels' indices in the network, highest score first
    scores: np.ndarray  # (C,) mean of the L2-normalised maps, in that order
    correlation: np.ndarray  # (C, C) Pearson's, over images and positions, in that order
    cosine: np.ndarray  # (C, C) the same without centring

    @property
    def upper(self) -> slice:
        """Places of the half with the higher scores."""
        return slice(0, len(self.order) // 2)

    @property
    def lower(self) -> slice:
        """Places of the half with the lower scores."""
        return slice(len(self.order) - len(self.order) // 2, len(self.order))

    @property
    def live(self) -> np.ndarray:
        """(C,) which channels are not constant."""
        return ~np.isnan(self.correlation.diagonal())

    def numbers(self) -> dict[str, Any]:
        """What the matrices come to; None where too few channels are left to say.

        `mean_abs_correlation` is over pairs of different channels, `between` over pairs of an upper and a lower one.
        `pair_correlation` and `pair_cosine` are means, with their signs, over the pairs that IFD pulls together: the
        i-th of the upper with the i-th of the lower half. `effective_rank` is that of the correlation matrix (Roy and
        Vetterli 2007), from 1 to the number of channels, and its `share` is divided by that number.
        """
        halves = {"all": slice(None), "upper": self.upper, "lower": self.lower}
        ranks = {name: effective_rank(self._live_part(half)) for name, half in halves.items()}
        counts = {name: int(self.live[half].sum()) for name, half in halves.items()}
        absolute = {name: _mean(np.abs(_off_diagonal(self._live_part(half)))) for name, half in halves.items()}
        between = _mean(np.abs(self.correlation[self.upper, self.lower]))
        return {
            "channels": len(self.order),
            "constant_channels": int((~self.live).sum()),
            "mean_abs_correlation": absolute | {"between": between},
            "pair_correlation": _mean(self.correlation[self.upper, self.lower].diagonal()),
            "pair_cosine": _mean(self.cosine[self.upper, self.lower].diagonal()),
            "effective_rank": ranks,
            "effective_rank_share": {n: None if ranks[n] is None else ranks[n] / counts[n] for n in halves},
        }

    def _live_part(self, half: slice) -> np.ndarray:
        part = self.correlation[half, half]
        live = self.live[half]
        return part[live][:, live]


def effective_rank(correlation: np.ndarray) -> float | None:
    """exp of the entropy of a correlation matrix's normalised eigenvalues (Roy and Vetterli, EUSIPCO 2007).

    1 where all channels are the same up to sign and scale, C where no two are correlated; None of an empty matrix.
    """
    if not len(correlation):
        return None
    shares = np.linalg.eigvalsh(correlation).clip(min=0) / len(correlation)
    shares = shares[shares > 0]
    return float(math.exp(-(shares * np.log(shares)).sum()))


def measure_channels(network: nn.Module, batches: Iterable[Tensor], layers: Sequence[Layer]) -> list[ChannelSimilarity]:
    """Run a network over batches of images (B, C, H, W) and compare the channels of each layer's map, in float64.

    The network is run in eval mode. Memory does not grow with the number of images; how they are divided into batches
    changes nothing but rounding.

    Raises:
        ValueError: there is no image, or a layer is none (see `LayerMaps`), or has a single channel, or not the same
            number for every image, or gives numbers that are not finite.
    """
    tap = LayerMaps(network, layers)
    sums = [_Sums(layer) for layer in layers]
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                for one, feature in zip(sums, tap(batch)[1], strict=True):
                    one.add(feature.double())
    finally:
        network.train(was_training)
    return [one.similarity() for one in sums]


@dataclass
class _Sums:
    """What is kept of a map while images go by: sums over images and positions, of values less `shift`.

    The shift, each channel's first value, keeps the sums exact for what is far from 0, and 0 for what is constant.
    """

    layer: Layer
    images: int = 0
    positions: int = 0
    shift: Tensor = field(default_factory=lambda: torch.empty(0))  # (C,)
    first: Tensor | float = 0.0  # (C,)
    second: Tensor | float = 0.0  # (C, C)
    scores: Tensor | float = 0.0  # (C,)

    def add(self, feature: Tensor) -> None:
        """Count a batch of maps (B, C, H, W), float64."""
        if not self.images:
            self.shift = feature[0, :, 0, 0].clone()
        self._check(feature)
        flat = feature.flatten(2)  # (B, C, HW)
        self.scores = self.scores + torch.nn.functional.normalize(flat, dim=2, eps=1e-12).mean(dim=2).sum(dim=0)
        values = (flat - self.shift[:, None]).transpose(0, 1).flatten(1)  # (C, BHW)
        self.first = self.first + values.sum(dim=1)
        self.second = self.second + values @ values.T
        self.images += len(feature)
        self.positions += values.shape[1]

    def _check(self, feature: Tensor) -> None:
        channels = feature.shape[1]
        if channels < 2 or channels != len(self.shift):
            raise ValueError(
                f"layer {self.layer}: gives {channels} channels, and {len(self.shift)} for the first image; "
                "expected the same number, at least 2: name another layer (--layers)"
            )
        if not feature.isfinite().all():
            raise ValueError(
                f"layer {self.layer}: gives NaN or infinite numbers; expected finite ones, so give weights from before "
                "training diverged (--checkpoint)"
            )

    def similarity(self) -> ChannelSimilarity:
        """How similar the channels are over all that was counted."""
        if not self.images:
            raise ValueError("there is no image to compare channels on; expected at least one")
        count, shift = self.positions, self.shift
        covariance = self.second - torch.outer(self.first, self.first) / count
        raw = self.second + torch.outer(self.first, shift) + torch.outer(shift, self.first)
        raw = raw + count * torch.outer(shift, shift)
        constant = self.second.diagonal() == 0
        correlation, cosine = (_normalised(matrix, constant) for matrix in (covariance, raw))
        scores, order = (self.scores / self.images).sort(descending=True, stable=True)
        return ChannelSimilarity(
            order.cpu().numpy(),
            scores.cpu().numpy(),
            *(matrix[order][:, order].cpu().numpy() for matrix in (correlation, cosine)),
        )


def _normalised(matrix: Tensor, left_out: Tensor) -> Tensor:
    """A matrix of products with its diagonal brought to 1; rows and columns of what is left out are nan."""
    length = matrix.diagonal().clamp(min=0).sqrt().masked_fill(left_out, math.nan)
    return (matrix / torch.outer(length, length)).clamp(-1, 1)


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _mean(values: np.ndarray) -> float | None:
    """The mean of those that are not nan, None where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None
