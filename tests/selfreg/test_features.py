"""FeatureTap on networks that are not ours: names, order, errors, and that it changes nothing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from selfreg import FeatureTap, TapSpec


class Foreign(nn.Module):
    """Two levels, nothing of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1))
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Conv2d(4, 2, 1)
        self.unused = nn.Conv2d(1, 1, 1)
        self.pair = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.down(x))
        self.pair(x)
        return self.head(x)


SPEC = TapSpec(encoder=["down.0", ["down.1"]], decoder=["up"], final="head", final_side="input")


def test_reads_what_the_spec_names() -> None:
    network = Foreign()
    x = torch.randn(2, 1, 8, 8)
    logits, features = FeatureTap(network, SPEC)(x)
    assert torch.equal(logits, network(x))
    assert [[tuple(f.shape) for f in stage] for stage in features.encoder] == [[(2, 4, 8, 8)], [(2, 8, 4, 4)]]
    assert torch.equal(features.encoder[1][0], network.down(x))
    assert torch.equal(features.decoder[0][0], features.final)


def test_leaves_no_hook_behind() -> None:
    network = Foreign()
    tap = FeatureTap(network, SPEC)
    tap(torch.randn(1, 1, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    with pytest.raises(RuntimeError):
        tap(torch.randn(1, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    pickle.loads(pickle.dumps(network))
    copied = copy.deepcopy(tap)
    assert copied.network is not network
    copied(torch.randn(1, 1, 8, 8))


def test_channels_last_blocks_come_channels_first() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(6, 4), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.b(self.a(x)).movedim(-1, 1))

    spec = TapSpec(encoder=["a"], decoder=["b"], final="out", final_side="input", channels_last=True)
    _, features = FeatureTap(Last(), spec)(torch.randn(2, 5, 7, 4))
    assert features.encoder[0][0].shape == (2, 6, 5, 7)
    assert features.final.shape == (2, 4, 5, 7)


def test_gradient_flows_through_tapped_features() -> None:
    network = Foreign()
    _, features = FeatureTap(network, SPEC)(torch.randn(1, 1, 8, 8))
    features.encoder[0][0].sum().backward()
    assert network.down[0].weight.grad is not None


def test_a_wrong_name_offers_close_ones() -> None:
    with pytest.raises(ValueError, match=r"'down\.3'.*down\.0"):
        FeatureTap(Foreign(), TapSpec(encoder=["down.3"], decoder=["up"], final="head"))


def test_a_module_that_does_not_run() -> None:
    with pytest.raises(ValueError, match="'unused' did not run"):
        FeatureTap(Foreign(), TapSpec(encoder=["unused"], decoder=["up"], final="head"))(torch.randn(1, 1, 8, 8))


def test_a_module_that_gives_no_tensor() -> None:
    with pytest.raises(ValueError, match="'pair' gave a tuple"):
        FeatureTap(Foreign(), TapSpec(encoder=["pair"], decoder=["up"], final="head"))(torch.randn(1, 1, 8, 8))


def test_a_network_without_a_spec() -> None:
    with pytest.raises(ValueError, match="declares no tap_spec"):
        FeatureTap(Foreign())


def test_impossible_specs() -> None:
    with pytest.raises(ValueError, match="decoder"):
        TapSpec(encoder=["a"], decoder=[], final="b")
    with pytest.raises(ValueError, match="final_side"):
        TapSpec(encoder=["a"], decoder=["b"], final="c", final_side="middle")
