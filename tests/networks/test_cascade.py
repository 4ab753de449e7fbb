"""PVT-CASCADE and TransCASCADE: equal to the published networks, the decoder's parts, any size, the ImageNet starts."""

from __future__ import annotations

import copy
import io
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses import KDloss
from networks import load_weights
from networks.cascade import PVTCascade, TransCascade
from networks.cascade_decoder import AttentionGate, ChannelAttention, SpatialAttention
from networks.pvt_v2 import PVTBlock, PVTv2
from selfreg import FeatureTap
from tests.reference import golden

PUBLISHED = {
    "pvt_cascade_nc9": (PVTCascade, {}),
    "trans_cascade_nc9_kept_embeddings": (TransCascade, {}),
    "trans_cascade_nc9_upstream_recreate": (TransCascade, {"recreate_embeddings": True}),
}
POSITIONS = "transformer.embeddings.position_embeddings"
SMALL = {
    PVTCascade: {
        "img_size": 64,
        "embed_dims": (8, 8, 16, 16),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 2, 2),
        "mlp_ratios": (2, 2, 2, 2),
    },
    TransCascade: {
        "img_size": 32,
        "hidden_size": 16,
        "num_heads": 2,
        "num_layers": 2,
        "mlp_dim": 24,
        "cnn_width": 8,
        "cnn_units": (1, 1, 1),
        "norm_groups": 4,
    },
}
BOTH = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.network)


