"""Slices of cases as a network takes them in prediction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.base import Volume
from datasets.transforms import resize_image


class Subject(NamedTuple):
    """One slice of a case, and the class that is asked for; all arrays (H, W) of the slice's own size."""

    volume: Volume
    index: int
    class_name: str
    target: int
    truth: np.ndarray | None  # bool, the pixels of the class; None without labels
    prediction: np.ndarray  # bool


class Place(NamedTuple):
    """A slice of a set of volumes."""

    volume: int
    index: int


def candidate_slices(volumes: Sequence[Volume]) -> list[Place]:
    """Every slice of a set of volumes; of a volume with labels, those that hold any."""
    places = []
    for number in range(len(volumes)):
        volume = volumes[number]
        labelled = [] if volume.label is None else np.flatnonzero(volume.label.any(axis=(1, 2))).tolist()
        places += [Place(number, index) for index in labelled or range(len(volume.image))]
    return places


def spread(places: Sequence[Place], count: int) -> list[Place]:
    """`count` of the places at most, evenly spread over them, the first and the last among them."""
    chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    return [places[i] for i in chosen]


def read_slices(volumes: Sequence[Volume], places: Iterable[Place], size: tuple[int, int]) -> Iterator[Tensor]:
    """Each slice as (C, *size), zoomed as `evaluation.predict` does; places of one volume have to follow each other."""
    for number, group in groupby(places, key=lambda place: place.volume):
        volume = volumes[number]
        for place in group:
            yield network_input(volume, place.index, size)[0]


def network_input(volume: Volume, index: int, size: tuple[int, int]) -> Tensor:
    """One slice of a volume as (1, C, *size) float32, zoomed as `evaluation.predict` does."""
    planes = torch.from_numpy(np.array(volume.image[index : index + 1], dtype=np.float32))
    return resize_image(planes.reshape(-1, *planes.shape[-2:]), size)[None]


def batched(images: Iterable[Tensor], size: int, device: torch.device) -> Iterator[Tensor]:
    """Images (C, H, W) in batches (B, C, H, W) of `size` at most, on the device."""
    waiting: list[Tensor] = []
    for image in images:
        waiting.append(image)
        if len(waiting) == size:
            yield torch.stack(waiting).to(device)
            waiting = []
    if waiting:
        yield torch.stack(waiting).to(device)
