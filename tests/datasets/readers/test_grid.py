"""Axes beside SimpleITK's: where they point, arrays turned there and back, slices as a radiologist sees them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from datasets.case import Geometry
from datasets.readers.grid import check_axes, reorient, upright
from datasets.readers.nifti import open_image, write_mask
from tests.datasets.readers.test_nifti import NO_VALUES, numbers, read_image, save

# All ways to name the ends of three axes, one of R and L, one of A and P, one of I and S.
CODES = ["".join(code) for pairs in itertools.permutations(("RL", "AP", "IS")) for code in itertools.product(*pairs)]
ENDS = {"R": -1.0, "L": 1.0, "A": -1.0, "P": 1.0, "I": -1.0, "S": 1.0}  # of the patient's axes, LPS


def test_a_scan_is_the_same_array_in_every_orientation_and_its_mask_goes_back(tmp_path: Path) -> None:
    """Their files are turned by SimpleITK; 48 of them lie the same way once they are read."""
    scan = sitk.ReadImage(str(save(tmp_path / "a.nii", numbers("i2", (7, 6, 5)), (0.5, 0.75, 3.0), (7.0, 8.0, 9.0))))
    expected = sitk.GetArrayFromImage(sitk.DICOMOrient(scan, "RAS"))  # [z, y, x]
    assert len(set(CODES)) == 48
    for code in CODES:
        path, turned = tmp_path / f"{code}.nii", sitk.DICOMOrient(scan, code)
        sitk.WriteImage(turned, str(path))
        assert open_image(path, whole=False).geometry.orientation == code
        array, geometry = read_image(path, "zxy", "RAS")
        np.testing.assert_array_equal(array, expected.transpose(0, 2, 1), err_msg=code)
        np.testing.assert_array_equal(open_image(path, "zxy", "RAS")[3:5], array[3:5], err_msg=code)
        write_mask(tmp_path / "mask.nii", (array > 100).astype(np.uint8), geometry, NO_VALUES)
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii")))
        np.testing.assert_array_equal(written, sitk.GetArrayFromImage(turned) > 100, err_msg=code)
        # Of a mask that is shown: anterior up, the patient's right at the left.
        shown = np.array([upright(plane, geometry) for plane in array])
        np.testing.assert_array_equal(shown, sitk.GetArrayFromImage(sitk.DICOMOrient(scan, "LPS")), err_msg=code)


@pytest.mark.parametrize("towards", ["RAS", "PIR"])
def test_oblique_axes_are_turned_to_the_nearest(towards: str) -> None:
    for seed in range(100):
        direction = Rotation.random(random_state=seed).as_matrix() @ np.diag([1.0, 1.0, -1.0 if seed % 2 else 1.0])
        geometry = reorient(Geometry((0.7, 0.8, 2.0), direction=tuple(direction.ravel())), "xyz", towards)
        theirs = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction.ravel().tolist())
        assert geometry.orientation == theirs, seed
        for letter, axis in zip(towards, geometry.axis_order, strict=True):
            along = direction.T["xyz".index(axis)] * (-1.0 if axis in geometry.flips else 1.0)
            patient_axis = next(i for i, pair in enumerate(("RL", "AP", "IS")) if letter in pair)
            assert along[patient_axis] * ENDS[letter] > 0, (seed, letter)


def test_other_than_axial_slices_are_shown_as_stored() -> None:
    image = numbers("u1", (4, 5))
    assert upright(image, None) is image and upright(image, Geometry(axis_order="xyz")) is image


@pytest.mark.parametrize("code", ["RAX", "RA", "RLS", "RASS", "ras", "RRR", " RAS"])
def test_what_is_no_orientation_and_no_order_is_refused(code: str) -> None:
    with pytest.raises(ValueError, match="DATA.ORIENTATION is '"):
        check_axes("zxy", code)
    with pytest.raises(ValueError, match="axis order 'xx'"):
        check_axes("xx")
