"""What preparing shares, seen through ACDC: nothing is made twice or half; all defects, and commands to paste."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs import arguments
from configs.config import get_config
from datasets import locate
from scripts import prepare as prepare_command
from scripts import prepare_acdc
from scripts.preparation import acdc, pipeline
from tests.conftest import ROOT
from tests.scripts.preparation import test_histology as histology
from tests.scripts.preparation import test_synapse as synapse
from tests.scripts.preparation.test_acdc import ED, ES_GT, listed, mr, official, prepare, save, spoil_voxel, truth
from utils import locked

PATIENT = "database/training/patient001"


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.stat() for path in sorted(out.rglob("*")) if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def assert_as_if_new(raw: Path, out: Path, *options: object) -> None:
    """What is there is what a first run makes."""
    assert prepare(raw, out, *options) == 0
    shutil.rmtree(out.parent / "whole", ignore_errors=True)
    assert prepare(raw, out.parent / "whole", *options) == 0
    assert contents(out) == contents(out.parent / "whole")


def test_a_second_run_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out) == 0
    before, said = stamps(out), capfd.readouterr().out
    monkeypatch.setattr(acdc, "read", lambda *args, **how: pytest.fail("read again"))
    assert prepare(shutil.move(raw, tmp_path / "moved"), out) == 0
    assert stamps(out) == before
    again = capfd.readouterr().out.replace("moved", "raw")
    assert again.count("; made before") == 3 and again.replace("; made before", "") == said


def test_several_processes_make_the_same(tmp_path: Path) -> None:
    official(tmp_path / "raw")
    script = [sys.executable, str(ROOT / "scripts" / "prepare_acdc.py"), "raw", "two", "--jobs", "2"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    script[1:5] = [str(ROOT / "scripts" / "prepare.py"), "ACDC", "raw", "one", "--jobs"]
    assert subprocess.run([*script[:5], "--jobs", "1"], cwd=tmp_path, capture_output=True, timeout=100).returncode == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 6 + 6 + 2 + 3 + 1 + 3  # slices, volumes, lists, preprocessing, records


@pytest.mark.parametrize(
    ("killed_at", "then"),
    [("case_002_volume_ES.npz", ()), ("case_002.json", ("--axis_order", "zyx")), ("test.txt", ("--axis_order", "zyx"))],
)
def test_a_killed_run_goes_on(tmp_path: Path, killed_at: str, then: tuple[str, ...]) -> None:
    """Killed as this file is renamed into place, after a whole run with other settings; then with either."""
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out) == 0
    code = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from scripts import prepare_acdc\n"
        "def hook(event, args):\n"
        f"    if event == 'os.rename' and str(args[1]).endswith({killed_at!r}): os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(hook)\n"
        "prepare_acdc.main(sys.argv[1:])\n"
    )
    words = [sys.executable, "-c", code, str(raw), str(out), "--axis_order", "zyx"]
    assert subprocess.run(words, capture_output=True, timeout=100).returncode == -9
    assert not (out / "lists/test.txt").exists()
    finished = stamps(out / "train")
    assert_as_if_new(raw, out, *then)
    assert (stamps(out / "train") == finished) == bool(then) and not list(out.glob(f"{pipeline._STAGING}*"))


def test_workers_end_with_a_killed_run(tmp_path: Path) -> None:
    official(tmp_path / "raw")
    code = (
        "import multiprocessing, os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from scripts import prepare_acdc\n"
        "def hook(event, args):\n"
        "    if event == 'os.rename':\n"
        "        os.write(1, ' '.join(str(p.pid) for p in multiprocessing.active_children()).encode())\n"
        "        os.kill(os.getpid(), 9)\n"
        "if __name__ == '__main__':\n"
        "    sys.addaudithook(hook)\n"
        "    prepare_acdc.main(['raw', 'out', '--jobs', '2'])\n"
    )
    (tmp_path / "killed.py").write_text(code, encoding="utf-8")
    with (tmp_path / "printed").open("wb") as printed:
        process = subprocess.run([sys.executable, "killed.py"], cwd=tmp_path, stdout=printed, timeout=100)
    assert process.returncode == -9
    workers = (tmp_path / "printed").read_text(encoding="utf-8").split("\n")[-1].split()
    assert len(workers) == 2
    for worker in workers:
        until = time.monotonic() + 30
        while is_running(worker):
            assert time.monotonic() < until, f"worker {worker} goes on"
            time.sleep(0.05)


def is_running(pid: str) -> bool:
    """Whether there is such a process, and not only its exit status, which nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def of_version_2(out: Path) -> None:
    """A record as the version before wrote it, of a case with a slice more."""
    shutil.copy(out / "train/case_001_sliceED_0.npz", out / "train/case_001_sliceED_3.npz")
    made = {f"train/{path.name}": "0" * 64 for path in (out / "train").iterdir()}
    record = {"version": 2, "sources": {}, "settings": {}, "made": made, "facts": {"shapes": []}, "seal": "0" * 64}
    (out / ".prepared/case_001.json").write_text(json.dumps(record))


def fewer_slices(raw: Path) -> None:
    for half, array in (("", mr(101)), ("_gt", truth(101))):
        save(raw / f"{PATIENT}/patient001_frame01{half}.nii.gz", array[:2])


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "a file is gone": lambda out, raw: (out / "train/case_001_sliceED_1.npz").unlink(),
    "a source is newer": lambda out, raw: fewer_slices(raw),
    "a record is damaged": lambda out, raw: (out / ".prepared/case_001.json").write_text('{"of": {'),
    "a record is of before": lambda out, raw: of_version_2(out),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changed_is_made_again_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture, kind: str) -> None:
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    assert prepare(raw, out) == 0
    others = stamps(out / "test") | stamps(out / "valid")
    CHANGES[kind](out, raw)
    capfd.readouterr()
    assert_as_if_new(raw, out)
    assert capfd.readouterr().out.count("; made before") == 2 and stamps(out / "test") | stamps(out / "valid") == others


