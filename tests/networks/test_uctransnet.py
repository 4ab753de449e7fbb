"""UCTransNet equal to the published one and to its formulas; sizes, positions of other sizes, refusals."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from networks import load_weights
from networks.uctransnet import ChannelAttention, CrossAttention, Reconstruct, UCTransNet
from selfreg import FeatureTap
from tests.reference import golden

NAME = "uctransnet_nc9_in3"
SMALL = {"img_size": 32, "base_channel": 2, "num_layers": 1, "num_heads": 2}
POSITIONS = [f"mtc.embeddings_{i}.position_embeddings" for i in (1, 2, 3, 4)]


def build(**options: object) -> UCTransNet:
    torch.manual_seed(0)
    return UCTransNet(num_classes=5, **{**SMALL, **options})


def with_positions(network: UCTransNet) -> UCTransNet:
    """Random position embeddings, which are zeros in a fresh network."""
    for name, parameter in network.named_parameters():
        if name in POSITIONS:
            nn.init.normal_(parameter)
    return network


def settled(network: UCTransNet, rounds: int = 3) -> UCTransNet:
    """With running statistics of real batches, in eval mode."""
    network.train()
    for _ in range(rounds):
        network(torch.randn(2, 3, *network.img_size))
    return network.eval()


@pytest.fixture(scope="module")
def published() -> UCTransNet:
    """The network of the figures with the weights of their rule, float32."""
    network = golden.fill_network(UCTransNet(num_classes=9))
    state = network.state_dict()
    for key in POSITIONS:
        value = golden.normal(zlib.crc32(key.encode()), tuple(state[key].shape))
        state[key] = torch.from_numpy(np.float32(0.02) * value)
    network.load_state_dict(state)
    return network.eval()


@pytest.mark.skipif(not golden.available(f"keys/{NAME}"), reason="the published names of UCTransNet are not here")
def test_names_shapes_and_order(published: UCTransNet) -> None:
    state, entries = published.state_dict(), golden.published_keys(NAME)
    assert [(k, list(v.shape)) for k, v in state.items()] == [(e["key"], e["shape"]) for e in entries]
    assert sum(p.numel() for p in published.parameters()) == golden.figures(f"keys/{NAME}")["n_parameters"]
    for entry in entries:
        if "fill_sum" in entry:
            ours = state[entry["key"]].double()
            assert ours.sum().item() == pytest.approx(entry["fill_sum"], rel=1e-9, abs=1e-9 * entry["fill_abssum"])


@pytest.mark.skipif(not golden.available(f"forward/{NAME}"), reason="the published logits of UCTransNet are not here")
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_forward(published: UCTransNet, dtype: str) -> None:
    kind = {"f64": torch.float64, "f32": torch.float32}[dtype]
    recorded, arrays = golden.figures(f"forward/{NAME}")["outputs"], golden.arrays(f"forward/{NAME}")
    for key, entry in recorded.items():
        with torch.no_grad():
            logits = published.to(kind)(golden.image(entry["input_seed"], tuple(entry["input_shape"]), kind))
        assert list(logits.shape) == entry["shape"]
        ours, theirs = golden.sampled(logits, arrays, key, dtype)
        if dtype == "f64":
            assert golden.relative(ours, theirs) < 1e-9, key
        else:
            assert abs(ours - theirs).max() < 2e-5, key
        rel = {"f64": 1e-9, "f32": 1e-4}[dtype]
        assert logits.double().abs().sum().item() == pytest.approx(entry[dtype]["abssum"], rel=rel)


def test_channel_attention_is_the_formula() -> None:
    """softmax(psi(Q^T K / sqrt(C))) V^T, averaged over the heads, psi an instance norm of every head's scores."""
    widths, heads, batch, tokens = (2, 4, 6, 8), 3, 2, 5
    attention = ChannelAttention(widths, heads, drop_rate=0.5).double().eval()
    parts = [torch.randn(batch, tokens, width, dtype=torch.float64) for width in widths]
    everything = torch.randn(batch, tokens, 20, dtype=torch.float64)
    for i, (x, ours) in enumerate(zip(parts, attention(parts, everything), strict=True), start=1):
        for b in range(batch):
            context = torch.zeros(widths[i - 1], tokens, dtype=torch.float64)
            for h in range(heads):
                query = x[b] @ getattr(attention, f"query{i}")[h].weight.T
                key, value = (everything[b] @ m[h].weight.T for m in (attention.key, attention.value))
                scores = query.T @ key / 20**0.5
                scores = (scores - scores.mean()) / (scores.var(correction=0) + 1e-5).sqrt()
                context += scores.exp() / scores.exp().sum(dim=1, keepdim=True) @ value.T / heads
            expected = context.T @ getattr(attention, f"out{i}").weight.T
            torch.testing.assert_close(ours[b], expected, rtol=1e-10, atol=1e-12)


