"""A custom data set, `images/` and `labels/` (--dataset Folder), or nnU-Net's `imagesTr/` and `labelsTr/`.

Nothing is written before everything has been read, and nothing at all where something is wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.case import SPLITS, Case, DataSet, Facts, Volume
from datasets.errors import Defect, Defects, defect_of, warn_once
from datasets.intensity import Preprocessing
from datasets.label_values import label_table
from datasets.pairing import files_in, pair
from datasets.readers import is_image
from datasets.sets.files import header_of, in_classes_of, inspect_case, read_case, warn_of_range
from datasets.splits import (
    ANY_NAME,
    divided,
    folds_file,
    read_folds,
    read_groups,
    read_list,
    require_listed,
    units,
    write_folds,
)
from datasets.verify import check_classes, look
from utils import write_text

AXIS_ORDERS = {"z": "zyx", "y": "yzx", "x": "xzy"}  # slices along an axis first
ORIENTATION = "LPS"  # axial slices then lie as a radiologist reads them

_HALVES = ("images", "imagesTr"), ("labels", "labelsTr", "masks")
_MEMORY = "inspected.json"  # what was found in files, by their sizes and time stamps
_VERSION = 3  # of it
_FRACTIONS = {"val": 0.1, "test": 0.2}  # of the cases; the rest train
_SEED = 1234
_TRIES = 200  # of a split, until every class is trained on
_ISOTROPIC = 1.1  # largest spacing by smallest
_MAX_JSON = 2**26  # bytes


class Info(NamedTuple):
    """What dataset.json says: the names of the classes 1..K-1, the label values of 0..K-1, and the one to ignore."""

    class_names: tuple[str, ...] = ()
    label_values: tuple[int, ...] = ()
    ignore: int | None = None


class Folder(DataSet):
    """Images or volumes with labels; a name in a list is a case."""

    folders = sum(_HALVES, ())

    def __init__(self, root: Path, lists: Path, num_classes: int, how: Preprocessing, suffix: str = "") -> None:
        super().__init__(root, lists, num_classes, how)
        cases, defects = find_cases(root, suffix)
        if defects:
            raise Defects(root, defects)
        self._cases = {case.name: case for case in cases}
        self.has_volumes = not is_image(cases[0].images[0])
        self.groups = read_groups(root)

    def names(self, split: str) -> list[str]:
        path = self.lists / f"{split}.txt"
        return read_list(path, ANY_NAME) if _is_there(path) else []

    def group_of(self, name: str) -> str:
        return self.groups.get(name, name)

    def case_of(self, name: str) -> str:
        return name

    def cases(self, names: Sequence[str], split: str) -> list[Case]:
        require_listed(self.root / _HALVES[0][0] / name for name in names if name not in self._cases)
        return [self._cases[name] for name in names]

    def read(self, case: Case) -> Volume:
        return read_case(case, self.how)

    def header(self, case: Case) -> Facts:
        return header_of(case, self.how)


def find_cases(root: Path, suffix: str = "") -> tuple[list[Case], list[Defect]]:
    """The pairs of a folder, and what is wrong.

    Raises:
        FileNotFoundError: it has no images/ or no labels/.
    """
    images, labels = (next((root / name for name in names if (root / name).is_dir()), None) for names in _HALVES)
    if not images or not labels:
        expected = "images/ and labels/ (or nnU-Net's imagesTr/ and labelsTr/) of files of the same names"
        raise FileNotFoundError(f"{root / _HALVES[bool(images)][0]}: no such folder; expected {root} with {expected}")
    defects: list[Defect] = []
    cases = pair(files_in(images, defects), files_in(labels, defects), defects, suffix)
    if not cases and not defects:
        defects.append(Defect(images, "is empty; expected images or volumes, and labels in labels/"))
    return cases, defects


def looks_like_folder(root: Path) -> bool:
    """Whether a data folder is one for --dataset Folder."""
    return all(any((root / name).is_dir() for name in names) for names in _HALVES)


def read_info(root: Path) -> Info:
    """What the dataset.json of nnU-Net or of the Medical Segmentation Decathlon says; nothing where there is none.

    Raises:
        ValueError: it is damaged, or has labels that are regions of several values; the message names it.
    """
    path = root / "dataset.json"
    if not path.is_file():
        return Info()
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError(f"more than {_MAX_JSON >> 20} MiB")
        labels = json.loads(path.read_text(encoding="utf-8-sig")).get("labels", {})
        if all(str(key).isdigit() for key in labels):  # the Decathlon has {"1": "anterior"}, nnU-Net {"anterior": 1}
            labels = {str(name): int(value) for value, name in labels.items()}
        if not all(type(value) is int and 0 <= value <= 255 for value in labels.values()):
            raise ValueError("a label that is no number from 0 to 255; regions of several labels are not trained on")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: is not understood ({str(error)[:160]}); expected labels such as "
            '{"background": 0, "liver": 1}, fix or remove it'
        ) from None
    ignore = labels.pop("ignore", None)
    ordered = sorted((value, name) for name, value in labels.items())
    names, values = tuple(name for _, name in ordered[1:]), tuple(value for value, _ in ordered)
    return Info(names, values, ignore) if len(values) > 1 else Info()


def inspect_folder(
    root: Path,
    lists: Path,
    *,
    how: Preprocessing,
    suffix: str = "",
    label_values: Sequence[int] = (),
    class_names: Sequence[str] = (),
    intensity: str = "",
    num_classes: int = 0,
    channels: int = 0,
    axis: str = "",
    orientation: str | None = None,
    folds: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """Read every file of a folder, take its split from `lists`, or make one there; what it holds, by configuration key.

    What was found is kept beside the lists, by size and time stamp: a second time only what is new is read.

    Args:
        root, lists: its folder, and where train.txt, val.txt and test.txt are, or are to be written.
        how: its mask threshold and the label to ignore.
        suffix: behind the names of labels; "" takes the usual ones.
        label_values, class_names, intensity: what the configuration has; empty: what files and dataset.json tell.
        num_classes: K; 0 has the labels tell.
        channels: that the images have to have; 0 is what most have.
        axis: x, y or z, that volumes are sliced along; "" is the coarsest of most.
        orientation: where volumes are turned to, such as LPS, the default; "" takes them as they are stored.
        folds: of a cross-validation, drawn and written too where they are not.
        progress: wraps the iterator over the cases, such as tqdm.

    Raises:
        FileNotFoundError: a folder is not there.
        Defects: all that is wrong with the files, the lists or the classes.
        OSError: the lists cannot be written.
    """
    info, orientation = read_info(root), ORIENTATION if orientation is None else orientation
    raw = Preprocessing((), 0, axis_order="zyx", orientation=orientation, spacing=how.spacing)
    facts, groups, defects = _read_all(root, lists, raw, suffix, progress)
    are_volumes = bool(facts) and not is_image(next(iter(facts)).images[0])
    if axis and facts and not are_volumes:
        raise ValueError(f"--axis is {axis}, and {root} holds images; expected it for volumes alone, so leave it out")
    channels, odd = _channels(facts, channels, are_volumes)
    ignore = how.ignore if how.ignore is not None else info.ignore
    values = tuple(label_values) or (info.label_values if num_classes in (0, len(info.label_values)) else ())
    table: tuple[int, ...] = ()
    try:
        found = {case.label: tuple(v for v in one.labels if v != ignore) for case, one in facts.items() if case.label}
        table = label_table(found, num_classes, values=values, threshold=how.threshold) if found else ()
    except Defects as error:
        odd += error.defects
    if defects or odd:
        raise Defects(root, [*defects, *odd])
    warn_of_range({} if are_volumes else facts, root, intensity)
    in_classes = {case.name: in_classes_of(one, table, how.threshold) for case, one in facts.items()}
    parts = _split(lists, in_classes, len(table), groups)
    in_folds = _folds(lists, [*parts["train"], *parts["val"]], folds, in_classes, len(table), groups) if folds else []
    _write(lists, parts, {case.name: [_stamp(case, raw), one] for case, one in facts.items()})
    if folds:
        write_folds(folds_file(lists, folds), in_folds)
    names = tuple(class_names) or (info.class_names if table == info.label_values else ())
    shown = names or [f"class {index}" for index in range(1, len(table))]
    check_classes([in_classes[name] for name in parts["train"]], shown, lists / "train.txt")
    axis = axis or _coarsest(facts.values()) if are_volumes else ""
    keys = {"DATA.ORIENTATION": orientation, "DATA.AXIS": axis} if are_volumes else {}
    return keys | {
        "MODEL.NUM_CLASSES": len(table),
        "MODEL.IN_CHANNELS": channels,
        "DATA.LABEL_VALUES": list(table),
        "DATA.CLASS_NAMES": list(names),
        "DATA.IGNORE_LABEL": -1 if ignore is None else ignore,
        "DATA.INTENSITY": "percentile" if are_volumes else "range",
        "DATA.AXIS_ORDER": AXIS_ORDERS.get(axis, "zyx"),
    }


def _read_all(
    root: Path,
    lists: Path,
    raw: Preprocessing,
    suffix: str,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> tuple[dict[Case, Facts], dict[str, str], list[Defect]]:
    """What each case holds, the group of each, and what is wrong."""
    cases, defects = find_cases(root, suffix)
    groups: dict[str, str] = {}
    try:
        groups = read_groups(root, [case.name for case in cases])
    except Defects as error:
        defects += error.defects
    threads = 4 if cases and is_image(cases[0].images[0]) else 2  # each with a volume in memory
    known = _remembered(lists / _MEMORY, cases, raw)
    facts, more = look(cases, partial(inspect_case, how=raw), progress=progress, threads=threads, known=known)
    return facts, groups, [*defects, *more]


def _channels(facts: Mapping[Case, Facts], asked: int, are_volumes: bool) -> tuple[int, list[Defect]]:
    """The channels asked for, or those of most images; and images with others, but grey and RGB are converted."""
    counts = Counter(found.channels for found in facts.values())
    usual = asked or (counts.most_common(1)[0][0] if counts else 0)
    odd = [case for case, found in facts.items() if found.channels != usual]
    if odd and not are_volumes and {*counts, usual} == {1, 3} and all(len(case.images) == 1 for case in facts):
        kinds = ("grey", "RGB") if usual == 3 else ("RGB", "grey")
        warn_once(
            f"{odd[0].images[0].parent}: {len(odd)} of {len(facts)} images are {kinds[0]}, converted to {kinds[1]}"
        )
        return usual, []
    what = f"channels but {'MODEL.IN_CHANNELS is' if asked else 'most have'} {usual}; expected one number, convert it"
    return usual, [Defect(case.images[0], f"has {facts[case].channels} {what}") for case in odd]


def _coarsest(facts: Iterable[Facts]) -> str:
    """The axis of the largest spacing in most volumes; z of isotropic ones, and of single slices."""
    axes: Counter[str] = Counter()
    for found in facts:
        spacing = dict(zip("zyx", found.spacing, strict=True))
        is_isotropic = max(spacing.values()) <= _ISOTROPIC * min(spacing.values())
        axes["z" if is_isotropic or found.shape[0] == 1 else max(spacing, key=lambda axis: spacing[axis])] += 1
    return max("zyx", key=lambda axis: axes[axis])


def _is_there(path: Path) -> bool:
    """Whether there is something, be it a link to nowhere: that is no reason to split anew."""
    return path.exists() or path.is_symlink()


def _split(
    lists: Path, cases: Mapping[str, Facts], num_classes: int, groups: Mapping[str, str]
) -> dict[str, list[str]]:
    """The cases of each split, as the lists have them, or drawn where there are none.

    Raises:
        Defects: what is wrong with the lists, or that there is but one case.
    """
    defects: list[Defect] = []
    if _is_there(lists / "train.txt"):
        parts = _listed(lists, cases, defects)
    elif len(cases) < 2:
        raise Defects(lists, [Defect(lists, "would split one case; expected two at least, to train and to test on")])
    else:
        parts = _drawn(cases, num_classes, groups)
    defects += [Defect(lists, f"{what} (groups.csv)") for what in divided(parts, groups)]
    if defects:
        raise Defects(lists, defects)
    return parts


def _listed(lists: Path, cases: Mapping[str, Facts], defects: list[Defect]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {split: [] for split in SPLITS}
    where: dict[str, str] = {}
    for split in SPLITS:
        path = lists / f"{split}.txt"
        try:
            parts[split] = read_list(path, ANY_NAME) if _is_there(path) else []
        except (ValueError, OSError) as error:
            defects.append(defect_of(path, error))
        for name in parts[split]:
            if name not in cases:
                what = f"names {name!r}, of which there is no pair; expected names of images without their suffix"
                defects.append(Defect(path, what))
            if name in where:
                what = f"names {name!r}, as {where[name]}.txt does; expected each case once"
                defects.append(Defect(path, what))
            where[name] = split
    if lost := [name for name in cases if name not in where]:
        what = (
            f"names {len(lost)} cases nowhere ({', '.join(lost[:3])}); expected each in a list, or no train.txt at all"
        )
        defects.append(Defect(lists, what))
    return parts


def _drawn(cases: Mapping[str, Facts], num_classes: int, groups: Mapping[str, str]) -> dict[str, list[str]]:
    """70 % of the cases to train, 10 % to validate, 20 % to test, at random, such that every class is trained on.

    A group is in one split, so that the last two may have more by less than a group.
    """
    wanted = {"test": max(1, round(len(cases) * _FRACTIONS["test"])), "val": round(len(cases) * _FRACTIONS["val"])}
    dealt = units(cases, groups)
    for attempt in range(_TRIES):
        order = np.random.default_rng([_SEED, attempt]).permutation(len(dealt)).tolist()
        parts: dict[str, list[str]] = {split: [] for split in SPLITS}
        for place, index in enumerate(order):
            is_last = place == len(order) - 1
            split = next((part for part, count in wanted.items() if len(parts[part]) < count and not is_last), "train")
            parts[split] += dealt[index]
        if not _lacks(parts["train"], cases, num_classes):
            break
    return {split: sorted(names) for split, names in parts.items()}


def _lacks(names: Iterable[str], cases: Mapping[str, Facts], num_classes: int) -> bool:
    """Whether one of the classes is in none of these cases."""
    return not set(range(1, num_classes)) <= set().union(*(cases[name].labels for name in names))


def _folds(
    lists: Path,
    cases: Sequence[str],
    folds: int,
    facts: Mapping[str, Facts],
    num_classes: int,
    groups: Mapping[str, str],
) -> list[list[str]]:
    """The parts of a cross-validation, as written or such that the training of each has every class, if that can be."""
    path = folds_file(lists, folds)
    for attempt in range(1 if path.is_file() else _TRIES):
        parts = read_folds(path, cases, folds, attempt, groups)
        if not any(_lacks((case for case in cases if case not in part), facts, num_classes) for part in parts):
            return parts
    what = f"leaves a class to one of {folds} folds alone, which does not train on it; expected more such cases"
    raise Defects(path, [Defect(path, f"{what}, or fewer --num_classes")])


def _remembered(path: Path, cases: Sequence[Case], how: Preprocessing) -> dict[Case, Facts]:
    """The facts of the cases whose files have not changed since they were written."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_JSON:
            return {}
        known = json.loads(path.read_text(encoding="utf-8"))
        found = {}
        for case in cases:
            stamp, (shape, dtype, low, high, labels, spacing, axes) = known.get(case.name, ([], Facts(())))
            if stamp == _stamp(case, how):
                counts = {int(value): int(count) for value, count in labels.items()}
                numbers = (float(low), float(high), counts, tuple(map(float, spacing)), str(axes))
                found[case] = Facts(tuple(map(int, shape)), str(dtype), *numbers)
        return found
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # damaged: everything is read


def _stamp(case: Case, how: Preprocessing) -> list[Any]:
    """What the facts of a case follow from, beside what is in its files."""
    stats = [path.stat() for path in case.files]
    return [_VERSION, str(how), how.spacing, *(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))]


def _write(lists: Path, parts: Mapping[str, Sequence[str]], memory: Mapping[str, Any]) -> None:
    """The split, train.txt last as the one that is looked for, and what was found, where that can be written."""
    has_lists = _is_there(lists / "train.txt")
    files = {
        f"{split}.txt": "".join(f"{name}\n" for name in parts[split]) for split in reversed(SPLITS) if parts[split]
    }
    try:
        lists.mkdir(parents=True, exist_ok=True)
        for name, text in {_MEMORY: json.dumps(memory), **({} if has_lists else files)}.items():
            write_text(lists / name, text)
    except OSError as error:
        if has_lists:
            return  # only the next start will take as long
        raise OSError(
            f"{lists}: the split cannot be written there ({error.strerror}); give another folder by --list_dir"
        ) from error
