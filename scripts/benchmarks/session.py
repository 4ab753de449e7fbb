"""One run of the benchmark: row after row into one table and one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import utils
from scripts.benchmarks import commands, gpu, networks, precision, scaling, shares, training, volumes
from scripts.benchmarks.inputs import Settings
from scripts.benchmarks.measure import Figure
from scripts.benchmarks.report import as_data, table
from scripts.benchmarks.rows import ROWS

Row = Callable[[Settings], list[Figure]]

ON_CPU: Mapping[str, Row] = {
    "metrics": volumes.metrics,
    "evaluation": volumes.evaluation,
    "transforms": volumes.transforms,
    "step": training.step,
    "step_bf16": training.step_bf16,
    "curve_bf16": precision.curve_bf16,
    "regulariser": training.regulariser,
    "loader": training.loader,
    "help": commands.help_text,
    "flops": training.flops,
    "shares": shares.shares,
    "networks": networks.networks,
}
ON_GPU: Mapping[str, Row] = {
    "gpu_metrics": gpu.metrics,
    "gpu_evaluation": gpu.evaluation,
    "gpu_train": gpu.train,
    "gpu_inference": gpu.inference,
    "gpu_regulariser": gpu.regulariser,
    "gpu_flops": training.flops,
    "gpu_shares": shares.shares,
}
QUICK = {"rounds": 2, "depth": 24, "side": 256, "batch": 2}
QUICK_GRID = scaling.Grid(batches=(1, 2, 4), depths=(12, 24, 48))


def run(names: Sequence[str], args: argparse.Namespace, **sizes: Any) -> int:
    """Measure the named rows; `sizes` are fields of `Settings` that differ from the usual ones."""
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes = (QUICK if args.quick else {}) | ({"rounds": args.rounds} if args.rounds else {}) | sizes
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        settings = Settings(folder=Path(folder), **sizes)
        report = {"environment": environment(), "settings": _described(settings), "quick": args.quick, "rows": {}}
        rows: dict[str, list[Figure]] = {}
        for name in names:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            start = time.perf_counter()
            if name == "scaling":
                rows[name], report["curves"] = measure_curves(settings, args)
            else:
                rows[name] = measure(name, settings)
            figures = [as_data(figure) for figure in rows[name]]
            report["rows"][name] = {"figures": figures, "took": time.perf_counter() - start}
            # After every row, so that a run that is stopped leaves what it has.
            text = json.dumps(report, indent=2) + "\n"
            utils.atomic_write(args.output, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    print(table(rows))
    return 0


def measure(name: str, settings: Settings) -> list[Figure]:
    """The figures of one row; of one that needs a GPU, where there is none, that it was not measured."""
    if name in ON_CPU:
        return ON_CPU[name](settings)
    if not torch.cuda.is_available():
        return [Figure(ROWS[name], None, note="needs a GPU")]
    return ON_GPU[name](gpu.on_gpu(settings))


def measure_curves(settings: Settings, args: argparse.Namespace) -> tuple[list[Figure], list[dict[str, Any]]]:
    """The exponents for the table and the curves for the file; the picture is drawn where one is wanted."""
    curves = scaling.curves(settings, QUICK_GRID if args.quick else scaling.Grid())
    if args.figure is not None:
        utils.atomic_write(args.figure, lambda path: scaling.draw(curves, path))
    return [figure for curve in curves for figure in curve.figures()], [asdict(curve) for curve in curves]


def environment() -> dict[str, Any]:
    """What the figures depend on: versions, devices, threads, and how busy the machine was before."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        **utils.environment(device),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def _described(settings: Settings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name != "folder"}
