"""What preparing scripts share, seen through ACDC's: nothing is made twice, half-made or replaced in silence."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import datasets.acdc
from configs.arguments import test_parser as parser_of_test
from configs.arguments import train_parser as parser_of_train
from datasets import inspect, locate, reading
from datasets.acdc import AcdcVolumes
from datasets.inputs import InputVolumes
from scripts import prepare_acdc, preparing
from tests.conftest import ROOT
from tests.scripts.test_prepare_acdc import ED, listed, mr, official, prepare, save, spoil_voxel, truth


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.stat() for path in sorted(out.rglob("*"))}
    return {str(path): (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items() if path.is_file()}


def test_a_second_run_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out) == 0
    before, said = (contents(out), stamps(out)), capfd.readouterr().out
    monkeypatch.setattr(prepare_acdc, "prepare_patient", lambda *args, **kwargs: pytest.fail("made again"))
    assert prepare(raw, out) == 0
    assert (contents(out), stamps(out)) == before
    again = capfd.readouterr().out
    assert again.count("; made before") == 3 and again.replace("; made before", "") == said


def test_elsewhere_later_and_in_two_processes_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing.os, "cpu_count", lambda: 2)
    raw = official(tmp_path / "raw")
    assert prepare(raw, tmp_path / "one") == 0
    moved = Path(shutil.move(raw, tmp_path / "moved"))
    assert prepare(moved, tmp_path / "two", "--jobs", 2) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 6 + 6 + 2 + 3 + 1 + 3  # slices, volumes, lists, preprocessing, manifests


def test_a_run_that_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its second case, it leaves the first, and no lists; the next run makes the others alone."""
    raw, out, make = official(tmp_path / "raw"), tmp_path / "out", prepare_acdc.prepare_patient
    made = []

    def until_the_second(one: prepare_acdc.Patient, *args, **kwargs):
        made.append(one.name)
        if len(made) == 2:
            (args[0] / "test" / "half.npz").write_bytes(b"half")
            raise KeyboardInterrupt
        return make(one, *args, **kwargs)

    monkeypatch.setattr(prepare_acdc, "prepare_patient", until_the_second)
    assert prepare(raw, out) == 130
    assert len(list((out / "train").iterdir())) == 6 and not list(out.rglob("half*")) and not (out / "lists").exists()
    first = stamps(out / "train")
    monkeypatch.setattr(
        prepare_acdc,
        "prepare_patient",
        lambda one, *args, **kwargs: (made.append(one.name), make(one, *args, **kwargs))[1],
    )
    assert prepare(raw, out) == 0
    assert made == ["case_001", "case_002", "case_002", "case_019"] and stamps(out / "train") == first
    assert prepare(raw, tmp_path / "whole") == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_there_are_no_lists_of_a_folder_that_is_half_made_anew(tmp_path: Path, monkeypatch) -> None:
    raw, out, make = official(tmp_path / "raw"), tmp_path / "out", prepare_acdc.prepare_patient
    assert prepare(raw, out) == 0

    def until_the_second(one: prepare_acdc.Patient, *args, **kwargs):
        if one.name == "case_002":
            raise KeyboardInterrupt
        return make(one, *args, **kwargs)

    monkeypatch.setattr(prepare_acdc, "prepare_patient", until_the_second)
    assert prepare(raw, out, "--axis_order", "zyx") == 130
    assert not (out / "lists").exists() and len(list((out / "test").iterdir())) == 2
    monkeypatch.undo()
    assert (
        prepare(raw, out, "--axis_order", "zyx") == 0 and prepare(raw, tmp_path / "whole", "--axis_order", "zyx") == 0
    )
    assert contents(out) == contents(tmp_path / "whole")


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Killed as its second case is put in place, the manifest written and one of two files moved."""
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    code = (
        "import os, pathlib, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from scripts import prepare_acdc\n"
        "replace, count = pathlib.Path.replace, [0]\n"
        "def until(self, target):\n"
        "    if 'ES' in self.name and 'volume' in self.name: os.kill(os.getpid(), 9)\n"
        "    return replace(self, target)\n"
        "pathlib.Path.replace = until\n"
        "prepare_acdc.main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(raw), str(out)], capture_output=True, timeout=100)
    assert done.returncode == -9
    assert [path.name for path in (out / "test").iterdir()] == ["case_002_volume_ED.npz"]
    assert not list((out / "lists").iterdir())
    assert prepare(raw, out) == 0 and prepare(raw, tmp_path / "whole") == 0
    assert contents(out) == contents(tmp_path / "whole")


def damaged(out: Path, raw: Path) -> None:
    path = out / "train/case_001_sliceED_1.npz"
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # of the same size
    path.write_bytes(content)


def newer(out: Path, raw: Path) -> None:
    save(raw / "database/training/patient001/patient001_frame01_gt.nii.gz", truth(7)[::-1].copy())


def unreadable(out: Path, raw: Path) -> None:
    (out / ".prepared/case_001.json").write_text('{"version": 1')


def edited(out: Path, raw: Path) -> None:
    path = out / ".prepared/case_001.json"
    content = json.loads(path.read_text())
    content["facts"]["shapes"][0][0] = 99
    path.write_text(json.dumps(content))


def lying(out: Path, raw: Path) -> None:
    """A manifest that was changed by hand is not believed: what it names could lead anywhere."""
    path = out / ".prepared/case_001.json"
    content = json.loads(path.read_text())
    content["made"]["../../precious.txt"] = "0" * 64
    path.write_text(json.dumps(content))
    (out.parent / "precious.txt").write_text("mine")


CHANGES = {
    "a file is gone": (
        lambda out, raw: (out / "train/case_001_sliceED_1.npz").unlink(),
        "files were missing or changed",
    ),
    "a file is damaged": (damaged, "files were missing or changed"),
    "a source is newer": (newer, "source files are not those of before"),
    "a manifest is damaged": (
        unreadable,
        "replaces 6 files that were made otherwise, such as train/case_001_sliceED_0.npz",
    ),
    "a manifest's facts were edited": (edited, "replaces 6 files that were made otherwise"),
    "a manifest was edited": (lying, "replaces 6 files that were made otherwise"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changed_is_made_again_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture, kind: str) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out) == 0
    others = stamps(out / "test") | stamps(out / "valid")
    change, reason = CHANGES[kind]
    change(out, raw)
    capfd.readouterr()
    assert prepare(raw, out) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("case_")]
    assert reason in lines[0] and all(line.endswith("; made before") for line in lines[1:])
    assert stamps(out / "test") | stamps(out / "valid") == others
    assert prepare(raw, tmp_path / "whole") == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert kind != "a manifest was edited" or (tmp_path / "precious.txt").read_text() == "mine"


def test_other_settings_and_fewer_slices_leave_nothing_of_before(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out, "--axis_order", "zyx") == 0
    for half, array in (("", mr(101)), ("_gt", truth(101))):
        save(raw / f"database/training/patient001/patient001_frame01{half}.nii.gz", array[:2])
    assert prepare(raw, out) == 0
    assert "case_001" in (said := capfd.readouterr().out) and "; made again: axis_order was zyx" in said
    assert not (out / "train/case_001_sliceED_2.npz").exists() and len(listed(out, "train")) == 5
    assert prepare(raw, tmp_path / "whole") == 0
    assert contents(out) == contents(tmp_path / "whole")
    shutil.rmtree(raw / "database/training/patient001")
    capfd.readouterr()
    assert prepare(raw, out) == 0
    assert "in no list now: 1 cases, case_001" in capfd.readouterr().out and listed(out, "train") == []


HOW = {
    (): {"intensity": "percentile", "window": None, "axis_order": "zxy"},
    ("--axis_order", "zyx"): {"intensity": "percentile", "window": None, "axis_order": "zyx"},
    ("--scale", "window", "--window", "0", "400"): {"intensity": "window", "window": [0, 400], "axis_order": "zxy"},
}


@pytest.mark.parametrize("options", HOW)
def test_a_run_is_told_how_its_data_were_made(tmp_path: Path, options: tuple[str, ...]) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    told = out / "lists/prepared.json"
    assert prepare(raw, out, *options) == 0
    text = told.read_bytes()
    assert json.loads(text) == HOW[options]
    of_run = inspect("ACDC", root_path=str(out), list_dir=str(out / "lists"))
    assert of_run["DATA.INTENSITY"] == HOW[options]["intensity"]
    assert of_run["DATA.AXIS_ORDER"] == HOW[options]["axis_order"]
    assert HOW[options]["window"] in (None, of_run["DATA.WINDOW"])
    how = reading(
        intensity=of_run["DATA.INTENSITY"],
        window=tuple(of_run["DATA.WINDOW"]),
        axis_order=of_run["DATA.AXIS_ORDER"],
        orientation=of_run["DATA.ORIENTATION"],
    )
    given = InputVolumes(raw / "database/training/patient002/patient002_frame01.nii.gz", how)[0]
    np.testing.assert_array_equal(given.image[:3], AcdcVolumes(out / "test", ["case_002_volume_ED"], 4)[0].image)
    told.write_text("edited")
    assert prepare(raw, out, *options) == 0
    assert told.read_bytes() == text
    others = next(other for other in HOW if other != options)
    assert prepare(raw, out, *others) == 0
    assert json.loads(told.read_bytes()) == HOW[others]


def test_what_has_lists_has_the_preprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before any list that is written, or after any that is removed, a folder tells of its lists' arrays."""
    raw, out, write, remove = official(tmp_path / "raw"), tmp_path / "out", preparing._write_text, Path.unlink
    seen = []

    def look(path: Path) -> None:
        if path.parent.name == "lists":
            seen.append({one.name for one in path.parent.iterdir()})

    monkeypatch.setattr(preparing, "_write_text", lambda path, text: (look(path), write(path, text), look(path)))
    monkeypatch.setattr(Path, "unlink", lambda path, **how: (look(path), remove(path, **how), look(path)))
    assert prepare(raw, out) == 0 and prepare(raw, out, "--axis_order", "zyx") == 0
    assert {frozenset(names) for names in seen} > {frozenset(), frozenset({"prepared.json"})}
    assert all("prepared.json" in names for names in seen if names)


