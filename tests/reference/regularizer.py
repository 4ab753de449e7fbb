"""The training loss by its formulas (arXiv 2406.14896), in plain differentiable torch; nothing is kept or shared."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Maps = Sequence[Sequence[Tensor]]


def intra(f: Tensor) -> Tensor:
    """Distance of the weaker half of the channels of (B, C, H, W) to the stronger."""
    half = f.shape[1] // 2
    normalised = f / f.flatten(2).norm(dim=2).clamp_min(1e-12)[:, :, None, None]
    # Dead channels tie, and the published pairing of ties is that of torch's default sort.
    order = normalised.mean(dim=(0, 2, 3)).sort(descending=True).indices
    return F.mse_loss(f[:, order[:half]], f[:, order[half:]])


def inter(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of random channels of a student map to random channels of the teacher, at the smaller one's size."""
    teacher = teacher.detach()
    if student.shape[-1] > teacher.shape[-1]:
        student = F.adaptive_avg_pool2d(student, teacher.shape[2:])
    else:
        teacher = F.adaptive_avg_pool2d(teacher, student.shape[2:])
    n = min(student.shape[1], teacher.shape[1])
    of_student = random.sample(range(student.shape[1]), n)
    of_teacher = random.sample(range(teacher.shape[1]), n)
    return F.mse_loss(student[:, of_student], teacher[:, of_teacher])


def terms(encoder: Maps, decoder: Maps, final: Tensor) -> tuple[Tensor, Tensor]:
    """L_SCR and L_IFD; encoder stages fine to coarse, decoder stages coarse to fine."""
    blocks = (0,) if all(len(stage) == 1 for stage in [*encoder, *decoder]) else (-1, 0)
    stages_in_order = [*decoder, *encoder]
    scr, ifd = final.new_zeros(()), final.new_zeros(())
    for block in blocks:
        for stage in stages_in_order:
            scr = scr + inter(stage[block], final) / len(stages_in_order)
        for stages in (encoder, decoder):
            for stage in stages:
                ifd = ifd + intra(stage[block]) / len(stages)
    return scr, ifd


def kdloss(encoder: Maps, decoder: Maps, final: Tensor, lambda_x: float = 0.015) -> Tensor:
    """`lambda_x * (L_IFD + L_SCR)`."""
    scr, ifd = terms(encoder, decoder, final)
    return lambda_x * (ifd + scr)


def dice_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Soft Dice loss of (B, K, H, W) against (B, H, W), class by class."""
    classes = logits.shape[1]
    probabilities = logits.softmax(dim=1)
    truth = torch.cat([(label == i).unsqueeze(1) for i in range(classes)], dim=1).to(logits.dtype)
    loss = logits.new_zeros(())
    for i in range(classes):
        p, y = probabilities[:, i], truth[:, i]
        loss = loss + 1 - (2 * (p * y).sum() + 1e-5) / ((p * p).sum() + (y * y).sum() + 1e-5)
    return loss / classes


def total_loss(
    logits: Tensor, label: Tensor, encoder: Maps, decoder: Maps, final: Tensor, lambda_x: float = 0.015
) -> Tensor:
    """The Synapse loss, `0.4 * CE + 0.6 * Dice + KDloss`."""
    segmentation = 0.4 * F.cross_entropy(logits, label.long()) + 0.6 * dice_loss(logits, label)
    return segmentation + kdloss(encoder, decoder, final, lambda_x)
