"""plot_curves.py: what it draws of runs, what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest

from scripts import plot_curves


def test_draws_runs_over_each_other(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other, out = shutil.copytree(run, tmp_path / "other"), tmp_path / "new/curves.png"
    assert plot_curves.main([str(run), str(other), "--output", str(out)]) == 0
    image = matplotlib.image.imread(out)
    assert image.ndim == 3 and image.std() > 0.01
    assert capsys.readouterr().out.strip() == str(out)
    assert plot_curves.main([str(run), "--output", str(out), "--keys", "lr", "nothing"]) == 0
    assert matplotlib.image.imread(out).shape != image.shape


def test_refusals(run: Path, tmp_path: Path, refused: Callable) -> None:
    main = plot_curves.main
    assert f"{tmp_path}: has no metrics.jsonl" in refused(main, [tmp_path])
    assert "Format 'abc' is not supported" in refused(main, [run, "--output", tmp_path / "curves.abc"])
    assert "expected folders of different names" in refused(main, [run, run])
    assert "no run has lss; expected some of ce, dice" in refused(main, [run, "--keys", "lss"])
    for line in ("{", "[]", '{"step": 1, "loss": "low"}', '{"loss": 1}'):
        (run / "metrics.jsonl").write_text(line + "\n")
        assert "line 1 is" in refused(main, [run, "--output", tmp_path / "a.png"])
    assert not (tmp_path / "a.png").exists()
