"""A folder of one's own, `images/` and `labels/` (--dataset Folder): paired, looked through, and split once.

Nothing is written before everything has been looked at, and nothing at all where something is wrong.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.axes import check_same_grid
from datasets.base import Defect, Defects, read_list
from datasets.images import PICTURES, label_table, mask_values, picture_header, read_mask, read_picture
from datasets.nifti import SUFFIXES, open_image, read_image, stem_of

IMAGES, LABELS = "images", "labels"
PARTS = ("train", "val", "test")
ORIENTATION = "LPS"  # axial slices then lie as a radiologist reads them
AXIS_ORDERS = {"z": "zyx", "y": "yzx", "x": "xzy"}  # slices along an axis first

_MEMORY = "looked.json"
_SHARES = {"val": 0.1, "test": 0.2}  # of the cases, as in SPEC section 6; the rest train
_SEED = 1234
_TRIES = 200  # of a split, until every class is trained on
_ISOTROPIC = 1.1  # largest spacing by smallest
NAME = re.compile(r"[^\W_](?:[\w .()+\-]*[\w)+\-])?|_[\w.\-]+")  # a line of a list; no way out of the folder


class Pair(NamedTuple):
    """An image and its label, by the name that both files have."""

    name: str
    image: Path
    label: Path

    @property
    def is_volume(self) -> bool:
        return self.image.name.lower().endswith(SUFFIXES)


class Look(NamedTuple):
    """What was seen in a pair: channels, the values of the label, and of a volume its coarsest axis and its shape."""

    channels: int
    values: tuple[int, ...]
    axis: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Folder:
    """A folder that has been looked through.

    `parts` names the cases of "train", "val" and "test"; `label_values` is what a label file holds for class 0, 1, ...;
    `axis` is that of the slices of volumes, and empty for pictures.
    """

    parts: dict[str, list[str]]
    channels: int
    label_values: tuple[int, ...]
    axis: str

    def keys(self) -> dict[str, Any]:
        """What the configuration says of it."""
        volumes = {"DATA.ORIENTATION": ORIENTATION, "DATA.AXIS": self.axis} if self.axis else {}
        return volumes | {
            "MODEL.NUM_CLASSES": len(self.label_values),
            "MODEL.IN_CHANNELS": self.channels,
            "DATA.LABEL_VALUES": list(self.label_values),
            "DATA.INTENSITY": "percentile" if self.axis else "range",
            "DATA.AXIS_ORDER": AXIS_ORDERS.get(self.axis, "zyx"),
        }


def find_pairs(root: Path) -> list[Pair]:
    """Pair the files of `images/` and `labels/` by name; an `_0000` behind an image's, as nnU-Net has it, is left out.

    Raises:
        FileNotFoundError: one of both folders is not there.
        Defects: files without a partner, of no known kind, two of one name, pictures beside volumes, nothing at all.
    """
    for folder in (root / IMAGES, root / LABELS):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder; expected {root} with {IMAGES}/ and {LABELS}/ of files of the same names"
            )
    defects: list[Defect] = []
    images, labels = (_by_name(root / part, defects) for part in (IMAGES, LABELS))
    for here, there, what in ((images, labels, "label in labels/"), (labels, images, "image in images/")):
        defects += [
            Defect(path, f"has no {what}; expected a file named {name} there, add it or remove this one")
            for name, path in here.items()
            if name not in there
        ]
    pairs = [Pair(name, images[name], labels[name]) for name in sorted(set(images) & set(labels))]
    usual = Counter(pair.is_volume for pair in pairs).most_common(1)
    for pair in pairs:
        if pair.is_volume != usual[0][0] or pair.is_volume != pair.label.name.lower().endswith(SUFFIXES):
            what = "stands beside files of another kind; expected pictures alone or NIfTI alone, images and labels"
            defects.append(Defect(pair.image, what))
    if not pairs and not defects:
        expected = f"pictures ({', '.join(PICTURES)}) or NIfTI ({', '.join(SUFFIXES)})"
        defects.append(Defect(root / IMAGES, f"is empty; expected {expected}, and their labels in {LABELS}/"))
    if defects:
        raise Defects(root, defects)
    return pairs


def _by_name(folder: Path, defects: list[Defect]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        lower = path.name.lower()
        if path.is_dir() or not lower.endswith((*PICTURES, *SUFFIXES)):
            expected = ", ".join((*PICTURES, *SUFFIXES))
            defects.append(Defect(path, f"is neither a picture nor NIfTI; expected {expected}, or move it away"))
            continue
        name = stem_of(path).removesuffix("_0000") if folder.name == IMAGES else stem_of(path)
        if not NAME.fullmatch(name):
            defects.append(Defect(path, "is not a plain name; expected letters, digits, blanks and ._-()+, rename it"))
        elif name in found:
            defects.append(Defect(path, f"has the name of {found[name].name}; expected one of each, rename one"))
        found.setdefault(name, path)
    return found


def look_at(pair: Pair) -> Look:
    """Read both files of a pair whole, and see that they belong together.

    Raises:
        ValueError, OSError: a file is damaged or cannot be used, or they differ in size or place.
    """
    if pair.is_volume:
        image = open_image(pair.image, AXIS_ORDERS["z"], ORIENTATION)
        label, geometry = read_image(pair.label, AXIS_ORDERS["z"], ORIENTATION)
        check_same_grid(pair.label, label.shape, geometry, pair.image, image.shape, image.geometry)
        values = np.unique(label)
        stray = values[(values < 0) | (values > 255) | (values != np.round(values))]
        if len(stray):
            raise ValueError(f"{pair.label}: holds {stray[0]:g}; expected whole numbers, the class of each voxel")
        spacing = dict(zip("zyx", image.geometry.array_spacing, strict=True))
        coarsest = max(spacing, key=spacing.get) if max(spacing.values()) > _ISOTROPIC * min(spacing.values()) else "z"
        return Look(1, tuple(int(value) for value in values), coarsest, tuple(image.shape))
    header, mask_header = picture_header(pair.image), picture_header(pair.label)
    size, mask_size = header[:2], mask_header[:2]
    if size != mask_size:
        raise ValueError(f"{pair.label}: has {mask_size} pixels but {pair.image.name} {size}; expected the same size")
    read_picture(pair.image)
    return Look(header.channels, mask_values(read_mask(pair.label)))


def look_through(
    root: Path,
    lists: Path,
    *,
    num_classes: int = 0,
    axis: str = "",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    threads: int = 4,
) -> Folder:
    """Look at every file of a folder, take its split from `lists`, or make one there, and say what it holds.

    What was seen is remembered beside the lists, by size and time stamp: a second look takes only what is new.

    Args:
        root: the folder with `images/` and `labels/`.
        lists: where train.txt, val.txt and test.txt are, or are to be written.
        num_classes: K, where it is known; 0 has the labels tell.
        axis: x, y or z, that volumes are sliced along; "" is the coarsest of most.
        progress: wraps the iterator over the pairs, such as tqdm.

    Raises:
        FileNotFoundError: a folder is not there.
        Defects: all that is wrong with the files, the lists or the classes.
        OSError: the lists cannot be written.
    """
    pairs = find_pairs(root)
    looks = _looks(pairs, _remembered(lists / _MEMORY), progress, threads)
    channels = Counter(look.channels for look in looks.values()).most_common(1)[0][0]
    coarsest = Counter(look.axis for look in looks.values())
    axis = (axis or max("zyx", key=lambda letter: coarsest[letter])) if pairs[0].is_volume else ""
    defects = [
        Defect(pair.image, f"has {looks[pair.name].channels} channels but most have {channels}; expected one number")
        for pair in pairs
        if looks[pair.name].channels != channels
    ]
    defects += [
        Defect(pair.image, f"has one slice along {axis}; expected two at least, so choose another --axis")
        for pair in pairs
        if axis and looks[pair.name].shape["zyx".index(axis)] < 2
    ]
    table = label_table({pair.label: looks[pair.name].values for pair in pairs}, num_classes)
    marked = {name: {table.index(value) for value in look.values} - {0} for name, look in looks.items()}
    has_lists = (lists / "train.txt").exists()
    parts = _listed(lists, pairs, defects) if has_lists else _split(marked, len(table))
    defects += _class_defects(parts["train"], marked, len(table), lists if has_lists else root)
    if defects:
        raise Defects(root, defects)
    _write(lists, {} if has_lists else parts, pairs, looks)
    return Folder(parts, channels, table, axis)


def _looks(
    pairs: Sequence[Pair], known: Mapping[str, Any], progress: Callable[[Iterable[Any]], Iterable[Any]], threads: int
) -> dict[str, Look]:
    def look(pair: Pair) -> Look | list[Defect]:
        seen = known.get(pair.name, {})
        if seen.get("stamp") == _stamp(pair):
            return Look(*(tuple(value) if isinstance(value, list) else value for value in seen["look"]))
        try:
            return look_at(pair)
        except Defects as error:
            return list(error.defects)
        except (ValueError, OSError) as error:
            return [_defect(pair, error)]

    with ThreadPoolExecutor(threads) as pool:
        results = list(progress(pool.map(look, pairs)))
    defects = [defect for result in results if isinstance(result, list) for defect in result]
    if defects:
        raise Defects(pairs[0].image.parent.parent, defects)
    return {pair.name: result for pair, result in zip(pairs, results, strict=True)}


def _defect(pair: Pair, error: Exception) -> Defect:
    path = pair.label if str(error).startswith(str(pair.label)) else pair.image
    return Defect(path, str(error).removeprefix(f"{path}: "))


def _stamp(pair: Pair) -> list[int]:
    return [number for path in pair[1:] for number in (path.stat().st_size, path.stat().st_mtime_ns)]


def _remembered(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"stamp": list(seen["stamp"]), "look": list(seen["look"])} for name, seen in known.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # never there, or damaged: everything is looked at


def read_parts(lists: Path) -> dict[str, list[str]]:
    """The names of "train", "val" and "test"; none where there is no such list.

    Raises:
        ValueError: a list is empty, is not text, or holds something that is no plain name.
    """
    return {part: read_list(lists / f"{part}.txt", NAME) if (lists / f"{part}.txt").exists() else [] for part in PARTS}


def _listed(lists: Path, pairs: Sequence[Pair], defects: list[Defect]) -> dict[str, list[str]]:
    """The parts as the lists have them; what is wrong with these goes to `defects`."""
    parts = read_parts(lists)
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


def _split(marked: Mapping[str, set[int]], num_classes: int) -> dict[str, list[str]]:
    """70 % of the cases to train, 10 % to validate, 20 % to test, at random, such that every class is trained on."""
    names, count = sorted(marked), len(marked)
    test = max(1, round(count * _SHARES["test"])) if count > 1 else 0
    val = round(count * _SHARES["val"])
    for attempt in range(_TRIES):
        order = np.random.default_rng([_SEED, attempt]).permutation(count).tolist()
        shuffled = [names[index] for index in order]
        parts = {"test": shuffled[:test], "val": shuffled[test : test + val], "train": shuffled[test + val :]}
        if len(set().union(*(marked[name] for name in parts["train"]))) == num_classes - 1:
            break
    return {part: sorted(parts[part]) for part in PARTS}


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


def _write(lists: Path, parts: Mapping[str, Sequence[str]], pairs: Sequence[Pair], looks: Mapping[str, Look]) -> None:
    """The split, train.txt last as the one that is looked for, and what was seen, where that can be written."""
    files = {f"{part}.txt": "".join(f"{name}\n" for name in parts[part]) for part in reversed(PARTS) if parts.get(part)}
    try:
        lists.mkdir(parents=True, exist_ok=True)
        seen = {pair.name: {"stamp": _stamp(pair), "look": looks[pair.name]} for pair in pairs}
        for name, text in {_MEMORY: json.dumps(seen), **files}.items():
            partial_file = lists / f".{name}.{os.getpid()}.partial"
            partial_file.write_text(text, encoding="utf-8")
            partial_file.replace(lists / name)
    except OSError as error:
        if not parts:
            return  # the split is there; only the next look will take as long
        raise OSError(
            f"{lists}: the split cannot be written there ({error.strerror}); give another folder by --list_dir"
        ) from error
