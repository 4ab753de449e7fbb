"""Look through a whole data set, training slices and test volumes, and name everything that is wrong with it.

python scripts/verify_data.py Synapse data/Synapse [--list_dir DIR] [--num_classes 9] [--jobs 4]

One line a defect on standard output, then a summary. Exit code 0 without defects, 1 with some, 2 for bad input.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from datasets.verify import Defect, Finding

Item, Result = TypeVar("Item"), TypeVar("Result")

SECONDS_A_LINE = 10.0  # of progress, where there is no terminal to draw a bar on
_PARTS = ("train_npz", "test_vol_h5")
_DATASETS = ("Phantom", "Synapse")  # of that layout


@dataclass(frozen=True)
class Listed:
    """The files that the lists name, each once, as "train", "validation" and "test"; and the lists' own defects."""

    parts: dict[str, list[Path]]
    defects: list[Defect]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from configs.arguments import OneLineParser

    parser = OneLineParser(prog="verify_data.py", description="Name everything that is wrong with a data set.")
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="Synapse or Phantom")
    add("root", type=Path, metavar="ROOT", help="the data folder, which holds train_npz and test_vol_h5")
    add("--list_dir", default="", metavar="DIR", help="folder of the lists (default: where train.py finds them)")
    add("--num_classes", type=int, metavar="K", help="classes, the background included (default: the data set's own)")
    add("--jobs", type=int, metavar="N", help="processes, each with one file in memory (default: one a CPU, 4 at most)")
    return parser


def read_lists(root: Path, lists: Path) -> Listed:
    """Read train.txt, test_vol.txt and, where there is one, val.txt, and compare them with the files.

    Raises:
        FileNotFoundError: there is no train.txt or test_vol.txt.
        ValueError: one cannot be used; a test_vol.txt without names can, as data may be there to train on alone.
    """
    from datasets import split_cases
    from datasets.base import read_list
    from datasets.synapse import case_of, slice_path, volume_path
    from datasets.verify import Defect, name_defects, read_names, shared_cases

    train_list, test_list, val_list = (lists / name for name in ("train.txt", "test_vol.txt", "val.txt"))
    named = read_names(train_list)
    tested = read_names(test_list) if not test_list.is_file() or test_list.stat().st_size else []
    slices, volumes = (root / part for part in _PARTS)
    defects = []
    try:
        listed = read_list(val_list) if val_list.is_file() else []
        train, val = split_cases(list(dict.fromkeys(named)), listed, 0, case_of, val_list)
    except ValueError as error:
        train, val = list(dict.fromkeys(named)), []
        defects.append(Defect(val_list, str(error).removeprefix(f"{val_list}: ")))
    added = [name for name in val if name not in set(named)]  # val.txt may name slices that train.txt does not
    defects += name_defects(train_list, [slice_path(slices, name) for name in named + added], slices, "*.npz")
    defects += name_defects(test_list, [volume_path(volumes, name) for name in tested], volumes, "*.h5")
    defects += shared_cases(train + val, tested, test_list)
    parts = {
        "train": [slice_path(slices, name) for name in train],
        "validation": [slice_path(slices, name) for name in val],
        "test": list(dict.fromkeys(volume_path(volumes, name) for name in tested)),
    }
    return Listed(parts, defects)


