"""Predicted masks of pictures, as files beside which the training labels could lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.images import picture_header
from utils import atomic_write

_RESOLUTION = (282, 283, 296)  # TIFF tags: pixels a unit along x and y, and the unit
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what such a file begins with
_MOST_CLASSES = 256  # that 8 bits can tell


def write_picture_mask(path: Path, mask: np.ndarray, label_values: Sequence[int], source: Path | None) -> Path:
    """Write a mask (H, W) uint8 of classes with the values that the training labels have for them; returns the file.

    It is a PNG or, where the picture was a TIFF, a TIFF with the picture's resolution. It appears whole or not at all.

    Args:
        path: of the file without its suffix, .png or .tif.
        mask: classes 0..K-1.
        label_values: the raw value of each class, such as (0, 255).
        source: the picture that the mask is of, whose size it must have; None where there is none.

    Raises:
        ValueError: the mask, its classes or its size is not what can be written.
        OSError: the file cannot be written.
    """
    from PIL import Image

    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"{path}: the mask has shape {mask.shape} and dtype {mask.dtype}; expected (H, W) of uint8")
    values = tuple(label_values)
    if len(values) > _MOST_CLASSES or not all(0 <= value < _MOST_CLASSES for value in values):
        raise ValueError(f"{path}: the labels' values are {values}; expected 0..255, one a class (DATA.LABEL_VALUES)")
    if mask.size and mask.max() >= len(values):
        raise ValueError(f"{path}: holds class {mask.max()}, but there are values for {len(values)} classes: {values}")
    if source is not None and picture_header(source)[:2] != mask.shape:
        height, width = picture_header(source)[:2]
        raise ValueError(f"{path}: the mask has shape {mask.shape} but {source} {(height, width)}; expected one size")
    image = Image.fromarray(np.array(values, dtype=np.uint8)[mask])
    tags = None if source is None else _resolution(source)
    if tags is None:
        path, options = path.with_name(f"{path.name}.png"), {"format": "PNG"}
    else:
        # Not packed: what packs it would round the resolution.
        path, options = path.with_name(f"{path.name}.tif"), {"format": "TIFF", "tiffinfo": tags}
    atomic_write(path, lambda partial: image.save(partial, **options))
    return path


def _resolution(source: Path) -> dict[int, Any] | None:
    """The tags of a TIFF that say how large its pixels are; None of another picture."""
    from PIL.TiffImagePlugin import TiffImageFile

    with open(source, "rb") as file:
        if file.read(4) not in _TIFF:
            return None
        file.seek(0)
        tags = TiffImageFile(file).tag_v2
        return {tag: tags[tag] for tag in _RESOLUTION if tag in tags}
