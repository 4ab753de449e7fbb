"""NIfTI out: masks back on the very grid of their file, whole or not at all."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets.axes import orientation
from datasets.base import Geometry
from datasets.intensity import scale_intensity
from datasets.nifti import read_image
from evaluation.nifti import write_mask
from tests.datasets.test_nifti import CODES, EXAMPLES, directions, grid, needs_examples, patched, run_limited, save

sitk = pytest.importorskip("SimpleITK")


@pytest.mark.parametrize("axis_order", ["zxy", "zyx", "xyz"])
def test_a_mask_goes_back_to_the_voxels_it_came_from(tmp_path, axis_order):
    zyx = np.random.default_rng(1).integers(0, 9, (3, 4, 5)).astype(np.uint8)
    source = save(tmp_path / "source.nii.gz", zyx, spacing=(0.7, 0.8, 5.0))
    array, geometry = read_image(source, axis_order)
    write_mask(tmp_path / "mask.nii.gz", array, geometry)
    written = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), zyx)
    assert written.GetPixelID() == sitk.sitkUInt8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.nii.gz", "source.nii.gz"]


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (2, 4)], ids="qform{0[0]} sform{0[1]}".format)
def test_the_mask_has_exactly_the_grid_of_its_input(tmp_path, codes):
    rng = np.random.default_rng(3)
    for direction in directions():
        spacing, origin = rng.uniform(0.3, 5.0, 3), rng.normal(0.0, 200.0, 3)
        plain = save(tmp_path / "plain.nii", np.zeros((2, 3, 4), np.int16), spacing, origin, direction)
        source = patched(tmp_path / "source.nii", plain, "2h", 252, *codes)
        array, geometry = read_image(source)
        write_mask(tmp_path / "mask.nii.gz", array.astype(np.uint8), geometry)
        assert grid(tmp_path / "mask.nii.gz") == grid(source)


@needs_examples
@pytest.mark.parametrize("case", ["ct01", "ct02", "mr01"])
def test_real_labels_come_back_voxel_by_voxel_on_their_own_grid(tmp_path, case):
    image = EXAMPLES / f"{case}_image.nii.gz"
    label, geometry = read_image(EXAMPLES / f"{case}_label.nii.gz")
    write_mask(tmp_path / "mask.nii.gz", label.astype(np.uint8), read_image(image)[1])
    assert grid(tmp_path / "mask.nii.gz") == grid(image)
    written, original = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in (tmp_path / "mask.nii.gz", EXAMPLES / f"{case}_label.nii.gz")
    )
    np.testing.assert_array_equal(written, original)
    assert orientation(geometry) == {"ct01": "RAS", "ct02": "LPS", "mr01": "LPS"}[case]


@needs_examples
def test_a_mask_goes_back_into_every_orientation(tmp_path):
    """The network sees the same array of each of the 48 files; its mask lies where each of them lies."""
    scan = sitk.ReadImage(str(EXAMPLES / "ct01_image.nii.gz"))[20:60, 30:60, 40:60]
    for code in CODES:
        turned = sitk.DICOMOrient(scan, code)
        sitk.WriteImage(turned, str(tmp_path / "scan.nii"))
        array, geometry = read_image(tmp_path / "scan.nii", "zxy", "RAS")
        write_mask(tmp_path / "mask.nii.gz", (array > 100).astype(np.uint8), geometry)
        assert grid(tmp_path / "mask.nii.gz") == grid(tmp_path / "scan.nii"), code
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz")))
        np.testing.assert_array_equal(written, sitk.GetArrayFromImage(turned) > 100, err_msg=code)


@pytest.mark.parametrize("towards", ["RAS", "PIR"])
def test_a_mask_goes_back_onto_an_oblique_grid(tmp_path, towards):
    rng = np.random.default_rng(4)
    for direction in directions():
        zyx = rng.integers(0, 9, (3, 4, 5)).astype(np.uint8)
        source = save(tmp_path / "source.nii", zyx, rng.uniform(0.3, 5.0, 3), rng.normal(0.0, 200.0, 3), direction)
        array, geometry = read_image(source, "zxy", towards)
        write_mask(tmp_path / "mask.nii", array, geometry)
        assert grid(tmp_path / "mask.nii") == grid(source)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii"))), zyx)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (40, 200, 300)])
def test_the_file_is_the_one_that_simpleitk_writes(tmp_path, shape):
    zyx = np.random.default_rng(5).integers(0, 9, shape).astype(np.uint8)
    theirs = save(tmp_path / "theirs.nii", zyx, (0.5, 0.75, 3.0), (-8.0, 16.0, 2.5), np.diag([-1.0, -1.0, 1.0]))
    for name in ("ours.nii", "ours.nii.gz"):
        write_mask(tmp_path / name, *read_image(theirs))
        content = (tmp_path / name).read_bytes()
        assert (gzip.decompress(content) if name.endswith(".gz") else content) == theirs.read_bytes()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds the memory by Linux's means")
@pytest.mark.parametrize("axes", ["zxy", "xyz"])
def test_a_mask_on_the_disk_is_written_without_a_copy(tmp_path, axes):
    """320 MB in 64 MB more than the mapped mask, where a copy does not fit."""
    code = (
        "from datasets.base import Geometry\n"
        "mask = np.memmap(sys.argv[1], np.uint8, 'w+', shape=(500, 800, 800))\n"
        "mask[1, 2, 3] = 7\n"
        "limit(64)\n"
        "write_mask(sys.argv[2], mask, Geometry(axis_order=sys.argv[3], flips='y'))\n"
        "try: np.array(mask)\n"
        "except MemoryError: print('no room')\n"
    )
    assert run_limited(code, tmp_path / "mask", tmp_path / "mask.nii.gz", axes) == "no room"
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz")))
    # z, x, y or x, y, z is 1, 2, 3, and y counts from the other end.
    place = {"zxy": (1, 800 - 1 - 3, 2), "xyz": (3, 800 - 1 - 2, 1)}[axes]
    assert written[place] == 7 and np.count_nonzero(written) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds a file's size by Linux's means")
def test_a_full_disk_keeps_the_mask_that_was_there(tmp_path):
    path = tmp_path / "mask.nii.gz"
    write_mask(path, np.zeros((2, 3, 4), np.uint8), None)
    before = path.read_bytes()
    code = (
        "import signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "mask = np.random.default_rng(0).integers(0, 255, (9, 200, 200)).astype(np.uint8)\n"
        "try: write_mask(sys.argv[1], mask, None)\n"
        "except OSError as error: print(error.filename, error.strerror)\n"
    )
    assert run_limited(code, path) == f"{path} File too large"
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_without_geometry_the_mask_is_z_y_x_at_unit_spacing(tmp_path):
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_mask(tmp_path / "mask.nii.gz", mask, None)
    assert grid(tmp_path / "mask.nii.gz") == ((4, 3, 2), (1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz"))), mask)


@pytest.mark.parametrize("values", [(0, 255), (0, 255, 7), (5, 1, 4)])
def test_classes_are_written_as_the_labels_had_them(tmp_path, values):
    mask = np.random.default_rng(6).integers(0, len(values), (2, 3, 4)).astype(np.uint8)
    write_mask(tmp_path / "mask.nii.gz", mask, None, values)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz")))
    for label, value in enumerate(values):
        np.testing.assert_array_equal(written == value, mask == label)
    with pytest.raises(ValueError, match="256.*from 0 to 255"):
        write_mask(tmp_path / "other.nii.gz", mask, None, (0, 1, 256))


def test_equal_masks_make_equal_files(tmp_path):
    geometry = Geometry((0.7, 0.8, 3.0), (1.1, 2.2, 3.3), tuple(directions()[0].ravel()), "zxy")
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / name, mask, geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("name", "mask", "geometry", "error"),
    [
        ("mask.nii.gz", np.zeros((2, 2), np.uint8), None, ValueError),
        ("mask.nii.gz", np.zeros((2, 2, 2), np.int64), None, ValueError),
        ("mask.png", np.zeros((2, 2, 2), np.uint8), None, ValueError),
        ("mask.nii.gz", np.zeros((2, 2, 2), np.uint8), Geometry(spacing=(0.0, 1.0, 1.0)), ValueError),
        ("mask.nii.gz", np.zeros((2, 2, 2), np.uint8), Geometry(direction=(0.0,) * 9), ValueError),
        ("mask.nii.gz", np.zeros((2, 2, 2), np.uint8), Geometry(axis_order="zzz"), ValueError),
        ("mask.nii.gz", np.zeros((2, 0, 2), np.uint8), None, ValueError),
        ("mask.nii.gz", np.zeros((1, 1, 32768), np.uint8), None, ValueError),
        ("nowhere/mask.nii.gz", np.zeros((2, 2, 2), np.uint8), None, OSError),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, name, mask, geometry, error):
    with pytest.raises(error) as caught:
        write_mask(tmp_path / name, mask, geometry)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_mask_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "mask.nii.gz"
    write_mask(path, np.zeros((2, 3, 4), np.uint8), None)
    before = path.read_bytes()
    monkeypatch.setattr(sitk, "WriteImage", lambda image, name, **_: Path(name).write_bytes(before[:-9]))
    with pytest.raises(OSError, match="ends early"):
        write_mask(path, np.ones((2, 3, 4), np.uint8), None)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_no_text_is_refused_though_simpleitk_would_end_the_process(tmp_path):
    with pytest.raises(ValueError, match="its name is not UTF-8"):
        write_mask(tmp_path / os.fsdecode(b"\xff.nii"), np.zeros((2, 3, 4), np.uint8), None)


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


def test_nan_voxels_are_refused_by_name():
    with pytest.raises(ValueError, match="scan.nii: .*NaN"):
        scale_intensity(np.full((1, 1, 1), np.nan), where="scan.nii")
