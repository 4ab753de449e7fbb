"""What every data set hands out: its cases, each with its files, and what these hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import nibabel as nib
import numpy as np

from datasets.splits import read_list

if TYPE_CHECKING:
    from datasets.intensity import Preprocessing

SPLITS = ("train", "val", "test")
IGNORE = 255  # in a label of classes: neither trained nor scored


class Sample(NamedTuple):
    """One training slice: `image` (H, W) or, in color, (3, H, W) float32, `label` (H, W) uint8, and its `name`."""

    image: np.ndarray
    label: np.ndarray
    name: str


def slice_name(case: str, index: int) -> str:
    """Name of one slice of a case, as the published lists of Synapse write it: `case0005_slice000`."""
    return f"{case}_slice{index:03d}"


class Slices(Protocol):
    """Training slices by index, and the file that each is read from."""

    names: list[str]
    num_classes: int

    @property
    def files(self) -> list[Path]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class SlicedImage(Protocol):
    """A volume that is read a range of slices at a time, so that it need not fit into memory."""

    shape: tuple[int, ...]
    ndim: int
    dtype: np.dtype

    def __len__(self) -> int: ...

    def __getitem__(self, slices: slice) -> np.ndarray:
        """The slices of a range."""


@dataclass(frozen=True)
class Geometry:
    """Position of a voxel grid in the patient, in SimpleITK's terms (mm, LPS).

    `spacing` and `origin` are (x, y, z); `direction` is the row-major 3x3 matrix. `axis_order` says how our
    arrays (D, H, W) follow from the file's (x, y, z): "zxy" is the published Synapse order, "zyx" is the one
    SimpleITK hands out. `flips` names the axes of the file that our arrays run through backwards, such as "xy".
    Where it is not known where the axes point it is not `oriented`: the distances hold, the directions need not.
    `header` is that of the NIfTI file it was read from, which its mask is written with; it is not compared.
    """

    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    axis_order: str = "zyx"
    flips: str = ""
    oriented: bool = True
    header: nib.Nifti1Header | None = field(default=None, compare=False, repr=False)

    @property
    def array_spacing(self) -> tuple[float, float, float]:
        """Spacing in mm along the array's own axes (D, H, W)."""
        depth, height, width = (self.spacing["xyz".index(axis)] for axis in self.axis_order)
        return depth, height, width

    @property
    def affine(self) -> np.ndarray:
        """NIfTI's 4x4 matrix from voxel (x, y, z) to RAS mm, float64."""
        lps_to_ras = np.diag([-1.0, -1.0, 1.0])
        affine = np.eye(4)
        affine[:3, :3] = lps_to_ras @ np.reshape(self.direction, (3, 3)) @ np.diag(self.spacing)
        affine[:3, 3] = lps_to_ras @ np.asarray(self.origin)
        return affine

    @property
    def orientation(self) -> str:
        """Where the file's x, y and z axes point, such as "RAS", to the right, anterior and superior; "" if unknown."""
        return "".join(nib.aff2axcodes(self.affine)) if self.oriented else ""


@dataclass(frozen=True)
class Volume:
    """One case: `image` (D, H, W) or (D, 3, H, W) float32, `label` (D, H, W) uint8 or None, geometry where it is known.

    `image` may be read only as far as it is asked for: a `SlicedImage`. A 2-D image is a volume of one slice that is
    measured and written in two dimensions: `is_image`; `source` is then the file that it came from.
    """

    name: str
    image: np.ndarray | SlicedImage
    label: np.ndarray | None = None
    geometry: Geometry | None = None
    is_image: bool = False
    source: Path | None = None


class Volumes(Protocol):
    """Volumes by index, and the names of their cases."""

    @property
    def cases(self) -> list[str]: ...

    def group_of(self, name: str) -> str: ...

    def check(self, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Volume: ...


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

    def located(self, geometry: Geometry | None) -> Facts:
        """The same, with spacing and axes where they are known."""
        return self._replace(spacing=geometry.array_spacing, axes=geometry.orientation) if geometry else self


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
    ships_split: ClassVar[bool] = False  # datasets/lists names its cases
    folders: ClassVar[tuple[str, ...]] = ()
    lists_of: ClassVar[dict[str, str]] = {split: f"{split}.txt" for split in SPLITS}
    splits_apart: ClassVar[bool] = True  # what validates is not in the list of the training
    names_are_unique: ClassVar[bool] = True  # in all lists together
    has_volumes: bool = False  # the training cases are volumes, not slices

    def __init__(self, root: Path, lists: Path, num_classes: int, how: Preprocessing) -> None:
        self.root, self.lists, self.num_classes, self.how = root, lists, num_classes, how
        self.groups: Mapping[str, str] = {}  # of groups.csv

    def names(self, split: str) -> list[str]:
        """The names in the list of a split; none where there is no list of what validates.

        Raises:
            FileNotFoundError: the list of "train" or "test" is not there.
        """
        path = self.lists / self.lists_of[split]
        return [] if split == "val" and not path.is_file() else read_list(path)

    def training_names(self, whole: bool = False) -> list[str]:
        """The names of the cases, or slices, that train or validate; without `whole`, names in train.txt stand for all
        where that holds those that validate, too."""
        names, listed = self.names("train"), self.names("val")
        if not self.splits_apart:
            listed = [name for name in listed if whole and name != self.group_of(name)]
        return list(dict.fromkeys([*names, *listed]))

    def group_of(self, name: str) -> str:
        """The patient that a name belongs to, whom no split divides."""
        return name

    def case_of(self, name: str) -> str:
        """What folds are made of: the patient of a name, or a case whose group `groups` has."""
        return self.group_of(name)

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

    def geometry_of(self, case: Case) -> Geometry | None:
        """Where the volume of a case lies, where that is known; errors as of `read`."""
        return self.read(case).geometry

    @abstractmethod
    def header(self, case: Case) -> Facts:
        """What the headers of its files tell; errors as of `read`."""

    def inspect(self, case: Case) -> Facts:
        """What the case holds, read whole, its label in classes; errors as of `read`."""
        return facts_of(self.read(case))


def facts_of(volume: Volume) -> Facts:
    """What a volume in memory holds; its label is uint8."""
    image, counts = np.asarray(volume.image), np.zeros(256, int)
    for plane in volume.label if volume.label is not None else ():
        counts += np.bincount(plane.ravel(), minlength=256)
    labels = {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    facts = Facts(image.shape, str(image.dtype), float(image.min()), float(image.max()), labels)
    return facts.located(volume.geometry)
