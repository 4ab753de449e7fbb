"""One slice as a picture: which slice, which colours, which way up, and what does not fit together."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.base import Geometry, Volume
from evaluation import overlay, report


def volume(depth: int = 5, low: float = -800.0, high: float = 300.0) -> tuple[Volume, np.ndarray]:
    """A case whose slice with most classes is the last but one (of one slice, the only one), and its prediction."""
    rng = np.random.default_rng(0)
    label = np.zeros((depth, 60, 80), np.uint8)
    label[:, 5:50, 5:20] = 1
    rich = max(depth - 2, 0)
    label[rich, 5:20, 30:45], label[rich, 30:50, 50:70] = 2, 3
    image = (low + (high - low) * rng.random(label.shape)).astype(np.float32)
    return Volume("case7", image, label), np.roll(label, 2, axis=2)


NAMES = ("liver", "spleen", "left kidney")


SIZE = (1600, 388)  # of four panels of 60 x 80 and one row of the legend


@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-800.0, 300.0), (7.0, 7.0)])
def test_overlay_with_truth_has_four_panels(tmp_path, depth, low, high):
    case, prediction = volume(depth, low, high)
    report.write_overlay(tmp_path / "o.png", case, prediction, NAMES)
    with Image.open(tmp_path / "o.png") as picture:
        assert (picture.format, picture.size) == ("PNG", SIZE)
    assert len(list(tmp_path.iterdir())) == 1


def test_overlay_without_truth_has_two_panels_and_no_errors(tmp_path):
    case, prediction = volume()
    report.write_overlay(tmp_path / "o.png", Volume("new", case.image), prediction, NAMES)
    with Image.open(tmp_path / "o.png") as picture:
        assert picture.size == (800, 388)
    assert not any(found_in(tmp_path / "o.png", overlay._rgb(code)) for _, code in overlay.ERRORS[:2])


def found_in(path: Path, colour: tuple[float, ...], part: slice = slice(None)) -> bool:
    """Whether a picture has an area of a colour, in these of its columns."""
    pixels = np.asarray(Image.open(path).convert("RGB"))[:, part]
    return (pixels == [round(255 * value) for value in colour]).all(axis=-1).sum() > 50


def test_a_long_name_stays_over_the_first_two_panels(tmp_path):
    case, prediction = volume()
    report.write_overlay(tmp_path / "o.png", replace(case, name="patient_0123456789_" * 10), prediction, NAMES)
    title = np.asarray(Image.open(tmp_path / "o.png").convert("L"))[:24]
    assert (title[:, :800] < 128).any() and (title[:, 800:] > 128).all()


def test_errors_by_pencil():
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 0]])
    prediction = np.array([[0, 1, 1, 0], [2, 1, 0, 2]])
    assert overlay.errors(prediction, truth).tolist() == [[0, 2, 0, 1], [0, 3, 1, 2]]
    assert [name for name, _ in overlay.ERRORS] == ["false negative", "false positive", "wrong class"]


def test_the_errors_panel_shows_the_kinds_that_occur_and_no_others(tmp_path):
    case, prediction = volume()
    panel, missed, invented = slice(1200, 1600), *(overlay._rgb(code) for _, code in overlay.ERRORS[:2])
    for predicted, expected in (
        (prediction, (True, True)),
        (np.zeros_like(prediction), (True, False)),
        (np.where(case.label == 0, 1, case.label).astype(np.uint8), (False, True)),
        (case.label, (False, False)),
    ):
        report.write_overlay(tmp_path / "o.png", case, predicted, NAMES)
        assert tuple(found_in(tmp_path / "o.png", colour, panel) for colour in (missed, invented)) == expected
        assert not any(found_in(tmp_path / "o.png", colour, slice(0, 800)) for colour in (missed, invented))


# Machado, Oliveira, Fernandes 2009: linear RGB as seen without red and without green, severity 1.
SEEN_BY = {
    "all": np.eye(3),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def lab(colours: np.ndarray, reader: str) -> np.ndarray:
    """CIE L*a*b* of sRGB colours (N, 3) as a reader sees them."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ SEEN_BY[reader].T, 0, 1)
    xyz = seen @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("reader", SEEN_BY)
