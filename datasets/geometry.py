"""The geometry of a volume as arrays, to lie in a file beside its image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.base import BadFile, Geometry, brief, shorten

NUMBERS = ("spacing", "origin", "direction")
TEXTS = {"axis_order": "zyx", "flips": ""}  # and what they are where a file does not say it
ORIENTED = "oriented"


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
