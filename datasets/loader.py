"""From slices on disk to batches on the device: the order of an epoch, the draws of a sample, the loader."""

from __future__ import annotations

import errno
import multiprocessing
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from typing import NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from datasets.augment import Augmentation, Key
from datasets.case import Sample, Slices
from datasets.transforms import Draw, RandomGenerator, send

_SHARED_MEMORY_IS_FULL = (
    "/dev/shm: the shared memory, by which workers hand over batches, is full; give --workers 0, a smaller "
    "--batch_size, or more of it (docker run --shm-size 2g)"
)


class Batch(NamedTuple):
    """`image` (B, C, H, W) float32, of one channel or three, `label` (B, H, W) uint8, and the names of the slices."""

    image: torch.Tensor
    label: torch.Tensor
    names: list[str]


class Group(NamedTuple):
    """Slices of one shape: `image` (b, C, H, W), `label` (b, H, W), their draws, and their places in the batch."""

    image: torch.Tensor
    label: torch.Tensor
    draws: list[Draw]
    places: list[int]


class RawBatch(NamedTuple):
    """A batch as a worker hands it over: its slices by shape, and the names in the order of the batch."""

    groups: list[Group]
    names: list[str]
    keys: list[Key]


class EpochBatches(Sampler):
    """The batches of each epoch, from the seed and the epoch alone: yields lists of (epoch, place in it, index).

    Setting `epoch` and `start`, in batches, lets a run go on in the middle of an epoch. Several processes share each
    batch: every one takes an equal, consecutive part, and a last batch that does not divide is filled up from its own
    beginning.

    Args:
        length: slices of an epoch.
        batch_size: slices of a batch, of all processes together.
        rank, world: this process, and how many there are.

    Raises:
        ValueError: the processes cannot share a batch equally.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch_size % world:
            raise ValueError(
                f"--batch_size is {batch_size}, which {world} processes cannot share equally; "
                f"expected a multiple of {world}"
            )
        self.length, self.batch_size, self.seed, self.rank, self.world = length, batch_size, seed, rank, world
        self.epoch, self.start = 0, 0

    @property
    def per_epoch(self) -> int:
        """Batches of a whole epoch; the last may be smaller."""
        return -(-self.length // self.batch_size)

    def __len__(self) -> int:
        return max(0, self.per_epoch - self.start)  # an interruption may fall on the last batch

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for first in range(self.start * self.batch_size, self.length, self.batch_size):
            batch = [(self.epoch, place, int(order[place])) for place in range(first, self.length)[: self.batch_size]]
            share = -(-len(batch) // self.world)
            yield list(islice(cycle(batch), self.rank * share, (self.rank + 1) * share))


class DrawnSlices(Dataset):
    """Slices as they are, each with its draw, which follows from (seed, epoch, index) alone.

    So neither the number of workers nor an interruption changes a draw, and no epoch repeats another's. The
    published code seeds its workers alike at every epoch, so that the choice whether to rotate or flip repeats at
    the same place of every epoch, while angles and axes do not; `repeat_choices` does that.
    """

    def __init__(self, slices: Slices, transform: RandomGenerator, seed: int, repeat_choices: bool = False) -> None:
        self.slices, self.transform, self.seed, self.repeat_choices = slices, transform, seed, repeat_choices
        self._integers = np.random.RandomState(0)  # a new one for each slice would take 0.2 ms

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Sample, Draw, Key]:
        epoch, place, index = key
        coins = random.Random(f"{self.seed} {epoch} {index}")
        self._integers.seed(coins.getrandbits(32))
        choices = random.Random(f"{self.seed} {place}") if self.repeat_choices else coins
        draw = self.transform.draw(choices, self._integers)
        return self.slices[index], draw, (self.seed, epoch, index)


def collate(drawn: Sequence[tuple[Sample, Draw, Key]], pin: bool = False) -> RawBatch:
    """Stack the slices of each shape, at once in pinned memory where this is asked for."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, (sample, _, _) in enumerate(drawn):
        by_shape.setdefault(sample.image.shape, []).append(place)
    groups = [
        Group(
            _stacked([drawn[place][0].image for place in places], pin).reshape(-1, *_as_chw(shape)),
            _stacked([drawn[place][0].label for place in places], pin),
            [drawn[place][1] for place in places],
            places,
        )
        for shape, places in by_shape.items()
    ]
    return RawBatch(groups, [sample.name for sample, _, _ in drawn], [key for _, _, key in drawn])


def _stacked(arrays: list[np.ndarray], pin: bool) -> torch.Tensor:
    """The arrays as one tensor, pinned if asked for, else in shared memory where a worker stacks them.

    It would get there anyway, but in a thread whose errors lose the batch.
    """
    if pin:
        dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
        pinned = torch.empty(len(arrays), *arrays[0].shape, dtype=dtype, pin_memory=True)
        np.stack(arrays, out=pinned.numpy())
        return pinned
    tensor = torch.from_numpy(np.stack(arrays))
    try:
        return tensor.share_memory_() if get_worker_info() else tensor
    except RuntimeError:
        raise ValueError(_SHARED_MEMORY_IS_FULL) from None


