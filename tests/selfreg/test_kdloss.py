"""KDloss against plain loops, its draws, and where its gradient goes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from selfreg import Features, KDloss, inter_fd, intra_fd
from tests.reference import regularizer
from tests.reference.losses import naive_inter, naive_intra, naive_kdloss


def maps(
    blocks: int, batch: int = 2, seed: int = 0, space: tuple[int, ...] = (16, 16)
) -> tuple[list, list, torch.Tensor]:
    """Encoder (4 stages), decoder (3 stages) and final map, float64, channels doubling as space halves."""
    generator = torch.Generator().manual_seed(seed)

    def one(level: int) -> torch.Tensor:
        size = tuple(max(1, side // 2**level) for side in space)
        x = torch.randn(batch, 4 * 2**level, *size, generator=generator, dtype=torch.float64)
        return x.requires_grad_()

    encoder = [[one(k) for _ in range(blocks)] for k in range(4)]
    decoder = [[one(k) for _ in range(blocks)] for k in (2, 1, 0)]
    final = torch.randn(batch, 6, *(2 * side for side in space), generator=generator, dtype=torch.float64)
    return encoder, decoder, final.requires_grad_()


def arrays(stages: list) -> list:
    return [[x.detach().numpy() for x in stage] for stage in stages]


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("space", [(16, 16), (16, 24)])
def test_equals_plain_loops(blocks: int, batch: int, space: tuple[int, int]) -> None:
    encoder, decoder, final = maps(blocks, batch, space=space)
    random.seed(5)
    loss = KDloss(lambda_1=0.3, lambda_2=0.7)(encoder, decoder, final)
    after = random.random()
    random.seed(5)
    expected = naive_kdloss(arrays(encoder), arrays(decoder), final.detach().numpy(), 0.3, 0.7)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert random.random() == after


def test_a_stage_may_be_one_map() -> None:
    encoder, decoder, final = maps(1)
    random.seed(1)
    listed = KDloss()(encoder, decoder, final)
    random.seed(1)
    bare = KDloss()([stage[0] for stage in encoder], [stage[0] for stage in decoder], final, 3)
    assert listed == bare


@pytest.mark.parametrize(
    "student, teacher",
    [
        ((2, 4, 8, 8), (2, 6, 4, 4)),
        ((2, 6, 4, 4), (2, 4, 8, 8)),
        ((1, 4, 7, 5), (1, 4, 3, 9)),
        ((2, 4, 4, 4, 6), (2, 2, 8, 8, 8)),
    ],
)
def test_inter_equals_plain_loops(student: tuple, teacher: tuple) -> None:
    s, t = torch.randn(student, dtype=torch.float64), torch.randn(teacher, dtype=torch.float64)
    random.seed(2)
    value = inter_fd(s, t).item()
    random.seed(2)
    assert value == pytest.approx(naive_inter(s.numpy(), t.numpy()), rel=1e-12)


def test_intra_equals_plain_loops_and_a_pencil() -> None:
    f = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    assert intra_fd(f).item() == pytest.approx(naive_intra(f.numpy()), rel=1e-12)
    # Channels of constant 3 and -1: the stronger is 3, their distance 4.
    assert intra_fd(torch.stack([torch.full((2, 2), -1.0), torch.full((2, 2), 3.0)])[None]).item() == 16.0


def test_gradient_reaches_every_student_and_never_the_teacher() -> None:
    encoder, decoder, final = maps(2)
    KDloss(lambda_1=1.0, lambda_2=0.0)(encoder, decoder, final).backward()
    assert final.grad is None
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for stage in encoder + decoder for x in stage)


def test_distillation_pulls_both_halves() -> None:
    f = torch.randn(2, 8, 4, 4).requires_grad_()
    intra_fd(f).backward()
    assert (f.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


def test_gradient_is_that_of_the_value() -> None:
    def loss(f: torch.Tensor) -> torch.Tensor:
        random.seed(3)
        return intra_fd(f) + inter_fd(f, final)

    final = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    f = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (f,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("blocks", [1, 2])
def test_gradients_are_those_of_autograd_to_the_bit(layout: torch.memory_format, blocks: int) -> None:
    """In float32 near ties of the channel sort follow the last bit, so a trajectory holds only if the gradients do."""
    encoder, decoder, final = maps(blocks, space=(16, 24))
    students = [x for stage in encoder + decoder for x in stage]
    leaves = {id(x): x.detach().float().contiguous(memory_format=layout).requires_grad_() for x in students}
    encoder, decoder = ([[leaves[id(x)] for x in stage] for stage in stages] for stages in (encoder, decoder))
    final = final.detach().float().contiguous(memory_format=layout)
    gradients = []
    for loss in (KDloss(0.015), regularizer.kdloss):
        random.seed(6)
        value = loss(encoder, decoder, final)
        gradients.append(torch.autograd.grad(value, [x for stage in encoder + decoder for x in stage]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def test_no_graph_is_kept_and_no_gradient_made_where_none_is_wanted() -> None:
    encoder, decoder, final = maps(2)
    with torch.no_grad():
        assert not KDloss()(encoder, decoder, final).requires_grad
    loss, scr, ifd = KDloss(lambda_1=0.3, lambda_2=0.7).terms(encoder, decoder, final)
    assert loss.requires_grad and not scr.requires_grad and not ifd.requires_grad
    assert loss.item() == pytest.approx(0.3 * scr.item() + 0.7 * ifd.item(), rel=1e-12)
    frozen = [[x.detach() for x in stage] for stage in encoder]
    KDloss().terms(frozen, decoder, final).loss.backward()
    assert all(x.grad is not None for stage in decoder for x in stage)


def test_dead_channels_are_finite() -> None:
    f = torch.zeros(2, 4, 4, 4, requires_grad=True)
    loss = intra_fd(f)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(f.grad).all()


def test_half_precision_is_summed_in_float32() -> None:
    encoder, decoder, final = maps(2)
    random.seed(4)
    exact = KDloss(1.0)(encoder, decoder, final).item()
    random.seed(4)
    half = KDloss(1.0)(
        [[x.bfloat16() for x in s] for s in encoder], [[x.bfloat16() for x in s] for s in decoder], final.bfloat16()
    )
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact, rel=1e-2)


def test_weights() -> None:
    assert (KDloss(0.2).lambda_1, KDloss(0.2).lambda_2) == (0.2, 0.2)
    assert (KDloss(0.2, lambda_2=0.5).lambda_1, KDloss(0.2, lambda_2=0.5).lambda_2) == (0.2, 0.5)
    encoder, decoder, final = maps(2)
    random.seed(0)
    state = random.getstate()
    assert KDloss(0.0)(encoder, decoder, final).item() == 0
    assert random.getstate() == state, "a term of weight 0 is not computed"


@pytest.mark.parametrize("name", ["lambda_x", "lambda_1", "lambda_2"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_weights_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        KDloss(**{name: value})


def test_odd_channels_name_the_layer() -> None:
    encoder, decoder, final = maps(2)
    encoder[1][0] = torch.randn(2, 7, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"encoder\[1\]\[0\].*C = 7"):
        KDloss()(encoder, decoder, final)


def test_impossible_features_are_refused() -> None:
    encoder, decoder, final = maps(2)
    with pytest.raises(ValueError, match="expected a tensor \\(B, C, H, W\\)"):
        intra_fd(torch.randn(2, 4))
    with pytest.raises(ValueError, match="decoder"):
        KDloss()(encoder, [], final)
    with pytest.raises(ValueError, match="same batch size"):
        KDloss()(encoder, decoder, final[:1])
    with pytest.raises(ValueError, match="teacher"):
        KDloss()(encoder, decoder, final[0, 0])
    with pytest.raises(TypeError, match=r"kd\(\*features\)"):
        KDloss()(Features(encoder, decoder, final))


def test_no_numpy_randomness() -> None:
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    encoder, decoder, final = maps(2)
    KDloss()(encoder, decoder, final)
    assert (np.random.get_state()[1] == state).all()
