"""Dice, cross-entropy and their mix against plain loops; what the criterion asks for."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from losses import Criterion, DiceLoss, KDloss
from selfreg import Features, FeatureTap
from tests.reference.losses import naive_cross_entropy, naive_dice


def batch(classes: int = 3, size: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    x = torch.randn(size, classes, 4, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (size, 4, 5), generator=generator)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("classes", [2, 4, 9])
@pytest.mark.parametrize("weighted", [False, True])
def test_dice_equals_plain_loops(classes: int, size: int, weighted: bool) -> None:
    x, y = batch(classes, size)
    weight = [1.0 + i for i in range(classes)] if weighted else None
    loss = DiceLoss(classes)(x, y, weight=weight, softmax=True).item()
    assert loss == pytest.approx(naive_dice(x.softmax(1).numpy(), y.numpy(), weight), rel=1e-12)
    assert DiceLoss(classes)(x.sigmoid(), y.double()).item() == pytest.approx(
        naive_dice(x.sigmoid().numpy(), y.numpy()), rel=1e-12
    )


def test_dice_by_pencil() -> None:
    # One class everywhere, predicted with certainty: that class 1 - (2*4+s)/(4+4+s) = 0, the other 1 - s/s = 0.
    y = torch.zeros(1, 2, 2)
    certain = torch.stack([torch.ones(1, 2, 2), torch.zeros(1, 2, 2)], dim=1)
    assert DiceLoss(2)(certain, y).item() == pytest.approx(0, abs=1e-7)
    assert DiceLoss(2)(1 - certain, y).item() == pytest.approx(1, abs=1e-5)


def test_dice_refuses_what_does_not_belong_together() -> None:
    x, y = batch(3)
    with pytest.raises(ValueError, match=r"expected \(B, 4"):
        DiceLoss(4)(x, y)
    with pytest.raises(ValueError, match="target"):
        DiceLoss(3)(x, y[:, :2])
    with pytest.raises(ValueError, match="class weights"):
        DiceLoss(3)(x, y, weight=[1.0])


@pytest.mark.parametrize("ce, dice", [(0.4, 0.6), (0.3, 0.7)])
def test_criterion_is_the_weighted_sum(ce: float, dice: float) -> None:
    x, y = batch(9, 2)
    terms = Criterion(9, ce_weight=ce, dice_weight=dice)(x, y.to(torch.uint8))
    expected = {
        "ce": naive_cross_entropy(x.numpy(), y.numpy()),
        "dice_loss": naive_dice(x.softmax(1).numpy(), y.numpy()),
    }
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-12)
    assert terms["loss"].item() == pytest.approx(ce * expected["ce"] + dice * expected["dice_loss"], rel=1e-12)
    assert set(terms) == {"loss", "ce", "dice_loss"}


def test_criterion_adds_the_regulariser() -> None:
    from networks import build_network

    network = build_network("unet", num_classes=3, img_size=32, width=4)
    x, y = torch.randn(2, 1, 32, 32), torch.randint(0, 3, (2, 32, 32))
    kd = KDloss(lambda_1=0.1, lambda_2=0.2)
    criterion = Criterion(3, kd=kd)
    assert criterion.needs_features
    logits, features = FeatureTap(network)(x)
    random.seed(0)
    terms = criterion(logits, y, features)
    random.seed(0)
    plain = Criterion(3)(logits, y)
    assert terms["loss"].item() == pytest.approx((plain["loss"] + kd(*features)).item(), rel=1e-6)
    with pytest.raises(ValueError, match="FeatureTap"):
        criterion(logits, y)


def test_lambda_0_is_the_plain_baseline() -> None:
    assert not Criterion(3, kd=KDloss(0.0)).needs_features
    assert Criterion(3, kd=KDloss(0.0, lambda_1=0.1)).needs_features


def test_half_precision_logits_are_summed_in_float32() -> None:
    x, y = batch(3, 2)
    half = Criterion(3)(x.bfloat16(), y)["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(Criterion(3)(x, y)["loss"].item(), rel=2e-2)


def test_float_labels_are_taken() -> None:
    x, y = batch(3)
    assert Criterion(3)(x, y.float())["loss"] == Criterion(3)(x, y)["loss"]


def test_perfect_prediction_has_no_loss() -> None:
    y = torch.from_numpy(np.arange(9).reshape(1, 3, 3) % 3)
    x = torch.nn.functional.one_hot(y, 3).movedim(-1, 1) * 50.0
    assert Criterion(3)(x, y)["loss"].item() < 1e-6


def test_several_heads_are_summed() -> None:
    x, y = batch(3, 2)
    criterion = Criterion(3, ce_weight=0.3, dice_weight=0.7)
    apart, together = [criterion(head, y) for head in (x, -x, 2 * x)], criterion((x, -x, 2 * x), y)
    for name in ("loss", "ce", "dice_loss"):
        assert together[name].item() == pytest.approx(sum(terms[name].item() for terms in apart), rel=1e-12)


class Scaled(torch.nn.Module):
    """One weight that scales the logits, and one of its own for every feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Features]:
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(3, 2, 4, 8, 8, generator=generator, dtype=torch.float64)
        return self.weights[0] * x, Features([[self.weights[1] * maps[0]]], [[self.weights[2] * maps[1]]], maps[2])


@pytest.mark.parametrize("lambda_1, lambda_2", [(0.3, 0.7), (0.3, 0.0), (0.0, 0.7)])
def test_gradient_norms_are_those_of_each_part(lambda_1: float, lambda_2: float) -> None:
    network, (x, y) = Scaled(), batch(3, 2)
    criterion = Criterion(3, kd=KDloss(lambda_1=lambda_1, lambda_2=lambda_2))
    logits, features = network(x)
    random.seed(0)
    draws = random.getstate()
    norms = criterion.gradient_norms(logits, y, features, list(network.parameters()))
    assert random.getstate() == draws, "the draws of the batch are its own"

    def norm(loss: torch.Tensor) -> float:
        return torch.autograd.grad(loss, network.weights)[0].norm().item() if loss.requires_grad else 0.0

    expected = {"segmentation": norm(Criterion(3)(network(x)[0], y)["loss"])}
    for name, kd in (("scr", KDloss(lambda_1=lambda_1, lambda_2=0)), ("ifd", KDloss(lambda_1=0, lambda_2=lambda_2))):
        random.setstate(draws)
        expected[name] = norm(kd(*network(x)[1]))
    assert norms == pytest.approx(expected, rel=1e-12)
    criterion(logits, y, features)["loss"].backward()  # the graph is still there
    assert network.weights.grad is not None


def test_ignored_pixels_count_neither_in_cross_entropy_nor_in_dice() -> None:
    """As if they were not there; where all are ignored, nothing is learned, and nothing is nan."""
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True), torch.randint(0, 3, (2, 8, 8))
    ignored = torch.zeros(2, 8, 8, dtype=torch.bool)
    ignored[:, :, 5:] = True
    terms = Criterion(3, ignore_index=255)(logits, label.masked_fill(ignored, 255))
    expected = Criterion(3)(logits[:, :, :, :5], label[:, :, :5])
    for name in ("loss", "ce", "dice_loss"):
        torch.testing.assert_close(terms[name], expected[name])
    terms["loss"].backward()
    assert not logits.grad[:, :, :, 5:].any() and logits.grad[:, :, :, :5].any()
    assert torch.isfinite(Criterion(3, ignore_index=255)(logits, torch.full_like(label, 255))["loss"])
