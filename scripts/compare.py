"""Compare two runs, or tests, case by case: differences, their bootstrap intervals, Wilcoxon's test."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def compare(args: argparse.Namespace) -> int:
    """Compare, print, and write comparison.json and the page comparison.html."""
    import utils
    from configs.saved import differing
    from evaluation.comparison import compare_summaries, format_comparison, page, worst_first
    from evaluation.report import halves
    from evaluation.summary import read_summary, write_json

    if args.run_a.resolve() == args.run_b.resolve():
        raise ValueError(f"RUN_A and RUN_B are both {args.run_a}; expected two folders")
    comparison = compare_summaries(read_summary(args.run_a), read_summary(args.run_b))
    comparison["settings"] = differing(args.run_a, args.run_b)
    ranked = [case["name"] for case in worst_first(comparison)]
    images = []
    for title, name in (("Lowest B minus A", ranked[0]), ("Highest B minus A", ranked[-1]))[: len(ranked)]:
        for side, run in (("A", args.run_a), ("B", args.run_b)):
            overlay = run / "overlays" / f"{name}.png"
            if overlay.is_file():
                images.append((f"{title}: {side}", name, halves(overlay)))
    names = str(args.run_a), str(args.run_b)
    content = page(comparison, *names, images)
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "comparison.json", comparison)
    utils.write_text(args.output / "comparison.html", content)
    print(f"{format_comparison(comparison, *names)}\n\n{args.output / 'comparison.html'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns 0, or 2 after one line on standard error."""
    from configs.arguments import OneLineParser, run_guarded

    parser = OneLineParser(prog="compare.py", description=__doc__)
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="a folder that test.py wrote to: the reference")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="another, tested on the same cases")
    parser.add_argument("--output", type=Path, default=Path("comparison"), metavar="DIR", help="default: comparison")
    return run_guarded("compare.py", lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
