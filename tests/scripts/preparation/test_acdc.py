"""From the official ACDC download to npz files: layout, split, intensities, spacing, and all that is refused."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from datasets import build_dataset
from datasets.readers.arrays import read_shapes
from datasets.splits import read_list
from scripts import prepare_acdc
from tests.conftest import ROOT

SIZE_ZYX = (3, 6, 5)
SPACING = (1.5625, 1.25, 10.0)
VALID = "019 021 029 033 041 050 061 071 076 080"  # in the split of the papers
TEST = "002 003 008 009 012 014 017 024 042 048 049 053 055 064 067 079 081 088 092 095"


def save(path: Path, zyx: np.ndarray, spacing=SPACING, origin=(-10.0, 20.5, 30.25), direction=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(zyx, isVector=False)
    image.SetSpacing(spacing[: zyx.ndim])
    image.SetOrigin(origin[: zyx.ndim])
    image.SetDirection(np.ravel(np.eye(zyx.ndim) if direction is None else direction).tolist())
    sitk.WriteImage(image, str(path))
    return path


def mr(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, SIZE_ZYX).astype(np.int16)


def truth(seed: int) -> np.ndarray:
    label = np.random.default_rng(seed + 500).integers(0, 4, SIZE_ZYX).astype(np.uint8)
    label.flat[:4] = range(4)
    return label


def patient(raw: Path, number: int, es: int = 12, part: str = "training") -> Path:
    """A patient folder as the download has it, with the 4-D file that is of no use here."""
    folder = raw / part / f"patient{number:03d}"
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text(f"ED: 1\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
    save(folder / f"{folder.name}_4d.nii.gz", np.zeros((2, *SIZE_ZYX), np.int16), (*SPACING, 1.0), (0.0,) * 4)
    for frame in (1, es):
        stem = f"{folder.name}_frame{frame:02d}"
        save(folder / f"{stem}.nii.gz", mr(number * 100 + frame))
        save(folder / f"{stem}_gt.nii.gz", truth(number * 100 + frame))
    return folder


def official(raw: Path) -> Path:
    """One patient of each split and one of the later test set."""
    for number, es in ((1, 12), (2, 9), (19, 12)):
        patient(raw / "database", number, es)
    patient(raw, 101, part="testing")
    return raw


def prepare(*args: object) -> int:
    return prepare_acdc.main([str(arg) for arg in args])


def listed(out: Path, name: str) -> list[str]:
    return (out / "lists" / f"{name}.txt").read_text(encoding="utf-8").split()


def test_the_shipped_split_is_that_of_the_papers() -> None:
    lists = {name: read_list(ROOT / "datasets/lists/acdc" / f"{name}.txt") for name in ("train", "valid", "test")}
    assert lists["valid"] == [f"case_{n}" for n in VALID.split()]
    assert lists["test"] == [f"case_{n}" for n in TEST.split()]
    everyone = sorted(name for names in lists.values() for name in names)
    assert everyone == [f"case_{number:03d}" for number in range(1, 101)] and len(lists["train"]) == 70


def test_the_official_layout_becomes_the_published_one(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    folder = raw / "database/training/patient001"
    save(folder / "patient001_frame12.nii", mr(112))  # a file may lie there uncompressed
    (folder / "patient001_frame12.nii.gz").unlink()
    shutil.copytree(folder, raw / "__MACOSX/patient001")
    assert prepare(raw, out) == 0
    for split, case in (("train", "case_001"), ("valid", "case_019")):
        slices = [f"{case}_slice{phase}_{k}.npz" for phase in ("ED", "ES") for k in range(3)]
        assert listed(out, split) == slices == sorted(path.name for path in (out / split).iterdir())
    volumes = ["case_002_volume_ED.npz", "case_002_volume_ES.npz"]
    assert listed(out, "test") == volumes == sorted(path.name for path in (out / "test").iterdir())
    said = capfd.readouterr()
    labels = np.stack([truth(1901), truth(1912)])
    names = ("background", "right ventricle", "myocardium", "left ventricle")
    counts = ", ".join(f"{name} {(labels == label).sum()}" for label, name in enumerate(names))
    grid = "3 slices of 5x6, spacing (1.5625, 1.25, 10) mm, LPS"
    assert said.err == "" and f"case_019: valid, ED {grid} and ES {grid}; slices 6, {counts}\n" in said.out
    assert f"valid: 1 cases; slices 6, {counts}\n" in said.out
    assert "97 of the split are not there" in said.out and "1 patients, patient101" in said.out


@pytest.mark.parametrize("order", ["zxy", "zyx"])
def test_voxels_and_geometry_arrive_as_specified(tmp_path: Path, order: str) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    window = ("--scale", "window", "--window", 100, 500) if order == "zyx" else ()
    assert prepare(raw, out, "--axis_order", order, *window) == 0
    axes = ["zyx".index(axis) for axis in order]
    for phase, frame in (("ED", 1), ("ES", 9)):
        image = mr(200 + frame).astype(float).transpose(axes)
        low, high = (100, 500) if window else np.percentile(image, [0.5, 99.5])
        with np.load(out / "test" / f"case_002_volume_{phase}.npz") as file:
            assert file["img"].dtype == np.float32 and file["label"].dtype == np.uint8
            np.testing.assert_allclose(file["img"], (image.clip(low, high) - low) / (high - low), atol=1e-6)
            np.testing.assert_array_equal(file["label"], truth(200 + frame).transpose(axes))
            assert file["spacing"].tolist() == pytest.approx(SPACING)
            # NIfTI's matrix, in RAS: x and y of ITK's LPS turned.
            expected = [[-1.5625, 0, 0, 10], [0, -1.25, 0, -20.5], [0, 0, 10, 30.25], [0, 0, 0, 1]]
            np.testing.assert_allclose(file["affine"], expected, atol=1e-5)
            assert file["axis_order"].item().decode() == order
    how = {"intensity": "window", "window": [100.0, 500.0]} if window else {"intensity": "percentile", "window": None}
    assert (out / "lists/prepared.json").read_text(encoding="utf-8") == json.dumps({**how, "axis_order": order}) + "\n"
    stacked = build_dataset("ACDC", "val", num_classes=4, root_path=str(out))
    assert [volume.name for volume in stacked] == ["case_019_ED", "case_019_ES"]
    for volume, frame in zip(stacked, (1, 12), strict=True):
        np.testing.assert_array_equal(volume.label, truth(1900 + frame).transpose(axes))
        assert volume.geometry.array_spacing == pytest.approx([SPACING["xyz".index(axis)] for axis in order])


def stamp(path: Path, qform_code: int, sform_code: int) -> None:
    """Let the header have these codes, and an sform of unit scale (nifti1.h)."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<2h", content, 252, qform_code, sform_code)
    struct.pack_into("<12f", content, 280, *np.eye(3, 4).ravel())
    path.write_bytes(gzip.compress(content))


