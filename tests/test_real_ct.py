"""Real CT from NIfTI to masks: two patients, two scanners. Their labels are a model's: no accuracy here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

import test as test_command
import train as train_command
from scripts import prepare_synapse
from tests.conftest import SHARED, TINY_SWIN, geometry
from tests.datasets.readers.test_dicom import write

CT = SHARED / "data" / "ct_examples"

pytestmark = pytest.mark.skipif(not CT.is_dir(), reason="the CT examples are not beside this checkout (../shared/data)")

SIZE = ["--img_size", "64"]
OBLIQUE = Rotation.from_rotvec([0.2, -0.1, 0.3]).as_matrix()


def geometry_of(image: sitk.Image) -> tuple:
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared, trained on ct01 for two epochs, evaluated on ct02.

    At next to no rate: fresh weights see every class somewhere, those of so short a training background alone.
    """
    folder = tmp_path_factory.mktemp("ct")
    data = str(folder / "data")
    split = ["--train_cases", "ct01", "--test_cases", "ct02"]
    assert prepare_synapse.main([str(CT), data, "--labels", "synapse8", *split]) == 0
    words = ["--root_path", data, "--output_dir", str(folder / "run"), "--max_epochs", "2", "--batch_size", "24"]
    words += ["--base_lr", "1e-6"]
    assert train_command.main([*words, *SIZE, "--workers", "0", "--opts", *TINY_SWIN]) == 0
    assert test_command.main(["--output_dir", str(folder / "run")]) == 0
    return folder / "run"


def test_summary_is_finite(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
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
    assert (a == b).all() and len(np.unique(a)) > 2


def predicted(run: Path, given: Path, out: Path) -> sitk.Image:
    assert test_command.main(["--checkpoint", str(run), "--input", str(given), "--output", str(out)]) == 0
    (mask,) = (out / "predictions").iterdir()
    return sitk.ReadImage(str(mask))


@pytest.mark.parametrize("name", ["ct02_image", "mr01_image"])
def test_a_dicom_series_gives_the_mask_of_the_nifti(run: Path, tmp_path: Path, name: str) -> None:
    scan = sitk.ReadImage(str(CT / f"{name}.nii.gz"))
    direction, voxels = np.reshape(scan.GetDirection(), (3, 3)), sitk.GetArrayFromImage(scan)
    (tmp_path / "series").mkdir()
    for number, plane in enumerate(voxels):
        where = {"position": scan.TransformIndexToPhysicalPoint((0, 0, number)), "direction": direction}
        file = tmp_path / f"series/{number:03d}.dcm"
        write(file, plane.astype(np.int16), number, spacing=scan.GetSpacing()[:2], **where, _00281052="0")
    found = predicted(run, tmp_path / "series", tmp_path / "out")
    expected = predicted(run, CT / f"{name}.nii.gz", tmp_path / "expected")
    assert (sitk.GetArrayFromImage(found) == sitk.GetArrayFromImage(expected)).all()
    assert sitk.GetArrayFromImage(found).any()
    assert found.GetSize() == scan.GetSize()
    for here, there in zip(geometry_of(found)[1:], geometry_of(scan)[1:], strict=True):
        assert here == pytest.approx(there, abs=1e-4)


@pytest.mark.parametrize("orientation", ["LPS", "LAS", "PIR", "oblique", "flipped"])
def test_any_orientation_gives_one_mask_on_its_own_grid(run: Path, tmp_path: Path, orientation: str) -> None:
    """The training CT lies along RAS; whatever the scan lies along, the network sees it so."""
    scan = sitk.ReadImage(str(CT / "ct01_image.nii.gz"))[:, :, 40:60]
    if orientation == "oblique":
        turned = sitk.Image(scan)
        turned.SetDirection((OBLIQUE @ np.reshape(scan.GetDirection(), (3, 3))).ravel().tolist())
    elif orientation == "flipped":
        turned = sitk.Flip(scan, (True, False, True), False)
    else:
        turned = sitk.DICOMOrient(scan, orientation)
    for name, image in (("plain", scan), ("turned", turned)):
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    plain, found = (predicted(run, tmp_path / f"{name}.nii.gz", tmp_path / name) for name in ("plain", "turned"))
    assert geometry_of(found) == geometry(tmp_path / "turned.nii.gz")
    if orientation == "oblique":
        found.CopyInformation(plain)
    masks = [sitk.GetArrayFromImage(sitk.DICOMOrient(mask, "RAS")) for mask in (plain, found)]
    assert (masks[0] == masks[1]).all() and masks[0].any()


def test_overlay_is_an_image(run: Path) -> None:
    from PIL import Image

    with Image.open(run / "overlays/ct02.png") as draw_image:
        assert draw_image.width > 600 and len(draw_image.convert("RGB").getcolors(1 << 24)) > 100
