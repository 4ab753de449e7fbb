"""Bad input ends with exit code 2 and one line on standard error, and nothing is written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import datasets.readers
import test as test_command
import train as train_command
from configs.arguments import run_guarded
from networks import build_network
from tests import own_data
from tests.conftest import NETWORK, ROOT, SMALL

Refused = Callable[..., str]


def words_for(root: Path, out: Path) -> list[str]:
    return ["--dataset", "Synapse", "--root_path", str(root), "--output_dir", str(out), "--max_epochs", "1"]


TRAIN_ERRORS = {
    "no folder": (["--root_path", "absent"], "absent: no such data folder"),
    "no lists": (["--list_dir", "absent"], "absent: no such folder of lists"),
    "size": (
        ["--img_size", "30"],
        "img_size 30 does not fit patches of 4 merged 3 times; the nearest that does is 32",
    ),
    "dataset": (["--dataset", "Synapsy"], "--dataset is 'Synapsy'; expected one of ACDC, Folder, GlaS"),
    "config": (["--cfg", "absent.yaml"], "absent.yaml: no such configuration"),
    "key": (["--opts", "TRAIN.EPOCH", "3"], "did you mean TRAIN.EPOCHS?"),
    "type": (["--opts", "TRAIN.EPOCHS", "many"], "expected int"),
    "a flag": (["--lamda_x", "0.1"], "--lamda_x 0.1 (did you mean --lambda_x?)"),
    "a flag's dash": (["--use_checkpoint"], "(did you mean --use-checkpoint?)"),
    "a key as a flag": (["--optimizer=adamw"], "(did you mean --opts TRAIN.OPTIMIZER?)"),
    "flag type": (["--max_epochs", "many"], "--max_epochs: invalid int value: 'many'"),
    "flag": (["--max_epoks", "3"], "unrecognized arguments: --max_epoks"),
    "value": (["--batch_size", "0"], "--batch_size"),
    "classes": (["--num_classes", "4"], "expected 0..3, so fix the file or give --num_classes"),
    "val_cases": (["--val_cases", "2"], "--val_cases"),
    "lambda": (["--lambda_x", "-1"], "LOSS.LAMBDA_1 is -1"),
    "weights": (["--opts", "MODEL.PRETRAIN_CKPT", "absent.pth"], "absent.pth: no such checkpoint"),
    "network": (["--opts", "MODEL.TYPE", "resnet"], "unknown network 'resnet'; expected one of hiformer_b, hiformer_l"),
    "resume": (["--resume", "absent.pth"], "absent.pth: no such checkpoint"),
    "n_gpu": (["--n_gpu", "2"], "--n_gpu"),
    "precision": (["--precision", "float8"], "PRECISION is 'float8'; expected one of float32, tf32, bfloat16 (--prec"),
    "tf32": (["--precision", "tf32", "--n_gpu", "0"], "tf32 but the device is the CPU; expected float32 or bfloat16"),
}


@pytest.mark.parametrize("module, package", [("SimpleITK", "SimpleITK"), ("medpy", "MedPy")])
def test_a_missing_optional_library_is_named(
    module: str, package: str, run: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[object] = ["--output_dir", run, "--metrics", "medpy"]
    (run / "summary.json").touch()
    if module == "SimpleITK":
        words = ["--checkpoint", run, "--input", tmp_path / "a.mha", "--output", tmp_path / "out"]
        (tmp_path / "a.mha").touch()
    for name in [name for name in sys.modules if name.startswith((module, "datasets.readers.itk"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delattr(datasets.readers, "itk", raising=False)
    assert f"pip install {package}" in refused(test_command.main, words)
    assert module == "SimpleITK" or (run / "summary.json").is_file(), "the results there are stay"


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
    assert "of a kind that is not read" in message("--checkpoint", run, "--output", tmp_path / "o", "--input", run)
    assert "--metrics" in message("--output_dir", run, "--metrics", "slow")
    assert not (tmp_path / "o").exists(), "nothing half-written"


@pytest.mark.parametrize("cfg", ["unet_224", "swin_tiny_patch4_window7_224_lite", "glas_unet"])
def test_a_run_s_folder_with_another_cfg(
    cfg: str, trained: tuple[Path, Path], tmp_path: Path, refused: Refused
) -> None:
    words = ["--output_dir", trained[1], "--output", tmp_path / "o", "--cfg", f"configs/{cfg}.yaml"]
    assert "leave out --cfg" in refused(test_command.main, words)
    assert not (tmp_path / "o").exists()


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


LINKS = (".lock", ".partial-summary.json", "log.txt", "test_log.txt", "metrics.jsonl", "config.yaml", "log")
LINKS += ("predictions", "overlays", "predictions/.partial-case0100.nii.gz", "log/events", "seconds.json", "last.pth")


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_run_s_folder_is_named(
    name: str, run: Path, trained: tuple[Path, Path], tmp_path: Path, refused: Refused
) -> None:
    path = run / name
    path.parent.mkdir(exist_ok=True)
    source = tmp_path / "other"
    path.rename(source) if path.exists() else source.write_text("kept")
    path.symlink_to(source)
    before = {path: path.read_bytes() for path in (source, *source.rglob("*")) if path.is_file()}
    for main, words in ((train_command.main, ["--resume", *SMALL]), (test_command.main, [])):
        assert f"{path} is a link" in refused(main, ["--root_path", trained[0], "--output_dir", run, *words])
    assert {path: path.read_bytes() for path in (source, *source.rglob("*")) if path.is_file()} == before


def test_a_key_of_a_later_version_is_named(run: Path, trained: tuple[Path, Path], refused: Refused) -> None:
    """Resuming would write config.yaml anew, without it."""
    with (run / "config.yaml").open("a") as file:
        file.write("LATER: 1\n")
    words = ["--root_path", trained[0], "--output_dir", run]
    resume = [*words, "--dataset", "Synapse", "--val_cases", 1, "--max_epochs", 2, "--resume", *SMALL]
    for main, line in ((train_command.main, resume), (test_command.main, words)):
        assert f"{run / 'config.yaml'}: unknown key LATER" in refused(main, line)


def test_a_test_writes_nothing_where_the_configuration_of_a_run_says(
    run: Path, trained: tuple[Path, Path], tmp_path: Path, refused: Refused
) -> None:
    """Not the phantoms, not what was seen of images, not a cache; phantoms are made in the folder that is given."""
    text, data = (run / "config.yaml").read_text(encoding="utf-8"), tmp_path / "data"
    words = ["--checkpoint", run, "--output", tmp_path / "o"]

    def configure(**keys: object) -> None:
        content = yaml.safe_load(text)
        content["DATA"] |= {"ROOT_PATH": str(data), "VOLUME_PATH": "", "LIST_DIR": "", **keys}
        content["MODEL"]["NUM_CLASSES"] = 0 if keys["DATASET"] == "Folder" else 9
        (run / "config.yaml").write_text(yaml.safe_dump(content))

    configure(DATASET="Phantom", PHANTOM={"SIZE": 16, "DEPTH": 1, "TRAIN_CASES": 1, "TEST_CASES": 1})
    assert f"{data}: no such data folder" in refused(test_command.main, words)
    assert test_command.main([*map(str, words), "--root_path", str(tmp_path / "own")]) == 0
    own_data.write_images(data)
    before = sorted(data.rglob("*"))
    configure(DATASET="Folder")
    assert "--root_path" in refused(test_command.main, words) and sorted(data.rglob("*")) == before
    cache = tmp_path / "cache"
    configure(DATASET="Synapse", ROOT_PATH=str(trained[0]), FOLDS=2, CACHE=str(cache))
    assert test_command.main([*map(str, words)]) == 0 and not cache.exists()


@pytest.mark.parametrize("script", ["train.py", "scripts/compare.py"])
def test_without_the_requirements_a_command_says_how_to_get_them(script: str) -> None:
    words = ["a", "b"] if "compare" in script else ["--output_dir", "x"]
    done = subprocess.run([sys.executable, "-S", script, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "make install" in done.stderr, done.stderr


@pytest.mark.parametrize("closed", ["1", "2"])
def test_bad_input_with_a_closed_stream(closed: str, tmp_path: Path) -> None:
    """Each defect of the data is a line of standard output."""
    root = own_data.write_images(tmp_path / "data", 3)
    (root / "labels/case 1.png").unlink()
    words = ["--dataset", "Folder", "--root_path", root, "--output_dir", tmp_path / "run"]
    command = ["sh", "-c", f'exec "$@" {closed}>&-', "-", sys.executable, "train.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == (closed == "1"), done.stderr


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "malicious", "nan"])
def test_bad_checkpoint_files(kind: str, trained: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    path, whole = tmp_path / "w.pth", (trained[1] / "best.pth").read_bytes()
    state = torch.load(trained[1] / "best.pth", weights_only=True)
    if kind == "malicious":
        torch.save({"model": Malicious(tmp_path / "ran")}, path)
    elif kind == "nan":
        torch.save({**state, "swin_unet.norm.bias": state["swin_unet.norm.bias"] * float("nan")}, path)
    else:
        path.write_bytes({"empty": b"", "text": b"weights\n" * 99, "truncated": whole[: len(whole) // 2]}[kind])
    words = ["--checkpoint", path, "--output", tmp_path / "o", "--volume_path", trained[0], *NETWORK]
    assert str(path) in refused(test_command.main, words)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "o").exists()


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


def test_out_of_memory_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable) -> None:
    from evaluation import predict

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMany lines")

    monkeypatch.setattr(predict, "sum_heads", full)
    assert "out of memory; give a smaller --batch_size" in refused(test_command.main, ["--output_dir", run])
    assert "Many lines" in (run / "test_log.txt").read_text(encoding="utf-8"), "the whole story is in the log"


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"), 2, "--batch_size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 2, "--amp"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 2, "--use-checkpoint"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"), 2, "--batch_size"),
        (RuntimeError("Pin memory thread exited unexpectedly"), 2, "--workers"),
        (torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), 2, "--gpu_id"),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), 2, "--n_gpu 0"),
        (torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"), 2, "torch"),
        (
            torch.distributed.DistBackendError("NCCL error: remote process exited or a network error"),
            1,
            "--max",
        ),
    ],
)
def test_what_a_gpu_fails_of_is_one_line(
    error: RuntimeError, code: int, advice: str, capsys: pytest.CaptureFixture
) -> None:
    def command() -> int:
        raise error

    assert run_guarded("train.py", command) == code
    said = capsys.readouterr().err
    assert said.startswith("train.py: error: ") and said.count("\n") == 1 and advice in said


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    def command() -> int:
        raise RuntimeError("a view of a leaf Variable is being used in an in-place operation")

    with pytest.raises(RuntimeError, match="leaf Variable"):
        run_guarded("train.py", command)


def test_a_locale_without_utf_8_is_no_traceback(tmp_path: Path) -> None:
    """POSIX, as on many clusters: what it cannot print is escaped."""
    code = "import sys; from configs.arguments import run_guarded\n"
    code += "def command():\n    print('M\\u00fcller \\u2713')\n    raise ValueError('no \\u00fcber')\n"
    code += "sys.exit(run_guarded('x.py', command))"
    env = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, timeout=100)
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == (b"M\\xfcller \\u2713\n", b"x.py: error: no \\xfcber\n")
