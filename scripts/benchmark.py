"""Measure speed and memory against naive versions, SciPy and MedPy: two works in turn, medians and their ratio."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROWS = "metrics evaluation transforms kept step step_bf16 curve_bf16 regularizer loader flops networks".split()
ROWS += (GPU_ROWS := "gpu_step gpu_precisions gpu_regularizer gpu_evaluation gpu_flops gpu_train gpu_compiled".split())


def benchmark(args: argparse.Namespace) -> int:
    """Measure the rows into a table, and after each line with every round into a JSON file."""
    if args.rounds < 1:
        raise ValueError(f"--rounds is {args.rounds}; expected at least 1")
    # Asked of the driver whether there is a GPU, a process can still be forked (torch.cuda.is_available).
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import pandas as pd
    import torch

    import utils
    from scripts.benchmarks.measure import Settings, measure, table
    from scripts.benchmarks.rows import rows

    wanted = {*args.only, *(GPU_ROWS if "gpu" in args.only else ())}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, object]] = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = {"environment": utils.environment(device), "quick": args.quick, "records": records}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        s = Settings(Path(folder), depth=24, side=256, batch=2) if args.quick else Settings(Path(folder))
        on_gpu = replace(s, device="cuda", batch=24, steps=10)
        named = [(one.row, one) for one in rows(s)] + [(f"gpu_{one.row}", one) for one in rows(on_gpu)]
        for row, comparison in named:
            if row not in wanted:
                continue
            print(f"measuring {row}, {comparison.what}", file=sys.stderr, flush=True)
            if row.startswith("gpu_") and device.type == "cpu":
                found: dict[str, object] = {"what": comparison.what, "note": "needs a GPU"}
            else:
                found = measure(comparison, args.rounds)
            records.append({"row": row, **found})
            utils.write_text(args.output, json.dumps(report, indent=2))
    print(table(pd.DataFrame(records)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on standard error that says what is wrong."""
    from configs.arguments import OneLineParser, run_guarded

    parser = OneLineParser(prog="benchmark.py", description=__doc__)
    add, text = parser.add_argument, f"of {', '.join(ROWS)}; gpu: all of these (default: all but networks)"
    add(
        "--only",
        nargs="+",
        choices=[*ROWS, "gpu"],
        default=[row for row in ROWS if row != "networks"],
        metavar="ROW",
        help=text,
    )
    add("--output", type=Path, default=Path("benchmark.json"), metavar="FILE", help="default: benchmark.json")
    add("--quick", action="store_true", help="smaller inputs: to see that it works, not to quote")
    add("--rounds", type=int, default=5, help="times that each side is measured (default: 5)")
    return run_guarded("benchmark.py", lambda: benchmark(parser.parse_args(argv)))


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
