"""The SelfReg loss: semantic consistency and internal feature distillation (arXiv 2406.14896, section 2)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfreg.features import RANKS

Distance = Literal["mse", "cosine", "normalized_mse"]
Stages = Sequence[Tensor | Sequence[Tensor]]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean over batch and channels of 1 - cos(a_c, b_c), from 0 to 2, of a and b (B, n, *space).

    A dead channel has cosine 0 and no gradient.
    """

    def unit(f: Tensor) -> Tensor:
        norm = f.norm(dim=2, keepdim=True)
        return f / torch.where(norm > 0, norm, torch.inf)

    return 1 - (unit(a.flatten(2)) * unit(b.flatten(2))).sum(2).mean()


def normalized_mse(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance over the energy of both, `sum((a - b)^2) / (sum(a^2) + sum(b^2))`, from 0 to 2.

    Scaling both by one number changes nothing, so it cannot be lowered by making all features small.
    """
    energy = a.square().sum() + b.square().sum()
    return (a - b).square().sum() / energy.clamp_min(torch.finfo(energy.dtype).tiny)


DISTANCES: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "cosine": cosine,
    "normalized_mse": normalized_mse,
}


def intra_fd(f: Tensor, name: str = "the feature map", *, distance: Distance = "mse") -> Tensor:
    """Internal feature distillation: distance between the stronger half of the channels and the weaker.

    A channel's score is the mean over batch and space of its L2-normalized map. Both halves receive gradient, the sort
    does not.

    Args:
        f: (B, C, H, W) or (B, C, D, H, W), C even.
        name: the layer, for the error message.
        distance: see `KDloss`.

    Raises:
        ValueError: an odd number of channels (undefined in the paper), or another rank.
    """
    _check_map(f, name)
    if f.shape[1] % 2:
        raise ValueError(
            f"KDloss: {name} has C = {f.shape[1]} channels; internal feature distillation needs an even number, "
            "so tap another layer or set lambda_2 to 0"
        )
    f = _full_precision(f)
    score = F.normalize(f.detach().flatten(2), dim=2).mean(dim=(0, 2))
    # The paper's code does not sort stably: dead channels, whose scores tie, are paired as torch happens to sort them.
    strong, weak = f.index_select(1, score.argsort(descending=True)).chunk(2, dim=1)
    return DISTANCES[distance](strong, weak)


def inter_fd(f_s: Tensor, f_t: Tensor, name: str = "the feature map", *, distance: Distance = "mse") -> Tensor:
    """Semantic consistency: distance between random channels of a student map and of the teacher.

    The spatially larger map is average-pooled to the smaller one's size; min(C_s, C_t) channels are drawn of each by
    Python's `random.sample`, the student's first. The teacher `f_t` is detached.

    Args:
        f_s, f_t: (B, C_s, *space) and (B, C_t, *space), space of two or three dimensions, not necessarily square.
        name: the student's layer, for the error message.
        distance: see `KDloss`.

    Raises:
        ValueError: other ranks, or a rank or batch size that differs between the two.
    """
    (value,) = _inter_fd([(f_s, name)], f_t, distance)
    return value


def _inter_fd(students: Sequence[tuple[Tensor, str]], teacher: Tensor, distance: Distance) -> list[Tensor]:
    """`inter_fd` of every student, given with its name; the teacher is pooled once per size."""
    _check_map(teacher, "the teacher (final)")
    for f, name in students:
        _check_map(f, name)
        if f.ndim != teacher.ndim or f.shape[0] != teacher.shape[0]:
            raise ValueError(
                f"KDloss: {name} has shape {tuple(f.shape)} but the teacher {tuple(teacher.shape)}; "
                "expected the same batch size and number of dimensions"
            )
    channels: list[list[int]] = []
    for f, _ in students:
        n = min(f.shape[1], teacher.shape[1])
        channels += random.sample(range(f.shape[1]), n), random.sample(range(teacher.shape[1]), n)
    # All indices in one copy: a GPU need not wait for each.
    indices = torch.tensor([c for drawn in channels for c in drawn]).to(teacher.device, non_blocking=True)
    drawn = torch.split(indices, [len(drawn) for drawn in channels])
    sizes = [tuple(map(min, f.shape[2:], teacher.shape[2:])) for f, _ in students]
    teacher = _full_precision(teacher.detach())
    pooled = {size: _pool(teacher, size) for size in set(sizes)}
    return [
        DISTANCES[distance](_pool(_full_precision(f).index_select(1, i), size), pooled[size].index_select(1, j))
        for (f, _), size, i, j in zip(students, sizes, drawn[::2], drawn[1::2], strict=True)
    ]


class KDTerms(NamedTuple):
    """`loss`, the weighted sum, carries the gradient; `scr` and `ifd` are before their weights and carry none."""

    loss: Tensor
    scr: Tensor
    ifd: Tensor


class KDloss(nn.Module):
    """The regularizer `lambda_1 * L_SCR + lambda_2 * L_IFD` of one forward pass.

    With F the final feature map, and e_k^first, e_k^last, d_k^first, d_k^last the first and last block of encoder and
    decoder stage k:

        L_SCR = mean over d_k^last and e_k^last of inter(., F) + mean over d_k^first and e_k^first of inter(., F)
        L_IFD = mean_k intra(e_k^last) + mean_k intra(e_k^first) + mean_k intra(d_k^last) + mean_k intra(d_k^first)

        inter(s, t) = distance(pool(s)[i], pool(t)[j])      i, j: min(C_s, C_t) random channels of each
        intra(f) = distance(f[strong], f[weak])             the halves of the channels, sorted by their score

    where a stage is one map everywhere, it is the first block, and the terms of the last are left out. See `inter_fd`
    and `intra_fd`. The random draws are in the order of the terms: last blocks, then first, the decoder's as listed
    before the encoder's.

    The published mean squared error grows with the square of the features, which some networks do not bound (sums of
    skip connections, no norm before the tap): there it can exceed the segmentation loss. The other distances do not
    depend on the features' scale; a warm-up lets features settle first (docs/stability.md).

    Args:
        lambda_x: weight of both terms (the paper's text says 0.015, its command 0.010).
        lambda_1: weight of semantic consistency (SCR) alone, `lambda_x` where it is None.
        lambda_2: weight of internal feature distillation (IFD) alone, `lambda_x` where it is None.
        distance: between channels, `mse` as published, `cosine` or `normalized_mse`.
        warmup_epochs: both weights rise linearly from 0 over so many epochs, and every call must then give the epoch;
            0, as published, for full weights from the start.

    Raises:
        ValueError: a weight or warm-up that is negative or not finite, or an unknown distance.
    """

    def __init__(
        self,
        lambda_x: float = 0.015,
        lambda_1: float | None = None,
        lambda_2: float | None = None,
        *,
        distance: Distance = "mse",
        warmup_epochs: float = 0,
    ) -> None:
        super().__init__()
        self.lambda_1 = lambda_x if lambda_1 is None else lambda_1
        self.lambda_2 = lambda_x if lambda_2 is None else lambda_2
        self.distance, self.warmup_epochs = distance, warmup_epochs
        numbers = {"lambda_x": lambda_x, "lambda_1": self.lambda_1, "lambda_2": self.lambda_2}
        for name, value in (numbers | {"warmup_epochs": warmup_epochs}).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"KDloss: {name} is {value!r}; expected a finite number of at least 0")
        if distance not in DISTANCES:
            raise ValueError(f"KDloss: distance is {distance!r}; expected one of {', '.join(DISTANCES)}")

    def warmup_factor(self, epoch: float | None) -> float:
        """The factor of both weights at `epoch`, from 0 to 1; ValueError where there is a warm-up and no epoch."""
        if not self.warmup_epochs:
            return 1.0
        if epoch is None:
            raise ValueError(
                f"KDloss: warmup_epochs is {self.warmup_epochs} but no epoch was given; "
                "call it with the epochs trained so far, kd(encoder, decoder, final, epoch)"
            )
        return min(1.0, epoch / self.warmup_epochs)

    def intra_fd(self, f: Tensor) -> Tensor:
        """See `selfreg.intra_fd`."""
        return intra_fd(f, distance=self.distance)

    def inter_fd(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """See `selfreg.inter_fd`."""
        return inter_fd(f_s, f_t, distance=self.distance)

    def terms(self, encoder: Stages, decoder: Stages, final: Tensor, epoch: float | None = None) -> KDTerms:
        """The weighted sum, and both terms before their weights; one whose weight is 0 is not computed, and is 0.

        Args:
            encoder: stages fine to coarse, each one map (B, C, *space) or the list of its blocks' maps.
            decoder: the stages above the bottleneck, coarse to fine, likewise.
            final: the teacher, the input of the output convolution; it receives no gradient.
            epoch: epochs trained so far, fractions allowed; needed for a warm-up, else not used.

        Raises:
            ValueError: an empty stage, a map of another rank, or an odd number of channels.
        """
        warmup = self.warmup_factor(epoch)
        parts = {"decoder": _as_stages(decoder, "decoder"), "encoder": _as_stages(encoder, "encoder")}
        count = {part: len(stages) for part, stages in parts.items()}
        single = all(len(stage) == 1 for stages in parts.values() for stage in stages)
        students = [
            (_full_precision(stage[block]), f"{part}[{k}][{block}]", part)
            for block in ((0,) if single else (-1, 0))
            for part, stages in parts.items()
            for k, stage in enumerate(stages)
        ]
        scr = ifd = students[0][0].new_zeros(())
        if self.lambda_1:
            inter = _inter_fd([(f, name) for f, name, _ in students], final, self.distance)
            scr = torch.stack(inter).sum() / sum(count.values())
        if self.lambda_2:
            intra = [intra_fd(f, name, distance=self.distance) / count[part] for f, name, part in students]
            ifd = torch.stack(intra).sum()
        loss = warmup * self.lambda_1 * scr + warmup * self.lambda_2 * ifd
        return KDTerms(loss, scr.detach(), ifd.detach())

    def extra_repr(self) -> str:
        options = f"distance={self.distance!r}, warmup_epochs={self.warmup_epochs}"
        return f"lambda_1={self.lambda_1}, lambda_2={self.lambda_2}, {options}"

    def forward(self, encoder: Stages, decoder: Stages, final: Tensor, epoch: float | None = None) -> Tensor:
        """The weighted sum of both terms, a scalar; see `terms`."""
        return self.terms(encoder, decoder, final, epoch).loss


def _as_stages(stages: Stages, part: str) -> list[list[Tensor]]:
    maps = [[stage] if isinstance(stage, Tensor) else list(stage) for stage in stages]
    if not maps or not all(maps):
        found = [len(stage) for stage in maps]
        raise ValueError(f"KDloss: {part} has {found} feature maps by stage; expected at least one each")
    return maps


def _check_map(feature: Tensor, name: str) -> None:
    if not isinstance(feature, Tensor) or feature.ndim not in RANKS:
        found = f"has shape {tuple(feature.shape)}" if isinstance(feature, Tensor) else f"is {feature!r:.40}"
        raise ValueError(f"KDloss: {name} {found}; expected a tensor (B, C, H, W) or (B, C, D, H, W)")


def _full_precision(feature: Tensor) -> Tensor:
    """Half-precision features are compared in float32, since sums over whole maps would lose their digits."""
    return feature.float() if feature.dtype in (torch.float16, torch.bfloat16) else feature


def _pool(feature: Tensor, size: tuple[int, ...]) -> Tensor:
    """Adaptive average pooling in two or three dimensions."""
    return feature if tuple(feature.shape[2:]) == size else F.interpolate(feature, list(size), mode="area")
