"""A folder of nnU-Net v2, trained on, tested and predicted from by the commands, as it is."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import test as test_command
import train as train_command
from analysis import gradcam
from tests.conftest import ROOT
from tests.own_data import volume, write_nifti

LABELS = {"background": 0, "edema": 1, "core": 2, "enhancing": 4, "ignore": 5}
VALUES = np.array([0, 1, 2, 4], np.uint8)
NAMES = ["edema", "core", "enhancing"]


def write_dataset(root: Path, channels: int, count: int = 5) -> Path:
    """Cases whose brightness tells the class; a half of each label is to be ignored."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        image, classes = volume(index, (4, 32, 32), classes=4)
        label = VALUES[classes]
        label[:, :, 16:] = 5
        for channel in range(channels):
            scaled = image if channel == 0 else (1000 - image).astype(np.int16)
            write_nifti(root / f"imagesTr/CASE{index}_{channel:04d}.nii.gz", scaled, orientation="RAS")
        write_nifti(root / f"labelsTr/CASE{index}.nii.gz", label, orientation="RAS")
    channel_names = {str(channel): f"MR{channel}" for channel in range(channels)}
    info = {"channel_names": channel_names, "labels": LABELS, "numTraining": count, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(info))
    return root


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("channels", [1, 2])
def test_an_nnunet_folder(tmp_path: Path, channels: int) -> None:
    root, run = write_dataset(tmp_path / "Dataset004_X", channels), tmp_path / "run"
    words = ["--dataset", "Folder", "--root_path", root, "--output_dir", run, "--cfg", ROOT / "configs/unet_224.yaml"]
    words += "--img_size 32 --max_epochs 12 --batch_size 4 --workers 0 --opts MODEL.UNET.WIDTH 4".split()
    words += "TRAIN.OPTIMIZER adamw TRAIN.BASE_LR 0.01".split()
    assert train_command.main([str(word) for word in words]) == 0
    assert test_command.main(["--output_dir", str(run)]) == 0

    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["published"]["per_class"]) == NAMES
    report = (run / "report.html").read_text(encoding="utf-8")
    assert all(name in report for name in NAMES)
    (case,) = summary["cases"]
    predicted, truth = read(run / f"predictions/{case['name']}.nii.gz"), read(root / f"labelsTr/{case['name']}.nii.gz")
    assert set(np.unique(predicted)) <= set(VALUES.tolist()) and predicted[truth == 5].any()
    kept = truth != 5
    for name in NAMES:
        ours, theirs = (array[kept] == LABELS[name] for array in (predicted, truth))
        assert theirs.any()
        expected = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        assert summary["published"]["per_class"][name]["dice"] == pytest.approx(expected)

    out = tmp_path / "out"
    assert test_command.main(["--checkpoint", str(run), "--input", str(root / "imagesTr"), "--output", str(out)]) == 0
    found = {path.name for path in (out / "predictions").iterdir()}
    suffix = "" if channels == 2 else "_0000"
    assert found == {f"CASE{index}{suffix}.nii.gz" for index in range(5)}
    np.testing.assert_array_equal(read(out / f"predictions/{case['name']}{suffix}.nii.gz"), predicted)
    assert gradcam.main(["--checkpoint", str(run), "--output", str(out / "cam"), "--class", "core"]) == 0
