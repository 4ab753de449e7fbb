"""Similarity of the channels of a feature map over many images: correlations and effective rank, by IFD's halves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from analysis.layers import Layer, channels_first, layer_maps


@dataclass(frozen=True)
class ChannelSimilarity:
    """The C channels of a map, sorted by IFD's score, descending (arXiv 2406.14896, section 2).

    A channel that is constant over all images and positions has no correlation: its row and column are nan, and every
    number leaves it out; where too few channels are left a number is None.
    """

    order: np.ndarray  # (C,) the channels' indices in the network, highest score first
    scores: np.ndarray  # (C,) mean of the L2-normalized maps, in that order
    correlation: np.ndarray  # (C, C) Pearson's, over images and positions, in that order
    cosine: np.ndarray  # (C, C) the same without centering

    @property
    def halves(self) -> dict[str, slice]:
        """Places of all channels, of the first C // 2 (upper) and of the last C // 2 (lower)."""
        half, channels = len(self.order) // 2, len(self.order)
        return {"all": slice(channels), "upper": slice(half), "lower": slice(channels - half, channels)}

    def describe(self, half: str) -> tuple[float | None, float | None, int]:
        """Of a half: mean |r| over pairs of different channels, effective rank, number of channels not constant."""
        matrix = self.correlation[self.halves[half], self.halves[half]]
        live = ~np.isnan(matrix.diagonal())
        matrix = matrix[live][:, live]
        return _mean(np.abs(matrix[~np.eye(len(matrix), dtype=bool)])), effective_rank(matrix), len(matrix)

    def numbers(self) -> dict[str, object]:
        """What the matrices come to, for JSON; pair_* are means, with signs, over the pairs that IFD pulls together."""
        upper, lower = self.halves["upper"], self.halves["lower"]
        found = {half: self.describe(half) for half in self.halves}
        between = _mean(np.abs(self.correlation[upper, lower]))
        return {
            "channels": len(self.order),
            "constant_channels": len(self.order) - found["all"][2],
            "mean_abs_correlation": {half: absolute for half, (absolute, _, _) in found.items()} | {"between": between},
            "pair_correlation": _mean(self.correlation[upper, lower].diagonal()),
            "pair_cosine": _mean(self.cosine[upper, lower].diagonal()),
            "effective_rank": {half: rank for half, (_, rank, _) in found.items()},
            "effective_rank_share": {half: rank and rank / live for half, (_, rank, live) in found.items()},
        }


def effective_rank(correlation: np.ndarray) -> float | None:
    """exp of the entropy of a correlation matrix's normalized eigenvalues (Roy and Vetterli, EUSIPCO 2007).

    1 where all channels are the same up to sign and scale, C where no two are correlated; None of an empty matrix.
    """
    if not len(correlation):
        return None
    eigenvalues = torch.linalg.eigvalsh(torch.from_numpy(correlation)).clamp(min=0) / len(correlation)
    return torch.special.entr(eigenvalues).sum().exp().item()


@torch.no_grad()
def measure_channels(network: nn.Module, batches: Iterable[Tensor], layers: Sequence[Layer]) -> list[ChannelSimilarity]:
    """Run a network in eval mode over batches (B, C, H, W) and compare the channels of each layer's map, in float64."""
    images = 0
    shifts: dict[Layer, Tensor] = {}
    products: dict[Layer, Tensor] = {}
    scores: dict[Layer, Tensor] = {}
    for batch in batches:
        images += len(batch)
        for layer, given in zip(layers, layer_maps(network, layers, batch)[1], strict=True):
            flat = channels_first(network, layer, given, batch.shape[2:]).flatten(2).double()  # (B, C, HW)
            if flat.shape[1] < 2:
                raise ValueError(f"{layer.name}: gives a single channel; expected at least 2, name another (--layers)")
            if not flat.isfinite().all():
                raise ValueError(f"{layer.name}: gives NaN or infinity; give a --checkpoint from before it diverged")
            # Minus each channel's first value, sums are exact for what is far from 0, and 0 for what is constant.
            shift = shifts.setdefault(layer, flat[0, :, :1].clone())
            values = F.pad(flat - shift, (0, 0, 0, 1), value=1).transpose(0, 1).flatten(1)  # (C + 1, BHW)
            products[layer] = products.get(layer, 0) + values @ values.T
            scores[layer] = scores.get(layer, 0) + F.normalize(flat, dim=2).mean(dim=2).sum(dim=0)
    return [_similarity(products[layer], shifts[layer][:, 0], scores[layer] / images) for layer in layers]


def _similarity(products: Tensor, shift: Tensor, scores: Tensor) -> ChannelSimilarity:
    """The similarity of C channels by the products (C + 1, C + 1) of their values less `shift` and of 1, all summed."""
    scores, order = scores.sort(descending=True, stable=True)
    second, first, count = products[:-1, :-1], products[:-1, -1], products[-1, -1]
    covariance, mean = second - torch.outer(first, first) / count, first / count + shift
    matrices = []
    for matrix in (covariance, covariance + count * torch.outer(mean, mean)):
        length = matrix.diagonal().clamp(min=0).sqrt().masked_fill(second.diagonal() == 0, math.nan)
        matrices.append((matrix / torch.outer(length, length)).clamp(-1, 1)[order][:, order].cpu().numpy())
    return ChannelSimilarity(order.cpu().numpy(), scores.cpu().numpy(), *matrices)


def _mean(values: np.ndarray) -> float | None:
    """The mean of those that are not nan, None where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def draw(measured: Mapping[Layer, ChannelSimilarity], title: str) -> Figure:
    """A column for each layer: the correlations within the upper half of its channels over those within the lower."""
    figure = Figure(figsize=(max(1.75 * len(measured) + 0.9, 6.0), 4.8), dpi=150, layout="constrained")
    figure.suptitle(f"{title}: correlation of channels, highest score first (gray: constant)", fontsize=10, wrap=True)
    axes = figure.subplots(2, len(measured), squeeze=False)
    colors = colormaps["RdBu_r"].with_extremes(bad="0.75")
    for column, (layer, one) in zip(axes.T, measured.items(), strict=True):
        column[0].set_title(f"{layer.label}\n{layer.short_name}\n{len(one.order)} channels", fontsize=7.5)
        for panel, half in zip(column, ("upper", "lower"), strict=True):
            shown = one.correlation[one.halves[half], one.halves[half]]
            image = panel.imshow(shown, cmap=colors, vmin=-1, vmax=1, interpolation="nearest")
            absolute, rank, live = one.describe(half)
            below = f"mean |r| {absolute:.2f}\neffective rank {rank:.1f} of {live}" if absolute and rank else "constant"
            panel.set(xticks=[], yticks=[])
            panel.set_xlabel(below, fontsize=7.5)
    for panel, half in zip(axes[:, 0], ("upper", "lower"), strict=True):
        panel.set_ylabel(f"{half} half", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, pad=0.01, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("Pearson correlation", fontsize=8)
    return figure
