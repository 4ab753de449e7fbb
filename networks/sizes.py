"""Image sizes: what a caller may say, which ones fit, and the error that names the nearest that does."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def as_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """A side or (H, W) as (H, W) in pixels.

    Raises:
        ValueError: anything but one or two whole numbers above 0.
    """
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
        raise ValueError(f"img_size is {img_size!r}; expected a side or (H, W), whole numbers above 0")
    return size


def nearest_size(side: int, fits: Callable[[int], bool], limit: int = 4096) -> int:
    """The side nearest to `side` that fits, the larger of two equally near ones."""
    return next(
        (
            candidate
            for gap in range(limit)
            for candidate in (side + gap, side - gap)
            if candidate > 0 and fits(candidate)
        ),
        side,
    )


def size_error(network: str, size: tuple[int, int], why: str, nearest: tuple[int, int]) -> ValueError:
    """The refusal of a size, with the size that works."""

    def text(size: tuple[int, int]) -> str:
        return str(size[0]) if size[0] == size[1] else f"{size[0]} {size[1]}"

    return ValueError(
        f"{network}: img_size {text(size)} does not fit {why}; "
        f"the nearest that does is {text(nearest)} (--img_size {text(nearest)})"
    )
