"""From raw NIfTI folders to the Synapse layout: layouts, label maps, splits, and every input that is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from datasets import build_dataset
from datasets.case import slice_name
from datasets.readers.arrays import read_arrays, read_shapes
from evaluation.masks import write_mask
from scripts import prepare_synapse
from tests.scripts.preparation.test_acdc import save, spoil_voxel

SIZE_ZYX = (3, 5, 4)
BTCV = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}  # raw value: organ


def ct(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, SIZE_ZYX).astype(np.int16)


def organs(seed: int, count: int = 14) -> np.ndarray:
    label = np.random.default_rng(seed + 100).integers(0, count, SIZE_ZYX).astype(np.uint8)
    label.flat[:count] = range(count)
    return label


def official(raw: Path, *numbers: int) -> Path:
    """The release's own layout, with all thirteen organs."""
    for number in numbers:
        save(raw / "Training" / "img" / f"img{number:04d}.nii.gz", ct(number))
        save(raw / "Training" / "label" / f"label{number:04d}.nii.gz", organs(number))
    return raw


def prepare(*args: object) -> int:
    return prepare_synapse.main([str(arg) for arg in args])


def lists(out: Path) -> tuple[list[str], ...]:
    return tuple((out / "lists" / name).read_text(encoding="utf-8").split() for name in ("train.txt", "test_vol.txt"))


def test_the_official_layout_gives_the_official_split(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = official(tmp_path / "RawData", 5, 8, 40), tmp_path / "out"
    save(raw / "Testing" / "img" / "img0061.nii.gz", ct(61))
    assert prepare(raw, out) == 0
    train, test = lists(out)
    assert train == [slice_name(case, i) for case in ("case0005", "case0040") for i in range(3)]
    assert test == ["case0008"]
    assert sorted(path.stem for path in (out / "train_npz").iterdir()) == train
    assert [path.name for path in (out / "test_vol_h5").iterdir()] == ["case0008.npy.h5"]
    said = capfd.readouterr()
    assert said.err == "" and "split: the official one" in said.out and "img0061.nii.gz" in said.out
    assert "case0008: test, 3 slices of 4x5, spacing (1.5625, 1.25, 10) mm, LPS; slices 3, background" in said.out
    assert "train: 2 cases; slices 6, background" in said.out


@pytest.mark.parametrize(("order", "window"), [("zxy", (-125.0, 275.0)), ("zyx", (-1000.0, 1000.0))])
def test_voxels_labels_and_geometry_arrive_as_specified(tmp_path: Path, order: str, window: tuple) -> None:
    raw, out, (low, high) = official(tmp_path / "raw", 5, 8), tmp_path / "out", window
    assert prepare(raw, out, "--axis_order", order, *(("--window", *window) if order == "zyx" else ())) == 0
    (volume,) = build_dataset("Synapse", "test", num_classes=9, root_path=str(out))
    assert volume.image.dtype == np.float32 and volume.label.dtype == np.uint8
    axes = ["zyx".index(axis) for axis in order]
    mapped = np.vectorize(lambda value: BTCV.get(value, 0))
    scaled = {n: (ct(n).clip(low, high) - low).transpose(axes) / (high - low) for n in (5, 8)}
    np.testing.assert_allclose(volume.image, scaled[8], atol=1e-6)
    np.testing.assert_array_equal(volume.label, mapped(organs(8)).transpose(axes))
    assert volume.geometry.axis_order == order
    assert volume.geometry.spacing == (1.5625, 1.25, 10.0) and volume.geometry.origin == (-10.0, 20.5, 30.25)
    for z in range(3):
        image, mask = read_arrays(out / "train_npz" / f"case0005_slice00{z}.npz", ("image", "label")).values()
        np.testing.assert_allclose(image, scaled[5][z], atol=1e-6)
        np.testing.assert_array_equal(mask, mapped(organs(5)).transpose(axes)[z])
    with np.load(out / "train_npz" / "case0005_slice002.npz") as file:
        assert file["image"].dtype == np.float32 and file["label"].dtype == np.uint8
        assert file["origin"].tolist() == [-10.0, 20.5, 30.25]


def test_a_prepared_label_goes_back_onto_the_raw_file(tmp_path: Path) -> None:
    """Of an oblique grid, in the layout of nnU-Net."""
    angle = np.deg2rad(20.0)
    tilt = [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0], [0.0, 0.0, -1.0]]
    save(tmp_path / "raw" / "imagesTr" / "liver_1_0000.nii.gz", ct(1), direction=tilt)
    source = save(tmp_path / "raw" / "labelsTr" / "liver_1.nii.gz", organs(1, 9), direction=tilt)
    assert prepare(tmp_path / "raw", tmp_path / "out", "--labels", "synapse8", "--test_cases", "liver_1") == 0
    (volume,) = build_dataset("Synapse", "test", num_classes=9, root_path=str(tmp_path / "out"))
    write_mask(tmp_path / "back.nii.gz", volume.label, volume.geometry)
    back, raw = sitk.ReadImage(str(tmp_path / "back.nii.gz")), sitk.ReadImage(str(source))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(raw))
    for read in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(back, read)() == getattr(raw, read)()


