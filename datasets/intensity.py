"""From the numbers that a file stores to the [0, 1] that a network is trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from datasets.case import SlicedImage

HOW = ("window", "percentile", "range")
PERCENTILES = (0.5, 99.5)
_SAMPLED = 2**24  # voxels; of a larger volume a regular grid of so many tells its percentiles
_BLOCK = 16  # slices read at a time


@dataclass(frozen=True)
class Intensity:
    """How stored numbers become [0, 1].

    Args:
        how: "window" clips to a window, that of CT in HU; "percentile" to the 0.5th and 99.5th percentile of each
            volume; "range" divides by what the file's type can hold, 255 or 65535.
        window: (low, high) of "window".

    Raises:
        ValueError: there is no such way, or the window is empty.
    """

    how: str = "window"
    window: tuple[float, float] = (-125.0, 275.0)

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ValueError(f"DATA.INTENSITY is {self.how!r}; expected one of {', '.join(HOW)}")
        _check_window(*self.window)

    def limits(self, image: SlicedImage | np.ndarray, where: object) -> tuple[float, float]:
        """The stored numbers that become 0 and 1, of a volume (D, ...) that is read a few slices at a time.

        Raises:
            ValueError: the file's numbers are not whole, or begin below 0, and have no range; it is named as `where`.
        """
        if self.how == "window":
            return self.window
        if self.how == "percentile":
            low, high = _percentiles(image)
            if not np.isfinite([low, high]).all():
                raise ValueError(f"{where}: holds NaN or infinite values; expected finite numbers, fix the file")
            return low, high
        dtype = np.dtype(image.dtype)
        if dtype.kind != "u":
            raise ValueError(
                f"{where}: holds {dtype}, whose range says nothing; expected 8 or 16 bits without a sign, or give "
                "--opts DATA.INTENSITY percentile"
            )
        return 0.0, float(np.iinfo(dtype).max)

    def scale(self, image: np.ndarray, limits: tuple[float, float], where: object = "image") -> np.ndarray:
        """The image, float32 in [0, 1]; of a volume of one value, zeros."""
        low, high = limits
        return scale_intensity(image, low, high if high > low else low + 1.0, where)


@dataclass(frozen=True)
class Preprocessing:
    """How files become arrays.

    Args:
        label_values: what a label file holds for class 0, 1, ...
        channels: of the images; 0 takes them as they are.
        intensity: how stored numbers become [0, 1].
        axis_order: how (D, H, W) of a volume follows from its x, y, z.
        orientation: where x, y, z are turned to before, such as "LPS"; "" as they are stored.
        spacing: what tells the distances of NIfTI voxels, "affine" or "pixdim".
        threshold: of a label, the lowest value of class 1, and all others are class 0; 0: label_values holds.
        ignore: the value of a label that is neither trained nor scored.
    """

    label_values: tuple[int, ...] = (0, 1)
    channels: int = 1
    intensity: Intensity = field(default_factory=Intensity)
    axis_order: str = "zxy"
    orientation: str = ""
    spacing: str = field(default="affine", repr=False)  # changes no number of an array, so no cache either
    threshold: int = 0
    ignore: int | None = None


def scale_intensity(image: np.ndarray, low: float = -125.0, high: float = 275.0, where: object = "image") -> np.ndarray:
    """Clip to [low, high] and scale it to [0, 1], float32 ([-125, 275] HU, as published).

    Raises:
        ValueError: the window is empty, or the image holds NaN or infinite values; the message names `where`.
    """
    # In float32 from the start, so that `high` itself becomes 1 and never the float above it.
    bottom, top = _check_window(low, high)
    return (np.clip(check_image(image, where), bottom, top) - bottom) / (top - bottom)


def _check_window(low: float, high: float) -> tuple[np.float32, np.float32]:
    bottom, top = np.float32(low), np.float32(high)
    if not (np.isfinite([bottom, top]).all() and bottom < top):
        raise ValueError(f"the intensity window is {low} to {high}; expected two finite numbers, the lower one first")
    return bottom, top


def _percentiles(image: SlicedImage | np.ndarray) -> tuple[float, float]:
    """The `PERCENTILES` of a volume; where a percent holds one value, its lowest and highest."""
    step = math.ceil(math.sqrt(math.prod(image.shape) / _SAMPLED))
    blocks = (np.asarray(image[first : first + _BLOCK]) for first in range(0, len(image), _BLOCK))
    sampled = np.concatenate([block[..., ::step, ::step].copy() for block in blocks])  # a view would keep its block
    low, high = (float(value) for value in np.percentile(sampled, PERCENTILES))
    return (low, high) if low < high else (float(sampled.min()), float(sampled.max()))


def check_image(image: np.ndarray, where: object) -> np.ndarray:
    """Return the image as float32, or raise a ValueError naming `where` if it is not made of finite numbers."""
    if image.dtype.kind not in "fiub":
        raise ValueError(f"{where}: 'image' has dtype {image.dtype}; expected numbers")
    if image.size == 0:
        raise ValueError(f"{where}: 'image' has shape {image.shape}; expected at least one pixel")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        image = np.asarray(image, dtype=np.float32)
    if not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise ValueError(
            f"{where}: 'image' holds {count} NaN or infinite values; expected finite numbers, fix the file"
        )
    return image
