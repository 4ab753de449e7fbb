"""The ACDC layout: npz slices to train and validate on, npz volumes to test on, lists of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from datasets.base import Defect, Defects, Geometry, Sample, Slices, Volume, require_listed
from datasets.synapse import read_npz, read_npz_geometry, write_npz

CLASSES = ("right ventricle", "myocardium", "left ventricle")
PHASES = ("ED", "ES")  # end of diastole, when the heart is widest, and end of systole

_KEY = "img"  # of the image, in a file
_CASE = re.compile(r"case_\d+")
_SLICE = re.compile(r"(case_\d+)_slice(ED|ES)_(\d+)")
_VOLUME = re.compile(r"(case_\d+)_volume_(ED|ES)")


def slice_name(case: str, phase: str, index: int) -> str:
    """Name of one slice, as the published lists write it: `case_001_sliceED_0`."""
    return f"{case}_slice{phase}_{index}"


def volume_name(case: str, phase: str) -> str:
    """Name of one volume, as the published lists write it: `case_002_volume_ED`."""
    return f"{case}_volume_{phase}"


def case_of(name: str) -> str:
    """The case, a patient, that a slice or a volume belongs to: `case_019` of `case_019_sliceED_3`, and `patient101` of
    `patient101_frame01`."""
    found = re.match(r"(case_|patient)\d+", name)
    return found[0] if found else name.split("_slice")[0].split("_volume")[0]


def volume_of(name: str) -> str:
    """The volume that a slice belongs to, or that a file of a volume holds: `case_019_ED` of `case_019_sliceED_3`."""
    found = _SLICE.fullmatch(name) or _VOLUME.fullmatch(name)
    return f"{found[1]}_{found[2]}" if found else name


def write(
    path: Path, image: np.ndarray, label: np.ndarray, geometry: Geometry | None = None, *, oriented: bool = True
) -> None:
    """Write a slice (H, W) or a volume (D, H, W) and, where it is known, the volume's geometry beside it.

    `oriented` says whether it is known where the geometry's axes point; see `datasets.synapse.says_axes`.
    """
    write_npz(path, image, label, geometry, _KEY, oriented=oriented)


def listed_files(folder: Path, names: Sequence[str], kind: re.Pattern[str]) -> list[Path]:
    """The files that the entries of a list stand for, in its order.

    An entry is a file's name, with or without `.npz`, or a case such as `case_001`, which stands for all its files of
    the kind that are in the folder: by phase, then by the number of the slice.

    Raises:
        FileNotFoundError: a file that is named, or one that a case must have, is not there.
        ValueError: a file is named more than once.
    """
    of_case: dict[str, list[str]] = {}
    if any(_CASE.fullmatch(name) for name in names):
        for stem in sorted((path.stem for path in folder.glob("*.npz") if kind.fullmatch(path.stem)), key=_place):
            of_case.setdefault(case_of(stem), []).append(stem)
    files: list[Path] = []
    for name in names:
        if _CASE.fullmatch(name):
            _require_case(folder, name, of_case.get(name, []), kind)
            files += [folder / f"{stem}.npz" for stem in of_case[name]]
        else:
            files.append(folder / f"{name.removesuffix('.npz')}.npz")
    repeated = next((path for path, count in Counter(files).items() if count > 1), None)
    if repeated:
        raise ValueError(f"{repeated}: is named in the list more than once; expected every file once (--list_dir)")
    require_listed(files)
    return files


def _require_case(folder: Path, case: str, stems: Sequence[str], kind: re.Pattern[str]) -> None:
    """See that nothing is missing of a case that a list names as a whole: no phase, no slice below the last one."""
    missing = []
    for phase in PHASES:
        first = volume_name(case, phase) if kind is _VOLUME else slice_name(case, phase, 0)
        of_phase = [stem for stem in stems if volume_of(stem) == volume_of(first)]
        missing += missing_slices(of_phase) if of_phase else [first]
    if missing:
        raise FileNotFoundError(
            f"{folder / missing[0]}.npz: is not there, but the list names {case}; make it with "
            "scripts/prepare_acdc.py, or mend the list (--list_dir)"
        )


def missing_slices(names: Sequence[str]) -> list[str]:
    """The slices below the last of one volume that are not among its `names`."""
    found = [match for match in map(_SLICE.fullmatch, names) if match]
    if not found:
        return []
    numbers = {int(match[3]) for match in found}
    return [slice_name(found[0][1], found[0][2], index) for index in range(max(numbers)) if index not in numbers]


def _place(name: str) -> tuple[str, int, str]:
    """Where a file comes in the order of a volume's slices: slice 10 comes after slice 9."""
    found = _SLICE.fullmatch(name)
    return (volume_of(name), int(found[3]) if found else 0, name)


