"""Pairs of NIfTI files, an image and its label, read and checked whole."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.case import Geometry
from datasets.errors import Defect, Defects, defect_of
from datasets.readers import open_volume, read_label
from datasets.readers.grid import check_same_grid
from scripts.preparation.pipeline import NO_AXES


class Pair(NamedTuple):
    """An image (D, H, W) as stored, its label as classes, uint8, where both lie, and the raw label's largest value.

    `axes` are where the files' x, y and z point, such as "LPS", or `NO_AXES`.
    """

    image: np.ndarray
    label: np.ndarray
    geometry: Geometry
    axes: str
    largest: int

    @property
    def grid(self) -> str:
        """Size, spacing and axes, as they are printed."""
        spacing = ", ".join(f"{value:.7g}" for value in self.geometry.spacing)
        depth, height, width = self.image.shape
        return f"{depth} slices of {height}x{width}, spacing ({spacing}) mm, {self.axes}"

    def counts(self, names: Sequence[str]) -> dict[str, int]:
        """How many slices there are, and how many voxels of each class."""
        voxels = np.bincount(self.label.ravel(), minlength=len(names) + 1).tolist()
        return {"slices": len(self.image), **dict(zip(("background", *names), voxels, strict=True))}


def read_pairs(
    paths: Sequence[Path], axis_order: str, classes: Sequence[int], hint: str, spacing: str = "affine"
) -> list[Pair]:
    """Read images and labels, in turn.

    Args:
        axis_order, spacing: as of `datasets.readers.nifti.open_image`.
        classes: the class of each raw label 0, 1, ...
        hint: what to do about another one.

    Raises:
        Defects: all that is wrong: damage, NaN, grids that differ, other labels, one slice, one value.
    """
    pairs, defects = [], []
    for image, label in zip(paths[::2], paths[1::2], strict=True):
        arrays, grids = {}, []
        for path, read in ((image, partial(open_volume, whole=True)), (label, read_label)):
            try:
                opened, geometry = read(path, axis_order, spacing=spacing)
                arrays[path] = np.asarray(opened[:])
                grids.append((path, arrays[path].shape, geometry))
            except (ValueError, OSError) as error:
                defects.append(defect_of(path, error))
        if image in arrays and len(arrays[image]) < 2:
            defects.append(Defect(image, "is a volume of one slice; expected 2 or more, so give the whole scan"))
        elif image in arrays and arrays[image].min() == arrays[image].max():
            defects.append(Defect(image, f"is {arrays[image].flat[0]:g} everywhere; expected an image, copy it again"))
        if label in arrays:
            stray = arrays[label][~np.isin(arrays[label], range(len(classes)))]
            if stray.size:
                found = f"holds the label {stray[0]:g} and {stray.size} stray voxels in all"
                what = f"{found}; expected whole numbers 0..{len(classes) - 1}, {hint}"
                defects.append(Defect(label, what))
        try:
            if len(grids) == 2:
                check_same_grid(*grids[1], *grids[0])
        except ValueError as error:
            defects.append(defect_of(label, error))
        if not defects:
            letters = geometry.orientation or NO_AXES
            mapped = np.array(classes, np.uint8)[arrays[label].astype(np.uint8)]
            pairs.append(Pair(arrays[image], mapped, grids[0][2], letters, int(arrays[label].max())))
    if defects:
        raise Defects(paths[0].parent, defects)
    return pairs
