"""What every dataset hands out: one slice, one volume, and where a volume lies in the patient."""

from __future__ import annotations

import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from nibabel import Nifti1Header

_log = logging.getLogger(__name__)

Item = TypeVar("Item")

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
LONGEST_NAME = 200  # a file system takes 255 bytes, and the suffix is still to come
_LONGEST_LIST = 2**26  # bytes; a million slices take a third

# Bounds on what a file may claim of itself, for what it claims costs it nothing.
MAX_PIXELS = 2**26  # a slice of 8192 x 8192
MAX_VOXELS = 2**30  # a scan of 512 x 512 x 4096
IGNORE = 255  # in a label of classes: neither trained nor scored

_MAX_FRACTION = 1e-3  # in a label of real numbers, as resampling and float32 leave it
_DEFECTS_SHOWN = 8  # in one line; a command prints each on a line of its own before


class BadFile(ValueError):
    """A file that is read but cannot be used; the message names it."""


class Defect(NamedTuple):
    """One thing that is wrong: the file it is in, and what was found, what was expected and what to do."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def defect_of(path: Path, error: Exception) -> Defect:
    """An error that was raised of a file, as a defect of it; the path, which stands before it, is not said again."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Defect(path, text.removeprefix(f"{path}: "))


class Defects(ValueError):
    """Everything that is wrong with what was given, found before anything was begun; `defects` has each by its file.

    As text it is one line: `where`, how many there are, and the first of them.
    """

    def __init__(self, where: object, defects: Sequence[Defect]) -> None:
        self.where, self.defects = where, tuple(defects)
        shown = "; ".join(map(str, self.defects[:_DEFECTS_SHOWN]))
        more = len(self.defects) - _DEFECTS_SHOWN
        super().__init__(
            f"{where}: {len(self.defects)} defect{'s' * (len(self.defects) > 1)}, nothing was begun: {shown}"
            + (f"; and {more} more" if more > 0 else "")
        )


class Sample(NamedTuple):
    """One training slice: `image` (H, W) or, in colour, (3, H, W) float32, `label` (H, W) uint8, and its `name`."""

    image: np.ndarray
    label: np.ndarray
    name: str


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

    def __len__(self) -> int: ...

    def __getitem__(self, slices: slice) -> np.ndarray:
        """The slices of a range, float32."""


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
    header: Nifti1Header | None = field(default=None, compare=False, repr=False)

    @property
    def array_spacing(self) -> tuple[float, float, float]:
        """Spacing in mm along the array's own axes (D, H, W)."""
        by_axis = dict(zip("xyz", self.spacing, strict=True))
        return tuple(by_axis[axis] for axis in self.axis_order)

    @property
    def affine(self) -> np.ndarray:
        """NIfTI's 4x4 matrix from voxel (x, y, z) to RAS mm, float64."""
        lps_to_ras = np.diag([-1.0, -1.0, 1.0])
        affine = np.eye(4)
        affine[:3, :3] = lps_to_ras @ np.reshape(self.direction, (3, 3)) @ np.diag(self.spacing)
        affine[:3, 3] = lps_to_ras @ np.asarray(self.origin)
        return affine


@dataclass(frozen=True)
class Volume:
    """One case: `image` (D, H, W) or (D, 3, H, W) float32, `label` (D, H, W) uint8 or None, geometry where it is known.

    `image` may be read only as far as it is asked for: a `SlicedImage`. A picture is a volume of one slice that is
    measured and written in two dimensions: `is_picture`; `source` is then the file that it came from.
    """

    name: str
    image: np.ndarray | SlicedImage
    label: np.ndarray | None = None
    geometry: Geometry | None = None
    is_picture: bool = False
    source: Path | None = None


