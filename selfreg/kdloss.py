"""The SelfReg loss: semantic consistency and internal feature distillation (arXiv 2406.14896, section 2)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stages = Sequence[Tensor | Sequence[Tensor]]

_POOL = {4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}


class KDTerms(NamedTuple):
    """The two terms of one pass before their weights: `scr` (semantic consistency) and `ifd` (distillation)."""

    scr: Tensor
    ifd: Tensor


def _check_rank(feature: Tensor, name: str) -> None:
    if feature.ndim not in _POOL:
        raise ValueError(f"KDloss: {name} has shape {tuple(feature.shape)}; expected (B, C, H, W) or (B, C, D, H, W)")


def _in_full_precision(feature: Tensor) -> Tensor:
    """Half-precision features are compared in float32; means over whole maps would lose them otherwise."""
    return feature.float() if feature.dtype in (torch.float16, torch.bfloat16) else feature


def _pool(feature: Tensor, size: Sequence[int]) -> Tensor:
    return feature if tuple(feature.shape[2:]) == tuple(size) else _POOL[feature.ndim](feature, tuple(size))


def _smaller_size(a: Tensor, b: Tensor) -> tuple[int, ...]:
    return tuple(min(m, n) for m, n in zip(a.shape[2:], b.shape[2:], strict=True))


def intra_fd(f: Tensor, name: str = "the feature map") -> Tensor:
    """Internal feature distillation: mean squared distance of the weaker half of the channels to the stronger.

    A channel's score is the mean of its L2-normalised map over batch and space; the channels are sorted by it,
    descending, and the first half is compared with the second in that order. Both halves receive gradient, the
    sort does not.

    Args:
        f: (B, C, H, W) or (B, C, D, H, W), C even.
        name: the layer, for the error message.

    Raises:
        ValueError: an odd number of channels (undefined in the paper), or another rank.
    """
    _check_rank(f, name)
    channels = f.shape[1]
    if channels % 2:
        raise ValueError(
            f"KDloss: {name} has C = {channels} channels; internal feature distillation needs an even number, "
            "so tap another layer or set lambda_2 to 0"
        )
    f = _in_full_precision(f)
    with torch.no_grad():
        # Dead channels tie: not a stable sort, since the published pairing of ties is that of torch's default.
        order = F.normalize(f.flatten(2), dim=2).mean(dim=(0, 2)).argsort(descending=True)
    strong, weak = order.chunk(2)
    return F.mse_loss(f.index_select(1, strong), f.index_select(1, weak))


def inter_fd(f_s: Tensor, f_t: Tensor, name: str = "the feature map") -> Tensor:
    """Semantic consistency: mean squared distance between random channels of a student map and of the teacher.

    The spatially larger map is average-pooled to the smaller one's size; n = min(C_s, C_t) channels are drawn of
    each by Python's `random.sample`, the student's first. The teacher `f_t` is detached.

    Args:
        f_s, f_t: (B, C_s, *space) and (B, C_t, *space), space of two or three dimensions, not necessarily square.
        name: the student's layer, for the error message.

    Raises:
        ValueError: other ranks, or a rank or batch size that differs between the two.
    """
    _check_rank(f_s, name)
    _check_rank(f_t, "the teacher")
    if f_s.ndim != f_t.ndim or f_s.shape[0] != f_t.shape[0]:
        raise ValueError(
            f"KDloss: {name} has shape {tuple(f_s.shape)} but the teacher {tuple(f_t.shape)}; "
            "expected the same batch size and number of dimensions"
        )
    n = min(f_s.shape[1], f_t.shape[1])
    student_channels = random.sample(range(f_s.shape[1]), n)
    teacher_channels = random.sample(range(f_t.shape[1]), n)
    size = _smaller_size(f_s, f_t)
    student = _pool(_in_full_precision(f_s[:, student_channels]), size)
    teacher = _pool(_in_full_precision(f_t.detach()[:, teacher_channels]), size)
    return F.mse_loss(student, teacher)


def _as_stages(stages: Stages, part: str) -> list[list[Tensor]]:
    stages = [[stage] if isinstance(stage, Tensor) else list(stage) for stage in stages]
    if not stages or not all(stages):
        raise ValueError(
            f"KDloss: {part} has {[len(s) for s in stages]} feature maps by stage; expected at least one each"
        )
    return stages


class _PooledTeacher:
    """The final feature map at every size a student asks for, each pooled once."""

    def __init__(self, final: Tensor) -> None:
        _check_rank(final, "the teacher (final)")
        self.final = final.detach()
        self.by_size: dict[tuple[int, ...], Tensor] = {}

    def for_student(self, student: Tensor) -> Tensor:
        if student.ndim != self.final.ndim:
            return self.final
        size = _smaller_size(student, self.final)
        if size not in self.by_size:
            self.by_size[size] = _pool(_in_full_precision(self.final), size)
        return self.by_size[size]


class KDloss(nn.Module):
    """The regulariser: `lambda_1 * L_SCR + lambda_2 * L_IFD`; `lambda_x` sets both.

    Args:
        lambda_x: weight of both terms (the paper's text says 0.015, its command 0.010).
        lambda_1: weight of semantic consistency (SCR) alone, `lambda_x` where it is None.
        lambda_2: weight of internal feature distillation (IFD) alone, `lambda_x` where it is None.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    def __init__(self, lambda_x: float = 0.015, lambda_1: float | None = None, lambda_2: float | None = None) -> None:
        super().__init__()
        for name, value in (("lambda_x", lambda_x), ("lambda_1", lambda_1), ("lambda_2", lambda_2)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"KDloss: {name} is {value}; expected a finite number of at least 0")
        self.lambda_1 = float(lambda_x if lambda_1 is None else lambda_1)
        self.lambda_2 = float(lambda_x if lambda_2 is None else lambda_2)

    def extra_repr(self) -> str:
        return f"lambda_1={self.lambda_1}, lambda_2={self.lambda_2}"

    def intra_fd(self, f: Tensor) -> Tensor:
        """See `selfreg.intra_fd`."""
        return intra_fd(f)

    def inter_fd(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """See `selfreg.inter_fd`."""
        return inter_fd(f_s, f_t)

    def terms(self, encoder: Stages, decoder: Stages, final: Tensor) -> KDTerms:
        """Both terms before their weights; one whose weight is 0 is not computed, and is 0.

        Args:
            encoder: stages fine to coarse, each one map (B, C, *space) or the list of its blocks' maps.
            decoder: the stages above the bottleneck, coarse to fine, likewise.
            final: the teacher, the input of the output convolution; it receives no gradient.

        Raises:
            ValueError: an empty stage, a map of another rank, or an odd number of channels.
        """
        encoder, decoder = _as_stages(encoder, "encoder"), _as_stages(decoder, "decoder")
        one_map_a_stage = all(len(stage) == 1 for stage in encoder + decoder)
        # With one block a stage its first map is its last, and the published loss counts it once.
        blocks = (0,) if one_map_a_stage else (-1, 0)
        zero = final.new_zeros((), dtype=_in_full_precision(final[:0]).dtype)
        scr, ifd = zero, zero
        if self.lambda_1:
            teacher = _PooledTeacher(final)
            scr = sum(self._scr(encoder, decoder, teacher, block) for block in blocks)
        if self.lambda_2:
            ifd = sum(
                self._ifd(stages, part, block)
                for block in blocks
                for part, stages in (("encoder", encoder), ("decoder", decoder))
            )
        return KDTerms(scr, ifd)

    @staticmethod
    def _scr(encoder: list[list[Tensor]], decoder: list[list[Tensor]], teacher: _PooledTeacher, block: int) -> Tensor:
        # The order of the random draws is part of the definition: decoder first, then encoder.
        named = [(f"decoder[{k}][{block}]", stage[block]) for k, stage in enumerate(decoder)]
        named += [(f"encoder[{k}][{block}]", stage[block]) for k, stage in enumerate(encoder)]
        return torch.stack([inter_fd(f, teacher.for_student(f), name) for name, f in named]).mean()

    @staticmethod
    def _ifd(stages: list[list[Tensor]], part: str, block: int) -> Tensor:
        return torch.stack([intra_fd(stage[block], f"{part}[{k}][{block}]") for k, stage in enumerate(stages)]).mean()

    def forward(self, encoder: Stages, decoder: Stages, final: Tensor, epoch: int | None = None) -> Tensor:
        """The weighted sum of both terms, a scalar; `epoch` is accepted for the published call and not used."""
        scr, ifd = self.terms(encoder, decoder, final)
        return self.lambda_1 * scr + self.lambda_2 * ifd
