"""From the official ACDC download to npz files: layout, split, intensities, resuming, and all that is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets.acdc import AcdcSlices, AcdcStacks, AcdcVolumes
from datasets.base import read_list
from datasets.synapse import read_npz_geometry, says_axes
from evaluation.masks import write_mask
from evaluation.predict import predict_volume
from scripts import prepare_acdc, preparing
from tests.conftest import ROOT

sitk = pytest.importorskip("SimpleITK")

SIZE_ZYX = (3, 6, 5)
SPACING = (1.5625, 1.25, 10.0)
# The split of the papers.
VALID = "019 021 029 033 041 050 061 071 076 080".split()
TEST = "002 003 008 009 012 014 017 024 042 048 049 053 055 064 067 079 081 088 092 095".split()


def save(path: Path, zyx: np.ndarray, spacing=SPACING, origin=(-10.0, 20.5, 30.25)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(zyx, isVector=False)
    image.SetSpacing(spacing[: zyx.ndim])
    image.SetOrigin(origin[: zyx.ndim])
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
    patient(raw / "database", 101, part="testing")
    return raw


def prepare(*args: object) -> int:
    return prepare_acdc.main([str(arg) for arg in args])


def listed(out: Path, name: str) -> list[str]:
    return (out / "lists" / f"{name}.txt").read_text().split()


def test_the_shipped_split_is_that_of_the_papers() -> None:
    lists = {name: read_list(ROOT / "datasets/splits/acdc" / f"{name}.txt") for name in ("train", "valid", "test")}
    assert lists["valid"] == [f"case_{number}" for number in VALID]
    assert lists["test"] == [f"case_{number}" for number in TEST]
    everyone = sorted(name for names in lists.values() for name in names)
    assert everyone == [f"case_{number:03d}" for number in range(1, 101)] and len(lists["train"]) == 70


def test_the_official_layout_becomes_the_published_one(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out) == 0
    slices = {case: [f"{case}_slice{phase}_{k}.npz" for phase in ("ED", "ES") for k in range(3)] for case in CASES}
    assert listed(out, "train") == slices["case_001"] == sorted(path.name for path in (out / "train").iterdir())
    assert listed(out, "valid") == slices["case_019"] == sorted(path.name for path in (out / "valid").iterdir())
    assert listed(out, "test") == ["case_002_volume_ED.npz", "case_002_volume_ES.npz"]
    assert sorted(path.name for path in (out / "test").iterdir()) == listed(out, "test")
    said = capfd.readouterr()
    assert said.err == ""
    where = "ED 3 slices of 5x6 and ES 3 slices of 5x6, spacing (1.5625, 1.25, 10) mm, LPS"
    assert f"case_019 (DCM): valid, {where}; voxels: {voxels(19, 12)}" in said.out
    assert f"train: 1 cases, 6 slices; voxels: {voxels(1, 12)}" in said.out
    assert f"test: 1 cases, 6 slices; voxels: {voxels(2, 9)}" in said.out
    assert "97 of the split are not there" in said.out and "1 patients, patient101" in said.out


CASES = ("case_001", "case_019")


def voxels(number: int, es: int) -> str:
    labels = np.stack([truth(number * 100 + frame) for frame in (1, es)])
    names = ("background", "right ventricle", "myocardium", "left ventricle")
    return ", ".join(f"{name} {(labels == label).sum()}" for label, name in enumerate(names))


def test_the_checksum_is_that_of_the_lists(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert prepare(official(tmp_path / "raw"), tmp_path / "out") == 0
    text = b"".join((tmp_path / "out/lists" / f"{name}.txt").read_bytes() for name in ("train", "valid", "test"))
    assert f"checksum of the lists: sha256 {hashlib.sha256(text).hexdigest()} " in capfd.readouterr().out


@pytest.mark.parametrize("order", ["zxy", "zyx"])
def test_voxels_and_geometry_arrive_as_specified(tmp_path: Path, order: str) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out, "--axis_order", order) == 0
    for phase, frame in (("ED", 1), ("ES", 9)):
        image, label = mr(200 + frame).astype(float), truth(200 + frame)
        low, high = np.percentile(image, [0.5, 99.5])
        with np.load(out / "test" / f"case_002_volume_{phase}.npz") as file:
            assert file["img"].dtype == np.float32 and file["label"].dtype == np.uint8
            for z, y, x in np.ndindex(SIZE_ZYX):
                index = {"zxy": (z, x, y), "zyx": (z, y, x)}[order]
                assert file["img"][index] == pytest.approx((min(max(image[z, y, x], low), high) - low) / (high - low))
                assert file["label"][index] == label[z, y, x]
            assert file["spacing"].tolist() == pytest.approx(SPACING)
            # NIfTI's matrix, in RAS: x and y of ITK's LPS turned.
            expected = [[-1.5625, 0, 0, 10], [0, -1.25, 0, -20.5], [0, 0, 10, 30.25], [0, 0, 0, 1]]
            np.testing.assert_allclose(file["affine"], expected, atol=1e-5)
            assert file["axis_order"].item().decode() == order


def test_slices_are_those_of_the_volume(tmp_path: Path) -> None:
    raw = official(tmp_path / "raw")
    assert prepare(raw, tmp_path / "out") == 0
    stacked = AcdcStacks(AcdcSlices(tmp_path / "out/valid", listed(tmp_path / "out", "valid"), 4))
    assert [volume.name for volume in stacked] == ["case_019_ED", "case_019_ES"]
    for volume, frame in zip(stacked, (1, 12), strict=True):
        np.testing.assert_array_equal(volume.label.transpose(0, 2, 1), truth(1900 + frame))
        assert volume.geometry.array_spacing == pytest.approx((10.0, 1.5625, 1.25))


def test_a_window_is_an_option(tmp_path: Path) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out, "--scale", "window", "--window", 100, 500) == 0
    image = AcdcVolumes(out / "test", ["case_002"], 4)[0].image
    np.testing.assert_allclose(image.transpose(0, 2, 1), (mr(201).clip(100, 500) - 100) / 400, atol=1e-6)


def test_from_the_download_to_a_score_and_back_onto_the_raw_file(tmp_path: Path) -> None:
    """What a network predicts of a prepared volume lies on the raw frame."""
    import torch

    from evaluation.metrics import compare_classes

    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out) == 0
    volume = AcdcVolumes(out / "test", ["case_002_volume_ES.npz"], 4)[0]

    class Thresholds(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([-((image - level) ** 2) for level in (0.1, 0.4, 0.6, 0.9)], dim=1)

    mask = predict_volume(Thresholds(), volume.image, img_size=6, batch_size=2, device=torch.device("cpu"))
    scores = compare_classes(mask, volume.label, 4, volume.geometry.array_spacing)
    assert len(scores) == 3 and 0 < scores[0].published["dice"] < 1
    write_mask(tmp_path / "label.nii.gz", volume.label, volume.geometry)
    source = sitk.ReadImage(str(raw / "database/training/patient002/patient002_frame09_gt.nii.gz"))
    back = sitk.ReadImage(str(tmp_path / "label.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(source))
    for read in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(back, read)() == getattr(source, read)()


def test_frames_may_lie_unpacked_and_anywhere(tmp_path: Path) -> None:
    folder = patient(tmp_path / "raw", 7, part="a/b/c")
    save(folder / "patient007_frame12.nii", mr(712))
    (folder / "patient007_frame12.nii.gz").unlink()
    shutil.copytree(folder, tmp_path / "raw/__MACOSX/patient007")
    assert prepare(tmp_path / "raw", tmp_path / "out") == 0
    assert len(listed(tmp_path / "out", "train")) == 6 and listed(tmp_path / "out", "test") == []
    assert not (tmp_path / "out/test").exists()


def spoil_voxel(path: Path, zyx: np.ndarray, value: float) -> None:
    zyx = zyx.astype(np.float32)
    zyx[1, 2, 3] = value
    save(path, zyx)


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


INFO, ED, ED_GT = "Info.cfg", "patient001_frame01.nii.gz", "patient001_frame01_gt.nii.gz"
ES, ES_GT = "patient001_frame12.nii.gz", "patient001_frame12_gt.nii.gz"
BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no Info.cfg": (lambda folder: (folder / INFO).unlink(), INFO, "is not there; expected it to name the frames"),
    "Info.cfg is binary": (lambda folder: (folder / INFO).write_bytes(b"\xff\xfe"), INFO, "cannot be read as text"),
    "Info.cfg is a pipe": (
        lambda folder: [(folder / INFO).unlink(), os.mkfifo(folder / INFO)],
        INFO,
        "cannot be read as text",
    ),
    "no ES": (lambda folder: rewrite(folder / INFO, "ES: 12\n", ""), INFO, "has no ES; expected the number of a frame"),
    "ED is no number": (lambda folder: rewrite(folder / INFO, "ED: 1", "ED: one"), INFO, "says ED: one"),
    "ED is ES": (lambda folder: rewrite(folder / INFO, "ES: 12", "ES: 1"), INFO, "says ED and ES: 1; expected two"),
    "no frame": (lambda folder: (folder / ES).unlink(), ES, "is not there, but Info.cfg says ES: 12"),
    "no label": (lambda folder: (folder / ED_GT).unlink(), ED_GT, "is not there, but Info.cfg says ED: 1"),
    "size": (lambda folder: save(folder / ED_GT, truth(1)[:2]), ED_GT, "has size (2, 5, 6)"),
    "spacing": (lambda folder: save(folder / ED_GT, truth(1), (1.5, 1.25, 10.0)), ED_GT, "its spacing is"),
    "origin": (lambda folder: save(folder / ED_GT, truth(1), origin=(0.0, 0.0, 0.0)), ED_GT, "its origin is"),
    "NaN": (lambda folder: spoil_voxel(folder / ED, mr(1), np.nan), ED, "holds 1 NaN or infinite values"),
    "NaN label": (lambda folder: spoil_voxel(folder / ED_GT, truth(1), np.nan), ED_GT, "holds 1 NaN"),
    "label 4": (lambda folder: spoil_voxel(folder / ES_GT, truth(1), 4), ES_GT, "holds the label 4 and 1 stray voxels"),
    "label 0.5": (
        lambda folder: spoil_voxel(folder / ES_GT, truth(1), 0.5),
        ES_GT,
        "'label' holds 0.5; expected whole numbers",
    ),
    "label -1": (lambda folder: spoil_voxel(folder / ES_GT, truth(1), -1), ES_GT, "holds the label -1 and 1 stray"),
    "one slice": (
        lambda folder: [save(folder / ED, mr(1)[:1]), save(folder / ED_GT, truth(1)[:1])],
        ED,
        "is a volume of one slice; expected 2 or more",
    ),
    "4-D": (
        lambda folder: shutil.copy(folder / "patient001_4d.nii.gz", folder / ES),
        ES,
        "has the shape (5, 6, 3, 2) as (x, y, z, ...); expected a 3-D volume",
    ),
    "one value": (lambda folder: save(folder / ED, np.full(SIZE_ZYX, 7, np.int16)), ED, "is 7 everywhere"),
    "cut short": (
        lambda folder: (folder / ED).write_bytes((folder / ED).read_bytes()[:-20]),
        ED,
        "is not a readable NIfTI",
    ),
    "text": (lambda folder: (folder / ED).write_text("hello\n" * 99), ED, "is not a readable NIfTI"),
    "twice": (
        lambda folder: shutil.copytree(folder, folder.parent / "z/patient001"),
        "z/patient001",
        "is patient001, as is",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_patients_are_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture, kind: str) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    spoil, name, what = BAD[kind]
    spoil(raw / "database/training/patient001")
    assert prepare(raw, out) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert f"{name}: {what}" in error and "nothing was begun" in error
    assert not out.exists(), "nothing is written"


@pytest.mark.parametrize("jobs", [1, 2])
def test_all_defects_are_told_together(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch, jobs: int) -> None:
    monkeypatch.setattr(preparing.os, "cpu_count", lambda: 2)
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    folders = {number: raw / f"database/training/patient{number:03d}" for number in (1, 2, 19)}
    spoil_voxel(folders[1] / ED, mr(1), np.nan)
    spoil_voxel(folders[1] / ES_GT, truth(1), 4)
    (folders[2] / INFO).unlink()
    save(folders[19] / "patient019_frame12_gt.nii.gz", truth(1)[:2])
    assert prepare(raw, out, "--jobs", jobs) == 2
    error = capfd.readouterr().err
    assert "4 defects" in error and error.count("\n") == 1
    for path in (folders[1] / ED, folders[1] / ES_GT, folders[2] / INFO, folders[19] / "patient019_frame12_gt.nii.gz"):
        assert f"{path}: " in error
    assert not out.exists()


def forget_axes(path: Path) -> None:
    """Set qform_code and sform_code to 0, "arbitrary coordinates" (nifti1.h)."""
    image = sitk.ReadImage(str(path))
    plain = path.with_name("plain.nii")
    sitk.WriteImage(image, str(plain))
    content = bytearray(plain.read_bytes())
    struct.pack_into("<2h", content, 252, 0, 0)
    path.unlink()
    plain.unlink()
    path.with_name(path.name.removesuffix(".gz")).write_bytes(content)


def test_files_that_do_not_say_where_their_axes_point_are_warned_about(tmp_path, capfd) -> None:
    folder = patient(tmp_path / "raw", 1)
    assert prepare(tmp_path / "raw", tmp_path / "out") == 0 and "WARNING" not in capfd.readouterr().out
    for names, oriented in (((), [True, True]), ((ES, ES_GT), [True, False]), ((ED, ED_GT), [False, False])):
        for name in names:
            forget_axes(folder / name)
        assert prepare(tmp_path / "raw", tmp_path / "out") == 0
        said = capfd.readouterr().out
        told = ("mm, unknown axes; voxels", "WARNING: of 1 cases the files do not say where their axes", "WARNING")
        assert [part in said for part in told] == [not all(oriented)] * 3
        for phase, expected in zip(("ED", "ES"), oriented, strict=True):
            slices = sorted((tmp_path / "out/train").glob(f"*{phase}*.npz"))
            assert [says_axes(path) for path in slices] == [expected] * 3
            assert {read_npz_geometry(path).array_spacing for path in slices} == {(10.0, 1.5625, 1.25)}, "in mm, still"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--jobs", "0"), "--jobs is 0"),
        (("--scale", "other"), "--scale"),
        (("--scale", "window"), "expected --window LOW HIGH with --scale window"),
        (("--window", "1", "2"), "expected --window LOW HIGH with --scale window"),
        (("--scale", "window", "--window", "5", "5"), "--window is 5.0 5.0"),
        (("--scale", "window", "--window", "nan", "5"), "--window is nan 5.0"),
        (("--axis_order", "xyz"), "--axis_order"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, refused: Callable[..., str], options, message: str) -> None:
    assert message in refused(prepare_acdc.main, [official(tmp_path / "raw"), tmp_path / "out", *options])
    assert not (tmp_path / "out").exists()


def test_folders_without_patients_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "nowhere: no such folder" in refused(prepare_acdc.main, [tmp_path / "nowhere", tmp_path / "out"])
    (tmp_path / "raw").mkdir()
    assert "holds no patient of 001 to 100, found none" in refused(
        prepare_acdc.main, [tmp_path / "raw", tmp_path / "out"]
    )
    patient(tmp_path / "raw", 101)
    assert "found 1 others" in refused(prepare_acdc.main, [tmp_path / "raw", tmp_path / "out"])
    assert not (tmp_path / "out").exists()


def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "prepare_acdc.py"), "raw", "out", "--jobs", "2"]
    official(tmp_path / "raw")
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert len(listed(tmp_path / "out", "train")) == 6
