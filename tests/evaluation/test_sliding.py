"""Sliding windows against plain loops, MONAI, and networks whose receptive field is one pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation.sliding import gaussian_weights, sliding_window_logits, window_starts

# Images larger than the window, non-square and odd ones, of its size, smaller on one side and on both.
SHAPES = [(20, 20), (17, 31), (8, 6), (8, 21), (5, 23), (3, 4), (9, 7)]
WINDOW = (8, 6)


class PositionDependent(nn.Module):
    """Two logits that depend on the position in the window; records the batch size of every pass."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 3, padding=1)
        self.passes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        return self.conv(x) * torch.arange(1.0, 1 + x.shape[-1], device=x.device)


def naive(network: nn.Module, image: Tensor, window: tuple[int, int], overlap: float) -> np.ndarray:
    """Logits (K, H, W) of one image (C, H, W): one window after the other, one pixel after the other."""
    (h, w), (height, width) = window, image.shape[1:]
    top, left = max(h - height, 0) // 2, max(w - width, 0) // 2
    canvas = torch.zeros(len(image), max(h, height), max(w, width))
    canvas[:, top : top + height, left : left + width] = image

    def starts(length: int, side: int) -> list[int]:
        found, at = [], 0
        while at + side < length:
            found.append(at)
            at += max(1, math.floor(side * (1 - overlap)))
        return [*found, length - side]

    total, weight = np.zeros((2, *canvas.shape[1:])), np.zeros(canvas.shape[1:])
    for y in starts(canvas.shape[1], h):
        for x in starts(canvas.shape[2], w):
            with torch.no_grad():
                logits = network(canvas[None, :, y : y + h, x : x + w])[0].double().numpy()
            for i in range(h):
                for j in range(w):
                    far = ((i - (h - 1) / 2) / (h / 8)) ** 2 + ((j - (w - 1) / 2) / (w / 8)) ** 2
                    gaussian = max(math.exp(-far / 2), 1e-3)
                    total[:, y + i, x + j] += gaussian * logits[:, i, j]
                    weight[y + i, x + j] += gaussian
    return (total / weight)[:, top : top + height, left : left + width]


@torch.no_grad()
def slide(network: nn.Module, images: Tensor, overlap: float, batch_size: int = 4) -> Tensor:
    return sliding_window_logits(network, images, window=WINDOW, overlap=overlap, batch_size=batch_size)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_plain_loops(shape: tuple[int, int], overlap: float) -> None:
    network, images = PositionDependent(2), torch.randn(2, 2, *shape)
    logits = slide(network, images, overlap)
    assert logits.shape == (2, 2, *shape)
    expected = np.stack([naive(network, image, WINDOW, overlap) for image in images])
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_monai(shape: tuple[int, int], overlap: float) -> None:
    inferers = pytest.importorskip("monai.inferers")
    network, images = PositionDependent(), torch.randn(3, 1, *shape)
    with torch.no_grad():
        expected = inferers.sliding_window_inference(images, WINDOW, 4, network, overlap=overlap, mode="gaussian")
    torch.testing.assert_close(slide(network, images, overlap), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pointwise_network_gives_the_logits_of_the_whole_image(shape: tuple[int, int]) -> None:
    network, images = nn.Conv2d(1, 4, 1), torch.randn(2, 1, *shape)
    with torch.no_grad():
        whole = network(images)
    torch.testing.assert_close(slide(network, images, 0.5), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_window_is_the_network_itself(dtype: torch.dtype) -> None:
    network, images = PositionDependent(), torch.randn(3, 1, *WINDOW)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = network(images)
        assert torch.equal(slide(network, images, 0.5), expected)


@pytest.mark.parametrize("images, batch_size, largest", [(1, 4, 4), (2, 4, 4), (3, 4, 3), (3, 1, 3)])
def test_passes_are_as_large_as_allowed(images: int, batch_size: int, largest: int) -> None:
    """The images at one place go together, and as many places as the batch has room for."""
    network, x = PositionDependent(), torch.randn(images, 1, 17, 31)
    logits = slide(network, x, 0.5, batch_size)
    places = len(window_starts(17, 8, 0.5)) * len(window_starts(31, 6, 0.5))
    assert sum(network.passes) == images * places and max(network.passes) == largest
    torch.testing.assert_close(logits, slide(network, x, 0.5, 100))


@pytest.mark.parametrize("length", [1, 6, 7, 13, 40])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5, 0.99])
def test_windows_cover_an_axis_and_end_with_it(length: int, overlap: float) -> None:
    starts = window_starts(length, 6, overlap)
    assert starts[0] == 0 and starts[-1] == max(length - 6, 0)
    assert starts == sorted(set(starts)), "no window twice"
    assert {i for start in starts for i in range(start, start + 6)} >= set(range(length))


def test_weights() -> None:
    weights = gaussian_weights((9, 17))
    assert weights.shape == (9, 17) and weights[4, 8] == 1 == weights.max()
    assert weights.min() == pytest.approx(1e-3)
    assert weights[4, 8 + 2].item() == pytest.approx(math.exp(-(2**2) / (2 * (17 / 8) ** 2)))
    assert torch.equal(weights, weights.flip(0)) and torch.equal(weights, weights.flip(1))
