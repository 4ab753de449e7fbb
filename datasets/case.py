"""What every data set hands out: its cases, each with its files, and what these hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from datasets.base import Volume, read_list
from datasets.intensity import Preprocessing
from datasets.readers.orientation import orientation

SPLITS = ("train", "val", "test")


class Case(NamedTuple):
    """What is read at once, a slice, a volume or an image: its name, the files of its channels, and of its label.

    Without a `label` file the label is in the image's, or there is none.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files."""
        return self.images if self.label is None else (*self.images, self.label)


class Facts(NamedTuple):
    """What a case holds: the shape of its image, (D, H, W) or (D, C, H, W), its type, lowest and highest number, how
    many voxels have each value of the label, and where known the spacing in mm along (D, H, W) and where axes point."""

    shape: tuple[int, ...]
    dtype: str = ""
    low: float = 0.0
    high: float = 0.0
    labels: dict[int, int] = {}
    spacing: tuple[float, ...] = ()
    axes: str = ""

    @property
    def channels(self) -> int:
        """Of the image."""
        return self.shape[1] if len(self.shape) == 4 else 1


class DataSet(ABC):
    """A data set in its folder.

    Args:
        root: its folder, or one of `folders` in it.
        lists: the folder of its lists.
        num_classes: K; labels outside 0..K-1 are refused as a file is read.
        how: how files become arrays.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    made_by: ClassVar[str] = ""  # the script that prepares it
    ships_split: ClassVar[bool] = False  # datasets/splits names its cases
    folders: ClassVar[tuple[str, ...]] = ()
    lists_of: ClassVar[dict[str, str]] = {split: f"{split}.txt" for split in SPLITS}
    splits_apart: ClassVar[bool] = True  # what validates is not in the list of the training
    names_are_unique: ClassVar[bool] = True  # in all lists together
    has_volumes: bool = False  # the training cases are volumes, not slices

    def __init__(self, root: Path, lists: Path, num_classes: int, how: Preprocessing) -> None:
        self.root, self.lists, self.num_classes, self.how = root, lists, num_classes, how

    def names(self, split: str) -> list[str]:
        """The names in the list of a split; none where there is no list of what validates.

        Raises:
            FileNotFoundError: the list of "train" or "test" is not there.
        """
        path = self.lists / self.lists_of[split]
        return [] if split == "val" and not path.is_file() else read_list(path)

    def group_of(self, name: str) -> str:
        """The patient that a name belongs to, whom no split divides."""
        return name

    def volume_of(self, name: str) -> str:
        """The volume that a training slice is of."""
        return name

    def missing(self, names: Sequence[str]) -> list[str]:
        """The slices that are not among those of one volume, though they lie between its first and its last."""
        return []

    @abstractmethod
    def cases(self, names: Sequence[str], split: str) -> list[Case]:
        """The cases that names of a list stand for: "train" and "val" may be slices of what "test" has whole.

        Raises:
            FileNotFoundError: a file is not there.
        """

    @abstractmethod
    def read(self, case: Case) -> Volume:
        """The case, checked, with the intensities and the classes that a network is trained on.

        Raises:
            ValueError, OSError: a file is damaged, or cannot be used; the message names it.
        """

    @abstractmethod
    def header(self, case: Case) -> Facts:
        """What the headers of its files tell; errors as of `read`."""

    def inspect(self, case: Case) -> Facts:
        """What the case holds, read whole, its label in classes; errors as of `read`."""
        return facts_of(self.read(case))


def facts_of(volume: Volume) -> Facts:
    """What a volume in memory holds; its label is uint8."""
    image, label, geometry = np.asarray(volume.image), volume.label, volume.geometry
    counts = sum(np.bincount(plane.ravel(), minlength=256) for plane in label) if label is not None else np.zeros(0)
    labels = {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    where: dict[str, Any] = {}
    if geometry is not None:
        where = {"spacing": geometry.array_spacing, "axes": orientation(geometry) if geometry.oriented else ""}
    return Facts(image.shape, str(image.dtype), float(image.min()), float(image.max()), labels, **where)
