"""Value and gradient of both terms of the regulariser in one pass over each feature map.

Each published term is a mean squared distance between channels, so its gradient is the distance itself times a number:
it is kept when the value is made, and no graph, no normalised copy and no pooled copy of a map lives until the backward
pass. The other distances leave their gradient to torch, map by map. `tests/reference/` states the same arithmetic
plainly, and the tests hold the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfreg.distances import Distance, mse

_HALVES = (torch.float16, torch.bfloat16)
_POOL: dict[int, Callable[..., Tensor]] = {4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}

RANKS = tuple(_POOL)  # of the feature maps: (B, C, H, W) and (B, C, D, H, W)


class Pull(NamedTuple):
    """What is asked of one feature map, (B, C, *space).

    `scr` and `ifd` are the numbers of maps in whose means it stands; 0 leaves that distance out. `channels` are the
    student's and the teacher's channels that SCR compares, equally many of each.
    """

    feature: Tensor
    scr: int = 0
    ifd: int = 0
    channels: tuple[Sequence[int], Sequence[int]] = ((), ())


def measure(
    pulls: Sequence[Pull],
    final: Tensor | None = None,
    *,
    lambda_1: float = 1.0,
    lambda_2: float = 1.0,
    distance: Distance = mse,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lambda_1 * SCR + lambda_2 * IFD`, which carries the gradient, then SCR and IFD themselves, which carry none.

    `final` is the teacher; SCR needs it, and it receives no gradient. `distance` is one of `selfreg.distances`.
    """
    teacher = None if final is None else _Teacher(final.detach(), [p.feature.shape for p in pulls if p.scr])
    features = [pull.feature if torch.is_grad_enabled() else pull.feature.detach() for pull in pulls]
    terms: tuple[Tensor, Tensor, Tensor] = _OnePass.apply(pulls, teacher, lambda_1, lambda_2, distance, *features)
    return terms


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pulls: Sequence[Pull],
        teacher: _Teacher | None,
        lambda_1: float,
        lambda_2: float,
        distance: Distance,
        *features: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        scr = ifd = _in_full_precision(features[0][:0]).sum()
        gradients = []
        channels = _on_device(pulls, features[0].device)
        for pull, feature, drawn, wanted in zip(pulls, features, channels, ctx.needs_input_grad[5:], strict=True):
            rows = _Rows.of(_in_full_precision(feature))
            gradient = torch.zeros_like(rows.values) if wanted else None
            if pull.ifd:
                ifd = ifd + _intra(rows, _share(lambda_2, pull.ifd, rows), gradient, distance) / pull.ifd
            if pull.scr:
                share = _share(lambda_1, pull.scr, rows)
                scr = scr + _inter(rows, cast(_Teacher, teacher), drawn, share, gradient, distance) / pull.scr
            gradients.append(None if gradient is None else rows.restore(gradient).to(feature.dtype))
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(scr, ifd)
        return lambda_1 * scr + lambda_2 * ifd, scr, ifd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, *of_terms: Tensor) -> tuple[Tensor | None, ...]:
        of_features = [None if g is None else g * of_loss.to(g.dtype) for g in ctx.saved_tensors]
        return None, None, None, None, None, *of_features


class _Rows(NamedTuple):
    """A map with its space flattened, as it lies in memory: (B, N, C) where channels are innermost, else (B, C, N)."""

    values: Tensor
    axis: int  # of the channels
    shape: torch.Size  # of the map, (B, C, *space)

    @classmethod
    def of(cls, feature: Tensor) -> _Rows:
        channels_last = feature.movedim(1, -1)
        if channels_last.is_contiguous():
            return cls(channels_last.flatten(1, -2), 2, feature.shape)
        return cls(feature.flatten(2), 1, feature.shape)

    def restore(self, values: Tensor) -> Tensor:
        """Values like these, as a map again."""
        batch, channels, *space = self.shape
        if self.axis == 2:
            return values.view(batch, *space, channels).movedim(-1, 1)
        return values.view(self.shape)

    def take(self, channels: Tensor) -> Tensor:
        """The named channels, in their order."""
        if self.axis == 1:
            return self.values.index_select(1, channels)
        return self.values.gather(2, channels.expand(*self.values.shape[:2], -1))


def _share(weight: float, maps: int, rows: _Rows) -> float:
    """The weight of one map in a term that is the mean over so many, rounded as the maps themselves are."""
    return (torch.tensor(weight, dtype=rows.values.dtype) / maps).item()


