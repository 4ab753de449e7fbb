"""Images: which sizes and channels fit a network, the errors that say what does, and padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def as_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """A side or (H, W) as (H, W) in pixels.

    Raises:
        ValueError: anything but one or two whole numbers above 0.
    """
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
        raise ValueError(f"img_size is {img_size!r}; expected a side or (H, W), whole numbers above 0")
    return size


def checked_size(network: str, img_size: int | Sequence[int], least: int, why: str) -> tuple[int, int]:
    """A side or (H, W) as (H, W), for a network whose depth asks for sides of `least` pixels: `why` says what does.

    Raises:
        ValueError: no such size, or a side below `least`; the nearest size that fits is named.
    """
    size = as_size(img_size)
    if min(size) >= least:
        return size
    nearest = _in_words(tuple(max(side, least) for side in size))
    raise ValueError(
        f"{network}: img_size {_in_words(size)} does not fit {why}; "
        f"the nearest that does is {nearest} (--img_size {nearest})"
    )


def _in_words(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]} {size[1]}"


def check_stem(network: str, in_channels: int) -> None:
    """Refuse what a three-channel stem cannot take, by a ValueError: anything but one channel, repeated, or three."""
    if in_channels not in (1, 3):
        raise ValueError(f"{network}: in_channels is {in_channels}; expected 1 or 3")


def check_image(network: str, x: Tensor, size: tuple[int, int]) -> None:
    """Refuse, by a ValueError, an input that is not (B, 1 or 3, H, W) of the network's size."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or tuple(x.shape[2:]) != size:
        raise ValueError(
            f"{network}: got an input of shape {tuple(x.shape)}; expected (B, 1 or 3, {size[0]}, {size[1]}): "
            "resize it, or build the network with its img_size"
        )


def round_up(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The smallest (H, W) of whole multiples that holds `size`."""
    return tuple(-(-side // multiple) * multiple for side in size)


def pad_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) with zeros below and to the right up to `size`; the very same tensor where it has that size."""
    rows, columns = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x