class AcdcSlices(Dataset):
    """The slices that a list names, as `Sample`s, each file checked as it is read.

    Args:
        folder: where the files lie.
        names: as in `listed_files`.
        num_classes: K; labels outside 0..K-1 are refused as a file is read.
    """

    def __init__(self, folder: Path, names: Sequence[str], num_classes: int) -> None:
        self.num_classes = num_classes
        self.files = listed_files(folder, names, _SLICE)
        self.names = [path.stem for path in self.files]

    def __add__(self, other: AcdcSlices) -> AcdcSlices:
        """These slices and then those, of two folders."""
        both = copy(self)
        both.files, both.names = self.files + other.files, self.names + other.names
        return both

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        return Sample(*read_npz(self.files[index], self.num_classes, _KEY, 2), self.names[index])


class AcdcVolumes(Sequence):
    """The volumes that a list names, with their geometry where a file holds it, read when they are asked for.

    Args:
        folder, names, num_classes: as of `AcdcSlices`.
    """

    def __init__(self, folder: Path, names: Sequence[str], num_classes: int) -> None:
        self.num_classes = num_classes
        self.files = listed_files(folder, names, _VOLUME)
        self.cases = [volume_of(path.stem) for path in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Volume:
        path = self.files[index]
        image, label = read_npz(path, self.num_classes, _KEY, 3)
        return Volume(self.cases[index], image, label, read_npz_geometry(path))


class AcdcStacks(Sequence):
    """Slices put back together as volumes of one phase, with their geometry, for validation.

    Args:
        slices: `AcdcSlices`, or what keeps them in a cache.

    Raises:
        Defects: a volume lacks slices between its first and the last that there is.
    """

    def __init__(self, slices: Slices) -> None:
        self.slices, source = slices, getattr(slices, "source", slices)
        self.num_classes = source.num_classes
        by_volume: dict[str, list[int]] = {}
        for index in sorted(range(len(source.names)), key=lambda index: _place(source.names[index])):
            by_volume.setdefault(volume_of(source.names[index]), []).append(index)
        self.groups = list(by_volume.items())
        self.names = list(by_volume)
        self.cases = list(dict.fromkeys(case_of(name) for name in self.names))
        self.files = [source.files[members[0]] for _, members in self.groups]
        # Across a hole the distances would be wrong.
        what = "is not among the slices of its volume; expected all from 0 to the last, so list it, or none of them"
        defects = [
            Defect(path.with_name(f"{name}.npz"), what)
            for path, (_, members) in zip(self.files, self.groups, strict=True)
            for name in missing_slices([source.names[index] for index in members])
        ]
        if defects:
            raise Defects("validation", defects)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Volume:
        name, members = self.groups[index]
        samples = [self.slices[member] for member in members]
        shapes = {sample.image.shape for sample in samples}
        if len(shapes) > 1:
            sizes = ", ".join(map(str, sorted(shapes)))
            raise ValueError(f"{self.files[index]}: {name} has slices of {sizes}; expected one size, make them again")
        image, label = np.stack([sample.image for sample in samples]), np.stack([sample.label for sample in samples])
        return Volume(name, image, label, read_npz_geometry(self.files[index]))
