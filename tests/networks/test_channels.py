"""Images of any number of channels: the stem takes them, and an ImageNet start is spread over them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models import adapt_input_conv

from networks import build_network, list_networks, load_weights
from tests.networks.small import SMALL


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("name", list_networks())
def test_every_network_takes_them(name: str, channels: int) -> None:
    network = build_network(name, num_classes=3, in_channels=channels, **SMALL[name])
    height, width = network.img_size
    image = torch.rand(2, channels, height, width, requires_grad=True)
    logits = network(image)
    logits = logits if isinstance(logits, torch.Tensor) else sum(logits)
    assert logits.shape == (2, 3, height, width)
    logits.square().mean().backward()
    assert (image.grad.abs().sum(dim=(0, 2, 3)) > 0).all(), "every channel counts"
    with pytest.raises(ValueError, match=rf"expected \(B, {channels}, "):
        network(torch.rand(2, 3, height, width))


@pytest.mark.parametrize("name", list_networks())
def test_one_and_three_are_as_published(name: str) -> None:
    states = [build_network(name, num_classes=3, in_channels=n, **SMALL[name]).state_dict() for n in (1, 3)]
    if name != "unet":
        assert {k: v.shape for k, v in states[0].items()} == {k: v.shape for k, v in states[1].items()}


def test_an_imagenet_start_is_spread(tmp_path: Path) -> None:
    options = SMALL["swin_unet"]
    three, five = (build_network("swin_unet", num_classes=3, in_channels=n, **options) for n in (3, 5))
    prefix = "swin_unet."
    state = {
        name.removeprefix(prefix): torch.randn_like(value) if value.is_floating_point() else value
        for name, value in three.state_dict().items()
        if name.startswith((f"{prefix}patch_embed.", f"{prefix}layers."))
    }
    torch.save({"model": state}, tmp_path / "imagenet.pth")
    load_weights(five, tmp_path / "imagenet.pth")
    weight = five.swin_unet.patch_embed.proj.weight
    assert weight.shape[1] == 5 and torch.equal(weight, adapt_input_conv(5, state["patch_embed.proj.weight"]))
    torch.save(five.state_dict(), tmp_path / "trained.pth")
    load_weights(build_network("swin_unet", num_classes=3, in_channels=5, **options), tmp_path / "trained.pth")
    with pytest.raises(ValueError, match="patch_embed.proj.weight has shape"):
        load_weights(three, tmp_path / "trained.pth")


def test_no_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="in_channels is 0; expected 1 or more"):
        build_network("unet", num_classes=3, in_channels=0)
