"""What the values of label files mean: which value is which class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.case import IGNORE
from datasets.errors import BadFile, Defect, Defects, warn_once

_NOISE, _FAINT = 64, 16  # how far JPEG's ringing takes many, or a few, values of a mask from 0 and 255
_MAX_CLASSES = 64  # of more values that reach 255 one is no mask of classes
_SHOWN = 8
_MAX_FRACTION = 1e-3  # in a label of real numbers, as resampling and float32 leave it
_JPEGS = (".jpg", ".jpeg")


def mask_values(mask: np.ndarray) -> tuple[int, ...]:
    """The values that a mask (uint8) holds, in order."""
    return tuple(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist())


def label_table(
    found: Mapping[Path, Sequence[int]], num_classes: int = 0, *, values: Sequence[int] = (), threshold: int = 0
) -> tuple[int, ...]:
    """The value of each class in a set of label files, in order, such as (0, 255) or (0, 1, 2).

    Args:
        found: the values that each file holds, but for one to ignore.
        num_classes: K; 0 has the files tell: they then hold 0, 1, ... without a gap, or 0 and 255.
        values: the table, where it is known; every file is compared with it.
        threshold: of the masks; they are then of two classes whatever they hold.

    Raises:
        Defects: files that hold other values, each by its name, or values with a gap.
        ValueError: there are no files, or none marks anything.
    """
    if not found:
        raise ValueError("there are no labels to tell the classes from; expected at least one")
    if num_classes == 1:
        raise ValueError("--num_classes is 1; expected 2 or more, background among them")
    if threshold:
        return 0, 255
    folder, all_values = next(iter(found)).parent, set().union(*found.values())
    marked = [set(of_one) - {0} for of_one in found.values() if any(of_one)]
    if not (marked or num_classes or values):
        raise ValueError(f"{folder}: all {len(found)} labels are 0; expected some that mark something")
    binary = sum(of_one == {255} or is_noise(of_one) or _is_smooth(of_one) for of_one in marked)
    if values:
        table = tuple(values)
    elif binary and 2 * binary >= len(marked) and num_classes in (0, 2):
        table = 0, 255
    else:
        table = tuple(range(num_classes or max(2, next(v for v in range(1, 257) if v not in all_values))))
        beyond = sorted(all_values - set(table))
        if beyond and not num_classes and sum(max(of_one) in beyond for of_one in marked) > len(marked) / 4:
            raise Defects(folder, [_gap(found, folder, all_values, beyond)])
    defects = [defect for path, of_one in found.items() for defect in value_defects(path, of_one, table)]
    if defects:
        raise Defects(folder, defects)
    if 0 not in all_values and 0 in table:
        shown = ", ".join(map(str, sorted(all_values)))
        warn_once(
            f"{folder}: no label holds 0, the background, only {shown}; if the lowest is the background, give --opts "
            f"DATA.LABEL_VALUES [{shown}]"
        )
    return table


def _gap(found: Mapping[Path, Sequence[int]], folder: Path, all_values: set[int], beyond: Sequence[int]) -> Defect:
    shown = ", ".join(map(str, sorted(all_values | {0})))
    path = next((path for path, values in found.items() if beyond[0] in values), folder)
    what = f"holds {beyond[0]}, and all labels together {shown}; expected 0, 1, 2, ... without a gap"
    kept = ", ".join(str(value) for value in sorted(all_values | {0}) if value != 255)
    ignored = f', or "[{kept}]" and DATA.IGNORE_LABEL 255 where that is to be left out' if 255 in beyond else ""
    return Defect(path, f'{what}, so give --opts DATA.LABEL_VALUES "[{shown}]"{ignored}')


def to_classes(
    mask: np.ndarray, table: Sequence[int], where: object, *, threshold: int = 0, ignore: int | None = None
) -> np.ndarray:
    """Turn the values of a label (uint8) into classes 0..K-1 by a `label_table`, or into 0 and 1 by a threshold.

    The value to `ignore` becomes IGNORE.

    Raises:
        BadFile: it holds another value; the message names `where` and the value.
    """
    values = [value for value in mask_values(mask) if value != ignore]
    if threshold:
        if threshold == 1 and is_noise(values):
            raise BadFile(f"{where}: holds values near 0 and 255, the noise of JPEG; give --mask_threshold 128")
        lookup = (np.arange(256) >= threshold).astype(np.uint8)
    else:
        for stray in value_defects(where, values, table):
            raise BadFile(str(stray))
        lookup = np.zeros(256, np.uint8)
        lookup[list(table)] = range(len(table))
    if ignore is not None:
        lookup[ignore] = IGNORE
    return lookup[mask]


def is_noise(values: Iterable[int]) -> bool:
    """Whether all values lie near 0 or 255 and some just below 255, as JPEG leaves them of a mask of 0 and 255."""
    others = [value for value in values if value not in (0, 255)]
    far = _NOISE if len(others) >= _SHOWN else _FAINT
    return any(value >= 255 - far for value in others) and all(min(value, 255 - value) <= far for value in others)


def _is_smooth(values: Iterable[int]) -> bool:
    """Whether there are so many values up to 255 that they are no classes."""
    found = set(values)
    return len(found) > _MAX_CLASSES and max(found) > 255 - _NOISE


def value_defects(path: object, values: Sequence[int], table: Sequence[int]) -> list[Defect]:
    """What is wrong with the values of one label: nothing, or one defect."""
    strays = [value for value in values if value not in table]
    in_jpeg = str(path).lower().endswith(_JPEGS) and [value for value in values if value not in (0, 255)]
    wrong = strays or in_jpeg
    if not wrong:
        return []
    shown = ", ".join(map(str, wrong[:_SHOWN])) + (", ..." if len(wrong) > _SHOWN else "")
    expected = "0 and 255" if tuple(table) == (0, 255) else ", ".join(map(str, table))
    if is_noise(values) or in_jpeg or _is_smooth(values):
        what = f"holds {shown}, as JPEG or smooth resizing leaves it; expected {expected}, so give --mask_threshold 128"
        what += " for two classes, or save masks as PNG, from the originals"
    else:
        what = f"holds {shown}; expected {expected}, so fix the file, or give --num_classes or DATA.LABEL_VALUES"
    return [Defect(Path(str(path)), what)]


def check_label(label: np.ndarray, num_classes: int, where: object, ignore: int | None = None) -> np.ndarray:
    """Return the label as uint8; a ValueError names `where` unless it holds whole numbers 0..num_classes-1.

    Where it holds the value to `ignore`, it becomes IGNORE.
    """
    if label.dtype.kind not in "fiub":
        raise ValueError(f"{where}: 'label' has dtype {label.dtype}; expected whole numbers")
    label = round_label(label, where)
    if ignore is not None and (ignored := label == ignore).any():
        return np.where(ignored, np.uint8(IGNORE), check_label(np.where(ignored, 0, label), num_classes, where))
    low, high = label.min(), label.max()
    if low < 0 or high >= num_classes:
        stray = int(low if low < 0 else high)
        raise ValueError(
            f"{where}: 'label' holds {stray}; expected 0..{num_classes - 1}, so fix the file or give --num_classes"
        )
    return label.astype(np.uint8)


def round_label(label: np.ndarray, where: object) -> np.ndarray:
    """A label whose numbers are whole to within 0.001, rounded; a ValueError names `where` if others are not."""
    if label.dtype.kind != "f":
        return label
    if not np.isfinite(label).all():
        raise ValueError(f"{where}: 'label' holds NaN or infinite values; expected whole numbers, a class per voxel")
    whole = np.round(label)
    stray = label[np.abs(label - whole) > _MAX_FRACTION]
    if stray.size:
        raise ValueError(f"{where}: 'label' holds {stray[0]:.9g}; expected whole numbers, a class per voxel")
    return whole