def _intra(rows: _Rows, weight: float, gradient: Tensor | None, distance: Distance) -> Tensor:
    """Distance of the weaker half of the channels to the stronger, adding its gradient to `gradient`."""
    f, space = rows.values, 3 - rows.axis
    # The published arithmetic to the bit, since near ties are paired by its rounding. Dead channels tie outright: not a
    # stable sort, for the published one is torch's default.
    score = F.normalize(f, dim=space).mean(dim=(0, space))
    strong, weak = score.argsort(descending=True).chunk(2)
    if distance is not mse:
        return _by_torch(lambda f: distance(f[:, strong], f[:, weak]), rows, weight, gradient)
    partner = torch.empty_like(strong.repeat(2))
    partner[strong], partner[weak] = weak, strong
    # From each channel to its partner: every pair stands here twice, once from either end.
    way = rows.take(partner).sub_(f)
    if gradient is not None:
        gradient += _slope(way, f.numel() // 2, weight)
    return way.square_().sum() / f.numel()


def _inter(
    rows: _Rows,
    teacher: _Teacher,
    channels: tuple[Tensor, Tensor],
    weight: float,
    gradient: Tensor | None,
    distance: Distance,
) -> Tensor:
    """Distance of the drawn channels to the teacher's, adding its gradient to `gradient`."""
    size = teacher.common_size(rows.shape)
    of_student, of_teacher = channels
    if size != tuple(rows.shape[2:]) or distance is not mse:  # the gradient of the pooling is best left to torch
        pooled = teacher.pooled[size][:, of_teacher]
        return _by_torch(lambda f: distance(_pool(f[:, of_student], size), pooled), rows, weight, gradient)
    goal = teacher.at(size, rows.axis)
    every = len(of_student) == rows.shape[1]
    if every:  # sort the teacher's draws by the student's instead of gathering both
        way = goal.take(of_teacher[of_student.argsort()]).sub_(rows.values)
    else:
        way = goal.take(of_teacher).sub_(rows.take(of_student))
    if gradient is not None and every:
        gradient += _slope(way, way.numel(), weight)
    elif gradient is not None:
        gradient.index_add_(rows.axis, of_student, _slope(way, way.numel(), weight))
    return way.square_().sum() / way.numel()


def _slope(way: Tensor, count: int, weight: float) -> Tensor:
    """Gradient of the mean of `count` squares; two factors, one after the other, round as torch's own mse_loss does."""
    return (way * (-2 / count)).mul_(weight)


def _by_torch(of_map: Callable[[Tensor], Tensor], rows: _Rows, weight: float, gradient: Tensor | None) -> Tensor:
    """A function of the map, (B, C, *space) to a scalar, adding its gradient, by torch's autograd, to `gradient`."""
    with torch.set_grad_enabled(gradient is not None):
        values = rows.values.detach().requires_grad_(gradient is not None)
        value = of_map(rows.restore(values))
        if gradient is not None:
            gradient += torch.autograd.grad(weight * value, values)[0]
    return value.detach()


class _Teacher:
    """The final feature map, and what it is at every size that a student has, each pooled once.

    Args:
        final: (B, C, *space).
        students: shapes of the maps to compare it with.
    """

    def __init__(self, final: Tensor, students: Iterable[torch.Size]) -> None:
        self.final = final
        self.pooled: dict[tuple[int, ...], Tensor] = {}
        self._rows: dict[tuple[tuple[int, ...], int], _Rows] = {}
        sizes = list({self.common_size(shape) for shape in students})
        if sizes:
            self.pooled = dict(zip(sizes, _pool_to_all(final, sizes), strict=True))

    def common_size(self, student: torch.Size) -> tuple[int, ...]:
        """The size that both are compared at: along each axis the smaller one's."""
        return tuple(min(a, b) for a, b in zip(student[2:], self.final.shape[2:], strict=True))

    def at(self, size: tuple[int, ...], axis: int) -> _Rows:
        """The same, laid out like a student whose channels are on `axis`."""
        if (size, axis) not in self._rows:
            rows = _Rows.of(self.pooled[size])
            if rows.axis != axis:
                rows = _Rows(rows.values.transpose(1, 2).contiguous(), axis, rows.shape)
            self._rows[size, axis] = rows
        return self._rows[size, axis]


def _pool(feature: Tensor, size: tuple[int, ...]) -> Tensor:
    return feature if tuple(feature.shape[2:]) == size else _POOL[feature.ndim](feature, size)


def _pool_to_all(final: Tensor, sizes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The final map at every size, each from the map itself (the published rounding), in float32 at least.

    It may be the largest map there is, and so is read piece by piece: no copy of it is whole, and a piece is pooled to
    every size while the processor's cache holds it.
    """
    pieces = 1
    if not final.is_cuda and final.movedim(1, -1).is_contiguous():
        # Pieces begin where windows of every size do.
        pieces = math.gcd(final.shape[2], *(size[0] for size in sizes))
    pooled: list[list[Tensor]] = [[] for _ in sizes]
    for one in final.chunk(len(final)):
        strips = [_in_full_precision(strip) for strip in one.chunk(pieces, dim=2)]
        for of_size, size in zip(pooled, sizes, strict=True):
            part = (size[0] // pieces, *size[1:])
            of_size.append(torch.cat([_pool(strip, part) for strip in strips], dim=2))
    return [torch.cat(of_size) for of_size in pooled]


def _in_full_precision(feature: Tensor) -> Tensor:
    """Half-precision features are compared in float32; means over whole maps would lose them otherwise."""
    return feature.float() if feature.dtype in _HALVES else feature


def _on_device(pulls: Sequence[Pull], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """The drawn channels of all maps as indices, sent in one piece."""
    lengths = [len(drawn) for pull in pulls for drawn in pull.channels]
    indices = torch.tensor([c for pull in pulls for drawn in pull.channels for c in drawn], dtype=torch.int64)
    parts = torch.split_with_sizes(indices.to(device, non_blocking=True), lengths)
    return list(zip(parts[::2], parts[1::2], strict=True))
