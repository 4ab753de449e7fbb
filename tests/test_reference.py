"""The naive versions equal ours, so that a benchmark of one against the other compares like with like."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation.metrics import compare_classes
from evaluation.predict import predict_volume
from losses import Criterion, KDloss
from networks import build_network
from selfreg import Features, FeatureTap
from tests.conftest import make_case
from tests.reference import evaluation, regularizer, swin

# Sides of 16, 8, 4 and 2: shifted windows at the first stage, one window at the second, smaller ones below.
SMALL = {"img_size": 64, "embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 8}
# A stage of three blocks moves the drop path rates, and its last block is not its second.
OPTIONS = [SMALL, {**SMALL, "depths": (3, 2, 2, 2), "window_size": 4, "patch_size": 2}]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def pair(dtype: torch.dtype, options: dict, classes: int = 5) -> tuple[nn.Module, swin.SwinUnet]:
    """Ours and the reference with the same weights."""
    ours = build_network("swin_unet", num_classes=classes, **options).to(dtype)
    # Fresh weights are small and biases zero: these make every parameter count.
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reference = swin.SwinUnet(num_classes=classes, **options).to(dtype)
    reference.load_state_dict(ours.state_dict())
    return ours, reference


def assert_close(ours: Tensor, reference: Tensor, what: str = "") -> None:
    limit = TOLERANCE[ours.dtype] * reference.detach().abs().max().clamp_min(1e-6).item()
    difference = (ours.detach() - reference.detach()).abs().max().item()
    assert difference <= limit, f"{what}: differs by {difference}, allowed {limit}"


def flat(features: Features | tuple) -> list[Tensor]:
    encoder, decoder, final = features
    return [f for stage in [*encoder, *decoder] for f in stage] + [final]


def batch(dtype: torch.dtype, classes: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 1, 64, 64, dtype=dtype), torch.randint(classes, (3, 64, 64))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_network(dtype: torch.dtype, options: dict) -> None:
    """Logits, every feature and, by the same seed, every dropped path."""
    ours, reference = pair(dtype, {**options, "drop_path_rate": 0.5})
    image, _ = batch(dtype)
    torch.manual_seed(1)
    logits, features = FeatureTap(ours.train())(image)
    torch.manual_seed(1)
    expected, *others = reference.train()(image)
    assert_close(logits, expected, "logits")
    for i, (f, g) in enumerate(zip(flat(features), flat(others), strict=True)):
        assert f.shape == g.shape
        assert_close(f, g, f"feature {i}")
    assert_close(ours.eval()(image), reference.eval()(image), "logits in eval mode")


def test_three_channels() -> None:
    ours, reference = pair(torch.float64, SMALL)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert_close(ours.eval()(image), reference.eval()(image))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_training_step(dtype: torch.dtype, options: dict) -> None:
    """Loss and the gradient of every parameter; the regulariser is made large, so that it counts."""
    ours, reference = pair(dtype, {**options, "drop_path_rate": 0.0})
    image, label = batch(dtype)
    criterion = Criterion(5, kd=KDloss(2.0))
    logits, features = FeatureTap(ours.train())(image)
    random.seed(3)
    loss = criterion(logits, label, features)["loss"]
    drawn = random.random()
    random.seed(3)
    logits, *others = reference.train()(image)
    expected = regularizer.total_loss(logits, label, *others, lambda_x=2.0)
    assert random.random() == drawn
    assert_close(loss, expected, "loss")
    loss.backward()
    expected.backward()
    scale = max(p.grad.abs().max().item() for p in reference.parameters())
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    for name, parameter in reference.named_parameters():
        difference = (gradients[name] - parameter.grad).abs().max().item()
        assert difference <= TOLERANCE[dtype] * scale, f"{name}: differs by {difference}"


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_regulariser(blocks: int) -> None:
    """Both terms and the gradient of every map; the teacher receives none."""

    def maps() -> tuple[list, list, Tensor]:
        generator = torch.Generator().manual_seed(2)

        def one(channels: int, side: int) -> Tensor:
            return torch.randn(2, channels, side, side, generator=generator, dtype=torch.float64).requires_grad_()

        encoder = [[one(4 * 2**k, 16 >> k) for _ in range(blocks)] for k in range(4)]
        decoder = [[one(4 * 2**k, 16 >> k) for _ in range(blocks)] for k in (2, 1, 0)]
        return encoder, decoder, one(10, 32)

    ours, theirs = maps(), maps()
    random.seed(0)
    found = KDloss(lambda_1=1.0, lambda_2=1.0).terms(*ours)
    random.seed(0)
    scr, ifd = regularizer.terms(*theirs)
    assert_close(found.scr, scr, "SCR")
    assert_close(found.ifd, ifd, "IFD")
    found.loss.backward()
    (scr + ifd).backward()
    for i, (f, g) in enumerate(zip(flat(ours), flat(theirs), strict=True)):
        if g.grad is None:
            assert f.grad is None, f"map {i}"
        else:
            assert_close(f.grad, g.grad, f"gradient of map {i}")
    assert ours[2].grad is None and theirs[2].grad is None


def test_evaluation() -> None:
    """Every voxel and every figure of a volume whose slices are resized, absent classes among them."""
    volume, truth = make_case(0, (4, 80, 72), num_classes=4)
    ours, reference = pair(torch.float32, SMALL)
    expected, scores = evaluation.evaluate(reference, volume, truth, num_classes=5, side=64)
    prediction = predict_volume(ours, volume, img_size=64, batch_size=3)
    assert len(np.unique(expected)) > 2, "a prediction of one class would compare little"
    np.testing.assert_array_equal(prediction, expected)
    found = [one.published for one in compare_classes(prediction, truth, 5)]
    for one, other in zip(found, scores, strict=True):
        assert one == pytest.approx(other, abs=1e-9)


@pytest.mark.parametrize("predicted", [True, False])
@pytest.mark.parametrize("present", [True, False])
def test_empty_masks(predicted: bool, present: bool) -> None:
    prediction, truth = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    prediction[1, 2:5, 2:5], truth[1, 2:6, 2:5] = predicted, present
    (expected,) = evaluation.measure_classes(prediction, truth, 2)
    (found,) = compare_classes(prediction, truth, 2)
    assert found.published == pytest.approx(expected, abs=1e-12)
