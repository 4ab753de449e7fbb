"""The runs of a study: each step a command of its own, one at a time on every device."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from configs.saved import is_of
from evaluation.cross_validation import is_tested
from evaluation.summary import read_json
from scripts.studies.plan import Run, Study
from utils import atomic_write

_log = logging.getLogger("study.py")

TIMES = "seconds.json"  # of each step of a run, in its folder
SIMILARITY = Path("similarity") / "similarity.json"
_OUTPUT = "output.txt"  # of the commands of a run
_HERE = Path(__file__).resolve().parent.parent.parent
_DIVERGED = 3  # the exit code of train.py


class Step(NamedTuple):
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
        train = ["train.py", "--cfg", study.networks[run.cell.network].cfg, *where, *fold]
        steps.append(Step("train", [*train, "--output_dir", str(folder), "--resume", "auto", "--opts", *opts]))
        steps.append(Step("test", ["test.py", "--output_dir", str(folder)]))
    if steps or not similarity.is_file() or similarity.stat().st_mtime_ns < trained.stat().st_mtime_ns:
        analysis = ["analysis/similarity.py", "--checkpoint", str(folder), "--output", str(similarity.parent)]
        steps.append(Step("similarity", analysis))
    return steps


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
    waiting, codes = deque(left.items()), [0]

    async def work(device: str) -> None:
        while waiting:
            run, steps = waiting.popleft()
            folder = output_dir / run.folder
            _log.info("%s on %s (%d more)", run.folder, device, len(waiting))
            for step in steps:
                if code := await _do(step, device, folder, threads):
                    _log.error("%s: %s ended with code %d: %s", run.folder, step.name, code, _last_line(folder))
                    codes.append(code)
                    if code != _DIVERGED:
                        waiting.clear()
                    break

    async def work_on_all() -> None:
        await asyncio.gather(*map(work, devices))

    asyncio.run(work_on_all())
    return next(filter(None, codes), 0)


async def _do(step: Step, device: str, folder: Path, threads: int | None) -> int:
    """Carry out a step; returns its exit code. However it ends, its time is added to that of earlier tries."""
    folder.mkdir(parents=True, exist_ok=True)
    script, *words = step.words
    # Flags come before --opts, which takes all that follows.
    flags = ["--n_gpu", "0"] if device == "cpu" else ["--gpu_id", device]
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    begun, null, pipe = time.monotonic(), asyncio.subprocess.DEVNULL, asyncio.subprocess.STDOUT
    with open(folder / _OUTPUT, "a", encoding="utf-8") as output:
        command = [sys.executable, str(_HERE / script), *flags, *words]
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=null, stdout=output, stderr=pipe
        )
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
            times = read_times(folder)
            times[step.name] = round(times.get(step.name, 0.0) + time.monotonic() - begun, 1)
            atomic_write(folder / TIMES, lambda path: path.write_text(json.dumps(times) + "\n", encoding="utf-8"))
    return 128 - code if code < 0 else code  # as a shell has it of a process that a signal ended


def read_times(folder: Path) -> dict[str, float]:
    """The seconds that each step of a run has taken."""
    return read_json(folder / TIMES, "study.py") if (folder / TIMES).is_file() else {}


def _last_line(folder: Path) -> str:
    lines = (folder / _OUTPUT).read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no output")
