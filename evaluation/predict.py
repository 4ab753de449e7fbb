"""Whole volumes segmented slice by slice, zoomed to the network's size or in sliding windows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.case import IGNORE, SlicedImage, Volume, Volumes
from datasets.transforms import resize_image, resize_label, send
from engine.distributed import Ranks
from evaluation.metrics import dice_per_class
from evaluation.sliding import sliding_window_logits
from utils import release_pages, sum_heads

# The feature maps of larger batches leave a CPU's caches: 24 slices at once take a fifth longer than 6 times 4.
_MAX_BATCH_ON_CPU = 4
_MAX_BATCH = 64  # a GPU gains nothing by more


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
    """Segment a volume slice by slice: cubic zoom to the network's size, argmax, nearest zoom back.

    With `overlap` nothing is zoomed: windows of the network's size slide over each slice, and their logits are blended.

    Args:
        network: (B, C, H, W) to logits (B, K, H, W), or a tuple of heads, which are summed; runs in eval mode.
        volume: (D, H, W), or (D, C, H, W) in color, with intensities as in training.
        img_size: side or (H, W) of the network's input.
        batch_size: slices, or windows of them, per forward pass; at most 4 on a CPU.
        device: where the network is.
        autocast: dtype of the forward pass, such as torch.bfloat16; None runs it as it is.
        overlap: of neighboring windows, in [0, 1); None zooms, as published.
        out: (D, H, W) uint8 for the result, such as a memmap; else a new array is returned.

    Raises:
        ValueError: another shape, or a batch size or overlap out of range.
    """
    if batch_size < 1 or not 0 <= (overlap or 0) < 1:
        raise ValueError(f"batch_size is {batch_size}, overlap {overlap}; expected 1 or more, and 0 to below 1")
    if volume.ndim not in (3, 4) or 0 in volume.shape:
        shape = tuple(volume.shape)
        raise ValueError(
            f"predict_volume: volume has shape {shape}; expected (D, H, W) or (D, C, H, W), none of them 0"
        )

    forward = partial(_forward, network, autocast=autocast)
    window = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
    height, width = volume.shape[-2:]
    device = torch.device(device)
    if device.type == "cpu":
        batch_size = min(batch_size, _MAX_BATCH_ON_CPU)
    prediction = np.empty((volume.shape[0], height, width), np.uint8) if out is None else out
    with torch.inference_mode(), _evaluating(network):
        for first in range(0, len(volume), batch_size):
            batch = volume[first : first + batch_size]
            # The copy takes every dtype and byte order, and read-only arrays without a warning.
            images = batch if isinstance(batch, Tensor) else send(torch.from_numpy(np.array(batch, np.float32)), device)
            images = images.to(device, torch.float32).reshape(len(batch), -1, height, width)
            if overlap is None:
                zoomed = resize_image(images.flatten(0, 1), window)
                logits = forward(zoomed.unflatten(0, images.shape[:2]))
            else:
                logits = sliding_window_logits(forward, images, window=window, overlap=overlap, batch_size=batch_size)
            labels = logits.max(dim=1).indices  # equal to argmax, which takes four times as long on a CPU
            labels = resize_label(labels.to(torch.uint8), (height, width))
            prediction[first : first + batch_size] = labels.cpu().numpy()
            release_pages(prediction)
    return prediction


def fitting_batch_size(
    network: nn.Module,
    shape: tuple[int, int, int],
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> int:
    """How many inputs of `shape` (C, H, W) at once take half of a GPU's free memory, 64 at most; 4 on a CPU."""
    if device.type == "cpu":
        return _MAX_BATCH_ON_CPU
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode(), _evaluating(network):
        _forward(network, torch.zeros(2, *shape, device=device), autocast)
    each = (torch.cuda.max_memory_allocated(device) - before) / 2
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
    return max(1, min(_MAX_BATCH, int(free / 2 / each)))


def _forward(network: nn.Module, batch: Tensor, autocast: torch.dtype | None) -> Tensor:
    with nullcontext() if autocast is None else torch.autocast(batch.device.type, dtype=autocast):
        return sum_heads(network(batch))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def prediction_memmap(volume: Volume, folder: Path) -> np.ndarray | None:
    """A (D, H, W) uint8 memmap of an unnamed file in `folder`; None for a volume that is in memory itself.

    Raises:
        OSError: the disk has no room for it.
    """
    if isinstance(volume.image, np.ndarray):
        return None
    shape = (volume.image.shape[0], *volume.image.shape[-2:])
    with TemporaryFile(dir=folder) as file:
        try:  # memory that the disk has no room for would end the process
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from None
        return np.memmap(file, np.uint8, "w+", shape=shape)


def without_ignored(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and its truth, both background where the truth is to be ignored."""
    ignored = truth == IGNORE
    if not ignored.any():
        return predicted, truth
    return np.where(ignored, np.uint8(0), predicted), np.where(ignored, np.uint8(0), truth)


def validate(
    network: nn.Module,
    volumes: Volumes,
    *,
    class_names: Sequence[str],
    foreground: bool = False,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    ranks: Ranks | None = None,
    **how: Any,
) -> dict[str, float]:
    """Mean Dice (strict convention) of each class over labeled volumes and, as `dice`, the mean over the classes.

    With `foreground` all classes count as one of this name, as published for ACDC. `progress` wraps the iterator over
    the cases; all `ranks` return the same scores. `how` are the keywords of `predict_volume`.
    """
    ranks = ranks or Ranks()
    class_names = ("foreground",) if foreground else class_names
    rows = {}
    for index in progress(ranks.shard(len(volumes))):
        volume = volumes[index]
        predicted, truth = without_ignored(predict_volume(network, volume.image, **how), np.asarray(volume.label))
        if foreground:
            predicted, truth = predicted.clip(max=1), truth.clip(max=1)
        rows[index] = dice_per_class(predicted, truth, len(class_names) + 1)
    dice = dict(zip(class_names, np.asarray(ranks.in_order(rows)).T, strict=True))
    means = {name: float(np.nanmean(cases)) for name, cases in dice.items() if not np.isnan(cases).all()}
    return {"dice": float(np.mean(list(means.values()))) if means else 0.0, **means}
