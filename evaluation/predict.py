"""Predict whole volumes slice by slice (SPEC section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor, nn

from datasets.base import SlicedImage, Volume
from datasets.transforms import resize_image, resize_label
from engine.distributed import Ranks
from evaluation.sliding import check_overlap, sliding_scores
from utils import release_pages, sum_heads

# A CPU gains nothing from larger passes, and their maps leave its caches: 24 slices take a fifth longer than 6 x 4.
_MOST_ON_A_CPU = 4


def predict_volume(
    network: nn.Module,
    volume: np.ndarray | Tensor | SlicedImage,
    *,
    img_size: int | Sequence[int],
    batch_size: int = 24,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    overlap: float | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Label a volume slice by slice: cubic zoom to the network's size, argmax, nearest zoom back.

    With `overlap`, nothing is zoomed: a window of the network's size slides over each slice at its own resolution, and
    the logits of the windows are blended before the argmax (`evaluation.sliding`). That suits a network that was
    trained on crops, or on images of about this resolution. One batch of slices at a time is asked of the volume, goes
    to the device and comes back as labels of the volume's own size.

    Args:
        network: (B, C, H, W) to logits (B, K, H, W), or to a tuple of heads, which are summed; it is run in eval mode.
        volume: (D, H, W), or in colour (D, C, H, W), numbers, intensities as in training.
        img_size: side or (H, W) of the network's input.
        batch_size: slices, or windows of them, a pass at most; on a CPU never more than 4.
        device: where the network is.
        autocast: run the network in this type, such as torch.bfloat16, where that is safe; None in its own.
        overlap: None zooms, as published; the share in [0, 1) by which neighbouring windows overlap slides.
        out: where to put the labels, such as a file mapped into memory; None makes an array.

    Returns:
        (D, H, W) uint8.

    Raises:
        ValueError: the volume has another shape or is empty, batch_size is below 1, or overlap is no such share.
    """
    volume = volume.detach() if isinstance(volume, Tensor) else volume
    volume = volume if hasattr(volume, "ndim") else np.asarray(volume)
    if volume.ndim not in (3, 4) or 0 in volume.shape:
        raise ValueError(
            f"predict_volume: got a volume of shape {tuple(volume.shape)}; expected (D, H, W), or (D, C, H, W) in "
            "colour, with at least one voxel"
        )
    if batch_size < 1:
        raise ValueError(f"predict_volume: batch_size is {batch_size}; expected at least 1")
    check_overlap(overlap)
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if torch.device(device).type == "cpu":
        batch_size = min(batch_size, _MOST_ON_A_CPU)
    prediction = np.empty((volume.shape[0], *volume.shape[-2:]), np.uint8) if out is None else out
    was_training = network.training
    network.eval()
    try:
        for first in range(0, len(volume), batch_size):
            part = volume[first : first + batch_size]
            # A batch is copied, as torch takes neither every kind of array nor, without a warning, a read-only one.
            images = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part, dtype=np.float32))
            images = images.to(device, torch.float32)
            labels = _predict_batch(network, images, size, autocast, overlap, batch_size)
            prediction[first : first + batch_size] = labels.cpu().numpy()
            release_pages(prediction)
    finally:
        network.train(was_training)
    return prediction


def room_for(volume: Volume, folder: Path) -> np.ndarray | None:
    """Where the labels of a volume that is read by slices go: a nameless file in `folder`, mapped into memory.

    None for one that lies in memory, whose labels may lie there too.
    """
    if isinstance(volume.image, np.ndarray):
        return None
    shape = (volume.image.shape[0], *volume.image.shape[-2:])
    with TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


@torch.inference_mode()
def _predict_batch(
    network: nn.Module,
    images: Tensor,
    size: tuple[int, int],
    autocast: torch.dtype | None,
    overlap: float | None,
    batch_size: int,
) -> Tensor:
    """Slices (B, H, W) or (B, C, H, W) float32 to labels (B, H, W) uint8, on their device."""
    logits_of = partial(_logits, network, autocast)
    count, (height, width) = len(images), images.shape[-2:]
    if overlap is None:
        planes = resize_image(images.reshape(-1, height, width), size)
        logits = logits_of(planes.reshape(count, -1, *size))
    else:
        windows = {"window": size, "overlap": overlap, "batch_size": batch_size}
        logits = sliding_scores(logits_of, images.reshape(count, -1, height, width), **windows)
    labels = logits.max(dim=1).indices  # the same as argmax, which takes four times as long on a CPU
    return resize_label(labels.to(torch.uint8), (height, width))


def _logits(network: nn.Module, autocast: torch.dtype | None, batch: Tensor) -> Tensor:
    """(B, C, H, W) to logits (B, K, H, W), those of several heads summed."""
    with nullcontext() if autocast is None else torch.autocast(batch.device.type, dtype=autocast):
        return sum_heads(network(batch))


def validate(
    network: nn.Module,
    volumes: Sequence[Volume],
    *,
    class_names: Sequence[str],
    img_size: int | Sequence[int],
    batch_size: int = 24,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    overlap: float | None = None,
    foreground: bool = False,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Mean Dice of each class over labelled volumes and, as `dice`, the mean of these means.

    The strict convention: a class absent from truth and prediction of a case says nothing about it and is left out.
    `foreground` takes all classes as one, as published for ACDC: a voxel of the wrong class is then right.
    Size, device, types and windows as in `predict_volume`; `progress` wraps the iterator over the cases. Of several
    `ranks` each takes its share of the cases, and all return the same scores.
    """
    class_names = ("foreground",) if foreground else class_names
    ranks = ranks or Ranks()
    how = {"img_size": img_size, "batch_size": batch_size, "device": device, "autocast": autocast, "overlap": overlap}
    rows = {}
    for index in progress(ranks.shard(len(volumes))):
        volume = volumes[index]
        predicted, truth = predict_volume(network, volume.image, **how), volume.label
        if foreground:
            predicted, truth = predicted.clip(max=1), truth.clip(max=1)
        rows[index] = _dice_of_classes(predicted, truth, len(class_names) + 1)
    table = np.asarray(ranks.in_order(rows))
    scores = {
        name: float(np.nanmean(column))
        for name, column in zip(class_names, table.T, strict=True)
        if not np.isnan(column).all()
    }
    return {"dice": float(np.mean(list(scores.values()))) if scores else 0.0, **scores}


def _dice_of_classes(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Dice of the classes 1 to `num_classes` - 1 in two label arrays, from three histograms; nan where both lack it."""
    both, found, present = (_sizes(labels, num_classes) for labels in (predicted[predicted == truth], predicted, truth))
    with np.errstate(invalid="ignore"):
        return 2 * both / (found + present)


def _sizes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How many voxels the classes 1 to `num_classes` - 1 have."""
    writable = np.require(labels.ravel(), requirements="W")  # torch warns of what is not, as labels in a cache are
    return torch.bincount(torch.from_numpy(writable), minlength=num_classes)[1:num_classes].double().numpy()