def test_the_next_commands_take_what_was_made(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of the same data set in the working folder, which go before the data's own, do not come between."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists/lists_ACDC").mkdir(parents=True)
    assert prepare(official(tmp_path / "raw"), "my out") == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "python" in line]
    for line, parser in zip(lines, (parser_of_train(), parser_of_test()), strict=True):
        words = shlex.split(line.split(": ", 1)[1])
        args = parser.parse_args(words[2:])
        root = args.root_path or args.volume_path
        assert locate(args.dataset, root, args.list_dir) == (Path("my out"), Path("my out/lists"))
    assert [line.split()[2] for line in lines] == ["train.py", "test.py"]
    shutil.rmtree("raw/database/training/patient002")  # of the test
    assert prepare("raw", "my out") == 0
    assert "train.py" in (said := capfd.readouterr().out) and "test.py" not in said


def test_a_bad_patient_later_leaves_what_was_made_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out) == 0
    before = contents(out), stamps(out)
    spoil_voxel(raw / "database/training/patient001" / ED, mr(1), np.inf)
    assert prepare(raw, out) == 2
    assert "1 NaN or infinite" in capfd.readouterr().err and (contents(out), stamps(out)) == before


@pytest.mark.parametrize("blocked", ["out", "out/train", "out/lists", "out/.prepared"])
def test_a_file_in_the_way_is_named(tmp_path: Path, refused: Callable[..., str], blocked: str) -> None:
    raw, way = official(tmp_path / "raw"), tmp_path / blocked
    way.parent.mkdir(exist_ok=True)
    way.write_text("mine")
    message = refused(prepare_acdc.main, [raw, tmp_path / "out"])
    assert "OUT: " in message and f"{way} is a file" in message
    assert way.read_text() == "mine" and not list(tmp_path.rglob("*.npz"))


def test_a_full_disk_is_one_line_and_what_was_made_stays(tmp_path: Path, refused, monkeypatch) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    write = datasets.acdc.write

    def full(path: Path, *args, **how) -> None:
        if "case_019" in path.name:
            raise OSError(28, "No space left on device")
        write(path, *args, **how)

    monkeypatch.setattr(datasets.acdc, "write", full)
    message = refused(prepare_acdc.main, [raw, out])
    assert "No space left on device" in message and str(out) in message
    assert len(list((out / "train").iterdir())) == 6 and not (out / "valid").exists() and not (out / "lists").exists()
    assert not list((out / ".prepared").glob("unfinished*"))


def test_two_at_once_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    out.mkdir()
    code = "import sys, utils, pathlib\nwith utils.locked(pathlib.Path(sys.argv[1])):\n print(flush=True)\n input()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        assert f"{out}: is in use by process {other.pid}" in refused(prepare_acdc.main, [raw, out])
        other.communicate("\n")
    assert prepare(raw, out) == 0
