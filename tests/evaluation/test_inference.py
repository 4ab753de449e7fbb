"""Whose results a file holds: the weights and the settings that it names, of a training that has ended."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import test as test_command
from evaluation.inference import is_done
from tests.conftest import train


def evaluate(run: Path, *flags: str) -> bool:
    assert test_command.main(["--output_dir", str(run), *flags]) == 0
    return is_done(run)


def test_a_test_is_of_its_weights_and_settings(run: Path, trained: tuple[Path, Path]) -> None:
    assert not is_done(run), "not tested"
    assert not evaluate(run, "--inference", "slide"), "with other settings"
    assert evaluate(run) and evaluate(run, "--n_gpu", "0")
    last = torch.load(run / "last.pth", weights_only=True)
    torch.save(last | {"batch_in_epoch": 1}, run / "last.pth")
    assert not is_done(run), "the training went on"
    torch.save(last, run / "last.pth")
    assert is_done(run)
    assert train(trained[0], run, "--val_cases", "1", "--max_epochs", "4", "--resume") == 0
    assert not is_done(run), "it went on to its end"
    assert evaluate(run)
    torch.save(last["model"], run / "best.pth")
    assert not is_done(run), "other weights"


def test_a_test_that_is_interrupted_leaves_no_mixture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test before had other settings; of its masks, overlays and tables nothing is left."""
    assert evaluate(run)
    assert {path.name for path in (run / "predictions").iterdir()} == {"case0100.nii.gz", "case0101.nii.gz"}
    first = (run / "predictions/case0100.nii.gz").stat().st_mtime_ns
    write, written = test_command.write_case, []

    def stop_at_the_second(*args: object) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(write(*args))

    monkeypatch.setattr(test_command, "write_case", stop_at_the_second)
    assert test_command.main(["--output_dir", str(run), "--inference", "slide"]) == 130
    assert [path.name for path in (run / "predictions").iterdir()] == ["case0100.nii.gz"]
    assert (run / "predictions/case0100.nii.gz").stat().st_mtime_ns != first
    assert [path.name for path in (run / "overlays").iterdir()] == ["case0100.png"]
    assert not [name for name in ("summary.json", "report.html", "per_case.csv") if (run / name).exists()]


def test_two_tests_do_not_share_a_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write = test_command.write_case

    def and_another(*args: object) -> None:
        assert test_command.main(["--output_dir", str(run), "--n_gpu", "0"]) == 2
        write(*args)

    monkeypatch.setattr(test_command, "write_case", and_another)
    assert evaluate(run)
    assert capsys.readouterr().err.count(f"{run / 'predictions'}: is in use by process") == 2, "once for each case"
