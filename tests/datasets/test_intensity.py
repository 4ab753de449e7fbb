"""From stored numbers to [0, 1]."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.intensity import Intensity, scale_intensity


def test_a_window() -> None:
    how = Intensity("window", (-100.0, 300.0))
    image = np.array([[[-1000, -100, 0, 100, 300, 2000]]], np.int16)
    np.testing.assert_allclose(how.scale(image, how.limits(image, "ct")), [[[0, 0, 0.25, 0.5, 1, 1]]], rtol=1e-6)


def test_the_percentiles_of_each_volume() -> None:
    image = np.random.default_rng(0).normal(300, 50, (9, 12, 10)).astype(np.float32)
    how = Intensity("percentile")
    low, high = how.limits(image, "mr")
    assert (low, high) == pytest.approx(tuple(np.percentile(image, [0.5, 99.5])))
    np.testing.assert_allclose(how.scale(image, (low, high)), ((image - low) / (high - low)).clip(0, 1), atol=1e-5)


def test_the_percentiles_of_a_large_volume_come_from_a_grid_of_it() -> None:
    """Read a few slices at a time; within a thousandth of those of all voxels."""
    image = np.random.default_rng(0).integers(0, 1000, (40, 700, 800), np.uint16)  # 22 million voxels
    expected = np.percentile(image, [0.5, 99.5])
    assert Intensity("percentile").limits(image, "mr") == pytest.approx(tuple(expected), rel=0, abs=1)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_volume_of_one_value_is_black(value: float) -> None:
    image, how = np.full((2, 3, 4), value, np.float32), Intensity("percentile")
    np.testing.assert_array_equal(how.scale(image, how.limits(image, "mr")), np.zeros_like(image))


def test_a_few_bright_voxels_are_not_lost_in_a_percent() -> None:
    image, how = np.zeros((2, 50, 50), np.float32), Intensity("percentile")
    image[0, 0, :3] = 5
    assert how.limits(image, "mr") == (0, 5)


@pytest.mark.parametrize("dtype, most", [(np.uint8, 255), (np.uint16, 65535)])
def test_the_range_of_the_type(dtype: type, most: int) -> None:
    image, how = np.array([[[0, most]]], dtype), Intensity("range")
    np.testing.assert_array_equal(how.scale(image, how.limits(image, "a.png")), [[[0, 1]]])


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="a.nii: holds int16.*DATA.INTENSITY percentile"):
        Intensity("range").limits(np.zeros((1, 2, 2), np.int16), "a.nii")
    with pytest.raises(ValueError, match="DATA.INTENSITY is 'log'; expected one of window, percentile, range"):
        Intensity("log")
    with pytest.raises(ValueError, match="window is 5 to 5"):
        Intensity(window=(5, 5))
    with pytest.raises(ValueError, match="b.nii.*NaN"):
        scale_intensity(np.full((1, 2), np.nan), where="b.nii")


def test_intensity_is_clipped_to_the_window_and_scaled():
    image = np.array([-2000, -125, 75, 275, 3000], dtype=np.int16).reshape(1, 1, 5)
    scaled = scale_intensity(image)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled.ravel(), np.array([0, 0, 0.5, 1, 1], dtype=np.float32))
    odd = scale_intensity(np.linspace(-5, 5, 999), 0.1, 1.3)
    assert odd.min() == 0.0 and odd.max() == 1.0


@pytest.mark.parametrize("window", [(10.0, 10.0), (5.0, -5.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_an_empty_window_is_refused(window):
    with pytest.raises(ValueError, match="window"):
        scale_intensity(np.zeros((1, 1, 1)), *window)
