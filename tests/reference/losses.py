"""The loss terms in plain loops, from their formulas (arXiv 2406.14896, section 2); slow and obvious."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np


def naive_dice(p: np.ndarray, y: np.ndarray, weight: list[float] | None = None) -> float:
    """p (B, K, H, W) probabilities, y (B, H, W) classes."""
    classes = p.shape[1]
    total = 0.0
    for i in range(classes):
        product = squares = truths = 0.0
        for b, h, w in np.ndindex(y.shape):
            truth = 1.0 if y[b, h, w] == i else 0.0
            product += p[b, i, h, w] * truth
            squares += p[b, i, h, w] ** 2
            truths += truth**2
        total += (weight[i] if weight else 1.0) * (1 - (2 * product + 1e-5) / (squares + truths + 1e-5))
    return total / classes


def naive_cross_entropy(x: np.ndarray, y: np.ndarray) -> float:
    """x (B, K, H, W) logits, y (B, H, W) classes."""
    total = 0.0
    for b, h, w in np.ndindex(y.shape):
        logits = x[b, :, h, w]
        total += math.log(sum(math.exp(v) for v in logits)) - logits[y[b, h, w]]
    return total / y.size


def naive_mse(a: np.ndarray, b: np.ndarray) -> float:
    """a, b (B, n, *space), compared channel by channel."""
    return sum((v - w) ** 2 for v, w in zip(a.flat, b.flat, strict=True)) / a.size


def naive_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """One minus the cosine of each channel with its partner; a dead channel's cosine is 0."""
    found = []
    for place in np.ndindex(a.shape[:2]):
        v, w = a[place].ravel(), b[place].ravel()
        lengths = math.sqrt(sum(v * v)) * math.sqrt(sum(w * w))
        found.append(1 - (sum(v * w) / lengths if lengths else 0.0))
    return sum(found) / len(found)


def naive_normalized_mse(a: np.ndarray, b: np.ndarray) -> float:
    """Squared distance over the energy of both."""
    distance = energy = 0.0
    for v, w in zip(a.flat, b.flat, strict=True):
        distance += (v - w) ** 2
        energy += v**2 + w**2
    return distance / energy if energy else 0.0


Distance = Callable[[np.ndarray, np.ndarray], float]


def naive_intra(f: np.ndarray, distance: Distance = naive_mse) -> float:
    """f (B, C, H, W)."""
    batch, channels = f.shape[:2]
    scores = []
    for c in range(channels):
        values = []
        for b in range(batch):
            norm = max(math.sqrt(sum(v * v for v in f[b, c].flat)), 1e-12)
            values += [v / norm for v in f[b, c].flat]
        scores.append(sum(values) / len(values))
    order = sorted(range(channels), key=lambda c: -scores[c])
    strong, weak = order[: channels // 2], order[channels // 2 :]
    return float(distance(f[:, strong], f[:, weak]))


def naive_pool(f: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Adaptive average pooling of (B, C, *space): cell i of n covers floor(i*N/n) to ceil((i+1)*N/n)."""
    out = np.empty(f.shape[:2] + tuple(size))
    for cell in np.ndindex(*size):
        window = tuple(
            slice(i * big // small, -(-(i + 1) * big // small))
            for i, small, big in zip(cell, size, f.shape[2:], strict=True)
        )
        out[(slice(None), slice(None), *cell)] = f[(slice(None), slice(None), *window)].mean(
            axis=tuple(range(2, f.ndim))
        )
    return out


def naive_inter(s: np.ndarray, t: np.ndarray, distance: Distance = naive_mse) -> float:
    """s (B, C_s, *space), t (B, C_t, *space); draws from Python's `random`."""
    n = min(s.shape[1], t.shape[1])
    of_s, of_t = random.sample(range(s.shape[1]), n), random.sample(range(t.shape[1]), n)
    size = tuple(min(a, b) for a, b in zip(s.shape[2:], t.shape[2:], strict=True))
    s, t = naive_pool(s, size), naive_pool(t, size)
    return float(distance(s[:, of_s], t[:, of_t]))


def naive_kdloss(encoder: list, decoder: list, final: np.ndarray, lambda_1: float, lambda_2: float) -> float:
    """Stages as lists of block maps, encoder fine to coarse, decoder coarse to fine."""

    def scr(block: int) -> float:
        return float(np.mean([naive_inter(stage[block], final) for stage in [*decoder, *encoder]]))

    def ifd(stages: list, block: int) -> float:
        return float(np.mean([naive_intra(stage[block]) for stage in stages]))

    if all(len(stage) == 1 for stage in encoder + decoder):
        return lambda_1 * scr(0) + lambda_2 * (ifd(encoder, 0) + ifd(decoder, 0))
    both = (-1, 0)
    return lambda_1 * sum(scr(b) for b in both) + lambda_2 * sum(ifd(p, b) for p in (encoder, decoder) for b in both)
