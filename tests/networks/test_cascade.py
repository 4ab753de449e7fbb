"""PVT-CASCADE and TransCASCADE: the decoder's formulas, the tapped layers, embeddings, the ImageNet starts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import Block, PyramidVisionTransformerV2
from torch import Tensor, nn

from networks import load_weights
from networks.cascade_decoder import AttentionGate, ChannelAttention, SpatialAttention
from networks.pvt_v2 import PVTv2
from selfreg import FeatureTap
from tests.networks.small import SMALL, build_small, settled

BOTH = pytest.mark.parametrize("name", ["pvt_cascade", "trans_cascade"])
POSITIONS = "transformer.embeddings.position_embeddings"
PVT = {key: value for key, value in SMALL["pvt_cascade"].items() if key != "img_size"}


def image(name: str, channels: int = 1) -> Tensor:
    side = SMALL[name]["img_size"]
    return torch.randn(2, channels, side, side)


def equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# The decoder's parts


def test_channel_attention_is_its_formula() -> None:
    torch.manual_seed(0)
    part, x = ChannelAttention(32), torch.randn(2, 32, 5, 3)
    assert part.fc1.weight.shape == (2, 32, 1, 1)
    first, second = part.fc1.weight.flatten(1), part.fc2.weight.flatten(1)
    for b in range(2):
        scores = [second @ torch.relu(first @ pooled) for pooled in (x[b].mean((1, 2)), x[b].amax((1, 2)))]
        expected = x[b] * torch.sigmoid(sum(scores))[:, None, None]
        assert torch.allclose(part(x)[b], expected, atol=1e-6)


def test_the_maximum_of_a_flat_channel_sends_its_gradient_to_one_pixel() -> None:
    """As adaptive max pooling does; `amax` would split it among equal pixels, of which a ReLU leaves many."""
    part = ChannelAttention(16)
    nn.init.constant_(part.fc1.weight, 0.1)  # above the ReLU
    flat = torch.ones(1, 16, 4, 4, requires_grad=True)
    pooled = F.adaptive_avg_pool2d(flat, 1), F.adaptive_max_pool2d(flat, 1)
    expected = flat * torch.sigmoid(sum(part.fc2(F.relu(part.fc1(value))) for value in pooled))
    gradients = [torch.autograd.grad(y.square().sum(), flat)[0] for y in (part(flat), expected)]
    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].std() > 0


def test_spatial_attention_is_its_formula() -> None:
    torch.manual_seed(0)
    part, x = SpatialAttention(), torch.randn(2, 6, 9, 8)
    padded = F.pad(torch.stack([x.mean(1), x.amax(1)], dim=1), (3, 3, 3, 3))
    for i, j in ((0, 0), (4, 5), (8, 7)):
        score = (part.conv1.weight[0] * padded[:, :, i : i + 7, j : j + 7]).sum((1, 2, 3))
        assert torch.allclose(part(x)[:, :, i, j], x[:, :, i, j] * torch.sigmoid(score)[:, None], atol=1e-6)


def test_attention_gate_is_its_formula() -> None:
    torch.manual_seed(0)
    part = AttentionGate(6, 4).eval()
    gate, skip = torch.randn(2, 6, 3, 3), torch.randn(2, 6, 3, 3)

    def linear(layers: nn.Sequential, x: Tensor) -> Tensor:
        """1x1 convolution and fresh batch norm at one pixel."""
        return (x @ layers[0].weight.flatten(1).T + layers[0].bias) / (1 + layers[1].eps) ** 0.5

    for i, j in ((0, 0), (1, 2)):
        agreement = torch.relu(linear(part.W_g, gate[:, :, i, j]) + linear(part.W_x, skip[:, :, i, j]))
        expected = skip[:, :, i, j] * torch.sigmoid(linear(part.psi, agreement))
        assert torch.allclose(part(gate, skip)[:, :, i, j], expected, atol=1e-6)


def test_pvt_is_the_library_s_under_other_names() -> None:
    """timm's PVTv2 with our weights gives our maps."""
    torch.manual_seed(0)
    ours, theirs = PVTv2(**PVT).eval(), PyramidVisionTransformerV2(num_classes=0, **PVT).eval()
    state = {}
    for key, value in ours.state_dict().items():
        part, rest = key.replace("dwconv.dwconv", "dwconv").split(".", 1)
        name, stage = part[:-1], int(part[-1]) - 1
        if name == "patch_embed":
            state["patch_embed." + rest if stage == 0 else f"stages.{stage}.downsample.{rest}"] = value
        else:
            state[f"stages.{stage}." + {"block": "blocks", "norm": "norm"}[name] + f".{rest}"] = value
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 64, 96)
    for a, b in zip(ours(x), theirs.forward_intermediates(x, intermediates_only=True), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


# The networks


@BOTH
def test_tapped_maps_lie_on_the_way_to_the_logits(name: str) -> None:
    network, x = settled(build_small(name)), image(name)
    logits, features = FeatureTap(network)(x)
    side = SMALL[name]["img_size"]
    # The pooling of the published residual network pads nothing: its map at /4 is one row and one column short.
    strides, short = {"pvt_cascade": ((4, 8, 16, 32), 0), "trans_cascade": ((2, 4, 8, 16), 1)}[name]
    sides = [side // stride for stride in strides]
    assert [stage[0].shape[-1] for stage in features.encoder] == [sides[0], sides[1] - short, *sides[2:]]
    assert [stage[0].shape[-1] for stage in features.decoder] == sides[:0:-1]
    last, corners = network.get_submodule(network.head_prefix[3].removesuffix(".")), network.align_corners
    expected = F.interpolate(last(features.final), size=(side, side), mode="bilinear", align_corners=corners)
    assert torch.equal(logits[3], expected), "the final map is what the last head reads"


@BOTH
def test_one_channel_becomes_three_by_a_convolution(name: str) -> None:
    network, x = settled(build_small(name)), image(name)
    with torch.no_grad():
        network.conv[0].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
        three = network.conv(x)
    assert equal(network(x), network(three)), "three channels are taken as they are, one becomes three"
    assert not torch.equal(three[:, 0], three[:, 1])


def test_pvt_takes_other_sizes_than_its_own() -> None:
    network = build_small("pvt_cascade").eval()
    assert network(torch.randn(1, 1, 40, 100))[0].shape == (1, 5, 40, 100)
    with pytest.raises(ValueError, match=r"pvt_cascade: got an input of shape .* sides of at least 33"):
        network(torch.randn(1, 1, 64, 32))


def test_stochastic_depth_rises_linearly() -> None:
    network = build_small("pvt_cascade", depths=(1, 2, 1, 1), drop_path_rate=0.2)
    blocks = [m for m in network.modules() if isinstance(m, Block)]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


# Embeddings: kept, or made anew at every forward as the published code does


def test_embeddings_are_kept() -> None:
    network, x = settled(build_small("trans_cascade")), image("trans_cascade")
    state = torch.get_rng_state()
    assert equal(network(x), network(x))
    assert torch.equal(torch.get_rng_state(), state), "a forward in eval mode draws no random number"


def test_recreated_embeddings_are_fresh_ones_of_the_generator() -> None:
    recreating, x = settled(build_small("trans_cascade", recreate_embeddings=True)), image("trans_cascade")
    before = copy.deepcopy(recreating.state_dict())
    assert not equal(recreating(x), recreating(x)), "every forward draws anew"
    torch.manual_seed(5)
    found = recreating(x)
    assert all(torch.equal(v, before[k]) for k, v in recreating.state_dict().items())
    kept = build_small("trans_cascade", seed=1).eval()
    kept.load_state_dict(before)
    torch.manual_seed(5)
    kept.transformer.embeddings.patch_embeddings = nn.Conv2d(128, 16, kernel_size=1)
    nn.init.zeros_(kept.transformer.embeddings.position_embeddings)
    assert equal(found, kept(x))


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_recreated_embeddings_leave_the_kept_ones_untrained(use_checkpoint: bool) -> None:
    network = build_small("trans_cascade", recreate_embeddings=True, use_checkpoint=use_checkpoint).train()
    logits, features = FeatureTap(network)(image("trans_cascade"))
    assert len(features.encoder) == 4
    sum(p.square().mean() for p in logits).backward()
    untrained = {name for name, p in network.named_parameters() if p.grad is None}
    assert untrained == {POSITIONS} | {f"transformer.embeddings.patch_embeddings.{k}" for k in ("weight", "bias")}


# Weights from elsewhere


def classifier(**options: object) -> dict[str, Tensor]:
    """A PVTv2 classifier as the public file holds it."""
    torch.manual_seed(3)
    state = PVTv2(**{**PVT, **options}).state_dict()
    return state | {"head.weight": torch.zeros(1000, 16), "head.bias": torch.zeros(1000)}


def test_pvt_starts_from_the_classifier(tmp_path: Path) -> None:
    state, network = classifier(), build_small("pvt_cascade")
    before = copy.deepcopy(network.state_dict())
    torch.save(state, tmp_path / "pvt_v2_b2.pth")
    report = load_weights(network, tmp_path / "pvt_v2_b2.pth")
    assert set(report.skipped) == {"head.weight", "head.bias"}
    assert report.loaded == tuple(k for k in before if k.startswith("backbone."))
    for key, value in network.state_dict().items():
        assert torch.equal(value, state.get(key.removeprefix("backbone."), before[key])), key


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depths": (1, 1, 2, 1)}, "fills 0% of the weights"),  # has every name of ours, and more
        ({"embed_dims": (8, 8, 16, 32)}, "has shape"),
    ],
)
def test_pvt_refuses_a_classifier_of_another_size(tmp_path: Path, options: dict, message: str) -> None:
    torch.save(classifier(**options), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"w.pth: is of another network: .*{message}"):
        load_weights(build_small("pvt_cascade"), tmp_path / "w.pth")


def test_trans_starts_from_the_arrays_of_its_encoder() -> None:
    """Names and layout are tested with TransUNet, which has the same encoder."""
    network = build_small("trans_cascade")
    state = {
        "conv_root/kernel": torch.randn(7, 7, 3, 8),
        "embedding/kernel": torch.randn(1, 1, 128, 16),
        "Transformer/posembed_input/pos_embedding": torch.randn(1, 5, 16),
    }
    start = network.from_imagenet(state)
    assert start is not None and start.required == ("transformer.",)
    own = network.state_dict()
    assert len(start.tensors) == 3 and all(v.shape == own[k].shape for k, v in start.tensors.items())