def test_cross_attention_is_the_formula() -> None:
    attention = CrossAttention(3).double()
    skip, gate = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    of_skip, of_gate = attention.mlp_x[1], attention.mlp_g[1]
    for b in range(2):
        means = skip[b].sum(dim=(1, 2)) / 20, gate[b].sum(dim=(1, 2)) / 20
        weight = (of_skip.weight @ means[0] + of_skip.bias + of_gate.weight @ means[1] + of_gate.bias) / 2
        expected = (skip[b] / (1 + (-weight).exp())[:, None, None]).clamp(min=0)
        torch.testing.assert_close(attention(skip, gate)[b], expected)


def test_reconstruction_is_the_published_order_at_less_cost() -> None:
    """Published: upsampling first, then convolution and batch norm; statistics of training the same too."""
    ours, theirs = Reconstruct(6, scale=4).double().train(), Reconstruct(6, scale=4).double().train()
    theirs.load_state_dict(ours.state_dict())
    tokens, skip = torch.randn(2, 6, 6, dtype=torch.float64), torch.randn(2, 6, 8, 12, dtype=torch.float64)
    x = tokens.transpose(1, 2).reshape(2, 6, 2, 3).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    torch.testing.assert_close(ours(tokens, skip), skip + theirs.norm(theirs.conv(x)).clamp(min=0))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


def test_fresh_weights() -> None:
    network = build(base_channel=8)
    assert all(not p.any() for n, p in network.named_parameters() if n in POSITIONS)
    layer = network.mtc.encoder.layer[0].ffn4.fc1  # Xavier: uniform within the root of 6 / (in + out)
    bound = (6 / sum(layer.weight.shape)) ** 0.5
    assert 0.95 * bound < layer.weight.abs().max() <= bound
    assert 0 < layer.bias.abs().max() < 1e-5


