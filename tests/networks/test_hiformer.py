"""HiFormer equal to the published one, in what it leaves out too; its fusion; sizes, starts and refusals."""

from __future__ import annotations

import copy
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from losses import KDloss
from networks import build_network, load_weights
from networks.hiformer import HiFormer, hiformer_b, hiformer_l, hiformer_s
from selfreg import FeatureTap
from tests.reference import golden

BUILDERS = {"s": hiformer_s, "b": hiformer_b, "l": hiformer_l}
SMALL = {
    "img_size": 32,
    "embed_dim": 4,
    "swin_depths": (1, 1, 2),
    "num_heads": (1, 1, 2),
    "fusion_heads": (1, 2),
    "window_size": 4,
    "cnn_width": 4,
    "cnn_depths": (1, 1, 1),
    "decoder_width": 32,
    "drop_path_rate": 0.0,
}
PYRAMID = "All2Cross.pyramid."
POSITIONS = ("All2Cross.pos_embed.0", "All2Cross.pos_embed.1")
FUSION = ("All2Cross.blocks.", f"{PYRAMID}norm_1.", f"{PYRAMID}norm_2.")


def build(variant: str = "s", **options: object) -> HiFormer:
    torch.manual_seed(0)
    return BUILDERS[variant](num_classes=5, **{**SMALL, **options})


def settled(network: HiFormer) -> HiFormer:
    """With running statistics of real batches, in eval mode."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 3, *network.img_size))
    return network.eval()


def rule(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if "pos_embed" in key:
        return np.float32(0.02) * golden.normal(zlib.crc32(key.encode()), shape)
    return golden.fill(key, shape)


def recorded(kind: str) -> list[str]:
    return [v for v in BUILDERS if golden.available(f"{kind}/hiformer_{v}_nc9")]


@pytest.fixture(scope="module")
def published() -> Mapping[str, HiFormer]:
    """The networks of the figures with the weights of their rule; of two names of one tensor the later one's."""
    networks = {}
    for variant, builder in BUILDERS.items():
        network = builder(num_classes=9)
        state = network.state_dict()
        for key in sorted(state):
            if not key.endswith("num_batches_tracked"):
                state[key].copy_(torch.from_numpy(rule(key, tuple(state[key].shape))))
        networks[variant] = network.eval()
    return networks


@pytest.mark.skipif(not recorded("keys"), reason="the published names of HiFormer are not here")
@pytest.mark.parametrize("variant", recorded("keys"))
def test_names_shapes_order_and_ties(published: Mapping[str, HiFormer], variant: str) -> None:
    network, figures = published[variant], golden.figures(f"keys/hiformer_{variant}_nc9")
    state, entries = network.state_dict(), golden.published_keys(f"hiformer_{variant}_nc9")
    assert [(k, list(v.shape)) for k, v in state.items()] == [(e["key"], e["shape"]) for e in entries]
    assert sum(p.numel() for p in network.parameters()) == figures["n_parameters"]
    for entry in entries:
        if "fill_sum" in entry:
            drawn = rule(entry["key"], tuple(entry["shape"])).astype(np.float64)
            assert drawn.sum() == pytest.approx(entry["fill_sum"], rel=1e-9, abs=1e-9 * entry["fill_abssum"])
    tied = {tuple(sorted(pair)) for pair in figures["tied_keys"]}
    by_place: dict[int, list[str]] = {}
    for key, value in state.items():
        by_place.setdefault(value.data_ptr(), []).append(key)
    assert {tuple(sorted(keys)) for keys in by_place.values() if len(keys) > 1} == tied


@pytest.mark.skipif(not recorded("forward"), reason="the published logits of HiFormer are not here")
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("variant", recorded("forward"))
def test_forward(published: Mapping[str, HiFormer], variant: str, dtype: str) -> None:
    kind, name = {"f64": torch.float64, "f32": torch.float32}[dtype], f"forward/hiformer_{variant}_nc9"
    network = copy.deepcopy(published[variant]).to(kind)
    for key, entry in golden.figures(name)["outputs"].items():
        with torch.no_grad():
            logits = network(golden.image(entry["input_seed"], tuple(entry["input_shape"]), kind))
        assert list(logits.shape) == entry["shape"]
        ours, theirs = golden.sampled(logits, golden.arrays(name), key, dtype)
        if dtype == "f64":
            assert golden.relative(ours, theirs) < 1e-9, key
        else:
            assert abs(ours - theirs).max() < 2e-5, key
        rel = {"f64": 1e-9, "f32": 1e-4}[dtype]
        assert logits.double().abs().sum().item() == pytest.approx(entry[dtype]["abssum"], rel=rel)


