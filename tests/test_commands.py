"""train.py and test.py as a user runs them, on small data in the Synapse layout."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml

import test as test_command
import train as train_command
from networks import build_network
from tests.configs.test_config import PUBLISHED_TEST, PUBLISHED_TRAIN
from tests.conftest import ROOT, TINY_SWIN, make_synapse

NETWORK = ["--img_size", "32", "--opts", *TINY_SWIN]
SMALL = ["--batch_size", "4", "--workers", "0", *NETWORK]


def train(root: Path, out: Path, *words: object) -> int:
    flags = [str(word) for word in words]
    return train_command.main(
        [
            "--dataset",
            "Synapse",
            "--root_path",
            str(root),
            "--output_dir",
            str(out),
            "--max_epochs",
            "2",
            *flags,
            *SMALL,
        ]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data folder and a run on it."""
    folder = tmp_path_factory.mktemp("trained")
    root = make_synapse(folder / "Synapse", train=3, test=2)
    assert train(root, folder / "run", "--val_cases", 1) == 0
    return root, folder / "run"


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


def geometry(path: Path) -> tuple:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def test_a_run_s_folder(trained: tuple[Path, Path]) -> None:
    _, run = trained
    assert {"config.yaml", "log.txt", "metrics.jsonl", "log", "last.pth", "best.pth"} == {p.name for p in run.iterdir()}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (
        config["ENVIRONMENT"]["torch"] == torch.__version__.split("+")[0]
        or config["ENVIRONMENT"]["torch"] == torch.__version__
    )
    assert "git_commit" in config["ENVIRONMENT"] and config["MODEL"]["SWIN"]["EMBED_DIM"] == 8
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "ce", "dice", "scr", "ifd", "lr"} <= set(rows[0])
    assert any("val_dice" in row for row in rows)
    last = torch.load(run / "last.pth", weights_only=True)
    best = torch.load(run / "best.pth", weights_only=True)
    assert set(last["model"]) == set(best) and all(k.startswith("swin_unet.") for k in best)
    assert list((run / "log").glob("events*"))


