"""How our arrays (D, H, W) lie in a file's (x, y, z), and the file in the patient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.base import Geometry, Volume

_TOLERANCE = 1e-3  # mm, and between the entries of a direction
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "I": "S", "S": "I"}


def arrange(stored: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Voxels [z, y, x], as a file has them, along the axes of our arrays: a view (D, H, W)."""
    flipped = np.flip(stored, ["zyx".index(axis) for axis in geometry.flips])
    return flipped.transpose(["zyx".index(axis) for axis in geometry.axis_order])


def as_stored(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """What `arrange` does, undone: an array (D, H, W) as [z, y, x] of its file, a view."""
    stored = array.transpose([geometry.axis_order.index(axis) for axis in "zyx"])
    return np.flip(stored, ["zyx".index(axis) for axis in geometry.flips])


def orientation(geometry: Geometry) -> str:
    """Where the file's x, y and z axes point, in letters such as "RAS": to the right, anterior and superior."""
    direction = np.reshape(geometry.direction, (3, 3))
    letters, free = {}, np.ones((3, 3))
    for _ in range(3):
        row, column = np.unravel_index(np.argmax(np.abs(direction) * free), (3, 3))
        letters[column] = ("RL", "AP", "IS")[row][int(direction[row, column] > 0)]
        free[row, :] = free[:, column] = -1.0
    return "".join(letters[column] for column in range(3))


def turn(geometry: Geometry, axis_order: str, towards: str) -> Geometry:
    """The geometry of an array in `axis_order`, after the file's x, y and z were turned to point `towards`."""
    if not towards:
        return replace(geometry, axis_order=axis_order, flips="")
    stored = dict(zip(orientation(geometry), "xyz", strict=True))
    flips = [stored[_OPPOSITE[letter]] for letter in towards if letter not in stored]
    turned = {
        axis: stored.get(letter) or stored[_OPPOSITE[letter]] for axis, letter in zip("xyz", towards, strict=True)
    }
    return replace(geometry, axis_order="".join(turned[axis] for axis in axis_order), flips="".join(sorted(flips)))


def upright(image: np.ndarray, geometry: Geometry | None) -> np.ndarray:
    """An axial slice (H, W, ...) with anterior up and the patient's right at the left; any other one as stored."""
    if geometry is None:
        return image
    # Columns of the direction matrix: where each axis of the file points, as (left, posterior, superior).
    by_axis = dict(zip("xyz", np.reshape(geometry.direction, (3, 3)).T, strict=True))
    by_axis |= {axis: -by_axis[axis] for axis in geometry.flips}  # our arrays run against these
    towards = [by_axis[axis] for axis in geometry.axis_order[1:]]
    patient_axes = [int(np.abs(direction).argmax()) for direction in towards]
    if sorted(patient_axes) != [0, 1]:
        return image
    image = np.flip(image, tuple(i for i, direction in enumerate(towards) if direction[patient_axes[i]] < 0))
    return image.swapaxes(0, 1) if patient_axes == [0, 1] else image


def turned(volume: Volume, towards: str) -> Volume:
    """A volume whose file's x, y and z are turned to point `towards`; as it is where it does not say where they do."""
    if volume.geometry is None or not towards:
        return volume
    geometry = turn(volume.geometry, volume.geometry.axis_order, towards)
    image, label = (
        array if array is None else np.ascontiguousarray(arrange(as_stored(array, volume.geometry), geometry))
        for array in (volume.image, volume.label)
    )
    return replace(volume, image=image, label=label, geometry=geometry)


def check_same_grid(
    path: Path,
    shape: tuple[int, ...],
    geometry: Geometry,
    image_path: Path,
    image_shape: tuple[int, ...],
    image_geometry: Geometry,
) -> None:
    """Refuse a label, by its `path`, that does not lie where its image lies.

    Raises:
        ValueError: they differ in size, or in position in the patient.
    """
    if tuple(shape) != tuple(image_shape):
        raise ValueError(f"{path}: has size {shape} but {image_path.name} {image_shape}; expected the same size")
    for key in ("spacing", "origin", "direction"):
        here, there = getattr(geometry, key), getattr(image_geometry, key)
        if not np.allclose(here, there, rtol=0.0, atol=_TOLERANCE):
            shown, expected = (", ".join(f"{value:.7g}" for value in values) for values in (here, there))
            raise ValueError(
                f"{path}: its {key} is ({shown}) but {image_path.name} has ({expected}); expected one grid, so take "
                "the image's own label or resample it"
            )


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
