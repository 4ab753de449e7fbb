"""An interrupted run goes on as if it had not been; what cannot go on is refused; divergence ends cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train as train_command
from tests.conftest import NETWORK, ROOT, SMALL, TINY_SWIN, train


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


def test_divergence_ends_with_code_3(synapse: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(synapse, tmp_path / "run", "--base_lr", "9e5", "--max_epochs", 9) == 3
    assert "times in a row" in capsys.readouterr().err
    assert "case0" in (tmp_path / "run/log.txt").read_text(), "the slices are named"