def test_errors_are_told_apart_from_each_other_from_classes_and_from_the_picture(reader):
    kinds = np.array([overlay._rgb(code) for _, code in overlay.ERRORS])
    classes = np.array([overlay._colour(label) for label in range(1, 13)])
    greys = overlay._dimmed(np.linspace(0, 1, 20)[:, None, None].repeat(3, axis=2))[:, 0]

    def nearest(others: np.ndarray) -> float:
        distances = np.linalg.norm(lab(kinds, reader)[:, None] - lab(others, reader), axis=-1)
        return distances[distances > 0].min()

    assert nearest(kinds) > 50 and nearest(greys) > 40
    assert nearest(classes) > (25 if reader == "all" else 12)


def test_overlay_shows_the_colours_of_the_classes_in_the_slice_and_no_others(tmp_path):
    case, prediction = volume()
    label = np.where(case.label == 2, 0, case.label)
    case = Volume("case7", case.image, label)
    report.write_overlay(tmp_path / "o.png", case, np.where(prediction == 2, 0, prediction), NAMES)
    pixels = np.asarray(Image.open(tmp_path / "o.png").convert("RGB")).reshape(-1, 3)
    legend = {tuple(round(255 * part) for part in overlay._colour(index)) for index in (1, 2, 3)}
    found = {colour for colour in legend if (pixels == colour).all(axis=1).sum() > 50}
    assert found == legend - {tuple(round(255 * part) for part in overlay._colour(2))}


@pytest.mark.parametrize("channels", ["first", "last"])
def test_overlay_in_colour_and_with_more_classes_than_named_colours(tmp_path, channels):
    case, prediction = volume()
    image = np.stack([case.image] * 3, axis=1 if channels == "first" else -1)
    names = [f"organ ${index}_" for index in range(1, 31)]
    report.write_overlay(tmp_path / "o.png", Volume("$x^$ 7", image, case.label), prediction * 10, names)
    assert (tmp_path / "o.png").stat().st_size > 10_000


def test_overlay_of_nothing_labelled(tmp_path):
    case, prediction = volume()
    empty = Volume("case7", case.image, np.zeros_like(prediction))
    for predicted in (prediction, np.zeros_like(prediction)):
        report.write_overlay(tmp_path / "o.png", empty, predicted, NAMES)
        with Image.open(tmp_path / "o.png") as picture:
            assert picture.size == SIZE


def test_the_slice_with_most_classes_then_most_voxels():
    labels = np.zeros((5, 4, 4), np.uint8)
    assert overlay.richest_slice(labels) == 2
    labels[0] = 1
    assert overlay.richest_slice(labels) == 0
    labels[1, 0, :2], labels[3, 0], labels[3, 1], labels[4, 0, :2] = (1, 2), 1, 2, (1, 2)
    assert overlay.richest_slice(labels) == 3


def test_colours_differ():
    colours = [overlay._colour(label) for label in range(1, 41)]
    assert len({tuple(round(255 * part) for part in colour) for colour in colours}) == 40
    assert all(0 <= part <= 1 for colour in colours for part in colour)


def test_overlays_that_do_not_fit_are_refused(tmp_path):
    case, prediction = volume()
    with pytest.raises(ValueError, match=r"case7: the prediction has shape \(4, 60, 80\)"):
        report.write_overlay(tmp_path / "o.png", case, prediction[1:], NAMES)
    with pytest.raises(ValueError, match="case7: the truth has shape"):
        report.write_overlay(tmp_path / "o.png", Volume("case7", case.image, case.label[1:]), prediction, NAMES)
    with pytest.raises(ValueError, match="case7: class 3 occurs but 2 classes are named"):
        report.write_overlay(tmp_path / "o.png", case, prediction, NAMES[:2])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("axis_order", ["zxy", "zyx"])
