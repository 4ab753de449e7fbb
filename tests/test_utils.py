"""The arithmetic that is asked for, and memory that a process keeps."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _as_before() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert utils.select_precision("bfloat16", cpu, allow_slow=True) is torch.bfloat16
    torch.backends.cudnn.allow_tf32 = True  # torch's own default: float32 has to mean float32
    assert utils.select_precision("float32", cpu) is None
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    with pytest.raises(ValueError, match="tf32 but the device is the CPU"):
        utils.select_precision("tf32", cpu)
    assert utils.select_precision("tf32", torch.device("cuda")) is None
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32


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