def _as_chw(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(H, W) of a slice in grey or (C, H, W) as (C, H, W)."""
    return (1, *shape)[-3:]


def leave_signals_to_the_main_process(worker: int) -> None:
    """A worker ignores Ctrl-C and SIGTERM sent to the whole process group: the main process saves, then ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class TrainingLoader:
    """`Batch`es on the device, in the order of `sampler`: what the workers only read is transformed here.

    Args:
        reader: yields `RawBatch`es of `DrawnSlices`.
        device: where the transform runs and the batches lie.
        augmentation: what follows the published transform, if any.
    """

    def __init__(self, reader: DataLoader, device: torch.device, augmentation: Augmentation | None = None) -> None:
        self.reader, self.device, self.augmentation = reader, device, augmentation

    @property
    def sampler(self) -> EpochBatches:
        """The order of the epoch; set its `epoch` and `start` before iterating."""
        return cast(EpochBatches, self.reader.batch_sampler)

    @property
    def dataset(self) -> DrawnSlices:
        """The slices with their draws."""
        return cast(DrawnSlices, self.reader.dataset)

    def __len__(self) -> int:
        return len(self.reader)

    def close(self) -> None:
        """End the workers: at exit Python would send them SIGTERM, which they ignore, and wait forever."""
        if self.reader._iterator is not None:
            self.reader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        for worker in multiprocessing.active_children() if self.reader.num_workers else ():
            worker.kill()

    def __iter__(self) -> Iterator[Batch]:
        catches = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if catches else None
        try:
            batches = iter(self.reader)
            if catches:
                signal.signal(signal.SIGCHLD, handler)  # torch's raises wherever a step is; the next batch does it, too
            if self.device.type == "cuda":
                yield from self._ahead(batches)
            for raw in batches:
                yield self._transformed(raw)
        except OSError as error:
            raise ValueError(_SHARED_MEMORY_IS_FULL) if error.errno == errno.ENOSPC else error from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ValueError(
                "a worker, which loads data, was killed; is there too little memory? Give fewer --workers, and --resume"
            ) from None

    def _ahead(self, batches: Iterator[RawBatch]) -> Iterator[Batch]:
        """Each batch is copied to the GPU and transformed on a stream of its own, beside the step of the one before."""
        stream = torch.cuda.Stream(self.device)
        pending: Batch | None = None
        failed: Exception | None = None
        while failed is None:
            batch, pending = pending, None
            try:
                raw = next(batches, None)
                if raw is not None:
                    with torch.cuda.stream(stream):
                        pending = self._transformed(raw)
            except Exception as error:  # which costs no step: the batch before is trained on first
                failed = error
            if batch is not None:
                yield batch
            if pending is None:
                break
            step = torch.cuda.current_stream(self.device)
            step.wait_stream(stream)
            for tensor in (pending.image, pending.label):
                tensor.record_stream(step)
        if failed is not None:
            raise failed

    def _transformed(self, raw: RawBatch) -> Batch:
        images, labels = [], []
        for group in raw.groups:
            # From pinned memory these return at once, and the device does the rest while the next batch is read.
            there = [part.to(self.device, non_blocking=True) for part in (group.image, group.label)]
            image, label = self.dataset.transform(there[0], there[1], group.draws)
            images.append(image)
            labels.append(label)
        if len(raw.groups) > 1:
            order = send(torch.tensor([place for group in raw.groups for place in group.places]).argsort(), self.device)
            image, label = (torch.cat(parts).index_select(0, order) for parts in (images, labels))
        if self.augmentation:
            image, label = self.augmentation(image, label, raw.keys)
        return Batch(image, label, raw.names)


def build_loader(
    slices: Slices,
    *,
    size: tuple[int, int],
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    workers: int = 0,
    rot_flip: float = 0.5,
    rotate: float = 0.5,
    repeat_choices: bool = False,
    augmentation: Augmentation | None = None,
    rank: int = 0,
    world: int = 1,
    start_method: str | None = None,
) -> TrainingLoader:
    """The training loader: `Batch`es in the order of its `EpochBatches` (`loader.sampler`).

    Args:
        slices: `Sample`s by index.
        size: (H, W) of the batches.
        batch_size, rank, world: see `EpochBatches`.
        device: where the slices are transformed and the batches lie.
        workers: processes that read; 0 reads in this one.
        rot_flip, rotate, repeat_choices: see `RandomGenerator` and `DrawnSlices`.
        augmentation: beside the published one.
        start_method: of the workers, "fork", "spawn" or "forkserver"; None takes the system's own.
    """
    device = torch.device(device)
    drawn = DrawnSlices(slices, RandomGenerator(size, rot_flip, rotate), seed, repeat_choices)
    reader = DataLoader(
        drawn,
        batch_sampler=EpochBatches(len(drawn), batch_size, seed, rank, world),
        num_workers=workers,
        multiprocessing_context=(start_method or None) if workers else None,
        collate_fn=partial(collate, pin=device.type == "cuda" and not workers),
        pin_memory=device.type == "cuda",  # copies run beside the GPU's work
        persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_the_main_process,
        # Without one of its own, every epoch's iterator takes a number from torch's global generator.
        generator=torch.Generator(),
    )
    return TrainingLoader(reader, device, augmentation)