@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (-1, 1)])
def test_an_axial_slice_is_shown_upright(axis_order: str, signs: tuple[int, int]) -> None:
    # The brightest corner is the patient's right anterior: top left to a radiologist. LPS: right is -x, anterior -y.
    x, y = (0 if sign > 0 else -1 for sign in signs)
    plane = np.zeros((4, 6, 3))  # rows y, columns x
    plane[y, x] = 1.0
    direction = (signs[0], 0, 0, 0, signs[1], 0, 0, 0, 1)
    stored = plane if axis_order == "zyx" else plane.swapaxes(0, 1)
    shown = overlay.upright(stored, Geometry(direction=direction, axis_order=axis_order))
    assert shown.shape == (4, 6, 3) and shown[0, 0, 0] == 1.0


def test_other_slices_are_shown_as_stored() -> None:
    plane = np.random.default_rng(0).random((4, 6, 3))
    assert overlay.upright(plane, None) is plane
    sagittal = Geometry(direction=(0, 0, 1, 1, 0, 0, 0, 1, 0))
    assert overlay.upright(plane, sagittal) is plane


@pytest.mark.parametrize("flips", ["", "x", "y", "z", "xy", "xyz"])
@pytest.mark.parametrize("order", list(itertools.permutations("xyz")), ids="".join)
@pytest.mark.parametrize("turned", list(itertools.permutations(range(3))), ids=str)
def test_an_axial_slice_is_upright_however_the_array_runs(order: tuple, turned: tuple, flips: str) -> None:
    """Each voxel of a file tells where it lies in the patient; the array is any order and direction of its axes."""
    direction = np.eye(3)[:, list(turned)] * [1, -1, 1]  # columns: where x, y and z of the file point, in LPS
    index = np.stack(np.meshgrid(range(2), range(3), range(4), indexing="ij"), axis=-1)
    array = index @ direction.T  # (x, y, z, 3): left, posterior, superior
    array = np.flip(array, ["xyz".index(axis) for axis in flips]).transpose(*("xyz".index(axis) for axis in order), 3)
    geometry = Geometry(direction=tuple(direction.ravel()), axis_order="".join(order), flips=flips)
    shown = overlay.upright(array[1], geometry)
    if np.ptp(array[1][..., 2]):  # not axial: it reaches from inferior to superior
        np.testing.assert_array_equal(shown, array[1])
    else:  # to a radiologist, rows run to posterior and columns to the patient's left
        assert (np.diff(shown[..., 1], axis=0) == 1).all() and (np.diff(shown[..., 0], axis=1) == 1).all()


class Lazy:
    """Hands out ranges of slices and nothing else, as a file that is read as far as it is asked for."""

    def __init__(self, image: np.ndarray) -> None:
        self.shape, self.ndim, self._image = image.shape, image.ndim, image

    def __len__(self) -> int:
        return len(self._image)

    def __getitem__(self, slices: slice) -> np.ndarray:
        assert isinstance(slices, slice) and len(self._image[slices]) == 1
        return self._image[slices]


def test_overlay_reads_one_slice_of_an_image_that_is_read_by_ranges(tmp_path):
    case, prediction = volume()
    report.write_overlay(tmp_path / "whole.png", case, prediction, NAMES)
    report.write_overlay(tmp_path / "lazy.png", replace(case, image=Lazy(case.image)), prediction, NAMES)
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "lazy.png").read_bytes()


def test_overlay_of_a_picture_in_colour(tmp_path):
    rng = np.random.default_rng(0)
    label = np.zeros((1, 40, 60), np.uint8)
    label[:, 5:20, 5:20] = 1
    picture = Volume("tissue", rng.random((1, 3, 40, 60), np.float32), label, None, True, tmp_path / "tissue.tif")
    report.write_overlay(tmp_path / "o.png", picture, np.roll(label, 3, axis=2), ("nucleus",))
    with Image.open(tmp_path / "o.png") as drawn:
        assert drawn.size == (1600, 354)
