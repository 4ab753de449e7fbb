"""train.py and test.py as a user runs them, on small data in the Synapse layout."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from scipy.ndimage import zoom

import selfreg
import test as test_command
import train as train_command
from configs.config import get_config
from datasets.case import Geometry, Volume
from evaluation.metrics import compare_classes
from tests.configs.test_config import PUBLISHED_TEST, PUBLISHED_TRAIN
from tests.conftest import NETWORK, ROOT, TINY_SWIN, geometry, make_synapse, train


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_s_folder(trained: tuple[Path, Path]) -> None:
    _, run = trained
    assert {"config.yaml", "log.txt", "metrics.jsonl", "log", "last.pth", "best.pth"} == {p.name for p in run.iterdir()}
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (
        config["ENVIRONMENT"]["torch"] == torch.__version__.split("+")[0]
        or config["ENVIRONMENT"]["torch"] == torch.__version__
    )
    assert "git_commit" in config["ENVIRONMENT"] and config["MODEL"]["SWIN"]["EMBED_DIM"] == 8
    first, *rows = rows_of(run)
    assert first["step"] == 1 and {"loss", "ce", "dice_loss", "scr", "ifd", "lr"} <= set(first)
    assert any("val_dice" in row for row in rows)
    last = torch.load(run / "last.pth", weights_only=True)
    best = torch.load(run / "best.pth", weights_only=True)
    assert set(last["model"]) == set(best) and all(k.startswith("swin_unet.") for k in best)
    assert list((run / "log").glob("events*"))


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert test_command.main(["--version"]) == train_command.main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"selfreg {selfreg.__version__}"] * 2


def test_the_next_command_can_be_pasted(synapse: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "it's a run"
    assert train(synapse, run) == 0
    *_, done, following = capsys.readouterr().out.splitlines()
    assert done == f"done: {run / 'best.pth'}"
    name, words = following.split(": ", 1)
    assert (name, shlex.split(words)) == ("next", ["python", "test.py", "--output_dir", str(run)])
    assert test_command.main(shlex.split(words)[2:]) == 0


def test_evaluation_from_the_run_folder_alone(run: Path) -> None:
    assert test_command.main(["--output_dir", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    for convention in ("published", "strict"):
        assert {"dice", "hd95", "jaccard", "assd", "per_class"} <= set(summary[convention])
        assert len(summary[convention]["per_class"]) == 8
    assert [case["name"] for case in summary["cases"]] == ["case0100", "case0101"]
    assert 0 <= summary["published"]["dice"] <= 1
    with open(run / "per_case.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 16
    for case in ("case0100", "case0101"):
        mask = sitk.ReadImage(str(run / "predictions" / f"{case}.nii.gz"))
        assert mask.GetSize() == (40, 40, 3) and mask.GetPixelID() == sitk.sitkUInt8
        assert (run / "overlays" / f"{case}.png").stat().st_size > 1000
    assert "case0101" in (run / "report.html").read_text(encoding="utf-8")


def test_metrics_by_medpy_are_the_same(run: Path) -> None:
    summaries = []
    for metrics in ("fast", "medpy"):
        assert test_command.main(["--output_dir", str(run), "--metrics", metrics, "--output", str(run / metrics)]) == 0
        summaries.append(json.loads((run / metrics / "summary.json").read_text(encoding="utf-8"))["published"])
    fast, medpy = ({m: summary[m] for m in ("dice", "hd95", "jaccard", "assd")} for summary in summaries)
    assert fast == pytest.approx(medpy, rel=1e-9)


def test_scores_at_the_network_s_own_size() -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 3, (2, 32, 24), dtype=np.uint8), rng.integers(0, 3, (2, 50, 41), dtype=np.uint8)
    mask = zoom(predicted, (1, 50 / 32, 41 / 24), order=0)  # what a test writes of it
    volume = Volume("a", np.zeros(truth.shape, np.float32), truth, Geometry((1.0, 1.0, 3.0)))
    opts = ["TEST.SCORE_AT", "network", "DATA.IMG_SIZE", "[32, 24]", "MODEL.NUM_CLASSES", "3"]
    (scores,) = test_command.score(volume, mask, get_config(opts=opts), torch.device("cpu"))  # and none in mm
    assert scores == compare_classes(predicted, zoom(truth, (1, 32 / 50, 24 / 41), order=0), 3)
    at_image, in_mm = test_command.score(volume, mask, get_config(opts=opts[2:]), torch.device("cpu"))
    assert at_image == compare_classes(mask, truth, 3) != scores and in_mm != at_image


def test_a_file_of_weights_elsewhere(trained: tuple[Path, Path], tmp_path: Path) -> None:
    root, run = trained
    weights = shutil.copy(run / "best.pth", tmp_path / "weights.pth")
    words = ["--dataset", "Synapse", "--volume_path", str(root), "--checkpoint", str(weights)]
    words += ["--output", str(tmp_path / "out")]
    assert test_command.main([*words, *NETWORK]) == 0
    assert json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))["cases"]
    assert not (tmp_path / "summary.json").exists()
    assert test_command.main(["--checkpoint", str(run), "--output", str(tmp_path / "out2")]) == 0
    assert (tmp_path / "out/per_case.csv").read_bytes() == (tmp_path / "out2/per_case.csv").read_bytes()


def write_ct(path: Path, shape: tuple[int, int, int] = (30, 24, 5)) -> Path:
    """A NIfTI of (x, y, z) voxels in HU, oblique and anisotropic."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-200, 300, shape[::-1]).astype(np.int16))
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((-101.5, 33.25, 7.125))
    image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0))
    sitk.WriteImage(image, str(path))
    return path


