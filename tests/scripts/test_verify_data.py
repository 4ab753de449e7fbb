"""The walk through a whole data set: every planted defect by name, exit codes, and how it ends when it is stopped."""

from __future__ import annotations

import itertools
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets.base import Geometry
from datasets.sets.phantom import prepare_phantom
from datasets.sets.synapse import slice_path, volume_path, write
from scripts import verify_data
from tests.conftest import ROOT, make_case, make_synapse
from tests.datasets.test_verify import damage

SHAPE = (3, 40, 40)


def verify(root: Path, *options: object, dataset: str = "Synapse") -> int:
    return verify_data.main([dataset, str(root), "--jobs", "1", *map(str, options)])


def train_file(root: Path, case: int = 0, index: int = 1) -> Path:
    return slice_path(root / "train_npz", f"case{case:04d}_slice{index:03d}")


def append(path: Path, *names: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "".join(f"{name}\n" for name in names), encoding="utf-8")


def lines_of(capsys: pytest.CaptureFixture) -> tuple[list[str], list[str]]:
    """The lines that name a defect, and those of the summary."""
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("train: "))
    return lines[:first], lines[first:]


def test_a_clean_data_set(synapse: Path, capsys: pytest.CaptureFixture) -> None:
    assert verify(synapse) == 0
    defects, summary = lines_of(capsys)
    train = np.concatenate([make_case(case, SHAPE)[1] for case in range(2)])
    image, label = make_case(100, SHAPE)
    organs = "background aorta gallbladder left_kidney right_kidney liver pancreas spleen stomach".split()

    def voxels(label: np.ndarray) -> str:
        counts = [f"{name.replace('_', ' ')} {(label == index).sum()}" for index, name in enumerate(organs)]
        return f"  voxels: {', '.join(counts)}"

    assert defects == []
    assert summary[0] == "train: 2 cases, 6 slices" and "  shapes: 40x40 (6)" in summary and voxels(train) in summary
    assert "test: 1 cases, 1 volumes" in summary and "  shapes: 3x40x40 (1)" in summary and voxels(label) in summary
    assert "  dtypes: image float32, label uint8 (6)" in summary
    assert f"  intensity: {image.min():g} to {image.max():g}" in summary
    assert "  spacings (x, y, z) in mm: not stored (6)" in summary and summary[-1] == "no defects"


def with_nan(root: Path) -> None:
    image, label = make_case(0, SHAPE)
    image[1, 5, 5] = np.nan
    write(train_file(root), image[1], label[1])


def with_label(root: Path) -> None:
    image, label = make_case(100, SHAPE)
    label[2, 0, 0] = 11
    write(volume_path(root / "test_vol_h5", "case0100"), image, label)


def of_another_size(root: Path) -> None:
    image, label = make_case(0, (3, 40, 38))
    write(train_file(root), image[1], label[1])


def of_another_spacing(root: Path) -> None:
    for index, (image, label) in enumerate(zip(*make_case(0, SHAPE), strict=True)):
        write(train_file(root, 0, index), image, label, Geometry((1.0, 1.0, 2.0 if index == 2 else 3.0)))


def without_class_5(root: Path) -> None:
    for path in (root / "train_npz").iterdir():
        with np.load(path) as file:
            write(path, file["image"], np.where(file["label"] == 5, 0, file["label"]).astype(np.uint8))


def copied(root: Path, to: Path) -> None:
    to.write_bytes(train_file(root).read_bytes())


