"""A save is whole or absent; a damaged one is noticed and the one before it used; a full disk costs no save."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train as train_command
from datasets.case import Volume
from evaluation.predict import prediction_memmap
from tests.conftest import ROOT, make_synapse
from tests.reliability import runs

pytestmark = pytest.mark.reliability
DAMAGES = ("truncated", "flipped", "empty")


def damage(path: Path, kind: str, seed: int = 0) -> None:
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    if kind == "flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes({"truncated": content[: rng.randrange(1, len(content))], "empty": b""}.get(kind, content))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data folder and a finished run on it that saved after every batch."""
    folder = tmp_path_factory.mktemp("saved")
    root = make_synapse(folder / "data", train=2)
    assert train_command.main(command(root, folder / "run")) == 0
    return root, folder / "run"


def command(root: Path, run: Path, *flags: str) -> list[str]:
    common = ("--workers", "0", "--max_epochs", "4")
    return runs.words(root, run, *common, *flags, opts=("TRAIN.SAVE_SECONDS", "0"))[1:]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_save_falls_back(
    kind: str, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root, whole = saved
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    damage(run / "last.pth", kind)
    previous = torch.load(run / "previous.pth", weights_only=True)["step"]
    assert train_command.main(command(root, run, "--resume", "auto")) == 0
    out = capsys.readouterr().out
    assert f"{run / 'last.pth'}: is" in out and "resuming from the save before it" in out
    assert f"step {previous}" in out and previous < runs.last(whole)["step"] + 1
    runs.assert_same_run(run, whole)


def test_a_damaged_save_never_takes_the_place_of_a_sound_one(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """Were a kill to fall between the two renames of the next save, there would be none left."""
    root, whole = saved
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    damage(run / "last.pth", "flipped")
    sound = (run / "previous.pth").read_bytes()
    once = runs.words(root, run, "--workers", 0, "--max_epochs", 4, "--resume", opts=("TRAIN.SAVE_SECONDS", "1e9"))
    assert train_command.main(once[1:]) == 0
    assert (run / "previous.pth").read_bytes() == sound
    runs.assert_same_run(run, whole)


def test_going_back_by_name_keeps_the_newer_save(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """Who names previous.pth has a sound last.pth beside it, which the next save does not lose."""
    root, whole = saved
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    newer = (run / "last.pth").read_bytes()
    named = f"{tmp_path}/./run/previous.pth"
    once = runs.words(
        root, run, "--workers", 0, "--max_epochs", 4, "--resume", named, opts=("TRAIN.SAVE_SECONDS", "1e9")
    )
    assert train_command.main(once[1:]) == 0
    assert (run / "previous.pth").read_bytes() == newer
    runs.assert_same_run(run, whole)


@pytest.mark.parametrize("both", [True, False])
def test_no_sound_save_is_an_error_and_never_a_fresh_start(
    both: bool, saved: tuple[Path, Path], tmp_path: Path, refused: Callable
) -> None:
    root, whole = saved
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    damage(run / "last.pth", "flipped")
    damage(run / "previous.pth", "truncated") if both else (run / "previous.pth").unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    message = refused(train_command.main, command(root, run, "--resume"))
    assert f"{run / 'last.pth'}: is damaged, and so is any save before it" in message
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_named_file_that_is_damaged_is_refused(saved: tuple[Path, Path], tmp_path: Path, refused: Callable) -> None:
    """Who names a file wants that one; nor does a damaged best.pth give figures."""
    import test as test_command

    root, whole = saved
    for name in ("last.pth", "best.pth"):
        shutil.copy(whole / name, tmp_path / name)
        damage(tmp_path / name, "flipped")
    message = refused(train_command.main, command(root, tmp_path / "new", "--resume", str(tmp_path / "last.pth")))
    assert "last.pth: is damaged: it does not match its checksum" in message
    words = ["--checkpoint", tmp_path / "best.pth", "--cfg", whole / "config.yaml", "--output", tmp_path / "o"]
    assert "best.pth: is damaged: it does not match its checksum" in refused(test_command.main, words)
    assert not (tmp_path / "new").exists() and not (tmp_path / "o").exists()


LIMITED = (
    "import resource, signal, sys, train; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); sys.exit(train.main(sys.argv[1:]))"
)


def test_a_limit_on_file_sizes_costs_no_save(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """The run goes on, cannot save, and says so in one line; what was saved is as it was."""
    root, whole = saved
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    before = {name: (run / name).read_bytes() for name in ("last.pth", "previous.pth", "best.pth")}
    words = command(root, run, "--resume")
    words[words.index("--max_epochs") + 1] = "6"
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "pth" in done.stderr, done.stderr
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not list(run.glob(".partial*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory that holds two saves of the small network and not a third beside them."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_no_save(small_disk: Path, saved: tuple[Path, Path]) -> None:
    root, whole = saved
    run = small_disk / "run"
    _, error = runs.finish([*runs.PYTHON, "train.py", *command(root, run)], code=2)
    assert error.count("\n") == 1 and "No space left" in error or "disk full" in error, error
    assert 0 < runs.last(run)["step"] < runs.last(whole)["step"]
    assert not list(run.glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    runs.finish([*runs.PYTHON, "train.py", *command(root, run, "--resume")])
    runs.assert_same_run(run, whole)


def test_a_full_disk_under_tensorboard_is_no_hang(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """Its file is refused the next event; the run saves, says so and ends."""
    root, whole = saved
    run = tmp_path / "run"
    (run / "log").mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(run / "log")]).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        _, error = runs.finish([*runs.PYTHON, "train.py", *command(root, run)], code=2)
        assert error == f"train.py: error: {run / 'log'}: No space left on device; {error.rpartition('; ')[2]}"
        assert 0 < runs.last(run)["step"] < runs.last(whole)["step"]
    finally:
        subprocess.run(["umount", str(run / "log")], check=True)
    runs.finish([*runs.PYTHON, "train.py", *command(root, run, "--resume")])
    runs.assert_same_run(run, whole)


@pytest.mark.parametrize("size", ["48k", "64k"])
def test_full_shared_memory_is_no_hang(size: str, synapse: Path, tmp_path: Path) -> None:
    """Of 48 KB the workers' locks take all; of 64 KB, their batches do (Docker's default is 64 MB)."""
    words = [*runs.PYTHON, *runs.words(synapse, tmp_path / "run", "--workers", 2)]
    mount = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"]).returncode:
        pytest.skip("mounting a tmpfs needs root")
    _, error = runs.finish([*mount, *words], code=2)
    assert error.splitlines()[-1].startswith("train.py: error: /dev/shm: the shared memory"), error


def test_a_full_disk_is_told_before_a_prediction_is_mapped(small_disk: Path) -> None:
    """Memory without a place on the disk would be a SIGBUS."""
    volume = Volume("a", SimpleNamespace(shape=(500, 100, 100), ndim=3))
    with pytest.raises(OSError, match=f"No space left.*{small_disk}"):
        prediction_memmap(volume, small_disk)


def test_two_runs_do_not_share_a_folder(synapse: Path, tmp_path: Path) -> None:
    """The second is refused while the first lives; what a killed one left is taken over at once."""
    run = tmp_path / "run"
    words = ["train.py", *command(synapse, run, "--resume", "auto")]
    words[words.index("--max_epochs") + 1] = "400"
    first = runs.start([*runs.PYTHON, *words])
    runs.wait_for(lambda: runs.steps_of(run) > 2, first)
    starts = runs.starts_of(run)
    _, error = runs.finish([*runs.PYTHON, *words], code=2)
    assert f"{run}: is in use by process {first.pid} on " in error and error.count("\n") == 1
    assert first.poll() is None and runs.starts_of(run) == starts
    first.kill()
    first.communicate()
    assert (run / ".lock").exists()
    third = runs.start([*runs.PYTHON, *words])
    runs.wait_for(lambda: runs.starts_of(run) > starts, third)
    os.kill(third.pid, 15)
    runs.end(third, 143)
    assert not (run / ".lock").exists()


def test_a_worker_that_is_killed_costs_no_step(synapse: Path, tmp_path: Path) -> None:
    run, whole, words = tmp_path / "run", tmp_path / "whole", ["--workers", 1, "--max_epochs", 30]
    process = runs.start([*runs.PYTHON, *runs.words(synapse, run, *words)])
    runs.wait_for(lambda: runs.steps_of(run) > 5, process)
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    os.kill(int(worker), 9)
    _, error = runs.end(process, 2)
    assert error.startswith("train.py: error: a worker, which loads data, was killed") and error.count("\n") == 1
    assert runs.last(run)["step"] == runs.steps_of(run) > 5
    runs.finish([*runs.PYTHON, *runs.words(synapse, run, *words, "--resume")])
    runs.finish([*runs.PYTHON, *runs.words(synapse, whole, *words)])
    runs.assert_same_run(run, whole)


@pytest.mark.long
def test_two_runs_that_start_at_once(synapse: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train.py", *command(synapse, run)]
    both = [runs.start([*runs.PYTHON, *words]) for _ in range(2)]
    errors = [process.communicate(timeout=runs.PATIENCE)[1] for process in both]
    # Either they overlap, or the second finds a finished run.
    assert sorted(process.returncode for process in both) == [0, 2]
    assert "is in use by" in "".join(errors) or "holds a run already" in "".join(errors)


@pytest.mark.long
def test_a_file_that_breaks_in_mid_run_costs_no_step(synapse: Path, tmp_path: Path) -> None:
    """A worker meets a damaged slice: a save, one line that names it; once it is mended the run goes on from there."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = ["--workers", 1, "--max_epochs", 60]
    slice_file = synapse / "train_npz/case0000_slice001.npz"
    sound = slice_file.read_bytes()
    process = runs.start([*runs.PYTHON, *runs.words(synapse, run, *words)])
    runs.wait_for(lambda: runs.steps_of(run) > 5, process)
    slice_file.write_bytes(sound[:99])
    _, error = runs.end(process, 2)
    assert error.count("\n") == 1 and f"{slice_file}: is not a readable npz file" in error
    assert runs.last(run)["step"] == runs.steps_of(run) > 5
    slice_file.write_bytes(sound)
    runs.finish([*runs.PYTHON, *runs.words(synapse, run, *words, "--resume")])
    runs.finish([*runs.PYTHON, *runs.words(synapse, whole, *words)])
    runs.assert_same_run(run, whole)
