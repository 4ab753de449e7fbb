"""Plot the curves of runs from their metrics.jsonl: loss terms, gradient norms of the terms, validation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_DEFAULT = ("ce", "dice_loss", "scr", "ifd", "grad_segmentation", "grad_scr", "grad_ifd", "val_dice")


def plot(args: argparse.Namespace) -> int:
    """Draw one panel for each key, one line for each run; keys that no run has are left out."""
    from matplotlib.figure import Figure

    from engine.logger import read_curves
    from utils import atomic_write

    runs = {run.resolve().name: read_curves(run) for run in args.runs}
    if len(runs) < len(args.runs):
        raise ValueError(f"the runs are named {', '.join(runs)}; expected folders of different names")
    known = {key for curves in runs.values() for key in curves}
    keys = [key for key in args.keys if key in known]
    if not keys:
        raise ValueError(f"--keys: no run has {', '.join(args.keys)}; expected some of {', '.join(sorted(known))}")
    columns = min(4, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    for place, key in enumerate(keys, start=1):
        panel = figure.add_subplot(rows, columns, place)
        for number, (name, curves) in enumerate(runs.items()):
            # A color of its own in every panel, whichever runs lack its key; a line through one point would be nothing.
            panel.plot(*curves.get(key, ((), ())), f".C{number % 10}-", markersize=4, label=name, linewidth=1)
        panel.set_title(key, fontsize=9)
        panel.tick_params(labelsize=7)
        if key.startswith("grad_"):
            panel.set_yscale("symlog", linthresh=1e-3)  # a term that warms up begins at 0
    figure.axes[0].legend(fontsize=7)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(args.output, lambda path: figure.savefig(path, dpi=110))
    print(args.output)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Plot; returns 0, or 2 after one line on standard error."""
    from configs.arguments import OneLineParser, run_guarded

    parser = OneLineParser(prog="plot_curves.py", description=__doc__)
    add, default = parser.add_argument, " ".join(_DEFAULT)
    add("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    add("--output", type=Path, default=Path("curves.png"), metavar="FILE", help="default: curves.png")
    add("--keys", nargs="+", default=list(_DEFAULT), metavar="KEY", help=f"what to plot (default: {default})")
    return run_guarded("plot_curves.py", lambda: plot(parser.parse_args(argv)))


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
