"""Pairs of volumes, image and label, as whole volumes and as the slices of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datasets.base import Sample, Volume, check_label
from datasets.cache import CachedSlices
from datasets.images import to_classes
from datasets.intensity import Reading
from datasets.pairs import Pair
from datasets.readers import read_grid, read_image
from datasets.synapse import slice_name

_VALUES = 256  # that a label file may hold
_KEPT = 2  # volumes in memory while slices are read in order, each by a thread of its own


class VolumePairs(Sequence):
    """Volumes with their labels, one at a time as they are asked for, scaled and turned as `reading` says."""

    def __init__(self, pairs: Sequence[Pair], reading: Reading) -> None:
        self.pairs, self.reading = list(pairs), reading

    @property
    def cases(self) -> list[str]:
        """The names of the volumes."""
        return [pair.name for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Volume:
        (name, image_path, label_path), how = self.pairs[index], self.reading
        image, geometry = read_image(image_path, how.axis_order, how.orientation, spacing=how.spacing)
        label, _ = read_image(label_path, how.axis_order, how.orientation, spacing=how.spacing)
        if label.shape != image.shape:
            raise ValueError(f"{label_path}: has shape {label.shape} but {image_path.name} {image.shape}; look again")
        image = how.intensity.scale(image, how.intensity.limits(image, image_path), image_path)
        return Volume(name, image, _classes(label, how, label_path), geometry, source=image_path)


def _classes(label: np.ndarray, how: Reading, where: Path) -> np.ndarray:
    return to_classes(check_label(label, _VALUES, where), how.label_values, where)


class CachedVolumes(Dataset):
    """The slices of volumes, each volume in a cache of its own: whatever parts the volumes are divided into share it.

    Args:
        pairs: the volumes; each is read once, and again where one of its files has changed.
        reading: how.
        folder: where the caches lie.
    """

    def __init__(self, pairs: Sequence[Pair], reading: Reading, folder: str | Path) -> None:
        self.num_classes = len(reading.label_values)
        self.parts = [CachedSlices(VolumeSlices([pair], reading), folder, str(reading)) for pair in pairs]
        self.names = [name for part in self.parts for name in part.names]
        self.files = [file for part in self.parts for file in part.source.files]
        self._ends = list(accumulate(len(part) for part in self.parts))

    def prepare(self, progress: Callable[[Any], Any] = iter) -> None:
        """Make sure that every cache is there and up to date; `progress` wraps the iterator over the volumes."""
        for part in progress(self.parts):
            part.prepare()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        number = bisect_right(self._ends, index)
        return self.parts[number][index - (self._ends[number - 1] if number else 0)]


class VolumeSlices(Dataset):
    """The slices of volumes, as `Sample`s; reading one reads its volume, so that they belong into a cache."""

    def __init__(self, pairs: Sequence[Pair], reading: Reading) -> None:
        self.volumes, self.num_classes = VolumePairs(pairs, reading), len(reading.label_values)
        self._places = [
            (number, index)
            for number, pair in enumerate(self.volumes.pairs)
            for index in range(read_grid(pair.image, reading.axis_order, reading.orientation)[0][0])
        ]
        self.names = [slice_name(self.volumes.pairs[number].name, index) for number, index in self._places]
        self._lock = Lock()
        self._volume = lru_cache(_KEPT)(self.volumes.__getitem__)

    def __reduce__(self) -> tuple[type, tuple]:
        """Pickled without the volumes at hand: what a worker is to read lies in a cache."""
        return VolumeSlices, (self.volumes.pairs, self.volumes.reading)

    @property
    def files(self) -> list[Path]:
        """The image file of each slice."""
        return [self.volumes.pairs[number].image for number, _ in self._places]

    @property
    def label_files(self) -> list[Path]:
        """The label files."""
        return [pair.label for pair in self.volumes.pairs]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        number, plane = self._places[index]
        with self._lock:
            volume = self._volume(number)
        return Sample(volume.image[plane], volume.label[plane], self.names[index])
