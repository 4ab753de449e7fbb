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
from datasets.nifti import open_stream, read_header
from utils import atomic_write, release_pages

_DIM, _SFORM_CODE, _SROW = 40, 254, 280  # offsets in a NIfTI-1 header (nifti1.h)
_BLOCK = 2**24  # bytes that are put in the file's order at a time
_GZIP_LEVEL = 6
_MAX_ULPS = 2048
_RESOLUTION = (282, 283, 296)  # TIFF tags: pixels per unit along x and y, and the unit


def write_mask(path: Path | str, mask: np.ndarray, geometry: Geometry | None, label_values: Sequence[int] = ()) -> None:
    """Write a mask as NIfTI, with the spacing, origin, direction and axes of the file it belongs to.

    What `read_image` gave as geometry reads back the same to the last bit; other geometry is rounded to the header's
    float32. No second copy of the mask is made, so it may lie on the disk (np.memmap). The file is written atomically.

    Args:
        path: a name that ends in .nii.gz or .nii.
        mask: (D, H, W) uint8.
        geometry: None takes the array as (z, y, x) at unit spacing, as the published code writes it.
        label_values: what is written for class 0, 1, ..., such as (0, 255); the classes themselves where it is empty.

    Raises:
        ValueError: the file's name is not UTF-8, or a label value not in 0..255.
        OSError: the file cannot be written.
    """
    path, geometry = Path(path), geometry or Geometry()
    check_name(path)
    values = _as_uint8(label_values)
    stored = as_stored(mask, geometry)

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
        ValueError: a label value is not in 0..255.
        OSError: the file cannot be written.
    """
    image = Image.fromarray(_as_uint8(label_values)[mask])
    tags = None
    if source is not None:
        with Image.open(source) as original:
            if isinstance(original, TiffImageFile):
                tags = {tag: original.tag_v2[tag] for tag in _RESOLUTION if tag in original.tag_v2}
    path = path.with_name(path.name + (".png" if tags is None else ".tif"))
    # Not compressed: libtiff would round the resolution.
    atomic_write(path, lambda partial: image.save(partial, tiffinfo=tags))
    return path


def _as_uint8(label_values: Sequence[int]) -> np.ndarray:
    if not all(0 <= value <= 255 for value in label_values):
        raise ValueError(f"DATA.LABEL_VALUES is {list(label_values)}; a mask holds 0..255, so expected values of these")
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
