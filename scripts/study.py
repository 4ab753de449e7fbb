"""Train a grid of networks, weights of the regularizer, seeds and folds, and report the results."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

from configs.arguments import check_command_line, run_guarded, study_parser

if __name__ == "__main__":  # before torch is imported
    check_command_line("study.py", study_parser())

import torch

import utils
from evaluation.summary import read_json
from scripts.studies.execute import execute, steps_left
from scripts.studies.plan import read_study
from scripts.studies.results import Plain, collect
from scripts.studies.table import draw, format_results

_log = logging.getLogger("study.py")

RESULTS = "results.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run and report; returns 0, 2 after one line that says what is wrong, or the code of a command that failed."""
    return run_guarded("study.py", lambda: study(study_parser().parse_args(argv)))


def study(args: argparse.Namespace) -> int:
    """Report the results in a JSON file, or run what is left of the study in a yaml and report that."""
    if args.figure is not None:
        if args.figure.suffix != ".png":
            raise ValueError(f"--figure is {args.figure}; expected a name that ends in .png")
        utils.check_writable(args.figure.parent, "--figure")
    if args.study.suffix == ".json":
        if not args.study.is_file():
            raise FileNotFoundError(f"{args.study}: no such results; give the {RESULTS} of a study, or its yaml")
        try:
            results = read_json(args.study, "study.py")
            show(format_results(results), results, args.figure)
        except ValueError as error:
            raise ValueError(f"{args.study}: {str(error).removeprefix(f'{args.study}: ')}") from None
        return 0
    if args.output_dir is None:
        raise ValueError("--output_dir is not given; expected a folder for the study's runs, such as runs/study")
    utils.check_writable(args.output_dir, "--output_dir")
    with utils.logging_session("study.py"), utils.locked(args.output_dir):
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Do what is left, gather the results, report; returns 0, or the code of a step that failed."""
    plan, content = read_study(args.study, args.opts)
    devices = find_devices(args.devices)
    every = {run: steps_left(plan, run, args.output_dir, args.root_path) for run in plan.runs()}
    left = {run: steps for run, steps in every.items() if steps}
    _log.info("%s: %d runs, %d of them done", plan.title or args.study, len(every), len(every) - len(left))
    on_cpu = devices.count("cpu")
    threads = max(1, (os.cpu_count() or 1) // on_cpu) if on_cpu > 1 else None
    code = execute(left, devices, args.output_dir, threads)
    done = [run for run in every if run not in left or not steps_left(plan, run, args.output_dir)]
    results = collect(content, done, args.output_dir)
    tables = format_results(results)  # refuses before anything is written
    text = json.dumps(results, separators=(",", ":"), allow_nan=False) + "\n"
    path = args.output_dir / RESULTS
    utils.atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    show(tables, results, args.figure)
    _log.info("results: %s", path)
    if code == 2:
        raise ValueError(
            f"{args.output_dir}: a run failed, see above and the output.txt of its folder; correct it "
            "and give the same command again"
        )
    return code


def find_devices(given: Sequence[str]) -> list[str]:
    """The devices, a GPU by its number; without any, all GPUs, or the CPU where there is none."""
    count = torch.cuda.device_count()
    if not given:
        return [str(number) for number in range(count)] or ["cpu"]
    for name in given:
        if name != "cpu" and not (name.isdecimal() and int(name) < count):
            raise ValueError(f"--devices: {name!r} is not there; expected cpu, or numbers of the {count} GPUs")
    return list(given)


def show(tables: str, results: Plain, figure: Path | None) -> None:
    """Draw the figure that is asked for, then print the tables."""
    if figure is not None:
        figure.parent.mkdir(parents=True, exist_ok=True)
        utils.atomic_write(figure, lambda path: draw(results, path))
    sys.stdout.write(tables)


if __name__ == "__main__":
    sys.exit(main())
