"""The four metrics as SPEC section 5 words them: whole arrays, full distance maps, nothing saved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


def surface(mask: np.ndarray) -> np.ndarray:
    """The mask minus its erosion by the direct neighbours; outside of the array is background."""
    return mask & ~binary_erosion(mask)


def compare(pred: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None = None) -> dict[str, float]:
    """The four metrics of two masks that both hold something."""
    pred, truth = pred.astype(bool), truth.astype(bool)
    to_truth = distance_transform_edt(~surface(truth), sampling=spacing)[surface(pred)]
    to_pred = distance_transform_edt(~surface(pred), sampling=spacing)[surface(truth)]
    pooled = np.concatenate([to_truth, to_pred])
    return {
        "dice": 2.0 * (pred & truth).sum() / (pred.sum() + truth.sum()),
        "hd95": np.percentile(pooled, 95),
        "jaccard": (pred & truth).sum() / (pred | truth).sum(),
        "assd": pooled.mean(),
    }
