"""Cases as training slices and as volumes to evaluate on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datasets.case import Case, DataSet, Sample, Slices, Volume, slice_name
from datasets.errors import Defect, Defects
from datasets.verify import verify

Progress = Callable[[Iterable[Any]], Iterable[Any]]

_KEPT = 2  # volumes in memory while slices are read in order, each by a thread of its own


class CaseSlices(Dataset):
    """The slices of cases, as `Sample`s; of volumes, which are read whole, they belong into a cache."""

    def __init__(self, dataset: DataSet, cases: Sequence[Case]) -> None:
        self.dataset, self.cases, self.num_classes = dataset, list(cases), dataset.num_classes
        depths = [dataset.header(case).shape[0] if dataset.has_volumes else 1 for case in self.cases]
        self._places = [(number, plane) for number, depth in enumerate(depths) for plane in range(depth)]
        self.names = [
            slice_name(self.cases[number].name, plane) if dataset.has_volumes else self.cases[number].name
            for number, plane in self._places
        ]
        self._lock, self._volume = Lock(), lru_cache(_KEPT)(self._read)

    def __reduce__(self) -> tuple[type, tuple]:
        """Pickled without the volumes at hand: what a worker is to read lies in a cache."""
        return CaseSlices, (self.dataset, self.cases)

    @property
    def files(self) -> list[Path]:
        """The first image file of each slice."""
        return [self.cases[number].images[0] for number, _ in self._places]

    @property
    def all_files(self) -> list[Path]:
        """Every file, once."""
        return list(dict.fromkeys(path for case in self.cases for path in case.files))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        number, plane = self._places[index]
        if self.dataset.has_volumes:
            with self._lock:
                volume = self._volume(number)
        else:
            volume = self._read(number)
        image, label = volume.image[plane : plane + 1], volume.label
        assert label is not None
        return Sample(image[0], label[plane], self.names[index])

    def _read(self, number: int) -> Volume:
        return self.dataset.read(self.cases[number])


class CaseVolumes:
    """Cases as volumes, read one at a time as they are asked for."""

    def __init__(self, dataset: DataSet, cases: Sequence[Case]) -> None:
        self.dataset, self._cases = dataset, list(cases)

    @property
    def cases(self) -> list[str]:
        """The names of the volumes."""
        return [case.name for case in self._cases]

    def group_of(self, name: str) -> str:
        """The patient that a volume is of."""
        return self.dataset.group_of(name)

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Volume:
        return self.dataset.read(self._cases[index])

    def check(self, progress: Progress = iter) -> None:
        """Read every file; raises Defects with all that is wrong."""
        verify(self.dataset, self._cases, progress=progress, threads=2)


class StackedVolumes:
    """Slices of files of their own put back together as volumes; where they differ in size, each is a volume itself.

    Args:
        dataset: whose `volume_of` says which slices belong together.
        cases: the slices.
        slices: the same as samples, perhaps from a cache.

    Raises:
        Defects: slices are missing between the first and the last of a volume; distances would be wrong.
    """

    def __init__(self, dataset: DataSet, cases: Sequence[Case], slices: Slices) -> None:
        self.dataset, self._cases, self.slices = dataset, list(cases), slices
        self._stacks: list[tuple[str, list[int]]] = []
        by_volume: dict[str, list[int]] = {}
        for index in sorted(range(len(self._cases)), key=self._place):
            by_volume.setdefault(dataset.volume_of(self._cases[index].name), []).append(index)
        defects = []
        for name, members in by_volume.items():
            paths = [self._cases[index].images[0] for index in members]
            what = "is not among the slices of its volume; expected all from 0 to the last, so list it, or none of them"
            defects += [
                Defect(paths[0].with_name(f"{lost}.npz"), what)
                for lost in dataset.missing([self._cases[index].name for index in members])
            ]
            same = len({dataset.header(self._cases[index]).shape for index in members}) == 1
            self._stacks += [(name, members)] if same else [(self._cases[index].name, [index]) for index in members]
        if defects:
            raise Defects("validation", defects)

    def _place(self, index: int) -> tuple[str, int, str]:
        """Where a slice comes: 10 after 9."""
        name = self._cases[index].name
        number = re.search(r"\d+$", name)
        return self.dataset.volume_of(name), int(number[0]) if number else 0, name

    @property
    def cases(self) -> list[str]:
        """The names of the volumes."""
        return [name for name, _ in self._stacks]

    def group_of(self, name: str) -> str:
        """The patient that a volume is of."""
        return self.dataset.group_of(name)

    def __len__(self) -> int:
        return len(self._stacks)

    def __getitem__(self, index: int) -> Volume:
        name, members = self._stacks[index]
        samples = [self.slices[member] for member in members]
        image, label = np.stack([sample.image for sample in samples]), np.stack([sample.label for sample in samples])
        geometry = self.dataset.geometry_of(self._cases[members[0]])
        return Volume(name, image, label, geometry)

    def check(self, progress: Progress = iter) -> None:
        """Read every file; raises Defects with all that is wrong."""
        verify(self.dataset, self._cases, progress=progress)
