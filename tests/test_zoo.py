"""The networks of zoo/: each predicts its sample, its card says what the study's file says, and damage is noticed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

import test as test_command
from evaluation.metrics import compare
from tests.conftest import ROOT

ZOO = ROOT / "zoo"
CARD = (ZOO / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| .* \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", CARD, re.MULTILINE)
SAMPLES = {"hippocampus": "hippocampus_037.nii.gz", "dsb2018": "05040e2e959c.png"}
SAMPLES["monuseg"] = "TCGA-2Z-A9J9-01A-01-TS1.png"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj if path.name.endswith(".gz") else Image.open(path).convert("L"))


@pytest.mark.parametrize("model", [row[0] for row in ROWS])
def test_predicts_its_sample(model: str, tmp_path: Path) -> None:
    sample = SAMPLES[model.partition("_")[0]]
    words = ["--checkpoint", str(ZOO / model), "--input", str(ZOO / "samples" / sample), "--output", str(tmp_path)]
    assert test_command.main([*words, "--n_gpu", "0"]) == 0
    predicted, truth = pixels(tmp_path / "predictions" / sample), pixels(ZOO / "samples/labels" / sample)
    classes = [value for value in np.unique(truth) if value]
    assert set(np.unique(predicted)) <= {0, *classes}
    assert all(compare(predicted == value, truth == value)["dice"] > 0.6 for value in classes)


@pytest.mark.parametrize("model, weight, dice, hd95, count", ROWS)
def test_the_card_is_that_of_the_study(model: str, weight: str, dice: str, hd95: str, count: str) -> None:
    """The float16 weights of the zoo score within 0.02 points of the run's own."""
    study = json.loads((ROOT / "docs/results" / f"{model.partition('_')[0]}.json").read_text(encoding="utf-8"))
    (run,) = (
        run
        for run in study["runs"]
        if run["seed"] == 1
        and run["lambda_1"] == run["lambda_2"] == float(weight)
        and run["network"].startswith("unet")
    )
    scores = [case["published"] for case in run["cases"].values()]
    assert len(scores) == int(count)
    assert np.mean([score["dice"] for score in scores]) * 100 == pytest.approx(float(dice), abs=0.02)
    assert np.mean([score["hd95"] for score in scores]) == pytest.approx(float(hd95), abs=0.05)


def test_the_zoo_is_small_and_its_card_whole() -> None:
    assert {path.parent.name for path in ZOO.glob("*/weights.safetensors")} == {row[0] for row in ROWS}
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 12e6


def test_an_altered_file_is_refused(tmp_path: Path, refused: Callable) -> None:
    model = shutil.copytree(ZOO / "dsb2018_unet", tmp_path / "model")
    content = bytearray((model / "weights.safetensors").read_bytes())
    content[-100] ^= 4
    (model / "weights.safetensors").write_bytes(content)
    words = ["--checkpoint", model, "--input", ZOO / "samples" / SAMPLES["dsb2018"], "--output", tmp_path / "out"]
    assert "weights.safetensors: is damaged or altered" in refused(test_command.main, words)
