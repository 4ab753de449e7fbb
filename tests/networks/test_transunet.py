"""TransUNet and its encoder: the published details, formulas, dropout, random init, the ImageNet start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from networks import load_weights
from networks.transunet import TransUNet
from selfreg import FeatureTap
from tests.networks.small import SMALL, build_small

POSITIONS = "transformer.embeddings.position_embeddings"
MLP_DIM = SMALL["transunet"]["mlp_dim"]


def build(seed: int = 0, **options: object) -> TransUNet:
    """With a stage of two units, and with position embeddings that differ: fresh ones are zeros."""
    network = build_small("transunet", seed, **{"cnn_units": (1, 2, 1), **options})
    nn.init.normal_(network.transformer.embeddings.position_embeddings)
    return network.eval()


def test_features_of_every_resolution() -> None:
    _, features = FeatureTap(build())(torch.randn(2, 1, 32, 32))
    encoder = [tuple(f.shape[1:]) for (f,) in features.encoder]
    assert encoder == [(8, 16, 16), (32, 7, 7), (64, 4, 4), (16, 2, 2)]
    assert [tuple(f.shape[1:]) for (f,) in features.decoder] == [(16, 4, 4), (8, 8, 8), (8, 16, 16)]
    assert features.final.shape == (2, 8, 32, 32)


def test_the_skip_at_4_gets_back_what_the_pooling_loses() -> None:
    network = build(img_size=(32, 48))
    _, features = FeatureTap(network)(x := torch.randn(2, 3, 32, 48))
    bottom, (at_8, at_4, at_2) = network.transformer(x)
    assert at_4.shape == (2, 32, 8, 12)
    assert torch.equal(at_4[:, :, :7, :11], features.encoder[1][0])
    assert not at_4[:, :, 7].any() and not at_4[:, :, :, 11].any()
    for skip, stage in zip((at_2, at_8, bottom), (0, 2, 3), strict=True):
        assert torch.equal(skip, features.encoder[stage][0])


def test_the_transformers_map_has_its_tokens_row_by_row() -> None:
    network = build(img_size=(32, 48)).transformer
    with torch.no_grad():
        tokens, _ = network.embeddings(x := torch.randn(1, 3, 32, 48))
        tokens, (map_, _) = network.encoder(tokens), network(x)
    assert map_.shape == (1, 16, 2, 3)
    assert all(torch.equal(map_[0, :, i, j], tokens[0, 3 * i + j]) for i in range(2) for j in range(3))


def test_attention_and_weight_standardization_by_their_formulas() -> None:
    network = build().transformer.double()
    attention, x = network.encoder.layer[0].attn, torch.randn(2, 5, 16, dtype=torch.float64)
    query, key, value = attention.query(x), attention.key(x), attention.value(x)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        weights = torch.softmax(query[..., part] @ key[..., part].transpose(1, 2) / 8**0.5, dim=-1)
        heads.append(weights @ value[..., part])
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, dim=-1)), rtol=1e-12, atol=1e-12)

    conv, x = network.embeddings.hybrid_model.root.conv, torch.randn(1, 3, 16, 16, dtype=torch.float64)
    weight = torch.stack([(w - w.mean()) / (w.var(unbiased=False) + 1e-5).sqrt() for w in conv.weight])
    torch.testing.assert_close(conv(x), F.conv2d(x, weight, stride=2, padding=3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rates", [{"dropout_rate": 0.5}, {"attention_dropout_rate": 0.5}])
def test_dropout_acts_in_training_alone(rates: dict[str, float]) -> None:
    x = torch.randn(1, 3, 32, 32)
    none = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    with torch.no_grad():
        expected = build(**none).transformer(x)[0]
        assert torch.equal(build(**none).transformer.train()(x)[0], expected)
        network = build(**(none | rates)).transformer
        assert torch.equal(network(x)[0], expected)
        assert not torch.allclose(network.train()(x)[0], expected, atol=1e-3)
        assert (network.embeddings(x)[0] == 0).any() == ("dropout_rate" in rates)  # after the position embeddings too


def test_fresh_weights() -> None:
    network = build_small("transunet", mlp_dim=64).transformer
    assert not network.embeddings.position_embeddings.any()
    weight = network.encoder.layer[1].ffn.fc1.weight
    assert 0.9 < weight.abs().max() / (6 / (16 + 64)) ** 0.5 <= 1  # Glorot's uniform bound
    assert network.encoder.layer[1].ffn.fc1.bias.abs().max() < 1e-5


def source(**options: object) -> TransUNet:
    """A network in which no tensor is like another."""
    network = build(seed=1, **options)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def jax_file(network: TransUNet) -> dict[str, Tensor]:
    """The arrays of R50+ViT-B_16.npz that say the same as a network's encoder, each by a plain formula."""
    file = {"cls": torch.randn(1, 1, 16), "head/kernel": torch.randn(16, 10), "pre_logits/bias": torch.randn(16)}
    encoder, resnet = network.transformer.encoder, network.transformer.embeddings.hybrid_model

    def conv(theirs: str, ours: nn.Conv2d) -> None:
        file[f"{theirs}/kernel"] = torch.einsum("oihw->hwio", ours.weight)

    def norm(theirs: str, ours: nn.Module, *shape: int) -> None:
        file[f"{theirs}/scale"], file[f"{theirs}/bias"] = ours.weight.reshape(shape), ours.bias.reshape(shape)

    def dense(theirs: str, ours: nn.Linear, kernel: tuple[int, ...], bias: tuple[int, ...]) -> None:
        file[f"{theirs}/kernel"] = torch.einsum("oi->io", ours.weight).reshape(kernel)
        file[f"{theirs}/bias"] = ours.bias.reshape(bias)

    conv("conv_root", resnet.root.conv)
    norm("gn_root", resnet.root.gn, 1, 1, 1, -1)
    for block, units in resnet.body.named_children():
        for unit, parts in units.named_children():
            for part, ours in parts.named_children():
                if part.startswith("gn"):
                    norm(f"{block}/{unit}/{part}", ours, 1, 1, 1, -1)
                elif part != "relu":
                    conv(f"{block}/{unit}/{'conv_proj' if part == 'downsample' else part}", ours)
    conv("embedding", network.transformer.embeddings.patch_embeddings)
    file["embedding/bias"] = network.transformer.embeddings.patch_embeddings.bias
    for i, layer in enumerate(encoder.layer):
        at = f"Transformer/encoderblock_{i}"
        norm(f"{at}/LayerNorm_0", layer.attention_norm, -1)
        norm(f"{at}/LayerNorm_2", layer.ffn_norm, -1)
        dense(f"{at}/MlpBlock_3/Dense_0", layer.ffn.fc1, (16, MLP_DIM), (MLP_DIM,))
        dense(f"{at}/MlpBlock_3/Dense_1", layer.ffn.fc2, (MLP_DIM, 16), (16,))
        for part in ("query", "key", "value"):
            dense(f"{at}/MultiHeadDotProductAttention_1/{part}", getattr(layer.attn, part), (16, 2, 8), (2, 8))
        dense(f"{at}/MultiHeadDotProductAttention_1/out", layer.attn.out, (2, 8, 16), (16,))
    norm("Transformer/encoder_norm", encoder.encoder_norm, -1)
    table = network.transformer.embeddings.position_embeddings
    file["Transformer/posembed_input/pos_embedding"] = torch.cat([torch.randn(1, 1, 16), table], dim=1)
    return {name: value.detach().clone() for name, value in file.items()}


