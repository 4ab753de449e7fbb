"""plot_curves.py: what it draws of runs, what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from scripts import plot_curves


def test_draws_runs_over_each_other(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other, out = shutil.copytree(run, tmp_path / "other"), tmp_path / "new/curves.png"
    assert plot_curves.main([str(run), str(other), "--output", str(out)]) == 0
    image = matplotlib.image.imread(out)
    assert image.ndim == 3 and image.std() > 0.01
    assert capsys.readouterr().out.strip() == str(out)
    assert plot_curves.main([str(run), "--output", str(out), "--keys", "lr", "nothing"]) == 0
    assert matplotlib.image.imread(out).shape != image.shape


def test_a_run_has_one_color_in_every_panel_and_one_point_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain run has no SCR; of the regularized one it is a single point, and its loss has one between gaps."""
    rows = {"plain": '{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n', "regularized": '{"step": 1, "scr": 3}\n'}
    rows["regularized"] += "".join(f'{{"step": {n}, "loss": {loss}}}\n' for n, loss in enumerate(("NaN", 1.5, "NaN")))
    for name, text in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *how, **more: drawn.append(figure) or save(figure, *how, **more)
    )
    words = [str(tmp_path / name) for name in rows]
    for keys in (["loss", "scr"], ["scr"]):
        out = tmp_path / "a.png"
        assert plot_curves.main([*words, "--output", str(out), "--keys", *keys]) == 0
        panels = [{line.get_label(): to_hex(line.get_color()) for line in panel.lines} for panel in drawn[-1].axes]
        assert panels == [{"plain": to_hex("C0"), "regularized": to_hex("C1")}] * len(keys)
        drawn[-1].axes[0].get_legend().remove()
        pixels = matplotlib.image.imread(save(drawn[-1], out, dpi=110) or out)[..., :3]
        orange = np.abs(pixels - to_rgb("C1")).sum(axis=-1) < 0.1
        assert [half.sum() > 3 for half in np.array_split(orange, len(keys), axis=1)] == [True] * len(keys)


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
