"""The grid of a volume, compared with that of its label."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from nibabel.spatialimages import HeaderDataError

from datasets.base import Geometry, warn_once

_NAMED = ("spacing", "direction")  # in a message before the origin
_MAX_DIFFERENCE = 1e-3  # of the axes of two grids, relative to the voxel
_MAX_SHIFT, _UNNOTICED_SHIFT = 1e-2, 1e-3  # of their origins, in voxels


def check_same_grid(
    path: Path,
    shape: tuple[int, ...],
    geometry: Geometry,
    image_path: Path,
    image_shape: tuple[int, ...],
    image_geometry: Geometry,
) -> None:
    """Refuse a label, by its `path`, that does not lie where its image lies, by qform, sform or the affine in use.

    An origin may differ by a hundredth of a voxel, with a warning.

    Raises:
        ValueError: they differ in size, or in position in the patient.
    """
    if tuple(shape) != tuple(image_shape):
        raise ValueError(f"{path}: has size {shape} but {image_path.name} {image_shape}; expected the same size")
    here, there = _forms(geometry), _forms(image_geometry)
    apart = [_apart(here[form], there[form]) for form in here if form in there]
    axes, shift = min(apart, key=lambda found: (not found[0] <= _MAX_DIFFERENCE, not found[1] <= _MAX_SHIFT, found[1]))
    both = geometry, image_geometry
    turned_alike = len({(one.axis_order, one.flips) for one in both}) == 1
    if not axes <= _MAX_DIFFERENCE or not shift <= _MAX_SHIFT or not turned_alike:
        near = {
            key: np.allclose(*(getattr(one, key) for one in both), atol=_MAX_DIFFERENCE)
            for key in ("spacing", "origin", "direction")
        }
        key = next((key for key in ("spacing", "direction") if not near[key]), "origin")
        found, expected = (", ".join(f"{value:.7g}" for value in getattr(one, key)) for one in both)
        raise ValueError(
            f"{path}: its {key} is ({found}) but {image_path.name} has ({expected}); expected one "
            "grid, so take the image's own label or resample it"
        )
    if shift > _UNNOTICED_SHIFT:
        warn_once(f"{path}: lies {shift:.2g} voxels from {image_path.name}; taken as its label all the same")


def _forms(geometry: Geometry) -> dict[str, np.ndarray]:
    """The affine in use, and those of the forms that the header of a file has."""
    forms = {"": geometry.affine}
    for form in ("qform", "sform") if geometry.header is not None else ():
        with suppress(ValueError, HeaderDataError):
            affine, code = getattr(geometry.header, f"get_{form}")(coded=True)
            forms |= {form: affine} if code else {}
    return forms


def _apart(here: np.ndarray, there: np.ndarray) -> tuple[float, float]:
    """How far two affines differ: the axes, relative to the length of each, and the origins, in voxels."""
    sizes = np.linalg.norm(there[:3, :3], axis=0)
    sizes[sizes == 0] = 1.0  # that of a slice, of which two dimensions say nothing
    differences = np.linalg.norm((here - there)[:3], axis=0)
    return float((differences[:3] / sizes).max()), float(differences[3] / sizes.min())
