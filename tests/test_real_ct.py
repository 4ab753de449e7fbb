"""Real CT from NIfTI to masks: two patients, two scanners. Their labels are a model's: no accuracy here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import SimpleITK as sitk

import test as test_command
import train as train_command
from scripts import prepare_synapse
from tests.conftest import SHARED, TINY_SWIN, geometry

CT = SHARED / "data" / "ct_examples"

pytestmark = pytest.mark.skipif(not CT.is_dir(), reason="the CT examples are not beside this checkout (../shared/data)")

SIZE = ["--img_size", "64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared, trained on ct01 for two epochs, evaluated on ct02."""
    folder = tmp_path_factory.mktemp("ct")
    data = str(folder / "data")
    split = ["--train_cases", "ct01", "--test_cases", "ct02"]
    assert prepare_synapse.main([str(CT), data, "--labels", "synapse8", *split]) == 0
    words = ["--root_path", data, "--output_dir", str(folder / "run"), "--max_epochs", "2", "--batch_size", "24"]
    assert train_command.main([*words, *SIZE, "--workers", "0", "--opts", *TINY_SWIN]) == 0
    assert test_command.main(["--output_dir", str(folder / "run")]) == 0
    return folder / "run"


def test_summary_is_finite(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert [case["name"] for case in summary["cases"]] == ["ct02"]
    assert all(math.isfinite(summary["published"][metric]) for metric in ("dice", "hd95", "jaccard", "assd"))


def test_mask_lies_where_the_ct_lies(run: Path) -> None:
    assert geometry(run / "predictions/ct02.nii.gz") == geometry(CT / "ct02_image.nii.gz")


@pytest.mark.parametrize("name", ["ct01_image", "ct02_image", "mr01_image"])
def test_prediction_from_the_nifti_itself(run: Path, tmp_path: Path, name: str) -> None:
    path = CT / f"{name}.nii.gz"
    assert test_command.main(["--checkpoint", str(run), "--input", str(path), "--output", str(tmp_path)]) == 0
    assert geometry(tmp_path / f"predictions/{name}.nii.gz") == geometry(path)


def test_both_ways_in_give_the_same_mask(run: Path, tmp_path: Path) -> None:
    path = CT / "ct02_image.nii.gz"
    assert test_command.main(["--checkpoint", str(run), "--input", str(path), "--output", str(tmp_path)]) == 0
    masks = (run / "predictions/ct02.nii.gz", tmp_path / "predictions/ct02_image.nii.gz")
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(mask))) for mask in masks)
    assert (a == b).all()


def test_overlay_is_a_picture(run: Path) -> None:
    from PIL import Image

    with Image.open(run / "overlays/ct02.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(1 << 24)) > 100
