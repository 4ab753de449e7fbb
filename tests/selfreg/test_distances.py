"""The distances between channels against plain loops, that no scale moves the normalised ones, and the warm-up."""

from __future__ import annotations

import random

import pytest
import torch

from configs import arguments
from selfreg import KDloss, inter_fd, intra_fd
from selfreg.kdloss import DISTANCES
from tests.reference.losses import naive_cosine, naive_inter, naive_intra, naive_mse, naive_normalized_mse

NAIVE = {"mse": naive_mse, "cosine": naive_cosine, "normalized_mse": naive_normalized_mse}
SCALE_FREE = ["cosine", "normalized_mse"]


@pytest.mark.parametrize("distance", NAIVE)
def test_equals_plain_loops(distance: str) -> None:
    a, b = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    a[0, 1] = 0  # a dead channel
    assert DISTANCES[distance](a, b).item() == pytest.approx(NAIVE[distance](a.numpy(), b.numpy()), rel=1e-12)


@pytest.mark.parametrize("distance", NAIVE)
@pytest.mark.parametrize("student", [(2, 4, 6, 8), (2, 6, 12, 10), (1, 4, 4, 3, 5)])
def test_both_terms_equal_plain_loops(distance: str, student: tuple[int, ...]) -> None:
    f = torch.randn(student, dtype=torch.float64)
    teacher = torch.randn(student[0], 6, *(8,) * (len(student) - 2), dtype=torch.float64)
    assert intra_fd(f, distance=distance).item() == pytest.approx(naive_intra(f.numpy(), NAIVE[distance]), rel=1e-12)
    random.seed(2)
    ours = inter_fd(f, teacher, distance=distance).item()
    random.seed(2)
    assert ours == pytest.approx(naive_inter(f.numpy(), teacher.numpy(), NAIVE[distance]), rel=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("distance", NAIVE)
def test_gradient_is_that_of_the_value(distance: str, layout: torch.memory_format) -> None:
    def loss(f: torch.Tensor) -> torch.Tensor:
        random.seed(3)
        return intra_fd(f, distance=distance) + inter_fd(f, teacher, distance=distance)

    teacher = torch.randn(1, 3, 8, 6, dtype=torch.float64)
    f = torch.randn(1, 4, 4, 5, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(loss, (f,))


def stages(scale: float = 1.0) -> tuple[list, list, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 8, 8), (2, 8, 4, 4)], [(2, 4, 8, 8)], (2, 6, 8, 8)
    encoder, decoder = ([(scale * torch.randn(s, generator=generator)).requires_grad_() for s in p] for p in shapes[:2])
    return encoder, decoder, scale * torch.randn(shapes[2], generator=generator)


@pytest.mark.parametrize("distance", SCALE_FREE)
def test_scale_changes_nothing(distance: str) -> None:
    found = []
    for scale in (1e-10, 1.0, 1e9):
        random.seed(0)
        found.append(KDloss(1.0, distance=distance)(*stages(scale)).item())
    assert found == pytest.approx([found[1]] * 3, rel=1e-4)
    assert 0 < found[1] <= 2 * 3  # two distances of IFD's, one of SCR's, 2 at most each


def test_the_published_distance_grows_with_the_square() -> None:
    values = []
    for scale in (1.0, 10.0):
        random.seed(0)
        values.append(KDloss(1.0)(*stages(scale)).item())
    assert values[1] == pytest.approx(100 * values[0], rel=1e-4)


@pytest.mark.parametrize("distance", NAIVE)
def test_dead_maps_are_finite(distance: str) -> None:
    f = torch.zeros(2, 4, 4, 4, requires_grad=True)
    (intra_fd(f, distance=distance) + inter_fd(f, torch.zeros(2, 4, 4, 4), distance=distance)).backward()
    assert torch.isfinite(f.grad).all()


def test_the_methods_follow_the_option() -> None:
    f, teacher = torch.randn(2, 2, 4, 6, 6)
    kd = KDloss(distance="cosine")
    assert kd.intra_fd(f) == intra_fd(f, distance="cosine")
    random.seed(1)
    ours = kd.inter_fd(f, teacher)
    random.seed(1)
    assert ours == inter_fd(f, teacher, distance="cosine")


def test_warm_up_raises_both_weights_and_draws_alike() -> None:
    plain, warm = KDloss(lambda_1=0.3, lambda_2=0.7), KDloss(lambda_1=0.3, lambda_2=0.7, warmup_epochs=4)
    random.seed(0)
    full = plain.terms(*stages())
    for epoch, share in ((0, 0.0), (1, 0.25), (2.5, 0.625), (4, 1.0), (9, 1.0)):
        random.seed(0)
        terms = warm.terms(*stages(), epoch)
        assert terms.loss.item() == pytest.approx(share * full.loss.item(), rel=1e-6)
        assert (terms.scr, terms.ifd) == (full.scr, full.ifd)


def test_a_warm_up_needs_the_epoch() -> None:
    with pytest.raises(ValueError, match="warmup_epochs is 2 but no epoch was given"):
        KDloss(warmup_epochs=2)(*stages())
    with pytest.raises(ValueError, match="warmup_epochs is -1"):
        KDloss(warmup_epochs=-1)


def test_an_unknown_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="distance is 'l1'; expected one of mse, cosine, normalized_mse"):
        KDloss(distance="l1")


def test_the_command_line_offers_the_distances_there_are() -> None:
    assert set(arguments.DISTANCES) == set(NAIVE)
    for name in arguments.DISTANCES:
        KDloss(distance=name)


def test_a_missing_teacher_is_refused() -> None:
    encoder, decoder, _ = stages()
    with pytest.raises(ValueError, match=r"the teacher \(final\) is None"):
        KDloss()(encoder, decoder, None)


def test_one_channel_is_refused_by_name() -> None:
    encoder, decoder, final = stages()
    with pytest.raises(ValueError, match=r"decoder\[0\]\[0\] has C = 1"):
        KDloss()(encoder, [decoder[0][:, :1]], final)
