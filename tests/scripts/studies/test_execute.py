"""Carrying out a study's steps: order, devices, times, failures, interruptions; the steps are tiny scripts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from configs import arguments
from configs.arguments import overrides_of, similarity_parser, train_parser
from configs.config import get_config, to_dict
from scripts.studies import execute as runs
from scripts.studies.execute import Steps, steps_left
from scripts.studies.plan import Run, as_study
from tests.conftest import ROOT
from tests.scripts.studies.test_plan import content

RUNS = [Run("a", 0.0, 0.0, seed) for seed in range(4)]

_NOTE = """
import os, sys, time
folder = sys.argv[-1]
with open(os.path.join(folder, "pid.txt"), "w") as file:
    file.write(str(os.getpid()))
with open(os.path.join(folder, "seen.txt"), "a") as file:
    file.write(" ".join([*sys.argv[1:-1], os.environ.get("OMP_NUM_THREADS", "-")]) + "\\n")
    file.flush()
    print("noted")
    time.sleep(float(os.environ.get("STEP_SECONDS", 0)))
    if sys.argv[-2] == "die":
        os.kill(os.getpid(), 9)
    sys.exit({"diverge": 3, "refuse": 2}.get(sys.argv[-2], 0))
"""


def execute(left: dict[Run, Steps], devices: list[str], folder: Path, done: list[Run] | None = None) -> int:
    return asyncio.run(runs.execute(left, devices, folder, ([] if done is None else done).append))


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "note.py"
    path.write_text(_NOTE)
    return str(path)


def steps(script: str, folder: Path, *names: str) -> dict[str, list[str]]:
    return {name: [script, name, str(folder)] for name in names}


@pytest.mark.parametrize("folds", [0, 2])
def test_the_training_command_asks_for_what_the_study_says(folds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = as_study(content(folds=folds), "x")
    for run in study.runs():
        steps = steps_left(study, run, Path("-out"), "-data")
        assert list(steps) == ["train", "test", "similarity"]
        assert arguments.test_parser().parse_args(steps["test"][1:]).output_dir == str("-out" / run.folder)
        assert similarity_parser().parse_args(steps["similarity"][1:]).checkpoint == str("-out" / run.folder)
        args = train_parser().parse_args(steps["train"][1:])
        assert args.fold == run.fold and args.resume == "auto"
        asked = get_config(args.cfg, opts=args.opts, overrides=overrides_of(args))
        said = study.config(run)
        where = {"OUTPUT_DIR": str("-out" / run.folder), "DATA.ROOT_PATH": "-data"}
        assert asked == get_config(to_dict(said), overrides=where)


def test_a_link_between_the_folders_of_a_study_is_named(tmp_path: Path) -> None:
    study = as_study(content(), "x")
    run = study.runs()[0]
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "out" / run.folder.parent
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{place} is a link"):
        steps_left(study, run, tmp_path / "out")


def test_every_step_of_every_run(script: str, tmp_path: Path) -> None:
    left = {run: steps(script, tmp_path, "train", "test") for run in RUNS}
    done: list[Run] = []
    assert execute(left, ["cpu", "1", "cpu"], tmp_path, done) == 0 and set(done) == set(RUNS)
    seen = (tmp_path / "seen.txt").read_text(encoding="utf-8").splitlines()
    assert sorted({line.replace("--gpu_id 1", "").replace("--n_gpu 0", "").split()[0] for line in seen}) == [
        "test",
        "train",
    ]
    assert len(seen) == 8 and all(line.endswith(f" {max(1, os.cpu_count() // 2)}") for line in seen)
    assert {line[:10] for line in seen} == {"--n_gpu 0 ", "--gpu_id 1"}
    for run in RUNS:
        folder = tmp_path / run.folder
        assert set(json.loads((folder / "seconds.json").read_text(encoding="utf-8"))) == {"train", "test"}
        assert (folder / "output.txt").read_text(encoding="utf-8") == "noted\n" * 2


def test_a_run_that_diverges_is_left_and_the_others_go_on(
    script: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = {run: steps(script, tmp_path, "train", "test") for run in RUNS[1:]}
    done: list[Run] = []
    assert execute({RUNS[0]: steps(script, tmp_path, "diverge", "test")} | left, ["cpu"], tmp_path, done) == 3
    assert done == list(RUNS[1:])
    assert len((tmp_path / "seen.txt").read_text(encoding="utf-8").splitlines()) == 1 + 6
    assert "seed_0: diverge ended with code 3: noted" in caplog.text


def test_after_bad_input_nothing_more_is_begun(script: str, tmp_path: Path) -> None:
    left = {run: steps(script, tmp_path, "refuse", "test") for run in RUNS}
    assert execute(left, ["cpu"], tmp_path) == 2
    assert len((tmp_path / "seen.txt").read_text(encoding="utf-8").splitlines()) == 1


def test_a_command_that_is_killed(script: str, tmp_path: Path) -> None:
    assert execute({RUNS[0]: steps(script, tmp_path, "die", "test")}, ["cpu"], tmp_path) == 128 + 9
    assert len((tmp_path / "seen.txt").read_text(encoding="utf-8").splitlines()) == 1


def test_an_interruption_is_passed_on(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEP_SECONDS", "60")

    def interrupt() -> None:
        while not (tmp_path / "seen.txt").exists():
            time.sleep(0.05)
        time.sleep(1)  # until the step that was started is waited for
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execute({RUNS[0]: steps(script, tmp_path, "train")}, ["cpu"], tmp_path)
    assert time.monotonic() - begun < 50
    assert not _lives(int((tmp_path / "pid.txt").read_text(encoding="utf-8")))
    # The time that it took counts when the step is done in the end.
    path = tmp_path / RUNS[0].folder / "seconds.json"
    taken = json.loads(path.read_text(encoding="utf-8"))["train"]
    monkeypatch.setenv("STEP_SECONDS", "0.5")
    assert execute({RUNS[0]: steps(script, tmp_path, "train")}, ["cpu"], tmp_path) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["train"] >= taken + 0.5


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
