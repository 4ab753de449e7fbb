"""A folder of one's own, `images/` and `labels/` (--dataset Folder): looked through, and split once.

Nothing is written before everything has been looked at, and nothing at all where something is wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Defect, Defects, defect_of, read_list
from datasets.folds import folds_file, read_folds, write_folds
from datasets.groups import divided, read_groups, units
from datasets.images import label_table
from datasets.looks import AXIS_ORDERS, ORIENTATION, Look, look_at_all, remembered, to_remember
from datasets.pairs import NAME, Pair, look_for_pairs
from utils import atomic_write

PARTS = ("train", "val", "test")

_MEMORY = "looked.json"
_SHARES = {"val": 0.1, "test": 0.2}  # of the cases; the rest train
_SEED = 1234
_TRIES = 200  # of a split, until every class is trained on


@dataclass(frozen=True)
class Folder:
    """A folder that has been looked through.

    `parts` names the cases of "train", "val" and "test"; `label_values` is what a label file holds for class 0, 1, ...;
    `axis` is that of the slices of volumes, and empty for pictures; `orientation` is where volumes are turned to.
    """

    parts: dict[str, list[str]]
    channels: int
    label_values: tuple[int, ...]
    axis: str
    orientation: str

    def keys(self) -> dict[str, Any]:
        """What the configuration says of it."""
        volumes = {"DATA.ORIENTATION": self.orientation, "DATA.AXIS": self.axis} if self.axis else {}
        return volumes | {
            "MODEL.NUM_CLASSES": len(self.label_values),
            "MODEL.IN_CHANNELS": self.channels,
            "DATA.LABEL_VALUES": list(self.label_values),
            "DATA.INTENSITY": "percentile" if self.axis else "range",
            "DATA.AXIS_ORDER": AXIS_ORDERS.get(self.axis, "zyx"),
        }


def look_through(
    root: Path,
    lists: Path,
    *,
    num_classes: int = 0,
    channels: int = 0,
    axis: str = "",
    orientation: str | None = None,
    folds: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    threads: int = 4,
) -> Folder:
    """Look at every file of a folder, take its split from `lists`, or make one there, and say what it holds.

    What was seen is remembered beside the lists, by size and time stamp: a second look takes only what is new.

    Args:
        root: the folder with `images/` and `labels/`.
        lists: where train.txt, val.txt and test.txt are, or are to be written.
        num_classes: K, where it is known; 0 has the labels tell.
        channels: that the images have to have; 0 is what most have.
        axis: x, y or z, that volumes are sliced along; "" is the coarsest of most.
        orientation: where volumes are turned to, such as LPS, the default; "" takes them as they are stored.
        folds: parts of a cross-validation, drawn and written too where they are not; each class has to be in more than
            one of them.
        progress: wraps the iterator over the pairs, such as tqdm.

    Raises:
        FileNotFoundError: a folder is not there.
        Defects: all that is wrong with the files, the lists or the classes.
        OSError: the lists cannot be written.
    """
    pairs, defects = look_for_pairs(root)
    groups: dict[str, str] = {}
    try:
        groups = read_groups(root, [pair.name for pair in pairs])
    except Defects as error:
        defects += error.defects
    orientation = ORIENTATION if orientation is None else orientation
    looks, more = look_at_all(pairs, orientation, remembered(lists / _MEMORY, len(pairs)), progress, threads)
    pairs = [pair for pair in pairs if pair.name in looks]
    coarsest = Counter(look.axis for look in looks.values() if look.axis)
    if axis and looks and not coarsest:
        raise ValueError(f"--axis is {axis}, and {root} holds pictures; expected it for volumes alone, so leave it out")
    axis = axis or max("zyx", key=lambda letter: coarsest[letter]) if coarsest else ""
    channels, odd = _channels(pairs, looks, channels)
    defects += [*more, *odd]
    table: tuple[int, ...] = ()
    try:
        table = label_table({pair.label: looks[pair.name].values for pair in pairs}, num_classes) if pairs else ()
    except Defects as error:
        defects += error.defects
    if defects:
        raise Defects(root, defects)
    marked = {name: {table.index(value) for value in look.values} - {0} for name, look in looks.items()}
    has_lists = _is_there(lists / "train.txt")
    parts = _listed(lists, pairs, defects) if has_lists else _split(marked, len(table), groups)
    defects += [Defect(lists, f"{what} (groups.csv)") for what in divided(parts, groups)]
    defects += _class_defects(parts["train"], marked, len(table), lists if has_lists else root)
    if defects:
        raise Defects(root, defects)
    in_folds = _folds(lists, [*parts["train"], *parts["val"]], folds, marked, len(table), groups) if folds else []
    memory = {pair.name: to_remember(pair, orientation, looks[pair.name]) for pair in pairs}
    _write(lists, {} if has_lists else parts, memory)
    if folds:
        write_folds(folds_file(lists, folds), in_folds)
    return Folder(parts, channels, table, axis, orientation)


def _channels(pairs: Sequence[Pair], looks: Mapping[str, Look], asked: int) -> tuple[int, list[Defect]]:
    """The channels that are asked for, or that most images have, and the images that have another number."""
    counts = Counter(look.channels for look in looks.values())
    usual = asked or (counts.most_common(1)[0][0] if counts else 0)
    what = (
        f"channels but {'MODEL.IN_CHANNELS is' if asked else 'most have'} {usual}; expected one number, so convert it"
    )
    odd = {pair.image: looks[pair.name].channels for pair in pairs if looks[pair.name].channels != usual}
    return usual, [Defect(path, f"has {number} {what}") for path, number in odd.items()]


def read_parts(lists: Path) -> dict[str, list[str]]:
    """The names of "train", "val" and "test"; none where there is no such list.

    Raises:
        ValueError: a list is empty, is not text, or holds something that is no plain name.
    """
    paths = {part: lists / f"{part}.txt" for part in PARTS}
    return {part: read_list(path, NAME) if _is_there(path) else [] for part, path in paths.items()}


def _is_there(path: Path) -> bool:
    """Whether there is something, be it a link to nowhere: that is no reason to split anew."""
    return path.exists() or path.is_symlink()


def _names(path: Path, defects: list[Defect]) -> list[str]:
    """The names in a list; none where it is not there, or where it is bad, which goes to `defects`."""
    try:
        return read_list(path, NAME) if _is_there(path) else []
    except ValueError as error:
        defects.append(defect_of(path, error))
        return []


def _listed(lists: Path, pairs: Sequence[Pair], defects: list[Defect]) -> dict[str, list[str]]:
    """The parts as the lists have them; what is wrong with these goes to `defects`."""
    parts = {part: _names(lists / f"{part}.txt", defects) for part in PARTS}
    known, where = {pair.name for pair in pairs}, {}
    for part, names in parts.items():
        for name in names:
            if name not in known:
                what = f"names {name!r}, of which there is no pair; expected names of images/ without their suffix"
                defects.append(Defect(lists / f"{part}.txt", what))
            if name in where:
                what = f"names {name!r}, as {where[name]}.txt does; expected each case once"
                defects.append(Defect(lists / f"{part}.txt", what))
            where[name] = part
    defects += [
        Defect(pair.image, f"is in none of the lists in {lists}; name it in one, or remove them to have it split anew")
        for pair in pairs
        if pair.name not in where
    ]
    return parts


def _split(marked: Mapping[str, set[int]], num_classes: int, groups: Mapping[str, str]) -> dict[str, list[str]]:
    """70 % of the cases to train, 10 % to validate, 20 % to test, at random, such that every class is trained on.

    A group is in one part, so that the last two may have more by less than a group.
    """
    wanted = {"test": max(1, round(len(marked) * _SHARES["test"])), "val": round(len(marked) * _SHARES["val"])}
    dealt = units(marked, groups)
    for attempt in range(_TRIES):
        order = np.random.default_rng([_SEED, attempt]).permutation(len(dealt)).tolist()
        parts: dict[str, list[str]] = {part: [] for part in PARTS}
        for place, index in enumerate(order):
            is_last = place == len(order) - 1
            part = next((part for part, count in wanted.items() if len(parts[part]) < count and not is_last), "train")
            parts[part] += dealt[index]
        if len(set().union(*(marked[name] for name in parts["train"]))) == num_classes - 1:
            break
    return {part: sorted(names) for part, names in parts.items()}


def _folds(
    lists: Path,
    cases: Sequence[str],
    folds: int,
    marked: Mapping[str, set[int]],
    num_classes: int,
    groups: Mapping[str, str],
) -> list[list[str]]:
    """The parts of a cross-validation; raises Defects where a class is in one part alone, and once not trained on."""
    path = folds_file(lists, folds)
    for attempt in range(1 if path.is_file() else _TRIES):
        parts = read_folds(path, cases, folds, attempt, groups)
        defects = [
            defect
            for part in parts
            for defect in _class_defects([case for case in cases if case not in part], marked, num_classes, path)
        ]
        if not defects:
            return parts
    raise Defects(path, defects)


def _class_defects(
    train: Sequence[str], marked: Mapping[str, set[int]], num_classes: int, where: Path
) -> Iterable[Defect]:
    if len(marked) < 2:
        yield Defect(where, "holds one case; expected two at least, one to train on and one to test")
    found = set().union(*(marked.get(name, set()) for name in train)) if train else set()
    absent = [str(label) for label in range(1, num_classes) if label not in found]
    if absent:
        what = f"no training case holds class {', '.join(absent)}; expected all of 1..{num_classes - 1} in train.txt"
        yield Defect(where, f"{what}, so add cases that do, or give another --num_classes")


def _write(lists: Path, parts: Mapping[str, Sequence[str]], memory: Mapping[str, Any]) -> None:
    """The split, train.txt last as the one that is looked for, and what was seen, where that can be written."""
    files = {f"{part}.txt": "".join(f"{name}\n" for name in parts[part]) for part in reversed(PARTS) if parts.get(part)}
    try:
        lists.mkdir(parents=True, exist_ok=True)
        for name, text in {_MEMORY: json.dumps(memory), **files}.items():
            atomic_write(lists / name, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        if not parts:
            return  # the split is there; only the next look will take as long
        raise OSError(
            f"{lists}: the split cannot be written there ({error.strerror}); give another folder by --list_dir"
        ) from error
