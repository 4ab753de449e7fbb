"""The SelfReg loss: semantic consistency and internal feature distillation (arXiv 2406.14896, section 2)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfreg.features import RANKS
from selfreg.variants import attention_transfer, decorrelation, mean_channel

Distance = Literal["mse", "cosine", "normalized_mse"]
Consistency = Literal["random", "mean", "attention"]
Distillation = Literal["halves", "decorrelation"]
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


# In place of SCR, of a student and the teacher of one size; "random" is as published.
CONSISTENCY: dict[Consistency, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean_channel,
    "attention": attention_transfer,
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
    return _intra_fd(_Maps(f, (name,)), distance)


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
    (value,) = _inter_fd([_Maps(f_s, (name,))], f_t, distance)
    return value


class _Maps(NamedTuple):
    """Maps of one shape side by side, (B, n * C, *space): together they cost a GPU as few launches as one.

    `names` and `places` are those of each, among all students.
    """

    f: Tensor
    names: tuple[str, ...]
    places: tuple[int, ...] = (0,)

    @property
    def channels(self) -> int:
        """C."""
        return self.f.shape[1] // len(self.names)

    def split(self, f: Tensor) -> Tensor:
        """Channels of all as (B, n, c, *space)."""
        return f.view(f.shape[0], len(self.names), -1, *f.shape[2:])

    @staticmethod
    def distance(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
        """The mean over the maps of the distance between channels (B, n, c, *space)."""
        if distance == "mse":
            return F.mse_loss(a, b)
        each = [DISTANCES[distance](*pair) for pair in zip(a.unbind(1), b.unbind(1), strict=True)]
        return torch.stack(each).mean() if len(each) > 1 else each[0]


def _intra_fd(maps: _Maps, distance: Distance) -> Tensor:
    """The mean of `intra_fd` over maps of one shape."""
    _check_map(maps.f, maps.names[0])
    if maps.channels % 2:
        raise ValueError(
            f"KDloss: {maps.names[0]} has C = {maps.channels} channels; internal feature distillation needs an even "
            "number, so tap another layer or set lambda_2 to 0"
        )
    f, n = _full_precision(maps.f), len(maps.names)
    score = F.normalize(f.detach().flatten(2), dim=2).mean(dim=(0, 2))
    # The paper's code does not sort stably: dead channels, whose scores tie, are paired as torch happens to sort them.
    order = score.view(n, -1).argsort(dim=1, descending=True)
    if n > 1:
        order = order + torch.arange(0, f.shape[1], maps.channels, device=f.device)[:, None]
    strong, weak = maps.split(f.index_select(1, order.flatten())).chunk(2, dim=2)
    return maps.distance(strong, weak, distance)


def _inter_fd(
    students: Sequence[_Maps],
    teacher: Tensor,
    distance: Distance,
    scr: Consistency = "random",
    draws: Tensor | None = None,
) -> list[Tensor]:
    """The mean of `inter_fd` over each student's maps; the teacher is pooled once per size."""
    _check_map(teacher, "the teacher (final)")
    for f, names, _ in students:
        _check_map(f, names[0])
        if f.ndim != teacher.ndim or f.shape[0] != teacher.shape[0]:
            raise ValueError(
                f"KDloss: {names[0]} has shape {tuple(f.shape)} but the teacher {tuple(teacher.shape)}; "
                "expected the same batch size and number of dimensions"
            )
    teacher = _full_precision(teacher.detach())
    sizes = [tuple(map(min, maps.f.shape[2:], teacher.shape[2:])) for maps in students]
    pooled = {size: _pool(teacher, size) for size in dict.fromkeys(sizes)}
    features = [_full_precision(maps.f) for maps in students]
    if scr != "random":
        return [CONSISTENCY[scr](_pool(f, size), pooled[size]) for f, size in zip(features, sizes, strict=True)]
    if draws is None:
        draws = _draw([(maps.channels, maps.places) for maps in students], teacher.shape[1])
    counts = [len(maps.names) * min(maps.channels, teacher.shape[1]) for maps in students for _ in range(2)]
    # All indices in one copy: a GPU need not wait for each.
    drawn = torch.split(draws.to(teacher.device, non_blocking=True), counts)
    return [
        maps.distance(
            maps.split(_pool(f.index_select(1, i), size)), maps.split(pooled[size].index_select(1, j)), distance
        )
        for maps, f, size, i, j in zip(students, features, sizes, drawn[::2], drawn[1::2], strict=True)
    ]