@pytest.mark.parametrize("size", [17, 32, (33, 47), (50, 32), (32, 80)])
def test_padded_is_the_larger_network_on_a_padded_image(size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    network = settled(with_positions(build(img_size=size)))
    whole = tuple(-(-side // 16) * 16 for side in (height, width))
    larger = build(img_size=whole).eval()
    larger.load_state_dict(network.state_dict())
    image = torch.randn(1, 3, height, width)
    padded = torch.zeros(1, 3, *whole)
    padded[:, :, :height, :width] = image
    logits = network(image)
    assert logits.shape == (1, 5, height, width)
    assert torch.equal(logits, larger(padded)[:, :, :height, :width])


def test_a_batch_of_one_trains_at_the_smallest_size() -> None:
    network = build(img_size=17).train()
    network(torch.randn(1, 1, 17, 17)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_rows_and_columns_keep_their_places(scale: int) -> None:
    """Embedding by the mean and reconstructing by the identity gives the mean of every patch, on any grid."""
    network, patch = build(img_size=(32, 128)).eval(), 2 ** (5 - scale)
    embed, reconstruct = (getattr(network.mtc, f"{part}_{scale}") for part in ("embeddings", "reconstruct"))
    skip = torch.rand(2, 2**scale, 2 * patch, 8 * patch)
    identity = torch.eye(2**scale)[:, :, None, None]
    with torch.no_grad():
        embed.patch_embeddings.weight.copy_(identity.expand(-1, -1, patch, patch) / patch**2)
        reconstruct.conv.weight.copy_(identity)
        for module in (embed.patch_embeddings, reconstruct.conv):
            module.bias.zero_()
        means = reconstruct(embed(skip), skip) - skip
    expected = skip.unflatten(3, (8, patch)).unflatten(2, (2, patch)).mean(dim=(3, 5))
    expected = expected.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
    torch.testing.assert_close(means, expected, rtol=1e-4, atol=1e-5)  # batch norm's 1e-5 beside a variance of 1


@pytest.mark.parametrize("in_channels", [1, 3])
def test_one_channel_is_repeated_whatever_in_channels_says(in_channels: int) -> None:
    network = settled(build(in_channels=in_channels))
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(network(x), network(x.expand(-1, 3, -1, -1)))
    coloured = torch.cat([x, -x, 2 * x], dim=1)
    assert not torch.allclose(network(x), network(coloured))


def test_tap_holds_one_map_a_resolution() -> None:
    network = build(img_size=(40, 64), base_channel=4).eval()
    x = torch.randn(2, 1, 40, 64)
    logits, features = FeatureTap(network)(x)
    assert torch.equal(logits, network(x))
    encoder, decoder = ([tuple(f.shape) for (f,) in part] for part in (features.encoder, features.decoder))
    assert encoder == [(2, 8, 24, 32), (2, 16, 12, 16), (2, 32, 6, 8), (2, 32, 3, 4)]
    assert decoder == [(2, 16, 6, 8), (2, 8, 12, 16), (2, 4, 24, 32)]
    assert features.final.shape == (2, 4, 48, 64)
    assert torch.equal(network.outc(features.final)[:, :, :40, :64], logits)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout_rate": 0.2}])
def test_recomputing_changes_nothing_and_keeps_less(options: dict) -> None:
    x, runs = torch.randn(2, 1, 32, 32), []
    for use_checkpoint in (False, True):
        network = build(use_checkpoint=use_checkpoint, **options).train()
        torch.manual_seed(1)  # of the dropout
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: (saved.append(t), t)[1], lambda t: t):
            logits, features = FeatureTap(network)(x)
            students = [f for stage in [*features.encoder, *features.decoder] for f in stage]
            loss = logits.square().mean() + sum(f.square().mean() for f in students)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        kept = sum(storages.values()) - sum(p.nbytes for p in network.parameters())
        loss.backward()
        runs.append(([p.grad for p in network.parameters()], list(network.buffers()), kept))
    (plain, statistics, whole), (recomputed, again, less) = runs
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(statistics, again, strict=True))
    assert less < 0.75 * whole


def test_positions_of_the_same_size_are_left_as_they_are() -> None:
    state = with_positions(build()).state_dict()
    fitted = build().fit_positions(state)
    assert list(fitted) == list(state)
    assert all(fitted[key] is state[key] for key in state)


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (17, 130)])
def test_positions_of_another_size_are_interpolated(size: tuple[int, int]) -> None:
    grid = [-(-side // 16) for side in size]
    state = build(img_size=80).state_dict()
    maps = [torch.randn(1, 2 * 2**i, 5, 5) for i in range(4)]
    state |= {key: x.permute(0, 2, 3, 1).reshape(1, 25, -1) for key, x in zip(POSITIONS, maps, strict=True)}
    fitted = build(img_size=size).fit_positions(state)
    for key, x in zip(POSITIONS, maps, strict=True):
        expected = nn.functional.interpolate(x, size=grid, mode="bicubic")
        ours = fitted[key].reshape(1, *grid, -1).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, expected)
    assert list(fitted) == list(state) and all(fitted[key] is state[key] for key in state if key not in POSITIONS)


def test_weights_of_another_size_load(tmp_path: Path) -> None:
    source, network = settled(with_positions(build(img_size=48))), build(img_size=(64, 40)).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    report = load_weights(network, tmp_path / "weights.pth", complete=True)
    assert not report.missing and not report.skipped
    assert network.mtc.embeddings_1.position_embeddings.any()
    assert network(torch.randn(1, 1, 64, 40)).isfinite().all()


@pytest.mark.parametrize("count", [0, 6, 10**12])
def test_positions_of_no_square_grid_are_refused(count: int) -> None:
    state = build().state_dict() | {POSITIONS[1]: torch.zeros(1, 1, 4).expand(1, count or 1, 4)[:, :count]}
    with pytest.raises(ValueError, match=f"embeddings_2.position_embeddings holds {count} positions; expected 2 x 2"):
        build().fit_positions(state)


def test_a_checkpoint_of_another_width_is_refused(tmp_path: Path) -> None:
    torch.save(build(img_size=48, base_channel=4).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is of another network"):
        load_weights(build(), tmp_path / "weights.pth")


def test_one_graph_also_when_tapped() -> None:
    network, graphs = build(attention_dropout_rate=0.0, embeddings_dropout_rate=0.0).train(), []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(len(inputs))
        return graph.forward

    x = torch.randn(2, 1, 32, 32)
    expected = FeatureTap(network)(x)
    torch._dynamo.reset()
    network.compile(backend=backend, fullgraph=True)
    torch.testing.assert_close(tuple(FeatureTap(network)(x)[1]), tuple(expected[1]), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


def test_exports() -> None:
    network, x = settled(build(img_size=(33, 40))), torch.randn(1, 1, 33, 40)
    program = torch.export.export(network, (x,))
    torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.parametrize("size, nearest", [(16, "17"), (1, "17"), ((16, 40), "17 40")])
def test_a_size_too_small_is_refused(size: int | tuple[int, int], nearest: str) -> None:
    with pytest.raises(ValueError, match=f"uctransnet: img_size .* four poolings; the nearest that does is {nearest} "):
        build(img_size=size)


@pytest.mark.parametrize(
    "option, value",
    [
        ("in_channels", 2),
        ("base_channel", 3),
        ("base_channel", 0),
        ("num_layers", 0),
        ("num_heads", 0),
        ("expand_ratio", -1),
        ("embeddings_dropout_rate", 1.0),
        ("attention_dropout_rate", -0.1),
        ("dropout_rate", float("nan")),
    ],
)
def test_impossible_options_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"uctransnet: {option} is {value}"):
        build(**{option: value})


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 1, 32, 48), (1, 32, 32)])
def test_another_input_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="uctransnet: got an input .* expected \\(B, 1 or 3, 32, 32\\)"):
        build()(torch.randn(*shape))