@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (1, 1), (0, 2)])
def test_the_spacing_is_that_of_pixdim(tmp_path: Path, capfd: pytest.CaptureFixture, codes: tuple[int, int]) -> None:
    """Public copies carry an sform of unit scale, or none at all, beside a true pixdim."""
    for number in (1, 2):
        for path in patient(tmp_path / "raw", number).glob("*frame*"):
            stamp(path, *codes)
    assert prepare(tmp_path / "raw", tmp_path / "out") == 0
    found = [*(tmp_path / "out/train").iterdir(), *(tmp_path / "out/test").iterdir()]
    grids = [read_shapes(path, ())[1] for path in found]
    assert {grid.array_spacing for grid in grids} == {(10.0, 1.5625, 1.25)}
    assert {grid.oriented for grid in grids} == {codes != (0, 0)}
    said = capfd.readouterr().out
    assert ("WARNING: axes differ or are unknown" in said) == (codes == (0, 0))


def spoil_voxel(path: Path, zyx: np.ndarray, value: float) -> None:
    zyx = zyx.astype(np.float32)
    zyx[1, 2, 3] = value
    save(path, zyx)


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


INFO, ED, ED_GT = "Info.cfg", "patient001_frame01.nii.gz", "patient001_frame01_gt.nii.gz"
ES, ES_GT = "patient001_frame12.nii.gz", "patient001_frame12_gt.nii.gz"
BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no Info.cfg": (lambda folder: (folder / INFO).unlink(), INFO, "is not there"),
    "no ES": (lambda folder: rewrite(folder / INFO, "ES: 12\n", ""), INFO, "says ES: nothing"),
    "ED is no number": (lambda folder: rewrite(folder / INFO, "ED: 1", "ED: one"), INFO, "says ED: one"),
    "no frame": (lambda folder: (folder / ES).unlink(), ES, "is not there, but Info.cfg says ES: 12"),
    "no label": (lambda folder: (folder / ED_GT).unlink(), ED_GT, "is not there, but Info.cfg says ED: 1"),
    "size": (lambda folder: save(folder / ED_GT, truth(1)[:2]), ED_GT, "(2, 5, 6)"),
    "spacing": (lambda folder: save(folder / ED_GT, truth(1), (1.5, 1.25, 10.0)), ED_GT, "spacing"),
    "NaN": (lambda folder: spoil_voxel(folder / ED, mr(1), np.nan), ED, "NaN"),
    "label 4": (lambda folder: spoil_voxel(folder / ES_GT, truth(1), 4), ES_GT, "holds the label 4 and 1 stray voxels"),
    "one slice": (lambda f: [save(f / ED, mr(1)[:1]), save(f / ED_GT, truth(1)[:1])], ED, "one slice"),
    "4-D": (lambda folder: shutil.copy(folder / "patient001_4d.nii.gz", folder / ES), ES, "(5, 6, 3, 2)"),
    "one value": (lambda folder: save(folder / ED, np.full(SIZE_ZYX, 7, np.int16)), ED, "is 7 everywhere"),
    "cut short": (lambda folder: (folder / ED).write_bytes((folder / ED).read_bytes()[:-20]), ED, ""),
    "twice": (lambda f: shutil.copytree(f, f.parent / "z/patient001"), "z/patient001", "is patient001, as is"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_patients_are_refused_by_name(tmp_path: Path, refused: Callable[..., str], kind: str) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    spoil, name, what = BAD[kind]
    spoil(raw / "database/training/patient001")
    error = refused(prepare_acdc.main, [raw, out])
    assert f"{name}: " in error and what in error and "nothing was begun" in error
    assert not out.exists()


def test_bad_options_and_empty_folders_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    for options, message in (
        ("--jobs 0", "--jobs is 0"),
        ("--scale window", "expected --window LOW HIGH with --scale window"),
        ("--window 1 2", "expected --window LOW HIGH with --scale window"),
        ("--scale window --window nan 5", "--window is nan 5.0"),
        ("--axis_order xyz", "--axis_order"),
    ):
        assert message in refused(prepare_acdc.main, [raw, out, *options.split()])
    assert "nowhere: no such folder" in refused(prepare_acdc.main, [tmp_path / "nowhere", out])
    assert "found 1 others" in refused(prepare_acdc.main, [raw / "testing", out])
    assert not out.exists()
