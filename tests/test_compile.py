"""torch.compile: the same numbers and features from one graph, and a clear line where no compiler is found."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import train as train_command
from losses import Criterion
from networks import build_network, list_networks
from selfreg import FeatureTap, KDloss, TapSpec
from tests.conftest import SMALL, train
from tests.networks.small import CALM
from tests.networks.small import SMALL as SMALL_NETWORKS
from utils import check_compiler, sum_heads


def same(ours: tuple, theirs: tuple) -> None:
    """Logits and features alike but for the order of sums."""
    torch.testing.assert_close(sum_heads(ours[0]), sum_heads(theirs[0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tuple(ours[1]), tuple(theirs[1]), rtol=1e-4, atol=1e-5)


@pytest.fixture
def graphs() -> list[int]:
    """One entry a graph that was compiled."""
    torch._dynamo.reset()
    return []


def counting(graphs: list[int]) -> Callable:
    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        graphs.append(len(inputs))
        return graph.forward

    return backend


@pytest.mark.parametrize(
    "name",
    [name if "unet" in name else pytest.param(name, marks=pytest.mark.long) for name in list_networks()],
)
def test_a_tapped_network_is_one_graph(name: str, graphs: list[int]) -> None:
    network = build_network(name, num_classes=3, **SMALL_NETWORKS[name], **CALM[name]).train()
    side = SMALL_NETWORKS[name]["img_size"]
    first, second = torch.randn(2, 2, 1, side, side)
    tap = FeatureTap(network)
    expected = tap(first), tap(second)
    network.compile(backend=counting(graphs))
    same(tap(first), expected[0])
    same(tap(second), expected[1])  # the features of this pass, not of the one that was traced
    assert len(graphs) == 1
    network.eval()(second)  # as a validation does between two epochs
    network.train()
    same(tap(first), expected[0])
    assert len(graphs) == 2


def test_tapped_and_plain_calls_of_one_class(graphs: list[int]) -> None:
    """Whoever is called first, in one mode: each network's own features, by one graph, and one more without a tap."""
    networks = [build_network("unet", num_classes=3, **SMALL_NETWORKS["unet"]).train() for _ in range(3)]
    x, taps = torch.randn(2, 1, 32, 32), [FeatureTap(network) for network in networks]
    expected, backend = [tap(x) for tap in taps], counting(graphs)
    for network in networks:
        network.compile(backend=backend)
    networks[0](x)
    for _ in range(2):
        for tap, own in zip(taps, expected, strict=True):
            same(tap(x), own)
            same((tap.network(x), ()), (own[0], ()))
    assert len(graphs) == 2


def test_gradients_through_the_compiled_tap(graphs: list[int]) -> None:
    network = build_network("unet", num_classes=3, **SMALL_NETWORKS["unet"]).train()
    x, gradients = torch.randn(2, 1, 32, 32), []
    for compiled in (False, True):
        if compiled:
            network.compile(backend=counting(graphs))
        network.zero_grad()
        logits, features = FeatureTap(network)(x)
        (logits.square().mean() + sum(stage[0].square().mean() for stage in features.encoder)).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list_networks())
def test_tap_network_and_loss_are_one_graph(name: str, graphs: list[int]) -> None:
    network = build_network(name, num_classes=3, **SMALL_NETWORKS[name], **CALM[name]).train()
    side, criterion = SMALL_NETWORKS[name]["img_size"], Criterion(3, kd=KDloss(0.1))
    images, label = torch.randn(3, 2, 1, side, side), torch.randint(3, (2, side, side))
    tap = FeatureTap(network, permanent=True)

    def step(image: Tensor, draws: Tensor) -> Tensor:
        logits, features = tap(image)
        return criterion(logits, label, features, draws=draws)["loss"]

    compiled = torch.compile(step, backend=counting(graphs), fullgraph=True)
    draw = criterion.drawer(tap(images[0])[1])
    assert draw is not None
    for image in images:
        draws = draw()
        expected = torch.autograd.grad(step(image, draws), list(network.parameters()), allow_unused=True)
        found = torch.autograd.grad(compiled(image, draws), list(network.parameters()), allow_unused=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
    network(images[0])  # called plainly, nothing is kept
    assert not tap._calls


def test_channels_that_are_drawn_before_are_those_of_the_step() -> None:
    """In the same order of Python's generator, whatever the numbers in the maps."""
    maps = [[torch.randn(2, channels, 4, 4) for _ in range(2)] for channels in (4, 6)]
    kd, final = KDloss(), torch.randn(2, 5, 8, 8)
    random.seed(3)
    expected = [kd(maps, maps[:1], final) for _ in range(2)]
    random.seed(3)
    draw = kd.drawer([[torch.zeros_like(f) for f in stage] for stage in maps], maps[:1], final)
    assert [kd(maps, maps[:1], final, draws=draw()) for _ in range(2)] == expected and expected[0] != expected[1]


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler is here")
def test_with_a_real_compiler() -> None:
    torch._dynamo.reset()
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 2, 1))
    tap = FeatureTap(network, TapSpec(encoder=["0"], decoder=["1"], final="2", final_side="input"))
    x = torch.randn(1, 1, 8, 8)
    expected = tap(x)
    network.compile()
    same(tap(x), expected)


def test_the_flag_trains(
    synapse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: list[int], refused: Callable
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting(graphs)))
    runs = {"run": ["--compile"], "plain": []}
    assert [train(synapse, tmp_path / name, *words, "--val_cases", 1) for name, words in runs.items()] == [0, 0]
    weights = [torch.load(tmp_path / name / "best.pth", weights_only=True) for name in runs]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)
    assert graphs
    assert all(not key.startswith("_orig_mod") for key in torch.load(tmp_path / "run/best.pth", weights_only=True))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    words = ["--dataset", "Synapse", "--root_path", synapse, "--output_dir", tmp_path / "other", "--compile", *SMALL]
    assert "--compile: no compiler was found (searched for" in refused(train_command.main, words)
    assert not (tmp_path / "other").exists()


def test_the_compiler_that_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="searched for no-such-compiler"):
        check_compiler(torch.device("cpu"))
