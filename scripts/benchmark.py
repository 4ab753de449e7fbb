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

ROWS = ["metrics", "evaluation", "transforms", "step", "step_bf16", "curve_bf16", "regularizer", "loader"]
ROWS += ["flops", "breakdown"]
ROWS += [f"gpu_{row}" for row in ("metrics", "evaluation", "train", "inference", "regularizer", "flops", "breakdown")]
ONLY_IF_NAMED = ["networks", "scaling"]


def _parser() -> argparse.ArgumentParser:
    from configs.arguments import OneLineParser

    parser = OneLineParser(prog="benchmark.py", description=__doc__, epilog=f"rows: {', '.join(ROWS + ONLY_IF_NAMED)}")
    add = parser.add_argument
    add("--only", nargs="+", metavar="ROW", help="rows to measure (default: all but networks and scaling)")
    add("--output", type=Path, default=Path("benchmark.json"), metavar="FILE", help="default: benchmark.json")
    add("--figure", type=Path, metavar="FILE", help="draw the curves of the row scaling as a PNG")
    add("--quick", action="store_true", help="smaller inputs and two rounds: to see that it works, not to quote")
    add("--rounds", type=int, help="times that each side is measured (default: 5)")
    add("--threads", type=int, help="threads of torch (default: as torch chooses)")
    return parser


def _rows(args: argparse.Namespace) -> list[str]:
    """The rows to measure.

    Raises:
        ValueError: an option that cannot be used.
    """
    # Two had other names before.
    rows = [row.replace("regulariser", "regularizer").replace("shares", "breakdown") for row in args.only or ROWS]
    if unknown := [row for row in rows if row not in ROWS + ONLY_IF_NAMED]:
        raise ValueError(f"--only: unknown row {unknown[0]!r}; expected some of {', '.join(ROWS + ONLY_IF_NAMED)}")
    for option in ("rounds", "threads"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise ValueError(f"--{option} is {value}; expected at least 1")
    if args.figure and ("scaling" not in rows or args.figure.suffix != ".png"):
        raise ValueError(f"--figure is {args.figure}; expected a name that ends in .png, with --only scaling")
    return rows


def benchmark(args: argparse.Namespace) -> int:
    """Measure the rows into a table, and after each line with every round into a JSON file."""
    rows, rounds = _rows(args), args.rounds or (2 if args.quick else 5)
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the processes that measure
    import pandas as pd
    import torch

    import utils
    from scripts.benchmarks import evaluation, training
    from scripts.benchmarks.measure import Settings, draw_curves, measure, table

    for option in ("output", "figure"):
        if path := getattr(args, option):
            utils.check_writable(path.parent, f"--{option}")
            path.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    records: list[dict[str, object]] = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = {"environment": utils.environment(device), "quick": args.quick, "records": records}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        sizes = Settings(Path(folder))
        if args.quick:
            sizes = replace(sizes, depth=24, side=256, batch=2)
        for prefix, s in (("", sizes), ("gpu_", replace(sizes, device="cuda", batch=24, steps=10))):
            for comparison in (*evaluation.rows(s), *training.rows(s)):
                if (row := prefix + comparison.row) in rows:
                    print(f"measuring {row}, {comparison.what}", file=sys.stderr, flush=True)
                    if prefix and device.type == "cpu":
                        found: dict[str, object] = {"what": comparison.what, "size": None, "note": "needs a GPU"}
                    else:
                        found = measure(comparison, rounds)
                    records.append({"row": row, **found})
                    utils.atomic_write(args.output, lambda path: path.write_text(json.dumps(report, indent=2)))
    print(table(pd.DataFrame(records)))
    if "scaling" in rows:
        print(draw_curves(pd.DataFrame(records), args.figure).to_string())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on standard error that says what is wrong."""
    from configs.arguments import run_guarded

    return run_guarded("benchmark.py", lambda: benchmark(_parser().parse_args(argv)))


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
