"""Dice, HD95, Jaccard and ASSD from their definitions, by full distance maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


def surface(mask: np.ndarray) -> np.ndarray:
    """The mask minus its erosion by the direct neighbours; outside of the array is background."""
    return mask & ~binary_erosion(mask)


def distances(start: np.ndarray, goal: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Distance of each surface point of one mask to the nearest one of the other."""
    return distance_transform_edt(~surface(goal), sampling=spacing)[surface(start)]


def compare(pred: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None = None) -> dict[str, float]:
    """The four metrics of two masks that both hold something."""
    pred, truth = pred.astype(bool), truth.astype(bool)
    pooled = np.concatenate([distances(pred, truth, spacing), distances(truth, pred, spacing)])
    return {
        "dice": 2.0 * (pred & truth).sum() / (pred.sum() + truth.sum()),
        "hd95": np.percentile(pooled, 95),
        "jaccard": (pred & truth).sum() / (pred | truth).sum(),
        "assd": pooled.mean(),
    }
