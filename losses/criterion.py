"""The whole training loss, its terms by name: cross-entropy, Dice and the regularizer (arXiv 2406.14896, section 2)."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.dice import DiceLoss
from selfreg import Features, KDloss


class Criterion(nn.Module):
    """`ce_weight * CE + dice_weight * Dice + KDloss`.

    Under deep supervision a network has several heads: cross-entropy and Dice are then the sums over all of them, as
    published with CASCADE, or with `head_decay` weighed by 1, d, d^2, ... in the order of the heads.

    Args:
        num_classes: K, background included.
        ce_weight: 0.4 for Synapse, 0.3 for ACDC.
        dice_weight: 0.6 for Synapse, 0.7 for ACDC.
        kd: the regularizer; None, or one whose weights are 0, is the plain baseline and needs no features.
        ignore_index: where the label has it, a pixel does not count.
        head_decay: d, 0.5 as in nnU-Net (`selfreg.variants.DeepSupervision`).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ce_weight: float = 0.4,
        dice_weight: float = 0.6,
        kd: KDloss | None = None,
        ignore_index: int | None = None,
        head_decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.ce_weight, self.dice_weight, self.head_decay = ce_weight, dice_weight, head_decay
        self.dice = DiceLoss(num_classes, ignore_index)
        self.kd = kd if kd is not None and (kd.lambda_1 or kd.lambda_2) else None
        self.needs_features = self.kd is not None  # in `forward`

    def forward(
        self,
        logits: Tensor | Sequence[Tensor],
        label: Tensor,
        features: Features | None = None,
        epoch: float | None = None,
        draws: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """All terms of one batch, scalars: `loss` is their weighted sum, the others stand before their weights.

        Args:
            logits: (B, K, H, W), or as much of every head.
            label: (B, H, W), whole numbers 0..K-1.
            features: of the same pass, where `needs_features`.
            epoch: epochs trained so far, for a regularizer that warms up.
            draws: the random channels of `KDloss.drawer`; None has the regularizer draw them.

        Raises:
            ValueError: the regularizer is on and the features are missing, or it warms up and the epoch is.
        """
        terms = self._segmentation(logits, label)
        if self.kd is not None:
            if features is None:
                raise ValueError(
                    "Criterion: the regularizer is on but no features were given; call the network by FeatureTap"
                )
            regularizer, terms["scr"], terms["ifd"] = self.kd.terms(*features, epoch, draws)
            terms["loss"] = terms["loss"] + regularizer
        return terms

    def drawer(self, features: Features | None) -> Callable[[], Tensor] | None:
        """What draws the random channels of a step like the one of these features; None without regularizer."""
        return self.kd.drawer(*features) if self.kd and features else None

    def _segmentation(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> dict[str, Tensor]:
        heads = [logits] if isinstance(logits, Tensor) else logits
        # Half-precision logits of an autocast pass are summed in float32.
        heads = [head.float() if head.dtype in (torch.float16, torch.bfloat16) else head for head in heads]
        ce = sum(self.head_decay**k * self._cross_entropy(head, label.long()) for k, head in enumerate(heads))
        dice = sum(self.head_decay**k * self.dice(head, label, softmax=True) for k, head in enumerate(heads))
        return {"loss": self.ce_weight * ce + self.dice_weight * dice, "ce": ce, "dice_loss": dice}

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        ignored = self.dice.ignore_index
        if logits.is_cuda and torch.are_deterministic_algorithms_enabled():  # CUDA's own adds up in any order
            kept = torch.ones_like(label, dtype=torch.bool) if ignored is None else label != ignored
            truth = F.one_hot(label.where(kept, 0), logits.shape[1]).movedim(-1, 1) * kept[:, None]
            return -(logits.log_softmax(dim=1) * truth).sum() / kept.sum().clamp(min=1)
        if ignored is None:
            return F.cross_entropy(logits, label)
        total = F.cross_entropy(logits, label, ignore_index=ignored, reduction="sum")
        return total / (label != ignored).sum().clamp(min=1)  # a mean would be nan where all pixels are ignored

    def gradient_norms(
        self,
        logits: Tensor | Sequence[Tensor],
        label: Tensor,
        features: Features,
        parameters: Sequence[nn.Parameter],
        epoch: float | None = None,
    ) -> dict[str, float]:
        """L2 norms of what `segmentation` (CE and Dice), `scr` and `ifd` each add, weights included, to the gradient.

        Costs a backward pass a term; the graph stays for the backward pass to come, and Python's generator as it was.
        """
        draws = random.getstate()
        losses = {"segmentation": self._segmentation(logits, label)["loss"]}
        kd = self.kd or KDloss(0)
        for name, (lambda_1, lambda_2) in {"scr": (kd.lambda_1, 0.0), "ifd": (0.0, kd.lambda_2)}.items():
            alone = copy.copy(kd)
            alone.lambda_1, alone.lambda_2 = lambda_1, lambda_2
            losses[name] = alone(*features, epoch)
        random.setstate(draws)
        norms = dict.fromkeys(losses, 0.0)  # of a term whose weight is 0, or of features that are all frozen
        for name, loss in losses.items():
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                norms[name] = nn.utils.get_total_norm([g for g in gradients if g is not None]).item()
        return norms
