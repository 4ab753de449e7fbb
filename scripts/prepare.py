"""Turn the raw download of Synapse, ACDC, GlaS or MoNuSeg into the files that train.py and test.py read."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

_MODULES = {"Synapse": "synapse", "ACDC": "acdc", "GlaS": "histology", "MoNuSeg": "histology"}


def build_parser(prog: str = "prepare.py", dataset: str = "") -> argparse.ArgumentParser:
    """The command line; `dataset` is the one that a command is for alone."""
    from configs.arguments import OneLineParser

    parser = OneLineParser(prog=prog, description="Turn the raw download of a data set into what train.py reads.")
    sets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET", help=", ".join(_MODULES))

    def add_set(name: str, raw: str, out: str) -> Callable[..., argparse.Action]:
        add = sets.add_parser(name, prog=prog if dataset else f"{prog} {name}").add_argument
        add("raw", type=Path, metavar="RAW", help=raw)
        add("out", type=Path, metavar="OUT", help=f"gets {out} and lists/")
        add("--jobs", type=int, default=1, metavar="N", help="processes, each with one case in memory (default: 1)")
        return add

    add = add_set("Synapse", "folder of NIfTI pairs, at any depth", "train_npz/, test_vol_h5/")
    add("--labels", choices=("btcv13", "synapse8"), default="btcv13", help="numbers in the raw labels: 13 or 8 organs")
    add("--test_cases", nargs="+", metavar="ID", help="0008, case0008 or a whole name (default: the official ones)")
    add("--train_cases", nargs="+", metavar="ID", help="default: all that are not test cases")
    add("--window", type=float, nargs=2, default=(-125.0, 275.0), metavar=("LOW", "HIGH"), help="HU that give 0 and 1")
    add("--axis_order", choices=("zxy", "zyx"), default="zxy", help="of the arrays: the published one, or SimpleITK's")
    raw = "the official download, at any depth; spacing is the header's pixdim, whatever the scale of its sform"
    add = add_set("ACDC", raw, "train/, valid/, test/")
    add("--scale", choices=("percentile", "window"), default="percentile", help="how intensities become [0, 1]")
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of --scale window: what gives 0 and 1")
    add("--axis_order", choices=("zxy", "zyx"), default="zxy", help="of the arrays (default: zxy)")
    for name in ("GlaS", "MoNuSeg"):
        pairs = "train/ and test/ of img/ and labelcol/"
        add = add_set(name, f"the unpacked download, or a folder of {pairs}", pairs)
        text = "of MoNuSeg: the papers' 30 and 14 tiles (default), or all that are there"
        add("--split", choices=("papers", "all"), default="papers", help=text)
    return parser


def prepare(args: argparse.Namespace) -> int:
    """Make what the command line asks for."""
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; expected 1 or more")
    window = getattr(args, "window", None)
    if window and not -math.inf < window[0] < window[1] < math.inf:
        raise ValueError(f"--window is {window[0]} {window[1]}; expected two finite numbers, the lower one first")
    from scripts.preparation import pipeline

    pipeline.prepare(import_module(f"scripts.preparation.{_MODULES[args.dataset]}").plan, args)
    return 0


def main(argv: Sequence[str] | None = None, *, prog: str = "prepare.py", dataset: str = "") -> int:
    """Prepare a data set, `dataset` or the one that comes first; returns 0, or 2 after one line on standard error."""
    from configs.arguments import run_guarded

    words = [dataset] * bool(dataset) + list(sys.argv[1:] if argv is None else argv)
    return run_guarded(prog, lambda: prepare(build_parser(prog, dataset).parse_args(words)))


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
