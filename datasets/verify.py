"""The check of a data set: every file is read once, and all that is wrong is reported together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from datasets.case import Case, DataSet, Facts
from datasets.errors import Defect, Defects, defect_of, warn_once

SAMPLE = (
    64  # slices that are read whole before a training: with one bad file in twenty, 96 % of data sets are found out
)


def verify(
    dataset: DataSet,
    cases: Sequence[Case],
    sample: int | None = None,
    *,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    threads: int = 4,
) -> dict[Case, Facts]:
    """Read every case, and return what each holds.

    Args:
        sample: how many cases are read whole, evenly spaced, the first and the last among them; of the others, only
            the headers. None: all.
        progress: wraps the iterator over the cases, such as tqdm.

    Raises:
        Defects: all that is wrong, each by its file.
    """
    count = len(cases) if sample is None else min(sample, len(cases))
    whole = {cases[index] for index in np.linspace(0, len(cases) - 1, count).round().astype(int).tolist()}
    found, defects = look(
        cases,
        lambda case: dataset.inspect(case) if case in whole else dataset.header(case),
        progress=progress,
        threads=threads,
    )
    if defects:
        raise Defects(dataset.root, defects)
    return found


def look(
    cases: Sequence[Case],
    inspect: Callable[[Case], Facts],
    *,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    threads: int = 4,
    known: Mapping[Case, Facts] | None = None,
) -> tuple[dict[Case, Facts], list[Defect]]:
    """What `inspect` finds in each case that is not `known` before, and all that is wrong."""

    def tried(case: Case) -> Facts | list[Defect]:
        try:
            return known[case] if known and case in known else inspect(case)
        except Defects as error:
            return list(error.defects)
        except (ValueError, OSError) as error:
            return [defect_of(next((path for path in case.files if str(path) in str(error)), case.files[0]), error)]

    with ThreadPoolExecutor(threads) as pool:
        results = dict(zip(cases, progress(pool.map(tried, cases)), strict=True))
    found = {case: result for case, result in results.items() if isinstance(result, Facts)}
    return found, [defect for result in results.values() if isinstance(result, list) for defect in result]


def leakage(dataset: DataSet) -> list[Defect]:
    """Cases of the test list that train or validate, too."""
    if not dataset.names_are_unique:
        return []
    trained = {dataset.group_of(name) for split in ("train", "val") for name in _names(dataset, split)}
    tested = {dataset.group_of(name) for name in _names(dataset, "test")}
    what = "names {}, which train or validate; expected a case in one list, or the test measures what was memorized"
    return (
        [Defect(dataset.lists / dataset.lists_of["test"], what.format(", ".join(sorted(tested & trained)[:8])))]
        if tested & trained
        else []
    )


def _names(dataset: DataSet, split: str) -> list[str]:
    try:
        return dataset.names(split)
    except (FileNotFoundError, ValueError):  # which is reported where the list is needed
        return []


def absent_classes(facts: Iterable[Facts], names: Sequence[str], where: Path) -> list[Defect]:
    """Classes 1..K-1 that no training case holds, as far as cases were read whole; `where` is the list."""
    totals = total_labels(facts)
    absent = [f"{index} ({name})" for index, name in enumerate(names, 1) if not totals[index]]
    what = f"no training case holds class {', '.join(absent)}; it cannot be learned, so add cases or fix --num_classes"
    return [Defect(where, what)] if totals and absent else []


def check_classes(facts: Sequence[Facts], names: Sequence[str], where: Path) -> None:
    """Warn of classes that no training case holds; raises Defects where none holds any."""
    defects = absent_classes(facts, names, where)
    if defects and not set(total_labels(facts)) & set(range(1, len(names) + 1)):
        raise Defects(where, defects)
    for defect in defects:
        warn_once(str(defect))


def total_labels(facts: Iterable[Facts]) -> Counter[int]:
    """How many voxels each label has in all."""
    totals: Counter[int] = Counter()
    for found in facts:
        totals.update(found.labels)
    return totals
