"""From slices on disk to batches: the order of an epoch, the draws of a sample, the loader."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.base import Sample
from datasets.transforms import RandomGenerator


class Batch(NamedTuple):
    """`image` (B, 1, H, W) float32, `label` (B, H, W) uint8, and the names of the slices."""

    image: torch.Tensor
    label: torch.Tensor
    names: list[str]


class EpochSampler(Sampler):
    """The order of each epoch, from the seed and the epoch alone: yields (epoch, place in it, index).

    Setting `epoch` and `start` lets a run go on in the middle of an epoch.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return max(0, self.length - self.start)  # an interruption may fall on the last batch

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return ((self.epoch, place, int(order[place])) for place in range(self.start, self.length))


class AugmentedSlices(Dataset):
    """Slices through the training transform; the draws of a slice follow from (seed, epoch, index) alone.

    So neither the number of workers nor an interruption changes a draw, and no epoch repeats another's. The
    published code seeds its workers alike at every epoch, so that the choice whether to rotate or flip repeats at
    the same place of every epoch, while angles and axes do not; `repeat_choices` does that.
    """

    def __init__(self, slices: Dataset, transform: RandomGenerator, seed: int, repeat_choices: bool = False) -> None:
        self.slices, self.transform, self.seed, self.repeat_choices = slices, transform, seed, repeat_choices

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, key: tuple[int, int, int]) -> Sample:
        epoch, place, index = key
        sample = self.slices[index]
        coins = random.Random(f"{self.seed} {epoch} {index}")
        integers = np.random.RandomState(coins.getrandbits(32))
        draw = self.transform.draw(random.Random(f"{self.seed} {place}") if self.repeat_choices else coins, integers)
        return Sample(*self.transform(sample.image, sample.label, draw), sample.name)


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of one size into a batch."""
    return Batch(
        torch.from_numpy(np.stack([sample.image for sample in samples])).unsqueeze(1),
        torch.from_numpy(np.stack([sample.label for sample in samples])),
        [sample.name for sample in samples],
    )


def leave_signals_to_the_main_process(worker: int) -> None:
    """A worker ignores Ctrl-C and SIGTERM sent to the whole process group: the main process saves, then ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def build_loader(
    slices: Dataset,
    *,
    size: tuple[int, int],
    batch_size: int,
    seed: int,
    workers: int = 0,
    rot_flip: float = 0.5,
    rotate: float = 0.5,
    repeat_choices: bool = False,
    pin_memory: bool = False,
) -> DataLoader:
    """The training loader: `Batch`es in the order of its `EpochSampler` (`loader.sampler`); the last may be smaller."""
    augmented = AugmentedSlices(slices, RandomGenerator(size, rot_flip, rotate), seed, repeat_choices)
    return DataLoader(
        augmented,
        batch_size=batch_size,
        sampler=EpochSampler(len(augmented), seed),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_the_main_process,
        # Without one of its own, every epoch's iterator takes a number from torch's global generator.
        generator=torch.Generator(),
    )