def test_a_case_of_another_split_moves_and_one_that_is_gone_is_in_no_list(tmp_path: Path, capfd) -> None:
    raw, out = synapse.official(tmp_path / "raw", 5, 8), tmp_path / "out"
    assert synapse.prepare(raw, out) == 0 and synapse.prepare(raw, out, "--test_cases", "0005") == 0
    assert [path.name for path in (out / "test_vol_h5").iterdir()] == ["case0005.npy.h5"]
    assert {path.name[:8] for path in (out / "train_npz").iterdir()} == {"case0008"}
    for path in raw.rglob("*0005.nii.gz"):
        path.unlink()
    assert synapse.prepare(raw, out, "--train_cases", "0008") == 0
    assert "in no list now: 1 cases, case0005" in capfd.readouterr().out
    assert synapse.lists(out) == ([f"case0008_slice00{z}" for z in range(3)], [])
    shutil.rmtree(out / "lists")
    assert synapse.prepare(raw, out, "--train_cases", "0008") == 0 and len(synapse.lists(out)[0]) == 3


@pytest.mark.parametrize("dataset", ["Synapse", "ACDC", "GlaS"])
def test_the_last_lines_are_those_of_the_readme(tmp_path: Path, capfd, monkeypatch, dataset: str) -> None:
    """They run from this folder as they are; lists of the data set in it, which go before the data's, do not matter."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"lists/lists_{dataset}").mkdir(parents=True)
    make = {"Synapse": lambda raw: synapse.official(raw, 5, 8), "ACDC": official, "GlaS": histology.glas}[dataset]
    assert prepare_command.main([dataset, str(make(tmp_path / "raw")), "my out's"]) == 0
    lines = [line.split(": ", 1)[1] for line in capfd.readouterr().out.splitlines() if "python" in line]
    parsed = []
    for line, parser in zip(lines, (arguments.train_parser(), arguments.test_parser()), strict=True):
        python, script, *words = shlex.split(line)
        assert python == "python" and Path(script).resolve() in (ROOT / "train.py", ROOT / "test.py")
        parsed.append(parser.parse_args(words))
        root = parsed[-1].root_path or parsed[-1].volume_path
        assert locate(dataset, root, parsed[-1].list_dir) == (Path("my out's"), Path("my out's/lists"))
    train, test = parsed
    assert train.output_dir == test.output_dir and Path(train.cfg).is_file()
    assert dataset in (train.dataset, get_config(train.cfg).data.dataset)
    readme = [
        line
        for page in (ROOT / "README.md", ROOT / "docs/training.md")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("    python train.py")
    ]
    of_readme = [vars(arguments.train_parser().parse_args(shlex.split(line, comments=True)[2:])) for line in readme]
    train.cfg, train.root_path, train.list_dir = os.path.relpath(train.cfg, ROOT), None, None
    assert dataset == "GlaS" or vars(train) in of_readme


@pytest.mark.parametrize("jobs", [1, 2])
def test_all_defects_are_reported_together(tmp_path: Path, capfd, monkeypatch, jobs: int) -> None:
    monkeypatch.setattr(pipeline.os, "cpu_count", lambda: 2)
    raw, out = official(tmp_path / "raw"), tmp_path / "out"
    folder = raw / "database/training"
    assert prepare(raw, out) == 0
    before = stamps(out)
    spoil_voxel(folder / "patient001" / ED, mr(1), np.nan)
    spoil_voxel(folder / "patient001" / ES_GT, truth(1), 4)
    (folder / "patient002/Info.cfg").unlink()
    save(folder / "patient019/patient019_frame12_gt.nii.gz", truth(1)[:2])
    capfd.readouterr()
    assert prepare(raw, out, "--jobs", jobs) == 2
    said = capfd.readouterr()
    names = (f"001/{ED}", f"001/{ES_GT}", "002/Info.cfg", "019/patient019_frame12_gt.nii.gz")
    for path in (folder / f"patient{name}" for name in names):
        assert f"{path}: " in said.err and sum(line.startswith(f"{path}: ") for line in said.out.splitlines()) == 1
    assert "4 defects" in said.err and said.err.count("\n") == 1 and stamps(out) == before


def test_a_file_in_the_way_and_a_full_disk_are_one_line(tmp_path: Path, refused, monkeypatch) -> None:
    raw, out, write = official(tmp_path / "raw"), tmp_path / "out", acdc.acdc.write
    out.write_text("mine")
    assert f"{out} is a file" in refused(prepare_acdc.main, [raw, out]) and out.read_text(encoding="utf-8") == "mine"
    out.unlink()

    def full(path: Path, *args: object, **how: object) -> None:
        if "case_019" in path.name:
            raise OSError(28, "No space left on device")
        write(path, *args, **how)

    monkeypatch.setattr(acdc.acdc, "write", full)
    message = refused(prepare_acdc.main, [raw, out])
    assert "No space left on device" in message and str(out) in message
    assert {path.name: len(list(path.iterdir())) for path in out.iterdir()} == {".prepared": 2, "test": 2, "train": 6}


def test_one_process_at_a_time_plans_and_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan follows from what is there; made before the lock, its lists would name what another one removed."""
    raw, out, plan = official(tmp_path / "raw"), tmp_path / "out", acdc.plan

    def planning(args: object) -> pipeline.Plan:
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"), locked(out):
            pass
        return plan(args)

    monkeypatch.setattr(acdc, "plan", planning)
    assert prepare(raw, out) == 0 and len(listed(out, "train")) == 6
