"""Written masks: NIfTI on the grid of its input, PNG and TIFF with the values of the labels, written atomically."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from datasets.case import Geometry
from datasets.readers.image import read_mask
from evaluation.masks import write_image_mask, write_mask
from tests.conftest import geometry as grid
from tests.datasets.readers.test_nifti import run

sitk = pytest.importorskip("SimpleITK")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds the memory by Linux's means")
@pytest.mark.parametrize("axes", ["zxy", "xyz"])
def test_a_mask_on_the_disk_is_written_without_a_copy(tmp_path, axes):
    """320 MB in 64 MiB, where a copy takes all of it."""
    code = (
        "mask = np.memmap(sys.argv[1], np.uint8, 'w+', shape=(500, 800, 800))\n"
        "mask[1, 2, 3] = 7\n"
        "before = peak()\n"
        "write_mask(sys.argv[2], mask, Geometry(axis_order=sys.argv[3], flips='y'))\n"
        "print(peak() - before)\n"
    )
    assert float(run(code, tmp_path / "mask", tmp_path / "mask.nii.gz", axes)) < 64
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz")))
    # z, x, y or x, y, z is 1, 2, 3, and y counts from the other end.
    place = {"zxy": (1, 800 - 1 - 3, 2), "xyz": (3, 800 - 1 - 2, 1)}[axes]
    assert written[place] == 7 and np.count_nonzero(written) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds a file's size by Linux's means")
@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.mha", "mask.nrrd"])
def test_a_full_disk_keeps_the_mask_that_was_there(tmp_path, name):
    path = tmp_path / name
    write_mask(path, np.zeros((2, 3, 4), np.uint8), None)
    before = path.read_bytes()
    code = (
        "import signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "mask = np.random.default_rng(0).integers(0, 255, (9, 200, 200)).astype(np.uint8)\n"
        "try: write_mask(sys.argv[1], mask, None)\n"
        "except OSError as error: print(error.filename)\n"
    )
    assert run(code, path) == str(path)
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
    with pytest.raises(ValueError, match="256.*0..255"):
        write_mask(tmp_path / "other.nii.gz", mask, None, (0, 1, 256))


def test_equal_masks_make_equal_files(tmp_path):
    geometry = Geometry((0.7, 0.8, 3.0), (1.1, 2.2, 3.3), (0.6, 0.8, 0, 0.8, -0.6, 0, 0, 0, 1), "zxy")
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / name, mask, geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("name", ["nowhere/mask.nii.gz", "nowhere/mask.mha"])
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, name):
    with pytest.raises(OSError) as caught:
        write_mask(tmp_path / name, np.zeros((2, 2, 2), np.uint8), None)
    assert len(str(caught.value).splitlines()) == 1 and str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


SIZE = (7, 5)
X_RESOLUTION, Y_RESOLUTION, UNIT = 282, 283, 296


def classes(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, SIZE).astype(np.uint8)


def image_file(path: Path, **options: object) -> Path:
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path, **options)
    return path


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 128, 255), (7, 0, 3)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "tiff"])
def test_an_image_mask_holds_the_values_of_the_labels(tmp_path: Path, suffix: str, values: tuple[int, ...]) -> None:
    source = image_file(tmp_path / f"source.{suffix}")
    written = write_image_mask(tmp_path / "a.1", classes(), values, source)
    assert written == tmp_path / ("a.1.tif" if suffix.startswith("tif") else "a.1.png")
    with Image.open(written) as image:
        assert (image.mode, image.format) == ("L", "TIFF" if suffix.startswith("tif") else "PNG")
    np.testing.assert_array_equal(read_mask(written), np.array(values)[classes()])
    assert {path.name for path in tmp_path.iterdir()} == {source.name, written.name}


def test_without_a_tiff_an_image_mask_is_a_png(tmp_path: Path) -> None:
    assert write_image_mask(tmp_path / "a", classes(2), (0, 255), None) == tmp_path / "a.png"
    source = image_file(tmp_path / "really.png").rename(tmp_path / "source.tif")
    assert write_image_mask(tmp_path / "a", classes(2), (0, 255), source).suffix == ".png"


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_keeps_its_resolution(tmp_path: Path, compression: str | None) -> None:
    tags = {X_RESOLUTION: IFDRational(39881, 1000), Y_RESOLUTION: IFDRational(40000, 1003), UNIT: 3}
    source = image_file(tmp_path / "source.tif", tiffinfo=tags, compression=compression)
    written = write_image_mask(tmp_path / "a", classes(), (0, 1, 2), source)
    with Image.open(source) as there, Image.open(written) as here:
        assert here.tag_v2[UNIT] == 3
        for tag in (X_RESOLUTION, Y_RESOLUTION):
            ours, theirs = here.tag_v2[tag], there.tag_v2[tag]
            assert (ours.numerator, ours.denominator) == (theirs.numerator, theirs.denominator)
            assert float(ours) == pytest.approx(float(tags[tag]), rel=1e-6)


def test_an_image_mask_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"DATA.LABEL_VALUES is \[0, 1, 256\]; a mask holds 0\.\.255"):
        write_image_mask(tmp_path / "a", classes(), (0, 1, 256), None)
    with pytest.raises(OSError, match=r"nowhere.a\.png"):
        write_image_mask(tmp_path / "nowhere/a", classes(), (0, 1, 2), None)
    assert list(tmp_path.iterdir()) == []