def test_the_imagenet_file_fills_the_whole_encoder_value_by_value(tmp_path: Path) -> None:
    network, expected = build(), source().state_dict()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.save(jax_file(source()), tmp_path / "w.pth")
    report = load_weights(network, tmp_path / "w.pth")
    assert list(report.loaded) == [key for key in before if key.startswith("transformer.")]
    for key, value in network.state_dict().items():
        assert torch.equal(value, (expected if key in report.loaded else before)[key]), key


def test_a_loaded_layer_computes_what_the_files_arrays_say() -> None:
    file, network = jax_file(source()), build()
    network.load_state_dict(dict(network.from_imagenet(file).tensors), strict=False)
    at, x = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1", torch.randn(3, 5, 16)
    query, key, value = (
        torch.einsum("bnc,chd->bnhd", x, file[f"{at}/{part}/kernel"]) + file[f"{at}/{part}/bias"]
        for part in ("query", "key", "value")
    )
    weights = torch.softmax(torch.einsum("bnhd,bmhd->bhnm", query, key) / 8**0.5, dim=-1)
    heads = torch.einsum("bhnm,bmhd->bnhd", weights, value)
    expected = torch.einsum("bnhd,hdc->bnc", heads, file[f"{at}/out/kernel"]) + file[f"{at}/out/bias"]
    torch.testing.assert_close(network.transformer.encoder.layer[1].attn(x), expected, rtol=1e-4, atol=1e-4)


# 2 x 8 tokens are as many as the file's 4 x 4, and stand elsewhere.
@pytest.mark.parametrize("side, size, grid", [(3, (32, 64), (2, 4)), (4, (32, 128), (2, 8))])
def test_the_files_positions_are_resized_to_our_grid(
    tmp_path: Path, side: int, size: tuple[int, int], grid: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file, network = jax_file(source(img_size=16 * side)), build(img_size=size)
    torch.save(file, tmp_path / "w.pth")
    report = load_weights(network, tmp_path / "w.pth")
    assert "Transformer/posembed_input/pos_embedding" not in report.skipped
    assert any("interpolated to another image size or window: 1" in message for message in caplog.messages)
    table = file["Transformer/posembed_input/pos_embedding"][:, 1:]
    expected = resample_abs_pos_embed(table, list(grid), [side, side], num_prefix_tokens=0, antialias=False)
    torch.testing.assert_close(network.state_dict()[POSITIONS], expected, rtol=0, atol=5e-6)


def test_other_files_are_no_imagenet_start(tmp_path: Path) -> None:
    file = jax_file(source())
    network = build()
    assert network.from_imagenet(network.state_dict()) is None
    assert network.from_imagenet({k: v for k, v in file.items() if k != "conv_root/kernel"}) is None  # plain ViT-B/16
    short = {k: v for k, v in file.items() if "encoderblock_1" not in k}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(ValueError, match="it lacks transformer.encoder.layer.1"):
        load_weights(build(), tmp_path / "short.pth")
