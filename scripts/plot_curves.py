"""Plot the curves of runs from their metrics.jsonl: loss terms, gradient norms of the terms, validation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_DEFAULT = ("ce", "dice_loss", "scr", "ifd", "grad_segmentation", "grad_scr", "grad_ifd", "val_dice")
_COLUMNS = 4


def draw(runs: Mapping[str, Mapping[str, tuple[list[int], list[float]]]], keys: Sequence[str], path: Path) -> None:
    """One panel a key, one line a run; keys that no run has are left out."""
    from matplotlib.figure import Figure

    keys = [key for key in keys if any(key in curves for curves in runs.values())]
    columns = min(_COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, key in zip(axes, keys, strict=False):
        for name, curves in runs.items():
            if key in curves:
                panel.plot(*curves[key], label=name, linewidth=1)
        panel.set_title(key, fontsize=9)
        panel.tick_params(labelsize=7)
        if key.startswith("grad_"):
            panel.set_yscale("symlog", linthresh=1e-3)  # a term that warms up begins at 0
    for panel in axes[len(keys) :]:
        panel.set_axis_off()
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110, format="png")


def plot(args: argparse.Namespace) -> int:
    """Read and draw."""
    from engine.logger import read_curves
    from utils import atomic_write, check_writable

    if args.output.suffix != ".png":
        raise ValueError(f"--output is {args.output}; expected a name that ends in .png")
    names = [run.resolve().name for run in args.runs]
    if len(set(names)) < len(names):
        raise ValueError(f"the runs are named {', '.join(names)}; expected folders of different names")
    runs = dict(zip(names, map(read_curves, args.runs), strict=True))
    for curves in runs.values():
        if "dice" in curves:  # the name of the term in runs before it was called dice_loss
            curves.setdefault("dice_loss", curves["dice"])
    known = sorted({key for curves in runs.values() for key in curves})
    if not set(args.keys) & set(known):
        raise ValueError(f"--keys: no run has {', '.join(args.keys)}; expected some of {', '.join(known)}")
    check_writable(args.output.parent, "--output")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(args.output, lambda path: draw(runs, args.keys, path))
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
