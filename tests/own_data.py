"""Custom data sets, written small: images with masks, volumes with labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from tests.conftest import make_case


def draw_image(seed: int, size: tuple[int, int] = (40, 48), classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image (H, W, 3) uint8 and a mask (H, W) uint8 of blocks, 0..classes-1, which its redness tells."""
    image, label = make_case(seed, (1, *size), classes)
    red = (image[0] * 200).astype(np.uint8)
    return np.stack([red, 255 - red, np.full_like(red, seed % 255)], axis=2), label[0]


def write_images(root: Path, count: int = 10, *, classes: int = 2, suffix: str = ".png", scale: int = 0) -> Path:
    """`images/` and `labels/`; of two classes the masks hold 0 and 255, unless `scale` says otherwise."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for index in range(count):
        image, mask = draw_image(index, classes=classes)
        Image.fromarray(image).save(root / f"images/case {index}{suffix}")
        Image.fromarray(mask * (scale or (255 if classes == 2 else 1))).save(root / f"labels/case {index}.png")
    return root


def volume(seed: int, shape: tuple[int, int, int] = (6, 24, 28), classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """An image (z, y, x) int16 and a label of blocks, which its brightness tells."""
    image, label = make_case(seed, shape, classes)
    return (image * 1000 - 200).astype(np.int16), label


def write_nifti(
    path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 3.0), orientation: str = "LPS"
) -> None:
    """Write an array (z, y, x) that lies along LPS, stored along `orientation`."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((-10.0, 20.0, 5.0))
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path))


def write_volumes(root: Path, count: int = 4, *, classes: int = 3, orientations: tuple[str, ...] = ("LPS",)) -> Path:
    """`images/` and `labels/` of NIfTI, each stored along one of the orientations in turn."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for index in range(count):
        for part, array in zip(("images", "labels"), volume(index, classes=classes), strict=True):
            where = orientations[index % len(orientations)]
            write_nifti(root / part / f"case{index}.nii.gz", array, orientation=where)
    return root
