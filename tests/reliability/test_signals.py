"""SIGTERM and Ctrl-C save first, end with 143 or 130, and the run goes on from that very step."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.reliability import runs

pytestmark = pytest.mark.reliability


@pytest.mark.parametrize(
    "number, code, to_all",
    [
        (signal.SIGINT, 130, True),
        pytest.param(signal.SIGTERM, 143, False, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 130, False, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, 143, True, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_first(number: int, code: int, to_all: bool, synapse: Path, tmp_path: Path) -> None:
    """To the whole process group, workers included, as a terminal or a cluster sends it, or to the process alone."""
    common = ["--max_epochs", 30, "--workers", 2]
    run, whole = tmp_path / "run", tmp_path / "whole"
    process = runs.start([*runs.PYTHON, *runs.words(synapse, run, *common)])
    runs.wait_for(lambda: runs.steps_of(run) > 5, process)
    (os.killpg if to_all else os.kill)(process.pid, number)
    out, error = runs.end(process, code)
    assert error == "", error
    step = runs.last(run)["step"]
    assert 5 < step < 45 and f"stopped by signal {number.value} after step {step}; resume with --resume" in out
    assert runs.steps_of(run) == step, "no step was taken after the save"
    assert not list(run.glob(".*")), "the folder is given back"
    out, _ = runs.finish([*runs.PYTHON, *runs.words(synapse, run, *common, "--resume")])
    assert f", step {step}\n" in out.split("resumed at epoch", 1)[1]
    runs.finish([*runs.PYTHON, *runs.words(synapse, whole, *common)])
    runs.assert_same_run(run, whole)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_step_leaves_nothing(number: int, code: int, synapse: Path, tmp_path: Path) -> None:
    """While networks and data are made ready there is nothing to save: the folder that was made is gone again."""
    run = tmp_path / "new/run"
    process = runs.start([*runs.PYTHON, *runs.words(synapse, run)])
    lock = run / ".lock"
    runs.wait_for(lambda: lock.exists() and lock.read_text(encoding="utf-8"), process, pause=0.001)
    process.send_signal(number)
    _, error = runs.end(process, code)
    assert error == "" and not (tmp_path / "new").exists()


BLOCKED = (
    "import time; from engine.signals import StopSignals\n"
    "with StopSignals().caught():\n"
    "    print('ready', flush=True)\n"
    "    while True: time.sleep(1000)\n"
)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_what_waits_forever(second: signal.Signals) -> None:
    process = runs.start([*runs.PYTHON, "-c", BLOCKED])
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(second)
    runs.end(process, -second)