def map_in_order(work: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """Do the work on each item, in this process or in several, and yield the results in the items' order.

    Raises:
        OSError: a process was killed.
    """
    workers = min(jobs, len(items), os.cpu_count() or 1)
    if workers <= 1:
        for item in items:
            with _interrupt_waits():
                result = work(item)
            yield result
        return
    # Spawned, not forked: a fork would take over the locks of libraries that already run threads.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        with _unheard_by_children():
            results = pool.map(work, items)
        yield from results
    except BrokenProcessPool:
        raise OSError(f"a process of --jobs {jobs} was killed, likely for want of memory; give fewer") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupt_waits() -> Iterator[None]:
    """Let Ctrl-C wait for the end of a file: amid the opening of one, Python itself complains on standard error."""
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            raise KeyboardInterrupt


@contextmanager
def _unheard_by_children() -> Iterator[None]:
    """Processes that are started here ignore Ctrl-C, which reaches all of the terminal's: this one ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def with_progress(results: Iterable[Result], total: int) -> Iterator[Result]:
    """Hand the results on; standard error shows a bar with the time left, or now and then a line if it is a pipe."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(results, total=total, desc="verifying", unit="file", leave=False)
        return
    start = said = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        now = time.monotonic()
        if now - said >= SECONDS_A_LINE and done < total:
            said, left = now, (now - start) / done * (total - done)
            print(f"verify_data.py: {done} of {total} files, about {left:.0f} s left", file=sys.stderr, flush=True)


def summary(part: str, findings: Sequence[Finding], class_names: Sequence[str]) -> Iterator[str]:
    """Lines that say what the files of one part of the data set hold, each kind with the number of its files."""
    from datasets.synapse import case_of
    from datasets.verify import total_voxels

    read = [finding for finding in findings if finding.shape]
    cases = {case_of(finding.path.name.split(".")[0]) for finding in findings}
    unread = f", {len(findings) - len(read)} of them not readable" if len(read) < len(findings) else ""
    yield f"{part}: {len(cases)} cases, {len(findings)} {'volumes' if part == 'test' else 'slices'}{unread}"
    if not read:
        return
    totals = total_voxels(read, len(class_names))
    yield f"  shapes: {_counted('x'.join(map(str, finding.shape)) for finding in read)}"
    yield f"  dtypes: {_counted('image {}, label {}'.format(*finding.dtypes) for finding in read)}"
    yield f"  spacings (x, y, z) in mm: {_counted(_spacing(finding.spacing) for finding in read)}"
    yield f"  intensity: {min(finding.low for finding in read):g} to {max(finding.high for finding in read):g}"
    yield f"  voxels: {', '.join(f'{name} {count}' for name, count in zip(class_names, totals, strict=True))}"
    blank = [finding.path.name for finding in read if finding.blank]
    if blank:
        yield f"  images of one value: {len(blank)}, the first {blank[0]}"


def _counted(values: Iterable[str]) -> str:
    return "; ".join(f"{value} ({count})" for value, count in Counter(values).most_common())


def _spacing(spacing: tuple[float, ...] | None) -> str:
    return "not stored" if spacing is None else ", ".join(f"{value:g}" for value in spacing)


def _tell(defects: Iterable[Defect]) -> list[Defect]:
    """Print the defects, above the bar where there is one, and return them."""
    from tqdm import tqdm

    told = list(defects)
    for defect in told:
        tqdm.write(str(defect))
    return told


def _check_options(args: argparse.Namespace) -> None:
    if args.dataset not in _DATASETS:
        expected = f"{', '.join(_DATASETS)} (of other data sets train.py reads everything before it begins)"
        raise ValueError(f"DATASET is {args.dataset!r}; expected one of {expected}")
    if not args.root.is_dir():
        raise ValueError(f"{args.root}: no such data folder; expected one with {' and '.join(_PARTS)} (ROOT)")
    if args.num_classes is not None and not 2 <= args.num_classes <= 256:
        raise ValueError(f"--num_classes is {args.num_classes}; expected 2 to 256, the background included")
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; expected 1 or more")


def run(args: argparse.Namespace) -> int:
    """Compare the lists with the files, read every file, print each defect as it is found, and sum up."""
    from datasets import class_names, locate
    from datasets.synapse import ORGANS
    from datasets.verify import case_defects, class_defects, inspect

    _check_options(args)
    root, lists = locate(args.dataset, str(args.root), args.list_dir)
    names = class_names(args.dataset, args.num_classes or len(ORGANS) + 1)
    listed = read_lists(root.parent if root.name in _PARTS else root, lists)
    defects = _tell(listed.defects)
    # A listed file that is not there is among these defects.
    parts = {part: [path for path in paths if path.is_file()] for part, paths in listed.parts.items()}
    paths = [path for part in parts.values() for path in part]
    work, jobs = partial(inspect, num_classes=len(names) + 1), args.jobs or min(4, os.cpu_count() or 1)
    found: dict[Path, Finding] = {}
    for finding in with_progress(map_in_order(work, paths, jobs), len(paths)):
        found[finding.path] = finding
        defects += _tell(finding.defects)
    findings = {part: [found[path] for path in paths] for part, paths in parts.items()}
    defects += _tell(case_defects(findings["train"] + findings["validation"]))
    defects += _tell(class_defects(findings["train"], names, lists / "train.txt"))
    for part in (part for part in findings if findings[part]):
        print(*summary(part, findings[part], ["background", *names]), sep="\n")
    print(f"{len(defects)} defects in {len({defect.path for defect in defects})} files" if defects else "no defects")
    return 1 if defects else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Verify the data set; returns 0, 1 where it has defects, or 2 after one line on standard error."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import run_guarded

    return run_guarded("verify_data.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
