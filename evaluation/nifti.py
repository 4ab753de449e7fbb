"""NIfTI out: a mask on the very grid of the file that it belongs to."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datasets.axes import as_stored, check_axes
from datasets.base import Geometry
from datasets.itk import brief_of_itk, check_name, quiet_sitk
from datasets.nifti import SUFFIXES, byte_order, open_stream, read_header
from utils import atomic_write, release_pages

# Offsets in a NIfTI-1 header (nifti1.h).
_DIM, _SFORM_CODE, _SROW = 40, 254, 280
_LONGEST_SIDE = 32767
_BLOCK = 2**24  # bytes that are put in the file's order at a time
_LEVEL = 6  # of gzip
_MAX_ULPS = 2048


def write_mask(path: Path | str, mask: np.ndarray, geometry: Geometry | None, label_values: Sequence[int] = ()) -> None:
    """Write a mask (D, H, W) uint8 as NIfTI, with the spacing, origin and direction of the file it belongs to.

    Its axes are put back as that file has them. What `read_image` gave as geometry reads back the same to the last
    bit; geometry that comes from elsewhere is rounded to the header's float32. Without geometry the array is taken as
    (z, y, x) at unit spacing, as the published code writes it. No second copy of the mask is made, so it may lie on
    the disk (np.memmap). The file appears whole or not at all.

    Args:
        label_values: what is written for class 0, 1, ..., such as (0, 255); the classes themselves where it is empty.

    Raises:
        ValueError: the mask, its values, the geometry or the file's suffix is not what a mask can be written from.
        OSError: the file cannot be written.
    """
    path, geometry = Path(path), geometry or Geometry()
    if mask.ndim != 3 or mask.dtype != np.uint8 or not all(1 <= side <= _LONGEST_SIDE for side in mask.shape):
        raise ValueError(
            f"{path}: the mask has shape {mask.shape} and dtype {mask.dtype}; expected (D, H, W) of uint8, each from 1 "
            f"to {_LONGEST_SIDE}"
        )
    if not all(0 <= value <= 255 for value in label_values):
        raise ValueError(f"{path}: its values are to be {tuple(label_values)}; expected some from 0 to 255")
    check_name(path)
    check_axes(geometry.axis_order)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: cannot be written; expected a name that ends in .nii.gz or .nii")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: cannot be written, there is no folder {path.parent}; make it first")
    stored, values = as_stored(mask, geometry), np.array(label_values, dtype=np.uint8)

    def write(partial: Path) -> None:
        header = _header(partial, path, stored.shape, geometry)
        planes = max(1, _BLOCK // (stored.shape[1] * stored.shape[2]))
        with _packing(partial) as stream:
            stream.write(header)
            for first in range(0, len(stored), planes):
                block = np.ascontiguousarray(stored[first : first + planes])
                stream.write((values[block] if len(values) else block).data)
                release_pages(mask)

    atomic_write(path, write)


def _header(partial: Path, path: Path, shape: tuple[int, ...], geometry: Geometry) -> bytes:
    """All that stands before the voxels of a file of `shape` [z, y, x]: SimpleITK's own, of one voxel there."""
    with quiet_sitk() as sitk:
        image = sitk.Image(1, 1, 1, sitk.sitkUInt8)
        try:
            image.SetSpacing(geometry.spacing)
            image.SetOrigin(geometry.origin)
            image.SetDirection(geometry.direction)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"{path}: cannot be written with {geometry} ({brief_of_itk(error)}); expected a grid"
            ) from None
        try:
            partial.touch()
            sitk.WriteImage(image, str(partial))
            found = read_header(partial)[1]
            with open_stream(partial) as stream:
                header = bytearray(stream.read()[:-1])
        except (RuntimeError, ValueError, EOFError) as error:
            # A full disk goes unnoticed by SimpleITK's writer.
            why = brief_of_itk(error) if isinstance(error, RuntimeError) else "the file ends early"
            raise OSError(f"{path}: cannot be written ({why}); is the folder writable and the disk not full?") from None
    order = byte_order(bytes(header), path)
    struct.pack_into(f"{order}3h", header, _DIM + 2, *reversed(shape))
    if any(getattr(found, key) != getattr(geometry, key) for key in ("spacing", "origin", "direction")):
        struct.pack_into(f"{order}h", header, _SFORM_CODE, 1)
        struct.pack_into(f"{order}12f", header, _SROW, *_sform(geometry).ravel())
    return bytes(header)


@contextmanager
def _packing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, packed where its name ends in .gz; equal contents make equal files."""
    with path.open("wb") as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as packed:
                yield packed
        else:
            yield file


def _sform(geometry: Geometry) -> np.ndarray:
    """The rows of the sform (3, 4) that reads back as `geometry`.

    SimpleITK turns an oblique direction into a quaternion and back in float32, which moves it by some 1e-8. A reader
    takes the direction from the sform's columns, divided by their length; so look, among the float32 columns around
    direction times spacing, for the one that gives the very direction. A column that came from a file is there.
    """
    lps_to_ras = np.array([-1.0, -1.0, 1.0])
    columns = [
        lps_to_ras * _float32_column(axis, spacing)
        for axis, spacing in zip(np.reshape(geometry.direction, (3, 3)).T, geometry.spacing, strict=True)
    ]
    return np.stack([*columns, lps_to_ras * np.asarray(geometry.origin)], axis=1)


def _float32_column(axis: np.ndarray, spacing: float) -> np.ndarray:
    """The float32 vector near `axis * spacing`, as float64, whose direction is nearest to `axis`."""
    largest = np.argmax(np.abs(axis))
    anchor = np.float32(axis[largest] * spacing)
    steps = np.arange(-_MAX_ULPS, _MAX_ULPS + 1)
    steps = steps[np.argsort(np.abs(steps), kind="stable")]
    scales = (np.float64(anchor) + steps * np.float64(np.spacing(anchor))) / axis[largest]
    candidates = (scales[:, None] * axis).astype(np.float32).astype(np.float64)
    units = candidates / np.sqrt((candidates**2).sum(axis=1, keepdims=True))
    return candidates[np.argmin(np.abs(units - axis).max(axis=1))]
