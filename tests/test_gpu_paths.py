"""Whole commands and every part of a step on a GPU, real or pretended: equal to the CPU, launches and waits bounded."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import test
from analysis import gradcam, similarity
from datasets.case import Sample
from datasets.loader import build_loader
from engine.distributed import Ranks
from engine.logger import MetricLogger
from evaluation.metrics import compare_at_spacings
from evaluation.predict import fitting_batch_size, predict_volume
from losses import Criterion, KDloss
from networks import build_network, layers, list_networks
from scripts import export_weights
from selfreg import FeatureTap
from tests.conftest import make_case, train
from tests.networks.small import CALM, SMALL, build_small
from tests.pretended_gpu import Seen, is_there, on_cpu
from trainer import Schedule, Trainer
from utils import seed_everything

CLASSES = 5


def test_whole_commands(synapse: Path, tmp_path: Path, gpu: Seen) -> None:
    """Train, stop, resume, test, predict, analyze and export: the weights and masks of the CPU."""
    outs, scan = {device: tmp_path / device for device in ("cuda", "cpu")}, tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(make_case(7, (40, 40, 3))[0] * 400 - 125, np.eye(4)), scan)
    for device, out in outs.items():
        device_words = ["--n_gpu", int(device == "cuda")]
        for more in ([], ["--resume", "--max_epochs", 3]):
            assert train(synapse, out, "--val_cases", 1, *device_words, *more) == 0
        assert test.main(["--output_dir", str(out)]) == 0
        assert test.main(["--output_dir", str(out), "--input", str(scan), "--output", str(out / "predicted")]) == 0
        assert "batch_size" in (out / "report.html").read_text(encoding="utf-8")
        for command in (gradcam, similarity):
            assert command.main(["--checkpoint", str(out), "--output", str(out / "analysis")]) == 0
        assert export_weights.main([str(out), str(out / "exported.pth")]) == 0
    assert "cuda:0" in (outs["cuda"] / "log.txt").read_text(encoding="utf-8")
    weights = [torch.load(out / "best.pth", weights_only=True) for out in outs.values()]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)
    for name in ("predictions/case0100.nii.gz", "predicted/predictions/scan.nii.gz"):
        found = [nib.load(out / name).get_fdata() for out in outs.values()]
        assert (found[0] == found[1]).mean() > 0.99, name
    assert gpu.launched


def test_the_device_refuses_what_a_gpu_refuses(gpu: Seen) -> None:
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert there.device == torch.device("cuda", 0) and is_there(there + 1) and not is_there(there.cpu())
    mistakes = [
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: here[torch.zeros(1, dtype=torch.long, device="cuda")],
        lambda: there @ here,
    ]
    for mistake in mistakes:
        with pytest.raises(RuntimeError, match="cuda"):
            mistake()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with gpu.during() as seen:
        assert float(there.sum()) == 3 and len(there.nonzero()) == 3 and there[there > 0].shape == (3,)
    assert seen.waited == 3


def step(network: nn.Module, image: Tensor, label: Tensor) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    """A forward and a backward pass; returns the terms of the loss and the gradients."""
    random.seed(0)
    logits, features = FeatureTap(network)(image)
    terms = Criterion(CLASSES, kd=KDloss(0.1))(logits, label, features)
    terms["loss"].backward()
    return terms, [p.grad for p in network.parameters()]


@pytest.mark.parametrize("name", list_networks())
def test_a_step_is_that_of_the_cpu_and_waits_for_nothing(name: str, gpu: Seen) -> None:
    network = build_small(name, **CALM[name]).train()
    side = SMALL[name]["img_size"]
    image, label = torch.randn(2, 1, side, side), torch.randint(CLASSES, (2, side, side), dtype=torch.uint8)
    expected = step(copy.deepcopy(network), image, label)
    network.to("cuda")
    image, label = image.to("cuda"), label.to("cuda")
    with gpu.during() as seen:
        terms, gradients = step(network, image, label)
    assert not seen.waited, seen.waits
    assert all(map(is_there, (*network.parameters(), *network.buffers())))
    torch.testing.assert_close(on_cpu(dict(terms)), dict(expected[0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(on_cpu(gradients), expected[1], rtol=1e-3, atol=1e-4)


def test_a_prediction_leaves_matrices_that_can_be_trained_with() -> None:
    """A run that resumes in its validation predicts first."""
    with torch.inference_mode():
        matrix = layers._interpolation(5, 11, True, torch.device("cpu"))
    image = torch.randn(1, 1, 5, 3, requires_grad=True)
    (matrix @ image).sum().backward()
    assert image.grad is not None


# Of what the networks and losses might call, those that CUDA adds up in any order; index_put sorts in this mode.
UNREPEATABLE = {
    "_adaptive_avg_pool2d_backward",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "nll_loss2d_forward",
    "scatter_add_",
    "upsample_bilinear2d_backward",
}


@pytest.mark.parametrize("name", list_networks())
def test_a_deterministic_step_has_no_sum_in_any_order(name: str, gpu: Seen) -> None:
    network, side = build_small(name, **CALM[name]).train(), SMALL[name]["img_size"]
    image, label = torch.randn(2, 1, side, side), torch.randint(CLASSES, (2, side, side), dtype=torch.uint8)
    expected = step(copy.deepcopy(network), image, label)
    seed_everything(1, deterministic=True)
    network, image, label = (part.to("cuda") for part in (network, image, label))
    with gpu.during() as seen:
        found = step(network, image, label)
    assert not seen.launches.keys() & UNREPEATABLE
    assert not seen.waited, seen.waits
    torch.testing.assert_close(on_cpu(dict(found[0])), dict(expected[0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(on_cpu(found[1]), expected[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["swin_unet", "unet"])
def test_the_regularizer_launches_little_whatever_the_batch(name: str, gpu: Seen) -> None:
    tap, side, kd = FeatureTap(build_small(name).train().to("cuda")), SMALL[name]["img_size"], KDloss()
    launched = []
    for batch in (1, 3):
        _, features = tap(torch.randn(batch, 1, side, side).to("cuda"))
        with gpu.during() as seen:
            kd(*features)
        launched.append(seen.launched)
    assert launched[0] == launched[1] <= 120


def test_a_step_of_training_waits_twice(gpu: Seen, tmp_path: Path) -> None:
    """For the loss and for the norm of the gradient, which decide whether it is taken."""
    waited = []
    for steps in (2, 5):
        network = build_small("unet").to("cuda")
        trainer = Trainer(
            network,
            Criterion(CLASSES, kd=KDloss()),
            torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, fused=True),
            build_loader(Slices((40, 40)), size=(32, 32), batch_size=1, seed=1, device="cuda"),
            Schedule(epochs=1, steps_per_epoch=6, base_lr=0.01, max_steps=steps),
            tmp_path,
            MetricLogger(None, steps),
            ranks=Ranks(device=torch.device("cuda", 0)),
        )
        with gpu.during() as seen:
            trainer.fit()
        waited.append(seen.waited)
    assert waited[1] - waited[0] <= 2 * 3, seen.waits


@pytest.mark.long
@pytest.mark.parametrize("name", list_networks())
def test_launches_of_the_published_network(name: str, gpu: Seen, record_property: Callable[[str, str], None]) -> None:
    """The table of docs/performance.md."""
    network = build_network(name, num_classes=9).train().to("cuda")
    label = torch.zeros(1, 224, 224, dtype=torch.uint8).to("cuda")
    counts = {}
    for kd in (KDloss(0), KDloss()):
        criterion = Criterion(9, kd=kd)
        with gpu.during() as forward:
            logits, features = FeatureTap(network)(torch.randn(1, 1, 224, 224).to("cuda"))
        with gpu.during() as loss:
            terms = criterion(logits, label, features)
        with gpu.during() as backward:
            terms["loss"].backward()
        counts["with" if kd.lambda_1 else "without"] = loss.launched, backward.launched
    (plain, back), (ours, our_back) = counts["without"], counts["with"]
    line = f"{name}: forward {forward.launched}, criterion {plain} / {ours}, backward {back} / {our_back}"
    record_property("counted", f"launches without / with the regularizer, {line}")


class Slices(Dataset):
    """Six slices, of one shape or of several."""

    names = [str(index) for index in range(6)]
    num_classes = CLASSES

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        self.shapes = shapes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        rng, shape = np.random.default_rng(index), self.shapes[index % len(self.shapes)]
        label = rng.integers(0, CLASSES, shape[-2:], np.uint8)
        return Sample(rng.random(shape, np.float32), label, self.names[index])


@pytest.mark.parametrize("shapes", [[(40, 40)], [(40, 44), (48, 36)], [(3, 40, 44)]], ids=str)
def test_batches_are_those_of_the_cpu_and_nobody_waits(shapes: list[tuple[int, ...]], gpu: Seen) -> None:
    loaders = [build_loader(Slices(*shapes), size=(32, 24), batch_size=6, seed=1, device=d) for d in ("cpu", "cuda")]
    counts = []
    for epoch in range(6):
        for loader in loaders:
            loader.sampler.epoch = epoch
        (expected,) = loaders[0]
        with gpu.during() as first:
            (found,) = loaders[1]
        with gpu.during() as again:  # its tables are there
            (found,) = loaders[1]
        counts.append(again.launched)
        assert first.waited == again.waited == 0, (first.waits, again.waits)
        assert is_there(found.image) and is_there(found.label) and found.names == expected.names
        torch.testing.assert_close(on_cpu(found.image), expected.image, rtol=0, atol=1e-6)
        assert torch.equal(on_cpu(found.label), expected.label)
    assert max(counts) <= (20 if len(shapes) == 1 else 50), counts


def test_a_slice_that_cannot_be_read_costs_no_step(gpu: Seen) -> None:
    class Broken(Slices):
        def __getitem__(self, index: int) -> Sample:
            if index == order[4]:
                raise ValueError("damaged")
            return super().__getitem__(index)

    loader = build_loader(Broken((40, 40)), size=(32, 32), batch_size=2, seed=1, device="cuda")
    order = np.random.default_rng([1, 0]).permutation(6).tolist()
    batches = iter(loader)
    assert [next(batches).names for _ in range(2)] == [[str(index) for index in order[i : i + 2]] for i in (0, 2)]
    with pytest.raises(ValueError, match="damaged"):
        next(batches)


@pytest.mark.parametrize("overlap", [None, 0.5])
def test_a_volume_is_labeled_and_measured_as_on_the_cpu(overlap: float | None, gpu: Seen) -> None:
    network, rng = build_small("unet").eval(), np.random.default_rng(0)
    image, truth = rng.random((5, 50, 44), np.float32), rng.integers(0, CLASSES, (5, 50, 44), np.uint8)
    how = {"img_size": 32, "batch_size": 4, "overlap": overlap}
    expected = predict_volume(network, image, **how)
    network.to("cuda")
    with gpu.during() as seen:
        found = predict_volume(network, image, device="cuda", **how)
    np.testing.assert_array_equal(found, expected)
    assert seen.waited <= 2, seen.waits  # for the labels of two batches
    spacings = [None, (3.0, 0.7, 0.8)]
    with gpu.during() as seen:
        ours = compare_at_spacings(torch.from_numpy(found).to("cuda"), truth, CLASSES, spacings)
    assert seen.waited <= 30, seen.waits
    assert ours == compare_at_spacings(expected, truth, CLASSES, spacings)


def test_a_batch_takes_half_of_the_free_memory(gpu: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    network, sizes = build_small("unet").to("cuda"), []
    for free in (-(2**40), 2**34, 2**50):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, 2**50))
        sizes.append(fitting_batch_size(network, (1, 32, 32), torch.device("cuda")))
    assert sizes[0] == 1 <= sizes[1] <= 64 == sizes[2]
    assert network.training and fitting_batch_size(network.cpu(), (1, 32, 32), torch.device("cpu")) == 4
