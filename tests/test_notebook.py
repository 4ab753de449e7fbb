"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT

NOTEBOOK = ROOT / "notebooks/selfreg_in_five_minutes.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """In a folder of its own, without Jupyter: the images that it shows are there."""
    shown: list[Image.Image] = []
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    names: dict = {"__name__": "notebook", "display": shown.append}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert len(shown) == 3 and all(min(image.size) > 200 for image in shown)
    assert "Dice" in capsys.readouterr().out