# How it is planted, and the file and a part of the line that must name it.
PLANTED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "nan": (with_nan, "train_npz/case0000_slice001.npz", "1 NaN or infinite"),
    "label": (with_label, "test_vol_h5/case0100.npy.h5", "labels found: 0, 1, 2, 3, 4, 5, 6, 7, 8, 11"),
    "pixels": (lambda root: damage(train_file(root)), "train_npz/case0000_slice001.npz", "not a readable npz"),
    "size": (of_another_size, "train_npz/case0000_slice001.npz", "size (40, 38) but 2 of the 3 slices of case0000"),
    "spacing": (of_another_spacing, "train_npz/case0000_slice002.npz", "spacing (1.0, 1.0, 2.0) but 2 of the 3"),
    "class": (without_class_5, "lists/train.txt", "class 5 (liver); expected every class 1..8"),
    "gone": (lambda root: train_file(root).unlink(), "train_npz/case0000_slice001.npz", "is not there"),
    "gone volume": (
        lambda root: volume_path(root / "test_vol_h5", "case0100").unlink(),
        "test_vol_h5/case0100.npy.h5",
        "is not there",
    ),
    "unlisted": (lambda root: copied(root, root / "train_npz/x.npz"), "train_npz/x.npz", "no list names it"),
    "unlisted volume": (lambda root: copied(root, root / "test_vol_h5/x.h5"), "test_vol_h5/x.h5", "no list names it"),
    "twice": (
        lambda root: append(root / "lists/train.txt", "case0001_slice002"),
        "lists/train.txt",
        "names case0001_slice002.npz 2 times",
    ),
    "volume twice": (
        lambda root: append(root / "lists/test_vol.txt", "case0100.npy.h5"),
        "lists/test_vol.txt",
        "names case0100.npy.h5 2 times",
    ),
    "trained and tested": (
        lambda root: (
            write(volume_path(root / "test_vol_h5", "case0001"), *make_case(1, SHAPE))
            or append(root / "lists/test_vol.txt", "case0001")
        ),
        "lists/test_vol.txt",
        "names case0001, of which",
    ),
    "validation": (
        lambda root: (root / "lists/val.txt").write_text("case0009\n"),
        "lists/val.txt",
        "names the case case0009",
    ),
    "nothing left": (
        lambda root: (root / "lists/val.txt").write_text("case0000\ncase0001\n"),
        "lists/val.txt",
        "leaves none to train on",
    ),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_one_planted_defect_is_the_one_line(synapse: Path, capsys: pytest.CaptureFixture, kind: str) -> None:
    plant, file, part = PLANTED[kind]
    plant(synapse)
    assert verify(synapse) == 1
    defects, summary = lines_of(capsys)
    assert len(defects) == 1, defects
    assert defects[0].startswith(f"{synapse / file}: ") and part in defects[0], defects[0]
    assert summary[-1] == "1 defects in 1 files"


def test_all_defects_are_told_together(synapse: Path, capsys: pytest.CaptureFixture) -> None:
    kinds = ("nan", "label", "unlisted", "twice", "trained and tested", "validation")
    for kind in kinds:
        PLANTED[kind][0](synapse)
    assert verify(synapse) == 1
    defects, summary = lines_of(capsys)
    for _, file, part in map(PLANTED.get, kinds):
        assert [line for line in defects if line.startswith(f"{synapse / file}: ") and part in line], (file, defects)
    assert len(defects) == len(kinds) and summary[-1] == f"{len(kinds)} defects in {len(kinds)} files"
    assert "train: 2 cases, 6 slices, 1 of them not readable" in summary


def test_validation_is_its_own_part(synapse: Path, capsys: pytest.CaptureFixture) -> None:
    (synapse / "lists/val.txt").write_text("case0001\n")
    assert verify(synapse) == 0
    _, summary = lines_of(capsys)
    assert "train: 1 cases, 3 slices" in summary and "validation: 1 cases, 3 slices" in summary
    PLANTED["class"][0](synapse)
    copy = [(np.where(label == 0, 5, label), image) for image, label in zip(*make_case(1, SHAPE), strict=True)]
    for index, (label, image) in enumerate(copy):
        write(train_file(synapse, 1, index), image, label.astype(np.uint8))
    assert verify(synapse) == 1, "a class in validation alone is not learnt"
    assert "class 5 (liver)" in lines_of(capsys)[0][0]


def test_a_slice_that_val_txt_alone_names(synapse: Path, capsys: pytest.CaptureFixture) -> None:
    lists = synapse / "lists"
    names = (lists / "train.txt").read_text(encoding="utf-8").split()
    (lists / "train.txt").write_text("\n".join(names[:3]))
    (lists / "val.txt").write_text("\n".join(names[3:]))
    assert verify(synapse) == 0, capsys.readouterr().out


def test_the_end_of_a_scan_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = make_synapse(tmp_path / "Synapse", train=3)
    write(train_file(root), np.zeros(SHAPE[1:], np.float32), np.zeros(SHAPE[1:], np.uint8))
    assert verify(root) == 0
    assert "  images of one value: 1, the first case0000_slice001.npz" in lines_of(capsys)[1]


def test_data_to_train_on_alone(synapse: Path, capsys: pytest.CaptureFixture) -> None:
    volume_path(synapse / "test_vol_h5", "case0100").unlink()
    (synapse / "lists/test_vol.txt").write_text("")
    assert verify(synapse) == 0
    assert not [line for line in lines_of(capsys)[1] if line.startswith("test")]


