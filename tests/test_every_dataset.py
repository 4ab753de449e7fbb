"""Every data set by its shipped yaml and the commands alone: from the official layout to a score and a prediction."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
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
from tests.conftest import ROOT, SHARED, geometry
from tests.networks.small import SMALL
from tests.own_data import draw_image, volume, write_images, write_nifti, write_volumes
from tests.scripts.preparation import test_acdc as acdc
from tests.scripts.preparation import test_histology as histology

OFFICIAL = ("ACDC", "GlaS", "MoNuSeg")
YAMLS = sorted(path for name in OFFICIAL for path in (ROOT / "configs").glob(f"{name.lower()}_*.yaml"))
MONUSEG = SHARED / "data/monuseg"
UNET = ["--img_size", "32", "--opts", "MODEL.UNET.WIDTH", "4"]


def small(cfg: Path) -> list[str]:
    """What makes the network of a yaml small enough for a test."""
    options = dict(SMALL[get_config(cfg).model.type])
    words = ["--img_size", str(options.pop("img_size")), "--workers", "0", "--max_epochs", "1", "--opts"]
    section = {"swin_unet": "SWIN", "unet": "UNET"}[get_config(cfg).model.type]
    for key, value in options.items():
        words += [f"MODEL.{section}.{key.upper()}", str(list(value) if isinstance(value, tuple) else value)]
    return words


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


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
    assert {get_config(path).data.dataset for path in YAMLS} == set(OFFICIAL)
    assert set(list_datasets()) == {*OFFICIAL, "Synapse", "Phantom", "Folder"}


@pytest.mark.parametrize("cfg", YAMLS, ids=lambda path: path.stem)
def test_from_the_official_download_to_a_score(cfg: Path, prepared: dict[str, Path], tmp_path: Path) -> None:
    name = get_config(cfg).data.dataset
    run, where = tmp_path / "run", ["--cfg", str(cfg), "--root_path", str(prepared[name])]
    assert train_command.main([*where, "--output_dir", str(run), *small(cfg)]) == 0
    assert test_command.main(["--output_dir", str(run)]) == 0
    summary = summary_of(run)
    classes = {"ACDC": ["right ventricle", "myocardium", "left ventricle"], "GlaS": ["gland"], "MoNuSeg": ["nucleus"]}
    assert list(summary["published"]["per_class"]) == classes[name]
    # Both frames of a patient are of one group; elsewhere a case stands for itself.
    groups = [case.get("group") for case in summary["cases"]]
    assert groups == [case["name"].rpartition("_")[0] if name == "ACDC" else None for case in summary["cases"]]
    assert name != "ACDC" or len({*groups}) == len(groups) / 2
    assert ("hd95_mm" in summary["published"]) == (name == "ACDC")
    rows = list(csv.DictReader((run / "per_case.csv").open()))
    assert len(rows) == len(summary["cases"]) * len(classes[name])
    assert {path.suffix for path in (run / "predictions").iterdir()} == {".gz" if name == "ACDC" else ".png"}


@pytest.mark.skipif(not MONUSEG.is_dir(), reason="MoNuSeg is not beside this checkout (../shared/data)")
def test_the_real_monuseg_by_its_yaml(tmp_path: Path) -> None:
    run, cfg = tmp_path / "run", ROOT / "configs/monuseg_unet.yaml"
    words = ["--cfg", str(cfg), "--root_path", str(MONUSEG), "--output_dir", str(run), "--val_cases", "2"]
    assert train_command.main([*words, "--max_iterations", "3", *small(cfg)]) == 0
    assert test_command.main(["--output_dir", str(run)]) == 0
    summary = summary_of(run)
    names = [path.stem for path in sorted((MONUSEG / "test/images").iterdir())]
    assert [case["name"] for case in summary["cases"]] == names and len(names) == 14
    assert 0 < summary["published"]["dice"] < 1 and summary["unit"] == "pixels"
    assert np.asarray(Image.open(run / f"predictions/{names[0]}.png")).shape == (512, 512)


def test_acdc_validates_by_class_unless_it_is_told_otherwise(prepared: dict[str, Path], tmp_path: Path) -> None:
    cfg = ROOT / "configs/acdc_unet.yaml"
    keys = {}
    for how in ("per_class", "lumped"):
        run = tmp_path / how
        words = ["--cfg", str(cfg), "--root_path", str(prepared["ACDC"]), "--output_dir", str(run)]
        assert train_command.main([*words, *small(cfg), "TRAIN.VAL_DICE", how]) == 0
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        keys[how] = {key for row in rows for key in row if key.startswith("val_")}
    assert keys["lumped"] == {"val_dice", "val_foreground"}
    assert {"val_right_ventricle", "val_left_ventricle"} <= keys["per_class"]


def test_a_users_path(tmp_path: Path) -> None:
    """Pictures of one's own in three commands: trained, evaluated, predicted."""
    root, run, new = write_images(tmp_path / "own", 8), tmp_path / "run", tmp_path / "new"
    new.mkdir()
    Image.fromarray(draw_image(99, (33, 57))[0]).save(new / "slide 1.png")
    words = ["--dataset", "Folder", "--root_path", str(root), "--cfg", str(ROOT / "configs/unet_224.yaml")]
    assert train_command.main([*words, "--output_dir", str(run), "--max_epochs", "2", *UNET]) == 0
    assert test_command.main(["--output_dir", str(run)]) == 0
    assert set(summary_of(run)["published"]) >= {"dice", "jaccard", "std"}
    out = tmp_path / "out"
    assert test_command.main(["--checkpoint", str(run), "--input", str(new), "--output", str(out)]) == 0
    mask = np.asarray(Image.open(out / "predictions/slide 1.png"))
    assert mask.shape == (33, 57) and set(np.unique(mask)) <= {0, 255}