def _draw(students: Sequence[tuple[int, Sequence[int]]], teacher_channels: int) -> Tensor:
    """Random channels of each student's maps, given by how many each has and their places, and of the teacher for them.

    They are drawn in the order of the places.
    """
    indices: list[tuple[list[int], list[int]]] = [([], []) for _ in students]
    for _, number, k in sorted((at, i, k) for i, (_, places) in enumerate(students) for k, at in enumerate(places)):
        channels = students[number][0]
        count = min(channels, teacher_channels)
        indices[number][0].extend(k * channels + c for c in random.sample(range(channels), count))
        indices[number][1].extend(random.sample(range(teacher_channels), count))
    return torch.tensor([c for of_maps in indices for half in of_maps for c in half])


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
        scr: `random` as published, or a rival in its place: `mean` or `attention` (selfreg/variants.py).
        ifd: `halves` as published, or its opposite, `decorrelation` (selfreg/variants.py). `distance` is not theirs.

    Raises:
        ValueError: a weight or warm-up that is negative or not finite, or an unknown distance, `scr` or `ifd`.
    """

    def __init__(
        self,
        lambda_x: float = 0.015,
        lambda_1: float | None = None,
        lambda_2: float | None = None,
        *,
        distance: Distance = "mse",
        warmup_epochs: float = 0,
        scr: Consistency = "random",
        ifd: Distillation = "halves",
    ) -> None:
        super().__init__()
        self.lambda_1 = lambda_x if lambda_1 is None else lambda_1
        self.lambda_2 = lambda_x if lambda_2 is None else lambda_2
        self.distance, self.warmup_epochs, self.scr, self.ifd = distance, warmup_epochs, scr, ifd
        numbers = {"lambda_x": lambda_x, "lambda_1": self.lambda_1, "lambda_2": self.lambda_2}
        for name, value in (numbers | {"warmup_epochs": warmup_epochs}).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"KDloss: {name} is {value!r}; expected a finite number of at least 0")
        options = {"distance": (distance, Distance), "scr": (scr, Consistency), "ifd": (ifd, Distillation)}
        for name, (option, known) in options.items():
            if option not in get_args(known):
                raise ValueError(f"KDloss: {name} is {option!r}; expected one of {', '.join(get_args(known))}")

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
        """See `selfreg.intra_fd`; with `ifd="decorrelation"`, `selfreg.variants.decorrelation`."""
        return self._intra_fd(_Maps(f, ("the feature map",)))

    def _intra_fd(self, maps: _Maps) -> Tensor:
        if self.ifd == "halves":
            return _intra_fd(maps, self.distance)
        _check_map(maps.f, maps.names[0])
        return decorrelation(_full_precision(maps.f))

    def inter_fd(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """See `selfreg.inter_fd`, with `scr` in place of its pairing."""
        (value,) = _inter_fd([_Maps(f_s, ("the feature map",))], f_t, self.distance, self.scr)
        return value

    def drawer(self, encoder: Stages, decoder: Stages, final: Tensor) -> Callable[[], Tensor]:
        """What draws the random channels of a step, for `terms`, of maps of the shapes of these on their device."""
        students, _ = self._students(encoder, decoder)
        return partial(_draw, [(maps.channels, maps.places) for maps in students], final.shape[1])

    def _students(self, encoder: Stages, decoder: Stages) -> tuple[list[_Maps], list[int]]:
        """The maps of both terms, in their order, on a GPU those of one shape together; and the stages of each part."""
        parts = {"decoder": _as_stages(decoder, "decoder"), "encoder": _as_stages(encoder, "encoder")}
        single = all(len(stage) == 1 for stages in parts.values() for stage in stages)
        listed = [
            (stage[block], f"{part}[{k}][{block}]", len(stages))
            for block in ((0,) if single else (-1, 0))
            for part, stages in parts.items()
            for k, stage in enumerate(stages)
        ]
        groups: dict[object, list[int]] = {}
        for place, (f, name, count) in enumerate(listed):
            _check_map(f, name)
            together = f.is_cuda and self.scr == "random" and self.ifd == "halves"
            groups.setdefault((count, f.shape, f.dtype) if together else place, []).append(place)
        students = []
        for places in groups.values():
            maps = [listed[place][0] for place in places]
            f = torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]
            students.append(_Maps(_full_precision(f), tuple(listed[place][1] for place in places), tuple(places)))
        return students, [listed[places[0]][2] for places in groups.values()]

    def terms(
        self, encoder: Stages, decoder: Stages, final: Tensor, epoch: float | None = None, draws: Tensor | None = None
    ) -> KDTerms:
        """The weighted sum, and both terms before their weights; one whose weight is 0 is not computed, and is 0.

        Args:
            encoder: stages fine to coarse, each one map (B, C, *space) or the list of its blocks' maps.
            decoder: the stages above the bottleneck, coarse to fine, likewise.
            final: the teacher, the input of the output convolution; it receives no gradient.
            epoch: epochs trained so far, fractions allowed; needed for a warm-up, else not used.
            draws: what `drawer` gave for this step, as a compiled graph needs it; None draws here.

        Raises:
            ValueError: an empty stage, a map of another rank, or an odd number of channels.
        """
        warmup = self.warmup_factor(epoch)
        students, counts = self._students(encoder, decoder)
        sizes = [len(maps.names) for maps in students]
        nothing = students[0].f.new_zeros(()) if 0 in (self.lambda_1, self.lambda_2) else None
        scr = ifd = cast(Tensor, nothing)
        if self.lambda_1:
            inter = _inter_fd(students, final, self.distance, self.scr, draws)
            sums = [mean * n if n > 1 else mean for mean, n in zip(inter, sizes, strict=True)]
            scr = torch.stack(sums).sum() / (len(encoder) + len(decoder))
        if self.lambda_2:
            intra = [self._intra_fd(maps) / (c / n) for maps, c, n in zip(students, counts, sizes, strict=True)]
            ifd = torch.stack(intra).sum()
        loss = warmup * self.lambda_1 * scr + warmup * self.lambda_2 * ifd
        return KDTerms(loss, scr.detach(), ifd.detach())

    def extra_repr(self) -> str:
        options = f"distance={self.distance!r}, warmup_epochs={self.warmup_epochs}, scr={self.scr!r}, ifd={self.ifd!r}"
        return f"lambda_1={self.lambda_1}, lambda_2={self.lambda_2}, {options}"

    def forward(
        self,
        encoder: Stages,
        decoder: Stages | None = None,
        final: Tensor | None = None,
        epoch: float | None = None,
        draws: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum of both terms, a scalar; see `terms`."""
        if decoder is None:
            raise TypeError(
                "KDloss: got one argument; expected encoder, decoder and final: kd(*features), with the star"
            )
        return self.terms(encoder, decoder, cast(Tensor, final), epoch, draws).loss


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