class Volumes(Protocol):
    """Volumes by index, and the names of their cases."""

    @property
    def cases(self) -> list[str]: ...

    def group_of(self, name: str) -> str: ...

    def check(self, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Volume: ...


def read_list(path: Path, plain: re.Pattern = _PLAIN_NAME) -> list[str]:
    """Read a list file: one name a line, blank lines ignored; `plain` is what a name may be.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: the list is empty, is not text, or holds something that is not a plain file name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list; expected a text file with one name a line (see --list_dir)")
    if path.stat().st_size > _LONGEST_LIST:
        raise ValueError(f"{path}: has more than {_LONGEST_LIST >> 20} MiB; expected a list, one name a line")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a text file; expected one name a line") from None
    if not names:
        raise ValueError(f"{path}: the list is empty; expected one name a line")
    for name in names:
        # A name becomes part of a path: nothing in a list may lead out of the data folder.
        if not plain.fullmatch(name):
            shown = shorten(repr(name))
            raise ValueError(f"{path}: {shown} is not a plain name; expected letters, digits, '_', '-' and '.' only")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"{path}: holds a name of {len(name)} letters; expected {LONGEST_NAME} at most")
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated:
        raise ValueError(f"{path}: names {repeated} more than once; expected every name once")
    return names


def check_image(image: np.ndarray, where: object) -> np.ndarray:
    """Return the image as float32, or raise a ValueError naming `where` if it is not made of finite numbers."""
    if image.dtype.kind not in "fiub":
        raise ValueError(f"{where}: 'image' has dtype {image.dtype}; expected numbers")
    if image.size == 0:
        raise ValueError(f"{where}: 'image' has shape {image.shape}; expected at least one pixel")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        image = np.asarray(image, dtype=np.float32)
    if not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise ValueError(
            f"{where}: 'image' holds {count} NaN or infinite values; expected finite numbers, fix the file"
        )
    return image


def check_label(label: np.ndarray, num_classes: int, where: object, ignore: int | None = None) -> np.ndarray:
    """Return the label as uint8; a ValueError names `where` unless it holds whole numbers 0..num_classes-1.

    Where it holds the value to `ignore`, it becomes IGNORE.
    """
    if label.dtype.kind not in "fiub":
        raise ValueError(f"{where}: 'label' has dtype {label.dtype}; expected whole numbers")
    label = round_label(label, where)
    if ignore is not None and (ignored := label == ignore).any():
        return np.where(ignored, np.uint8(IGNORE), check_label(np.where(ignored, 0, label), num_classes, where))
    low, high = label.min(), label.max()
    if low < 0 or high >= num_classes:
        stray = int(low if low < 0 else high)
        raise ValueError(
            f"{where}: 'label' holds {stray}; expected 0..{num_classes - 1}, so fix the file or give --num_classes"
        )
    return label.astype(np.uint8)


def round_label(label: np.ndarray, where: object) -> np.ndarray:
    """A label whose numbers are whole to within 0.001, rounded; a ValueError names `where` if others are not."""
    if label.dtype.kind != "f":
        return label
    if not np.isfinite(label).all():
        raise ValueError(f"{where}: 'label' holds NaN or infinite values; expected whole numbers, a class per voxel")
    whole = np.round(label)
    stray = label[np.abs(label - whole) > _MAX_FRACTION]
    if stray.size:
        raise ValueError(f"{where}: 'label' holds {stray[0]:.9g}; expected whole numbers, a class per voxel")
    return whole


def check_pair(
    image: np.ndarray, label: np.ndarray, num_classes: int, ndim: int, where: object, ignore: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Check an image and its label together; returns them as float32 and uint8."""
    if image.ndim != ndim:
        raise ValueError(f"{where}: 'image' has shape {image.shape}; expected {ndim} dimensions")
    if image.shape != label.shape:
        raise ValueError(f"{where}: 'image' has shape {image.shape} but 'label' {label.shape}; expected the same shape")
    return check_image(image, where), check_label(label, num_classes, where, ignore)


def require_listed(paths: Iterable[Path]) -> None:
    """Make sure that every file that a list names is there; raises Defects with those that are not."""
    what = "is named in the list but is not there; make it, or fix the list (--list_dir)"
    if missing := [Defect(path, what) for path in paths if not path.is_file()]:
        raise Defects(missing[0].path.parent, missing)


def read_through(dataset: Sequence[Item], threads: int = 8) -> Iterator[Item]:
    """Read every item, in order, some ahead of the one that is handed out; the first error ends it."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque = deque()
        try:
            for index in range(len(dataset)):
                ahead.append(pool.submit(dataset.__getitem__, index))
                if len(ahead) == threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def brief(error: Exception) -> str:
    """The first line of an error's text, shortened, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return shorten(lines[0]) if lines else type(error).__name__


def shorten(text: str, length: int = 160) -> str:
    """The text, cut off where it is longer: what a file says may be a message's whole page."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


@cache
def warn_once(message: str) -> None:
    """Log a warning, once however often a file is read."""
    _log.warning("%s", message)