@pytest.mark.parametrize("variant", BUILDERS)
def test_the_fusion_is_left_out_unless_asked_for(variant: str) -> None:
    x = torch.randn(2, 1, 32, 32)
    without, network = build(variant).train(), build(variant, use_fusion=True).train()
    assert list(without.state_dict()) == list(network.state_dict())
    assert without.has_unused_parameters and not network.has_unused_parameters
    for each in (without, network):
        each(x).square().mean().backward()
    unused = {name for name, p in without.named_parameters() if p.grad is None}
    assert unused == {name for name, _ in without.named_parameters() if name.startswith(FUSION)}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_what_is_left_out_of_b_is_3_2_million() -> None:
    network = hiformer_b(num_classes=9)
    count = sum(p.numel() for name, p in network.named_parameters() if name.startswith(FUSION))
    assert round(count / 1e6, 1) == 3.2


def test_s_and_l_are_one_function_without_the_fusion() -> None:
    small, large, x = settled(build("s")), build("l").eval(), torch.randn(2, 1, 32, 32)
    shared = {k: v for k, v in small.state_dict().items() if not k.startswith(FUSION)}
    large.load_state_dict(shared, strict=False)
    assert torch.equal(small(x), large(x))


def attention(query: Tensor, tokens: Tensor, heads: int, weights: list[tuple[Tensor, Tensor]]) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each head, projected: (n, C) and (m, C) to (n, C)."""
    (wq, bq), (wk, bk), (wv, bv), (wo, bo) = weights
    q, k, v = query @ wq.T + bq, tokens @ wk.T + bk, tokens @ wv.T + bv
    width, parts = q.shape[1] // heads, []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = (q[:, part] @ k[:, part].T / width**0.5).exp()
        parts.append(scores / scores.sum(dim=1, keepdim=True) @ v[:, part])
    return torch.cat(parts, dim=1) @ wo.T + bo


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (x.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def transformer(x: Tensor, block: nn.Module, heads: int) -> Tensor:
    qkv, projection = block.attn.qkv, block.attn.proj
    weights = [*zip(qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True), (projection.weight, projection.bias)]
    y = normed(x, block.norm1)
    x = x + attention(y, y, heads, weights)
    hidden = normed(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * (1 + (hidden / 2**0.5).erf()) / 2
    return x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def projected(x: Tensor, layers: nn.Sequential) -> Tensor:
    x = normed(x, layers[0])
    return x * (1 + (x / 2**0.5).erf()) / 2 @ layers[2].weight.T + layers[2].bias


@pytest.mark.parametrize("variant", ["b", "l"])
def test_fusion_is_the_formula(variant: str) -> None:
    """Section 3.2: [GAP(norm(P)) | P] + E, transformers, each class token attends to the other level and returns."""
    network = build(variant, use_fusion=True).double().eval()
    for p in network.All2Cross.parameters():
        nn.init.normal_(p, std=0.3)
    heads, fusion, net = SMALL["fusion_heads"], network.All2Cross.blocks[0], network.All2Cross
    levels = torch.randn(1, 64, 4, dtype=torch.float64), torch.randn(1, 4, 16, dtype=torch.float64)
    tokens = []
    for i, norm in enumerate((net.pyramid.norm_1, net.pyramid.norm_2)):
        mean = normed(levels[i][0], norm).mean(dim=0, keepdim=True)
        x = torch.cat([mean, levels[i][0]]) + net.pos_embed[i][0]
        for block in fusion.blocks[i]:
            x = transformer(x, block, heads[i])
        tokens.append(x)
    for i, ours in enumerate(net.fuse(list(levels))):
        visitor, cross = projected(tokens[i][:1], fusion.projs[i]), fusion.fusion[i]
        there = normed(torch.cat([visitor, tokens[1 - i][1:]]), cross.norm1)
        layers = (cross.attn.wq, cross.attn.wk, cross.attn.wv, cross.attn.proj)
        weights = [(layer.weight, layer.bias) for layer in layers]
        visitor = visitor + attention(there[:1], there, heads[1 - i], weights)
        expected = tokens[i][1:] + projected(visitor, fusion.revert_projs[i])
        torch.testing.assert_close(ours[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [17, 32, (33, 47), (50, 32), (32, 80)])
@pytest.mark.parametrize("use_fusion", [False, True])
def test_padded_is_the_larger_network_on_a_padded_image(size: int | tuple[int, int], use_fusion: bool) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    network = settled(build(img_size=size, use_fusion=use_fusion))
    whole = tuple(-(-side // 16) * 16 for side in (height, width))
    larger = build(img_size=whole, use_fusion=use_fusion).eval()
    larger.load_state_dict(network.state_dict())
    image = torch.randn(1, 3, height, width)
    padded = torch.zeros(1, 3, *whole)
    padded[:, :, :height, :width] = image
    logits = network(image)
    assert logits.shape == (1, 5, height, width)
    assert torch.equal(logits, larger(padded)[:, :, :height, :width])


@pytest.mark.parametrize("variant", BUILDERS)
def test_a_batch_of_one_trains_at_the_smallest_size(variant: str) -> None:
    network = build(variant, img_size=17, use_fusion=True).train()
    network(torch.randn(1, 1, 17, 17)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("in_channels", [1, 3])
def test_one_channel_is_repeated_whatever_in_channels_says(in_channels: int) -> None:
    network = settled(build(in_channels=in_channels))
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(network(x), network(x.expand(-1, 3, -1, -1)))
    assert not torch.allclose(network(x), network(torch.cat([x, -x, 2 * x], dim=1)))


@pytest.mark.parametrize("variant", BUILDERS)
def test_tapped_maps_lie_on_the_way_to_the_logits(variant: str) -> None:
    network = settled(build(variant, img_size=(40, 64)))
    x = torch.randn(2, 1, 40, 64)
    logits, features = FeatureTap(network)(x)
    assert torch.equal(logits, network(x))
    encoder, decoder = ([f for (f,) in part] for part in (features.encoder, features.decoder))
    assert [f.shape[1:] for f in encoder] == [(4, 24, 32), (4, 12, 16), (8, 6, 8), (16, 3, 4)]
    assert [f.shape[1:] for f in decoder] == [(32, 3, 4), (32, 6, 8), (32, 12, 16)]
    assert features.final.shape == (2, 16, 48, 64)
    assert torch.equal(network.segmentation_head(features.final)[:, :, :40], logits)
    for gradient in torch.autograd.grad(logits.square().mean(), [*encoder, *decoder, features.final]):
        assert gradient.abs().sum() > 0


def test_levels_are_the_sum_of_both_encoders() -> None:
    network, seen = settled(build()).All2Cross.pyramid, {}
    for name in ("p1_ch", "p2_ch", "p3_ch", *(f"swin_transformer.layers.{i}" for i in range(3))):
        network.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    for i in range(3):
        network.get_submodule(f"level_{i + 1}").register_forward_hook(lambda m, x, out, i=i: seen.update({i: out}))
    network(torch.randn(2, 3, 32, 32))
    for i in range(3):
        swin = seen[f"swin_transformer.layers.{i}"].permute(0, 3, 1, 2)
        assert torch.equal(seen[i], seen[f"p{i + 1}_ch"] + swin)


@pytest.mark.parametrize("variant", BUILDERS)
@pytest.mark.parametrize("options", [{}, {"use_fusion": True, "drop_rate": 0.2, "drop_path_rate": 0.3}])
def test_recomputing_changes_nothing_and_keeps_less(variant: str, options: dict) -> None:
    x, runs = torch.randn(2, 1, 32, 32), []
    for use_checkpoint in (False, True):
        network = build(variant, use_checkpoint=use_checkpoint, **options).train()
        torch.manual_seed(1)  # of the dropout
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: (saved.append(t), t)[1], lambda t: t):
            logits, features = FeatureTap(network)(x)
            students = [f for stage in [*features.encoder, *features.decoder] for f in stage]
            loss = logits.square().mean() + sum(f.square().mean() for f in students)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        kept = sum(storages.values()) - sum(p.nbytes for p in network.parameters())
        loss.backward()
        runs.append(([p.grad for p in network.parameters()], list(network.buffers()), kept))
    (plain, statistics, whole), (recomputed, again, less) = runs
    assert [g is None for g in plain] == [g is None for g in recomputed]
    torch.testing.assert_close(
        [g for g in recomputed if g is not None], [g for g in plain if g is not None], rtol=1e-5, atol=1e-7
    )
    assert all(torch.equal(a, b) for a, b in zip(statistics, again, strict=True))
    assert less < 0.75 * whole


def test_regularised_features_train() -> None:
    network = build().train()
    _, features = FeatureTap(network)(torch.randn(2, 1, 32, 32))
    students = [f for stage in [*features.encoder, *features.decoder] for f in stage]
    for f in [*students, features.final]:
        f.retain_grad()
    KDloss(lambda_1=1.0, lambda_2=1.0)(*features).backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in students)
    assert features.final.grad is None


def test_ties_survive_copies_pickles_and_files(tmp_path: Path) -> None:
    network, x = settled(build("b")), torch.randn(1, 1, 32, 32)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    loaded = build("b").eval()
    load_weights(loaded, tmp_path / "weights.pth", complete=True)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded):
        assert torch.equal(twin(x), network(x))
        pyramid = twin.All2Cross.pyramid
        assert pyramid.p2 is pyramid.resnet_layers[5] and pyramid.p3 is pyramid.resnet_layers[6]
        assert twin.ConvUp_s.convs_level is twin.ConvUp_s.conv_tower


def test_positions_of_the_same_size_are_left_as_they_are() -> None:
    state = build().state_dict()
    fitted = build().fit_positions(state)
    assert list(fitted) == list(state)
    assert all(fitted[key] is state[key] for key in state)


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (17, 130)])
def test_positions_of_another_size_are_interpolated(size: tuple[int, int]) -> None:
    grids = [[-(-side // 16) * scale for side in size] for scale in (4, 1)]
    state = build(img_size=80).state_dict()
    maps = torch.randn(1, 4, 20, 20), torch.randn(1, 16, 5, 5)
    for key, x in zip(POSITIONS, maps, strict=True):
        state[key] = torch.cat([state[key][:, :1], x.flatten(2).transpose(1, 2)], dim=1)
    fitted = build(img_size=size).fit_positions(state)
    for key, x, grid in zip(POSITIONS, maps, grids, strict=True):
        expected = nn.functional.interpolate(x, size=grid, mode="bicubic", align_corners=False)
        torch.testing.assert_close(fitted[key][:, 1:].transpose(1, 2).unflatten(2, grid), expected)
        assert torch.equal(fitted[key][:, 0], state[key][:, 0])
    assert list(fitted) == list(state) and all(fitted[key] is state[key] for key in state if key not in POSITIONS)


@pytest.mark.parametrize("options", [{"img_size": (64, 40)}, {"window_size": 3}, {"img_size": 17, "window_size": 7}])
def test_weights_of_another_size_load(tmp_path: Path, options: dict) -> None:
    source, network = settled(build(img_size=48)), build(**options).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    report = load_weights(network, tmp_path / "weights.pth", complete=True)
    assert not report.missing and not report.skipped
    assert network(torch.randn(1, 1, *network.img_size)).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 38, 4), (1, 10, 5), (1, 37)])
def test_positions_that_cannot_be_fitted_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    torch.save(build().state_dict() | {POSITIONS[0]: torch.zeros(shape)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="pos_embed.0 has shape"):
        load_weights(build(), tmp_path / "weights.pth")


@pytest.mark.parametrize("variant, blocks", [("s", "BasicBlock"), ("b", "Bottleneck"), ("l", "BasicBlock")])
def test_imagenet_start_of_the_cnn(tmp_path: Path, variant: str, blocks: str) -> None:
    block = getattr(torchvision.models.resnet, blocks)
    resnet = torchvision.models.ResNet(block, [1, 1, 1, 1]).eval()
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    network = build(variant, cnn_width=64).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = load_weights(network, tmp_path / "resnet.pth")
    x, pyramid = torch.randn(1, 3, 32, 32), network.All2Cross.pyramid
    theirs = nn.Sequential(*list(resnet.children())[:7])
    assert torch.equal(pyramid.resnet_layers(x), theirs(x))
    cnn = tuple(PYRAMID + part for part in ("resnet_layers.", "p2.", "p3."))
    assert set(report.loaded) == {key for key in before if key.startswith(cnn)}
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items() if not k.startswith(cnn))


def swin_classifier(embed_dim: int = 4, window_size: int = 4) -> dict[str, Tensor]:
    """A file as the public Swin-T's, smaller."""
    options = {"depths": (1, 1, 2, 2), "num_heads": (1, 1, 2, 2), "window_size": window_size}
    swin = build_network("swin_unet", num_classes=2, img_size=128, embed_dim=embed_dim, **options)
    state = {k.removeprefix("swin_unet."): torch.randn_like(v) for k, v in swin.state_dict().items()}
    state = {k: v for k, v in state.items() if k.startswith(("patch_embed.", "layers.", "norm."))}
    return state | {"head.weight": torch.zeros(10, 8 * embed_dim), "head.bias": torch.zeros(10)}


