"""The whole training loss, its terms by name: cross-entropy, Dice and the regulariser (SPEC section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.dice import DiceLoss
from selfreg import Features, KDloss


class Criterion(nn.Module):
    """`ce_weight * CE + dice_weight * Dice + KDloss`.

    Args:
        num_classes: K, background included.
        ce_weight, dice_weight: 0.4 and 0.6 for Synapse, 0.3 and 0.7 for ACDC.
        kd: the regulariser; None, or one whose weights are 0, is the plain baseline and needs no features.
    """

    def __init__(
        self, num_classes: int, *, ce_weight: float = 0.4, dice_weight: float = 0.6, kd: KDloss | None = None
    ) -> None:
        super().__init__()
        self.ce_weight, self.dice_weight = ce_weight, dice_weight
        self.dice = DiceLoss(num_classes)
        self.kd = kd if kd is not None and (kd.lambda_1 or kd.lambda_2) else None

    @property
    def needs_features(self) -> bool:
        """Whether `forward` wants the features of the pass."""
        return self.kd is not None

    def forward(self, logits: Tensor, label: Tensor, features: Features | None = None) -> dict[str, Tensor]:
        """All terms of one batch, scalars: `loss` is their weighted sum, the others stand before their weights.

        Args:
            logits: (B, K, H, W).
            label: (B, H, W), whole numbers 0..K-1.
            features: of the same pass, where `needs_features`.

        Raises:
            ValueError: the regulariser is on and the features are missing.
        """
        # Half-precision logits of an autocast pass are summed in float32.
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        terms = {"ce": F.cross_entropy(logits, label.long()), "dice": self.dice(logits, label, softmax=True)}
        loss = self.ce_weight * terms["ce"] + self.dice_weight * terms["dice"]
        if self.kd is not None:
            if features is None:
                raise ValueError(
                    "Criterion: the regulariser is on but no features were given; call the network by FeatureTap"
                )
            regulariser, terms["scr"], terms["ifd"] = self.kd.terms(*features)
            loss = loss + regulariser
        return {"loss": loss, **terms}
