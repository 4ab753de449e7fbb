"""The record of a run, read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from engine.logger import MetricLogger, read_curves


def test_reads_every_number_of_a_run(run: Path) -> None:
    curves = read_curves(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for key in ("loss", "ce", "scr", "val_dice"):
        found = [(row["step"], row[key]) for row in rows if key in row]
        assert list(zip(*curves[key], strict=True)) == found and found


def test_what_is_not_finite_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1e400}\n')
    steps, values = read_curves(tmp_path)["loss"]
    assert steps == [1, 2] and math.isnan(values[0]) and values[1] == math.inf


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"{",
            b"[]",
            b"5",
            b'{"step": 1, "loss": "low"}',
            b'{"step": 1, "loss": []}',
            b'{"loss": 1}',
            b"\xff\xfe\x00",
        ),
        *(b'{"step": 1e400, "loss": 1}', b'{"step": null}', b"[" * 100_000),
    ],
    ids=lambda line: repr(line[:26]),
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 1.5}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is .*; expected a row that train.py wrote"):
        read_curves(tmp_path)


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no metrics.jsonl"):
        read_curves(tmp_path)


def test_rows_that_are_gone_before_a_resume_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger, path = MetricLogger(tmp_path, 9, log_freq=1), tmp_path / "metrics.jsonl"
    logger.begin(0, 0)
    logger.log_step(1, 0, 0.1, {"loss": 2.0})
    size = logger.size()
    logger.log_step(2, 0, 0.1, {"loss": 1.0})
    logger.begin(1, size)
    assert path.stat().st_size == size and not caplog.text
    path.unlink()
    logger.begin(1, size)
    assert "metrics.jsonl: rows of steps up to 1 are missing" in caplog.text and path.read_bytes() == b""
