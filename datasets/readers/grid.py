"""The axes of arrays (D, H, W) in a file's (x, y, z), and of the file in the patient."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from datasets.case import Geometry, Volume
from datasets.errors import warn_once

_MAX_DIFFERENCE = 1e-3  # of the axes of two grids, relative to the voxel
_MAX_SHIFT, _UNNOTICED_SHIFT = 1e-2, 1e-3  # of their origins, in voxels
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "I": "S", "S": "I"}


def arrange(stored: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Voxels [z, y, x], as a file has them, along the axes of our arrays: a view (D, H, W)."""
    flipped = np.flip(stored, tuple("zyx".index(axis) for axis in geometry.flips))
    return flipped.transpose(["zyx".index(axis) for axis in geometry.axis_order])


def as_stored(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The inverse of `arrange`: an array (D, H, W) as [z, y, x] of its file, a view."""
    stored = array.transpose([geometry.axis_order.index(axis) for axis in "zyx"])
    return np.flip(stored, tuple("zyx".index(axis) for axis in geometry.flips))


def _letters(geometry: Geometry) -> str:
    return "".join(nib.aff2axcodes(geometry.affine))


def reorient(geometry: Geometry, axis_order: str, towards: str) -> Geometry:
    """The geometry of an array in `axis_order`, after the file's x, y and z were turned to point `towards`."""
    if not towards:
        return replace(geometry, axis_order=axis_order, flips="")
    stored = dict(zip(_letters(geometry), "xyz", strict=True))
    flips = [stored[_OPPOSITE[letter]] for letter in towards if letter not in stored]
    axes = [stored.get(letter) or stored[_OPPOSITE[letter]] for letter in towards]
    order = "".join(axes["xyz".index(axis)] for axis in axis_order)
    return replace(geometry, axis_order=order, flips="".join(sorted(flips)))


def slice_first(geometry: Geometry, shape: tuple[int, ...]) -> Geometry:
    """The geometry of an array (1, H, W), where a file of size (x, y, z) is a single slice along any axis."""
    thin = next((axis for axis in geometry.axis_order if shape["xyz".index(axis)] == 1), "")
    return replace(geometry, axis_order=thin + geometry.axis_order.replace(thin, ""))


def reorient_volume(volume: Volume, towards: str) -> Volume:
    """A volume whose file's x, y and z are turned to point `towards`; unchanged where it has no geometry."""
    if volume.geometry is None or not towards:
        return volume
    geometry = reorient(volume.geometry, volume.geometry.axis_order, towards)
    turned = [
        np.ascontiguousarray(arrange(as_stored(np.asarray(array), volume.geometry), geometry))
        for array in (volume.image, volume.label)
        if array is not None
    ]
    return replace(volume, image=turned[0], label=turned[1] if len(turned) > 1 else None, geometry=geometry)


def upright(image: np.ndarray, geometry: Geometry | None) -> np.ndarray:
    """An axial slice (H, W, ...) with anterior up and the patient's right at the left; any other one as stored."""
    if geometry is None:
        return image
    letters = dict(zip("xyz", _letters(geometry), strict=True))
    letters |= {axis: _OPPOSITE[letters[axis]] for axis in geometry.flips}
    rows, columns = (letters[axis] for axis in geometry.axis_order[1:])
    if (rows + columns).translate(str.maketrans("RA", "LP")) not in ("PL", "LP"):
        return image
    image = np.flip(image, tuple(i for i, letter in enumerate((rows, columns)) if letter in "RA"))
    return image.swapaxes(0, 1) if rows in "RL" else image


def check_axes(axis_order: str, towards: str = "") -> None:
    """Refuse what is no order of axes, or no orientation.

    Raises:
        ValueError: it is neither; the message names the option.
    """
    if sorted(axis_order) != ["x", "y", "z"]:
        raise ValueError(f"axis order {axis_order!r}; expected the letters x, y and z, such as 'zxy' or 'zyx'")
    if towards and sorted(min(letter, _OPPOSITE.get(letter, "")) for letter in towards) != ["A", "I", "L"]:
        raise ValueError(
            f"DATA.ORIENTATION is {towards!r}; expected one letter each of R or L, A or P, and I or S, such as 'RAS', "
            "or 'stored' for the axes as they are"
        )


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
            key: np.allclose(getattr(geometry, key), getattr(image_geometry, key), atol=_MAX_DIFFERENCE)
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
