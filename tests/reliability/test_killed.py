"""A run that is killed and resumed is the run that was not: bit for bit, wherever the kill falls."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoint import read_last
from tests.conftest import make_synapse
from tests.reliability import runs

pytestmark = [pytest.mark.reliability, pytest.mark.xdist_group("kills")]

_PARTIAL = ".partial-*-last.pth"  # a save that is being written


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(workers: int, tmp_path: Path, long: bool, record_property: Callable) -> None:
    """Half of the kills wait for a save to be under way; of the others, some fall into the start."""
    root = make_synapse(tmp_path / "data", train=3, shape=(5, 40, 40))
    kills, epochs = (20, 60) if long else (2, 12)
    # Saves every few steps; all in all some hundred.
    flags = {"opts": ("TRAIN.SAVE_SECONDS", "0.1")}
    common = ["--workers", workers, "--max_epochs", epochs]
    whole, run = tmp_path / "whole", tmp_path / "run"
    runs.finish([*runs.PYTHON, *runs.words(root, whole, *common, **flags)])
    command = [*runs.PYTHON, *runs.words(root, run, *common, "--resume", "auto", **flags)]
    rng, in_a_save, where = random.Random(workers), 0, []
    for number in range(kills):
        process = runs.start(command)
        if number % 5 == 4:
            time.sleep(rng.uniform(0, 3))
        else:
            before = runs.starts_of(run)
            runs.wait_for(lambda before=before: runs.starts_of(run) > before, process)
            time.sleep(rng.uniform(0, 0.4))
            if number % 2 == 0:
                runs.wait_for(lambda: list(run.glob(_PARTIAL)), process, pause=0.0002)
        # Every other time the workers are left behind.
        (os.killpg if number % 4 < 2 else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run was over too soon for so many kills"
        in_a_save += len(list(run.glob(_PARTIAL)))
        saved = read_last(run) if run.exists() else None
        where.append(saved.state["step"] if saved else 0)
        assert runs.steps_of(run) >= where[-1], "each step is in the file as soon as it is taken"
    runs.finish(command)
    runs.assert_same_run(run, whole)
    assert not list(run.glob(".*")), "nothing of a killed run is left"
    assert in_a_save, "no kill fell into a save"
    assert where == sorted(where)
    record_property(
        "counted",
        f"kills with {workers} workers: {kills}, {in_a_save} of them in a save, at steps {where} of "
        f"{runs.last(whole)['step']}; final state bit for bit",
    )


def test_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    """The old save has its second name already and the new one is not yet in place, as a kill there leaves them."""
    root = make_synapse(tmp_path / "data", train=2)
    flags = {"opts": ("TRAIN.SAVE_SECONDS", "0")}
    common = ["--workers", "0", "--max_epochs", 4]
    whole, run = tmp_path / "whole", tmp_path / "run"
    runs.finish([*runs.PYTHON, *runs.words(root, whole, *common, **flags)])
    shutil.copytree(whole, run)
    (run / "last.pth").rename(run / _PARTIAL.replace("*", "0123"))
    out, _ = runs.finish([*runs.PYTHON, *runs.words(root, run, *common, "--resume", **flags)])
    assert "is damaged or missing: resuming from the save before it" in out
    runs.assert_same_run(run, whole)
    assert not list(run.glob(".*"))
