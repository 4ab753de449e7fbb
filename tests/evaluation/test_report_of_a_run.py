"""What test.py puts into the report of a real run, and what it does without where the run's record is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import test as test_command
from tests.evaluation.test_report import Page


def report_of(run: Path, out: Path, *words: object) -> Page:
    assert test_command.main(["--checkpoint", str(run), "--output", str(out), *map(str, words)]) == 0
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["cases"]
    return Page((out / "report.html").read_text(encoding="utf-8"))


def test_the_report_has_curves_configuration_and_environment(run: Path, tmp_path: Path) -> None:
    page = report_of(run, tmp_path / "out")
    titles = [
        text for text in page.texts if text in ("Loss", "Cross-entropy", "Dice loss", "SCR", "IFD", "Validation Dice")
    ]
    assert titles == ["Loss", "Cross-entropy", "Dice loss", "SCR", "IFD", "Validation Dice"]
    (whole,) = [text for text in page.texts if text.startswith("GPU_ID") or "NUM_CLASSES:" in text]
    recorded = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(whole).keys() == recorded.keys()
    assert yaml.safe_load(whole)["MODEL"] == recorded["MODEL"]
    assert recorded["ENVIRONMENT"]["torch"] in page.texts[page.texts.index("Environment") :]


def test_the_title_names_the_training(run: Path, tmp_path: Path) -> None:
    """Flags of the test do not change what it says of the training, and of weights from elsewhere it knows nothing."""
    head = "run/best.pth: Synapse, swin_unet, lambda_1 0.015, lambda_2 0.015, seed 1234, tested 20"
    words = ["--seed", "5", "--lambda_x", "0"]
    assert report_of(run, tmp_path / "out", *words).texts[0].startswith(head)
    weights, cfg = (
        shutil.copy(run / "best.pth", tmp_path / "w.pth"),
        shutil.copy(run / "config.yaml", tmp_path / "c.yaml"),
    )
    page = report_of(weights, tmp_path / "out2", "--cfg", cfg)
    assert "/w.pth: Synapse, swin_unet, training unknown, tested 20" in page.texts[0]


def test_weights_alone_have_no_curves(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "metrics.jsonl", tmp_path / "elsewhere.jsonl")
    page = report_of(run, tmp_path / "out")
    assert "Training" not in page.texts and "Spread over the cases" in page.texts
    assert "training curves" not in (tmp_path / "out/test_log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"\xff\x00", b'{"step": 1, "loss": "low"}\n', b'{"step": 1, "loss": 1.5}\n{"st'])
def test_a_damaged_record_does_not_lose_the_evaluation(run: Path, tmp_path: Path, content: bytes) -> None:
    (run / "metrics.jsonl").write_bytes(content)
    page = report_of(run, tmp_path / "out")
    assert "Training" not in page.texts and "Spread over the cases" in page.texts
    log = (tmp_path / "out/test_log.txt").read_text(encoding="utf-8")
    assert "WARNING the report has no training curves:" in log and "metrics.jsonl: line" in log


def test_values_that_are_not_finite_are_left_out_of_the_curves(run: Path, tmp_path: Path) -> None:
    rows = [
        '{"step": 1, "loss": NaN}',
        '{"step": 2, "loss": 1e400}',
        '{"step": 3, "loss": 1e300}',
        '{"step": 4, "ce": 2}',
    ]
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    page = report_of(run, tmp_path / "out")
    assert "Training" in page.texts and "last 2 at step 4" in page.texts
