"""The runs of a study: each step a command of its own, one at a time on every device, and what they gave."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path

from configs.plain_yaml import read_yaml
from configs.saved import is_of
from engine.logger import read_curves
from evaluation.inference import is_done
from evaluation.summary import CONVENTIONS, TITLES, Json, read_json, read_summary, write_json
from scripts.studies.plan import Plain, Run, Study
from utils import check_writable, no_link, write_text

_log = logging.getLogger("study.py")

Steps = Mapping[str, Sequence[str]]  # the commands that a run needs, by name

_TIMES = "seconds.json"  # of each step of a run, in its folder
_SIMILARITY = Path("similarity") / "similarity.json"
_REPOSITORY = Path(__file__).resolve().parent.parent.parent
_DIVERGED = 3  # the exit code of train.py
_DIGITS = 6


def steps_left(study: Study, run: Run, output_dir: Path, root_path: str = "") -> Steps:
    """The steps that a run still needs: train, test, measure the similarity of its channels; in development, train.

    Raises:
        ValueError: its folder holds a run with other settings, or links.
    """
    folder = output_dir / run.folder
    for part in (*reversed(run.folder.parents), run.folder):
        check_writable(output_dir / part, "--output_dir")
    steps: dict[str, list[str]] = {}
    # In development nothing in the folder tells a training that ended from one that was interrupted: a run is done once
    # it is in the results, and training it again ends at once.
    if not (is_of(study.config(run), folder) and is_done(folder)) or study.development:
        train = ["train.py", f"--cfg={study.networks[run.network].cfg}", f"--output_dir={folder}", "--resume", "auto"]
        train += [f"--root_path={root_path}"] if root_path else []
        # Without the flag, folds mean a whole cross-validation.
        train += [] if run.fold is None else ["--fold", str(run.fold)]
        settings = {key: "" if value is None else str(value) for key, value in study.settings(run).items()}
        steps["train"] = [*train, "--opts", *chain(*settings.items())]
        steps["test"] = ["test.py", f"--output_dir={folder}"]
    if study.development:
        return {name: steps[name] for name in steps if name == "train"}
    if steps or not is_done(folder, str(_SIMILARITY)):
        paths = [f"--checkpoint={folder}", f"--output={folder / _SIMILARITY.parent}"]
        steps["similarity"] = ["analysis/similarity.py", *paths]
    return steps


async def execute(
    left: Mapping[Run, Steps], devices: Sequence[str], output_dir: Path, done: Callable[[Run], None]
) -> int:
    """Do what is left of every run in that order, one run at a time on each device (`cpu`, or the number of a GPU).

    A run that diverges is left, and the others go on. After bad input no further run is begun, and those under way end
    first. An interruption is passed on to the commands, which save before they leave. `done` is called with each run
    that has ended well.

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
            else:
                done(run)

    await asyncio.gather(*map(work, devices))
    return codes[0] if codes else 0


async def _run(step: str, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
    """Run a command and add to the time of the step; returns the exit code, as a shell has it."""
    folder.mkdir(parents=True, exist_ok=True)
    times, log, begun = folder / _TIMES, folder / "output.txt", time.monotonic()
    with open(log, "a", encoding="utf-8", opener=no_link) as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # no Ctrl-C of the terminal beside the signal that is passed on
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


def open_results(path: Path, content: Plain) -> Json:
    """The results so far of the study with this yaml: those in a file, or none.

    Raises:
        ValueError: the file holds results of another protocol, or none at all.
    """
    protocol = digest(content)
    if not path.exists():
        return {"protocol": protocol, "study": content, "environments": [], "runs": []}
    results = read_json(path, "study.py")
    found = results.get("protocol") if isinstance(results, Mapping) else None
    if found != protocol:
        raise ValueError(
            f"{path}: holds results of protocol {found}, and the yaml is {protocol}; expected one protocol in a file, "
            "so give another --results or --output_dir"
        )
    return dict(results)


def digest(content: Plain) -> str:
    """The SHA-256 of a study's keys and values, whatever their order and the comments."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def add_result(results: Json, run: Run, output_dir: Path) -> None:
    """Add what a run was, took and scored, and its environment where it is a new one."""
    folder = output_dir / run.folder
    environment = read_yaml(folder / "config.yaml").get("ENVIRONMENT", {})
    if environment not in results["environments"]:
        results["environments"].append(environment)
    text = json.dumps(run._asdict() | _results(folder))
    results["runs"].append(json.loads(text, parse_float=lambda number: round(float(number), _DIGITS)))


def write_results(path: Path, results: Plain) -> None:
    """Write them, a line a run, so that a difference of two versions is that of their runs."""
    head = json.dumps({key: value for key, value in results.items() if key != "runs"}, allow_nan=False)
    runs = ",\n".join(json.dumps(run, separators=(",", ":"), allow_nan=False) for run in results["runs"])
    write_text(path, f'{head[:-1]}, "runs": [\n{runs}\n]}}\n')


def _results(folder: Path) -> Json:
    """What a run took and scored; `validation` is None where nothing is held out."""
    curves, validation = read_curves(folder), None
    if "val_dice" in curves:  # the first of the best, as in training
        step, dice = max(zip(*curves["val_dice"], strict=True), key=itemgetter(1))
        validation = {"epoch": int(dict(zip(*curves["epoch"], strict=True))[step]), "dice": dice}
    found = {"seconds": read_json(folder / _TIMES, "study.py"), "validation": validation, "cases": {}, "layers": []}
    if (folder / _SIMILARITY).is_file():
        for case in read_summary(folder).to_json()["cases"]:
            scores = {kind: {name: case[kind][name] for name in TITLES if name in case[kind]} for kind in CONVENTIONS}
            found["cases"][case["name"]] = {"group": case.get("group", ""), **scores}
        found["layers"] = read_json(folder / _SIMILARITY, "similarity.py")["layers"]
    return found
