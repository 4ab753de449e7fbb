"""The SelfReg loss: semantic consistency and internal feature distillation (arXiv 2406.14896, section 2)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from selfreg.distances import by_name
from selfreg.onepass import RANKS, Pull, measure

Stages = Sequence[Tensor | Sequence[Tensor]]


class KDTerms(NamedTuple):
    """What one pass gives: `loss`, the weighted sum, carries the gradient; `scr` (semantic consistency) and `ifd`
    (distillation) stand before their weights and carry none."""

    loss: Tensor
    scr: Tensor
    ifd: Tensor


def _check_rank(feature: Tensor, name: str) -> None:
    if not isinstance(feature, Tensor):
        raise ValueError(
            f"KDloss: {name} is a {type(feature).__name__}; expected a tensor (B, C, H, W) or (B, C, D, H, W), "
            "as FeatureTap hands it out"
        )
    if feature.ndim not in RANKS or not feature.numel():
        raise ValueError(
            f"KDloss: {name} has shape {tuple(feature.shape)}; expected (B, C, H, W) or (B, C, D, H, W), none of them 0"
        )
    if not feature.is_floating_point():
        raise ValueError(f"KDloss: {name} is of {feature.dtype}; expected floating-point numbers")


def _check_halves(feature: Tensor, name: str) -> None:
    _check_rank(feature, name)
    if feature.shape[1] % 2:
        raise ValueError(
            f"KDloss: {name} has C = {feature.shape[1]} channels; internal feature distillation needs an even number, "
            "so tap another layer or set lambda_2 to 0"
        )


def _draw(student: Tensor, teacher: Tensor, name: str) -> tuple[list[int], list[int]]:
    """The channels that semantic consistency compares, by Python's `random`: the student's, then the teacher's."""
    _check_rank(student, name)
    _check_rank(teacher, "the teacher (final)")
    if student.ndim != teacher.ndim or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"KDloss: {name} has shape {tuple(student.shape)} but the teacher {tuple(teacher.shape)}; "
            "expected the same batch size and number of dimensions"
        )
    n = min(student.shape[1], teacher.shape[1])
    return random.sample(range(student.shape[1]), n), random.sample(range(teacher.shape[1]), n)


def intra_fd(f: Tensor, name: str = "the feature map", *, distance: str = "mse") -> Tensor:
    """Internal feature distillation: distance of the weaker half of the channels to the stronger.

    A channel's score is the mean of its L2-normalised map over batch and space; the channels are sorted by it,
    descending, and the first half is compared with the second in that order. Both halves receive gradient, the
    sort does not.

    Args:
        f: (B, C, H, W) or (B, C, D, H, W), C even.
        name: the layer, for the error message.
        distance: see `KDloss`.

    Raises:
        ValueError: an odd number of channels (undefined in the paper), or another rank.
    """
    _check_halves(f, name)
    return measure([Pull(f, ifd=1)], distance=by_name(distance))[0]


def inter_fd(f_s: Tensor, f_t: Tensor, name: str = "the feature map", *, distance: str = "mse") -> Tensor:
    """Semantic consistency: distance between random channels of a student map and of the teacher.

    The spatially larger map is average-pooled to the smaller one's size; n = min(C_s, C_t) channels are drawn of
    each by Python's `random.sample`, the student's first. The teacher `f_t` is detached.

    Args:
        f_s, f_t: (B, C_s, *space) and (B, C_t, *space), space of two or three dimensions, not necessarily square.
        name: the student's layer, for the error message.
        distance: see `KDloss`.

    Raises:
        ValueError: other ranks, or a rank or batch size that differs between the two.
    """
    pull = Pull(f_s, scr=1, channels=_draw(f_s, f_t, name))
    return measure([pull], f_t, distance=by_name(distance))[0]


def _as_stages(stages: Stages, part: str) -> list[list[Tensor]]:
    if not isinstance(stages, Sequence) or not all(isinstance(stage, Tensor | Sequence) for stage in stages):
        raise ValueError(f"KDloss: {part} is {type(stages).__name__}; expected a list of stages, each a map or several")
    maps = [[stage] if isinstance(stage, Tensor) else list(stage) for stage in stages]
    if not maps or not all(maps):
        raise ValueError(
            f"KDloss: {part} has {[len(s) for s in maps]} feature maps by stage; expected at least one each"
        )
    return maps


