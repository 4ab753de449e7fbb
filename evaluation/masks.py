"""Masks out: volumes on the grid of the input, or a PNG or TIFF with the values that the training labels have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from datasets.case import Geometry
from datasets.readers import ITK
from datasets.readers.image import is_tiff
from utils import atomic_write

_RESOLUTION = (282, 283, 296)  # TIFF tags: pixels per unit along x and y, and the unit


def write_mask(path: Path | str, mask: np.ndarray, geometry: Geometry | None, label_values: Sequence[int] = ()) -> None:
    """Write a mask (D, H, W) uint8 as .nii.gz, .nii, .mha or .nrrd, on the grid of the file it belongs to.

    Without a geometry the array is taken as (z, y, x) at unit spacing, as the published code writes it. `label_values`,
    such as (0, 255), are written for class 0, 1, ...; the classes themselves where it is empty.
    """
    if Path(path).suffix.lower() in ITK:
        from datasets.readers.itk import write_mask as write  # 90 MB, which most do without
    else:
        from datasets.readers.nifti import write_mask as write
    write(Path(path), mask, geometry or Geometry(), _as_uint8(label_values))


def mask_suffix(source: Path | None) -> str:
    """The suffix of the mask of a volume: that of the file it came from, or .nii.gz."""
    suffix = source.suffix.lower() if source else ""
    return {".mhd": ".mha"}.get(suffix, suffix) if suffix in ITK else ".nii.gz"


def write_image_mask(path: Path, mask: np.ndarray, label_values: Sequence[int], source: Path | None) -> Path:
    """Write a mask (H, W) uint8 as a PNG or, where its image, the file `source`, is a TIFF, as one of its resolution.

    `path` lacks the suffix, .png or .tif; the whole one is returned. `label_values` are those of class 0, 1, ...
    """
    image = Image.fromarray(_as_uint8(label_values)[mask])
    tags = None
    if source is not None and is_tiff(source):
        with tifffile.TiffFile(source) as original:
            found = {
                tag: original.pages.first.tags[tag].value for tag in _RESOLUTION if tag in original.pages.first.tags
            }
        tags = {tag: IFDRational(*value) if isinstance(value, tuple) else value for tag, value in found.items()}
    path = path.with_name(path.name + (".png" if tags is None else ".tif"))
    # Not compressed: libtiff would round the resolution.
    atomic_write(path, lambda partial: image.save(partial, tiffinfo=tags))
    return path


def _as_uint8(label_values: Sequence[int]) -> np.ndarray:
    if not all(0 <= value <= 255 for value in label_values):
        raise ValueError(f"DATA.LABEL_VALUES is {list(label_values)}; a mask holds 0..255, so expected values of these")
    return np.array(label_values, dtype=np.uint8)
