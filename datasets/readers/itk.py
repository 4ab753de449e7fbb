"""MetaImage (.mha, .mhd) and NRRD volumes, by SimpleITK: read as arrays with their geometry, masks written in kind."""

from __future__ import annotations

import errno
import math
import re
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from datasets.case import Geometry
from datasets.errors import MAX_VOXELS
from datasets.readers.grid import arrange, as_stored, check_axes, reorient, slice_first
from utils import atomic_write

_MAX_HEADER = 2**16  # bytes

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # every failure becomes an exception of one line


def read_image(path: Path | str, axis_order: str = "zxy", orientation: str = "") -> tuple[np.ndarray, Geometry]:
    """Read a volume as an array (D, H, W) of the stored type, and its geometry; see `datasets.readers.nifti`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a 3-D image of one number a voxel, is damaged, or holds NaN; the message names it.
    """
    path = Path(path)
    check_axes(axis_order, orientation)
    if not str(path).isprintable():  # SimpleITK ends the whole process at a name that is not UTF-8
        raise ValueError(f"{path}: has a name that cannot be printed; expected UTF-8, so rename it")
    with path.open("rb"):  # or the error of it
        pass
    try:
        held = math.inf if path.suffix.lower() == ".nrrd" else _meta_bytes(path)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NrrdImageIO" if held == math.inf else "MetaImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        shape = reader.GetSize()
        if len(shape) != 3 or reader.GetNumberOfComponents() != 1 or math.prod(shape) > MAX_VOXELS:
            raise ValueError(
                f"{path}: has the shape {shape} and {reader.GetNumberOfComponents()} numbers a voxel; expected a 3-D "
                f"image of one, {MAX_VOXELS} voxels at most"
            )
        if held < math.prod(shape) * sitk.GetArrayFromImage(sitk.Image(1, 1, 1, reader.GetPixelID())).itemsize:
            raise _unreadable(path, f"it holds {held} bytes of voxels, too few")
        stored = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise _unreadable(path, _brief(error)) from None
    bad = int((~np.isfinite(stored)).sum()) if stored.dtype.kind == "f" else 0
    if bad:
        raise ValueError(f"{path}: holds {bad} NaN or infinite values; expected finite numbers, fix the file")
    geometry = Geometry(reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    geometry = slice_first(reorient(geometry, axis_order, orientation), shape)
    return np.ascontiguousarray(arrange(stored, geometry)), geometry


def _meta_bytes(path: Path) -> int:
    """How many bytes of voxels a MetaImage has, unpacked; ITK prints lines where they are damaged, and reads some."""
    with path.open("rb") as file:
        text = file.read(_MAX_HEADER) + b"\n"
        last = re.search(rb"^ElementDataFile *= *(.*?) *\r?\n", text, re.MULTILINE)
        name = last.group(1).decode(errors="replace") if last else ""
        is_local = name.upper() == "LOCAL"
        if not last or not name or not re.search(rb"^NDims *= *\d", text, re.MULTILINE):
            raise _unreadable(path, "its header ends early")
        if not is_local and (Path(name).name != name or not (path.parent / name).is_file()):
            raise _unreadable(path, f"its ElementDataFile is {name[:80]!r} and not a file beside it")
        file.seek(last.end())
        inflate = re.search(rb"^CompressedData *= *True", text[: last.start()], re.MULTILINE) and zlib.decompressobj()
        found = 0
        with file if is_local else (path.parent / name).open("rb") as voxels:
            try:
                while block := voxels.read(2**20):
                    found += len(inflate.decompress(block) if inflate else block)
            except zlib.error as error:
                raise _unreadable(path, str(error)) from None
    return found if not inflate or inflate.eof else 0


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
