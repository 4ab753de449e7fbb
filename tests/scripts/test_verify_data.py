"""The walk through a whole data set: each planted defect by name, a summary, exit codes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.sets import acdc
from datasets.sets.phantom import prepare_phantom
from datasets.sets.synapse import slice_path, volume_path, write
from scripts import verify_data
from tests.conftest import ROOT, make_case, make_synapse
from tests.own_data import draw_image, write_images, write_volumes

SHAPE = (3, 40, 40)


def verify(root: Path, *options: object, dataset: str = "Synapse") -> int:
    return verify_data.main([dataset, str(root), "--jobs", "1", *map(str, options)])


def append(path: Path, *names: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "".join(f"{name}\n" for name in names), encoding="utf-8")


def test_a_clean_data_set(synapse: Path, capsys: pytest.CaptureFixture) -> None:
    assert verify(synapse) == 0
    image, label = make_case(100, SHAPE)
    counts = np.bincount(label.ravel(), minlength=9).tolist()
    organs = "background aorta gallbladder left_kidney right_kidney liver pancreas spleen stomach".split()
    voxels = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in zip(organs, counts, strict=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 2 cases, 6 files of images"
    assert lines[5:] == [
        "test: 1 cases, 1 files of images",
        "  shapes: 3x40x40 (1)",
        "  spacings (D, H, W) in mm: not stored (1)",
        f"  intensity: {image.min():g} to {image.max():g}",
        f"  voxels: {voxels}",
        "no defects",
    ]


def make_acdc(root: Path) -> Path:
    for part, number in (("train", 1), ("valid", 2), ("test", 3)):
        (root / part).mkdir(parents=True)
        for phase in acdc.PHASES:
            image, label = make_case(number, SHAPE, 4)
            if part == "test":
                acdc.write(root / f"test/case_003_volume_{phase}.npz", image, label)
            for index in range(3 if part != "test" else 0):
                name = acdc.slice_name(f"case_{number:03d}", phase, index)
                acdc.write(root / part / f"{name}.npz", image[index], label[index])
        (root / "lists").mkdir(exist_ok=True)
        (root / f"lists/{part}.txt").write_text(f"case_{number:03d}\n")
    return root


def make_histology(root: Path) -> Path:
    for number, part in enumerate(("train", "test")):
        for half in ("img", "labelcol"):
            (root / part / half).mkdir(parents=True)
        for index in range(2):
            image, mask = draw_image(9 * number + index)
            Image.fromarray(image).save(root / part / f"img/{index}.png")
            Image.fromarray(mask * 255).save(root / part / f"labelcol/{index}.png")
    return root


def make_phantom(root: Path) -> Path:
    # So few and so small that one lacks no organ.
    prepare_phantom(root, size=64, depth=16, train_cases=2, test_cases=1)
    return root


SETS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "Synapse": (make_synapse, "train_npz/case0001_slice001.npz"),
    "Phantom": (make_phantom, "train_npz/phantom0001_slice003.npz"),
    "ACDC": (make_acdc, "valid/case_002_sliceES_1.npz"),
    "GlaS": (make_histology, "train/img/1.png"),
    "MoNuSeg": (make_histology, "test/labelcol/0.png"),
    "Folder": (write_images, "images/case 3.png"),
}


@pytest.mark.parametrize("name", SETS)
def test_every_data_set_is_read_whole(tmp_path: Path, name: str, capsys: pytest.CaptureFixture) -> None:
    make, spoiled = SETS[name]
    root = make(tmp_path / "data")
    assert verify(root, dataset=name) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert out.endswith("no defects\n") and "train: " in out and "test: " in out
    (root / spoiled).write_bytes((root / spoiled).read_bytes()[:-100])
    assert verify(root, dataset=name) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"{root / spoiled}: ") for line in lines) == 1 and lines[-1] == "1 defects in 1 files"


def test_volumes_of_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_volumes(tmp_path / "own")
    assert verify(root, dataset="Folder") == 0
    assert "spacings (D, H, W) in mm: 3, 1, 1" in capsys.readouterr().out


def unlisted(root: Path) -> Path:
    path = slice_path(root / "train_npz", "case0009_slice000")
    write(path, *(array[0] for array in make_case(0, SHAPE)))
    return path


def leaks(root: Path) -> Path:
    append(root / "lists/test_vol.txt", "case0001")
    write(volume_path(root / "test_vol_h5", "case0001"), *make_case(1, SHAPE))
    return root / "lists/test_vol.txt"


def stray_label(root: Path) -> Path:
    path = volume_path(root / "test_vol_h5", "case0100")
    write(path, *make_case(100, SHAPE, 12))
    return path


def absent(root: Path) -> Path:
    path = slice_path(root / "train_npz", "case0000_slice001")
    path.unlink()
    return path


def in_hu(root: Path) -> Path:
    path = slice_path(root / "train_npz", "case0000_slice001")
    image, label = make_case(0, SHAPE)
    write(path, image[1] * 2000 - 1000, label[1])
    return path


def flat(root: Path) -> Path:
    path = volume_path(root / "test_vol_h5", "case0100")
    image, label = make_case(100, SHAPE)
    write(path, np.full_like(image, 0.5), label)
    return path


@pytest.mark.parametrize("plant", [unlisted, leaks, stray_label, absent, in_hu, flat])
def test_one_planted_defect_is_the_one_line(synapse: Path, capsys: pytest.CaptureFixture, plant: Callable) -> None:
    path = plant(synapse)
    assert verify(synapse) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(f"{synapse}/")] == [
        next(line for line in lines if line.startswith(f"{path}: "))
    ]
    assert lines[-1] == "1 defects in 1 files"


def test_a_class_that_nothing_trains(synapse: Path, capsys: pytest.CaptureFixture) -> None:
    assert verify(synapse, "--num_classes", 10) == 1
    assert "no training case holds class 9 (class 9)" in capsys.readouterr().out


def test_validation_is_a_split_of_its_own(synapse: Path, capsys: pytest.CaptureFixture) -> None:
    (synapse / "lists/val.txt").write_text("case0001\n")
    assert verify(synapse) == 0
    out = capsys.readouterr().out
    assert "train: 1 cases, 3 files" in out and "val: 1 cases, 3 files" in out


def test_bad_usage_is_refused(synapse: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    def said(*words: object) -> str:
        return refused(verify_data.main, list(words))

    assert "--dataset is 'Synapsy'" in said("Synapsy", synapse)
    assert "absent: no such data folder" in said("Synapse", tmp_path / "absent")
    assert "--num_classes" in said("Synapse", synapse, "--num_classes", 1)
    assert "--jobs is 0" in said("Synapse", synapse, "--jobs", 0)


def test_the_script_runs_from_any_folder(synapse: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "scripts/verify_data.py"), "Synapse", str(synapse)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout.endswith("no defects\n") and "Traceback" not in done.stderr
