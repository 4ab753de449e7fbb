"""A look at an image and its label, and the memory of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.base import Defect, Defects, defect_of
from datasets.geometry import check_same_grid
from datasets.images import mask_values, read_mask, read_picture
from datasets.pairs import Pair
from datasets.readers import read_grid, read_label

ORIENTATION = "LPS"  # axial slices then lie as a radiologist reads them
AXIS_ORDERS = {"z": "zyx", "y": "yzx", "x": "xzy"}  # slices along an axis first

_VERSION = 2  # of what is remembered
_LONGEST = 2**12  # bytes of a pair in it; a name has 255 at most, a label 256 values
_ISOTROPIC = 1.1  # largest spacing by smallest


class Look(NamedTuple):
    """What was seen in a pair: channels, the values of the label, and of a volume its coarsest axis."""

    channels: int
    values: tuple[int, ...]
    axis: str = ""


def look_at(pair: Pair, orientation: str = ORIENTATION) -> Look:
    """Read both files of a pair whole, volumes turned to an orientation, and see that they belong together.

    Raises:
        Defects: what is wrong with either: it is damaged or cannot be used, or they differ in size or place.
    """
    image, label = (_read(path, pair, orientation) for path in (pair.image, pair.label))
    defects = [found for found in (image, label) if isinstance(found, Defect)]
    if not defects:
        try:
            return _look(pair, image, label)
        except ValueError as error:
            defects = [defect_of(pair.label, error)]
    raise Defects(pair.image.parent.parent, defects)


def _read(path: Path, pair: Pair, orientation: str) -> Any:
    """A file of a pair: of a volume, opened or read, with its geometry; of a picture, its pixels; or what is wrong."""
    try:
        if not pair.is_volume:
            return read_picture(path) if path == pair.image else read_mask(path)
        if path == pair.image:
            return read_grid(path, AXIS_ORDERS["z"], orientation, whole=True)
        label, geometry = read_label(path, AXIS_ORDERS["z"], orientation)
        values = np.unique(label)
        stray = values[(values < 0) | (values > 255)]
        if len(stray):
            raise ValueError(f"{path}: holds {stray[0]:.9g}; expected 0 to 255, the class of each voxel")
        return label.shape, geometry, tuple(int(value) for value in values)
    except (ValueError, OSError) as error:
        return defect_of(path, error)


def _look(pair: Pair, image: Any, label: Any) -> Look:
    if not pair.is_volume:
        if image.shape[:2] != label.shape:
            what = f"has {label.shape} pixels but {pair.image.name} {image.shape[:2]}; expected the same size"
            raise ValueError(f"{pair.label}: {what}, so take the mask of this very picture")
        return Look(1 if image.ndim == 2 else image.shape[2], mask_values(label))
    shape, geometry, values = label
    image_shape, image_geometry = image
    check_same_grid(pair.label, shape, geometry, pair.image, image_shape, image_geometry)
    spacing = dict(zip("zyx", image_geometry.array_spacing, strict=True))
    is_isotropic = max(spacing.values()) <= _ISOTROPIC * min(spacing.values())
    return Look(1, values, "z" if is_isotropic or image_shape[0] == 1 else max(spacing, key=spacing.get))


def look_at_all(
    pairs: Sequence[Pair],
    orientation: str,
    known: Mapping[str, tuple[Any, Look]],
    progress: Callable[[Iterable[Any]], Iterable[Any]],
    threads: int,
) -> tuple[dict[str, Look], list[Defect]]:
    """Look at every pair, but for those that are `known` from an earlier look and have not changed since.

    Returns:
        What was seen, by name, and all that is wrong.
    """

    def look(pair: Pair) -> Look | Defects:
        stamp, seen = known.get(pair.name, (None, None))
        if stamp == _stamp(pair, orientation) and bool(seen.axis) == pair.is_volume:
            return seen
        try:
            return look_at(pair, orientation)
        except Defects as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        results = dict(zip(pairs, progress(pool.map(look, pairs)), strict=True))
    defects = [defect for found in results.values() if isinstance(found, Defects) for defect in found.defects]
    return {pair.name: found for pair, found in results.items() if isinstance(found, Look)}, defects


def remembered(path: Path, pairs: int) -> dict[str, tuple[Any, Look]]:
    """The stamp and the look of each pair, as an earlier look at some number of pairs wrote them."""
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST * pairs:
            return {}
        known = json.loads(path.read_text(encoding="utf-8"))
        return {name: (seen["stamp"], _as_look(*seen["look"])) for name, seen in known.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # damaged: everything is looked at


def to_remember(pair: Pair, orientation: str, look: Look) -> dict[str, Any]:
    """What is written of a look, for `remembered` to read."""
    return {"stamp": _stamp(pair, orientation), "look": look}


def _stamp(pair: Pair, orientation: str) -> list[Any]:
    """What a look follows from, beside what is in the files."""
    return [_VERSION, orientation, *(n for path in pair[1:] for n in (path.stat().st_size, path.stat().st_mtime_ns))]


def _as_look(channels: Any, values: Any, axis: Any) -> Look:
    """What was read as a `Look`; a ValueError or a TypeError if none could have been written so."""
    whole = all(type(number) is int for number in (channels, *values))
    if not whole or channels not in (1, 3) or axis not in ("", *AXIS_ORDERS):
        raise ValueError(f"is no look: {channels, values, axis}")
    if values != sorted({value for value in values if 0 <= value <= 255}):
        raise ValueError(f"is no look: values {values}")
    return Look(channels, tuple(values), axis)
