"""The arithmetic that is asked for, and memory that a process keeps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from tests.conftest import ROOT

BACKENDS = (torch.backends.cuda.matmul, torch.backends.cudnn)


@pytest.fixture(autouse=True)
def _as_before() -> None:
    before = [backend.allow_tf32 for backend in BACKENDS]
    yield
    for backend, allowed in zip(BACKENDS, before, strict=True):
        backend.allow_tf32 = allowed


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert utils.select_precision("bfloat16", cpu, allow_slow=True) is torch.bfloat16
    torch.backends.cudnn.allow_tf32 = True  # torch's own default: float32 has to mean float32
    assert utils.select_precision("float32", cpu) is None
    assert {backend.allow_tf32 for backend in BACKENDS} == {False}
    with pytest.raises(ValueError, match="tf32 but the device is the CPU"):
        utils.select_precision("tf32", cpu)
    assert utils.select_precision("tf32", torch.device("cuda")) is None
    assert {backend.allow_tf32 for backend in BACKENDS} == {True}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has the option")
def test_freed_memory_is_kept() -> None:
    code = (
        "import resource, torch, utils\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(8): torch.ones(2**24)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "given_back = faults(); utils.tune_malloc(); faults(); print(faults() / given_back)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # 64 MiB eight times over: every page is fetched each time, or none but in a turn or two that the system disturbs.
    assert float(done.stdout) < 0.5


def test_a_batch_too_large_for_memory_names_the_flags(synapse, tmp_path) -> None:
    code = (
        "import resource, sys, train, trainer, networks, torch._dynamo\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    words = ["--dataset", "Synapse", "--root_path", str(synapse), "--output_dir", str(tmp_path / "run")]
    words += ["--workers", "0", "--img_size", "1024", "--batch_size", "6", "--opts", "MODEL.TYPE", "unet"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    for flag in ("--batch_size", "--accumulation-steps", "--use-checkpoint", "--amp"):
        assert flag in done.stderr


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Neither of the name itself, nor of the temporary one, nor where a log begins; a pipe keeps nobody waiting."""
    other, folder = tmp_path / "other", tmp_path / "run"
    other.write_text("kept")
    folder.mkdir()
    for name in ("a.json", ".partial-a.json", "log.txt"):
        (folder / name).symlink_to(other)
    utils.atomic_write(folder / "a.json", lambda path: path.write_text("new"))
    assert (folder / "a.json").read_text(encoding="utf-8") == "new" and not (folder / "a.json").is_symlink()
    os.mkfifo(folder / "pipe")
    for name in ("log.txt", "pipe"):
        with utils.logging_session("x"), pytest.raises(OSError, match=name):
            utils.log_to(folder / name)
    assert other.read_text(encoding="utf-8") == "kept"


def test_a_run_s_folder_may_be_a_link_and_holds_none(tmp_path: Path) -> None:
    (tmp_path / "real/predictions").mkdir(parents=True)
    run = tmp_path / "run"
    run.symlink_to("real")
    stale = [run / ".partial-1-a.pth", run / "predictions/.partial-1-a.nii.gz"]
    for path in stale:
        path.touch()
    utils.check_writable(run, "--output")
    with utils.locked(run):
        assert not any(path.exists() for path in stale), "left by writers that were killed"
    (run / "predictions/a.nii.gz").symlink_to("absent")
    with pytest.raises(ValueError, match="predictions/a.nii.gz is a link"):
        utils.check_writable(run, "--output")


@pytest.mark.parametrize("mode", ["w+", "c"])
def test_what_is_let_go_is_not_lost(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").write_bytes(bytes(2**16))
    array = np.memmap(tmp_path / "a", np.uint8, mode, shape=(16, 64, 64))
    array[3] = 7
    utils.release_pages(array[2:5].transpose(1, 0, 2))
    assert (array[3] == 7).all() and not array[4].any()
    plain = np.ones(9)
    utils.release_pages(plain[1:])
    assert (plain == 1).all()
