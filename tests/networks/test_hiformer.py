"""HiFormer: what the published one leaves out, its fusion, tapped layers, tied parameters, ImageNet starts."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from networks import build_network, load_weights
from networks.hiformer import HiFormer
from selfreg import FeatureTap
from tests.networks.small import CALM, SMALL, build_small, settled

VARIANTS = ("s", "b", "l")
PYRAMID = "All2Cross.pyramid."
FUSION = ("All2Cross.blocks.", f"{PYRAMID}norm_1.", f"{PYRAMID}norm_2.")


def build(variant: str = "s", **options: object) -> HiFormer:
    name = f"hiformer_{variant}"
    return build_small(name, **{**CALM[name], **options})


@pytest.mark.parametrize("variant", VARIANTS)
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
    network = build_network("hiformer_b", num_classes=9)
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
    centered = x - x.mean(dim=1, keepdim=True)
    return centered / (x.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


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
    heads, fusion, net = SMALL["hiformer_b"]["fusion_heads"], network.All2Cross.blocks[0], network.All2Cross
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_tapped_maps_lie_on_the_way_to_the_logits(variant: str) -> None:
    network = settled(build(variant, img_size=(40, 64)))
    x = torch.randn(2, 1, 40, 64)
    logits, features = FeatureTap(network)(x)
    encoder, decoder = ([f for (f,) in part] for part in (features.encoder, features.decoder))
    assert [f.shape[1:] for f in encoder] == [(4, 24, 32), (4, 12, 16), (8, 6, 8), (16, 3, 4)]
    assert [f.shape[1:] for f in decoder] == [(32, 3, 4), (32, 6, 8), (32, 12, 16)]
    assert features.final.shape == (2, 16, 48, 64)
    assert torch.equal(network.segmentation_head(features.final)[:, :, :40], logits)


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


def test_tied_parameters_survive_copies_pickles_and_files(tmp_path: Path) -> None:
    network, x = settled(build("b")), torch.randn(1, 1, 32, 32)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    loaded = build("b").eval()
    load_weights(loaded, tmp_path / "weights.pth", complete=True)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded):
        assert torch.equal(twin(x), network(x))
        pyramid = twin.All2Cross.pyramid
        assert pyramid.p2 is pyramid.resnet_layers[5] and pyramid.p3 is pyramid.resnet_layers[6]
        assert twin.ConvUp_s.convs_level is twin.ConvUp_s.conv_tower


@pytest.mark.parametrize("options", [{"window_size": 3}, {"img_size": 17, "window_size": 7}])
def test_weights_of_another_window_load(tmp_path: Path, options: dict) -> None:
    source, network = settled(build(img_size=48)), build(**options).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    report = load_weights(network, tmp_path / "weights.pth", complete=True)
    assert not report.missing and not report.skipped
    assert network(torch.randn(1, 1, *network.img_size)).isfinite().all()


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


def test_another_file_is_no_imagenet_start(tmp_path: Path) -> None:
    unet = build_network("swin_unet", num_classes=2, img_size=32, embed_dim=8, num_heads=(1, 2, 2, 4)).state_dict()
    for state in (build().state_dict(), {k.removeprefix("swin_unet."): v for k, v in unet.items()}):
        assert build().from_imagenet(state) is None
    block = torchvision.models.resnet.BasicBlock
    for depths, message in (
        ([1, 1, 1, 1], "lacks All2Cross.pyramid.resnet_layers.6.1.conv1.weight"),
        ([1, 2, 2, 1], "is of another network"),  # deeper than ours: its later blocks would be left out
    ):
        torch.save(torchvision.models.ResNet(block, depths).state_dict(), tmp_path / "resnet.pth")
        with pytest.raises(ValueError, match=message):
            load_weights(build(cnn_width=64, cnn_depths=(1, 1, 2)), tmp_path / "resnet.pth")


def test_fresh_weights() -> None:
    network = build("b", cnn_width=32, embed_dim=24).All2Cross
    conv = network.pyramid.resnet_layers[5][0].conv2  # Kaiming, fan out: 2 / (channels out * 9)
    assert conv.weight.std().item() == pytest.approx((2 / (conv.out_channels * 9)) ** 0.5, rel=0.05)
    for weight in (network.pyramid.p1_pm.reduction.weight, network.pos_embed[0], network.blocks[0].projs[0][2].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