def test_a_nifti_keeps_its_geometry(trained: tuple[Path, Path], tmp_path: Path) -> None:
    path = write_ct(tmp_path / "patient.nii.gz")
    assert (
        test_command.main(["--checkpoint", str(trained[1]), "--input", str(path), "--output", str(tmp_path / "out")])
        == 0
    )
    assert geometry(tmp_path / "out/predictions/patient.nii.gz") == geometry(path)
    assert (tmp_path / "out/overlays/patient.png").is_file()
    assert not (tmp_path / "out/summary.json").exists(), "no labels, no scores"


def test_a_folder_of_niftis(trained: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_ct(tmp_path / "in/a.nii.gz")
    write_ct(tmp_path / "in/b.nii", (20, 20, 2))
    assert (
        test_command.main(
            ["--checkpoint", str(trained[1]), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
        )
        == 0
    )
    assert {p.name for p in (tmp_path / "out/predictions").iterdir()} == {"a.nii.gz", "b.nii.gz"}


def test_the_baseline_and_the_separate_weights(synapse: Path, tmp_path: Path) -> None:
    assert train(synapse, tmp_path / "plain", "--lambda_x", 0) == 0
    assert train(synapse, tmp_path / "scr", "--lambda_1", 0.1, "--lambda_2", 0) == 0
    assert all("scr" not in row and "grad_scr" not in row for row in rows_of(tmp_path / "plain"))
    row, *_ = rows_of(tmp_path / "scr")
    assert row["scr"] > 0 and row["ifd"] == 0


def test_the_same_seed_gives_the_same_weights(synapse: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(synapse, tmp_path / name, "--seed", seed) == 0
    a, b, c = (torch.load(tmp_path / name / "best.pth", weights_only=True) for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_a_cache_changes_nothing(synapse: Path, tmp_path: Path) -> None:
    found = []
    cache = ["--cache", tmp_path / "cache"]
    for number, extra in enumerate((["--opts", "DATA.CACHE_MEMORY", 0], [], cache, cache)):
        run = tmp_path / str(number)
        assert train(synapse, run, "--val_cases", 1, *extra) == 0
        found.append(
            (
                torch.load(run / "last.pth", weights_only=True)["model"],
                (run / "metrics.jsonl").read_text(encoding="utf-8"),
            )
        )
    assert list((tmp_path / "cache").iterdir())
    for weights, metrics in found[1:]:
        assert metrics == found[0][1]
        assert all(torch.equal(value, found[0][0][key]) for key, value in weights.items())


SLOW = ["--opts", "SLOW_BFLOAT16", "True"]  # where the CPU has no bfloat16


def test_an_evaluation_in_bfloat16(run: Path) -> None:
    summaries = []
    for precision in ("float32", "bfloat16"):
        assert test_command.main(["--output_dir", str(run), "--precision", precision, *SLOW]) == 0
        summaries.append(json.loads((run / "summary.json").read_text(encoding="utf-8")))
        assert precision in (run / "report.html").read_text(encoding="utf-8")
    dice = [summary["published"]["dice"] for summary in summaries]
    assert dice[1] == pytest.approx(dice[0], abs=0.05)


def test_unet_and_other_options(synapse: Path, tmp_path: Path) -> None:
    words = ["--dataset", "Synapse", "--root_path", str(synapse), "--output_dir", str(tmp_path / "u")]
    words += ["--cfg", str(ROOT / "configs/unet_224.yaml")]
    words += "--max_epochs 1 --img_size 33 --batch_size 4 --workers 0 --accumulation-steps 2 --amp --opts".split()
    words += "MODEL.UNET.WIDTH 4 TRAIN.OPTIMIZER adamw TRAIN.LR_SCHEDULE constant TRAIN.BASE_LR 1e-3".split() + SLOW[1:]
    assert train_command.main(words) == 0
    assert test_command.main(["--output_dir", str(tmp_path / "u")]) == 0


@pytest.mark.parametrize("network", ["swin_unet", "unet"])
def test_a_batch_of_one_everywhere(tmp_path: Path, network: str) -> None:
    """One slice of training, one of validation, one of test, batches of one."""
    words = ["--max_epochs", "1", "--img_size", "32", "--workers", "0"]
    opts = f"MODEL.TYPE {network} MODEL.UNET.WIDTH 4 TEST.BATCH_SIZE 1 TRAIN.VAL_FREQ 1".split()
    opts = ["--opts", *TINY_SWIN, *opts]
    one = make_synapse(tmp_path / "one", train=2, shape=(1, 32, 32))
    where = ["--root_path", str(one), "--output_dir", str(tmp_path / "run"), "--batch_size", "1", "--val_cases", "1"]
    assert train_command.main([*where, *words, *opts]) == 0
    assert test_command.main(["--output_dir", str(tmp_path / "run")]) == 0
    # A last batch of one after a full one.
    three = make_synapse(tmp_path / "three", train=1, shape=(3, 32, 32))
    where = ["--root_path", str(three), "--output_dir", str(tmp_path / "run3"), "--batch_size", "2"]
    assert train_command.main([*where, *words, *opts]) == 0


def test_cases_of_slices_of_several_sizes_validate_slice_by_slice(tmp_path: Path) -> None:
    root = make_synapse(tmp_path / "d", train=2)
    other = make_synapse(tmp_path / "e", train=2, shape=(3, 48, 40))
    shutil.copy(other / "train_npz/case0001_slice001.npz", root / "train_npz")
    assert train(root, tmp_path / "run", "--val_cases", 1) == 0
    assert any("val_dice" in row for row in rows_of(tmp_path / "run"))


def test_batch_size_of_a_test_is_slices_a_pass(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluation import predict

    sizes = []
    original = predict.sum_heads

    def spy(logits: torch.Tensor) -> torch.Tensor:
        sizes.append(len(logits))
        return original(logits)

    monkeypatch.setattr(predict, "sum_heads", spy)
    assert test_command.main(["--output_dir", str(run), "--batch_size", "2"]) == 0
    assert max(sizes) == 2


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The tracked files in a folder of their own, as a fresh clone has them."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.split("\n"):
        if name.endswith((".py", ".yaml", ".txt", ".css", ".j2")) and (ROOT / name).is_file():
            (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


@pytest.mark.xdist_group("long")
def test_the_published_command_lines_verbatim(clone: Path, long: bool) -> None:
    """The full-size network on a data set of one slice; all 150 epochs in the long form, else two."""
    root = make_synapse(clone / "data/Synapse", train=1, test=1, shape=(1, 64, 64))
    (clone / "lists").mkdir()
    (root / "lists").rename(clone / "lists/lists_Synapse")

    def command(script: str, words: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, script, *words], cwd=clone, capture_output=True, text=True)

    epochs = 150 if long else 2
    done = command("train.py", [*PUBLISHED_TRAIN, "--max_iterations", str(epochs)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ImageNet weights: ./pretrained_ckpt/swin_tiny_patch4_window7_224.pth does not exist") == 1
    state = torch.load(clone / "11_1/last.pth", weights_only=True)
    assert (state["epoch"], state["step"]) == (epochs, epochs)
    assert sum(v.numel() for v in state["model"].values()) == 27_168_900
    done = command("test.py", PUBLISHED_TEST)
    assert done.returncode == 0, done.stderr
    summary = json.loads((clone / "11_1/summary.json").read_text(encoding="utf-8"))
    assert [case["name"] for case in summary["cases"]] == ["case0100"]
    assert geometry(clone / "11_1/predictions/case0100.nii.gz")[0] == (64, 64, 1)
