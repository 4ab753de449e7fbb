"""An interrupted run goes on as if it had not been; what cannot go on is refused; divergence ends cleanly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train as train_command
from tests.conftest import SMALL, TINY_SWIN, train


def test_resume_goes_on(synapse: Path, tmp_path: Path) -> None:
    assert train(synapse, tmp_path / "whole", "--max_epochs", 4) == 0
    assert train(synapse, tmp_path / "auto", "--max_epochs", 4, "--resume") == 0, (
        "auto starts afresh where there is nothing"
    )
    whole = torch.load(tmp_path / "whole/last.pth", weights_only=True)["model"]
    auto = torch.load(tmp_path / "auto/last.pth", weights_only=True)["model"]
    assert all(torch.equal(whole[k], auto[k]) for k in whole)
    assert train(synapse, tmp_path / "auto", "--max_epochs", 4, "--resume", "auto") == 0, "a finished run is done"


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
    message = refused(train_command.main, words)
    assert f"{run / 'best.pth'}: the checkpoint does not belong to this run (it holds no 'slices')" in message


def test_divergence_ends_with_code_3(synapse: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(synapse, tmp_path / "run", "--base_lr", "9e5", "--max_epochs", 9) == 3
    assert "times in a row" in capsys.readouterr().err
    assert "case0" in (tmp_path / "run/log.txt").read_text(), "the slices are named"
