"""An interrupted run goes on as if it had not been; what cannot go on is refused; divergence ends cleanly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
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


def another_order(root: Path) -> None:
    path = root / "lists/train.txt"
    path.write_text("\n".join(sorted(path.read_text(encoding="utf-8").split(), key=lambda name: name[::-1])))


def another_slice(root: Path) -> None:
    path = root / "train_npz/case0000_slice001.npz"
    with np.load(path) as arrays:
        np.savez(path, image=arrays["image"][:-1], label=arrays["label"][:-1])


def another_case(root: Path) -> None:
    for path in [*root.glob("train_npz/case0000*"), root / "lists/train.txt"]:
        if path.suffix == ".txt":
            path.write_text(path.read_text(encoding="utf-8").replace("case0000", "case0007"))
        else:
            path.rename(path.with_name(path.name.replace("case0000", "case0007")))


@pytest.mark.parametrize(
    "change, named",
    [(another_order, "case0001_slice000"), (another_slice, "case0000_slice001"), (another_case, "case0007_slice000")],
)
def test_other_data_do_not_resume(
    change: Callable[[Path], None], named: str, synapse: Path, tmp_path: Path, refused: Callable
) -> None:
    run = tmp_path / "run"
    assert train(synapse, run) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    change(synapse)
    words = ["--root_path", synapse, "--output_dir", run, "--max_epochs", 3, "--resume", *SMALL]
    message = refused(train_command.main, words)
    assert f"{run / 'last.pth'}: the checkpoint does not belong to this run (of its data, slice " in message
    assert f"slice {named} of " in message
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_another_validation_case_does_not_resume(synapse: Path, tmp_path: Path, refused: Callable) -> None:
    run, lists = tmp_path / "run", synapse / "lists"
    names = (lists / "train.txt").read_text(encoding="utf-8").split()
    (lists / "train.txt").write_text("\n".join(names[:2]))
    (lists / "val.txt").write_text("\n".join(names[3:5]))
    words = ["--root_path", synapse, "--list_dir", lists, "--output_dir", run, "--max_epochs"]
    assert train_command.main([str(word) for word in [*words, 2, *SMALL]]) == 0
    for path in synapse.glob("train_npz/case0001*"):
        path.rename(path.with_name(path.name.replace("case0001", "case0005")))
    (lists / "val.txt").write_text("\n".join(names[3:5]).replace("case0001", "case0005"))
    message = refused(train_command.main, [*words, 3, "--resume", *SMALL])
    assert "of its data, validation case case0001 is validation case case0005 here" in message


def test_a_run_is_not_resumed_into_another(run: Path, trained: tuple, tmp_path: Path, refused: Callable) -> None:
    assert train(trained[0], tmp_path / "other", "--val_cases", 1, "--seed", 5) == 0
    words = ["--root_path", trained[0], "--output_dir", tmp_path / "other", "--val_cases", 1, "--max_epochs", 3]
    message = refused(train_command.main, [*words, "--resume", run / "last.pth", *SMALL])
    assert f"{tmp_path / 'other'} holds a run already" in message


def test_weights_alone_do_not_resume(run: Path, trained: tuple, refused: Callable) -> None:
    words = ["--root_path", trained[0], "--output_dir", run, "--val_cases", 1, "--resume", run / "best.pth", *SMALL]
    message = refused(train_command.main, words)
    assert f"{run / 'best.pth'}: the checkpoint does not belong to this run (it holds no 'slices')" in message


def test_divergence_ends_with_code_3(synapse: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(synapse, tmp_path / "run", "--base_lr", "9e5", "--max_epochs", 9) == 3
    assert "times in a row" in capsys.readouterr().err
    assert "case0" in (tmp_path / "run/log.txt").read_text(encoding="utf-8"), "the slices are named"
