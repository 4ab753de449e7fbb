"""ACDC: `train/` and `valid/case_NNN_sliceED_K.npz` to train on, `test/case_NNN_volume_ED.npz` to test on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.case import Case, Geometry
from datasets.readers.arrays import write_arrays
from datasets.sets.synapse import ArraySet
from datasets.splits import require_listed

CLASSES = ("right ventricle", "myocardium", "left ventricle")
PHASES = ("ED", "ES")  # end of diastole, when the heart is widest, and end of systole

_CASE = re.compile(r"case_\d+")
_SLICE = re.compile(r"(case_\d+)_slice(ED|ES)_(\d+)")
_VOLUME = re.compile(r"(case_\d+)_volume_(ED|ES)")


def slice_name(case: str, phase: str, index: int) -> str:
    """Name of one slice, as the published lists write it: `case_001_sliceED_0`."""
    return f"{case}_slice{phase}_{index}"


def volume_name(case: str, phase: str) -> str:
    """Name of one volume, as the published lists write it: `case_002_volume_ED`."""
    return f"{case}_volume_{phase}"


def write(path: Path, image: np.ndarray, label: np.ndarray, geometry: Geometry | None = None) -> None:
    """Write a slice (H, W) or a volume (D, H, W) as npz, with the geometry of the volume where it is known."""
    write_arrays(path, {"img": image, "label": label}, geometry)


class Acdc(ArraySet):
    """The layout of this line of papers; a list names files, or cases such as `case_001`, which stand for theirs."""

    classes = CLASSES
    made_by = "prepare_acdc.py"
    folders = ("train", "valid", "test")
    lists_of = {"train": "train.txt", "val": "valid.txt", "test": "test.txt"}
    image = "img"

    def names(self, split: str) -> list[str]:
        return [name.removesuffix(".npz") for name in super().names(split)]

    def group_of(self, name: str) -> str:
        """The patient: `case_019` of `case_019_sliceED_3`, and `patient101` of `patient101_frame01`."""
        found = re.match(r"(case_|patient)\d+", name)
        return found[0] if found else name.split("_slice")[0].split("_volume")[0]

    def volume_of(self, name: str) -> str:
        """`case_019_ED` of `case_019_sliceED_3` and of `case_019_volume_ED`."""
        found = _SLICE.fullmatch(name) or _VOLUME.fullmatch(name)
        return f"{found[1]}_{found[2]}" if found else name

    def missing(self, names: Sequence[str]) -> list[str]:
        return missing_slices(names)

    def cases(self, names: Sequence[str], split: str) -> list[Case]:
        if split == "test":
            paths = self._files(self.folder("test"), names, _VOLUME)
            return [Case(self.volume_of(path.stem), (path,)) for path in paths]
        validates = set(self.names("val"))
        train, valid = ([n for n in names if (n in validates) == wanted] for wanted in (False, True))
        paths = self._files(self.folder("train"), train, _SLICE) + self._files(self.folder("valid"), valid, _SLICE)
        return [Case(path.stem, (path,)) for path in paths]

    def _files(self, folder: Path, names: Sequence[str], kind: re.Pattern[str]) -> list[Path]:
        """The files of list entries, in order; those of a case by phase, then by the number of the slice."""
        of_case: dict[str, list[str]] = {}
        if any(_CASE.fullmatch(name) for name in names):
            stems = [path.stem for path in folder.glob("*.npz") if kind.fullmatch(path.stem)]
            for stem in sorted(stems, key=lambda stem: (self.volume_of(stem), slice_number(stem))):
                of_case.setdefault(self.group_of(stem), []).append(stem)
        stems = []
        for name in names:
            found = of_case.get(name, [])
            stems += found or [name]
            if _CASE.fullmatch(name):
                self._require_whole(folder, name, found, kind)
        repeated = next((stem for stem, count in Counter(stems).items() if count > 1), None)
        if repeated:
            path = folder / f"{repeated}.npz"
            raise ValueError(f"{path}: is named in the list more than once; expected every file once (--list_dir)")
        paths = [folder / f"{stem}.npz" for stem in stems]
        require_listed(paths)
        return paths

    def _require_whole(self, folder: Path, case: str, stems: Sequence[str], kind: re.Pattern[str]) -> None:
        """See that no phase is missing of a case that a list names as a whole, and no slice below the last one."""
        missing = []
        for phase in PHASES:
            first = volume_name(case, phase) if kind is _VOLUME else slice_name(case, phase, 0)
            of_phase = [stem for stem in stems if self.volume_of(stem) == self.volume_of(first)]
            missing += missing_slices(of_phase) if of_phase else [first]
        if missing:
            raise FileNotFoundError(
                f"{folder / missing[0]}.npz: is not there, but the list names {case}; make it with "
                "scripts/prepare_acdc.py, or fix the list (--list_dir)"
            )


def slice_number(name: str) -> int:
    """The number of a slice in its volume, 0 of another name."""
    found = _SLICE.fullmatch(name)
    return int(found[3]) if found else 0


def missing_slices(names: Sequence[str]) -> list[str]:
    """The slices below the last of one volume that are not among its `names`."""
    found = [match for match in map(_SLICE.fullmatch, names) if match]
    numbers = {int(match[3]) for match in found}
    return [
        slice_name(found[0][1], found[0][2], index) for index in range(max(numbers, default=0)) if index not in numbers
    ]
