"""The published evaluation of a volume: slice by slice in SciPy, class by class in MedPy."""

from __future__ import annotations

import numpy as np
import torch
from medpy.metric import binary
from torch import nn

from tests.reference.transforms import resize


def predict_slice(network: nn.Module, image: np.ndarray, side: int, device: torch.device | str) -> np.ndarray:
    """Label one slice (H, W)."""
    resized = resize(image, (side, side), 3)
    batch = torch.from_numpy(resized).unsqueeze(0).unsqueeze(0).float().to(device)
    with torch.no_grad():
        labels = network(batch).softmax(dim=1).argmax(dim=1).squeeze(0).cpu().numpy()
    return resize(labels, image.shape, 0)


def predict(network: nn.Module, volume: np.ndarray, side: int, device: torch.device | str = "cpu") -> np.ndarray:
    """Label a volume (D, H, W)."""
    network.eval()
    prediction = np.zeros(volume.shape, dtype=np.uint8)
    for i in range(len(volume)):
        prediction[i] = predict_slice(network, volume[i], side, device)
    return prediction


def measure(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The four metrics of two masks (D, H, W), in the published convention for empty ones."""
    if prediction.any() and truth.any():
        return {
            "dice": binary.dc(prediction, truth),
            "hd95": binary.hd95(prediction, truth),
            "jaccard": binary.jc(prediction, truth),
            "assd": binary.assd(prediction, truth),
        }
    score = 1.0 if prediction.any() else 0.0
    return {"dice": score, "hd95": 0.0, "jaccard": score, "assd": 0.0}


def measure_classes(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> list[dict[str, float]]:
    """The metrics of the classes 1 to `num_classes` - 1."""
    return [measure(prediction == i, truth == i) for i in range(1, num_classes)]


def evaluate(
    network: nn.Module,
    volume: np.ndarray,
    truth: np.ndarray,
    *,
    num_classes: int,
    side: int,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, list[dict[str, float]]]:
    """The prediction of a volume and its metrics by class."""
    prediction = predict(network, volume, side, device)
    return prediction, measure_classes(prediction, truth, num_classes)
