"""The parts of a cross-validation: drawn once from the names of the cases, written, and used again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from datasets.base import shorten
from datasets.groups import divided, units
from utils import atomic_write

_SEED = 1234
_LONGEST = 2**12  # bytes of a case in the file; a name has 255 at most


def folds_file(folder: Path, folds: int) -> Path:
    """Where so many parts are written in a folder."""
    return folder / f"folds_{folds}.json"


def draw_folds(
    cases: Iterable[str], folds: int, attempt: int = 0, groups: Mapping[str, str] = MappingProxyType({})
) -> list[list[str]]:
    """Deal the groups of the cases out at random into `folds` parts; the same for the same names.

    The groups of two parts differ in number by one at most. Each `attempt` deals them otherwise.

    Raises:
        ValueError: there are fewer groups than parts.
    """
    dealt = units(cases, groups)
    if len(dealt) < folds:
        what = "groups of cases" if groups else "cases"
        raise ValueError(
            f"--folds is {folds}, but there are {len(dealt)} {what} to divide; expected {len(dealt)} or fewer"
        )
    order = np.random.default_rng([_SEED, attempt]).permutation(len(dealt)).tolist()
    return [sorted(name for index in order[part::folds] for name in dealt[index]) for part in range(folds)]


def read_folds(
    path: Path, cases: Iterable[str], folds: int, attempt: int = 0, groups: Mapping[str, str] = MappingProxyType({})
) -> list[list[str]]:
    """The parts in a file that `write_folds` wrote, else those that are drawn.

    Raises:
        ValueError: the file is damaged, its parts are not those of these cases, or they divide a group.
    """
    cases = set(cases)
    if not path.exists() and not path.is_symlink():
        return draw_folds(cases, folds, attempt, groups)
    if not path.is_file() or path.stat().st_size > _LONGEST * (len(cases) + folds):
        raise ValueError(f"{path}: is no file of the folds of {len(cases)} cases; remove it to have them drawn anew")
    try:
        parts = [[str(case) for case in part] for part in json.loads(path.read_text(encoding="utf-8"))["folds"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: holds no folds ({type(error).__name__}); remove it to have them drawn anew"
        ) from error
    named = [case for part in parts for case in part]
    if len(parts) != folds or len(named) != len(set(named)) or set(named) != cases:
        differ = ", ".join(map(shorten, sorted(set(named) ^ cases)[:3])) or "the number of parts, or a case named twice"
        raise ValueError(
            f"{path}: its {len(parts)} folds of {len(named)} cases are not {folds} of these {len(cases)} cases "
            f"({differ}); remove it to have them drawn anew"
        )
    for what in divided({f"fold {number}": part for number, part in enumerate(parts)}, groups):
        raise ValueError(f"{path}: {what}; remove it to have them drawn anew")
    return parts


def write_folds(path: Path, parts: Sequence[Sequence[str]]) -> None:
    """Write the parts for the next time, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    text = json.dumps({"folds": [list(part) for part in parts]}, indent=1) + "\n"
    try:
        atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise OSError(
            f"{path}: the folds cannot be written there ({error.strerror}); name a folder by --list_dir"
        ) from error


def held_out(names: Sequence[str], part: Sequence[str], case_of: Callable[[str], str]) -> tuple[list[str], list[str]]:
    """The names whose cases are not in a part, and those whose are."""
    inside = set(part)
    return [n for n in names if case_of(n) not in inside], [n for n in names if case_of(n) in inside]
