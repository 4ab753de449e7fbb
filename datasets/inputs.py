"""What is given to be predicted, without labels (test.py --input): volumes, DICOM, pictures, or folders of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.base import LONGEST_NAME, Defect, Defects, Geometry, SlicedImage, Volume, defect_of
from datasets.dicom import BESIDE, dicom_files, is_dicom, read_series
from datasets.images import PICTURES, is_picture, read_picture
from datasets.intensity import Intensity, Reading
from datasets.readers import SUFFIXES, is_volume, itk, stem_of
from datasets.readers.itk import check_name
from datasets.readers.nifti import open_image
from datasets.readers.orientation import check_axes

_KINDS = f"volumes ({', '.join(SUFFIXES)}), pictures ({', '.join(PICTURES)}) or DICOM series"


class ScaledImage:
    """A `SlicedImage` whose slices are scaled to [0, 1] as they are read, float32.

    Args:
        raw: the numbers as they are stored, (D, H, W) or (D, 3, H, W).
        intensity, limits: how they are scaled, and which of them become 0 and 1.
        where: the file, for messages.
    """

    def __init__(
        self, raw: SlicedImage | np.ndarray, intensity: Intensity, limits: tuple[float, float], where: Path
    ) -> None:
        self.raw, self.intensity, self.limits, self.where = raw, intensity, limits, where
        self.shape, self.ndim = tuple(raw.shape), raw.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, slices: slice) -> np.ndarray:
        """The slices of a range, float32."""
        return self.intensity.scale(self.raw[slices], self.limits, self.where)


class _Input(NamedTuple):
    """One thing to predict: its name, its file or folder, and what is wrong with it at first sight."""

    name: str
    path: Path
    defect: str = ""


class InputVolumes(Sequence):
    """The images in a file or a folder as `Volume`s without labels, each opened as it is asked for.

    A NIfTI file is read slice by slice as the network takes them; of a DICOM file, the series of its folder is taken.
    In a folder, hidden files and those that end in .txt, .json or .csv are passed over. What cannot be used is listed
    too, and raises when it is asked for: nothing is left out in silence.

    Args:
        path: a NIfTI file, a picture, a DICOM file, a folder of one DICOM series, a folder of such folders, or a folder
            of NIfTI files and pictures.
        reading: what the network was trained on: channels, intensities, and the axes of volumes.

    Raises:
        FileNotFoundError: the path is not there.
        ValueError: the order or the orientation of the axes is none.
    """

    def __init__(self, path: Path | str, reading: Reading) -> None:
        self.path, self.reading = Path(path), reading
        check_axes(reading.axis_order, reading.orientation)
        if not self.path.exists():
            raise FileNotFoundError(f"{path}: is not there; expected {_KINDS}, or a folder of them (--input)")
        self._inputs = list(_unique(_find(self.path)))
        self._limits: dict[int, tuple[float, float]] = {}  # of what has been looked at whole

    @property
    def cases(self) -> list[str]:
        """The name of each, its file's without the suffix."""
        return [given.name for given in self._inputs]

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> Volume:
        """One image; the first time, all its voxels are looked at.

        Raises:
            ValueError: it cannot be used; the message names it.
            OSError: it cannot be read, or unpacked.
        """
        name, path, defect = self._inputs[index]
        if defect:
            raise Defects(self.path, [Defect(path, defect)])
        raw, geometry = self._open(path, whole=index not in self._limits)
        channels = 3 if raw.ndim == 4 else 1
        if channels != self.reading.channels:
            found, expected = (f"{count} channel{'s' * (count > 1)}" for count in (channels, self.reading.channels))
            raise ValueError(f"{path}: has {found}; expected {expected}, as the network was trained on, so convert it")
        # Over a picture of a CT a window has been laid already; its numbers are no HU.
        intensity = (
            Intensity("range")
            if is_picture(path) and self.reading.intensity.how == "window"
            else self.reading.intensity
        )
        if index not in self._limits:
            self._limits[index] = intensity.limits(raw, path)
        image = ScaledImage(raw, intensity, self._limits[index], path)
        return Volume(name, image, None, geometry, is_picture=is_picture(path), source=path)

    def check(self, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> None:
        """Look at everything, every voxel once, in bounded memory.

        Args:
            progress: wraps the iterator over the images, such as tqdm.

        Raises:
            Defects: all that cannot be used, each by its file.
        """
        defects: list[Defect] = []
        for index in progress(range(len(self))):
            try:
                self[index]
            except Defects as error:
                defects += error.defects
            except (ValueError, OSError) as error:
                defects.append(defect_of(self._inputs[index].path, error))
        if defects:
            raise Defects(self.path, defects)

    def _open(self, path: Path, whole: bool) -> tuple[SlicedImage | np.ndarray, Geometry | None]:
        """The numbers (D, H, W) or (1, 3, H, W) as they are stored, and where they lie."""
        check_name(path)
        if is_picture(path):
            picture = read_picture(path)
            return (picture if picture.ndim == 2 else picture.transpose(2, 0, 1))[None], None
        axes = (self.reading.axis_order, self.reading.orientation)
        if path.is_dir():
            return read_series(path, *axes)
        if path.name.lower().endswith(itk.SUFFIXES):
            return itk.read_image(path, *axes)
        image = open_image(path, *axes, whole=whole, spacing=self.reading.spacing)
        return image, image.geometry


def _find(path: Path) -> Iterator[_Input]:
    """Everything that a path stands for, good or bad."""
    if path.is_file():
        yield _folder_input(path.absolute().parent) if is_dicom(path) else _file_input(path)
    elif dicom_files(path):
        yield _folder_input(path)
    else:
        found = [
            one
            for one in sorted(path.glob("[!.]*"))
            if one.suffix.lower() not in (*BESIDE, *itk.BESIDE) or one.is_dir()
        ]
        files, folders = ([one for one in found if one.is_dir() == wanted] for wanted in (False, True))
        series = [folder for folder in folders if dicom_files(folder)]
        if not files and not series:
            yield _Input(path.name, path, f"holds nothing to predict; expected {_KINDS} (--input)")
        for folder in () if series else folders:  # beside files, folders are passed over, but for what looks like one
            if is_volume(folder) or is_picture(folder):
                yield _Input(stem_of(folder), folder, "is a folder by the name of a file; expected a file, rename it")
        for file in files:
            yield _file_input(file, "lies beside folders of DICOM series; expected one or the other" * bool(series))
        for folder in folders if series else ():
            yield _folder_input(
                folder, "holds no DICOM series, as the others do; move it away" * (folder not in series)
            )


def _file_input(path: Path, defect: str = "") -> _Input:
    if not is_volume(path) and not is_picture(path):
        defect = f"is of a kind that is not read; expected {_KINDS}, so convert it or move it away (--input)"
    return _Input(stem_of(path), path, defect)


def _folder_input(path: Path, defect: str = "") -> _Input:
    return _Input(path.resolve().name, path, defect)


def _unique(inputs: Iterable[_Input]) -> Iterator[_Input]:
    """The inputs, with a defect where a name was there before: their masks would overwrite one another."""
    known: dict[str, Path] = {}
    for given in inputs:
        other = known.setdefault(given.name, given.path)
        if len(given.name.encode(errors="replace")) > LONGEST_NAME and not given.defect:
            given = given._replace(defect=f"has a name of more than {LONGEST_NAME} bytes; expected less, rename it")
        if other != given.path and not given.defect:
            given = given._replace(
                defect=f"has the name of {other.name}, and so would its mask; expected each name once, so rename one"
            )
        yield given
