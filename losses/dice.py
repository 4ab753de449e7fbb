"""Soft Dice loss over all classes, background included (arXiv 2406.14896)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMOOTH = 1e-5


class DiceLoss(nn.Module):
    """`mean_i w_i * (1 - (2*sum(p_i*y_i) + s) / (sum(p_i^2) + sum(y_i^2) + s))`, the sums over the whole batch.

    Args:
        n_classes: K, background included.
        ignore_index: where the target has it, a pixel does not count.
    """

    def __init__(self, n_classes: int, ignore_index: int | None = None) -> None:
        super().__init__()
        self.n_classes, self.ignore_index = n_classes, ignore_index

    def forward(
        self, inputs: Tensor, target: Tensor, weight: Sequence[float] | None = None, softmax: bool = False
    ) -> Tensor:
        """Dice loss of one batch, a scalar.

        Args:
            inputs: (B, K, *space), probabilities, or logits with `softmax`.
            target: (B, *space), whole numbers 0..K-1 of any dtype.
            weight: one factor a class; the sum is still divided by K, as published.

        Raises:
            ValueError: shapes that do not belong together.
        """
        if inputs.shape[1] != self.n_classes or inputs.shape[:1] + inputs.shape[2:] != target.shape:
            raise ValueError(
                f"DiceLoss: inputs have shape {tuple(inputs.shape)} and target {tuple(target.shape)}; "
                f"expected (B, {self.n_classes}, *space) and (B, *space)"
            )
        if weight is not None and len(weight) != self.n_classes:
            raise ValueError(f"DiceLoss: got {len(weight)} class weights; expected {self.n_classes}")
        probabilities = inputs.softmax(dim=1) if softmax else inputs
        kept = None
        if self.ignore_index is not None:
            kept = target != self.ignore_index
            target, probabilities = target.where(kept, 0), probabilities * kept[:, None]
        truth = F.one_hot(target.long(), self.n_classes).movedim(-1, 1).to(probabilities.dtype)
        if kept is not None:
            truth = truth * kept[:, None]
        over_all_but_class = (0, *range(2, inputs.ndim))
        intersection = (probabilities * truth).sum(over_all_but_class)
        total = probabilities.square().sum(over_all_but_class) + truth.sum(over_all_but_class)
        loss = 1 - (2 * intersection + _SMOOTH) / (total + _SMOOTH)
        if weight is not None:
            loss = loss * torch.as_tensor(weight, dtype=loss.dtype, device=loss.device)
        return loss.mean()
