"""Masks out: NIfTI on the grid of the input, or a PNG or TIFF with the values that the training labels have."""

from __future__ import annotations

import errno
import gzip
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from datasets.axes import as_stored
from datasets.base import Geometry
from datasets.itk import check_name, quiet_sitk
from datasets.nifti import SUFFIXES, open_stream, read_header
from utils import atomic_write, release_pages

# Offsets in a NIfTI-1 header (nifti1.h).
_DIM, _SFORM_CODE, _SROW = 40, 254, 280
_BLOCK = 2**24  # bytes that are put in the file's order at a time
_GZIP_LEVEL = 6
_MAX_ULPS = 2048
_RESOLUTION = (282, 283, 296)  # TIFF tags: pixels per unit along x and y, and the unit


def write_mask(path: Path | str, mask: np.ndarray, geometry: Geometry | None, label_values: Sequence[int] = ()) -> None:
    """Write a mask (D, H, W) uint8 as NIfTI, with the spacing, origin, direction and axes of the file it belongs to.

    What `read_image` gave as geometry reads back the same to the last bit; other geometry is rounded to the header's
    float32. Without geometry the array is taken as (z, y, x) at unit spacing, as the published code writes it. No
    second copy of the mask is made, so it may lie on the disk (np.memmap). The file is written atomically.

    Args:
        label_values: what is written for class 0, 1, ..., such as (0, 255); the classes themselves where it is empty.

    Raises:
        ValueError: the mask, its values or the file's name is not what a mask can be written from.
        OSError: the file cannot be written.
    """
    path, geometry = Path(path), geometry or Geometry()
    values = _check_mask(path, mask, 3, label_values)
    check_name(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: cannot be written; expected a name that ends in {' or '.join(SUFFIXES)}")
    stored = as_stored(mask, geometry)

    def write(partial: Path) -> None:
        header = _header(partial, stored.shape, geometry)
        planes = max(1, _BLOCK // stored[0].size)
        packed = path.name.endswith(".gz")
        with (
            partial.open("wb") as file,
            # Without name and time: equal masks make equal files.
            gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) if packed else nullcontext(file) as stream,
        ):
            stream.write(header)
            for first in range(0, len(stored), planes):
                block = np.ascontiguousarray(stored[first : first + planes])
                stream.write((values[block] if len(values) else block).data)
                release_pages(mask)

    atomic_write(path, write)


def write_image_mask(path: Path, mask: np.ndarray, label_values: Sequence[int], source: Path | None) -> Path:
    """Write a mask (H, W) uint8 as a PNG or, where its image is a TIFF, as a TIFF of that resolution.

    Args:
        path: of the file without its suffix, .png or .tif.
        label_values: what is written for class 0, 1, ..., such as (0, 255).
        source: the file of the image that the mask is of; None where there is none.

    Returns:
        The file, written atomically.

    Raises:
        ValueError: the mask or its values are not what can be written.
        OSError: the file cannot be written.
    """
    image = Image.fromarray(_check_mask(path, mask, 2, label_values)[mask])
    tags = None
    if source is not None:
        with Image.open(source) as original:
            if isinstance(original, TiffImageFile):
                tags = {tag: original.tag_v2[tag] for tag in _RESOLUTION if tag in original.tag_v2}
    path = path.with_name(path.name + (".png" if tags is None else ".tif"))
    # Not compressed: libtiff would round the resolution.
    atomic_write(path, lambda partial: image.save(partial, tiffinfo=tags))
    return path


def _check_mask(path: Path, mask: np.ndarray, ndim: int, label_values: Sequence[int]) -> np.ndarray:
    """What is written for each class, uint8; refuses a mask that is none and values that a file cannot hold."""
    if mask.ndim != ndim or mask.dtype != np.uint8 or not mask.size:
        shape = "(D, H, W)" if ndim == 3 else "(H, W)"
        raise ValueError(f"{path}: the mask is {mask.shape} of {mask.dtype}; expected {shape} of uint8")
    if not all(0 <= value <= 255 for value in label_values):
        raise ValueError(f"{path}: the label values are {tuple(label_values)}; expected 0..255 (DATA.LABEL_VALUES)")
    return np.array(label_values, dtype=np.uint8)


def _header(partial: Path, shape: tuple[int, ...], geometry: Geometry) -> bytes:
    """All that comes before the voxels of a file of `shape` [z, y, x]: what SimpleITK writes for a single voxel."""
    partial.touch()
    with quiet_sitk() as sitk:
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
        struct.pack_into("=h", header, _SFORM_CODE, 1)
        struct.pack_into("=12f", header, _SROW, *_sform(geometry).ravel())
    return bytes(header)


def _sform(geometry: Geometry) -> np.ndarray:
    """The rows of the sform (3, 4) that reads back as `geometry`.

    SimpleITK turns an oblique direction into a quaternion and back in float32, which moves it by some 1e-8. A reader
    takes the direction from the sform's columns, divided by their length; so search, among the float32 columns around
    direction times spacing, for the one that gives the very direction. A column that came from a file is there.
    """
    directions = np.reshape(geometry.direction, (3, 3)).T
    columns = [_float32_column(axis, spacing) for axis, spacing in zip(directions, geometry.spacing, strict=True)]
    return np.array([[-1.0], [-1.0], [1.0]]) * np.stack([*columns, np.asarray(geometry.origin)], axis=1)  # LPS to RAS


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
