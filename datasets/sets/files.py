"""Image files, with a label file or without, as volumes: for data sets that are folders of them, and for --input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.case import Case, Facts, Geometry, SlicedImage, Volume, facts_of
from datasets.errors import BadFile, warn_once
from datasets.intensity import Intensity, Preprocessing
from datasets.label_values import to_classes
from datasets.readers import is_image, open_volume, read_image, read_label, read_mask
from datasets.readers.grid import check_same_grid

Raw = SlicedImage | np.ndarray
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts


class ScaledImage:
    """A `SlicedImage` (D, H, W) or (D, C, H, W) whose slices are scaled to [0, 1] as they are read, float32.

    Args:
        parts: (D, H, W) or (D, 3, H, W) as stored; several become the channels of one image.
        intensity: how each is scaled.
        files: the file of each, for messages.
        limits: of each, which of its numbers become 0 and 1; None has them computed.
    """

    def __init__(
        self,
        parts: Sequence[Raw],
        intensity: Intensity,
        files: Sequence[Path],
        limits: list[tuple[float, float]] | None = None,
    ) -> None:
        self.parts, self.intensity, self.files = list(parts), intensity, list(files)
        self.limits = limits or [intensity.limits(part, file) for part, file in zip(parts, files, strict=True)]
        shape = tuple(parts[0].shape)
        self.shape = shape if len(parts) == 1 else (shape[0], len(parts), *shape[1:])
        self.ndim, self.dtype = len(self.shape), np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, slices: slice) -> np.ndarray:
        """The slices of a range, float32."""
        of_parts = zip(self.parts, self.limits, self.files, strict=True)
        scaled = [self.intensity.scale(np.asarray(part[slices]), limits, file) for part, limits, file in of_parts]
        return scaled[0] if len(scaled) == 1 else np.stack(scaled, axis=1)


def open_parts(case: Case, how: Preprocessing, *, whole: bool = False) -> tuple[list[Raw], Geometry | None]:
    """The image files of a case as they are stored, (D, H, W) or (1, 3, H, W) each, and where they lie.

    Args:
        whole: see that NIfTI files can be read to their end, in bounded memory.

    Raises:
        ValueError, OSError: a file is damaged or cannot be used, or they differ in size or place.
    """
    if is_image(case.images[0]):
        parts: list[Raw] = [_as_channels(read_image(path), how.channels) for path in case.images]
        for path, part in zip(case.images, parts, strict=True):
            if part.shape != parts[0].shape or (len(parts) > 1 and part.ndim == 4):
                expected = f"one channel of the size of {case.images[0].name}"
                raise BadFile(f"{path}: has the shape {part.shape[1:]}; expected {expected}, {parts[0].shape[1:]}")
        return parts, None
    axes = {"axis_order": how.axis_order, "orientation": how.orientation, "spacing": how.spacing}
    opened = [open_volume(path, **axes, whole=whole) for path in case.images]
    (first, geometry), *others = opened
    for path, (part, where) in zip(case.images[1:], others, strict=True):
        check_same_grid(path, part.shape, where, case.images[0], first.shape, geometry)
    return [part for part, _ in opened], geometry


def count_channels(parts: Sequence[Raw]) -> int:
    """The channels of an image in parts (D, H, W) or (D, C, H, W)."""
    return sum(part.shape[1] if part.ndim == 4 else 1 for part in parts)


def _as_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3) as (1, H, W) or (1, 3, H, W); grey becomes RGB, and RGB grey, where that is wanted."""
    if pixels.ndim == 2:
        return np.repeat(pixels[None, None], 3, axis=1) if channels == 3 else pixels[None]
    if channels == 1:
        return np.round(pixels @ np.array(_LUMA)).astype(pixels.dtype)[None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]


