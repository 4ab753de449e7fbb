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

ROWS = "metrics evaluation transforms step step_bf16 curve_bf16 regularizer loader flops breakdown".split()
ROWS += "gpu_metrics gpu_evaluation gpu_train gpu_inference gpu_regularizer gpu_flops gpu_breakdown".split()
ONLY_IF_NAMED = ["networks", "scaling"]


def benchmark(args: argparse.Namespace) -> int:
    """Measure the rows into a table, and after each line with every round into a JSON file."""
    if args.rounds < 1:
        raise ValueError(f"--rounds is {args.rounds}; expected at least 1")
    if args.figure and ("scaling" not in args.only or args.figure.suffix != ".png"):
        raise ValueError(f"--figure is {args.figure}; expected a name that ends in .png, with --only scaling")
    # Asked of the driver whether there is a GPU, a process can still be forked (torch.cuda.is_available).
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import pandas as pd
    import torch

    import utils
    from scripts.benchmarks.measure import Settings, draw_curves, measure, table
    from scripts.benchmarks.rows import rows

    for path, option in ((args.output, "--output"), (args.figure or args.output, "--figure")):
        utils.check_writable(path.parent, option)
        path.parent.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, object]] = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = {"environment": utils.environment(device), "quick": args.quick, "records": records}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        s = Settings(Path(folder), depth=24, side=256, batch=2) if args.quick else Settings(Path(folder))
        on_gpu = replace(s, device="cuda", batch=24, steps=10)
        named = [(one.row, one) for one in rows(s)] + [(f"gpu_{one.row}", one) for one in rows(on_gpu)]
        for row, comparison in named:
            if row not in args.only:
                continue
            print(f"measuring {row}, {comparison.what}", file=sys.stderr, flush=True)
            if row.startswith("gpu_") and device.type == "cpu":
                found: dict[str, object] = {"what": comparison.what, "size": None, "note": "needs a GPU"}
            else:
                found = measure(comparison, args.rounds)
            records.append({"row": row, **found})
            utils.atomic_write(args.output, lambda path: path.write_text(json.dumps(report, indent=2)))
    print(table(pd.DataFrame(records)))
    if "scaling" in args.only:
        print(draw_curves(pd.DataFrame(records), args.figure).to_string())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on standard error that says what is wrong."""
    from configs.arguments import OneLineParser, run_guarded

    parser, rows = OneLineParser(prog="benchmark.py", description=__doc__), ROWS + ONLY_IF_NAMED
    add, text = parser.add_argument, f"of {', '.join(rows)} (default: all but networks and scaling)"
    add("--only", nargs="+", choices=rows, default=ROWS, metavar="ROW", help=text)
    add("--output", type=Path, default=Path("benchmark.json"), metavar="FILE", help="default: benchmark.json")
    add("--figure", type=Path, metavar="FILE", help="draw the curves of the row scaling as a PNG")
    add("--quick", action="store_true", help="smaller inputs: to see that it works, not to quote")
    add("--rounds", type=int, default=5, help="times that each side is measured (default: 5)")
    return run_guarded("benchmark.py", lambda: benchmark(parser.parse_args(argv)))


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
