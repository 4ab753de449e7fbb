"""Similarity of channels, against plain loops and what is known without computing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analysis.channels import ChannelSimilarity, effective_rank, measure_channels
from analysis.layers import Layer, named_layers, regularized_stages
from selfreg import KDloss, TapSpec
from tests.networks.small import SMALL, build_small, settled


class Passing(nn.Module):
    """A network whose every map is its input."""

    tap_spec = TapSpec(encoder=["body"], decoder=["body"], final="out", final_side="input")

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


def regularized(network: nn.Module) -> list[Layer]:
    return [layer for stage in regularized_stages(network) for layer in stage]


def measure(images: Tensor, batch: int = 100) -> ChannelSimilarity:
    """The similarity of the channels of images (B, C, H, W)."""
    return measure_channels(Passing(), images.split(batch), [Layer("body", "body")])[0]


def naive(maps: np.ndarray) -> dict:
    """The definition in plain loops, of maps (B, C, H, W) without constant channels."""
    images, channels = maps.shape[:2]
    scores = []
    for c in range(channels):
        shares = [maps[b, c] / max(np.linalg.norm(maps[b, c]), 1e-12) for b in range(images)]
        scores.append(np.mean([share.mean() for share in shares]))
    order = sorted(range(channels), key=lambda c: -scores[c])
    flat = [np.concatenate([maps[b, c].ravel() for b in range(images)]) for c in order]
    halves = {"all": range(channels), "upper": range(channels // 2), "lower": range(channels - channels // 2, channels)}
    pairs = list(zip(halves["upper"], halves["lower"], strict=True))

    def r(i: int, j: int) -> float:
        return np.corrcoef(flat[i], flat[j])[0, 1]

    def cosine(i: int, j: int) -> float:
        return flat[i] @ flat[j] / math.sqrt((flat[i] @ flat[i]) * (flat[j] @ flat[j]))

    def rank(half: range) -> float:
        values = np.linalg.eigvalsh([[r(i, j) for j in half] for i in half]) / len(half)
        return math.exp(-sum(value * math.log(value) for value in values if value > 1e-15))

    absolute = {name: np.mean([abs(r(i, j)) for i, j in itertools.permutations(h, 2)]) for name, h in halves.items()}
    absolute["between"] = np.mean([abs(r(i, j)) for i in halves["upper"] for j in halves["lower"]])
    ranks = {name: rank(half) for name, half in halves.items()}
    return {
        "channels": channels,
        "constant_channels": 0,
        "mean_abs_correlation": absolute,
        "pair_correlation": np.mean([r(i, j) for i, j in pairs]),
        "pair_cosine": np.mean([cosine(i, j) for i, j in pairs]),
        "effective_rank": ranks,
        "effective_rank_share": {name: ranks[name] / len(half) for name, half in halves.items()},
    }


@pytest.mark.parametrize("channels", [6, 7])
def test_numbers_are_those_of_plain_loops(channels: int) -> None:
    """An odd number too: the median channel is in neither half, but among all."""
    images = torch.randn(5, channels, 6, 4) @ torch.randn(4, 4) + 3 * torch.randn(channels, 1, 1)
    images[:, 1] += images[:, 0]
    found, expected = measure(images).numbers(), naive(images.double().numpy())
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-8, abs=1e-10), key


def test_the_order_is_that_of_the_loss() -> None:
    """IFD's own pairs: the distance of the sorted halves is what `intra_fd` computes."""
    images = torch.randn(3, 8, 5, 5, dtype=torch.float64) + torch.randn(8, 1, 1)
    found = measure(images)
    upper, lower = (images[:, found.order[half].copy()] for half in (found.halves["upper"], found.halves["lower"]))
    assert float(((upper - lower) ** 2).mean()) == pytest.approx(float(KDloss().intra_fd(images)), rel=1e-12)


def test_the_division_into_batches_changes_nothing() -> None:
    images = torch.randn(7, 6, 5, 3) + 100
    whole = measure(images)
    for batch in (1, 2, 3):
        parts = measure(images, batch)
        assert (parts.order == whole.order).all()
        for key in ("scores", "correlation", "cosine"):
            np.testing.assert_allclose(getattr(parts, key), getattr(whole, key), atol=1e-10)


def test_far_from_zero_nothing_is_lost() -> None:
    images = torch.randn(4, 4, 8, 8, dtype=torch.float64) + 1e6
    expected = np.corrcoef(images.transpose(0, 1).flatten(1).numpy())
    found = measure(images)
    np.testing.assert_allclose(found.correlation, expected[found.order][:, found.order], atol=1e-9)


