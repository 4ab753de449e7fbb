"""Train a grid of networks, weights of the regularizer, seeds and folds, and report the results."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

_log = logging.getLogger("study.py")


def study(args: argparse.Namespace) -> int:
    """Report the results in a JSON file, or run what is left of the study in a yaml and report that."""
    import utils
    from evaluation.summary import read_json
    from scripts.studies.results import draw, format_results

    path, code = args.study, 0
    if path.suffix != ".json":
        if args.output_dir is None:
            raise ValueError("--output_dir is not given; expected a folder for the study's runs, such as runs/study")
        path = args.output_dir / "results.json"
        with utils.logging_session("study.py"), utils.locked(args.output_dir):
            code = _execute(args, path)
    results = read_json(path, "study.py")
    try:
        sys.stdout.write(format_results(results))
        if args.figure is not None:
            args.figure.parent.mkdir(parents=True, exist_ok=True)
            utils.atomic_write(args.figure, lambda partial: draw(results, partial))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if code == 2:
        raise ValueError(f"{args.output_dir}: a run failed, see above; correct it and give the same command again")
    return code


def _execute(args: argparse.Namespace, path: Path) -> int:
    """Do what is left and write the results to `path`; returns 0 or the code of a step that failed."""
    import torch

    import utils
    from scripts.studies.execute import collect, execute, steps_left
    from scripts.studies.plan import read_study

    plan, content = read_study(args.study, args.opts)
    gpus = [str(number) for number in range(torch.cuda.device_count())]
    devices = args.devices or gpus or ["cpu"]
    if not {*devices} <= {"cpu", *gpus}:
        raise ValueError(f"--devices is {' '.join(devices)}; expected cpu, or numbers of the {len(gpus)} GPUs")
    every = {run: steps_left(plan, run, args.output_dir, args.root_path) for run in plan.runs()}
    left = {run: steps for run, steps in every.items() if steps}
    _log.info("%s: %d runs, %d of them done", plan.title or args.study, len(every), len(every) - len(left))
    code = asyncio.run(execute(left, devices, args.output_dir))
    done = [run for run in every if not steps_left(plan, run, args.output_dir)]
    text = json.dumps(collect(content, done, args.output_dir), separators=(",", ":"), allow_nan=False) + "\n"
    utils.atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    _log.info("results: %s", path)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run and report; returns 0, 2 after one line that says what is wrong, or the code of a command that failed."""
    from configs.arguments import OneLineParser, run_guarded

    parser = OneLineParser(prog="study.py", description=__doc__)
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY", help="a yaml as in configs/studies, or a results.json to report")
    add("--output_dir", type=Path, metavar="DIR", help="folder of runs and results.json; called again, it resumes")
    add("--root_path", default="", metavar="DIR", help="data folder (default: the yaml's, else data/<dataset>)")
    text = "a run at a time on each (default: every GPU, else the CPU); cpu cpu has two share its cores"
    add("--devices", nargs="+", default=[], metavar="cpu|N", help=text)
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="change any key of the configuration, in all runs")
    add("--figure", type=Path, metavar="FILE", help="draw the reported cells")
    return run_guarded("study.py", lambda: study(parser.parse_args(argv)))


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
