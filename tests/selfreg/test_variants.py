"""The rivals of the two terms against their formulas, where their gradient goes, and trainings with them."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from engine.logger import MetricLogger
from networks import build_network
from selfreg import FeatureTap, KDloss, inter_fd
from selfreg.variants import DeepSupervision, MeanTeacher, attention_transfer, decorrelation, mean_channel
from tests.reliability.runs import assert_same_run, last
from tests.selfreg.test_kdloss import maps


def maps_of(channels: int, seed: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, 5, 6, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("students", [4, 9], ids=["fewer channels", "more channels"])
def test_the_mean_channel_is_the_pairing_in_expectation(students: int) -> None:
    student, teacher = maps_of(students, 1), maps_of(6, 2).detach()
    (expected,) = torch.autograd.grad(mean_channel(student, teacher), student)
    random.seed(3)
    draws = 4000
    values = torch.stack([inter_fd(student, teacher) for _ in range(draws)])
    (found,) = torch.autograd.grad(values.mean(), student)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * expected.abs().max().item())
    variance = teacher.var(dim=1, unbiased=False).mean()  # what has no gradient
    assert values.mean().item() == pytest.approx((mean_channel(student, teacher) + variance).item(), rel=0.01)


def test_attention_transfer_against_its_formula() -> None:
    student, teacher = maps_of(4, 1), maps_of(7, 2)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        q = [sum(c.square() for c in f) / len(f) for f in (s, t)]
        a, b = (one / one.square().sum().sqrt() for one in q)
        total += (a - b).square().sum().item() / len(student)
    assert attention_transfer(student, teacher).item() == pytest.approx(total, rel=1e-12)
    assert attention_transfer(student, 3 * student).item() == pytest.approx(0, abs=1e-15)


def test_decorrelation_against_its_formula() -> None:
    f = maps_of(5, 1)
    channels = f.detach().transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(channels)
    off = sum(correlation[i, j].item() ** 2 for i in range(5) for j in range(5) if i != j)
    assert decorrelation(f).item() == pytest.approx(off / 5, rel=1e-12)
    same = f.detach()[:, :1].expand(-1, 4, -1, -1)
    assert decorrelation(same).item() == pytest.approx(3, rel=1e-12), "equal channels"
    constant = torch.ones(2, 3, 4, 4, requires_grad=True)
    decorrelation(constant).backward()
    assert decorrelation(constant).item() == 0 and constant.grad is not None and constant.grad.isfinite().all()


@pytest.mark.parametrize("options", [{"scr": "mean"}, {"scr": "attention"}, {"ifd": "decorrelation"}])
@pytest.mark.parametrize("blocks", [1, 2])
def test_gradient_reaches_students_and_never_the_teacher(options: dict, blocks: int) -> None:
    encoder, decoder, final = maps(blocks)
    lambdas = {"lambda_1": 0.0 if "ifd" in options else 1.0, "lambda_2": 1.0 if "ifd" in options else 0.0}
    KDloss(**lambdas, **options)(encoder, decoder, final).backward()
    assert final.grad is None
    for stage in (*encoder, *decoder):
        assert stage[0].grad.abs().sum() > 0 and stage[-1].grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{"scr": "mean"}, {"scr": "attention"}])
def test_a_rival_draws_no_numbers(options: dict) -> None:
    encoder, decoder, final = maps(1)
    random.seed(1)
    state = random.getstate()
    KDloss(**options)(encoder, decoder, final)
    assert random.getstate() == state


@pytest.mark.parametrize("options", [{"scr": "median"}, {"ifd": "thirds"}])
def test_an_unknown_rival_is_refused(options: dict) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .*expected one of"):
        KDloss(**options)


def small_unet() -> nn.Module:
    torch.manual_seed(0)
    return build_network("unet", num_classes=3, img_size=32, width=4)


def test_an_averaged_teacher() -> None:
    network = small_unet()
    teacher = MeanTeacher(network, decay=0.75)
    first = {name: p.clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    image = torch.rand(2, 1, 32, 32)
    logits, features = FeatureTap(network)(image)
    kept, taught = teacher(image, logits, features)
    assert kept is logits and taught.encoder is features.encoder and not taught.final.requires_grad
    torch.testing.assert_close(taught.final, features.final.detach(), rtol=0, atol=1e-6)
    (logits.square().mean() + KDloss(1.0)(*taught)).backward()
    optimizer.step()
    teacher.update(network)
    assert all(p.grad is None for p in teacher.parameters())
    for (name, old), own, new in zip(first.items(), teacher.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(own, 0.75 * old + 0.25 * new, msg=name)
    for own, new in zip(teacher.average.buffers(), network.buffers(), strict=True):
        assert torch.equal(own, new)


@pytest.mark.parametrize("name", ["unet", "swin_unet"])
def test_deep_supervision(name: str) -> None:
    options = {"width": 4} if name == "unet" else {"embed_dim": 12, "num_heads": [1, 1, 2, 2]}
    network = build_network(name, num_classes=3, img_size=224, **options)
    image = torch.rand(2, 1, 224, 224)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    heads = DeepSupervision(network, 3, image)
    assert network.training and all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    logits, features = FeatureTap(network)(image)
    several, same = heads(image, logits, features)
    assert several[0] is logits and same is features
    assert [tuple(one.shape) for one in several] == [(2, 3, 224, 224)] * (1 + len(features.decoder))
    sum(one.square().mean() for one in several[1:]).backward()
    assert all(p.grad is not None for p in heads.parameters())
    with pytest.raises(ValueError, match="4 heads already"):
        DeepSupervision(build_network("pvt_cascade", num_classes=3, img_size=64), 3, torch.rand(1, 1, 64, 64))


_VARIANTS = {
    "mean channel": ["LOSS.SCR", "mean"],
    "attention": ["LOSS.SCR", "attention"],
    "decorrelation": ["LOSS.IFD", "decorrelation"],
    "average": ["LOSS.TEACHER", "average", "LOSS.TEACHER_DECAY", "0.5"],
    "augmentation": ["AUG.SCALE", "0.3", "AUG.ELASTIC", "0.02", "AUG.NOISE", "0.1", "AUG.GAMMA", "0.5"],
    "deep supervision": ["LOSS.DEEP_SUPERVISION", "True", "LOSS.LAMBDA_1", "0", "LOSS.LAMBDA_2", "0"],
}


@pytest.mark.parametrize("opts", _VARIANTS.values(), ids=_VARIANTS.keys())
def test_a_training_with_options_of_the_study_resumes_exactly(
    opts: list[str], synapse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "--root_path",
        str(synapse),
        *"--img_size 32 --batch_size 2 --max_epochs 2 --workers 0 --val_cases 0".split(),
    ]
    words += ["--cfg", "configs/unet_224.yaml", "--opts", *opts, "MODEL.UNET.WIDTH", "4"]

    def run(name: str, *flags: str) -> int:
        return train.main(["--output_dir", str(tmp_path / name), *flags, *words])

    assert run("whole") == 0
    log_step = MetricLogger.log_step

    def interrupted(self: MetricLogger, step: int, *rest: object) -> None:
        log_step(self, step, *rest)
        if step == 4:  # noted, and obeyed after the next batch
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricLogger, "log_step", interrupted)
        assert run("resumed") == 143
    assert last(tmp_path / "resumed")["step"] == 5, "of the six steps"
    assert run("resumed", "--resume") == 0
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")
    assert set(torch.load(tmp_path / "whole/best.pth")) == set(small_unet().state_dict()), "the network alone"