def test_imagenet_start_of_the_transformer(tmp_path: Path) -> None:
    state, network = swin_classifier(), build()
    torch.save({"model": state}, tmp_path / "swin.pth")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_weights(network, tmp_path / "swin.pth")
    for key, value in network.state_dict().items():
        part, _, rest = key.removeprefix(PYRAMID).partition(".")
        merging = {"p1_pm": "layers.0.downsample.", "p2_pm": "layers.1.downsample."}
        if part == "swin_transformer":
            assert torch.equal(value, state[rest]), key
        elif part in merging:
            assert torch.equal(value, state[merging[part] + rest]), key
        else:
            assert torch.equal(value, before[key]), key


def test_imagenet_starts_of_both_stand_together(tmp_path: Path) -> None:
    resnet = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1]).state_dict()
    torch.save(resnet, tmp_path / "resnet.pth")
    torch.save({"model": swin_classifier()}, tmp_path / "swin.pth")
    states = []
    for order in (("resnet", "swin"), ("swin", "resnet")):
        network = build(cnn_width=64)
        for name in order:
            load_weights(network, tmp_path / f"{name}.pth")
        states.append(network.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_another_file_is_no_imagenet_start(tmp_path: Path) -> None:
    assert HiFormer.from_imagenet(build().state_dict()) is None
    unet = build_network("swin_unet", num_classes=2, img_size=32, embed_dim=8, num_heads=(1, 2, 2, 4)).state_dict()
    assert HiFormer.from_imagenet({k.removeprefix("swin_unet."): v for k, v in unet.items()}) is None
    deep = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1]).state_dict()
    torch.save(deep, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="lacks All2Cross.pyramid.resnet_layers.6.1.conv1.weight"):
        load_weights(build(cnn_width=64, cnn_depths=(1, 1, 2)), tmp_path / "resnet.pth")
    torch.save(swin_classifier(embed_dim=8), tmp_path / "swin.pth")
    with pytest.raises(ValueError, match="is of another network"):
        load_weights(build(), tmp_path / "swin.pth")