def build(kind: type[nn.Module], seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    network = kind(num_classes=5, **{**SMALL[kind], **options})
    if kind is TransCascade:
        nn.init.normal_(network.transformer.embeddings.position_embeddings)  # zeros tell no place from another
    return network.eval()


def image(kind: type[nn.Module], batch: int = 2, channels: int = 1) -> Tensor:
    return torch.from_numpy(golden.normal(7, (batch, channels, SMALL[kind]["img_size"], SMALL[kind]["img_size"])))


def equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return len(ours) == len(theirs) == 4 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# The published networks


@pytest.fixture(scope="module")
def published() -> Iterator[Callable[[str], nn.Module]]:
    """The network of a set of figures; those of one class are one network, since they have the same weights."""
    built: dict[type[nn.Module], nn.Module] = {}

    def of(name: str) -> nn.Module:
        kind, options = PUBLISHED[name]
        if kind not in built:
            built[kind] = golden.fill_network(kind(num_classes=9)).eval()
        if kind is TransCascade:
            table = golden.normal(zlib.crc32(POSITIONS.encode()), (1, 196, 768)) * 0.02
            built[kind].load_state_dict({POSITIONS: torch.from_numpy(table)}, strict=False)
            built[kind].recreate_embeddings = options.get("recreate_embeddings", False)
        return built[kind].float()

    yield of


def here(part: str) -> list[object]:
    """The networks whose figures are here; the others are skipped, with the reason."""
    absent = pytest.mark.skip(reason="the published figures are not here")
    return [
        pytest.param(name, marks=() if golden.available(f"{part}/{name}") else absent, id=name) for name in PUBLISHED
    ]


@pytest.mark.parametrize("name", here("keys"))
def test_names_shapes_order_and_values(name: str, published: Callable[[str], nn.Module]) -> None:
    network, entries = published(name), golden.published_keys(name)
    state = network.state_dict()
    assert [(k, list(v.shape)) for k, v in state.items()] == [(e["key"], e["shape"]) for e in entries]
    assert sum(p.numel() for p in network.parameters()) == golden.figures(f"keys/{name}")["n_parameters"]
    for entry in entries:
        if "fill_sum" in entry:
            total = state[entry["key"]].double().sum().item()
            assert total == pytest.approx(entry["fill_sum"], rel=1e-9, abs=1e-9 * entry["fill_abssum"])


@pytest.mark.parametrize("name", here("forward"))
def test_logits(name: str, published: Callable[[str], nn.Module]) -> None:
    network, arrays = published(name), golden.arrays(f"forward/{name}")
    recorded = golden.figures(f"forward/{name}")["outputs"]
    outputs = ("p1", "p2", "p3", "p4", "sum_of_outputs")
    assert list(recorded) == [f"eval_s101__{output}" for output in outputs]
    for dtype, kind in (("f32", torch.float32), ("f64", torch.float64)):
        torch.manual_seed(101)  # of the embeddings that the published code draws
        with torch.no_grad():
            logits = network.to(kind)(golden.image(101, (2, 1, 224, 224), kind))
        for (key, entry), value in zip(recorded.items(), (*logits, sum(logits)), strict=True):
            assert list(value.shape) == entry["shape"]
            ours, theirs = golden.sampled(value, arrays, key, dtype)
            if dtype == "f64":
                assert golden.relative(ours, theirs) < 1e-9, key
            else:
                assert abs(ours - theirs).max() < 2e-5, key
            rel = {"f64": 1e-9, "f32": 1e-4}[dtype]
            assert value.double().abs().sum().item() == pytest.approx(entry[dtype]["abssum"], rel=rel), key


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


def test_the_maximum_of_a_flat_channel_sends_its_gradient_to_one_place() -> None:
    """As adaptive max pooling does; `amax` would share it among equal places, of which a ReLU leaves many."""
    torch.manual_seed(0)
    part, gradients = ChannelAttention(16), []
    nn.init.constant_(part.fc1.weight, 0.1)  # above the ReLU
    flat = torch.ones(1, 16, 4, 4, requires_grad=True)
    for pool in (part, lambda x: x * torch.sigmoid(_scores(part, x))):
        gradients.append(torch.autograd.grad(pool(flat).square().sum(), flat)[0])
    assert torch.allclose(*gradients, atol=1e-6)
    assert gradients[0].std() > 0


def _scores(part: ChannelAttention, x: Tensor) -> Tensor:
    pooled = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
    return sum(part.fc2(F.relu(part.fc1(value))) for value in pooled)


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
        """1x1 convolution and fresh batch norm at one place."""
        return (x @ layers[0].weight.flatten(1).T + layers[0].bias) / (1 + layers[1].eps) ** 0.5

    for i, j in ((0, 0), (1, 2)):
        agreement = torch.relu(linear(part.W_g, gate[:, :, i, j]) + linear(part.W_x, skip[:, :, i, j]))
        expected = skip[:, :, i, j] * torch.sigmoid(linear(part.psi, agreement))
        assert torch.allclose(part(gate, skip)[:, :, i, j], expected, atol=1e-6)


def test_pvt_is_the_library_s_under_other_names() -> None:
    """timm's PVTv2 with our weights gives our maps."""
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    torch.manual_seed(0)
    sizes = {k: SMALL[PVTCascade][k] for k in ("embed_dims", "depths", "num_heads", "mlp_ratios")}
    ours, theirs = PVTv2(**sizes).eval(), PyramidVisionTransformerV2(num_classes=0, **sizes).eval()
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


# What every network must do


@BOTH
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_four_maps_of_logits_in_both_modes(kind: type[nn.Module], batch: int, training: bool) -> None:
    logits = build(kind).train(training)(image(kind, batch))
    assert isinstance(logits, tuple)
    assert [p.shape for p in logits] == [(batch, 5, SMALL[kind]["img_size"], SMALL[kind]["img_size"])] * 4


@BOTH
def test_tap_changes_no_bit(kind: type[nn.Module]) -> None:
    network, x = build(kind), image(kind)
    logits, features = FeatureTap(network)(x)
    assert equal(logits, network(x))
    side = SMALL[kind]["img_size"]
    strides = (4, 8, 16, 32) if kind is PVTCascade else (2, 4, 8, 16)
    maps = [stage[0] for stage in features.encoder]
    # The pooling of the published residual network pads nothing: its map at /4 is one row and one column short.
    short = (0, 1, 0, 0) if kind is TransCascade else (0, 0, 0, 0)
    assert [m.shape[2:] for m in maps] == [(side // s - k,) * 2 for s, k in zip(strides, short, strict=True)]
    assert [stage[0].shape[2:] for stage in features.decoder] == [(side // s,) * 2 for s in strides[:0:-1]]
    assert all(stage[0].shape[1] % 2 == 0 for stage in [*features.encoder, *features.decoder])
    last = network.get_submodule(network.head_prefix[3].removesuffix("."))
    expected = F.interpolate(last(features.final), size=(side, side), mode="bilinear", align_corners=kind.align_corners)
    assert torch.equal(logits[3], expected), "the final map is what the last head reads"


@BOTH
def test_every_tapped_block_learns_from_the_final_map(kind: type[nn.Module]) -> None:
    _, features = FeatureTap(build(kind).train())(image(kind))
    students = [f for stage in [*features.encoder, *features.decoder] for f in stage]
    for f in [*students, features.final]:
        f.retain_grad()
    KDloss(lambda_1=1.0, lambda_2=0.0)(*features).backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in students)
    assert features.final.grad is None


@BOTH
def test_head_prefix_names_the_four_heads(kind: type[nn.Module]) -> None:
    network, other = build(kind), kind(num_classes=7, **SMALL[kind])
    theirs = other.state_dict()
    differing = [k for k, v in network.state_dict().items() if v.shape != theirs[k].shape]
    assert len(differing) == 8 and all(k.startswith(network.head_prefix) for k in differing)
    assert not any(k.startswith(network.head_prefix) for k in network.state_dict() if k not in differing)


@BOTH
def test_one_channel_or_three(kind: type[nn.Module]) -> None:
    network, x = build(kind), image(kind)
    with torch.no_grad():
        network.conv[0].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
        three = network.conv(x)
    assert equal(network(x), network(three)), "three channels are taken as they are, one becomes three"
    assert not torch.equal(three[:, 0], three[:, 1])
    with pytest.raises(ValueError, match=f"{kind.network}: got an input of shape .* expected \\(B, 1 or 3, "):
        network(image(kind, channels=2))
    with pytest.raises(ValueError, match="in_channels is 4; expected 1 or 3"):
        build(kind, in_channels=4)


@BOTH
@pytest.mark.parametrize("size", [(40, 71), (33, 64), (97, 45)])
def test_other_sizes_are_padded_and_cropped(kind: type[nn.Module], size: tuple[int, int]) -> None:
    network = build(kind, img_size=size)
    x = torch.from_numpy(golden.normal(3, (1, 1, *size)))
    padded_size = tuple(-(-side // kind.stride) * kind.stride for side in size)
    padded = torch.zeros(1, 1, *padded_size)
    padded[:, :, : size[0], : size[1]] = x
    whole = build(kind, img_size=padded_size)
    whole.load_state_dict(network.state_dict())
    assert equal(network(x), tuple(p[:, :, : size[0], : size[1]] for p in whole(padded)))


@BOTH
def test_the_smallest_size(kind: type[nn.Module]) -> None:
    least = kind.stride + 1
    logits = build(kind, img_size=least).train()(torch.randn(1, 1, least, least))
    assert logits[0].shape == (1, 5, least, least)
    why = f"{kind.network}: img_size {least - 1} 100 does not fit .* nearest that does is {least} 100 "
    with pytest.raises(ValueError, match=why):
        build(kind, img_size=(least - 1, 100))


def test_pvt_takes_other_sizes_than_its_own() -> None:
    network = build(PVTCascade)
    assert network(torch.randn(1, 1, 40, 100))[0].shape == (1, 5, 40, 100)
    with pytest.raises(ValueError, match="sides of at least 33"):
        network(torch.randn(1, 1, 64, 32))


def test_trans_refuses_another_size_than_its_own() -> None:
    with pytest.raises(ValueError, match="expected \\(B, 1 or 3, 32, 32\\)"):
        build(TransCascade)(torch.randn(1, 1, 48, 32))


@BOTH
def test_copies_and_pickles(kind: type[nn.Module]) -> None:
    network, x = build(kind), image(kind)
    other = build(kind, seed=1)
    assert not equal(other(x), network(x))
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (other, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert equal(twin(x), network(x))


@BOTH
def test_gradient_checkpointing_changes_no_gradient_and_no_statistics(kind: type[nn.Module]) -> None:
    options = {"drop_path_rate": 0.3} if kind is PVTCascade else {}
    runs = []
    for use_checkpoint in (False, True):
        network = build(kind, use_checkpoint=use_checkpoint, **options).train()
        torch.manual_seed(1)  # of drop path and dropout
        logits, features = FeatureTap(network)(image(kind))
        taps = [features.final, *(stage[0] for stage in [*features.encoder, *features.decoder])]
        sum(value.square().mean() for value in [*logits, *taps]).backward()
        runs.append(({k: p.grad for k, p in network.named_parameters()}, list(network.buffers())))
    (plain, counted), (recomputed, recounted) = runs
    for name, gradient in plain.items():
        assert torch.allclose(gradient, recomputed[name], atol=1e-7), name
    assert all(torch.equal(a, b) for a, b in zip(counted, recounted, strict=True))


@BOTH
def test_gradient_checkpointing_saves_memory(kind: type[nn.Module]) -> None:
    kept = []
    for use_checkpoint in (False, True):
        network = build(kind, use_checkpoint=use_checkpoint).train()
        own = {p.untyped_storage().data_ptr() for p in network.parameters()}
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: (saved.append(t), t)[1], lambda t: t):
            network(image(kind))
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        kept.append(sum(size for place, size in storages.items() if place not in own))
    assert kept[1] < 0.75 * kept[0]


@BOTH
def test_export_and_compile_give_the_same(kind: type[nn.Module]) -> None:
    network, x = build(kind), image(kind)
    with torch.no_grad():
        expected = network(x)
        exported = torch.export.export(network, (x,)).module()(x)
        compiled = torch.compile(copy.deepcopy(network), backend="eager", fullgraph=True)(x)
    for found in (exported, compiled):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "kind, option, value, message",
    [
        (PVTCascade, "embed_dims", (8, 8, 16), "embed_dims is .* expected four numbers above 0"),
        (PVTCascade, "depths", (1, 0, 1, 1), "depths is"),
        (PVTCascade, "mlp_ratios", (1, 1, 1, -1), "mlp_ratios is"),
        (PVTCascade, "num_heads", (1, 3, 2, 2), "embed_dims .* multiples of num_heads .* 8 is not so with 3"),
        (PVTCascade, "embed_dims", (7, 8, 16, 16), "must be even"),
        (PVTCascade, "drop_path_rate", 1.0, "drop_path_rate is 1.0; expected a number from 0 to below 1"),
        (PVTCascade, "drop_rate", -0.1, "drop_rate is -0.1"),
        (PVTCascade, "attn_drop_rate", 1.5, "attn_drop_rate is 1.5"),
        (TransCascade, "num_layers", 0, "num_layers is 0"),
        (TransCascade, "num_heads", 3, "num_heads 3"),
    ],
)
def test_impossible_options_are_refused(kind: type[nn.Module], option: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind, **{option: value})


def test_stochastic_depth_rises_linearly() -> None:
    network = build(PVTCascade, depths=(1, 2, 1, 1), drop_path_rate=0.2)
    blocks = [m for m in network.modules() if isinstance(m, PVTBlock)]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


# Embeddings: kept, or made anew at every forward as the published code does


def test_embeddings_are_kept() -> None:
    network, x = build(TransCascade), image(TransCascade)
    state = torch.get_rng_state()
    assert equal(network(x), network(x))
    assert torch.equal(torch.get_rng_state(), state), "a forward in eval mode draws no random number"


def test_recreated_embeddings_are_fresh_ones_of_the_generator() -> None:
    recreating, x = build(TransCascade, recreate_embeddings=True), image(TransCascade)
    before = copy.deepcopy(recreating.state_dict())
    assert not equal(recreating(x), recreating(x)), "every forward draws anew"
    torch.manual_seed(5)
    found = recreating(x)
    assert all(torch.equal(v, before[k]) for k, v in recreating.state_dict().items())
    kept = build(TransCascade, seed=1)
    kept.load_state_dict(before)
    torch.manual_seed(5)
    kept.transformer.embeddings.patch_embeddings = nn.Conv2d(128, 16, kernel_size=1)
    nn.init.zeros_(kept.transformer.embeddings.position_embeddings)
    assert equal(found, kept(x))


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_recreated_embeddings_leave_the_kept_ones_untrained(use_checkpoint: bool) -> None:
    network = build(TransCascade, recreate_embeddings=True, use_checkpoint=use_checkpoint).train()
    logits, features = FeatureTap(network)(image(TransCascade))
    assert len(features.encoder) == 4
    sum(p.square().mean() for p in logits).backward()
    untrained = {name for name, p in network.named_parameters() if p.grad is None}
    assert untrained == {POSITIONS} | {f"transformer.embeddings.patch_embeddings.{k}" for k in ("weight", "bias")}


# Weights from elsewhere


def test_weights_of_another_size_load(tmp_path: Path) -> None:
    source, target = build(TransCascade, img_size=64), build(TransCascade, seed=1, img_size=(32, 48))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = load_weights(target, tmp_path / "w.pth")
    assert report.skipped == report.missing == ()
    grid = source.state_dict()[POSITIONS].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(2, 3), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    assert torch.allclose(target.state_dict()[POSITIONS], resized, atol=1e-6)
    expected = {**source.state_dict(), POSITIONS: target.state_dict()[POSITIONS]}
    assert all(torch.equal(v, expected[k]) for k, v in target.state_dict().items())


def classifier(**options: object) -> dict[str, Tensor]:
    """A PVTv2 classifier as the public file holds it."""
    sizes = {k: SMALL[PVTCascade][k] for k in ("embed_dims", "depths", "num_heads", "mlp_ratios")}
    torch.manual_seed(3)
    return {
        **PVTv2(**{**sizes, **options}).state_dict(),
        "head.weight": torch.zeros(1000, 16),
        "head.bias": torch.zeros(1000),
    }


def test_pvt_starts_from_the_classifier(tmp_path: Path) -> None:
    state, network = classifier(), build(PVTCascade)
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
        load_weights(build(PVTCascade), tmp_path / "w.pth")


def test_pvt_refuses_a_classifier_that_lacks_a_block(tmp_path: Path) -> None:
    state = classifier()
    torch.save({k: v for k, v in state.items() if not k.startswith("block4.")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="it lacks backbone.block4.0.norm1.weight"):
        load_weights(build(PVTCascade), tmp_path / "w.pth")


@BOTH
def test_own_weights_are_no_imagenet_start(kind: type[nn.Module]) -> None:
    network = build(kind)
    assert network.from_imagenet(network.state_dict()) is None


def test_trans_starts_from_the_arrays_of_its_encoder() -> None:
    """Names and layout are tested with the encoder itself; here, that they land under our prefix."""
    network = build(TransCascade)
    state = {
        "conv_root/kernel": torch.randn(7, 7, 3, 8),
        "embedding/kernel": torch.randn(1, 1, 128, 16),
        "Transformer/posembed_input/pos_embedding": torch.randn(1, 5, 16),
    }
    start = network.from_imagenet(state)
    assert start is not None and start.whole == ("transformer.",)
    own = network.state_dict()
    assert len(start.tensors) == 3 and all(v.shape == own[k].shape for k, v in start.tensors.items())
