"""Lists of cases, groups that no split divides (groups.csv), and the folds of a cross-validation."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from datasets.errors import MAX_NAME, Defect, Defects, shorten
from utils import write_text

GROUPS = "groups.csv"  # beside images/ and labels/
ANY_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]+")  # of a line of a list

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_MAX_LIST = 2**26  # bytes; a million slices take a third
_SEED = 1234
_MAX_CASE = 2**12  # bytes of a case in a file of folds; a name has 255 at most


def read_list(path: Path, plain: re.Pattern = _PLAIN_NAME) -> list[str]:
    """Read a list file: one name a line, blank lines ignored; `plain` is what a name may be.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: the list is empty, is not text, or holds something that is not a plain file name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list; expected a text file with one name a line (see --list_dir)")
    if path.stat().st_size > _MAX_LIST:
        raise ValueError(f"{path}: has more than {_MAX_LIST >> 20} MiB; expected a list, one name a line")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a text file; expected one name a line") from None
    if not names:
        raise ValueError(f"{path}: the list is empty; expected one name a line")
    for name in names:
        # A name becomes part of a path: nothing in a list may lead out of the data folder.
        if not plain.fullmatch(name):
            shown = shorten(repr(name))
            raise ValueError(f"{path}: {shown} is not a plain name; expected letters, digits, '_', '-' and '.' only")
        if len(name) > MAX_NAME:
            raise ValueError(f"{path}: holds a name of {len(name)} letters; expected {MAX_NAME} at most")
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated:
        raise ValueError(f"{path}: names {repeated} more than once; expected every name once")
    return names


def require_listed(paths: Iterable[Path]) -> None:
    """Make sure that every file that a list names is there; raises Defects with those that are not."""
    what = "is named in the list but is not there; make it, or fix the list (--list_dir)"
    if missing := [Defect(path, what) for path in paths if not path.is_file()]:
        raise Defects(missing[0].path.parent, missing)


def split_cases(
    names: Sequence[str], listed: Sequence[str], val_cases: int, group_of: Callable[[str], str], where: Path
) -> tuple[list[str], list[str]]:
    """Divide training names into training and validation, by whole groups.

    `listed` names the groups (or slices of theirs) that validate; `val_cases` holds out that many of the last groups in
    order instead; `where` is the list, for messages.

    Raises:
        ValueError: nothing would be left to train on, or the list names a case that is not there.
    """
    groups = sorted({group_of(name) for name in names})
    if val_cases:
        held = set(groups[len(groups) - val_cases :] if val_cases < len(groups) else groups)
    else:
        held = {group_of(name) for name in listed}
        names = list(dict.fromkeys([*names, *(name for name in listed if name != group_of(name))]))
        lost = held - {group_of(name) for name in names}
        if lost:
            raise ValueError(
                f"{where}: names the case {min(lost)}, of which no slice is listed; "
                "expected slices or cases of train.txt"
            )
    train = [name for name in names if group_of(name) not in held]
    if not train:
        raise ValueError(
            f"validation holds out all {len(held)} cases and leaves none to train on; "
            f"expected fewer (--val_cases, {where.name})"
        )
    return train, [name for name in names if group_of(name) in held]


def read_groups(root: Path, cases: Collection[str] | None = None) -> dict[str, str]:
    """The group of each case in groups.csv: a header `case,person` (or any second name), then a row a case.

    Args:
        root: the data folder.
        cases: all there are; None does not check them.

    Returns:
        The group by case; empty where there is no such file, and every case is then a group of its own.

    Raises:
        Defects: a row without two names, a case twice, or one that there is not or that is missing.
    """
    path = root / GROUPS
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        if path.stat().st_size > _MAX_LIST:
            raise ValueError(f"has more than {_MAX_LIST >> 20} MiB")
        with path.open(encoding="utf-8-sig", newline="") as file:
            head, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise Defects(root, [Defect(path, f"is not a readable table ({error}); expected case,person")]) from None
    defects = [] if len(head) == 2 and head[0] == "case" else [Defect(path, f"begins {head}; expected case,person")]
    groups: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        if len(row) != 2 or not all(map(str.strip, row)):
            defects += (
                [Defect(path, f"line {line} is {shorten(repr(row))}; expected a case and its group")] if row else []
            )
        elif row[0] in groups:
            defects.append(Defect(path, f"line {line} names {shorten(row[0])} again; expected each case once"))
        else:
            groups[row[0]] = row[1].strip()
    if cases is not None:
        for name in sorted({*groups} - {*cases}):
            defects.append(Defect(path, f"names {shorten(name)}, of which there is no pair; expected names of images/"))
        for name in sorted({*cases} - {*groups}):
            defects.append(Defect(path, f"does not name {shorten(name)}; expected a row for every case"))
    if defects:
        raise Defects(root, defects)
    return groups


def units(cases: Iterable[str], groups: Mapping[str, str]) -> list[list[str]]:
    """The cases of each group, in the order of their names; a case without a group is one of its own."""
    members: dict[str, list[str]] = {}
    for name in sorted(set(cases)):
        members.setdefault(groups.get(name, name), []).append(name)
    return list(members.values())


def divided(parts: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> Iterable[str]:
    """What is wrong with parts that have a case of one group each, in words."""
    seen: dict[str, tuple[str, str]] = {}
    for part, names in parts.items():
        for name in names:
            group = groups.get(name, name)
            other, first = seen.setdefault(group, (part, name))
            if other != part:
                yield f"group {shorten(group)} is in {other} ({first}) and in {part} ({name}); expected it in one"


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
    if not path.is_file() or path.stat().st_size > _MAX_CASE * (len(cases) + folds):
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
        write_text(path, text)
    except OSError as error:
        raise OSError(
            f"{path}: the folds cannot be written there ({error.strerror}); name a folder by --list_dir"
        ) from error


def held_out(names: Sequence[str], part: Sequence[str], case_of: Callable[[str], str]) -> tuple[list[str], list[str]]:
    """The names whose cases are not in a part, and those whose are."""
    inside = set(part)
    return [n for n in names if case_of(n) not in inside], [n for n in names if case_of(n) in inside]
