"""Every data set by its shipped yaml and the commands alone: from the official layout to a score and a prediction."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import test as test_command
import train as train_command
from configs.config import get_config
from datasets import list_datasets
from scripts import prepare_acdc, prepare_histology
from tests.conftest import ROOT, geometry
from tests.networks.small import SMALL
from tests.own_data import picture, volume, write_nifti, write_pictures, write_volumes
from tests.scripts import test_prepare_acdc as acdc
from tests.scripts import test_prepare_histology as histology

OFFICIAL = ("ACDC", "GlaS", "MoNuSeg")
YAMLS = sorted(path for name in OFFICIAL for path in (ROOT / "configs").glob(f"{name.lower()}_*.yaml"))
UNET = ["--img_size", "32", "--opts", "MODEL.UNET.WIDTH", "4"]


def small(cfg: Path) -> list[str]:
    """What makes the network of a yaml small enough for a test."""
    options = dict(SMALL[get_config(cfg).MODEL.TYPE])
    words = ["--img_size", str(options.pop("img_size")), "--workers", "0", "--max_epochs", "1", "--opts"]
    section = {"swin_unet": "SWIN", "unet": "UNET"}[get_config(cfg).MODEL.TYPE]
    for key, value in options.items():
        words += [f"MODEL.{section}.{key.upper()}", str(list(value) if isinstance(value, tuple) else value)]
    return words


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each official data set, written small in its own layout and prepared by its script."""
    folder = tmp_path_factory.mktemp("official")
    roots = {name: folder / name for name in OFFICIAL}
    for number in (1, 2, 3, 19):
        acdc.patient(folder / "raw_acdc", number)
    assert prepare_acdc.main([str(folder / "raw_acdc"), str(roots["ACDC"])]) == 0
    for name, make in (("GlaS", histology.glas), ("MoNuSeg", histology.monuseg)):
        raw = make(folder / f"raw_{name}")
        assert prepare_histology.main([name, str(raw), str(roots[name]), "--split", "all"]) == 0
    return roots


def test_every_official_data_set_has_a_yaml_for_both_networks() -> None:
    assert {path.name for path in YAMLS} == {
        f"{name.lower()}_{network}.yaml" for name in OFFICIAL for network in ("unet", "swin_unet")
    }
    assert {get_config(path).DATA.DATASET for path in YAMLS} == set(OFFICIAL)
    assert set(list_datasets()) == {*OFFICIAL, "Synapse", "Phantom", "Folder"}


@pytest.mark.parametrize("cfg", YAMLS, ids=lambda path: path.stem)
def test_from_the_official_download_to_a_score(cfg: Path, prepared: dict[str, Path], tmp_path: Path) -> None:
    name = get_config(cfg).DATA.DATASET
    run, where = tmp_path / "run", ["--cfg", str(cfg), "--root_path", str(prepared[name])]
    assert train_command.main([*where, "--output_dir", str(run), *small(cfg)]) == 0
    assert test_command.main(["--output_dir", str(run)]) == 0
    summary = summary_of(run)
    classes = {"ACDC": ["right ventricle", "myocardium", "left ventricle"], "GlaS": ["gland"], "MoNuSeg": ["nucleus"]}
    assert list(summary["published"]["per_class"]) == classes[name]
    assert ("hd95_mm" in summary["published"]) == (name == "ACDC")
    rows = list(csv.DictReader((run / "per_case.csv").open()))
    assert len(rows) == len(summary["cases"]) * len(classes[name])
    assert {path.suffix for path in (run / "predictions").iterdir()} == {".gz" if name == "ACDC" else ".png"}


def test_acdc_validates_by_class_unless_it_is_told_otherwise(prepared: dict[str, Path], tmp_path: Path) -> None:
    cfg = ROOT / "configs/acdc_unet.yaml"
    keys = {}
    for how in ("per_class", "lumped"):
        run = tmp_path / how
        words = ["--cfg", str(cfg), "--root_path", str(prepared["ACDC"]), "--output_dir", str(run)]
        assert train_command.main([*words, *small(cfg), "TRAIN.VAL_DICE", how]) == 0
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        keys[how] = {key for row in rows for key in row if key.startswith("val_")}
    assert keys["lumped"] == {"val_dice", "val_foreground"}
    assert {"val_right_ventricle", "val_left_ventricle"} <= keys["per_class"]


