"""Whole volumes slice by slice, against the protocol written out in SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from datasets.base import Volume
from evaluation.predict import predict_volume, validate


class Bands(nn.Module):
    """Three classes by brightness; counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.cat([-(x - centre).abs() for centre in (0.0, 0.5, 1.0)], dim=1)


class Heads(Bands):
    """The same, as two heads whose sum decides."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(x)
        return 3 * logits, -2 * logits


def slice_by_slice(volume: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    out = []
    for image in volume:
        zoomed = ndimage.zoom(image, (size[0] / image.shape[0], size[1] / image.shape[1]), order=3)
        label = Bands()(torch.from_numpy(zoomed)[None, None]).argmax(1)[0].numpy().astype(np.uint8)
        out.append(ndimage.zoom(label, (image.shape[0] / size[0], image.shape[1] / size[1]), order=0))
    return np.stack(out)


def smooth_volume(shape: tuple[int, int, int]) -> np.ndarray:
    noise = np.random.default_rng(0).random(shape)
    return ndimage.gaussian_filter(noise, 2).astype(np.float32) * 4 - 1.5


@pytest.mark.parametrize("network", [Bands, Heads])
@pytest.mark.parametrize(
    "shape, size", [((5, 40, 40), (24, 24)), ((3, 30, 44), (32, 32)), ((1, 24, 24), (24, 24)), ((2, 20, 20), (16, 32))]
)
@pytest.mark.parametrize("batch_size", [1, 2, 24])
def test_equals_slice_by_slice(network: type, shape: tuple, size: tuple, batch_size: int) -> None:
    volume = smooth_volume(shape)
    model = network()
    got = predict_volume(model, volume, img_size=size, batch_size=batch_size)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, slice_by_slice(volume, size))
    assert sum(model.batches) == shape[0] and max(model.batches) <= batch_size


def test_takes_tensors_and_a_side() -> None:
    volume = smooth_volume((2, 20, 20))
    np.testing.assert_array_equal(
        predict_volume(Bands(), torch.from_numpy(volume), img_size=16),
        predict_volume(Bands(), volume, img_size=(16, 16)),
    )


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_mode_as_it_was(training: bool) -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), Bands()).train(training)
    predict_volume(network, smooth_volume((2, 20, 20)), img_size=20)
    assert network.training is training
    assert network[0].num_batches_tracked == 0


def test_impossible_volumes() -> None:
    for bad in (np.zeros((4, 4)), np.zeros((0, 4, 4))):
        with pytest.raises(ValueError, match="expected \\(D, H, W\\)"):
            predict_volume(Bands(), bad, img_size=4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        predict_volume(Bands(), np.zeros((1, 4, 4)), img_size=4, batch_size=0)


def test_validate_by_pencil() -> None:
    # Case a: class 1 in 4 voxels, 2 of them found; class 2 nowhere. Case b: class 1 missed, class 2 exact.
    image = np.zeros((1, 4, 4), np.float32)
    a_label, b_label = np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8)
    a_image, b_image = image.copy(), image.copy()
    a_label[0, 0, :4], a_image[0, 0, :2] = 1, 0.5
    b_label[0, 1, :2], b_label[0, 3], b_image[0, 3] = 1, 2, 1.0
    scores = validate(
        Bands(), [Volume("a", a_image, a_label), Volume("b", b_image, b_label)], class_names=["one", "two"], img_size=4
    )
    assert scores == pytest.approx({"one": (2 * 2 / (4 + 2) + 0) / 2, "two": 1.0, "dice": (1 / 3 + 1) / 2})
    assert validate(Bands(), [Volume("c", image, np.zeros_like(a_label))], class_names=["one", "two"], img_size=4) == {
        "dice": 0.0
    }
