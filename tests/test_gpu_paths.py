"""Whole commands and every part of a step on a GPU, real or pretended: equal to the CPU, launches and waits bounded."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from losses import Criterion, KDloss
from networks import build_network, list_networks
from selfreg import FeatureTap
from tests.networks.small import CALM, SMALL, build_small
from tests.pretended_gpu import Seen, is_there, on_cpu

CLASSES = 5


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


@pytest.mark.long
@pytest.mark.parametrize("name", list_networks())
def test_launches_of_the_published_network(name: str, gpu: Seen, record_property: Callable[[str, str], None]) -> None:
    """The table of docs/performance.md."""
    network, label = build_network(name, num_classes=9).train().to("cuda"), torch.zeros(1, 224, 224, dtype=torch.uint8)
    counts = {}
    for kd in (KDloss(0), KDloss()):
        criterion = Criterion(9, kd=kd)
        with gpu.during() as forward:
            logits, features = FeatureTap(network)(torch.randn(1, 1, 224, 224).to("cuda"))
        with gpu.during() as loss:
            terms = criterion(logits, label.to("cuda"), features)
        with gpu.during() as backward:
            terms["loss"].backward()
        counts["with" if kd.lambda_1 else "without"] = loss.launched, backward.launched
    (plain, back), (ours, our_back) = counts["without"], counts["with"]
    line = f"{name}: forward {forward.launched}, criterion {plain} / {ours}, backward {back} / {our_back}"
    record_property("counted", f"launches without / with the regularizer, {line}")
