"""The runs of a study: each step a command of its own, one at a time on every device, and what they gave."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from configs.plain_yaml import read_yaml
from configs.saved import is_of
from engine.logger import read_curves
from evaluation.cross_validation import is_tested
from evaluation.metrics import METRICS
from evaluation.summary import CONVENTIONS, read_json, read_summary, write_json
from scripts.studies.plan import Plain, Run, Study

_log = logging.getLogger("study.py")

Steps = Mapping[str, Sequence[str]]  # the commands that a run needs, by name

_TIMES = "seconds.json"  # of each step of a run, in its folder
_SIMILARITY = Path("similarity") / "similarity.json"
_REPOSITORY = Path(__file__).resolve().parent.parent.parent
_DIVERGED = 3  # the exit code of train.py
_DIGITS = 6


def steps_left(study: Study, run: Run, output_dir: Path, root_path: str = "") -> Steps:
    """The steps that a run still needs: train, test, measure the similarity of its channels.

    Raises:
        ValueError: its folder holds a run with other settings.
    """
    folder = output_dir / run.folder
    trained, similarity = folder / "last.pth", folder / _SIMILARITY
    steps: dict[str, list[str]] = {}
    if not (is_of(study.config(run), folder) and is_tested(folder)):
        train = ["train.py", "--cfg", study.networks[run.network].cfg, "--output_dir", str(folder), "--resume", "auto"]
        train += ["--root_path", root_path] if root_path else []
        # Without the flag, folds mean a whole cross-validation.
        train += [] if run.fold is None else ["--fold", str(run.fold)]
        settings = {key: "" if value is None else str(value) for key, value in study.settings(run).items()}
        steps["train"] = [*train, "--opts", *chain(*settings.items())]
        steps["test"] = ["test.py", "--output_dir", str(folder)]
    if steps or not similarity.is_file() or similarity.stat().st_mtime_ns < trained.stat().st_mtime_ns:
        paths = ["--checkpoint", str(folder), "--output", str(similarity.parent)]
        steps["similarity"] = ["analysis/similarity.py", *paths]
    return steps


async def execute(left: Mapping[Run, Steps], devices: Sequence[str], output_dir: Path) -> int:
    """Do what is left of every run in that order, one run at a time on each device (`cpu`, or the number of a GPU).

    A run that diverges is left, and the others go on. After bad input no further run is begun, and those under way end
    first. An interruption is passed on to the commands, which save before they leave.

    Returns:
        0, or the exit code of the first step that failed.
    """
    waiting, sharing = list(left.items()), devices.count("cpu")
    codes: list[int] = []
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // sharing))} if sharing > 1 else {}

    async def work(device: str) -> None:
        flags = ["--n_gpu", "0"] if device == "cpu" else ["--gpu_id", device]
        while waiting:
            run, steps = waiting.pop(0)
            _log.info("%s on %s (%d more)", run.folder, device, len(waiting))
            for name, (script, *words) in steps.items():
                # Flags come before --opts, which takes all that follows.
                command = [sys.executable, str(_REPOSITORY / script), *flags, *words]
                code = await _run(name, command, output_dir / run.folder, os.environ | threads)
                if code:
                    codes.append(code)
                    if code != _DIVERGED:
                        waiting.clear()
                    break

    await asyncio.gather(*map(work, devices))
    return codes[0] if codes else 0


async def _run(step: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
    """Run a command and add to the time of the step; returns the exit code, as a shell has it."""
    folder.mkdir(parents=True, exist_ok=True)
    times, log, begun = folder / _TIMES, folder / "output.txt", time.monotonic()
    with log.open("a") as output:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        taken = read_json(times, "study.py") if times.is_file() else {}
        write_json(times, taken | {step: round(taken.get(step, 0.0) + time.monotonic() - begun, 1)})
    code = 128 - code if code < 0 else code
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        _log.error("%s: %s ended with code %d: %s", folder, step, code, last)
    return code


def collect(content: Plain, done: Sequence[Run], output_dir: Path) -> dict[str, Any]:
    """The results of the runs that are done: the study's own yaml, and of each run what it was, took and scored."""
    runs = [run._asdict() | _results(output_dir / run.folder) for run in done]
    environments = [read_yaml(output_dir / run.folder / "config.yaml").get("ENVIRONMENT", {}) for run in done]
    distinct = [one for place, one in enumerate(environments) if one not in environments[:place]]  # of every machine
    text = json.dumps({"study": content, "environments": distinct, "runs": runs})
    return json.loads(text, parse_float=lambda number: round(float(number), _DIGITS))


def _results(folder: Path) -> dict[str, Any]:
    """What a run took and scored; `validation` is None where nothing is held out."""
    curves, validation = read_curves(folder), None
    if "val_dice" in curves:  # the first of the best, as in training
        step, dice = max(zip(*curves["val_dice"], strict=True), key=itemgetter(1))
        validation = {"epoch": int(dict(zip(*curves["epoch"], strict=True))[step]), "dice": dice}
    cases = {
        case["name"]: {convention: {name: case[convention][name] for name in METRICS} for convention in CONVENTIONS}
        for case in read_summary(folder).to_json()["cases"]
    }
    seconds, layers = read_json(folder / _TIMES, "study.py"), read_json(folder / _SIMILARITY, "similarity.py")["layers"]
    return {"seconds": seconds, "validation": validation, "cases": cases, "layers": layers}
