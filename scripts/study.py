"""Train a grid of networks, weights of the regularizer, seeds and folds, and report the results."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_log = logging.getLogger("study.py")

RESULTS = "results.json"


def study(args: argparse.Namespace) -> int:
    """Report the results in a JSON file, or run what is left of the study in a yaml and report that."""
    import utils

    if args.figure is not None:
        if args.figure.suffix != ".png":
            raise ValueError(f"--figure is {args.figure}; expected a name that ends in .png")
        utils.check_writable(args.figure.parent, "--figure")
    if args.study.suffix == ".json":
        from scripts.studies.table import format_results

        results = _read_results(args.study)
        try:
            _show(format_results(results), results, args.figure)
        except ValueError as error:
            raise ValueError(f"{args.study}: {error}") from None
        return 0
    if args.output_dir is None:
        raise ValueError("--output_dir is not given; expected a folder for the study's runs, such as runs/study")
    utils.check_writable(args.output_dir, "--output_dir")
    with utils.logging_session("study.py"), utils.locked(args.output_dir):
        return _execute(args)


def _execute(args: argparse.Namespace) -> int:
    """Do what is left, gather the results, report; returns 0, or the code of a step that failed."""
    from scripts.studies.execute import execute, steps_left
    from scripts.studies.plan import read_study
    from scripts.studies.results import collect
    from scripts.studies.table import format_results
    from utils import atomic_write

    plan, content = read_study(args.study, args.opts)
    devices = _devices(args.devices)
    every = {run: steps_left(plan, run, args.output_dir, args.root_path) for run in plan.runs()}
    left = {run: steps for run, steps in every.items() if steps}
    _log.info("%s: %d runs, %d of them done", plan.title or args.study, len(every), len(every) - len(left))
    on_cpu = devices.count("cpu")
    threads = max(1, (os.cpu_count() or 1) // on_cpu) if on_cpu > 1 else None
    code = execute(left, devices, args.output_dir, threads) if left else 0
    done = [run for run in plan.runs() if not steps_left(plan, run, args.output_dir)]
    results = collect(plan, content, done, args.output_dir)
    tables = format_results(results)  # refuses before anything is written
    text = json.dumps(results, separators=(",", ":"), allow_nan=False) + "\n"
    path = args.output_dir / RESULTS
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    _show(tables, results, args.figure)
    _log.info("results: %s", path)
    if code == 2:
        raise ValueError(
            f"{args.output_dir}: a run failed, see above and the output.txt of its folder; correct it "
            "and give the same command again"
        )
    return code


def _devices(given: Sequence[str]) -> list[str]:
    """The devices, a GPU by its number; without any, all GPUs, or the CPU where there is none."""
    import torch

    count = torch.cuda.device_count()
    if not given:
        return [str(number) for number in range(count)] or ["cpu"]
    for name in given:
        if name != "cpu" and not (name.isdecimal() and int(name) < count):
            raise ValueError(f"--devices: {name!r} is not there; expected cpu, or numbers of the {count} GPUs")
    return list(given)


def _show(tables: str, results: dict[str, Any], figure: Path | None) -> None:
    """Draw the figure that is asked for, then print the tables."""
    from scripts.studies.table import draw
    from utils import atomic_write

    if figure is not None:
        figure.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(figure, lambda path: draw(results, path))
    sys.stdout.write(tables)


def _read_results(path: Path) -> dict[str, Any]:
    from evaluation.summary import read_json

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such results; give the {RESULTS} of a study, or its yaml")
    return read_json(path, "study.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Run and report; returns 0, 2 after one line that says what is wrong, or the code of a command that failed."""
    from configs.arguments import OneLineParser, run_guarded

    parser = OneLineParser(prog="study.py", description=__doc__)
    add = parser.add_argument
    add(
        "study",
        type=Path,
        metavar="STUDY",
        help="a yaml, such as those in configs/studies; or a results.json to report",
    )
    add(
        "--output_dir",
        type=Path,
        metavar="DIR",
        help="folder of the runs and of results.json; called again, it resumes",
    )
    add("--root_path", default="", metavar="DIR", help="data folder (default: the yaml's, else data/<dataset>)")
    add(
        "--devices",
        nargs="+",
        default=[],
        metavar="cpu|N",
        help="a run at a time on each (default: every GPU, else the CPU); cpu cpu has two share its cores",
    )
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="change any key of the configuration, in all runs")
    add("--figure", type=Path, metavar="FILE", help="draw the reported cells as a PNG")
    return run_guarded("study.py", lambda: study(parser.parse_args(argv)))


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