def test_a_users_path(tmp_path: Path) -> None:
    """Pictures of one's own in three commands: trained, evaluated, predicted."""
    root, run, new = write_pictures(tmp_path / "own", 8), tmp_path / "run", tmp_path / "new"
    new.mkdir()
    Image.fromarray(picture(99, (33, 57))[0]).save(new / "slide 1.png")
    words = ["--dataset", "Folder", "--root_path", str(root), "--cfg", str(ROOT / "configs/unet_224.yaml")]
    assert train_command.main([*words, "--output_dir", str(run), "--max_epochs", "2", *UNET]) == 0
    assert test_command.main(["--output_dir", str(run)]) == 0
    assert set(summary_of(run)["published"]) >= {"dice", "jaccard", "std"}
    out = tmp_path / "out"
    assert test_command.main(["--checkpoint", str(run), "--input", str(new), "--output", str(out)]) == 0
    mask = np.asarray(Image.open(out / "predictions/slide 1.png"))
    assert mask.shape == (33, 57) and set(np.unique(mask)) <= {0, 255}


def test_cross_validation_in_one_command(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    root, out = write_pictures(tmp_path / "own", 6), tmp_path / "cv"
    words = ["--dataset", "Folder", "--root_path", str(root), "--cfg", str(ROOT / "configs/unet_224.yaml")]
    words += ["--output_dir", str(out), "--folds", "2", "--max_epochs", "1", "--workers", "0", *UNET]
    assert train_command.main(words) == 0
    result = json.loads((out / "cross_validation.json").read_text())
    parts = json.loads((root / "lists/folds_2.json").read_text())["folds"]
    tested = [name for part in parts for name in part]
    assert [case["name"] for case in result["cases"]] == tested and len(tested) == len(set(tested))
    assert not set(tested) & set((root / "lists/test.txt").read_text().splitlines()), "the test set is in no fold"
    dice = [case["strict"]["dice"] for case in result["cases"]]
    assert result["strict"]["over_cases"]["dice"]["mean"] == pytest.approx(np.mean(dice))
    assert result["strict"]["over_cases"]["dice"]["std"] == pytest.approx(np.std(dice, ddof=1))
    means = [summary_of(out / f"fold_{fold}")["strict"]["dice"] for fold in range(2)]
    assert result["strict"]["over_folds"]["dice"]["mean"] == pytest.approx(np.mean(means))
    shown = capfd.readouterr().out
    assert all(name in shown for name in tested) and "over cases" in shown
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "cross_validation.json"}
    assert train_command.main(words) == 0, "what is done is not done again"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_checkpoint_brings_what_it_was_trained_on(tmp_path: Path) -> None:
    """Volumes of three orientations to train on, and one scan in each of several to predict: one and the same mask."""
    root = write_volumes(tmp_path / "own", 4, orientations=("LPS", "RAS", "ASL"))
    run, scans, out = tmp_path / "run", tmp_path / "scans", tmp_path / "out"
    words = ["--dataset", "Folder", "--root_path", str(root), "--cfg", str(ROOT / "configs/unet_224.yaml")]
    assert train_command.main([*words, "--output_dir", str(run), "--max_epochs", "2", *UNET]) == 0
    scans.mkdir()
    for orientation in ("LPS", "RAS", "PIR", "SAL"):
        write_nifti(scans / f"{orientation}.nii.gz", volume(9)[0], orientation=orientation)
    assert test_command.main(["--checkpoint", str(run / "best.pth"), "--input", str(scans), "--output", str(out)]) == 0
    masks = {}
    for scan in scans.iterdir():
        assert geometry(out / "predictions" / scan.name) == geometry(scan)
        turned = sitk.DICOMOrient(sitk.ReadImage(str(out / "predictions" / scan.name)), "LPS")
        masks[scan.name] = sitk.GetArrayFromImage(turned)
    assert all((mask == masks["LPS.nii.gz"]).all() for mask in masks.values()) and masks["LPS.nii.gz"].any()
