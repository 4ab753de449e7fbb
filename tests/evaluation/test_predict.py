"""Prediction of whole volumes against the published protocol in SciPy, and validation against Dice by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from datasets.case import Volume
from evaluation.predict import predict_volume, prediction_memmap, validate
from evaluation.sliding import sliding_window_logits
from tests.reference import transforms as reference


class Bands(nn.Module):
    """Three classes by brightness; records its batch sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.cat([-(x - center).abs() for center in (0.0, 0.5, 1.0)], dim=1)


class Heads(Bands):
    """The same as two heads, of which only the sum gives the classes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = super().forward(x)
        bias = torch.tensor([5.0, 0.0, -5.0]).view(-1, 1, 1)
        return logits + bias, -bias.expand_as(logits)


def slice_by_slice(volume: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    out = []
    for image in volume:
        zoomed = reference.resize(image, size, 3)
        label = Bands()(torch.from_numpy(zoomed)[None, None]).argmax(1)[0].numpy().astype(np.uint8)
        out.append(reference.resize(label, image.shape, 0))
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


@pytest.mark.filterwarnings("error")
def test_takes_any_kind_of_volume() -> None:
    volume = np.round(smooth_volume((3, 20, 20)))
    expected = predict_volume(Bands(), volume, img_size=16)
    frozen = volume.copy()
    frozen.flags.writeable = False
    kinds = [volume.astype(np.int16), volume.astype(">f4"), frozen, volume[::-1].copy()[::-1]]
    kinds += [torch.from_numpy(volume).to(dtype) for dtype in (torch.float64, torch.bfloat16, torch.int16)]
    for kind in kinds:
        np.testing.assert_array_equal(predict_volume(Bands(), kind, img_size=(16, 16)), expected)


class Probe(nn.Module):
    """Two heads from one convolution; records the dtypes that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 3, 1)
        self.dtypes: set[tuple[torch.dtype, torch.dtype]] = set()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(x)
        self.dtypes.add((x.dtype, logits.dtype))
        return logits, 0.5 * logits


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_autocast_covers_the_network_alone(autocast: torch.dtype | None) -> None:
    """The slices are resized in float32 either way."""
    network, volume = Probe(), smooth_volume((3, 24, 24))
    got = predict_volume(network, volume, img_size=16, autocast=autocast)
    assert network.dtypes == {(torch.float32, autocast or torch.float32)}
    for image, label in zip(volume, got, strict=True):
        with torch.no_grad(), torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            heads = network(torch.from_numpy(reference.resize(image, (16, 16), 3))[None, None])
        expected = sum(head.float() for head in heads).argmax(1)[0].numpy().astype(np.uint8)
        # An image that differs by 1e-7 may round to the next bfloat16, and so win another class.
        assert (label != reference.resize(expected, (24, 24), 0)).mean() <= (0.02 if autocast else 0)
    scores = validate(network, [Volume("a", volume, got)], class_names=["a", "b"], img_size=16, autocast=autocast)
    assert scores["dice"] == 1


@pytest.mark.parametrize("training", [True, False])
def test_runs_in_eval_mode_and_restores_the_mode(training: bool) -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), Bands()).train(training)
    predict_volume(network, smooth_volume((2, 20, 20)), img_size=20)
    assert network.training is training and network[0].num_batches_tracked == 0


def test_wrong_volumes() -> None:
    for bad in (np.zeros((4, 4)), np.zeros((0, 4, 4))):
        with pytest.raises(ValueError, match="expected \\(D, H, W\\)"):
            predict_volume(Bands(), bad, img_size=4)
    for wrong in ({"batch_size": 0}, {"overlap": 1.0}, {"overlap": -0.1}, {"overlap": float("nan")}):
        with pytest.raises(ValueError, match="expected 1 or more, and 0 to below 1"):
            predict_volume(Bands(), np.zeros((1, 4, 4)), img_size=4, **wrong)


