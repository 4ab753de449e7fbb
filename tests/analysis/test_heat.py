"""Grad-CAM of every network, against the formula in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analysis.gradcam import grad_cam, onto_image
from analysis.layers import Layer, padded_size, regularized_stages
from networks import list_networks
from tests.networks.small import build_small, settled
from utils import sum_heads

SIZE = (67, 90)  # is padded inside by all but U-Net


def network_of(name: str, size: tuple[int, int] = SIZE) -> nn.Module:
    network = build_small(name, img_size=size, in_channels=3)
    network.img_size = size  # U-Net has none of its own
    return settled(network)


def naive(network: nn.Module, image: Tensor, layer: Layer, target: int, pixels: np.ndarray) -> np.ndarray:
    """ReLU of the sum over channels of the mean gradient times the activation, channel by channel."""
    spec, module, seen = network.tap_spec, network.get_submodule(layer.name), []
    if layer.is_final and spec.final_side == "input":
        hook = module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    else:
        hook = module.register_forward_hook(lambda m, inputs, output: seen.append(output))
    loss = sum_heads(network(image))[0, target][torch.from_numpy(pixels)].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(loss, seen)
    feature = seen[0].detach()
    if spec.channels_last and not layer.is_final:
        feature, gradient = (x.permute(0, 3, 1, 2) for x in (feature, gradient))
    total = torch.zeros(feature.shape[2:])
    for channel in range(feature.shape[1]):
        total += gradient[0, channel].mean() * feature[0, channel]
    return total.clamp(min=0).numpy()


@pytest.mark.parametrize("name", list_networks())
def test_every_network_by_the_formula(name: str) -> None:
    network, image = network_of(name), torch.randn(1, 3, *SIZE)
    pixels = np.random.default_rng(0).random(SIZE) < 0.3
    layers = [stage[-1] for stage in regularized_stages(network)]
    assert [layer.label.split("[")[0] for layer in layers] == ["encoder"] * 4 + ["decoder"] * 3 + ["final"]
    for layer, found in zip(layers, grad_cam(network, image, layers, 2, pixels), strict=True):
        expected = naive(network, image, layer, 2, pixels)
        assert found.shape == expected.shape and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(expected.max(), 1e-6))
        on_slice = onto_image(found, network, SIZE, (50, 40))
        assert on_slice.shape == (50, 40) and on_slice.max() in (0, 1) and on_slice.min() >= 0
    assert all(p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_later_layer_that_works_in_place_changes_nothing() -> None:
    """The batch norm before a ReLU in place: its own output counts, not what the ReLU makes of it."""
    network, image = network_of("unet"), torch.randn(1, 3, *SIZE)
    pixels = np.ones(SIZE, bool)
    assert network.inc.double_conv[2].inplace
    layer = Layer("inc.double_conv.1", "inc.double_conv.1")
    (found,) = grad_cam(network, image, [layer], 1, pixels)
    network.inc.double_conv[2].inplace = False
    np.testing.assert_allclose(found, naive(network, image, layer, 1, pixels), rtol=1e-5, atol=1e-6)


def test_the_padding_is_cut_off() -> None:
    """A ramp over the padded image is the same ramp over the image, pixel by pixel."""
    network = network_of("swin_unet")
    assert padded_size(network, SIZE) == (96, 96)
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32), (24, 24)).copy()
    expected = (np.arange(90) + 0.5) * 24 / 96 - 0.5
    found = onto_image(ramp, network, SIZE, SIZE)
    assert found.shape == SIZE and found.max() == 1
    np.testing.assert_allclose(found[30, 4:], (expected / expected.max())[4:], atol=1e-5)
    assert not onto_image(np.zeros((3, 3), np.float32), network, SIZE, (8, 9)).any()


def test_a_layer_that_the_logits_do_not_depend_on() -> None:
    network = network_of("unet")
    network.aside = nn.Conv2d(3, 2, 1)
    network.register_forward_pre_hook(lambda module, inputs: (module.aside(inputs[0]), None)[1])
    with pytest.raises(ValueError, match="aside: the logits do not depend on it"):
        grad_cam(network, torch.randn(1, 3, *SIZE), [Layer("aside", "aside")], 1, np.ones(SIZE, bool))
