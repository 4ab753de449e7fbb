"""NIfTI out: unsigned bytes on the grid of the file that they belong to."""

from __future__ import annotations

import errno
import gzip
import struct
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from datasets.axes import as_stored
from datasets.base import Geometry
from datasets.itk import check_name, quiet_sitk
from datasets.nifti import open_stream, read_header
from utils import atomic_write, release_pages

_DIM, _SFORM_CODE, _SROW = 40, 254, 280  # offsets in a NIfTI-1 header (nifti1.h)
_BLOCK = 2**24  # bytes that are put in the file's order at a time
_GZIP_LEVEL = 6
_MAX_ULPS = 2048


def write_bytes(path: Path, array: np.ndarray, geometry: Geometry, values: np.ndarray) -> None:
    """Write an array (D, H, W) of whole numbers with the spacing, origin, direction and axes of `geometry`.

    What `read_image` gave as geometry reads back the same to the last bit; other geometry is rounded to the header's
    float32. No second copy of the array is made, so it may lie on the disk (np.memmap). The file is written atomically.

    Args:
        path: a name that ends in .nii.gz or .nii.
        values: uint8, what is written for 0, 1, ...; the numbers themselves where it is empty.

    Raises:
        ValueError: the file's name is not UTF-8.
        OSError: the file cannot be written.
    """
    check_name(path)
    stored = as_stored(array, geometry)

    def write(partial: Path) -> None:
        header = _header(partial, stored.shape, geometry)
        planes = max(1, _BLOCK // stored[0].size)
        with (
            partial.open("wb") as file,
            # Without name and time: equal masks make equal files.
            gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)
            if path.suffix == ".gz"
            else nullcontext(file) as stream,
        ):
            stream.write(header)
            for first in range(0, len(stored), planes):
                block = np.ascontiguousarray(stored[first : first + planes], dtype=np.uint8)
                stream.write((values[block] if len(values) else block).data)
                release_pages(array)

    atomic_write(path, write)


def _header(partial: Path, shape: tuple[int, ...], geometry: Geometry) -> bytes:
    """All that comes before the voxels of a file of `shape` [z, y, x]: what SimpleITK writes for a single voxel."""
    partial.touch()
    sitk = quiet_sitk()
    voxel = sitk.Image(1, 1, 1, sitk.sitkUInt8)
    voxel.SetSpacing(geometry.spacing)
    voxel.SetOrigin(geometry.origin)
    voxel.SetDirection(geometry.direction)
    sitk.WriteImage(voxel, str(partial))
    try:
        found = read_header(partial)[1]
        with open_stream(partial) as stream:
            header = bytearray(stream.read()[:-1])
    except (ValueError, EOFError):  # SimpleITK does not notice a full disk
        raise OSError(errno.EIO, "cannot be written, the file ends early; is the disk full?") from None
    struct.pack_into("=3h", header, _DIM + 2, *reversed(shape))
    if (found.spacing, found.origin, found.direction) != (geometry.spacing, geometry.origin, geometry.direction):
        # The quaternion that SimpleITK writes and reads moves an oblique direction by some 1e-8, an sform does not.
        sizes, axes = geometry.spacing, np.reshape(geometry.direction, (3, 3)).T
        columns = [_float32_column(axis, size) for axis, size in zip(axes, sizes, strict=True)]
        lps = np.stack([*columns, np.asarray(geometry.origin)], axis=1)
        struct.pack_into("=h", header, _SFORM_CODE, 1)
        struct.pack_into("=12f", header, _SROW, *(lps * [[-1.0], [-1.0], [1.0]]).ravel())  # RAS
    return bytes(header)


def _float32_column(axis: np.ndarray, spacing: float) -> np.ndarray:
    """The float32 vector near `axis * spacing`, as float64, whose direction is nearest to `axis`.

    A reader divides a column of the sform by its length. The column that `axis` was read from is among the candidates.
    """
    largest = np.argmax(np.abs(axis))
    anchor = np.float32(axis[largest] * spacing)
    steps = np.arange(-_MAX_ULPS, _MAX_ULPS + 1)
    steps = steps[np.argsort(np.abs(steps), kind="stable")]
    scales = (np.float64(anchor) + steps * np.float64(np.spacing(anchor))) / axis[largest]
    candidates = (scales[:, None] * axis).astype(np.float32).astype(np.float64)
    units = candidates / np.sqrt((candidates**2).sum(axis=1, keepdims=True))
    return candidates[np.argmin(np.abs(units - axis).max(axis=1))]