class PositionDependent(nn.Module):
    """Two heads, of which one depends on the column in the window; records its input shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.shapes.append(tuple(x.shape))
        logits = self.conv(x)
        return logits, logits * torch.linspace(-2, 2, x.shape[-1])


@pytest.mark.parametrize("overlap", [0, 0.75])
@pytest.mark.parametrize("shape", [(5, 40, 40), (3, 17, 45), (6, 9, 30), (1, 7, 11)])
def test_slides_over_slices_of_any_size(shape: tuple[int, int, int], overlap: float) -> None:
    """Each slice at its own resolution, heads summed; the network sees windows alone."""
    network, volume = PositionDependent(), smooth_volume(shape)
    got = predict_volume(network, volume, img_size=(16, 24), batch_size=3, overlap=overlap)
    assert got.shape == shape and got.dtype == np.uint8
    assert all(passed[1:] == (1, 16, 24) and passed[0] <= 3 for passed in network.shapes)
    for image, label in zip(volume, got, strict=True):
        with torch.no_grad():
            logits = sliding_window_logits(
                lambda x: sum(network(x)),
                torch.tensor(image)[None, None],
                window=(16, 24),
                overlap=overlap,
                batch_size=1,
            )
        np.testing.assert_array_equal(label, logits[0].argmax(0).numpy())


@pytest.mark.parametrize("overlap", [None, 0, 0.5])
@pytest.mark.parametrize("network", [Heads(), PositionDependent()])
def test_a_slice_of_the_network_s_size_is_the_plain_argmax(network: nn.Module, overlap: float | None) -> None:
    volume = smooth_volume((3, 16, 24))
    with torch.no_grad():
        expected = sum(network(torch.from_numpy(volume)[:, None])).argmax(1).numpy()
    np.testing.assert_array_equal(predict_volume(network, volume, img_size=(16, 24), overlap=overlap), expected)


def test_validate_slides() -> None:
    """The Dice is that of predictions in windows, which differ from those of zoomed slices."""
    network, image = PositionDependent(), smooth_volume((2, 30, 41))
    labeled = [Volume("a", image, predict_volume(network, image, img_size=16, overlap=0.5))]
    assert validate(network, labeled, class_names=["one", "two"], img_size=16, overlap=0.5)["dice"] == 1
    assert validate(network, labeled, class_names=["one", "two"], img_size=16)["dice"] < 1


def test_validate_by_hand() -> None:
    # Case 0: class 1 in 4 voxels, 2 of them found; class 2 nowhere. Case 1: class 1 missed, class 2 exact. 2: empty.
    images, labels = np.zeros((3, 1, 4, 4), np.float32), np.zeros((3, 1, 4, 4), np.uint8)
    labels[0, 0, 0, :4], images[0, 0, 0, :2] = 1, 0.5
    labels[1, 0, 1, :2], labels[1, 0, 3], images[1, 0, 3] = 1, 2, 1.0
    volumes = [Volume(str(i), images[i], labels[i]) for i in range(3)]
    how = {"class_names": ["one", "two"], "img_size": 4}
    scores = validate(Bands(), volumes, **how)
    assert scores == pytest.approx({"one": (2 * 2 / (4 + 2) + 0) / 2, "two": 1.0, "dice": (1 / 3 + 1) / 2})
    assert validate(Bands(), volumes[2:], **how) == {"dice": 0.0}


def test_validate_on_noise() -> None:
    """Dice from masks, with a class that the network never predicts and labels of another dtype."""
    rng = np.random.default_rng(0)
    volumes = [
        Volume(str(i), smooth_volume((2, 12, 12)) + i / 4, rng.integers(0, 4, (2, 12, 12)).astype(dtype))
        for i, dtype in enumerate((np.uint8, np.int64))
    ]
    table = []
    for volume in volumes:
        predicted = predict_volume(Bands(), volume.image, img_size=12)
        masks = [(predicted == c, volume.label == c) for c in (1, 2, 3)]
        table.append([2 * (p & t).sum() / (p.sum() + t.sum()) for p, t in masks])
    expected = np.mean(table, axis=0)
    scores = validate(Bands(), volumes, class_names=["one", "two", "three"], img_size=12)
    assert list(scores.values()) == pytest.approx([expected.mean(), *expected])


class Redness(Bands):
    """The same by the first of three channels."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        return super().forward(x[:, :1])


@pytest.mark.parametrize("overlap", [None, 0.5])
def test_color(overlap: float | None) -> None:
    red = smooth_volume((3, 30, 44))
    volume = np.stack([red, np.zeros_like(red), 1 - red], axis=1)
    how = {"img_size": 16, "overlap": overlap, "batch_size": 2}
    np.testing.assert_array_equal(predict_volume(Redness(), volume, **how), predict_volume(Bands(), red, **how))


class ByRanges:
    """A volume that is read by slices; records how many."""

    def __init__(self, volume: np.ndarray) -> None:
        self.volume, self.shape, self.ndim = volume, volume.shape, volume.ndim
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.volume)

    def __getitem__(self, slices: slice) -> np.ndarray:
        self.read.append(len(self.volume[slices]))
        return self.volume[slices]


def test_a_volume_that_is_read_by_slices_is_never_read_whole(tmp_path: Path) -> None:
    volume = smooth_volume((7, 20, 20))
    lazy = ByRanges(volume)
    out = prediction_memmap(Volume("a", lazy), tmp_path)
    assert isinstance(out, np.memmap) and out.shape == volume.shape and not list(tmp_path.iterdir())
    found = predict_volume(Bands(), lazy, img_size=16, batch_size=2, out=out)
    assert found is out and lazy.read == [2, 2, 2, 1]
    np.testing.assert_array_equal(found, predict_volume(Bands(), volume, img_size=16))
    assert prediction_memmap(Volume("a", volume), tmp_path) is None


def test_validate_foreground_ignores_the_class() -> None:
    image = np.full((1, 4, 4), 0.5, np.float32)  # class 1 everywhere
    label = np.full((1, 4, 4), 2, np.uint8)
    label[0, :2] = 0
    how = {"class_names": ["one", "two"], "img_size": 4}
    assert validate(Bands(), [Volume("a", image, label)], **how)["dice"] == 0
    foreground = validate(Bands(), [Volume("a", image, label)], foreground=True, **how)
    assert foreground == pytest.approx({"dice": 2 * 8 / (16 + 8), "foreground": 2 * 8 / (16 + 8)})
