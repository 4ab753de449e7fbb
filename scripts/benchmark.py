"""Measure speed and memory against naive versions, SciPy and MedPy: ratios of two sides that ran in turn."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from configs.arguments import OneLineParser
    from scripts.benchmarks.rows import ROWS

    made = OneLineParser(
        prog="benchmark.py",
        description=__doc__,
        epilog="rows:\n" + "\n".join(f"  {name:16} {what}" for name, what in ROWS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--only", nargs="+", default=[], metavar="NAME", help="rows to measure (default: all but networks and scaling)")
    add("--output", type=Path, default=Path("benchmark.json"), metavar="FILE", help="default: benchmark.json")
    add("--figure", type=Path, metavar="FILE", help="draw the curves of the row scaling as a PNG")
    add("--quick", action="store_true", help="smaller inputs and two rounds: to see that it works, not to quote")
    add("--rounds", type=int, help="times that each side is measured (default: 5)")
    add("--threads", type=int, help="threads of torch (default: as torch chooses)")
    return made


def check(args: argparse.Namespace) -> list[str]:
    """The names of the rows to measure, in their order.

    Raises:
        ValueError: an option that cannot be used.
    """
    from scripts.benchmarks.rows import BY_DEFAULT, ROWS

    unknown = [name for name in args.only if name not in ROWS]
    if unknown:
        raise ValueError(f"--only: unknown row {unknown[0]!r}; expected some of {', '.join(ROWS)}")
    for option in ("rounds", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option} is {value}; expected at least 1")
    if args.figure is not None and ("scaling" not in args.only or args.figure.suffix != ".png"):
        raise ValueError(f"--figure is {args.figure}; expected a name that ends in .png, beside --only scaling")

    import utils

    for option, path in (("--output", args.output), ("--figure", args.figure)):
        if path is not None:
            utils.check_writable(path.parent, option)
    return [name for name in ROWS if name in (args.only or BY_DEFAULT)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; returns 0, or 2 after one line on standard error that says what is wrong."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import run_guarded

    def command() -> int:
        args = parser().parse_args(argv)
        names = check(args)
        if args.threads:
            os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the libraries of the processes that are started
        from scripts.benchmarks.session import run

        return run(names, args)

    return run_guarded("benchmark.py", command)


if __name__ == "__main__":
    sys.exit(main())
