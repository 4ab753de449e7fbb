"""compare.py: two tested runs against each other, and what it refuses."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

import test as test_command
from scripts import compare


@pytest.fixture(scope="module")
def tested(trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two tests of the shared run: by its best and by its last weights."""
    folder = tmp_path_factory.mktemp("tested")
    root, run = trained
    for name, checkpoint in (("a", "best.pth"), ("b", "last.pth")):
        words = ["--checkpoint", str(run / checkpoint), "--output", str(folder / name), "--root_path", str(root)]
        assert test_command.main(words) == 0
    return folder / "a", folder / "b"


def test_what_it_writes(tested: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new/comparison"
    assert compare.main([*map(str, tested), "--output", str(out)]) == 0
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    summaries = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in tested]
    dice = found["published"]["overall"]["dice"]
    assert dice["mean"] == pytest.approx(summaries[1]["published"]["dice"] - summaries[0]["published"]["dice"])
    assert {case["name"] for case in found["cases"]} == {case["name"] for case in summaries[0]["cases"]}
    shown = capsys.readouterr().out
    assert f"A: {tested[0]}" in shown and f"{dice['mean']:+.4f}" in shown


def test_the_page_says_what_differs_and_names_no_gain_a_loss(
    tested: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of B every case is better: its lowest difference is a gain."""
    first, second = (Path(shutil.copytree(run, tmp_path / run.name)) for run in tested)
    summary = json.loads((first / "summary.json").read_text(encoding="utf-8"))
    for case in summary["cases"]:
        for kind, name in product(("published", "strict"), summary["published"]["per_class"]):
            case[kind]["per_class"][name]["dice"] = 1.0
    (second / "summary.json").write_text(json.dumps(summary))
    out = tmp_path / "out"
    assert compare.main([str(first), str(second), "--output", str(out)]) == 0
    assert (
        "config.yaml is not in both"
        in json.loads((out / "comparison.json").read_text(encoding="utf-8"))["settings"][0][0]
    )
    for run, text in (
        (first, "LOSS: {LAMBDA_1: 0.0}\nSEED: 1\n1: 2\n"),
        (second, "LOSS: {LAMBDA_1: 0.015}\nSEED: 1\n"),
    ):
        (run / "config.yaml").write_text(f"{text}OUTPUT_DIR: {run.name}\n")
    assert compare.main([str(first), str(second), "--output", str(out)]) == 0
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert found["settings"] == [["LOSS.LAMBDA_1", "0.0", "0.015"], ["1", "2", "-"]]
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert min(case["strict"]["dice"] for case in found["cases"]) > 0
    for text in (page, capsys.readouterr().out):
        assert "LOSS.LAMBDA_1" in text and "SEED" not in text
        assert "loss" not in text.lower().replace("loss.lambda_1", "")


@pytest.mark.parametrize(("name", "code"), [("li\x1b[2Jver", 0), ("li\ud800ver", 2)])
def test_a_class_of_control_characters(
    name: str, code: int, tested: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for run in tested:
        text = (run / "summary.json").read_text(encoding="utf-8")
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "summary.json").write_text(text.replace('"liver"', json.dumps(name)))
    words = [str(tmp_path / run.name) for run in tested]
    assert compare.main([*words, "--output", str(tmp_path / "out")]) == code
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err and shown.err.count("\n") == (code > 0)
    assert code or r"Dice, li\x1b[2Jver" in shown.out


def test_refusals(tested: tuple[Path, Path], tmp_path: Path, refused: Callable) -> None:
    first, second = tested
    empty = tmp_path / "empty"
    empty.mkdir()
    error = refused(compare.main, [first, empty, "--output", tmp_path / "out"])
    assert f"{empty}: has no summary.json" in error and f"python test.py --output_dir {empty}" in error
    other = Path(shutil.copytree(second, tmp_path / "other"))
    summary = json.loads((other / "summary.json").read_text(encoding="utf-8"))
    summary["cases"][0]["name"] = "case0999"
    (other / "summary.json").write_text(json.dumps(summary))
    error = refused(compare.main, [first, other, "--output", tmp_path / "out"])
    assert "different cases: only the first has case0100, only the second case0999" in error
    for text in ("{", "[]", "{}", '{"cases": [{}]}'):
        (other / "summary.json").write_text(text)
        error = refused(compare.main, [first, other, "--output", tmp_path / "out"])
        assert f"{other / 'summary.json'}: is no" in error
    assert f"RUN_A and RUN_B are both {first}" in refused(compare.main, [first, first])
    assert not (tmp_path / "out").exists()


def test_a_damaged_overlay_is_named_and_nothing_written(
    tested: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, refused: Callable
) -> None:
    other = Path(shutil.copytree(tested[1], tmp_path / "other"))
    overlay = other / "overlays/case0100.png"
    whole, huge = overlay.read_bytes(), struct.pack(">2I", 30_000, 30_000)
    header = whole[12:16] + huge + whole[24:29]  # of its size
    huge = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
    for content in (b"", whole[:200], huge):
        overlay.write_bytes(content)
        error = refused(compare.main, [tested[0], other, "--output", tmp_path / "out"])
        assert f"{overlay}: " in error
    assert not (tmp_path / "out").exists() and not capsys.readouterr().out
