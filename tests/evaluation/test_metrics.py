"""Metrics against MedPy and by pencil; the published figures are in tests/test_parity_metrics.py."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from evaluation import metrics
from evaluation.metrics import METHODS, METRICS, ClassScores, compare, compare_classes, dice
from tests.reference import metrics as reference

NAN = float("nan")
OURS = ("fast", "device")


def test_an_unknown_form_of_assd() -> None:
    with pytest.raises(ValueError, match="assd is 'median'; expected one of pooled, directed"):
        compare(np.ones((2, 2)), np.ones((2, 2)), assd="median")


def blobs(seed: int, shape: tuple[int, ...], share: float = 0.3) -> np.ndarray:
    """Smooth random shapes, some of them cut off by the border of the array."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    return field > np.quantile(field, 1 - share)


def pair(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A truth and a prediction that agrees with it in part."""
    truth = blobs(seed, shape)
    return np.roll(truth, 1, axis=-1) ^ blobs(seed + 1000, shape, 0.02), truth


def assert_same(actual: dict[str, float], expected: dict[str, float]) -> None:
    assert tuple(actual) == METRICS
    assert all(type(value) is float for value in actual.values())
    assert actual == pytest.approx({name: expected[name] for name in METRICS}, rel=0, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((31, 27), None),
        ((31, 27), (0.5, 2.25)),
        ((12, 24, 20), None),
        ((12, 24, 20), (3.0, 0.8, 1.3)),
        ((1, 30, 20), None),
        ((1, 30, 20), (10.0, 1.5, 1.25)),
        ((30, 20, 1), None),
    ],
)
def test_equals_medpy_and_the_definition(shape, spacing, seed, method):
    pred, truth = pair(seed, shape)
    scores = compare(pred, truth, spacing, method=method)
    assert_same(scores, compare(pred, truth, spacing, method="medpy"))
    assert_same(scores, reference.compare(pred, truth, spacing))
    assert_same(scores, compare(pred, truth, spacing, strict=True, method=method))
    assert_same(scores, compare(pred, truth, spacing, method=method, workers=1))


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("spacing", [None, (5.0, 0.7, 0.9)])
def test_smooth_organ_and_speckle_equal_medpy(spacing, method):
    z, y, x = np.ogrid[:40, :60, :60]
    truth = ((z - 20) / 18) ** 2 + ((y - 30) / 25) ** 2 + ((x - 30) / 28) ** 2 < 1
    speckle = np.random.default_rng(0).random(truth.shape) < 0.2
    for pred in (np.roll(truth, 2, axis=1), truth & speckle, speckle):
        scores = compare(pred, truth, spacing, method=method)
        assert_same(scores, compare(pred, truth, spacing, method="medpy"))
        directed = compare(pred, truth, spacing, method=method, assd="directed")
        assert_same(directed, compare(pred, truth, spacing, method="medpy", assd="directed"))


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("shift", [0, 1, 3, 10])
def test_two_voxels_are_as_far_apart_as_they_are(shift, method):
    pred, truth = np.zeros((2, 5, 5, 14), bool)
    pred[2, 3, 1], truth[2, 3, 1 + shift] = True, True
    overlap = 1.0 if shift == 0 else 0.0
    expected = {"dice": overlap, "hd95": shift, "jaccard": overlap, "assd": shift}
    assert_same(compare(pred, truth, method=method), expected)
    expected |= {"hd95": 0.5 * shift, "assd": 0.5 * shift}
    assert_same(compare(pred, truth, (7.0, 3.0, 0.5), method=method), expected)


def test_spacing_goes_with_the_axes_of_the_array():
    pred, truth = np.zeros((2, 8, 8, 8), bool)
    pred[0, 0, 0], truth[2, 3, 6] = True, True
    assert compare(pred, truth, (10.0, 2.0, 1.0))["hd95"] == pytest.approx(math.sqrt(20**2 + 6**2 + 6**2))


def test_shifted_squares_by_pencil():
    # Squares of 4x4, one column apart: 24 surface points. In each square 12 points are on its rim; those
    # that lie on the other's rim too (2 rows x 3 columns) are at 0, the other 6 are one step away.
    pred, truth = np.zeros((2, 10, 10), bool)
    truth[2:6, 2:6], pred[2:6, 3:7] = True, True
    expected = {"dice": 2 * 12 / 32, "hd95": 1.0, "jaccard": 12 / 20, "assd": 12 / 24}
    assert_same(compare(pred, truth), expected)


@pytest.mark.parametrize("k", [4, 6, 9])
def test_cubes_with_room_between_them(k):
    # Cubes of edge 2: from each, half the voxels are k and half k - 1 steps away from the other cube.
    pred, truth = np.zeros((2, 4, 4, 14), bool)
    truth[1:3, 1:3, 1:3], pred[1:3, 1:3, 1 + k : 3 + k] = True, True
    assert_same(compare(pred, truth), {"dice": 0.0, "hd95": k, "jaccard": 0.0, "assd": k - 0.5})


def test_hd95_pools_both_directions():
    # A rod of 20 against one voxel at its end: 19 distances 1..19 and one 0 one way, one 0 back. The 95th
    # percentile of these 21 is the 20th value; the larger of the two directed ones would be 18.05.
    pred, truth = np.zeros((2, 1, 1, 20), bool)
    pred[...] = True
    truth[0, 0, 0] = True
    scores = compare(pred, truth)
    assert scores["hd95"] == pytest.approx(18.0)
    assert scores["assd"] == pytest.approx(190 / 21)


@pytest.mark.parametrize("method", OURS)
def test_the_border_of_the_array_is_surface(method):
    full, inside = np.ones((6, 6), bool), np.zeros((6, 6), bool)
    inside[1:5, 1:5] = True
    # The rim of 20 is 1 away from the inner rim of 12, its 4 corners sqrt(2); and back 1.
    assert_same(
        compare(full, inside, method=method),
        {"dice": 32 / 52, "hd95": math.sqrt(2), "jaccard": 16 / 36, "assd": (28 + 4 * math.sqrt(2)) / 32},
    )
    assert_same(compare(full, full, method=method), {"dice": 1, "hd95": 0, "jaccard": 1, "assd": 0})


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
def test_every_empty_pairing_in_both_conventions(pred, truth, published, strict, method):
    pred, truth = np.full((3, 4, 5), pred), np.full((3, 4, 5), truth)
    assert_same(compare(pred, truth, method=method), dict(zip(METRICS, published, strict=True)))
    assert_same(compare(pred, truth, strict=True, method=method), dict(zip(METRICS, strict, strict=True)))
    assert dice(pred, truth) == pytest.approx(strict[0], nan_ok=True)


@pytest.mark.parametrize("method", METHODS)
def test_an_array_without_voxels_is_empty(method):
    assert compare(np.zeros((0, 5)), np.zeros((0, 5)), method=method)["dice"] == 0.0


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, ">i2", np.float16, np.float32, np.float64])
def test_any_type_and_any_non_zero_value_is_foreground(dtype, method):
    pred, truth = pair(1, (6, 20, 20))
    factor = 1 if dtype is bool else 3
    inputs = [(mask * factor).astype(dtype) for mask in (pred, truth)]
    copies = [values.copy() for values in inputs]
    assert_same(compare(*inputs, method=method), compare(pred, truth))
    assert dice(*inputs) == pytest.approx(compare(pred, truth)["dice"])
    for values, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(values, copy)


@pytest.mark.parametrize("method", METHODS)
def test_views_and_read_only_arrays(method):
    pred, truth = pair(2, (6, 20, 20))
    expected = compare(pred, truth)
    pred.flags.writeable = truth.flags.writeable = False
    for ours, theirs in (
        (pred, truth),
        (pred[::-1, :, ::-1], truth[::-1, :, ::-1]),
        (np.asfortranarray(pred), truth),
        (pred.view(np.uint8), truth.astype(">i4")),
        (np.repeat(pred, 2, axis=2)[..., ::2], truth.astype(np.int64).tolist()),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns of arrays that it must not write to
            assert_same(compare(ours, theirs, method=method), expected)
            (scores,) = compare_classes(ours, theirs, 2, method=method)
            assert dice(ours, theirs) == expected["dice"]
        assert_same(scores.published, expected)


TENSOR_TYPES = (
    *(torch.bool, torch.uint8, torch.int16, torch.int64, torch.uint16, torch.uint32),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", TENSOR_TYPES)
def test_tensors(dtype, method):
    pred, truth = pair(3, (6, 20, 20))
    tensors = [torch.from_numpy(mask).to(dtype) for mask in (pred, truth)]
    expected = compare(pred, truth)
    for ours, theirs in (tensors, (pred, tensors[1]), (tensors[0], truth)):
        assert_same(compare(ours, theirs, method=method), expected)
        assert_same(compare_classes(ours, theirs, 2, method=method)[0].published, expected)
        assert dice(ours, theirs) == expected["dice"]


def test_tensors_on_the_gpu_and_with_gradient():
    pred, truth = pair(3, (6, 20, 20))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensor = torch.from_numpy(pred).float().to(device).requires_grad_()
    on_device = torch.from_numpy(truth).to(device)
    for ours, theirs in ((tensor, truth), (pred, on_device), (tensor, on_device)):
        for method in METHODS:
            assert_same(compare(ours, theirs, method=method), compare(pred, truth))
        assert dice(ours, theirs) == compare(pred, truth)["dice"]


def test_a_class_at_a_time_in_a_volume_of_many():
    """Classes whose numbers need more than a byte, among them the last."""
    truth = np.zeros((3, 9, 9), np.int64)
    truth[1, 1:4, 1:4], truth[1, 5:8, 5:8] = 299, 43
    pred = np.where(np.roll(truth, 1, axis=2) == 299, 299, truth)
    for method in METHODS:
        scores = compare_classes(pred, truth, 300, method=method)
        for label in (42, 43, 299):
            assert_same(scores[label - 1].published, compare(pred == label, truth == label))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">u2", np.float32, ">f8"])
def test_classes_are_the_masks_one_by_one(dtype, method):
    rng = np.random.default_rng(5)
    truth = gaussian_filter(rng.standard_normal((8, 30, 30)), 2)
    truth = np.digitize(truth, np.quantile(truth, [0.5, 0.7, 0.9])).astype(dtype)
    pred = np.roll(truth, 1, axis=2)
    pred[pred == 3] = 5  # class 3 missed, 5 invented, 4 in neither
    scores = compare_classes(pred, truth, 6, (3.0, 1.0, 1.0), method=method)
    assert len(scores) == 5
    for label, case in enumerate(scores, start=1):
        masks = pred == label, truth == label
        assert isinstance(case, ClassScores)
        assert_same(case.published, compare(*masks, (3.0, 1.0, 1.0)))
        assert_same(case.strict, compare(*masks, (3.0, 1.0, 1.0), strict=True))
    assert [case.published["dice"] for case in scores[2:]] == [0.0, 0.0, 1.0]


def test_as_many_threads_as_cores_that_the_process_may_use(monkeypatch):
    asked = []
    monkeypatch.setattr(metrics, "measure_classes", lambda *arguments: asked.append(arguments[-1]) or [])
    monkeypatch.setattr(metrics.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(metrics.os, "sched_getaffinity", lambda process: {3, 5, 8}, raising=False)
    compare_classes(np.ones((4, 4)), np.ones((4, 4)), 2)
    monkeypatch.delattr(metrics.os, "sched_getaffinity")
    for workers in (None, 2):
        compare_classes(np.ones((4, 4)), np.ones((4, 4)), 2, workers=workers)
    assert asked == [3, 64, 2]


def test_the_two_conventions_do_not_share_their_figures():
    scores = compare_classes(np.ones((4, 4), int), np.ones((4, 4), int), 2)[0]
    assert scores.published == scores.strict
    assert scores.published is not scores.strict


def test_dice_by_pencil():
    assert dice(np.array([[1, 1, 0, 0]]), np.array([[0, 1, 1, 1]])) == pytest.approx(2 / 5)


@pytest.mark.parametrize("measure", [compare, dice, lambda p, t: compare_classes(p, t, 2)])
@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        (np.zeros((3, 4)), np.zeros((4, 3)), r"\(3, 4\).*\(4, 3\).*same shape.*resize"),
        (np.zeros(4), np.zeros(4), r"\(4,\).*2 or 3 dimensions"),
        (np.zeros((1, 1, 3, 4)), np.zeros((1, 1, 3, 4)), r"2 or 3 dimensions.*one case at a time"),
        (np.full((3, 4), NAN), np.zeros((3, 4)), r"prediction holds 12 nan"),
        (np.zeros((3, 4)), np.full((3, 4), "a"), r"truth has dtype <U1"),
    ],
)
def test_wrong_masks_are_refused(measure, pred, truth, message):
    with pytest.raises(ValueError, match=message):
        measure(pred, truth)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
def test_both_ways_refuse_alike(form):
    good, flat = form(np.zeros((3, 4))), form(np.zeros(4))
    for pred, truth, message in (
        (good, form(np.zeros((4, 3))), r"\(3, 4\).*\(4, 3\).*same shape.*resize"),
        (flat, flat, r"\(4,\).*2 or 3 dimensions"),
        (form(np.full((3, 4), NAN)), good, "prediction holds 12 nan"),
        (good, form(np.zeros((3, 4), complex)), "truth has dtype .*complex128"),
        (form(np.full((3, 4), 7)), good, "prediction holds the label 7; expected whole numbers from 0 to 3"),
        (good, form(np.full((3, 4), -1)), "truth holds the label -1"),
        (good, form(np.full((3, 4), 1.5)), "truth holds the label 1.5"),
        (good, form(np.full((3, 4), math.inf)), "truth holds the label inf"),
    ):
        for method in OURS:
            with pytest.raises(ValueError, match=message):
                compare_classes(pred, truth, 4, method=method)
    with pytest.raises(ValueError, match="spacing is .*expected 2 positive numbers"):
        compare_classes(good, good, 4, (1.0, 0.0), method="device")


@pytest.mark.parametrize(
    "spacing",
    [
        (1.0, 1.0),
        (1.0, 1.0, 1.0, 1.0),
        2.0,
        (1.0, 0.0, 1.0),
        (1.0, -1.0, 1.0),
        (1.0, NAN, 1.0),
        (1, 1, math.inf),
        "abc",
    ],
)
def test_wrong_spacing_is_refused(spacing):
    mask = np.ones((3, 4, 5))
    for measure in (compare, lambda p, t, s: compare_classes(p, t, 2, s)):
        with pytest.raises(ValueError, match="spacing is .*expected 3 positive numbers"):
            measure(mask, mask, spacing)


def test_wrong_methods_classes_and_labels_are_refused():
    mask = np.zeros((3, 4), int)
    with pytest.raises(ValueError, match="'quick'; expected one of fast, medpy, device"):
        compare(mask, mask, method="quick")
    with pytest.raises(ValueError, match="workers is 0; expected at least 1 thread"):
        compare(mask, mask, workers=0)
    with pytest.raises(ValueError, match="num_classes is 1; expected at least 2"):
        compare_classes(mask, mask, 1)
    for stray in (7, -1, 1.5):
        with pytest.raises(ValueError, match=f"truth holds the label {stray}; expected whole numbers from 0 to 3"):
            compare_classes(mask, np.full((3, 4), stray), 4)


def test_without_medpy_only_its_method_fails(monkeypatch):
    monkeypatch.setitem(sys.modules, "medpy", None)
    monkeypatch.setitem(sys.modules, "medpy.metric", None)
    mask = np.ones((3, 4))
    assert compare(mask, mask)["dice"] == 1.0
    with pytest.raises(ImportError, match="pip install MedPy"):
        compare(mask, mask, method="medpy")