def test_evaluation_from_the_run_folder_alone(run: Path) -> None:
    assert test_command.main(["--output_dir", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    for convention in ("published", "strict"):
        assert {"dice", "hd95", "jaccard", "assd", "per_class"} <= set(summary[convention])
        assert len(summary[convention]["per_class"]) == 8
    assert [case["name"] for case in summary["cases"]] == ["case0100", "case0101"]
    assert 0 <= summary["published"]["dice"] <= 1
    with open(run / "per_case.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 16
    for case in ("case0100", "case0101"):
        mask = sitk.ReadImage(str(run / "predictions" / f"{case}.nii.gz"))
        assert mask.GetSize() == (40, 40, 3) and mask.GetPixelID() == sitk.sitkUInt8
        assert (run / "overlays" / f"{case}.png").stat().st_size > 1000
    assert "case0101" in (run / "report.html").read_text()


def test_metrics_by_medpy_are_the_same(run: Path) -> None:
    summaries = []
    for metrics in ("fast", "medpy"):
        assert test_command.main(["--output_dir", str(run), "--metrics", metrics, "--output", str(run / metrics)]) == 0
        summaries.append(json.loads((run / metrics / "summary.json").read_text())["published"])
    fast, medpy = ({m: summary[m] for m in ("dice", "hd95", "jaccard", "assd")} for summary in summaries)
    assert fast == pytest.approx(medpy, rel=1e-9)


def test_a_file_of_weights_elsewhere(trained: tuple[Path, Path], tmp_path: Path) -> None:
    root, run = trained
    weights = shutil.copy(run / "best.pth", tmp_path / "weights.pth")
    words = [
        "--dataset",
        "Synapse",
        "--volume_path",
        str(root),
        "--checkpoint",
        str(weights),
        "--output",
        str(tmp_path / "out"),
    ]
    assert test_command.main([*words, *NETWORK]) == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["cases"]
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
    write_ct(tmp_path / "in/b.nii", (20, 20, 1))
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
    row = json.loads((tmp_path / "plain/metrics.jsonl").read_text().splitlines()[0])
    assert "scr" not in row
    row = json.loads((tmp_path / "scr/metrics.jsonl").read_text().splitlines()[0])
    assert row["scr"] > 0 and row["ifd"] == 0


def test_the_same_seed_gives_the_same_weights(synapse: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(synapse, tmp_path / name, "--seed", seed) == 0
    a, b, c = (torch.load(tmp_path / name / "best.pth", weights_only=True) for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_unet_and_other_options(synapse: Path, tmp_path: Path) -> None:
    words = [
        "--dataset",
        "Synapse",
        "--root_path",
        str(synapse),
        "--output_dir",
        str(tmp_path / "u"),
        "--max_epochs",
        "1",
        "--img_size",
        "33",
        "--batch_size",
        "4",
        "--workers",
        "0",
        "--accumulation-steps",
        "2",
        "--amp",
        "--cfg",
        str(ROOT / "configs/unet_224.yaml"),
        "--opts",
        "MODEL.UNET.WIDTH",
        "4",
        "TRAIN.OPTIMIZER",
        "adamw",
        "TRAIN.LR_SCHEDULE",
        "constant",
        "TRAIN.BASE_LR",
        "1e-3",
    ]
    assert train_command.main(words) == 0
    assert test_command.main(["--output_dir", str(tmp_path / "u")]) == 0


@pytest.mark.parametrize("network", ["swin_unet", "unet"])
def test_a_batch_of_one_everywhere(tmp_path: Path, network: str) -> None:
    """One slice of training, one of validation, one of test, batches of one."""
    root = make_synapse(tmp_path / "one", train=2, shape=(1, 32, 32))
    words = ["MODEL.TYPE", network, "MODEL.UNET.WIDTH", "4", "TEST.BATCH_SIZE", "1", "TRAIN.VAL_FREQ", "1"]
    assert (
        train_command.main(
            [
                "--root_path",
                str(root),
                "--output_dir",
                str(tmp_path / "run"),
                "--max_epochs",
                "1",
                "--img_size",
                "32",
                "--batch_size",
                "1",
                "--workers",
                "0",
                "--val_cases",
                "1",
                "--opts",
                *TINY_SWIN,
                *words,
            ]
        )
        == 0
    )
    assert test_command.main(["--output_dir", str(tmp_path / "run")]) == 0
    # A last batch of one after a full one.
    three = make_synapse(tmp_path / "three", train=1, shape=(3, 32, 32))
    assert (
        train_command.main(
            [
                "--root_path",
                str(three),
                "--output_dir",
                str(tmp_path / "run3"),
                "--max_epochs",
                "1",
                "--img_size",
                "32",
                "--batch_size",
                "2",
                "--workers",
                "0",
                "--opts",
                *TINY_SWIN,
                *words,
            ]
        )
        == 0
    )


def test_resume_goes_on(synapse: Path, tmp_path: Path) -> None:
    assert train(synapse, tmp_path / "whole", "--max_epochs", 4) == 0
    assert train(synapse, tmp_path / "auto", "--max_epochs", 4, "--resume") == 0, (
        "auto starts afresh where there is nothing"
    )
    whole = torch.load(tmp_path / "whole/last.pth", weights_only=True)["model"]
    auto = torch.load(tmp_path / "auto/last.pth", weights_only=True)["model"]
    assert all(torch.equal(whole[k], auto[k]) for k in whole)
    assert train(synapse, tmp_path / "auto", "--max_epochs", 4, "--resume", "auto") == 0, "a finished run is done"


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_resumes_as_if_it_had_not_been(
    number: int, code: int, synapse: Path, tmp_path: Path
) -> None:
    """The signal goes to the whole process group, workers included, as a terminal or a cluster sends it."""
    words = ["--max_epochs", "60", "--workers", "2", "--val_cases", "1"]
    more = ["MODEL.DROP_PATH_RATE", "0.3", "TRAIN.LOG_FREQ", "1", "TRAIN.VAL_FREQ", "20"]
    command = ["--root_path", str(synapse), *words, "--batch_size", "2", *NETWORK, *more]
    cut = [sys.executable, "train.py", "--output_dir", str(tmp_path / "cut"), *command]
    process = subprocess.Popen(cut, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = tmp_path / "cut/metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_text().count("\n") > 5:
            break
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert "Traceback" not in error
    assert 0 < torch.load(tmp_path / "cut/last.pth", weights_only=True)["step"] < 120
    assert train_command.main(["--output_dir", str(tmp_path / "cut"), "--resume", *command]) == 0
    assert train_command.main(["--output_dir", str(tmp_path / "whole"), *command]) == 0
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == metrics.read_bytes()
    for name in ("best.pth", "last.pth"):
        whole, resumed = (torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "cut"))
        whole, resumed = whole.get("model", whole), resumed.get("model", resumed)
        assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_workers_change_no_weight(synapse: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        assert train(synapse, tmp_path / str(workers), "--resume") == 0
    states = [torch.load(tmp_path / name / "best.pth", weights_only=True) for name in "02"]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize(
    "change, expected",
    [
        (["--batch_size", "3"], "DATA.BATCH_SIZE is 3 but the run was begun with 4"),
        (["--seed", "5"], "SEED is 5"),
        (["--base_lr", "0.5"], "TRAIN.BASE_LR is 0.5"),
    ],
)
def test_another_configuration_does_not_resume(
    change: list[str], expected: str, run: Path, trained: tuple, refused: Callable
) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    words = ["--root_path", trained[0], "--output_dir", run, "--val_cases", 1, "--max_epochs", 3, "--resume"]
    message = refused(train_command.main, [*words, *SMALL[: SMALL.index("--opts")], *change, "--opts", *TINY_SWIN])
    assert expected in message
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_weights_alone_do_not_resume(run: Path, trained: tuple, refused: Callable) -> None:
    words = ["--root_path", trained[0], "--output_dir", run, "--val_cases", 1, "--resume", run / "best.pth", *SMALL]
    assert "does not belong to this run (it holds no 'slices')" in refused(train_command.main, words)


def test_cases_of_slices_of_several_sizes_validate_slice_by_slice(tmp_path: Path) -> None:
    root = make_synapse(tmp_path / "d", train=2)
    other = make_synapse(tmp_path / "e", train=2, shape=(3, 48, 40))
    shutil.copy(other / "train_npz/case0001_slice001.npz", root / "train_npz")
    assert train(root, tmp_path / "run", "--val_cases", 1) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("val_dice" in row for row in rows)


def test_batch_size_of_a_test_is_slices_a_pass(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluation import predict

    sizes = []
    original = predict._predict_batch

    def spy(network: object, images: np.ndarray, *rest: object) -> np.ndarray:
        sizes.append(len(images))
        return original(network, images, *rest)

    monkeypatch.setattr(predict, "_predict_batch", spy)
    assert test_command.main(["--output_dir", str(run), "--batch_size", "2"]) == 0
    assert max(sizes) == 2


def test_divergence_ends_with_code_3(synapse: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(synapse, tmp_path / "run", "--base_lr", "1e30", "--max_epochs", 9) == 3
    assert "not finite 3 times in a row" in capsys.readouterr().err
    assert "case0" in (tmp_path / "run/log.txt").read_text(), "the slices are named"


def test_out_of_memory_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable) -> None:
    from evaluation import predict

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMany lines")

    monkeypatch.setattr(predict, "_predict_batch", full)
    assert "out of memory; give a smaller --batch_size" in refused(test_command.main, ["--output_dir", run])
    assert "Many lines" in (run / "test_log.txt").read_text(), "the whole story is in the log"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The tracked files in a folder of their own, as a fresh clone has them."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.split("\n"):
        if name.endswith((".py", ".yaml", ".txt")) and (ROOT / name).is_file():
            (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "clone" / name)
    return tmp_path / "clone"


@pytest.mark.xdist_group("long")
def test_the_published_command_lines_verbatim(clone: Path) -> None:
    """All 150 epochs of the full-size network, on a data set of one slice."""
    root = make_synapse(clone / "data/Synapse", train=1, test=1, shape=(1, 64, 64))
    (clone / "lists").mkdir()
    (root / "lists").rename(clone / "lists/lists_Synapse")

    def command(script: str, words: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, script, *words], cwd=clone, capture_output=True, text=True)

    done = command("train.py", PUBLISHED_TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no ImageNet start: ./pretrained_ckpt/swin_tiny_patch4_window7_224.pth is not there") == 1
    state = torch.load(clone / "11_1/last.pth", weights_only=True)
    assert (state["epoch"], state["step"]) == (150, 150)
    assert sum(v.numel() for v in state["model"].values()) == 27_168_900
    done = command("test.py", PUBLISHED_TEST)
    assert done.returncode == 0, done.stderr
    summary = json.loads((clone / "11_1/summary.json").read_text())
    assert [case["name"] for case in summary["cases"]] == ["case0100"]
    assert geometry(clone / "11_1/predictions/case0100.nii.gz")[0] == (64, 64, 1)


# Bad input: exit code 2, one line on standard error, nothing written.

Refused = Callable[..., str]


def words_for(root: Path, out: Path) -> list[str]:
    return ["--dataset", "Synapse", "--root_path", str(root), "--output_dir", str(out), "--max_epochs", "1"]


TRAIN_ERRORS = {
    "no folder": (["--root_path", "absent"], "absent: no such data folder"),
    "no lists": (["--list_dir", "absent"], "absent: no such folder of lists"),
    "size": (
        ["--img_size", "30"],
        "img_size 30 does not fit patches of 4 and windows of 4; the nearest that does is 32",
    ),
    "dataset": (["--dataset", "Synapsy"], "--dataset is 'Synapsy'; expected one of Phantom, Synapse"),
    "config": (["--cfg", "absent.yaml"], "absent.yaml: no such configuration"),
    "key": (["--opts", "TRAIN.EPOCH", "3"], "did you mean TRAIN.EPOCHS?"),
    "type": (["--opts", "TRAIN.EPOCHS", "many"], "expected int"),
    "flag type": (["--max_epochs", "many"], "--max_epochs: invalid int value: 'many'"),
    "flag": (["--max_epoks", "3"], "unrecognized arguments: --max_epoks"),
    "value": (["--batch_size", "0"], "--batch_size"),
    "classes": (["--num_classes", "4"], "expected 0..3, so mend the file or give --num_classes"),
    "val_cases": (["--val_cases", "2"], "--val_cases"),
    "lambda": (["--lambda_x", "-1"], "LOSS.LAMBDA_1 is -1"),
    "weights": (["--opts", "MODEL.PRETRAIN_CKPT", "absent.pth"], "absent.pth: no such checkpoint"),
    "network": (["--opts", "MODEL.TYPE", "resnet"], "unknown network 'resnet'; expected one of swin_unet, unet"),
    "resume": (["--resume", "absent.pth"], "absent.pth: no such checkpoint"),
    "n_gpu": (["--n_gpu", "2"], "--n_gpu"),
}


@pytest.mark.parametrize("kind", TRAIN_ERRORS)
def test_train_refuses(kind: str, synapse: Path, tmp_path: Path, refused: Refused) -> None:
    extra, expected = TRAIN_ERRORS[kind]
    opts = extra[extra.index("--opts") + 1 :] if "--opts" in extra else []
    flags = extra[: extra.index("--opts")] if "--opts" in extra else extra
    small = [*SMALL[: SMALL.index("--opts")], *flags, *SMALL[SMALL.index("--opts") :], *opts]
    assert expected in refused(train_command.main, [*words_for(synapse, tmp_path / "run"), *small])
    assert not (tmp_path / "run").exists(), "nothing half-written"


def test_train_needs_an_output_folder(synapse: Path, tmp_path: Path, refused: Refused) -> None:
    assert "--output_dir is not given" in refused(train_command.main, ["--root_path", synapse, *SMALL])
    (tmp_path / "file").write_text("")
    message = refused(train_command.main, [*words_for(synapse, tmp_path / "file/run"), *SMALL])
    assert "--output_dir" in message and f"{tmp_path / 'file'} is a file" in message


def test_train_does_not_overwrite_a_run(trained: tuple[Path, Path], refused: Refused) -> None:
    root, run = trained
    before = (run / "last.pth").read_bytes()
    assert "holds a run already" in refused(train_command.main, [*words_for(root, run), *SMALL])
    assert (run / "last.pth").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 torn"])
def test_an_unreadable_imagenet_file_is_an_error(
    content: bytes, synapse: Path, tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path / "swin.pth"
    path.write_bytes(content)
    yaml_file = tmp_path / "a.yaml"
    yaml_file.write_text(f"MODEL: {{PRETRAIN_CKPT: {path}}}\n")
    message = refused(train_command.main, [*words_for(synapse, tmp_path / "run"), "--cfg", yaml_file, *SMALL])
    assert f"{path}: is not a readable checkpoint" in message and not (tmp_path / "run").exists()


def test_an_imagenet_file_of_another_shape_is_an_error(synapse: Path, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "swin.pth"
    torch.save(
        {
            "model": {
                "patch_embed.proj.weight": torch.zeros(96, 3, 4, 4),
                "layers.0.blocks.0.norm1.weight": torch.zeros(96),
            }
        },
        path,
    )
    words = [*words_for(synapse, tmp_path / "run"), *SMALL, "MODEL.PRETRAIN_CKPT", path]
    assert "is of another network" in refused(train_command.main, words)


@pytest.mark.parametrize("kind", ["truncated", "nan", "label"])
def test_a_bad_slice_stops_before_the_first_step(kind: str, synapse: Path, tmp_path: Path, refused: Refused) -> None:
    path = synapse / "train_npz/case0001_slice001.npz"
    image, label = np.ones((40, 40), np.float32), np.zeros((40, 40), np.uint8)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    else:
        image[0, 0], label[0, 0] = (np.nan, 0) if kind == "nan" else (1, 200)
        np.savez(path, image=image, label=label)
    assert str(path) in refused(train_command.main, [*words_for(synapse, tmp_path / "run"), *SMALL])
    assert not (tmp_path / "run").exists()


def test_test_refuses(trained: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    root, run = trained

    def message(*words: object) -> str:
        return refused(test_command.main, list(words))

    assert "neither --output_dir nor --checkpoint" in message()
    assert "holds no weights" in message("--output_dir", tmp_path)
    absent = ["--checkpoint", "absent.pth", "--output", tmp_path / "o", *NETWORK]
    assert "absent.pth: no such checkpoint" in message(*absent)
    assert "--output is not given" in message("--checkpoint", run / "best.pth")
    (tmp_path / "file").write_text("")
    assert "is a file" in message("--checkpoint", run, "--output", tmp_path / "file")
    assert "absent: no such data folder" in message(
        "--checkpoint", run, "--output", tmp_path / "o", "--volume_path", "absent"
    )
    assert "absent.nii.gz" in message("--checkpoint", run, "--output", tmp_path / "o", "--input", "absent.nii.gz")
    assert "no NIfTI" in message("--checkpoint", run, "--output", tmp_path / "o", "--input", run)
    assert "--metrics" in message("--output_dir", run, "--metrics", "slow")
    assert not (tmp_path / "o").exists(), "nothing half-written"


def test_test_refuses_other_checkpoints(trained: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    root, run = trained
    words = ["--checkpoint", run / "best.pth", "--output", tmp_path / "o"]
    assert "is for 9 classes, the network has 4; give --num_classes 9" in refused(
        test_command.main, [*words, "--num_classes", "4"]
    )
    torch.save(build_network("unet", num_classes=9, width=4).state_dict(), tmp_path / "unet.pth")
    other = ["--checkpoint", tmp_path / "unet.pth", "--output", tmp_path / "o", "--volume_path", root, *NETWORK]
    assert "is of another network" in refused(test_command.main, other)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["nan", "label", "truncated", "no label"])
def test_a_bad_volume_stops_before_anything_is_written(
    kind: str, trained: tuple[Path, Path], tmp_path: Path, refused: Refused
) -> None:
    import h5py

    root = Path(shutil.copytree(trained[0], tmp_path / "data"))
    path = root / "test_vol_h5/case0101.npy.h5"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:900])
    else:
        with h5py.File(path, "r+") as file:
            if kind == "no label":
                del file["label"]
            elif kind == "nan":
                file["image"][0, 0, 0] = np.nan
            else:
                file["label"][0, 0, 0] = 77
    assert str(path) in refused(
        test_command.main, ["--checkpoint", trained[1], "--output", tmp_path / "o", "--volume_path", root]
    )
    assert not (tmp_path / "o").exists()