def test_options(synapse: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert verify(synapse, "--num_classes", 5) == 1
    defects, _ = lines_of(capsys)
    assert len(defects) == 7 and all("expected 0..4" in line for line in defects)
    (tmp_path / "mine").mkdir()
    for name in ("train.txt", "test_vol.txt"):
        (tmp_path / "mine" / name).write_bytes((synapse / "lists" / name).read_bytes())
    (synapse / "lists/train.txt").unlink()
    assert verify(synapse / "train_npz", "--list_dir", tmp_path / "mine") == 0, capsys.readouterr()


def test_bad_usage_is_refused(synapse: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    for argv, *parts in (
        (["Synapsy", synapse], "DATASET is 'Synapsy'", "Phantom, Synapse"),
        (["Synapse"], "ROOT", "--help"),
        (["Synapse", tmp_path / "absent"], "absent: no such data folder"),
        (["Phantom", tmp_path / "absent"], "absent: no such data folder"),
        (["Synapse", synapse, "--list_dir", tmp_path / "nolists"], "nolists: no such folder of lists"),
        (["Synapse", synapse, "--list_dir", tmp_path], "train.txt: no such list"),
        (["Synapse", synapse, "--jobs", 0], "--jobs is 0"),
        (["Synapse", synapse, "--num_classes", 1], "--num_classes is 1"),
        (["Synapse", synapse, "--num_classes", 0], "--num_classes is 0"),
        (["Synapse", synapse, "--num_classes", "many"], "--num_classes", "many"),
    ):
        error = refused(verify_data.main, argv)
        assert all(part in error for part in parts), error
    assert not (tmp_path / "absent").exists(), "phantoms are not made by looking for them"
    append(synapse / "lists/train.txt", "../outside")
    assert "'../outside' is not a plain name" in refused(verify_data.main, ["Synapse", synapse])
    (synapse / "lists/test_vol.txt").unlink()
    (synapse / "lists/train.txt").write_text("case0000_slice000\n")
    assert "test_vol.txt: no such list" in refused(verify_data.main, ["Synapse", synapse])


def test_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prepare_phantom(tmp_path / "P", size=48, depth=16, train_cases=3, test_cases=1)
    assert verify(tmp_path / "P", dataset="Phantom") == 0
    assert "  spacings (x, y, z) in mm: 6.25, 6.25, 12.5 (48)" in lines_of(capsys)[1]


# The processes, and the progress.


def test_results_come_in_order_from_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_data.os, "cpu_count", lambda: 2)
    heard = signal.getsignal(signal.SIGINT)
    assert list(verify_data.map_in_order(abs, [-5, 3, -1, 0], 2)) == [5, 3, 1, 0]
    assert signal.getsignal(signal.SIGINT) is heard


def test_a_killed_process_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_data.os, "cpu_count", lambda: 2)
    with pytest.raises(OSError, match="a process of --jobs 2 was killed, likely for want of memory; give fewer"):
        list(verify_data.map_in_order(os._exit, [9, 9], 2))


def test_progress_in_a_pipe_is_a_line_now_and_then(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    clock = itertools.count(0.0, 4.0)
    monkeypatch.setattr(verify_data.time, "monotonic", lambda: next(clock))
    assert list(verify_data.with_progress("abcdefg", 7)) == list("abcdefg")
    said = capsys.readouterr().err.splitlines()
    # Four seconds a file, so every third one is the first after ten seconds.
    assert said == [
        "verify_data.py: 3 of 7 files, about 16 s left",
        "verify_data.py: 6 of 7 files, about 4 s left",
    ]


def command(root: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts/verify_data.py"), "Synapse", str(root), *options]


def test_the_script_runs_from_any_folder_and_in_processes(
    synapse: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for kind in ("nan", "label"):
        PLANTED[kind][0](synapse)
    done = subprocess.run(command(synapse, "--jobs", "2"), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "error" not in done.stderr, done.stderr
    assert "case0000_slice001.npz: 'image' holds 1 NaN" in done.stdout and "case0100.npy.h5: 'label'" in done.stdout
    verify(synapse)
    assert done.stdout == capsys.readouterr().out


def test_a_terminal_shows_a_bar(synapse: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))  # in none at all, tqdm draws nothing
    os.set_blocking(ours, False)
    with_nan(synapse)
    done = subprocess.run(command(synapse, "--jobs", "1"), stdout=subprocess.PIPE, stderr=theirs, timeout=120)
    shown = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 1 and "verifying" in shown and "/7 " in shown and "<" in shown, shown
    assert b"verifying" not in done.stdout and b"1 NaN" in done.stdout


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_ctrl_c_ends_it_without_a_word(tmp_path: Path, jobs: str) -> None:
    root = make_synapse(tmp_path / "Synapse", train=1, test=1, shape=(400, 16, 16))
    image, label = make_case(0, (1, 16, 16))
    image[0, 0, 0] = np.nan
    write(train_file(root, 0, 0), image[0], label[0])  # its line tells that the walk has begun
    slow = [volume_path(root / "test_vol_h5", f"case{1000 + index}") for index in range(40)]
    for path in slow:
        write(path, *make_case(0, (100, 128, 128)))
    append(root / "lists/test_vol.txt", *(path.name for path in slow))
    process = subprocess.Popen(
        command(root, "--jobs", jobs),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        while "1 NaN" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        out, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, error) == (130, "") and "defects" not in out
