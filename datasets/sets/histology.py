"""GlaS and MoNuSeg: RGB images with masks, in a folder for each split or, as the official GlaS, all in one.

A mask has the name of its image, with or without `_anno`. One folder holds both, or two beside each other do: `img/`
and `labelcol/`, or `images/` and `masks/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from datasets.case import SPLITS, Case, DataSet, Facts, Volume
from datasets.errors import Defect, Defects
from datasets.label_values import label_table
from datasets.pairing import files_in, pair
from datasets.sets.files import header_of, in_classes_of, inspect_case, read_case
from datasets.splits import ANY_NAME, read_list, require_listed
from datasets.verify import check_classes, look

ANNOTATED = "_anno"  # behind the name of a mask
_FOLDERS = (("img", "images"), ("labelcol", "masks"))
_OF_SPLIT = {"train": "Train_Folder", "val": "Val_Folder", "test": "Test_Folder"}  # as UCTransNet has them
_OFFICIAL = {"train": re.compile(r"train_\d+"), "test": re.compile(r"test[AB]_\d+")}  # of GlaS, all in one folder
_EXPECTED = (
    "train/ and test/, or Train_Folder/ and Test_Folder/, of img/ and labelcol/ or images/ and masks/ each; "
    "or train_1.bmp with train_1_anno.bmp, testA_1.bmp ... in one folder"
)


class MoNuSeg(DataSet):
    """Images with masks of 0 and 255; lists, where there are some, choose among those of a folder."""

    classes = ("nucleus",)
    made_by = "prepare_histology.py"
    names_are_unique = False
    threshold: ClassVar[int] = 0  # of the masks, where none is given

    def names(self, split: str) -> list[str]:
        found = [case.name for case in self._found(split)]
        path = self.lists / f"{split}.txt"
        return read_list(path, ANY_NAME) if path.is_file() else found

    def cases(self, names: Sequence[str], split: str) -> list[Case]:
        found = {
            case.name: case for one in (("train", "val") if split != "test" else ("test",)) for case in self._found(one)
        }
        require_listed(self.root / split / name for name in names if name not in found)
        return [found[name] for name in names]

    def read(self, case: Case) -> Volume:
        return read_case(case, self.how)

    def header(self, case: Case) -> Facts:
        return header_of(case, self.how)

    def _found(self, split: str) -> list[Case]:
        cases, defects = find_cases(self.root, split)
        if defects:
            raise Defects(self.root, defects)
        return cases

    def inspect_all(self, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> dict[str, Any]:
        """Read every image and mask; returns what the masks hold for both classes, by configuration key.

        Raises:
            Defects: all that is wrong with them.
            FileNotFoundError: there is nothing to train on.
        """
        splits: dict[Case, str] = {}
        defects: list[Defect] = []
        for split in SPLITS:
            try:
                cases, more = find_cases(self.root, split)
            except FileNotFoundError:
                if split != "test":  # training does without
                    raise
                continue
            splits |= dict.fromkeys(cases, split)
            defects += more
        found, more = look(list(splits), partial(inspect_case, how=self.how), progress=progress)
        threshold, table = self.how.threshold or self.threshold, tuple[int, ...]((0, 255))
        values = {case.label: tuple(facts.labels) for case, facts in found.items() if case.label}
        try:
            table = label_table(values, 2, threshold=threshold) if values else table
        except Defects as error:
            defects += error.defects
        defects += [*more, *_repeated(splits)]
        if defects:
            raise Defects(self.root, defects)
        trained = [in_classes_of(facts, table, threshold) for case, facts in found.items() if splits[case] == "train"]
        check_classes(trained, self.classes, self.root)
        return {"DATA.LABEL_VALUES": list(table)} | ({"DATA.MASK_THRESHOLD": threshold} if threshold else {})


class GlaS(MoNuSeg):
    """The same, whose masks number the glands: what is not 0 is class 1."""

    classes = ("gland",)
    threshold = 1


def find_cases(root: Path, split: str) -> tuple[list[Case], list[Defect]]:
    """The image-mask pairs of a split, and what is wrong; none where nothing is there to validate on.

    Raises:
        FileNotFoundError: there is no such folder, or none of this split.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such data folder; expected {_EXPECTED} (--root_path)")
    defects: list[Defect] = []
    folder = next((root / name for name in (split, _OF_SPLIT[split]) if (root / name).is_dir()), None)
    if folder is not None:
        images, masks = _halves(folder, defects)
        cases = pair(images, masks, defects, ANNOTATED)
    else:
        mixed = next((one for one in (root, *sorted(root.glob("*/"))) if any(one.glob(f"*{ANNOTATED}.*"))), None)
        has_splits = any((root / name).is_dir() for name in (*_OF_SPLIT, *_OF_SPLIT.values()))
        if split == "val" and (mixed or has_splits):
            return [], []
        if mixed is None or has_splits:
            raise FileNotFoundError(f"{root}: has nothing to {split} on; expected {_EXPECTED} (--root_path)")
        files = files_in(mixed, defects)
        what = "is named for no split; expected train_1.bmp, testA_1.bmp or testB_1.bmp, rename or remove it"
        named = [path for path in files if any(pattern.match(path.stem) for pattern in _OFFICIAL.values())]
        defects += [Defect(path, what) for path in files if path not in named]
        own = [path for path in named if _OFFICIAL[split].fullmatch(path.stem.removesuffix(ANNOTATED))]
        cases = pair(*_divided(own), defects, ANNOTATED)
    if not cases and not defects:
        defects.append(Defect(root, f"has no image to {split} on; expected {_EXPECTED}"))
    return cases, defects


def _halves(folder: Path, defects: list[Defect]) -> tuple[list[Path], list[Path]]:
    """The images and the masks of a split."""
    images, masks = (next((folder / name for name in names if (folder / name).is_dir()), None) for names in _FOLDERS)
    if images and masks:
        return files_in(images, defects), files_in(masks, defects)
    if images or masks:
        lacking = _FOLDERS[1] if images else _FOLDERS[0]
        raise FileNotFoundError(f"{folder}: has no {' or '.join(lacking)}; expected {_EXPECTED}")
    return _divided(files_in(folder, defects))


def _divided(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    masks = [path for path in files if path.stem.endswith(ANNOTATED)]
    return [path for path in files if path not in masks], masks


def _repeated(cases: Mapping[Case, str]) -> list[Defect]:
    """Images that are in two splits, and those that train and validate under one name."""
    names: dict[str, Path] = {}
    contents: dict[bytes, tuple[str, Path]] = {}
    defects = []
    for case, split in cases.items():
        path = case.images[0]
        other = names.setdefault(case.name, path) if split != "test" else path
        if other != path:
            defects.append(Defect(path, f"has the name of {other}; expected one of each, rename one"))
        its_split, twin = contents.setdefault(sha256(path.read_bytes()).digest(), (split, path))
        if its_split != split:
            what = f"is the same image as {twin}; expected it in one split, or the test measures what was memorized"
            defects.append(Defect(path, what))
    return defects