@pytest.mark.parametrize("options", [{}, {"use_fusion": True}])
def test_one_graph_also_when_tapped(options: dict) -> None:
    network, graphs = build(**options).train(), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        graphs.append(len(inputs))
        return graph.forward

    x = torch.randn(2, 1, 32, 32)
    expected = FeatureTap(network)(x)
    torch._dynamo.reset()
    network.compile(backend=backend, fullgraph=True)
    torch.testing.assert_close(tuple(FeatureTap(network)(x)[1]), tuple(expected[1]), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("options", [{}, {"use_fusion": True}])
def test_exports(options: dict) -> None:
    network, x = settled(build(img_size=(33, 40), **options)), torch.randn(1, 1, 33, 40)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


def test_fresh_weights() -> None:
    network = build("b", cnn_width=32, embed_dim=24).All2Cross
    conv = network.pyramid.resnet_layers[5][0].conv2  # Kaiming, fan out: 2 / (channels out * 9)
    assert conv.weight.std().item() == pytest.approx((2 / (conv.out_channels * 9)) ** 0.5, rel=0.05)
    for weight in (network.pyramid.p1_pm.reduction.weight, network.pos_embed[0], network.blocks[0].projs[0][2].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("size, nearest", [(16, "17"), (1, "17"), ((16, 40), "17 40")])
def test_a_size_too_small_is_refused(size: int | tuple[int, int], nearest: str) -> None:
    with pytest.raises(
        ValueError, match=f"hiformer_s: img_size .* a stride of 16; the nearest that does is {nearest} "
    ):
        build(img_size=size)


@pytest.mark.parametrize(
    "option, value",
    [
        ("in_channels", 2),
        ("embed_dim", 3),
        ("embed_dim", 0),
        ("window_size", 0),
        ("cnn_width", 5),
        ("cnn_width", 0),
        ("decoder_width", 48),
        ("decoder_width", 0),
        ("drop_rate", 1.0),
        ("drop_path_rate", -0.1),
        ("drop_rate", float("nan")),
    ],
)
def test_impossible_numbers_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"hiformer_s: {option} is {value}"):
        build(**{option: value})


@pytest.mark.parametrize(
    "option, value",
    [
        ("swin_depths", (1, 1)),
        ("swin_depths", (1, 0, 1)),
        ("num_heads", (1, 1, 0)),
        ("cnn_depths", (1, 1, 1, 1)),
        ("fusion_heads", (1, 1, 1)),
        ("fusion_heads", (0, 1)),
        ("num_heads", (1, 3, 2)),
        ("fusion_heads", (1, 3)),
    ],
)
def test_impossible_lists_are_refused(option: str, value: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"hiformer_s: .*{option}"):
        build(**{option: value})


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant is 'm'; expected one of s, b, l"):
        HiFormer(num_classes=2, variant="m")


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 1, 32, 48), (1, 32, 32)])
def test_another_input_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="hiformer_s: got an input .* expected \\(B, 1 or 3, 32, 32\\)"):
        build()(torch.randn(*shape))
