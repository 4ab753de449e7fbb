"""Train a grid of networks, weights of the regularizer, seeds and folds, and report the results."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

_log = logging.getLogger("study.py")


def study(args: argparse.Namespace) -> int:
    """Report the results in JSON files, or run what is left of the study in a yaml and report that."""
    import utils
    from evaluation.summary import read_json
    from scripts.studies.figure import draw
    from scripts.studies.results import format_results

    paths, code = args.study, 0
    plans = [path for path in paths if path.suffix != ".json"]
    if plans and len(paths) > 1:
        raise ValueError(f"{plans[0]}: is given beside others; expected one yaml, or files of results alone")
    if plans:
        if args.output_dir is None:
            raise ValueError("--output_dir is not given; expected a folder for the study's runs, such as runs/study")
        paths = [args.results or args.output_dir / "results.json"]
        with utils.logging_session("study.py"), utils.locked(args.output_dir):
            code = _execute(plans[0], args, paths[0])
    studies = {path: read_json(path, "study.py") for path in paths}
    stems = [path.stem for path in studies]
    names = {
        path: "" if len(stems) == 1 else path.stem if stems.count(path.stem) == 1 else str(path) for path in studies
    }
    for path, results in studies.items():
        with _named(path):
            sys.stdout.write((f"## {names[path]}\n\n" if names[path] else "") + format_results(results))
    if args.figure is not None:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        drawn = {names[path]: results for path, results in studies.items()}
        with _named(paths[0]):
            utils.atomic_write(args.figure, lambda partial: draw(drawn, partial))
    if code == 2:
        raise ValueError(f"{args.output_dir}: a run failed, see above; correct it and give the same command again")
    return code


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error name the file of results."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _execute(yaml: Path, args: argparse.Namespace, path: Path) -> int:
    """Do what is left, adding each finished run to the results in `path`; returns 0 or the code of a failed step."""
    import torch

    import utils
    from scripts.studies.execute import add_result, execute, open_results, steps_left, write_results
    from scripts.studies.plan import Run, read_study

    plan, content = read_study(yaml, args.opts)
    here = utils.environment(torch.device("cpu"))["git_commit"]
    if plan.commit and here != plan.commit:
        raise ValueError(
            f"{yaml}: its commit is {plan.commit}, and this copy is {here or 'no checkout'}; "
            f"run the study by a clone of that commit: git clone . COPY; git -C COPY checkout {plan.commit}"
        )
    gpus = [str(number) for number in range(torch.cuda.device_count())]
    devices = args.devices or gpus or ["cpu"]
    if not {*devices} <= {"cpu", *gpus}:
        raise ValueError(f"--devices is {' '.join(devices)}; expected cpu, or numbers of the {len(gpus)} GPUs")
    results = open_results(path, content)
    recorded = {Run(**{name: run[name] for name in Run._fields}) for run in results["runs"]}
    every = [run for run in plan.runs() if run not in recorded]
    left = {run: steps_left(plan, run, args.output_dir, args.root_path) for run in every}

    def done(run: Run) -> None:
        add_result(results, run, args.output_dir)
        write_results(path, results)

    for run in [run for run in left if not left[run]]:
        del left[run]
        done(run)
    _log.info("%s: %d runs, %d of them done", plan.title or yaml, len(plan.runs()), len(plan.runs()) - len(left))
    write_results(path, results)
    code = asyncio.run(execute(dict(islice(left.items(), args.most)), devices, args.output_dir, done))
    _log.info("results: %s", path)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run and report; returns 0, 2 after one line that says what is wrong, or the code of a command that failed."""
    from configs.arguments import OneLineParser, run_guarded

    parser = OneLineParser(prog="study.py", description=__doc__)
    add = parser.add_argument
    text = "a yaml as in configs/studies, or files of results to report"
    add("study", type=Path, nargs="+", metavar="STUDY", help=text)
    add("--output_dir", type=Path, metavar="DIR", help="folder of runs and results.json; called again, it resumes")
    add("--root_path", default="", metavar="DIR", help="data folder (default: the yaml's, else data/<dataset>)")
    text = "a run at a time on each (default: every GPU, else the CPU); cpu cpu has two share its cores"
    add("--devices", nargs="+", default=[], metavar="cpu|N", help=text)
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="change any key of the configuration, in all runs")
    text = "file of results to add to (default: results.json in --output_dir); runs in it are done"
    add("--results", type=Path, metavar="FILE", help=text)
    add("--most", type=int, metavar="N", help="so many runs at most (default: all)")
    add("--figure", type=Path, metavar="FILE", help="draw the reported cells")
    return run_guarded("study.py", lambda: study(parser.parse_args(argv)))


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
