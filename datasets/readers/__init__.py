"""Files to arrays and their geometry: `read_image` and the like choose the reader of a volume by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.base import Geometry, round_label
from datasets.readers import itk, nifti

SUFFIXES = (*nifti.SUFFIXES, *itk.SUFFIXES)


def is_volume(path: Path) -> bool:
    """Whether a file's name is that of a volume: NIfTI, MetaImage or NRRD."""
    return path.name.lower().endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """A file's name without the suffix, and without both of .nii.gz."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def read_image(
    path: Path, axis_order: str = "zxy", orientation: str = "", *, spacing: str = "affine"
) -> tuple[np.ndarray, Geometry]:
    """Read a volume as an array (D, H, W) and its geometry; see `datasets.readers.nifti.open_image`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a volume of one number a voxel, is damaged, or holds NaN; the message names it.
    """
    if path.name.lower().endswith(itk.SUFFIXES):
        return itk.read_image(path, axis_order, orientation)
    return nifti.read_image(path, axis_order, orientation, spacing=spacing)


def read_label(
    path: Path, axis_order: str = "zxy", orientation: str = "", *, spacing: str = "affine"
) -> tuple[np.ndarray, Geometry]:
    """The same of a label, whose real numbers are rounded where they are nearly whole.

    Raises:
        ValueError: as `read_image`, or they are not whole.
    """
    label, geometry = read_image(path, axis_order, orientation, spacing=spacing)
    return round_label(label, path), geometry


def read_grid(
    path: Path, axis_order: str = "zxy", orientation: str = "", *, whole: bool = False, spacing: str = "affine"
) -> tuple[tuple[int, ...], Geometry]:
    """The shape (D, H, W) and the geometry of a volume; with `whole`, its voxels are checked in bounded memory."""
    if path.name.lower().endswith(itk.SUFFIXES):
        image, geometry = itk.read_image(path, axis_order, orientation)
        return image.shape, geometry
    opened = nifti.open_image(path, axis_order, orientation, whole=whole, spacing=spacing)
    return opened.shape, opened.geometry
