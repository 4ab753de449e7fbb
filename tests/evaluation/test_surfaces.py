"""Voxel counts and surface distances, every way they are found, against full distance maps class by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from evaluation import surfaces
from evaluation.surfaces import ClassMeasure, measure_classes
from tests.reference import metrics as reference

FORMS = (np.asarray, torch.from_numpy)
SPACINGS = (None, (3.0, 0.8, 1.3), (0.4, 30.0, 0.4))
CLASSES = 6


def organs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth regions of the labels 0 to 4, cut off by the border; label 5 does not occur."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return np.digitize(field, np.quantile(field, [0.5, 0.7, 0.8, 0.9])).astype(np.uint8)


def stray(seed: int, labels: np.ndarray, share: float = 0.01) -> np.ndarray:
    """The labels moved by one voxel, with single voxels of any label here and there."""
    rng = np.random.default_rng(seed)
    moved = np.roll(labels, 1, axis=-1)
    wrong = rng.random(labels.shape) < share
    moved[wrong] = rng.integers(0, CLASSES, wrong.sum())
    return moved


def speckle(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Labels as an untrained network may draw them."""
    return np.random.default_rng(seed).integers(0, CLASSES, shape, dtype=np.uint8)


def measure(
    pred: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None = None, form=np.asarray, workers: int = 1
) -> list[ClassMeasure]:
    return measure_classes(form(pred), form(truth), CLASSES, None if spacing is None else np.array(spacing), workers)


def assert_measured(found: Sequence[ClassMeasure], pred: np.ndarray, truth: np.ndarray, spacing=None) -> None:
    assert len(found) == CLASSES - 1
    for label, one in enumerate(found, start=1):
        ours, theirs = pred == label, truth == label
        assert (one.pred_size, one.truth_size, one.shared) == (ours.sum(), theirs.sum(), (ours & theirs).sum())
        expected = [np.empty(0)] * 2
        if ours.any() and theirs.any():
            expected = [reference.distances(*masks, spacing) for masks in ((ours, theirs), (theirs, ours))]
        for distances, there in zip((one.to_truth, one.to_pred), expected, strict=True):
            assert distances.dtype == np.float64
            np.testing.assert_allclose(np.sort(distances), np.sort(there), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", [(9, 26, 22), (1, 30, 24), (24, 20, 1), (40, 36)])
def test_equals_full_distance_maps(shape, spacing, form):
    spacing = spacing and spacing[-len(shape) :]
    truth = organs(1, shape)
    for pred in (truth, stray(2, truth), speckle(3, shape), organs(4, shape)):
        assert_measured(measure(pred, truth, spacing, form), pred, truth, spacing)
        assert_measured(measure(truth, pred, spacing, form), truth, pred, spacing)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_far_apart(spacing, form):
    truth, pred = np.zeros((2, 12, 60, 50), np.uint8)
    truth[1:5, 2:9, 3:12], pred[8:11, 45:58, 38:49] = 1, 1  # no voxel shared, nor any on the way
    truth[0, 0, 49], pred[11, 59, 0] = 2, 2  # one voxel each, at opposite corners
    truth[6, 20:40, 20:40], pred[6, 30, 30] = 3, 3  # a sheet and one voxel on it
    pred[0, 0, 0:2] = 4  # invented
    truth[0, 59, 49] = 5  # missed
    assert_measured(measure(pred, truth, spacing, form), pred, truth, spacing)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reach", [1, 2, 7])
def test_however_far_the_rings_reach(reach, form, monkeypatch):
    monkeypatch.setattr(surfaces, "_REACH", reach)
    truth = organs(1, (9, 26, 22))
    pred = stray(2, truth, 0.002)
    for spacing in SPACINGS:
        assert_measured(measure(pred, truth, spacing, form), pred, truth, spacing)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tile", [1, 7, 300])
def test_tiles_smaller_than_what_is_looked_at(tile, form, monkeypatch):
    truth = organs(1, (5, 12, 14))
    # Nearly all points are far with short rings, so that every way of measuring is cut in tiles.
    monkeypatch.setattr(surfaces, "_REACH", 1)
    monkeypatch.setattr(surfaces, "_TILE", tile * 27)
    monkeypatch.setattr(surfaces, "_DEVICE_TILE", tile * 27)
    monkeypatch.setattr(surfaces, "_FAR", tile)
    for pred in (organs(2, truth.shape), speckle(3, truth.shape)):
        assert_measured(measure(pred, truth, None, form), pred, truth)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cost", [0, 2**40])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_way_to_far_points(spacing, cost, form, monkeypatch):
    monkeypatch.setattr(surfaces, "_TREE_SEARCH", cost)
    monkeypatch.setattr(surfaces, "_PAIR", cost)
    monkeypatch.setattr(surfaces, "_REACH", 1)
    truth = organs(1, (9, 26, 22))
    in_plane = spacing and spacing[1:]
    for pred in (stray(2, truth, 0.003), speckle(3, truth.shape)):
        assert_measured(measure(pred, truth, spacing, form), pred, truth, spacing)
        assert_measured(measure(pred[4], truth[4], in_plane, form), pred[4], truth[4], in_plane)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cost", [0, 2**60])
def test_squares_beyond_four_bytes(cost, form, monkeypatch):
    monkeypatch.setattr(surfaces, "_TREE_SEARCH", cost)
    monkeypatch.setattr(surfaces, "_PAIR", cost)
    pred, truth = np.zeros((2, 47000, 3), np.uint8)
    pred[:9, 1], truth[-9:, 2] = 1, 1
    assert_measured(measure(pred, truth, None, form), pred, truth)


@pytest.mark.parametrize("form", FORMS)
def test_more_classes_than_a_byte_holds(form):
    truth = np.arange(8 * 8 * 5, dtype=np.int32).reshape(5, 8, 8)
    found = measure_classes(form(truth), form(np.roll(truth, 1, axis=2)), truth.size, None, 1)
    expected = np.where(truth % 8 == 7, 7.0, 1.0).reshape(-1)[1:]
    assert [one.pred_size for one in found] == [1] * (truth.size - 1)
    np.testing.assert_array_equal(np.concatenate([one.to_truth for one in found]), expected)


@pytest.mark.parametrize("workers", [2, 5])
def test_threads_change_nothing(workers, monkeypatch):
    monkeypatch.setattr(surfaces, "_TILE", 2000)
    truth = organs(1, (9, 26, 22))
    for pred in (stray(2, truth), speckle(3, truth.shape)):
        for one, other in zip(measure(pred, truth), measure(pred, truth, workers=workers), strict=True):
            assert (one.pred_size, one.truth_size, one.shared) == (other.pred_size, other.truth_size, other.shared)
            np.testing.assert_array_equal(one.to_truth, other.to_truth)
            np.testing.assert_array_equal(one.to_pred, other.to_pred)


def test_nothing_anywhere():
    for shape in ((0, 5), (4, 5), (3, 4, 5)):
        for spacing in (None, np.array((9.0, 9.0, 1.0))[-len(shape) :]):
            empty = np.zeros(shape, np.uint8)
            for one in measure_classes(empty, empty, CLASSES, spacing, 1):
                assert (one.pred_size, one.truth_size, one.shared) == (0, 0, 0)
                assert len(one.to_truth) == len(one.to_pred) == 0