def read_case(case: Case, how: Preprocessing) -> Volume:
    """A case with its label, intensities and classes as `how` says.

    Raises:
        ValueError, OSError: a file is damaged or cannot be used, or image and label differ in size or place.
    """
    parts, geometry = open_parts(case, how)
    if (channels := count_channels(parts)) != how.channels:
        found = f"has {channels} channels but MODEL.IN_CHANNELS is {how.channels}"
        raise BadFile(f"{case.images[0]}: {found}; expected the same number in every case")
    label = _read_label(case, parts[0], geometry, how)
    image = ScaledImage(parts, how.intensity, case.images)[:]
    classes = to_classes(label, how.label_values, case.label, threshold=how.threshold, ignore=how.ignore)
    return Volume(case.name, image, classes, geometry, is_image(case.images[0]), case.images[0])


def inspect_case(case: Case, how: Preprocessing) -> Facts:
    """What a case holds, as stored: its label has the values of the file."""
    parts, geometry = open_parts(case, replace(how, channels=0))
    label = _read_label(case, parts[0], geometry, how)
    arrays = [np.asarray(part[:]) for part in parts]
    for array, path in zip(arrays, case.images, strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array.astype(np.float32)).all():
            raise BadFile(f"{path}: holds NaN or infinite values; expected finite numbers, fix the file")
    facts = facts_of(Volume(case.name, arrays[0], label, geometry))
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    channels = count_channels(parts)
    shape = facts.shape if channels == 1 else (facts.shape[0], channels, *facts.shape[-2:])
    return facts._replace(shape=shape, low=low, high=high)


def header_of(case: Case, how: Preprocessing) -> Facts:
    """The shape of a case, and of a volume its spacing and axes."""
    parts, geometry = open_parts(case, how)
    return Facts(tuple(parts[0].shape)).located(geometry)


def in_classes_of(facts: Facts, table: Sequence[int], threshold: int) -> Facts:
    """The same with the classes of its label, in place of the values."""
    labels: Counter[int] = Counter()
    for value, count in facts.labels.items():
        if threshold or value in table:  # another one is ignored
            labels[int(value >= threshold) if threshold else table.index(value)] += count
    return facts._replace(labels=dict(labels))


def _read_label(case: Case, image: Raw, geometry: Geometry | None, how: Preprocessing) -> np.ndarray:
    """The label (D, H, W) uint8, with the values of the file."""
    assert case.label is not None
    path, first = case.label, case.images[0]
    size = (image.shape[0], *image.shape[-2:])
    if geometry is None:
        label = read_mask(path)[None]
        if label.shape != size:
            found, expected = ("{} x {}".format(*shape[1:]) for shape in (label.shape, size))
            raise BadFile(
                f"{path}: has {found} pixels but {first.name} {expected}; expected the same size, so take the mask of "
                "this very image"
            )
        return label
    label, where = read_label(path, how.axis_order, how.orientation, spacing=how.spacing)
    check_same_grid(path, label.shape, where, first, size, geometry)
    low, high = label.min(), label.max()
    if low < 0 or high > 255:
        raise BadFile(f"{path}: holds {(low if low < 0 else high):.9g}; expected 0 to 255, the class of each voxel")
    return label.astype(np.uint8)


def warn_of_range(facts: dict[Case, Facts], where: Path, how: str) -> None:
    """Warn of images whose bits are not what their type says: 12 in 16, or 8 beside 16."""
    if how not in ("", "range") or not facts:
        return
    types = sorted({found.dtype for found in facts.values()})
    most = {"uint8": 255, "uint16": 65535}
    low = [case for case, found in facts.items() if found.high < most.get(found.dtype, 0) / 4]
    advice = "scale each image by its own percentiles with --opts DATA.INTENSITY percentile, or convert the files"
    if len(types) > 1:
        warn_once(
            f"{where}: images of {' and '.join(types)} are mixed, each divided by the range of its type; {advice}"
        )
    if len(low) > len(facts) / 2:
        highest = max(facts[case].high for case in low)
        warn_once(f"{where}: no number is above {highest:g} in {low[0].images[0].name} and most others; {advice}")
