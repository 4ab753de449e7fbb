"""The runs of a study: each step a command of its own, one at a time on every device."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from configs.saved import is_of
from evaluation.cross_validation import is_tested
from evaluation.summary import is_number, read_json
from scripts.studies.plan import Run, Study
from utils import atomic_write

_log = logging.getLogger("study.py")

TIMES = "seconds.json"  # of each step of a run, in its folder
SIMILARITY = Path("similarity") / "similarity.json"
_OUTPUT = "output.txt"  # of the commands of a run
_HERE = Path(__file__).resolve().parent.parent.parent
_POLL_SECONDS = 0.2
_DIVERGED = 3  # the exit code of train.py


@dataclass(frozen=True)
class Step:
    """A command that a run needs."""

    name: str
    words: Sequence[str]


def steps_left(study: Study, run: Run, output_dir: Path, root_path: str = "") -> list[Step]:
    """The steps that a run still needs: train, test, measure the similarity of its channels.

    Raises:
        ValueError: its folder holds a run with other settings.
    """
    folder = output_dir / run.folder
    trained, similarity = folder / "last.pth", folder / SIMILARITY
    steps = []
    if not (is_of(study.config(run), folder) and is_tested(folder)):
        opts = [word for key, value in study.settings(run).items() for word in (key, str(value))]
        where = ["--root_path", root_path] if root_path else []
        # Without the flag, folds mean a whole cross-validation.
        fold = [] if run.fold is None else ["--fold", str(run.fold)]
        train = ["train.py", "--cfg", study.networks[run.cell.network]["cfg"], *where, *fold]
        steps.append(Step("train", [*train, "--output_dir", str(folder), "--resume", "auto", "--opts", *opts]))
        steps.append(Step("test", ["test.py", "--output_dir", str(folder)]))
    if steps or not similarity.is_file() or similarity.stat().st_mtime_ns < trained.stat().st_mtime_ns:
        analysis = ["analysis/similarity.py", "--checkpoint", str(folder), "--output", str(similarity.parent)]
        steps.append(Step("similarity", analysis))
    return steps


@dataclass
class _Device:
    """A device, `cpu` or the number of a GPU, and its current run."""

    name: str
    run: Run | None = None
    steps: list[Step] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    output: TextIO | None = None
    begun: float = 0.0

    @property
    def flags(self) -> list[str]:
        return ["--n_gpu", "0"] if self.name == "cpu" else ["--gpu_id", self.name]


def execute(
    left: Mapping[Run, Sequence[Step]], devices: Sequence[str], output_dir: Path, threads: int | None = None
) -> int:
    """Do what is left of every run, one run at a time on each device.

    A run that diverges is left, and the others go on. After bad input, which all runs would meet, no further one is
    begun, and those under way end first. An interruption is passed on to the commands, which save before they leave.

    Args:
        left: the steps of each run, in the order they are to be begun.
        devices: `cpu` or numbers of GPUs; one that is named twice has two runs at a time.
        output_dir: of the study.
        threads: of each process; None for as many as the libraries take.

    Returns:
        0, or the exit code of the first step that failed.
    """
    waiting, workers, code = list(left.items()), [_Device(name) for name in devices], 0
    try:
        while True:
            for worker in workers:
                failed = _look_after(worker, output_dir, threads)
                code = code or failed
                if failed not in (0, _DIVERGED):
                    waiting.clear()
                if worker.run is None and waiting:
                    worker.run, steps = waiting.pop(0)
                    worker.steps = list(steps)
                    _log.info("%s on %s (%d more)", worker.run.folder, worker.name, len(waiting))
            if all(worker.run is None for worker in workers) and not waiting:
                return code
            time.sleep(_POLL_SECONDS)
    finally:
        busy = [worker for worker in workers if worker.process is not None]
        for worker in busy:
            worker.process.terminate()
        for worker in busy:
            worker.process.wait()
            _end_step(worker, output_dir)


def _look_after(worker: _Device, output_dir: Path, threads: int | None) -> int:
    """Let a device go on: begin its run's next step where none is going on; returns the code of one that failed."""
    if worker.run is None:
        return 0
    folder = output_dir / worker.run.folder
    if worker.process is not None:
        code = worker.process.poll()
        if code is None:
            return 0
        code = 128 - code if code < 0 else code  # as a shell has it of a process that a signal ended
        step = _end_step(worker, output_dir)
        if code:
            _log.error("%s: %s ended with code %d: %s", worker.run.folder, step.name, code, _last_words(folder))
            worker.run = None
            return code
    if not worker.steps:
        worker.run = None
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    words = worker.steps[0].words
    # Flags come before --opts, which takes all that follows.
    command = [sys.executable, str(_HERE / words[0]), *worker.flags, *words[1:]]
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    worker.output = open(folder / _OUTPUT, "a", encoding="utf-8")  # noqa: SIM115 - closed when the process has ended
    worker.process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=worker.output, stderr=subprocess.STDOUT
    )
    worker.begun = time.monotonic()
    return 0


def _end_step(worker: _Device, output_dir: Path) -> Step:
    """Close the step whose process has ended, however it did, and note its time."""
    step, worker.process = worker.steps.pop(0), None
    worker.output.close()
    _note_time(output_dir / worker.run.folder / TIMES, step.name, time.monotonic() - worker.begun)
    return step


def _note_time(path: Path, step: str, seconds: float) -> None:
    """Add to the seconds that a step has taken, which may have been interrupted before."""
    times = read_times(path) if path.is_file() else {}
    text = json.dumps(times | {step: round(times.get(step, 0.0) + seconds, 1)}) + "\n"
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_times(path: Path) -> dict[str, float]:
    """The seconds that each step of a run has taken.

    Raises:
        ValueError: the file is damaged.
    """
    times = read_json(path, "study.py")
    if not isinstance(times, dict) or not all(map(is_number, times.values())):
        raise ValueError(f"{path}: holds {times!r}; expected the seconds of each step, so remove it")
    return times


def _last_words(folder: Path) -> str:
    lines = (folder / _OUTPUT).read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no output")