def test_cross_validation_in_one_command(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root, out = write_images(tmp_path / "own", 6), Path("-cv")  # a name like that of a flag
    words = ["--dataset", "Folder", "--root_path", str(root), "--cfg", str(ROOT / "configs/unet_224.yaml")]
    words += [f"--output_dir={out}", "--folds", "2", "--max_epochs", "1", "--workers", "0", *UNET]
    assert train_command.main(words) == 0
    result = json.loads((out / "cross_validation.json").read_text(encoding="utf-8"))
    parts = json.loads((root / "lists/folds_2.json").read_text(encoding="utf-8"))["folds"]
    tested = [name for part in parts for name in part]
    assert [case["name"] for case in result["cases"]] == tested and len(tested) == len(set(tested))
    assert not set(tested) & set((root / "lists/test.txt").read_text(encoding="utf-8").splitlines()), (
        "the test set is in no fold"
    )
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
    for other, what in ((["--lambda_x", "0"], "LOSS.LAMBDA_1 is 0.0 but"), (["--folds", "3"], "DATA.FOLDS is 3 but")):
        assert train_command.main([*words[: -len(UNET)], *other, *UNET]) == 2
        error = capfd.readouterr().err
        assert "fold_0/config.yaml" in error and what in error, "nor taken for what it is not"
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


def test_what_is_wrong_is_told_together_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_images(tmp_path / "own", 14)
    (root / "labels/case 0.png").unlink()
    for index in range(1, 13):
        Image.fromarray(draw_image(index)[0]).save(root / f"labels/case {index}.png")
    (root / "images/case 13.png").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    words = ["--dataset", "Folder", "--root_path", str(root), "--cfg", str(ROOT / "configs/unet_224.yaml")]
    assert train_command.main([*words, "--output_dir", str(tmp_path / "run"), *UNET]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "14 defects" in shown.err
    said = shown.out.splitlines()
    assert len(said) == 14 and all(any(f"case {index}.png: " in line for line in said) for index in range(14))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_save_brings_its_configuration_wherever_it_lies(tmp_path: Path) -> None:
    root, run = write_images(tmp_path / "own", 6), tmp_path / "run"
    words = ["--dataset", "Folder", "--root_path", str(root), "--cfg", str(ROOT / "configs/unet_224.yaml")]
    assert train_command.main([*words, "--output_dir", str(run), "--max_epochs", "1", *UNET]) == 0
    moved, out = Path(shutil.copy(run / "last.pth", tmp_path / "mine.pth")), tmp_path / "out"
    given = root / "images/case 0.png"
    assert test_command.main(["--checkpoint", str(moved), "--input", str(given), "--output", str(out)]) == 0
    assert set(np.unique(Image.open(out / "predictions/case 0.png"))) <= {0, 255}


ONE_PICTURE_IN_TWO_PARTS = {
    "trained and tested": ("Train_Folder", "Test_Folder", "b.png"),
    "validated and tested": ("Val_Folder", "Test_Folder", "b.png"),
    "trained and validated under one name": ("Train_Folder", "Val_Folder", ""),
}


def as_shared(root: Path) -> Path:
    """One draw_image with its mask in each of UCTransNet's folders."""
    for seed, part in enumerate(("Train_Folder", "Val_Folder", "Test_Folder")):
        for folder, array in zip(("img", "labelcol"), draw_image(seed), strict=True):
            (root / part / folder).mkdir(parents=True)
            Image.fromarray(array * (255 if folder == "labelcol" else 1)).save(root / part / folder / f"{seed}.png")
    return root


@pytest.mark.parametrize("fault", ONE_PICTURE_IN_TWO_PARTS)
def test_the_test_set_is_seen_by_nobody_else(tmp_path: Path, fault: str, refused: Callable) -> None:
    root = as_shared(tmp_path / "shared")
    source, target, name = ONE_PICTURE_IN_TWO_PARTS[fault]
    for folder in ("img", "labelcol"):
        (path,) = (root / source / folder).iterdir()
        shutil.copy(path, root / target / folder / (name or path.name))
    words = ["--dataset", "MoNuSeg", "--root_path", root, "--cfg", ROOT / "configs/unet_224.yaml"]
    error = refused(train_command.main, [*words, "--output_dir", tmp_path / "run", *UNET])
    assert "is the same image as" in error and not (tmp_path / "run").exists()
    assert ("has the name of" in error) == (not name)


def test_masks_that_mark_nothing_teach_nothing(tmp_path: Path, refused: Callable) -> None:
    root = as_shared(tmp_path / "shared")
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(root / "Train_Folder/labelcol/0.png")
    words = ["--dataset", "MoNuSeg", "--root_path", root, "--cfg", ROOT / "configs/unet_224.yaml"]
    error = refused(train_command.main, [*words, "--output_dir", tmp_path / "run", *UNET])
    assert "no training case holds class 1 (nucleus)" in error and not (tmp_path / "run").exists()


def test_data_prepared_otherwise_are_predicted_otherwise(tmp_path: Path) -> None:
    """The scale and the order of the axes that a script was told go with the data into the run."""
    raw, root, run = tmp_path / "raw", tmp_path / "ACDC", tmp_path / "run"
    for number in (1, 2, 19):
        acdc.patient(raw, number)
    how = ["--scale", "window", "--window", "0", "400", "--axis_order", "zyx"]
    assert prepare_acdc.main([str(raw), str(root), *how]) == 0
    cfg = ROOT / "configs/acdc_unet.yaml"
    assert train_command.main(["--cfg", str(cfg), "--root_path", str(root), "--output_dir", str(run), *small(cfg)]) == 0
    data = get_config(run / "config.yaml").data
    assert (data.intensity, data.window, data.axis_order) == ("window", (0.0, 400.0), "zyx")
