"""The axes of arrays (D, H, W) in a file's (x, y, z), and of the file in the patient."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np

from datasets.base import Geometry, Volume

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "I": "S", "S": "I"}


def arrange(stored: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Voxels [z, y, x], as a file has them, along the axes of our arrays: a view (D, H, W)."""
    flipped = np.flip(stored, ["zyx".index(axis) for axis in geometry.flips])
    return flipped.transpose(["zyx".index(axis) for axis in geometry.axis_order])


def as_stored(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The inverse of `arrange`: an array (D, H, W) as [z, y, x] of its file, a view."""
    stored = array.transpose([geometry.axis_order.index(axis) for axis in "zyx"])
    return np.flip(stored, ["zyx".index(axis) for axis in geometry.flips])


def orientation(geometry: Geometry) -> str:
    """Where the file's x, y and z axes point, in letters such as "RAS": to the right, anterior and superior."""
    return "".join(nib.aff2axcodes(geometry.affine))


def reorient(geometry: Geometry, axis_order: str, towards: str) -> Geometry:
    """The geometry of an array in `axis_order`, after the file's x, y and z were turned to point `towards`."""
    if not towards:
        return replace(geometry, axis_order=axis_order, flips="")
    stored = dict(zip(orientation(geometry), "xyz", strict=True))
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
    image, label = (
        array if array is None else np.ascontiguousarray(arrange(as_stored(array, volume.geometry), geometry))
        for array in (volume.image, volume.label)
    )
    return replace(volume, image=image, label=label, geometry=geometry)


def upright(image: np.ndarray, geometry: Geometry | None) -> np.ndarray:
    """An axial slice (H, W, ...) with anterior up and the patient's right at the left; any other one as stored."""
    if geometry is None:
        return image
    letters = dict(zip("xyz", orientation(geometry), strict=True))
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
