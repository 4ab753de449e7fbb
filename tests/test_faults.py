"""Files of kinds that people have (tests/faults): each is read as its maker meant it, or refused with the way out."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import test as test_command
import train as train_command
from configs.config import get_config
from configs.schema import Config
from datasets.errors import Defects
from datasets.intensity import Preprocessing
from datasets.readers import open_volume, read_image, read_mask
from datasets.sets.prediction import InputVolumes
from evaluation.inference import inspect_data, open_volumes
from evaluation.masks import write_image_mask, write_mask
from tests.conftest import ROOT

FAULTS = ROOT / "tests/faults"
WITH_CODES = ["06b_qform_sform_input/q1s1.nii.gz", "06b_qform_sform_input/q1s2.nii.gz"]
WITH_CODES += ["06b_qform_sform_input/q0s4.nii.gz", "codes0_noise.nii.gz"]


@pytest.fixture
def inspected(tmp_path: Path):  # noqa: ANN201 (a function of a name and of keys)
    def run(name: str, **keys: object) -> Config:
        root = tmp_path / name
        if not root.exists():
            shutil.copytree(FAULTS / name, root)
        overrides = {"DATA.DATASET": "Folder", "DATA.ROOT_PATH": str(root)}
        return inspect_data(get_config(overrides=overrides | {f"DATA.{key}": value for key, value in keys.items()}))

    return run


def items(config: Config) -> list:
    return [item for split in ("train", "val", "test") for item in open_volumes(config, split)]


def test_01_equal_names_pair_whatever_they_end_in(inspected) -> None:
    assert sorted(item.name for item in items(inspected("01_same_name_0000"))) == [f"MMs_00{i}_0000" for i in range(3)]


def test_03_black_and_white_bmp_masks(inspected) -> None:
    for item in items(inspected("03_bmp_two_colours")):
        assert 600 < item.label.sum() < 620


def test_05_images_and_masks_agree_as_a_viewer_shows_them(inspected) -> None:
    for item in items(inspected("05_exif3_jpg")):
        image, label = np.squeeze(item.image), np.squeeze(item.label).astype(bool)
        assert image[label].mean() - image[~label].mean() > 0.4


@pytest.mark.parametrize("name", ["06_qform_sform_pair", "09_float_label", "10_origin_0.002mm", "11_shear_0.001"])
def test_pairs_are_pairs(inspected, name: str) -> None:
    config = inspected(name)
    assert config.model.num_classes >= 2 and len(open_volumes(config, "train")) > 0


@pytest.mark.parametrize("name", WITH_CODES)
def test_06b_the_mask_has_the_header_of_its_input(tmp_path: Path, name: str) -> None:
    how = Preprocessing(orientation="" if name.startswith("codes0") else "LPS")
    (volume,) = InputVolumes(FAULTS / name, how)
    write_mask(tmp_path / "mask.nii.gz", np.zeros(volume.image.shape, np.uint8), volume.geometry)
    given, made = (nib.load(path).header for path in (FAULTS / name, tmp_path / "mask.nii.gz"))
    for key in (
        "qform_code",
        "sform_code",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "qoffset_x",
        "srow_x",
        "srow_y",
        "dim",
    ):
        np.testing.assert_array_equal(made[key], given[key], err_msg=key)
    np.testing.assert_array_equal(made["pixdim"], given["pixdim"])
    images = [sitk.ReadImage(str(path)) for path in (FAULTS / name, tmp_path / "mask.nii.gz")]
    for read in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert len({getattr(image, read)() for image in images}) == 1


def test_07_the_affine_decides_with_a_warning(inspected, caplog: pytest.LogCaptureFixture) -> None:
    config = inspected("07_pixdim_vs_sform")
    assert "which is taken; --opts DATA.SPACING pixdim takes the former" in caplog.text
    assert open_volumes(config, "test")[0].geometry.spacing == pytest.approx((0.5, 0.7, 5.0))
    config = inspected("07_pixdim_vs_sform", SPACING="pixdim")
    assert open_volumes(config, "test")[0].geometry.spacing == pytest.approx((1.0, 1.0, 1.0))


def test_08_dicom_numbers_are_those_of_the_file() -> None:
    array, _ = open_volume(FAULTS / "08_monochrome1")
    assert (array.min(), array.max()) == (22, 393)


@pytest.mark.parametrize("name", ["12_one_slice_nifti"])
def test_12_a_slice_is_trained_predicted_and_written_back(inspected, tmp_path: Path, name: str) -> None:
    assert {sample.image.shape for sample in open_volumes(inspected(name), "train")} == {(36, 40)}
    words = ["--dataset", "Folder", "--root_path", str(tmp_path / name), "--output_dir", str(tmp_path / "run")]
    words += ["--cfg", str(ROOT / "configs/unet_224.yaml"), *"--img_size 32 --max_epochs 1 --workers 0".split()]
    assert train_command.main([*words, "--opts", "MODEL.UNET.WIDTH", "4"]) == 0
    given = tmp_path / name / "images"
    assert test_command.main(["--output_dir", str(tmp_path / "run"), "--input", str(given)]) == 0
    for path in given.iterdir():
        made = nib.load(tmp_path / "run/predictions" / path.name)
        assert made.shape == nib.load(path).shape
        np.testing.assert_array_equal(made.affine, nib.load(path).affine)


def test_14_labels_with_a_gap(inspected) -> None:
    with pytest.raises(Defects, match=r'give --opts DATA.LABEL_VALUES "\[0, 1, 2, 4\]"'):
        inspected("14_labels_0124")
    config = inspected("14_labels_0124", LABEL_VALUES=[0, 1, 2, 4])
    assert config.model.num_classes == 4
    (tested,) = open_volumes(config, "test")
    raw, _ = open_volume(tested.source.parents[1] / f"labels/{tested.source.name}", config.data.axis_order, "LPS")
    np.testing.assert_array_equal(np.array([0, 1, 2, 4])[tested.label], raw[:])


def test_16_labels_without_a_background(inspected, caplog: pytest.LogCaptureFixture) -> None:
    inspected("16_labels_1_2")
    assert "no label holds 0" in caplog.text and "DATA.LABEL_VALUES [1, 2]" in caplog.text
    config = inspected("16_labels_1_2", LABEL_VALUES=[1, 2])
    assert config.model.num_classes == 2 and {v for item in items(config) for v in np.unique(item.label)} == {0, 1}


def test_17_12_bits_in_16(inspected, caplog: pytest.LogCaptureFixture) -> None:
    inspected("17_12bit_in_16")
    assert "no number is above" in caplog.text and "DATA.INTENSITY percentile" in caplog.text
    for item in items(inspected("17_12bit_in_16", INTENSITY="percentile")):
        assert item.image.max() == 1


def test_18_two_channels(inspected) -> None:
    config = inspected("18_nnunet_two_channels")
    assert config.model.in_channels == 2
    (tested,) = open_volumes(config, "test")
    assert tested.image.shape[1] == 2


@pytest.mark.parametrize("name", ["planar16.tif", "tiled16.tif"])
def test_19_planar_and_tiled_tiff(tmp_path: Path, name: str) -> None:
    image = read_image(FAULTS / "19_planar_tiled_16bit_rgb" / name)
    assert image.shape == (70, 64, 3) and image.dtype == np.uint16
    np.testing.assert_array_equal(image, read_image(FAULTS / "19_planar_tiled_16bit_rgb/tiled16.tif"))
    mask = (image[..., 0] > 9999).astype(np.uint8)
    written = write_image_mask(tmp_path / "mask", mask, (0, 255), FAULTS / "19_planar_tiled_16bit_rgb" / name)
    assert written.suffix == ".tif"
    np.testing.assert_array_equal(read_mask(written), mask * 255)
    with pytest.raises(ValueError, match="in color"):
        read_mask(FAULTS / "19_planar_tiled_16bit_rgb" / name)
