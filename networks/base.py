"""The base class of the networks: what each declares, image sizes, and padding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from timm.models import adapt_input_conv
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from networks.layers import Checkpointed
from networks.pretrained import ImageNetStart, resize_bias_table, resize_positions
from selfreg import TapSpec


class Network(Checkpointed):
    """A segmentation network: images (B, C, H, W) to logits (B, K, H, W), or to a tuple of the logits of several heads.

    Images are padded to multiples of `stride`. `channels` are the numbers of channels that it takes: a stem of RGB
    takes three, or one, repeated; `widen_stem` gives it others. By default the coarsest map must have 2 x 2 positions
    or more, since batch norm needs more than one value a channel; a `min_size` of another `reason` may replace that.
    """

    name: str  # for `build_network`
    head_prefix: str | tuple[str, ...]  # of the names of the output layers' parameters
    tap_spec: TapSpec  # the tapped layers
    encoder_type: type[nn.Module] | None = None  # whose options are the network's too
    has_unused_parameters = False  # whether some get no gradient, which DistributedDataParallel has to know
    any_size = False  # whether images of other sizes than `img_size` are taken
    class_tokens = 0  # ahead of the patches in position embeddings

    def __init__(
        self,
        img_size: int | Sequence[int],
        in_channels: int,
        *,
        stride: int,
        min_size: int | None = None,
        reason: str = "",
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"{self.name}: in_channels is {in_channels}; expected 1 or more")
        self.channels = (1, 3) if in_channels in (1, 3) else (in_channels,)
        self.stride, self.min_size = stride, min_size or stride + 1
        self.img_size = as_size(img_size)
        if min(self.img_size) < self.min_size:
            reason = reason or f"a coarsest map of 1/{stride} with at least 2 x 2 positions"
            nearest = _as_words((max(self.img_size[0], self.min_size), max(self.img_size[1], self.min_size)))
            raise ValueError(
                f"{self.name}: img_size {_as_words(self.img_size)} does not fit {reason}; "
                f"the nearest that does is {nearest} (--img_size {nearest})"
            )
        self.padded_size = round_up(self.img_size, stride)
        self.position_grids: dict[str, tuple[int, int]] = {}  # of the position embeddings, by their parameters' names

    def pad(self, x: Tensor) -> Tensor:
        """Images with zeros below and to the right up to multiples of the stride; ValueError for another shape."""
        size = tuple(x.shape[2:])
        fits = min(size, default=0) >= self.min_size if self.any_size else size == self.img_size
        if x.ndim != 4 or x.shape[1] not in self.channels or not fits:
            channels = " or ".join(map(str, self.channels))
            height, width = ("H", "W") if self.any_size else self.img_size
            remedy = ": resize it, or build the network with its img_size"
            if self.any_size:
                remedy = f" with sides of at least {self.min_size}"
            raise ValueError(
                f"{self.name}: got an input of shape {tuple(x.shape)}; "
                f"expected (B, {channels}, {height}, {width}){remedy}"
            )
        return pad_to(x, round_up(size, self.stride))

    def to_stem(self, x: Tensor) -> Tensor:
        """The padded images, one channel repeated to three."""
        padded = self.pad(x)
        return padded.expand(-1, 3, -1, -1) if padded.shape[1] == 1 else padded

    def widen_stem(self, in_channels: int) -> None:
        """Let the convolutions that take RGB take so many channels, their weights spread over these as timm does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.in_channels == 3:
                module.in_channels = in_channels
                module.weight = nn.Parameter(adapt_input_conv(in_channels, module.weight.detach()))

    def from_imagenet(self, state: Mapping[str, Tensor]) -> ImageNetStart | None:
        """The tensors of an ImageNet classifier under the network's names; None where `state` is no such file."""
        return None

    def fit_positions(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state`, by the network's names, with what depends on positions resized bicubically.

        That is position embeddings of another image size and relative position bias of another window.
        """
        fitted = dict(state)
        for key, grid in self.position_grids.items():
            if key in state and state[key].ndim == 3 and state[key].shape[1] != self.class_tokens + math.prod(grid):
                fitted[key] = resize_positions(state[key], grid, class_tokens=self.class_tokens)
        for name, module in self.named_modules():
            key = f"{name}.relative_position_bias_table"
            if isinstance(module, WindowAttention) and key in state:
                fitted[key] = resize_bias_table(state[key], module.window_size)
        return fitted


def as_size(img_size: int | Sequence[int]) -> tuple[int, int]:
    """A side or (H, W) as (H, W) in pixels; ValueError for anything but one or two whole numbers above 0."""
    size = [img_size, img_size] if isinstance(img_size, int) else list(img_size)
    if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
        raise ValueError(f"img_size is {img_size!r}; expected a side or (H, W), whole numbers above 0")
    return size[0], size[1]


def round_up(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """The smallest (H, W) of whole multiples that holds `size`."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def pad_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) with zeros below and to the right up to `size`; the very same tensor where it has that size."""
    rows, columns = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


def _as_words(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]} {size[1]}"
