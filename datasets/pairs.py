"""Files of `images/` and `labels/`, paired by name."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from datasets.base import LONGEST_NAME, Defect, Defects
from datasets.images import PICTURES
from datasets.readers import SUFFIXES, is_volume, itk, stem_of

IMAGES, LABELS = "images", "labels"
NAME = re.compile(r"[^\W_](?:[\w .()+\-]*[\w)+\-])?|_[\w.\-]+")  # a line of a list; no way out of the folder


class Pair(NamedTuple):
    """An image and its label, by the name that both files have."""

    name: str
    image: Path
    label: Path

    @property
    def is_volume(self) -> bool:
        return is_volume(self.image)


def find_pairs(root: Path) -> list[Pair]:
    """The pairs of `look_for_pairs`, where nothing is wrong.

    Raises:
        FileNotFoundError: one of both folders is not there.
        Defects: all that is wrong.
    """
    pairs, defects = look_for_pairs(root)
    if defects:
        raise Defects(root, defects)
    return pairs


def look_for_pairs(root: Path) -> tuple[list[Pair], list[Defect]]:
    """Pair the files of `images/` and `labels/` by name; an `_0000` behind an image's, as nnU-Net has it, is left out.

    Returns:
        The pairs, and what is wrong: files without a partner, of no known kind, two of one name, pictures beside
        volumes, nothing at all.

    Raises:
        FileNotFoundError: one of both folders is not there.
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
        if pair.is_volume != usual[0][0] or pair.is_volume != is_volume(pair.label):
            what = "stands beside files of another kind; expected pictures alone or volumes alone, images and labels"
            defects.append(Defect(pair.image, what))
    if not pairs and not defects:
        expected = f"pictures ({', '.join(PICTURES)}) or volumes ({', '.join(SUFFIXES)})"
        defects.append(Defect(root / IMAGES, f"is empty; expected {expected}, and their labels in {LABELS}/"))
    return pairs, defects


def _by_name(folder: Path, defects: list[Defect]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        lower = path.name.lower()
        if lower.endswith(itk.BESIDE):
            continue
        if path.is_dir() or not lower.endswith((*PICTURES, *SUFFIXES)):
            expected = ", ".join((*PICTURES, *SUFFIXES))
            defects.append(Defect(path, f"is neither a picture nor a volume; expected {expected}, or move it away"))
            continue
        name = stem_of(path).removesuffix("_0000") if folder.name == IMAGES else stem_of(path)
        if not NAME.fullmatch(name):
            defects.append(Defect(path, "is not a plain name; expected letters, digits, blanks and ._-()+, rename it"))
        elif len(name) > LONGEST_NAME:
            defects.append(
                Defect(path, f"has a name of {len(name)} letters; expected {LONGEST_NAME} at most, rename it")
            )
        elif name in found:
            defects.append(Defect(path, f"has the name of {found[name].name}; expected one of each, rename one"))
        found.setdefault(name, path)
    return found
