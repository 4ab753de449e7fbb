"""Training runs as real processes, to be killed, signalled and compared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.conftest import ROOT, TINY_SWIN

PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
# Under drop path and the regulariser a step draws from torch's generator and from Python's.
OPTIONS = [*TINY_SWIN, "MODEL.DROP_PATH_RATE", "0.3", "TRAIN.LOG_FREQ", "1", "TRAIN.VAL_FREQ", "5"]
PATIENCE = 120.0


def words(root: Path, out: Path, *flags: object, opts: tuple[object, ...] = ()) -> list[str]:
    """The command line of train.py for a small Swin-UNet with the regulariser on, logged at every step."""
    given = ["--dataset", "Synapse", "--root_path", root, "--output_dir", out, "--img_size", "32", "--val_cases", "1"]
    given += ["--batch_size", "2", *flags, "--opts", *OPTIONS, *opts]
    return ["train.py", *(str(word) for word in given)]


def start(command: list[str], **options: Any) -> subprocess.Popen:
    """Start a command in the repository, in a process group of its own; both outputs are kept."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **{**streams, **options})


def finish(command: list[str], code: int = 0, **options: Any) -> tuple[str, str]:
    """Run a command to its end, which must be `code`; returns both outputs."""
    return end(start(command, **options), code)


def end(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    """Wait until a process is over, which must end with `code`; returns both outputs."""
    try:
        out, error = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}\n{out}\n{error}"
    return out, error


def wait_for(what: Callable[[], Any], process: subprocess.Popen | None = None, pause: float = 0.01) -> Any:
    """Wait until something holds, and return it; None where `process` ends before."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended = process is not None and process.poll() is not None
        if found := what():
            return found
        if ended:
            return None
        time.sleep(pause)
    raise AssertionError("waited in vain")


def steps_of(run: Path) -> int:
    """Steps that metrics.jsonl tells of so far."""
    path = run / "metrics.jsonl"
    return sum('"loss"' in line for line in path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def starts_of(run: Path) -> int:
    """How often training has begun in a folder."""
    path = run / "log.txt"
    return path.read_text(encoding="utf-8").count("first rate") if path.is_file() else 0


def last(run: Path) -> dict[str, Any]:
    """What last.pth holds, but for the configuration, which names the folder."""
    state = torch.load(run / "last.pth", weights_only=True)
    return {key: value for key, value in state.items() if key != "config"}


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit, however they nest."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def assert_same_run(run: Path, whole: Path) -> None:
    """Weights, optimiser, generators, counters, metrics and the best weights of two runs, bit for bit."""
    ours, theirs = last(run), last(whole)
    differing = [key for key in theirs if not same(ours[key], theirs[key])]
    assert list(ours) == list(theirs) and not differing, differing
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    best = [torch.load(folder / "best.pth", weights_only=True) for folder in (run, whole)]
    assert same(*best)
