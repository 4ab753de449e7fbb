"""Compare two runs, or tests, case by case: differences, their bootstrap interval, Wilcoxon's test."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def compare(args: argparse.Namespace) -> int:
    """Compare, print, and write comparison.json and the page comparison.html."""
    import utils
    from evaluation.comparison import compare_summaries, format_comparison, page
    from evaluation.summary import read_summary

    if args.run_a.resolve() == args.run_b.resolve():
        raise ValueError(f"RUN_A and RUN_B are both {args.run_a}; expected two folders")
    utils.check_writable(args.output, "--output")
    comparison = compare_summaries(read_summary(args.run_a), read_summary(args.run_b))
    names = str(args.run_a), str(args.run_b)
    content = page(comparison, *names, list(_pictures(comparison, args.run_a, args.run_b)))
    args.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(comparison, indent=1, allow_nan=False) + "\n"
    utils.atomic_write(args.output / "comparison.json", lambda path: path.write_text(text, encoding="utf-8"))
    utils.atomic_write(args.output / "comparison.html", lambda path: path.write_text(content, encoding="utf-8"))
    sys.stdout.write(f"{format_comparison(comparison, *names)}\n\n{args.output / 'comparison.html'}\n")
    return 0


def _pictures(comparison: dict[str, Any], run_a: Path, run_b: Path) -> Iterator[tuple[str, str, list[bytes]]]:
    """The overlays of both of the case that lost most and of the one that gained most, where they are there."""
    from evaluation.comparison import worst_first

    ranked = [case["name"] for case in worst_first(comparison)]
    ends = {"Largest loss": ranked[0], "Largest gain": ranked[-1]} if len(ranked) > 1 else {"The only case": ranked[0]}
    for title, name in ends.items():
        for side, run in (("A", run_a), ("B", run_b)):
            overlay = run / "overlays" / f"{name}.png"
            if overlay.is_file():
                yield f"{title}, {side}", name, _halves(overlay)


def _halves(overlay: Path) -> list[bytes]:
    from evaluation.report import halves

    try:
        return halves(overlay)
    except (OSError, ValueError, SyntaxError) as error:  # the last is Pillow's word for a broken PNG
        raise ValueError(f"{overlay}: is not a readable picture ({error}); test again, or remove it") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns 0, or 2 after one line on standard error that says what is wrong."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import OneLineParser, run_guarded

    parser = OneLineParser(prog="compare.py", description=__doc__)
    add = parser.add_argument
    add("run_a", type=Path, metavar="RUN_A", help="a folder that test.py wrote to: what is compared with")
    add("run_b", type=Path, metavar="RUN_B", help="another, tested on the same cases")
    add("--output", type=Path, default=Path("comparison"), metavar="DIR", help="default: comparison")
    return run_guarded("compare.py", lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
