"""UCTransNet: its formulas, the order of its patches, random init, the tapped layers."""

from __future__ import annotations

import pytest
import torch

from networks.uctransnet import ChannelAttention, CrossAttention, Reconstruct
from selfreg import FeatureTap
from tests.networks.small import build_small

POSITIONS = [f"mtc.embeddings_{i}.position_embeddings" for i in (1, 2, 3, 4)]


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
    network = build_small("uctransnet")
    assert all(not p.any() for n, p in network.named_parameters() if n in POSITIONS)
    layer = network.mtc.encoder.layer[0].ffn4.fc1  # Xavier: uniform within the root of 6 / (in + out)
    bound = (6 / sum(layer.weight.shape)) ** 0.5
    assert 0.95 * bound < layer.weight.abs().max() <= bound
    assert 0 < layer.bias.abs().max() < 1e-5


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_rows_and_columns_keep_their_order(scale: int) -> None:
    """Embedding by the mean and reconstructing by the identity gives the mean of every patch, on any grid."""
    network, patch = build_small("uctransnet", img_size=(32, 128), base_channel=2).eval(), 2 ** (5 - scale)
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


def test_tap_holds_one_map_a_resolution() -> None:
    network = build_small("uctransnet", img_size=(40, 64), base_channel=4).eval()
    x = torch.randn(2, 1, 40, 64)
    logits, features = FeatureTap(network)(x)
    encoder, decoder = ([tuple(f.shape) for (f,) in part] for part in (features.encoder, features.decoder))
    assert encoder == [(2, 8, 24, 32), (2, 16, 12, 16), (2, 32, 6, 8), (2, 32, 3, 4)]
    assert decoder == [(2, 16, 6, 8), (2, 8, 12, 16), (2, 4, 24, 32)]
    assert features.final.shape == (2, 4, 48, 64)
    assert torch.equal(network.outc(features.final)[:, :, :40, :64], logits)
