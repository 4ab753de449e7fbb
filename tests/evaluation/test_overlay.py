"""Overlays: which slice, which colors, which way up, and that no name breaks the drawing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageColor

from datasets.case import Geometry, Volume
from evaluation import overlay


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


# Machado, Oliveira, Fernandes 2009: linear RGB as seen without red and without green, severity 1.
READERS = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def pixels(png: Image.Image, columns: slice = slice(None)) -> np.ndarray:
    return np.asarray(png)[:, columns]


def shown(png: Image.Image, colors: Iterable[str], columns: slice = slice(None)) -> list[str]:
    """Those of the colors that fill an area in these columns of an overlay."""
    found = pixels(png, columns)
    return [color for color in colors if (found == ImageColor.getrgb(color)).all(axis=-1).sum() > 50]


def lab(colors: Sequence[str], reader: str = "all") -> np.ndarray:
    """CIE L*a*b* (N, 3) of colors as a reader sees them."""
    values = np.array([ImageColor.getrgb(color) for color in colors]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(READERS[reader]), 0, 1)
    xyz = seen @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def smallest_distance(colors: Sequence[str], others: Sequence[str], reader: str) -> float:
    """Delta E (CIE 1976) of the closest two that are not the same."""
    distances = np.linalg.norm(lab(colors, reader)[:, None] - lab(others, reader), axis=-1)
    return distances[distances > 0].min()


@pytest.mark.parametrize(("reader", "least"), [("all", 30), ("no red", 13), ("no green", 13)])
def test_classes_and_errors_have_distinct_colors(reader: str, least: float) -> None:
    kinds = [color for _, color in overlay.ERRORS]
    classes = [overlay.class_color(label) for label in range(1, 14)]
    dimmed_grays = [f"rgb({value}, {value}, {value})" for value in range(0, 116, 5)]
    assert smallest_distance([*classes, *kinds], [*classes, *kinds], reader) > least
    assert smallest_distance(kinds, kinds, reader) > 50
    assert smallest_distance(kinds, dimmed_grays, reader) > 50


def test_generated_colors_differ_from_those_before() -> None:
    colors = [overlay.class_color(label) for label in range(1, 256)] + [color for _, color in overlay.ERRORS]
    assert len(set(colors)) == len(colors)
    assert smallest_distance(colors[:30], colors[:30], "all") > 10


@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-800.0, 300.0), (7.0, 7.0)])
def test_four_panels_with_a_truth_and_two_without(depth: int, low: float, high: float) -> None:
    case, prediction = volume(depth, low, high)
    with_truth = pixels(overlay.draw_overlay(case, prediction, NAMES))
    without = overlay.draw_overlay(replace(case, label=None), prediction, NAMES)
    assert with_truth.shape == (416, 1600, 3) and pixels(without).shape == (388, 800, 3)
    assert not shown(without, [color for _, color in overlay.ERRORS[:2]])
    nothing = overlay.draw_overlay(replace(case, label=0 * prediction), 0 * prediction, NAMES)
    assert pixels(nothing).shape == (360, 1600, 3)


def test_errors_by_pencil() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 0]])
    prediction = np.array([[0, 1, 1, 0], [2, 1, 0, 2]])
    assert overlay.errors(prediction, truth).tolist() == [[0, 2, 0, 1], [0, 3, 1, 2]]
    assert [name for name, _ in overlay.ERRORS] == ["false negative", "false positive", "wrong class"]


def test_the_errors_panel_shows_the_kinds_that_occur_and_no_others() -> None:
    case, prediction = volume()
    missed, invented = colors = [color for _, color in overlay.ERRORS[:2]]
    for predicted, expected in (
        (prediction, colors),
        (np.zeros_like(prediction), [missed]),
        (np.where(case.label == 0, 1, case.label).astype(np.uint8), [invented]),
        (case.label, []),
    ):
        png = overlay.draw_overlay(case, predicted, NAMES)
        assert shown(png, colors, slice(1200, 1600)) == expected and not shown(png, colors, slice(0, 800))


def test_each_half_explains_the_classes_in_it_and_no_others() -> None:
    case, prediction = volume()
    label, prediction = np.where(case.label == 2, 0, case.label), np.where(prediction == 3, 0, prediction)
    png = overlay.draw_overlay(replace(case, label=label), prediction, NAMES)
    first, second, third = colors = [overlay.class_color(number) for number in (1, 2, 3)]
    assert shown(png, colors, slice(0, 800)) == [first, third]
    assert shown(png, colors, slice(800, 1600)) == [first, second]


@pytest.mark.parametrize("name", ["patient_0123456789_" * 10, "a\nb\x1b[2J\0", "\udcff\u202e", "\u809d\u81d3", "$x_{$"])
def test_names_are_cut_and_drawn_whatever_they_hold(name: str) -> None:
    case, prediction = volume()
    png = overlay.draw_overlay(replace(case, name=name), prediction, [name] * 3)
    assert (pixels(png)[:28, :800] < 128).any() and (pixels(png)[:28, 800:] == 255).all()
    assert (pixels(png)[-36:, 392:400] == 255).all(), "a name runs into the next column of the legend"


@pytest.mark.parametrize("channels", ["first", "last"])
def test_a_color_image_with_more_classes_than_listed_colors(channels: str) -> None:
    case, prediction = volume(1)
    image = np.zeros((1, 60, 80, 3))
    image[..., 1] = case.image + 800
    png = overlay.draw_overlay(
        replace(case, image=image if channels == "last" else np.moveaxis(image, -1, 1), is_image=True),
        prediction * 10,
        [f"organ {index}" for index in range(1, 31)],
    )
    panel = pixels(png, slice(8, 392))[56:344].astype(int)
    assert panel[..., 0].max() == 0 and panel[..., 1].max() == 255
    assert overlay.class_color(30) in shown(png, [overlay.class_color(30)], slice(800, 1600))


@pytest.mark.parametrize(("shape", "drawn"), [((40, 60), (256, 384)), ((60, 40), (461, 307)), ((600, 900), (256, 384))])
def test_panels_keep_the_aspect_ratio(shape: tuple[int, int], drawn: tuple[int, int]) -> None:
    image = np.full((1, *shape), 0.5, np.float32)
    image[0, 0, 0] = 1.0
    first = pixels(overlay.draw_overlay(Volume("a", image), np.zeros((1, *shape), np.uint8), ()), slice(0, 400))[56:]
    filled = (first < 255).all(axis=-1)
    assert abs(filled.any(axis=1).sum() - drawn[0]) <= 8 and abs(filled.any(axis=0).sum() - drawn[1]) <= 8


def test_the_slice_with_most_classes_then_most_voxels() -> None:
    labels = np.zeros((5, 4, 4), np.uint8)
    assert overlay.richest_slice(labels) == 2
    labels[0] = 1
    assert overlay.richest_slice(labels) == 0
    labels[1, 0, :2], labels[3, 0], labels[3, 1], labels[4, 0, :2] = (1, 2), 1, 2, (1, 2)
    assert overlay.richest_slice(labels) == 3


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


def test_one_slice_is_read_of_an_image_that_is_read_by_ranges() -> None:
    class Sliced:
        shape, ndim = (5, 60, 80), 3

        def __getitem__(self, slices: slice) -> np.ndarray:
            assert slices.stop - slices.start == 1
            return case.image[slices]

    case, prediction = volume()
    sliced = replace(case, image=Sliced())
    assert overlay.draw_overlay(sliced, prediction, NAMES) == overlay.draw_overlay(case, prediction, NAMES)
