"""The geometry of a volume: compared with that of its label, and stored as arrays beside an image."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from nibabel.spatialimages import HeaderDataError

from datasets.base import BadFile, Geometry, brief, shorten, warn_once

NUMBERS = ("spacing", "origin", "direction")
TEXTS = {"axis_order": "zyx", "flips": ""}  # and what they are where a file does not say it
ORIENTED = "oriented"
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
        near = {key: np.allclose(*(getattr(one, key) for one in both), atol=_MAX_DIFFERENCE) for key in NUMBERS}
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


def geometry_arrays(geometry: Geometry, *, oriented: bool = True) -> dict[str, np.ndarray]:
    """The arrays that `geometry_from` and `oriented_from` read.

    Without `oriented` they say that nobody knows where the axes point: the distances hold, the directions need not.
    """
    arrays = {key: np.asarray(getattr(geometry, key), dtype=np.float64) for key in NUMBERS}
    arrays |= {"affine": geometry.affine, "axis_order": np.bytes_(geometry.axis_order)}
    if geometry.flips:
        arrays["flips"] = np.bytes_(geometry.flips)
    return arrays if oriented else arrays | {ORIENTED: np.bool_(False)}


def geometry_from(stored: Mapping[str, np.ndarray], path: Path) -> Geometry | None:
    """The geometry that arrays stand for, or None where there is none among them; `path` is their file, for messages.

    Raises:
        ValueError: they are no geometry.
    """
    if not all(key in stored for key in NUMBERS):
        return None
    try:
        values = {key: tuple(float(v) for v in stored[key].ravel()) for key in NUMBERS}
        order, flips = (stored[key].item().decode() if key in stored else usual for key, usual in TEXTS.items())
        if [len(values[key]) for key in NUMBERS] != [3, 3, 9] or sorted(order) != ["x", "y", "z"]:
            raise ValueError(f"{ {key: len(value) for key, value in values.items()} }, axis_order {order!r}")
        if len(set(flips)) < len(flips) or not set(flips) <= set("xyz"):
            raise ValueError(f"flips {flips!r}")
        if not np.isfinite(np.concatenate(list(values.values()))).all() or min(values["spacing"]) <= 0:
            raise ValueError("a spacing that is not positive, or a number that is not finite")
        determinant = np.linalg.det(np.reshape(values["direction"], (3, 3)))
        if not 0.5 < abs(determinant) < 2:
            raise ValueError(f"directions of determinant {determinant:g}")
        return Geometry(**values, axis_order=order, flips=flips)
    except (ValueError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: its geometry is not understood ({brief(error)}); expected 'spacing' and 'origin' of 3 numbers, "
            "'direction' of 9, 'axis_order' such as zxy and, where axes run backwards, 'flips' such as xy"
        ) from error


def oriented_from(stored: np.ndarray | None, path: Path) -> bool:
    """Whether the axes of a geometry point where it says, from what its file `path` stores as `ORIENTED`, if anything.

    Raises:
        ValueError: it stores something else than true or false.
    """
    if stored is None:
        return True
    if stored.shape != () or stored.dtype.kind != "b":
        found = f"{stored.shape} of {shorten(str(stored.dtype))}"
        raise BadFile(f"{path}: '{ORIENTED}' is {found}; expected true or false, make the file again")
    return bool(stored)
