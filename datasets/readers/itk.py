"""MetaImage (.mha, .mhd) and NRRD volumes, by SimpleITK: read as arrays with their geometry, masks written in kind."""

from __future__ import annotations

import errno
import math
import re
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from datasets.case import Geometry
from datasets.errors import MAX_VOXELS
from datasets.readers.grid import arrange, as_stored, check_axes, reorient, slice_first
from utils import atomic_write

_MAX_HEADER = 2**16  # bytes

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # every failure becomes an exception of one line


class ItkImage:
    """A volume (D, H, W) of the stored type, read whole once its numbers are asked for: a `SlicedImage`.

    The arguments are those of `datasets.readers.nifti.open_image`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a 3-D image of one number a voxel or, as it is read, is damaged or holds NaN; the message
            names it.
    """

    ndim = 3

    def __init__(self, path: Path, axis_order: str = "zxy", orientation: str = "") -> None:
        check_axes(axis_order, orientation)
        if not str(path).isprintable():  # SimpleITK ends the whole process at a name that is not UTF-8
            raise ValueError(f"{path}: has a name that cannot be printed; expected UTF-8, so rename it")
        with path.open("rb"):  # or the error of it
            pass
        self.path, self._reader = path, sitk.ImageFileReader()
        self._reader.SetImageIO("NrrdImageIO" if path.suffix.lower() == ".nrrd" else "MetaImageIO")
        self._reader.SetFileName(str(path))
        try:
            if path.suffix.lower() != ".nrrd":
                _meta_voxels(path)
            self._reader.ReadImageInformation()
        except RuntimeError as error:
            raise _unreadable(path, _brief(error)) from None
        size, numbers = self._reader.GetSize(), self._reader.GetNumberOfComponents()
        if len(size) != 3 or numbers != 1 or math.prod(size) > MAX_VOXELS:
            raise ValueError(
                f"{path}: has the shape {size} and {numbers} numbers a voxel; expected a 3-D image of one, "
                f"{MAX_VOXELS} voxels at most"
            )
        geometry = Geometry(self._reader.GetSpacing(), self._reader.GetOrigin(), self._reader.GetDirection())
        self.geometry = slice_first(reorient(geometry, axis_order, orientation), size)
        self.shape = tuple(size["xyz".index(axis)] for axis in self.geometry.axis_order)
        self.dtype = sitk.GetArrayFromImage(sitk.Image(1, 1, 1, self._reader.GetPixelID())).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, slices: slice) -> np.ndarray:
        """The slices of a range."""
        return self._array[slices]

    def check(self) -> None:
        """Read it; errors as above."""
        len(self._array)

    @cached_property
    def _array(self) -> np.ndarray:
        if (held := _bytes_held(self.path)) < math.prod(self.shape) * self.dtype.itemsize:
            raise _unreadable(self.path, f"it holds {held} bytes of voxels, too few")
        try:
            stored = sitk.GetArrayFromImage(self._reader.Execute())
        except RuntimeError as error:
            raise _unreadable(self.path, _brief(error)) from None
        bad = int((~np.isfinite(stored)).sum()) if stored.dtype.kind == "f" else 0
        if bad:
            raise ValueError(f"{self.path}: holds {bad} NaN or infinite values; expected finite numbers, fix the file")
        return np.ascontiguousarray(arrange(stored, self.geometry))


def _meta_voxels(path: Path) -> tuple[Path, int, bool]:
    """The file that has the voxels of a MetaImage, where they begin, and whether they are compressed.

    ITK prints lines where a header is damaged, and reads some all the same.
    """
    with path.open("rb") as file:
        text = file.read(_MAX_HEADER) + b"\n"
    last = re.search(rb"^ElementDataFile *= *(.*?) *\r?\n", text, re.MULTILINE)
    name = last[1].decode(errors="replace") if last else ""
    if not last or not name or not re.search(rb"^NDims *= *\d", text, re.MULTILINE):
        raise _unreadable(path, "its header ends early")
    is_compressed = bool(re.search(rb"^CompressedData *= *True", text[: last.start()], re.MULTILINE))
    if name.upper() == "LOCAL":
        return path, last.end(), is_compressed
    if Path(name).name != name or not (path.parent / name).is_file():
        raise _unreadable(path, f"its ElementDataFile is {name[:80]!r} and not a file beside it")
    return path.parent / name, 0, is_compressed


def _bytes_held(path: Path) -> float:
    """How many bytes of voxels a MetaImage has, uncompressed; of NRRD, whose damage ITK reports, infinity."""
    if path.suffix.lower() == ".nrrd":
        return math.inf
    voxels, start, is_compressed = _meta_voxels(path)
    if not is_compressed:
        return voxels.stat().st_size - start
    found, inflate = 0, zlib.decompressobj()
    with voxels.open("rb") as file:
        file.seek(start)
        try:
            while block := file.read(2**20):
                found += len(inflate.decompress(block))
        except zlib.error as error:
            raise _unreadable(path, str(error)) from None
    return found if inflate.eof else 0


def write_mask(path: Path, array: np.ndarray, geometry: Geometry, values: np.ndarray) -> None:
    """Write an array (D, H, W) of whole numbers on the grid of `geometry`, as `datasets.readers.nifti.write_mask`.

    Raises:
        OSError: the file cannot be written.
    """
    stored = as_stored(array, geometry)
    image = sitk.GetImageFromArray(np.ascontiguousarray(values[stored] if len(values) else stored, dtype=np.uint8))
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)

    def write(partial: Path) -> None:
        partial.touch()
        sitk.WriteImage(image, str(partial), useCompression=True)
        if sitk.Hash(sitk.ReadImage(str(partial))) != sitk.Hash(image):  # ITK does not notice a full disk
            raise OSError(errno.EIO, "cannot be written, the file ends early; is the disk full?")

    atomic_write(path, write)


def _brief(error: Exception) -> str:
    """The last line of an error's text, where ITK says what is wrong, without the name of its part."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^(ITK ERROR: )?(\w+\(0x[0-9a-f]+\): )?", "", lines[-1]).strip()


def _unreadable(path: Path, why: str) -> ValueError:
    return ValueError(f"{path}: is not a readable image ({why[:160]}); expected .mha, .mhd or .nrrd, copy it again")
