"""Predict whole volumes slice by slice (SPEC section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from datasets.base import Volume
from datasets.transforms import resize_image, resize_label
from evaluation.metrics import dice


def predict_volume(
    network: nn.Module,
    volume: np.ndarray | Tensor,
    *,
    img_size: int | Sequence[int],
    batch_size: int = 24,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Label a volume slice by slice: cubic zoom to the network's size, argmax, nearest zoom back.

    Args:
        network: (B, 1, H, W) to logits (B, K, H, W), or to a tuple of heads, which are summed; it is run in eval mode.
        volume: (D, H, W) floats, intensities as in training.
        img_size: side or (H, W) of the network's input.
        batch_size: slices a pass.
        device: where the network is.

    Returns:
        (D, H, W) uint8.

    Raises:
        ValueError: the volume is not three-dimensional or is empty, or batch_size is below 1.
    """
    images = volume.detach().cpu().numpy() if isinstance(volume, Tensor) else np.asarray(volume)
    if images.ndim != 3 or 0 in images.shape:
        raise ValueError(
            f"predict_volume: got a volume of shape {images.shape}; expected (D, H, W) with at least one voxel"
        )
    if batch_size < 1:
        raise ValueError(f"predict_volume: batch_size is {batch_size}; expected at least 1")
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    was_training = network.training
    network.eval()
    try:
        prediction = np.empty(images.shape, dtype=np.uint8)
        for first in range(0, len(images), batch_size):
            part = slice(first, first + batch_size)
            prediction[part] = _predict_batch(network, images[part], size, device)
    finally:
        network.train(was_training)
    return prediction


@torch.inference_mode()
def _predict_batch(
    network: nn.Module, images: np.ndarray, size: tuple[int, int], device: torch.device | str
) -> np.ndarray:
    """Slices (B, H, W) to labels (B, H, W) uint8."""
    batch = torch.from_numpy(resize_image(np.asarray(images, dtype=np.float32), size)).unsqueeze(1)
    logits = network(batch.to(device))
    if isinstance(logits, (tuple, list)):
        logits = torch.stack(tuple(logits)).sum(dim=0)
    labels = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return resize_label(labels, images.shape[1:])


def validate(
    network: nn.Module,
    volumes: Sequence[Volume],
    *,
    class_names: Sequence[str],
    img_size: int | Sequence[int],
    batch_size: int = 24,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Mean Dice of each class over labelled volumes and, as `dice`, the mean of these means.

    The strict convention: a class absent from truth and prediction of a case says nothing about it and is left out.
    """
    per_case = []
    for volume in volumes:
        predicted = predict_volume(network, volume.image, img_size=img_size, batch_size=batch_size, device=device)
        per_case.append([dice(predicted == c, volume.label == c) for c in range(1, len(class_names) + 1)])
    table = np.asarray(per_case)
    scores = {
        name: float(np.nanmean(column))
        for name, column in zip(class_names, table.T, strict=True)
        if not np.isnan(column).all()
    }
    return {"dice": float(np.mean(list(scores.values()))) if scores else 0.0, **scores}