def test_known_answers() -> None:
    one = torch.randn(2, 1, 4, 4)
    same = measure(torch.cat([one, 2 * one, -one, one + 5], dim=1)).numbers()
    assert same["mean_abs_correlation"] == pytest.approx(dict.fromkeys(("all", "upper", "lower", "between"), 1.0))
    assert same["effective_rank"] == pytest.approx(dict.fromkeys(("all", "upper", "lower"), 1.0), abs=1e-5)
    # Walsh functions of 8 places: no two are correlated.
    signs = torch.tensor([[(-1) ** (i & place).bit_count() for place in range(8)] for i in (1, 2, 4, 7)])
    none = measure(signs.float().reshape(1, 4, 2, 4)).numbers()
    assert none["mean_abs_correlation"]["all"] == pytest.approx(0, abs=1e-12)
    assert none["effective_rank"] == pytest.approx({"all": 4, "upper": 2, "lower": 2})
    assert none["effective_rank_share"]["all"] == pytest.approx(1)


def test_constant_channels_are_left_out_and_counted() -> None:
    images = torch.randn(3, 6, 4, 4)
    images[:, 2], images[:, 4] = 0.1, 0  # float32's 0.1 is no round number
    found = measure(images, batch=1)
    assert found.numbers()["constant_channels"] == 2 and np.isnan(found.correlation).sum() == 36 - 16
    live = naive(images[:, [0, 1, 3, 5]].double().numpy())
    for key in ("mean_abs_correlation", "effective_rank", "effective_rank_share"):
        assert found.numbers()[key]["all"] == pytest.approx(live[key]["all"])
    silent = measure(torch.zeros(2, 4, 3, 3)).numbers()
    assert silent["constant_channels"] == 4
    assert {
        silent["pair_correlation"],
        *silent["effective_rank"].values(),
        *silent["mean_abs_correlation"].values(),
    } == {None}
    assert effective_rank(np.ones((1, 1))) == 1


@pytest.mark.parametrize("name", ["swin_unet", "pvt_cascade", "transunet", "unet"])
@pytest.mark.parametrize("size", [(64, 64), (67, 90)])
def test_maps_are_read_off_any_network(name: str, size: tuple[int, int]) -> None:
    """Blocks with their channels last, tuples of heads, sizes that are padded inside: what a hook sees, is measured."""
    network = build_small(name, img_size=size, in_channels=3)
    network.img_size = size  # U-Net has none of its own
    settled(network)
    images = torch.randn(2, 3, *size)
    layers = regularized(network)
    seen = {}
    hooks = [
        network.get_submodule(layer.name).register_forward_hook(
            lambda module, inputs, output, layer=layer: seen.update({layer: output})
        )
        for layer in layers[:-1]
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    measured = measure_channels(network, images.split(1), layers)
    assert len(measured) == len(layers)
    for layer, one in list(zip(layers, measured, strict=True))[:-1]:
        feature = seen[layer].movedim(-1, 1) if network.tap_spec.channels_last else seen[layer]
        flat = feature.transpose(0, 1).flatten(1).double().numpy()
        live = flat.std(axis=1) > 1e-5
        assert len(one.order) == len(flat) > 2
        with np.errstate(invalid="ignore"):
            expected = np.corrcoef(flat)[one.order][:, one.order]
        at = live[one.order]
        np.testing.assert_allclose(one.correlation[at][:, at], expected[at][:, at], atol=1e-3)


def test_a_layer_s_channels_are_found_where_the_network_has_them() -> None:
    """Swin's blocks have them last, its convolutions and its output do not."""
    network = build_small("swin_unet", img_size=(32, 64))
    names = ["swin_unet.patch_embed.proj", "swin_unet.patch_embed", "swin_unet.layers.1", "swin_unet", "final"]
    width = SMALL["swin_unet"]["embed_dim"]
    measured = measure_channels(network, [torch.randn(2, 1, 32, 64)], named_layers(network, names))
    assert [len(one.order) for one in measured] == [width, width, 4 * width, 5, width]


def test_places_are_names_too() -> None:
    network = build_small("unet")
    known = regularized(network)
    found = named_layers(network, ["final", "up4", "encoder[1][0]", "down2", "inc"])
    assert found == [known[-1], Layer("up4", "up4"), known[1], Layer("inc", "inc")]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="body: gives a single channel"):
        measure(torch.randn(2, 1, 4, 4))
    with pytest.raises(ValueError, match="body: gives NaN"):
        measure(torch.full((2, 4, 3, 3), math.nan))