class KDloss(nn.Module):
    """The regulariser: `lambda_1 * L_SCR + lambda_2 * L_IFD`; `lambda_x` sets both.

    The mean squared error of the publication grows with the square of the features' size, which some networks do not
    bound (sums of skip connections, no norm before the tap): there it can drown the segmentation loss. The other
    distances do not grow with the features, though their weight still matters; a warm-up lets features settle first.

    Args:
        lambda_x: weight of both terms (the paper's text says 0.015, its command 0.010).
        lambda_1: weight of semantic consistency (SCR) alone, `lambda_x` where it is None.
        lambda_2: weight of internal feature distillation (IFD) alone, `lambda_x` where it is None.
        distance: between channels, `mse` as published, `cosine` or `normalized_mse` (see `selfreg.distances`).
        warmup_epochs: both weights rise linearly from 0 at the start of training to their value after so many epochs,
            and every call must then say the epoch; 0, as published, for full weights from the start.

    Raises:
        ValueError: a weight or warm-up that is negative or not finite, or an unknown distance.
    """

    def __init__(
        self,
        lambda_x: float = 0.015,
        lambda_1: float | None = None,
        lambda_2: float | None = None,
        *,
        distance: str = "mse",
        warmup_epochs: float = 0,
    ) -> None:
        super().__init__()
        numbers = {"lambda_x": lambda_x, "lambda_1": lambda_1, "lambda_2": lambda_2, "warmup_epochs": warmup_epochs}
        for name, value in numbers.items():
            optional = value is None and name in ("lambda_1", "lambda_2")
            if not optional and not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ValueError(f"KDloss: {name} is {value!r}; expected a finite number of at least 0")
        by_name(distance)
        self.lambda_1 = float(lambda_x if lambda_1 is None else lambda_1)
        self.lambda_2 = float(lambda_x if lambda_2 is None else lambda_2)
        self.distance, self.warmup_epochs = distance, warmup_epochs

    def extra_repr(self) -> str:
        return (
            f"lambda_1={self.lambda_1}, lambda_2={self.lambda_2}, distance={self.distance!r}, "
            f"warmup_epochs={self.warmup_epochs}"
        )

    def warmth(self, epoch: float | None) -> float:
        """The share of their weights that the terms have at `epoch`, from 0 to 1.

        Raises:
            ValueError: there is a warm-up and no epoch.
        """
        if not self.warmup_epochs:
            return 1.0
        if epoch is None:
            raise ValueError(
                f"KDloss: warmup_epochs is {self.warmup_epochs} but no epoch was given; "
                "call it with the epochs trained so far, kd(encoder, decoder, final, epoch)"
            )
        if not float(epoch) >= 0:
            raise ValueError(f"KDloss: epoch is {epoch}; expected the epochs trained so far, at least 0")
        return min(1.0, float(epoch) / self.warmup_epochs)

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
        warmth = self.warmth(epoch)
        encoder, decoder = _as_stages(encoder, "encoder"), _as_stages(decoder, "decoder")
        one_map_a_stage = all(len(stage) == 1 for stage in encoder + decoder)
        # With one block a stage its first map is its last, and the published loss counts it once.
        blocks = (0,) if one_map_a_stage else (-1, 0)
        pulls = [pull for block in blocks for pull in self._pulls(encoder, decoder, final, block)]
        weights = {"lambda_1": warmth * self.lambda_1, "lambda_2": warmth * self.lambda_2}
        return KDTerms(*measure(pulls, final, **weights, distance=by_name(self.distance)))

    def _pulls(
        self, encoder: list[list[Tensor]], decoder: list[list[Tensor]], final: Tensor, block: int
    ) -> Iterator[Pull]:
        """What is asked of one block of every stage, in the order of the random draws, which is part of the definition:
        decoder coarse to fine, then encoder as it is listed."""
        stages = len(decoder) + len(encoder)
        for part, name in ((decoder, "decoder"), (encoder, "encoder")):
            for k, stage in enumerate(part):
                feature, where = stage[block], f"{name}[{k}][{block}]"
                _check_rank(feature, where)
                if self.lambda_2:
                    _check_halves(feature, where)
                yield Pull(
                    feature,
                    scr=stages if self.lambda_1 else 0,
                    ifd=len(part) if self.lambda_2 else 0,
                    channels=_draw(feature, final, where) if self.lambda_1 else ((), ()),
                )

    def forward(self, encoder: Stages, decoder: Stages, final: Tensor, epoch: float | None = None) -> Tensor:
        """The weighted sum of both terms, a scalar; see `terms`."""
        return self.terms(encoder, decoder, final, epoch).loss
