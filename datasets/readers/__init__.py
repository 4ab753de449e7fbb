"""Files to arrays and their grid; the reader is chosen by the name of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.case import Geometry, SlicedImage
from datasets.label_values import round_label
from datasets.readers import dicom, image, nifti
from datasets.readers.dicom import BESIDE
from datasets.readers.image import read_image, read_mask

__all__ = ["BESIDE", "is_image", "is_volume", "open_volume", "read_image", "read_label", "read_mask", "stem_of"]

ITK = (".mha", ".mhd", ".nrrd")
VOLUMES = (*nifti.SUFFIXES, *ITK)
SUFFIXES = (*image.SUFFIXES, *VOLUMES)


def is_volume(path: Path) -> bool:
    """Whether a file's name is that of a volume: NIfTI, MetaImage or NRRD."""
    return path.name.lower().endswith(VOLUMES)


def is_image(path: Path) -> bool:
    """Whether a file's name is that of a 2-D image: PNG, JPEG, TIFF or BMP."""
    return path.name.lower().endswith(image.SUFFIXES)


def stem_of(path: Path) -> str:
    """A file's name without the suffix, and without both of .nii.gz."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def open_volume(
    path: Path, axis_order: str = "zxy", orientation: str = "", *, spacing: str = "affine", whole: bool = False
) -> tuple[SlicedImage | np.ndarray, Geometry]:
    """A volume (D, H, W) as stored, and its geometry; see `datasets.readers.nifti.open_image`. A folder is a DICOM
    series. NIfTI is read by slices, MetaImage and NRRD whole; `whole` sees that all of it can be read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a volume of one number a voxel, is damaged, or holds NaN; the message names it.
    """
    if path.is_dir():
        return dicom.read_series(path, axis_order, orientation)
    if path.name.lower().endswith(ITK):
        from datasets.readers import itk  # 90 MB, which most do without

        image = itk.ItkImage(path, axis_order, orientation)
        if whole:
            image.check()
        return image, image.geometry
    opened = nifti.open_image(path, axis_order, orientation, whole=whole, spacing=spacing)
    return opened, opened.geometry


def read_label(
    path: Path, axis_order: str = "zxy", orientation: str = "", *, spacing: str = "affine"
) -> tuple[np.ndarray, Geometry]:
    """A label (D, H, W) and its geometry; real numbers that are nearly whole are rounded.

    Raises:
        ValueError: as `open_volume`, or they are not whole.
    """
    label, geometry = open_volume(path, axis_order, orientation, spacing=spacing)
    return round_label(np.asarray(label[:]), path), geometry
