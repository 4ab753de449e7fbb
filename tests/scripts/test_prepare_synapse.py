"""From raw NIfTI folders to the Synapse layout: layouts, label maps, splits, and every input that is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets.base import read_list
from datasets.synapse import case_of, read_slice, read_volume, says_axes, slice_name
from evaluation.masks import write_mask
from scripts import prepare_synapse, preparing

sitk = pytest.importorskip("SimpleITK")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT.parent / "shared" / "data" / "ct_examples"
SIZE_ZYX = (3, 5, 4)
# Raw value: organ.
BTCV = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}


def save(path: Path, zyx: np.ndarray, spacing=(0.7, 0.8, 3.0), origin=(-10.0, 20.5, 30.25), direction=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(zyx)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(np.ravel(np.diag([1.0, 1.0, 1.0]) if direction is None else direction).tolist())
    sitk.WriteImage(image, str(path))
    return path


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


def lists(out: Path) -> tuple[list[str], list[str]]:
    return tuple((out / "lists" / name).read_text().split() for name in ("train.txt", "test_vol.txt"))


def arrays(out: Path) -> dict[str, np.ndarray]:
    """Every array that was written, by file and key."""
    found = {}
    for path in sorted(out.rglob("*.npz")):
        with np.load(path) as file:
            found |= {f"{path.name} {key}": file[key] for key in file.files}
    for path in sorted(out.rglob("*.h5")):
        with h5py.File(path) as file:
            found |= {f"{path.name} {key}": file[key][()] for key in file}
    return found


def assert_refused(capfd, out: Path, *parts: str) -> None:
    """One line on standard error that holds every part, and no half-made data set."""
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error, error
    for part in parts:
        assert part in error, error
    assert not (out / "lists").exists()
    assert not list(out.rglob("*.partial*")) and not list(out.rglob(".partial*"))


def test_the_official_layout_gives_the_official_split(tmp_path, capfd):
    raw, out = official(tmp_path / "RawData", 5, 8, 40), tmp_path / "out"
    save(raw / "Testing" / "img" / "img0061.nii.gz", ct(61))
    assert prepare(raw, out) == 0
    train, test = lists(out)
    assert train == [slice_name(case, i) for case in ("case0005", "case0040") for i in range(3)]
    assert test == ["case0008"]
    assert sorted(path.stem for path in (out / "train_npz").iterdir()) == train
    assert [path.name for path in (out / "test_vol_h5").iterdir()] == ["case0008.npy.h5"]
    said = capfd.readouterr()
    assert said.err == "" and "official split" in said.out and "img0061.nii.gz" in said.out
    assert "case0008: test, 3 slices of 4x5, spacing (0.7, 0.8, 3) mm, LPS" in said.out
    assert "train: 2 cases, 6 slices" in said.out and f"python train.py --dataset Synapse --root_path {out}" in said.out


def test_the_official_cases_are_those_of_the_shipped_lists():
    shipped = ROOT / "datasets" / "splits" / "synapse"
    assert list(prepare_synapse.TEST_CASES) == read_list(shipped / "test_vol.txt")
    assert set(prepare_synapse.TRAIN_CASES) == {case_of(name) for name in read_list(shipped / "train.txt")}


def test_voxels_labels_and_geometry_arrive_as_specified(tmp_path):
    raw, out = official(tmp_path / "raw", 5, 8), tmp_path / "out"
    assert prepare(raw, out) == 0
    volume = read_volume(out / "test_vol_h5" / "case0008.npy.h5", 9)
    image, label = ct(8), organs(8)
    assert volume.image.dtype == np.float32 and volume.image.shape == (3, 4, 5)
    for z, y, x in np.ndindex(SIZE_ZYX):
        hu = min(max(float(image[z, y, x]), -125.0), 275.0)
        assert volume.image[z, x, y] == pytest.approx((hu + 125.0) / 400.0, abs=1e-6)
        assert volume.label[z, x, y] == BTCV.get(int(label[z, y, x]), 0)
    assert volume.geometry.axis_order == "zxy"
    assert volume.geometry.spacing == pytest.approx((0.7, 0.8, 3.0)) and volume.geometry.origin == (-10.0, 20.5, 30.25)
    sliced, mask = read_slice(out / "train_npz" / "case0005_slice002.npz", 9)
    np.testing.assert_array_equal(mask.T, [[BTCV.get(int(value), 0) for value in row] for row in organs(5)[2]])
    assert sliced.dtype == np.float32 and sliced.min() >= 0.0 and sliced.max() <= 1.0
    with np.load(out / "train_npz" / "case0005_slice002.npz") as file:
        assert file["image"].dtype == np.float32 and file["label"].dtype == np.uint8
        assert file["origin"].tolist() == [-10.0, 20.5, 30.25]


@pytest.mark.parametrize("raw_value", range(14))
def test_the_label_map_value_by_value(raw_value):
    mapped = prepare_synapse.map_labels(np.array([raw_value], dtype=np.float32), "btcv13", "here")
    assert mapped.dtype == np.uint8 and mapped.tolist() == [BTCV.get(raw_value, 0)]


def test_a_marked_voxel_follows_the_axis_order(tmp_path):
    x, y, z = 3, 1, 2
    label = np.zeros(SIZE_ZYX, np.uint8)
    label[z, y, x] = 8
    save(tmp_path / "raw" / "a_image.nii", ct(0))
    save(tmp_path / "raw" / "a_label.nii", label)
    for order, index in {"zxy": (z, x, y), "zyx": (z, y, x)}.items():
        out = tmp_path / order
        assert prepare(tmp_path / "raw", out, "--labels", "synapse8", "--test_cases", "a", "--axis_order", order) == 0
        marked = read_volume(out / "test_vol_h5" / "a.npy.h5", 9).label
        assert np.argwhere(marked == 8).tolist() == [list(index)] and marked[index] == 8


def test_a_prepared_label_goes_back_onto_the_raw_file(tmp_path):
    angle = np.deg2rad(20.0)
    tilt = [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0], [0.0, 0.0, -1.0]]
    save(tmp_path / "raw" / "imagesTr" / "liver_1_0000.nii.gz", ct(1), direction=tilt)
    source = save(tmp_path / "raw" / "labelsTr" / "liver_1.nii.gz", organs(1, 9), direction=tilt)
    assert prepare(tmp_path / "raw", tmp_path / "out", "--labels", "synapse8", "--test_cases", "liver_1") == 0
    volume = read_volume(tmp_path / "out" / "test_vol_h5" / "liver_1.npy.h5", 9)
    write_mask(tmp_path / "back.nii.gz", volume.label, volume.geometry)
    back, raw = sitk.ReadImage(str(tmp_path / "back.nii.gz")), sitk.ReadImage(str(source))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(raw))
    for read in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(back, read)() == getattr(raw, read)()


def test_again_and_in_two_processes_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing.os, "cpu_count", lambda: 2)
    raw = official(tmp_path / "raw", 5, 6, 8)
    for out, jobs in (("one", 1), ("one", 1), ("two", 2)):
        assert prepare(raw, tmp_path / out, "--jobs", jobs) == 0
    first, second = arrays(tmp_path / "one"), arrays(tmp_path / "two")
    assert list(first) == list(second) and len(first) > 20
    for key in first:
        assert first[key].dtype == second[key].dtype and np.array_equal(first[key], second[key]), key
    assert lists(tmp_path / "one") == lists(tmp_path / "two")
    names = {str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*")}
    assert names == {str(path.relative_to(tmp_path / "two")) for path in (tmp_path / "two").rglob("*")}


@pytest.mark.parametrize(
    ("options", "train", "test", "said"),
    [
        ((), ["case0001", "case0061", "case0062"], [], "not being the official cases"),
        (("--test_cases", "0061"), ["case0001", "case0062"], ["case0061"], "as asked"),
        (("--train_cases", "case0061"), ["case0061"], [], "left out, named in neither list: case0001, case0062"),
        (("--train_cases", "0061", "--test_cases", "0062"), ["case0061"], ["case0062"], "left out"),
    ],
)
def test_who_trains_and_who_tests(tmp_path, capfd, options, train, test, said):
    raw, out = official(tmp_path / "raw", 1, 61, 62), tmp_path / "out"
    assert prepare(raw, out, *options) == 0
    listed, volumes = lists(out)
    assert list(dict.fromkeys(case_of(name) for name in listed)) == train and volumes == test
    assert said in capfd.readouterr().out


def test_mixed_orientations_and_unlikely_labels_are_warned_about(tmp_path, capfd):
    for name, direction in (("a", np.diag([1.0, 1.0, 1.0])), ("b", np.diag([-1.0, -1.0, 1.0]))):
        save(tmp_path / "raw" / f"{name}_image.nii", ct(0), direction=direction)
        save(tmp_path / "raw" / f"{name}_label.nii", organs(0, 9), direction=direction)
    assert prepare(tmp_path / "raw", tmp_path / "out") == 0
    said = capfd.readouterr().out
    assert "differ in orientation" in said and "LPS: a; RAS: b" in said and "no raw label is above 8" in said
    assert prepare(tmp_path / "raw", tmp_path / "out", "--labels", "synapse8", "--train_cases", "a") == 0
    assert "WARNING" not in capfd.readouterr().out


def test_the_window_is_an_option(tmp_path):
    raw, out = official(tmp_path / "raw", 5), tmp_path / "out"
    assert prepare(raw, out, "--window", -1000, 1000) == 0
    image, _ = read_slice(out / "train_npz" / "case0005_slice000.npz", 9)
    np.testing.assert_allclose(image.T, (ct(5)[0] + 1000.0) / 2000.0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"intensity": "window", "window": [-125, 275], "axis_order": "zxy"}),
        (("--window", 0, 400), {"intensity": "window", "window": [0, 400], "axis_order": "zxy"}),
        (("--axis_order", "zyx"), {"intensity": "window", "window": [-125, 275], "axis_order": "zyx"}),
    ],
)
def test_a_run_is_told_how_its_data_were_made(tmp_path, options, expected):
    assert prepare(official(tmp_path / "raw", 5, 8), tmp_path / "out", *options) == 0
    assert json.loads((tmp_path / "out/lists/prepared.json").read_text()) == expected


def test_files_that_do_not_say_where_their_axes_point_make_no_claim(tmp_path, capfd):
    for name in ("a", "b", "c"):
        for half, array in (("image", ct(0)), ("label", organs(0))):
            path = save(tmp_path / "raw" / f"{name}_{half}.nii", array)
            if name != "c":
                content = bytearray(path.read_bytes())
                struct.pack_into("<2h", content, 252, 0, 0)  # qform_code and sform_code (nifti1.h)
                path.write_bytes(content)
    assert prepare(tmp_path / "raw", tmp_path / "out", "--test_cases", "b") == 0
    said = capfd.readouterr().out
    assert "a: train, 3 slices of 4x5, spacing (0.7, 0.8, 3) mm, unknown axes" in said
    assert "WARNING: of 2 cases the files do not say where their axes point: a ..." in said
    made = {path.name.split("_")[0].split(".")[0]: path for path in (tmp_path / "out").glob("t*/*")}
    assert {name: says_axes(path) for name, path in made.items()} == {"a": False, "b": False, "c": True}
    assert read_volume(made["b"], 9).geometry.array_spacing == pytest.approx((3.0, 0.7, 0.8)), "in mm, still"


def spoil_header(raw: Path, **kwargs) -> None:
    save(raw / "Training" / "label" / "label0006.nii.gz", organs(6), **kwargs)


def spoil_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def spoil_voxel(path: Path, zyx: np.ndarray, value: float) -> None:
    zyx = zyx.astype(np.float32)
    zyx[1, 2, 3] = value
    save(path, zyx)


def spoil_codes(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<2h", content, 252, 99, 7)
    path.write_bytes(gzip.compress(content))


IMG, LABEL = Path("Training/img/img0006.nii.gz"), Path("Training/label/label0006.nii.gz")
BAD_RAW = {
    "label missing": (lambda raw: (raw / LABEL).unlink(), ("img0006.nii.gz", "no label")),
    "image missing": (lambda raw: (raw / IMG).unlink(), ("label0006.nii.gz", "no image")),
    "twice": (lambda raw: save(raw / "Training/img/img0006.nii", ct(6)), ("img0006.nii", "second image of case0006")),
    "same name": (
        lambda raw: [save(raw / f"case0006_{half}.nii", organs(6)) for half in ("image", "label")],
        ("case0006", "img0006.nii.gz"),
    ),
    "size": (lambda raw: save(raw / LABEL, organs(6)[:2]), ("label0006.nii.gz", "(2, 4, 5)", "(3, 4, 5)")),
    "spacing": (lambda raw: spoil_header(raw, spacing=(0.7, 0.81, 3.0)), ("label0006.nii.gz", "spacing", "0.81")),
    "origin": (lambda raw: spoil_header(raw, origin=(-10.0, 20.5, 276.25)), ("label0006.nii.gz", "origin", "276.25")),
    "direction": (lambda raw: spoil_header(raw, direction=np.diag([1, -1, 1])), ("label0006.nii.gz", "direction")),
    "text": (lambda raw: (raw / IMG).write_text("hello\n" * 99), ("img0006.nii.gz", "not a readable NIfTI")),
    "2-D": (lambda raw: save(raw / IMG, ct(6)[0], (1.0, 1.0), (0.0, 0.0), np.eye(2)), ("img0006.nii.gz", "one slice")),
    "odd name": (lambda raw: [save(raw / f"a b_{half}.nii", organs(6)) for half in ("image", "label")], ("'a b'",)),
    "image cut short": (lambda raw: spoil_bytes(raw / IMG), ("img0006.nii.gz", "not a readable NIfTI")),
    "label cut short": (lambda raw: spoil_bytes(raw / LABEL), ("label0006.nii.gz", "not a readable NIfTI")),
    "NaN voxel": (lambda raw: spoil_voxel(raw / IMG, ct(6), np.nan), ("img0006.nii.gz", "NaN")),
    "NaN label": (lambda raw: spoil_voxel(raw / LABEL, organs(6), np.nan), ("label0006.nii.gz", "NaN")),
    "fractional label": (lambda raw: spoil_voxel(raw / LABEL, organs(6), 2.5), ("label0006.nii.gz", "2.5", "whole")),
    "one slice": (
        lambda raw: [save(raw / IMG, ct(6)[:1]), save(raw / LABEL, organs(6)[:1])],
        ("img0006.nii.gz", "a volume of one slice"),
    ),
    "codes of axes": (lambda raw: spoil_codes(raw / IMG), ("img0006.nii.gz", "qform_code and sform_code are (99, 7)")),
    "unknown label": (lambda raw: spoil_voxel(raw / LABEL, organs(6), 14), ("label0006.nii.gz", "14;", "synapse8")),
    "negative label": (lambda raw: spoil_voxel(raw / LABEL, organs(6), -1), ("label0006.nii.gz", "-1", "0..13")),
}


@pytest.mark.parametrize("kind", BAD_RAW)
def test_bad_raw_data_is_refused(tmp_path, capfd, kind):
    raw, out = official(tmp_path / "raw", 5, 6, 8), tmp_path / "out"
    spoil, parts = BAD_RAW[kind]
    spoil(raw)
    assert prepare(raw, out) == 2
    assert_refused(capfd, out, *parts)
    assert not [path for path in out.rglob("*") if "0006" in path.name], "nothing of the bad case may be left"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--test_cases", "0099"), ("--test_cases", "'0099'", "case0005, case0008")),
        (("--train_cases", "nobody"), ("--train_cases", "'nobody'")),
        (("--train_cases", "0005", "--test_cases", "0005"), ("--train_cases", "both name case0005")),
        (("--labels", "synapse8"), ("label0005.nii.gz", "expected whole numbers 0..8", "--labels btcv13")),
        (("--labels", "other"), ("--labels", "other", "btcv13")),
        (("--window", "5", "5"), ("--window",)),
        (("--jobs", "0"), ("--jobs is 0",)),
        (("--axis_order", "xyz"), ("--axis_order", "xyz")),
        (("--no_such_option",), ("--no_such_option",)),
    ],
)
def test_bad_options_are_refused(tmp_path, capfd, options, parts):
    out = tmp_path / "out"
    assert prepare(official(tmp_path / "raw", 5, 8), out, *options) == 2
    assert_refused(capfd, out, *parts)
    assert not list(out.rglob("*.npz"))


def test_missing_and_empty_raw_folders_are_refused(tmp_path, capfd):
    assert prepare(tmp_path / "nowhere", tmp_path / "out") == 2
    assert_refused(capfd, tmp_path / "out", "nowhere", "no such folder")
    save(tmp_path / "raw" / "img" / "img0001.nii.gz", ct(1))
    assert prepare(tmp_path / "raw", tmp_path / "out") == 2
    assert_refused(capfd, tmp_path / "out", "no image with its label", "img/img0001.nii.gz")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("blocked", ["out", "out/train_npz", "out/lists"])
def test_a_file_in_the_way_is_named(tmp_path, capfd, blocked):
    raw, way = official(tmp_path / "raw", 5), tmp_path / blocked
    way.parent.mkdir(exist_ok=True)
    way.write_text("mine")
    assert prepare(raw, tmp_path / "out") == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "out") in error
    assert way.read_text() == "mine" and not list(tmp_path.rglob("*.npz"))


def test_what_is_made_is_not_made_again_and_the_lists_have_a_checksum(tmp_path, capfd, monkeypatch):
    raw, out = official(tmp_path / "raw", 5, 8), tmp_path / "out"
    assert prepare(raw, out) == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    text = (out / "lists/train.txt").read_bytes() + (out / "lists/test_vol.txt").read_bytes()
    assert f"checksum of the lists: sha256 {hashlib.sha256(text).hexdigest()} " in capfd.readouterr().out
    monkeypatch.setattr(prepare_synapse, "prepare_case", lambda *args, **kwargs: pytest.fail("made again"))
    assert prepare(raw, out) == 0
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()} == before
    assert capfd.readouterr().out.count("; made before") == 2


def test_files_of_another_preparation_are_not_replaced_in_silence(tmp_path, capfd):
    raw, out = official(tmp_path / "raw", 5, 8), tmp_path / "out"
    assert prepare(raw, out, "--window", -1000, 1000) == 0
    shutil.rmtree(out / ".prepared")  # as of a version that left no manifests
    capfd.readouterr()
    assert prepare(raw, out) == 0
    assert "; replaces 3 files that were made otherwise, such as train_npz/case0005_slice000" in capfd.readouterr().out
    assert prepare(raw, out, "--test_cases", "0005") == 0
    said = capfd.readouterr().out
    assert "case0005: test," in said and "; made again: split was train" in said
    assert [path.name for path in (out / "test_vol_h5").iterdir()] == ["case0005.npy.h5"]
    assert {case_of(path.stem) for path in (out / "train_npz").iterdir()} == {"case0008"}


def test_all_defects_are_told_together(tmp_path, capfd):
    raw, out = official(tmp_path / "raw", 5, 6, 7, 8), tmp_path / "out"
    (raw / "Training/label/label0005.nii.gz").unlink()
    spoil_voxel(raw / "Training/img/img0006.nii.gz", ct(6), np.nan)
    spoil_voxel(raw / "Training/label/label0007.nii.gz", organs(7), 14)
    save(raw / "Training/label/label0008.nii.gz", organs(8)[:2])
    assert prepare(raw, out, "--test_cases", "0005") == 2
    assert_refused(capfd, out, "4 defects", "img0005.nii.gz", "img0006.nii.gz", "label0007.nii.gz", "label0008.nii.gz")
    assert not out.exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bad_last_case_leaves_nothing(tmp_path, capfd, monkeypatch, jobs):
    monkeypatch.setattr(preparing.os, "cpu_count", lambda: 2)
    raw, out = official(tmp_path / "raw", 5, 6), tmp_path / "out"
    spoil_bytes(raw / "Training/label/label0006.nii.gz")
    assert prepare(raw, out, "--jobs", jobs) == 2
    assert_refused(capfd, out, "label0006.nii.gz")
    assert not list(out.rglob("*"))


def test_the_script_runs_from_any_folder_with_one_line_for_an_error(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "prepare_synapse.py")]
    official(tmp_path / "raw", 5)
    done = subprocess.run([*script, "raw", "out"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert len(lists(tmp_path / "out")[0]) == 3
    spoil_bytes(tmp_path / "raw/Training/label/label0005.nii.gz")
    done = subprocess.run([*script, "raw", "again"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "label0005.nii.gz" in done.stderr
    assert not list((tmp_path / "again").rglob("*.npz"))


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the CT examples are not here (../shared/data)")
def test_real_scans(tmp_path, capfd):
    out = tmp_path / "out"
    options = ("--labels", "synapse8", "--train_cases", "ct01", "--test_cases", "ct02")
    assert prepare(EXAMPLES, out, *options) == 0
    train, test = lists(out)
    assert len(train) == 112 and test == ["ct02"]
    image, label = read_slice(out / "train_npz" / f"{train[50]}.npz", 9)
    assert image.shape == label.shape == (122, 101)
    volume = read_volume(out / "test_vol_h5" / "ct02.npy.h5", 9)
    assert volume.image.shape == (20, 512, 512) and volume.image.min() == 0.0 and volume.image.max() == 1.0
    assert np.bincount(volume.label.ravel(), minlength=9).tolist()[5] == 366708
    said = capfd.readouterr().out
    assert "RAS: ct01; LPS: ct02" in said and "liver 41692" in said and "left out, named in neither list: mr01" in said
