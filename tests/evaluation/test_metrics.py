"""Metrics against MedPy, full distance maps and shapes of known distances; published values: test_parity_metrics.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from evaluation.metrics import METHODS, METRICS, compare, compare_at_spacings, compare_classes, dice_per_class
from tests.reference import metrics as reference

NAN = float("nan")
CLASSES = 6


def organs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth regions of the classes 1 to 4, cut off by the border; class 5 does not occur."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return np.digitize(field, np.quantile(field, [0.5, 0.7, 0.8, 0.9])).astype(np.uint8)


def with_errors(truth: np.ndarray) -> np.ndarray:
    """The labels moved by one voxel, with single voxels of any class here and there."""
    rng = np.random.default_rng(0)
    pred = np.roll(truth, 1, axis=-1)
    wrong = rng.random(truth.shape) < 0.01
    pred[wrong] = rng.integers(0, CLASSES, wrong.sum())
    return pred


def pair(shape: tuple[int, ...] = (6, 20, 20)) -> tuple[np.ndarray, np.ndarray]:
    """A predicted and a true mask."""
    truth = organs(3, shape)
    return with_errors(truth) == 2, truth == 2


def assert_same(actual: dict[str, float], expected: dict[str, float]) -> None:
    assert tuple(actual) == METRICS
    assert all(type(value) is float for value in actual.values())
    assert actual == pytest.approx({name: expected[name] for name in METRICS}, rel=0, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((40, 36), None),
        ((40, 36), (0.5, 2.25)),
        ((9, 26, 22), None),
        ((9, 26, 22), (3.0, 0.8, 1.3)),
        ((9, 26, 22), (0.4, 30.0, 0.4)),
        ((1, 30, 24), (10.0, 1.5, 1.25)),
        ((24, 20, 1), None),
    ],
)
def test_equals_medpy_and_full_distance_maps(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> None:
    truth = organs(1, shape)
    noise = np.random.default_rng(3).integers(0, CLASSES, shape, dtype=np.uint8)
    for pred in (truth, with_errors(truth), noise, organs(4, shape)):
        for assd in ("pooled", "directed"):
            found = compare_classes(pred, truth, CLASSES, spacing, assd=assd)
            by_medpy = compare_classes(pred, truth, CLASSES, spacing, assd=assd, method="medpy")
            for label, (one, other) in enumerate(zip(found, by_medpy, strict=True), start=1):
                assert_same(one.published, other.published)
                assert_same(one.strict, other.strict)
                masks = pred == label, truth == label
                if assd == "pooled" and all(mask.any() for mask in masks):
                    assert_same(one.published, reference.compare(*masks, spacing))


def test_a_large_organ_and_one_far_away() -> None:
    """Enough points for several threads, and distances across the volume."""
    z, y, x = np.ogrid[:90, :100, :110]
    truth = ((z - 45) / 40) ** 2 + ((y - 50) / 45) ** 2 + ((x - 50) / 48) ** 2 < 1
    far = np.zeros_like(truth)
    far[:2, :2, :2] = True
    for pred in (np.roll(truth, 2, axis=1), far):
        assert_same(compare(pred, truth, (5.0, 0.7, 0.9)), reference.compare(pred, truth, (5.0, 0.7, 0.9)))


@pytest.mark.parametrize("shift", [0, 1, 3, 10])
def test_two_voxels_are_as_far_apart_as_they_are(shift: int) -> None:
    pred, truth = np.zeros((2, 5, 5, 14), bool)
    pred[2, 3, 1], truth[2, 3, 1 + shift] = True, True
    overlap = 1.0 if shift == 0 else 0.0
    assert_same(compare(pred, truth), {"dice": overlap, "hd95": shift, "jaccard": overlap, "assd": shift})
    in_mm = compare(pred, truth, (7.0, 3.0, 0.5))
    assert in_mm["hd95"] == in_mm["assd"] == 0.5 * shift


def test_spacing_follows_the_axes_of_the_array() -> None:
    pred, truth = np.zeros((2, 8, 8, 8), bool)
    pred[0, 0, 0], truth[2, 3, 6] = True, True
    assert compare(pred, truth, (10.0, 2.0, 1.0))["hd95"] == pytest.approx(math.sqrt(20**2 + 6**2 + 6**2))


def test_shifted_squares() -> None:
    # Squares of 4x4, one column apart: 24 surface points. In each square 12 points are on its rim; those
    # that lie on the other's rim too (2 rows x 3 columns) are at 0, the other 6 are one step away.
    pred, truth = np.zeros((2, 10, 10), bool)
    truth[2:6, 2:6], pred[2:6, 3:7] = True, True
    assert_same(compare(pred, truth), {"dice": 2 * 12 / 32, "hd95": 1.0, "jaccard": 12 / 20, "assd": 12 / 24})


@pytest.mark.parametrize("k", [4, 9])
def test_separate_cubes(k: int) -> None:
    # Cubes of edge 2: from each, half the voxels are k and half k - 1 steps away from the other cube.
    pred, truth = np.zeros((2, 4, 4, 14), bool)
    truth[1:3, 1:3, 1:3], pred[1:3, 1:3, 1 + k : 3 + k] = True, True
    assert_same(compare(pred, truth), {"dice": 0.0, "hd95": k, "jaccard": 0.0, "assd": k - 0.5})


def test_concentric_spheres() -> None:
    """Surfaces at radius 10 and 16 are 6 apart everywhere, to the rounding of voxels."""
    z, y, x = np.ogrid[-20:21, -20:21, -20:21]
    radius = np.sqrt(z**2 + y**2 + x**2)
    scores = compare(radius <= 16, radius <= 10)
    assert scores["dice"] == pytest.approx(2 * 10**3 / (10**3 + 16**3), abs=0.01)
    assert scores["hd95"] == pytest.approx(6, abs=0.5) and scores["assd"] == pytest.approx(6, abs=0.5)


def test_hd95_pools_both_directions() -> None:
    # A rod of 20 against one voxel at its end: distances 0..19 one way, 0 back. The 95th percentile of these 21 is
    # the 20th value, 18, where MONAI's larger of the two directed percentiles would be 18.05.
    pred, truth = np.zeros((2, 1, 1, 20), bool)
    pred[...] = True
    truth[0, 0, 0] = True
    scores = compare(pred, truth)
    assert scores["hd95"] == pytest.approx(18.0) and scores["assd"] == pytest.approx(190 / 21)
    assert compare(pred, truth, assd="directed")["assd"] == pytest.approx((190 / 20 + 0) / 2)


def test_the_border_of_the_array_is_surface() -> None:
    full, inside = np.ones((6, 6), bool), np.zeros((6, 6), bool)
    inside[1:5, 1:5] = True
    # The rim of 20 is 1 away from the inner rim of 12, its 4 corners sqrt(2); and back 1.
    expected = {"dice": 32 / 52, "hd95": math.sqrt(2), "jaccard": 16 / 36, "assd": (28 + 4 * math.sqrt(2)) / 32}
    assert_same(compare(full, inside), expected)
    assert_same(compare(full, full), {"dice": 1, "hd95": 0, "jaccard": 1, "assd": 0})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("pred", "truth", "published", "strict"),
    [
        (0, 0, (0, 0, 0, 0), (NAN, NAN, NAN, NAN)),
        (0, 1, (0, 0, 0, 0), (0, NAN, 0, NAN)),
        (1, 0, (1, 0, 1, 0), (0, NAN, 0, NAN)),
        (1, 1, (1, 0, 1, 0), (1, 0, 1, 0)),
    ],
)
def test_every_empty_pairing(pred: int, truth: int, published: tuple, strict: tuple, method: str) -> None:
    masks = np.full((3, 4, 5), pred), np.full((3, 4, 5), truth)
    assert_same(compare(*masks, method=method), dict(zip(METRICS, published, strict=True)))
    assert_same(compare(*masks, strict=True, method=method), dict(zip(METRICS, strict, strict=True)))
    np.testing.assert_array_equal(dice_per_class(*masks, 2), strict[:1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, ">i2", np.float32, np.float64])
def test_any_dtype_is_left_unchanged(dtype: type | str, method: str) -> None:
    masks = pair()
    inputs = [mask.astype(dtype) * (1 if dtype is bool else 3) for mask in masks]
    copies = [values.copy() for values in inputs]
    assert_same(compare(*inputs, method=method), compare(*masks))
    for values, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(values, copy)


@pytest.mark.filterwarnings("error")  # torch warns of arrays that it must not write to
def test_views_and_read_only_arrays() -> None:
    pred, truth = pair()
    expected = compare(pred, truth)
    pred.flags.writeable = truth.flags.writeable = False
    for masks in ((pred, truth), (pred[::-1, :, ::-1], truth[::-1, :, ::-1]), (np.asfortranarray(pred), truth)):
        assert_same(compare(*masks), expected)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float32])
def test_tensors(dtype: torch.dtype, device: str) -> None:
    pred, truth = pair()
    tensors = [torch.from_numpy(mask).to(device, dtype) for mask in (pred, truth)]
    for masks in (tensors, (pred, tensors[1]), (tensors[0], truth)):
        assert_same(compare(*masks), compare(pred, truth))
        assert_same(compare_classes(*masks, 2, method="medpy")[0].published, compare(pred, truth))


@pytest.mark.parametrize("num_classes", [CLASSES, 300])
@pytest.mark.parametrize("method", METHODS)
def test_classes_equal_their_masks_one_by_one(method: str, num_classes: int) -> None:
    truth = organs(5, (8, 30, 30)).astype(np.int64) * (num_classes // CLASSES)
    pred = np.roll(truth, 1, axis=2)
    pred[pred == pred.max()] = num_classes - 1  # one class is a false negative, another a false positive
    spacings = [None, (3.0, 1.0, 1.0)]
    dice = dice_per_class(pred, truth, num_classes)
    found_at = compare_at_spacings(pred, truth, num_classes, spacings, method=method, assd="pooled")
    for spacing, scores in zip(spacings, found_at, strict=True):
        assert len(scores) == num_classes - 1
        for label in {*np.unique(pred), *np.unique(truth), 1} - {0}:
            masks, found = (pred == label, truth == label), scores[label - 1]
            assert_same(found.published, compare(*masks, spacing))
            assert_same(found.strict, compare(*masks, spacing, strict=True))
            assert dice[label - 1] == pytest.approx(found.strict["dice"], nan_ok=True)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        (np.zeros((3, 4)), np.zeros((4, 3)), r"\(3, 4\).*\(4, 3\).*the same.*resize"),
        (np.zeros(4), np.zeros(4), r"\(4,\).*2 or 3 dimensions"),
        (np.zeros((1, 1, 3, 4)), np.zeros((1, 1, 3, 4)), r"2 or 3 dimensions.*one case at a time"),
        (np.full((3, 4), NAN), np.zeros((3, 4)), "prediction holds nan"),
        (np.full((3, 4), 7), np.zeros((3, 4)), "prediction holds the label 7; expected whole numbers from 0 to 3"),
        (np.zeros((3, 4)), np.full((3, 4), -1), "truth holds the label -1"),
        (np.zeros((3, 4)), np.full((3, 4), 255, np.uint8), "truth holds the label 255"),
        (np.zeros((3, 4)), np.full((3, 4), 1.5), "truth holds the label 1.5"),
    ],
)
def test_wrong_label_maps(pred: np.ndarray, truth: np.ndarray, message: str, form: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        compare_classes(form(pred), form(truth), 4)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), 2.0, (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, NAN, 1.0)])
def test_wrong_spacing(spacing: object) -> None:
    mask = np.ones((3, 4, 5))
    with pytest.raises(ValueError, match="spacing is .*expected 3 positive numbers"):
        compare(mask, mask, spacing)


def test_wrong_options() -> None:
    mask = np.zeros((3, 4), int)
    with pytest.raises(ValueError, match="'quick'; expected one of fast, medpy"):
        compare(mask, mask, method="quick")
    with pytest.raises(ValueError, match="assd is 'median'; expected one of pooled, directed"):
        compare(mask, mask, assd="median")
    with pytest.raises(ValueError, match="num_classes is 1; expected at least 2"):
        compare_classes(mask, mask, 1)
