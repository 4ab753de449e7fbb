"""Groups of cases that no split divides, such as the scans of one person: groups.csv beside images/ and labels/."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from datasets.base import Defect, Defects, shorten

GROUPS = "groups.csv"
_LARGEST = 1 << 26  # bytes


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
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"has more than {_LARGEST >> 20} MiB")
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
