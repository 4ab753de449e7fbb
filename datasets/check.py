"""What train.py and test.py look at before they begin, so that a bad file does not stop them in their middle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Defect, Defects, Slices, Volumes, read_through
from datasets.synapse import SynapseSlices, read_slice, slice_path
from datasets.verify import read_header

# How many slices `check_quick` reads whole: with one bad file in twenty, all but 4 % of data sets are found out.
SAMPLE = 64

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def describe(slices: Slices, validation: Volumes) -> list[str]:
    """A line for each slice, with the bytes of its file, and each validation case: what a resumed run finds again."""
    files = getattr(slices, "source", slices).files
    sizes = {path: path.stat().st_size for path in set(files)}
    lines = [f"slice {name} of {sizes[path]} bytes" for name, path in zip(slices.names, files, strict=True)]
    return lines + [f"validation case {case}" for case in validation.cases]


def check_all(dataset: Slices | Volumes, progress: Progress = iter, threads: int = 8) -> set[int]:
    """Read every item once, and return the labels that there are.

    Slices in a cache were read when it was built: only what is not in it, or has changed, is read again.

    Args:
        progress: wraps the iterator over the items, such as tqdm.

    Raises:
        ValueError: a bad file, by name; where there are several, all of them, as `Defects`.
    """
    slices = getattr(dataset, "slices", dataset)
    if hasattr(slices, "prepare"):
        slices.prepare(progress)
        progress = iter
    seen: list[Exception | set[int]] = []
    for _ in progress(_kept(read_through(_Tried(dataset), threads), seen)):
        pass
    errors = [found for found in seen if isinstance(found, Exception)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise Defects("the data", list(_told(errors)))
    return set().union(*seen)


def check_quick(dataset: Slices | Volumes, progress: Progress = iter, threads: int = 8, *, learn: bool = False) -> None:
    """See in seconds whether a data set can be trained on.

    Of the Synapse layout, the header of every file, and `SAMPLE` files whole: they lie evenly in the list, the first
    and the last among them; where there are no more than `SAMPLE`, all are. Of another one everything is read, but for
    what `datasets.look_through` has seen. Slices in a cache were read when it was built: only where it is not there, or
    a file has changed, are all read, and so checked.

    Args:
        progress: wraps the iterator over the slices, such as tqdm; a stacked data set has more of them than items.
        learn: it is to be trained on, and has to hold every class; of the Synapse layout that is not known here.

    Raises:
        ValueError: a bad file, by name, in the words of its reader; where there are several, all of them; or a class
            that no slice holds.
    """
    slices = getattr(dataset, "slices", dataset)
    if getattr(slices, "looked_at", False):
        if hasattr(slices, "prepare"):
            slices.prepare(progress)
    elif isinstance(getattr(slices, "source", slices), SynapseSlices):
        check_all(slices if hasattr(slices, "prepare") else _QuickLook(slices), progress, threads)
    else:
        found = check_all(dataset, progress, threads)
        absent = sorted(set(range(1, slices.num_classes)) - found) if learn else []
        if absent:
            raise ValueError(
                f"{slices.files[0].parent}: no training slice holds class {', '.join(map(str, absent))}; expected all "
                f"of 1..{slices.num_classes - 1}, so add some that do, or give another --num_classes"
            )


def _kept(items: Iterable[Any], kept: list[Any]) -> Iterator[Any]:
    for item in items:
        kept.append(item)
        yield item


class _Tried(Sequence):
    """The labels of each item of a data set, as far as it has some, or the error that it raises when it is read."""

    def __init__(self, dataset: Sequence[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Exception | set[int]:
        try:
            label = getattr(self.dataset[index], "label", None)
        except (ValueError, OSError) as error:
            return error
        return set() if label is None else set(np.flatnonzero(np.bincount(label.ravel())).tolist())


def _told(errors: Iterable[Exception]) -> Iterator[Defect]:
    for error in errors:
        if isinstance(error, Defects):
            yield from error.defects
        else:
            path, _, what = str(error).partition(": ")
            yield Defect(Path(path), what)


class _QuickLook(Sequence):
    """Looks at slice `index` as far as `check_quick` does; a bad one raises."""

    def __init__(self, slices: SynapseSlices) -> None:
        self.source = slices
        self.whole = set(np.linspace(0, len(slices) - 1, min(SAMPLE, len(slices))).round().astype(int).tolist())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> None:
        path = slice_path(self.source.folder, self.source.names[index])
        if index in self.whole or read_header(path) is None:
            read_slice(path, self.source.num_classes)