def test_who_trains_and_who_tests(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = official(tmp_path / "raw", 1, 61, 62), tmp_path / "out"
    for options, train, test, said in (
        ("", ["case0001", "case0061", "case0062"], [], "not being the official cases"),
        ("--test_cases 0061", ["case0001", "case0062"], ["case0061"], "as asked"),
        ("--train_cases case0061", ["case0061"], [], "left out, named in neither list: case0001, case0062"),
        ("--train_cases 0061 --test_cases 0062", ["case0061"], ["case0062"], "left out"),
    ):
        assert prepare(raw, out, *options.split()) == 0
        listed, volumes = lists(out)
        assert list(dict.fromkeys(name.split("_slice")[0] for name in listed)) == train and volumes == test
        assert said in capfd.readouterr().out


def test_mixed_orientations_unknown_ones_and_unlikely_labels_are_warned_about(tmp_path: Path, capfd) -> None:
    for name, direction in (("a", np.eye(3)), ("b", np.diag([-1.0, -1.0, 1.0])), ("c", np.eye(3))):
        for half, array in (("image", ct(0)), ("label", organs(0, 9))):
            path = save(tmp_path / "raw" / f"{name}_{half}.nii", array, direction=direction)
            if name == "c":
                content = bytearray(path.read_bytes())
                struct.pack_into("<2h", content, 252, 0, 0)  # qform_code and sform_code (nifti1.h)
                path.write_bytes(content)
    assert prepare(tmp_path / "raw", tmp_path / "out") == 0
    said = capfd.readouterr().out
    assert "LPS: a; RAS: b; unknown axes: c" in said and "no raw label is above 8" in said
    made = {path.name[0]: path for path in (tmp_path / "out/train_npz").iterdir()}
    assert {name: read_shapes(path, ())[1].oriented for name, path in made.items()} == {
        "a": True,
        "b": True,
        "c": False,
    }
    assert prepare(tmp_path / "raw", tmp_path / "out", "--labels", "synapse8", "--train_cases", "a") == 0
    assert "WARNING" not in capfd.readouterr().out


IMG, LABEL = Path("Training/img/img0006.nii.gz"), Path("Training/label/label0006.nii.gz")
BAD_RAW = {
    "label missing": (lambda raw: (raw / LABEL).unlink(), ("img0006.nii.gz", "no label")),
    "image missing": (lambda raw: (raw / IMG).unlink(), ("label0006.nii.gz", "no image")),
    "twice": (lambda raw: save(raw / "Training/img/img0006.nii", ct(6)), ("img0006.nii", "second image of case0006")),
    "odd name": (lambda raw: [save(raw / f"a b_{half}.nii", organs(6)) for half in ("image", "label")], ("'a b'",)),
    "unknown label": (lambda raw: spoil_voxel(raw / LABEL, organs(6), 14), ("label0006.nii.gz", "14 ", "synapse8")),
    "negative label": (lambda raw: spoil_voxel(raw / LABEL, organs(6), -1), ("label0006.nii.gz", "-1", "0..13")),
}


@pytest.mark.parametrize("kind", BAD_RAW)
def test_bad_raw_data_is_refused(tmp_path: Path, refused: Callable[..., str], kind: str) -> None:
    raw, out = official(tmp_path / "raw", 5, 6, 8), tmp_path / "out"
    spoil, parts = BAD_RAW[kind]
    spoil(raw)
    error = refused(prepare_synapse.main, [raw, out])
    assert all(part in error for part in parts), error
    assert not out.exists()


def test_bad_options_and_empty_folders_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    raw, out = official(tmp_path / "raw", 5, 8), tmp_path / "out"
    for options, message in (
        ("--test_cases 0099", "--test_cases names '0099', which is not there; expected some of case0005, case0008"),
        ("--train_cases 0005 --test_cases 0005", "--test_cases and --train_cases both name case0005"),
        ("--labels synapse8", "expected whole numbers 0..8, fix it or try --labels btcv13"),
        ("--window 5 5", "--window is 5.0 5.0"),
        ("--no_such_option", "--no_such_option"),
    ):
        assert message in refused(prepare_synapse.main, [raw, out, *options.split()])
    assert "no such folder" in refused(prepare_synapse.main, [tmp_path / "nowhere", out])
    save(tmp_path / "images" / "img" / "img0001.nii.gz", ct(1))
    assert "no image with its label" in refused(prepare_synapse.main, [tmp_path / "images", out])
    assert not out.exists()
