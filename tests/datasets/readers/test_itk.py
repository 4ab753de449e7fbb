"""MetaImage and NRRD, written by SimpleITK: the numbers, the grid, damage, and masks in kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from datasets.readers import ITK, itk, open_volume, read_label
from evaluation.masks import mask_suffix, write_mask
from tests.datasets.readers.test_nifti import numbers

VOXELS = numbers("i2", (7, 6, 5))
DIRECTION = Rotation.from_rotvec([0.3, -0.2, 2.0]).as_matrix()


def scan(voxels: np.ndarray = VOXELS) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((7.0, 8.0, 9.0))
    image.SetDirection(DIRECTION.ravel().tolist())
    return image


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", ITK)
def test_a_volume_is_read_as_its_nifti_and_its_mask_written_in_kind(
    tmp_path: Path, suffix: str, compressed: bool
) -> None:
    source = tmp_path / f"a{suffix}"
    sitk.WriteImage(scan(), str(source), compressed)
    sitk.WriteImage(scan(), str(tmp_path / "a.nii"))
    for how in (("zyx",), ("zxy", "LPS"), ("yxz", "RIA")):
        (image, geometry), (expected, theirs) = (open_volume(path, *how) for path in (source, tmp_path / "a.nii"))
        assert (image.shape, image.dtype) == (expected.shape, expected.dtype)
        array = image[:]
        np.testing.assert_array_equal(array, expected[:])
        assert (geometry.axis_order, geometry.flips) == (theirs.axis_order, theirs.flips)
        np.testing.assert_allclose(geometry.affine, theirs.affine, atol=1e-5)
        mask = tmp_path / f"mask{mask_suffix(source)}"
        write_mask(mask, (array > 0).astype(np.uint8), geometry, (3, 200))
        found = sitk.ReadImage(str(mask))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), np.where(VOXELS > 0, 200, 3))
        for part in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(found, part)() == pytest.approx(getattr(scan(), part)(), abs=1e-12)
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", ITK)
def test_a_damaged_volume_is_refused_in_one_line(
    tmp_path: Path, suffix: str, compressed: bool, capfd: pytest.CaptureFixture
) -> None:
    source = tmp_path / f"a{suffix}"
    sitk.WriteImage(scan(), str(source), compressed)
    voxels = next((path for path in tmp_path.iterdir() if path.suffix in (".raw", ".zraw")), source)
    content = voxels.read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 1
    for damaged in (b"", content[:9], content[: len(content) // 2], content[:-9], *([flipped] if compressed else [])):
        voxels.write_bytes(damaged)
        with pytest.raises(ValueError) as caught:
            open_volume(source, whole=True)
        assert str(caught.value).startswith(f"{source}: ") and len(str(caught.value).splitlines()) == 1
    voxels.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=source.name):
        open_volume(source, whole=True)
    assert capfd.readouterr().err == ""


def test_what_is_no_volume_of_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mha"
    for image in (
        sitk.GetImageFromArray(VOXELS[0]),
        sitk.GetImageFromArray(np.zeros((2, 3, 4, 3), np.uint8), isVector=True),
        sitk.GetImageFromArray(np.full((2, 3, 4), np.nan)),
    ):
        sitk.WriteImage(image, str(path))
        with pytest.raises(ValueError, match=r"a\.mha: .*expected"):
            open_volume(path, whole=True)
    sitk.WriteImage(scan(), str(tmp_path / "b.mhd"))
    (tmp_path / "b.mhd").write_text((tmp_path / "b.mhd").read_text(encoding="utf-8").replace("b.raw", "../b.raw"))
    (tmp_path / "b.raw").rename(tmp_path.parent / "b.raw")
    with pytest.raises(ValueError, match=r"b\.mhd: .*\.\./b\.raw.*beside it"):
        open_volume(tmp_path / "b.mhd", whole=True)
    monkeypatch.setattr(itk, "MAX_VOXELS", 100)
    sitk.WriteImage(scan(), str(path))
    with pytest.raises(ValueError, match=r"a\.mha: .*100 voxels at most"):
        open_volume(path, whole=True)


def test_a_label_that_is_nearly_whole_is_rounded(tmp_path: Path) -> None:
    label = (VOXELS % 3 + np.float32(6e-4)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(label), str(tmp_path / "a.mha"))
    np.testing.assert_array_equal(read_label(tmp_path / "a.mha", "zyx")[0], VOXELS % 3)
    sitk.WriteImage(sitk.GetImageFromArray(label + np.float32(0.0012345)), str(tmp_path / "a.mha"))
    with pytest.raises(ValueError, match=r"a\.mha: 'label' holds \d\.00183"):
        read_label(tmp_path / "a.mha")
