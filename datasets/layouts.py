"""How the files of a data set lie in its folder: names by part, and what is read of them.

Adding a data set is adding a layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from datasets import acdc, folder, histology, synapse
from datasets.base import Defect, Defects, Slices, Volume, Volumes, brief, read_list, require_listed, shorten
from datasets.cache import CachedSlices
from datasets.intensity import Intensity, Reading
from datasets.pairs import IMAGES, LABELS, NAME, Pair, find_pairs
from datasets.readers.orientation import check_axes, orientation, reorient_volume
from datasets.synapse import StackedSlices, SynapseSlices, SynapseVolumes
from datasets.volumes import CachedVolumes, VolumePairs

PREPARED = "prepared.json"  # beside the lists: what the scripts say of the files they made
_ANY_CLASS = 256  # labels are not looked at


class Layout(Protocol):
    """A data set in its folder.

    `parts` are the folders in it that may be given in its place, and `val_list` is the list of what validates, whose
    names are in no other list if it `val_is_apart`; `ships_a_split` says whether `datasets/splits` names its cases.
    """

    parts: tuple[str, ...]
    val_list: str
    val_is_apart: bool
    ships_a_split: bool

    def names(self, part: str) -> list[str]:
        """The names in the list of "train", "val" or "test"; none where there is no such list.

        Raises:
            FileNotFoundError: the list of "train" or "test" is not there.
        """

    @staticmethod
    def case_of(name: str) -> str:
        """The case that a training name belongs to, which is never divided."""

    def slices(self, names: Sequence[str], cache: str) -> Slices:
        """The training slices of these names, from `cache` where it names a folder."""

    def cases(self, names: Sequence[str], cache: str) -> Sequence[Volume]:
        """The same as whole labelled cases, to validate or, of a fold, to test on."""

    def tests(self, names: Sequence[str]) -> Sequence[Volume]:
        """The cases of the test list."""

    @staticmethod
    def look_through(root: Path, lists: Path, **how: Any) -> dict[str, Any]:
        """What the files say of themselves, by configuration key; `how` as in `datasets.look_through`."""


def _cached(slices: Slices, cache: str, settings: str = "") -> Slices:
    return CachedSlices(slices, cache, settings) if cache and len(slices) else slices


class _Turned(Sequence):
    """Volumes whose axes are turned as those of the training volumes point, where both are known."""

    def __init__(self, volumes: Volumes, files: Sequence[Path], towards: str) -> None:
        self.volumes, self.files, self.towards = volumes, files, towards

    @property
    def cases(self) -> list[str]:
        """Their names."""
        return self.volumes.cases

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> Volume:
        volume = self.volumes[index]
        return (
            reorient_volume(volume, self.towards) if self.towards and synapse.says_axes(self.files[index]) else volume
        )


class _InLists:
    """What layouts have in common whose lists name files."""

    val_list = "val.txt"
    val_is_apart = True
    test_list = "test.txt"
    parts: tuple[str, ...] = ()
    ships_a_split = True

    def __init__(self, root: Path, lists: Path, num_classes: int, reading: Reading) -> None:
        self.root, self.lists, self.num_classes, self.reading = root, lists, num_classes, reading

    def names(self, part: str) -> list[str]:
        path = self.lists / {"train": "train.txt", "val": self.val_list, "test": self.test_list}[part]
        return read_list(path) if part != "val" else _read(path)

    def folder(self, part: str) -> Path:
        """The folder of one part; the root may be that folder itself, as some published commands have it."""
        beside = self.root.parent / part
        is_part = self.root.name in self.parts and not (self.root / part).is_dir()
        return beside if is_part and (beside.is_dir() or self.root.name == part) else self.root / part

    @classmethod
    def look_through(cls, root: Path, lists: Path, **how: Any) -> dict[str, Any]:
        """How the volumes were scaled, where that was written, and where their axes point, where all say so alike.

        Raises:
            ValueError: a case that trains or validates is tested on, too.
        """
        layout = cls(root, lists, _ANY_CLASS, Reading())
        names = layout.names("train")
        layout.check_apart([*names, *layout.names("val")])
        slices = layout.slices(names, "")
        first = {layout.case_of(name): path for name, path in zip(slices.names, slices.files, strict=True)}
        found = {_axes(path) for path in first.values()}
        axes = {"DATA.ORIENTATION": found.pop()} if len(found) == 1 else {}
        return axes | _prepared(lists / PREPARED)

    def check_apart(self, names: Sequence[str]) -> None:
        """Refuse cases that train or validate and are in the list of the test, too."""
        tests = self.lists / self.test_list
        tested = {self.case_of(name.removesuffix(".h5").removesuffix(".npy")) for name in _read(tests)}
        both = sorted(tested & {self.case_of(name) for name in names})
        if both:
            raise ValueError(
                f"{tests}: names {shorten(', '.join(both))}, which train or validate; expected a case in one list, or "
                "the test measures what was learnt by heart"
            )


class SynapseLayout(_InLists):
    """`train_npz/caseNNNN_sliceSSS.npz` and `test_vol_h5/caseNNNN.npy.h5`."""

    parts = ("train_npz", "test_vol_h5")
    val_is_apart = False
    test_list = "test_vol.txt"
    case_of = staticmethod(synapse.case_of)

    def slices(self, names: Sequence[str], cache: str) -> Slices:
        return _cached(SynapseSlices(self.folder("train_npz"), names, self.num_classes), cache)

    def cases(self, names: Sequence[str], cache: str) -> Sequence[Volume]:
        return StackedSlices(self.slices(names, cache))

    def tests(self, names: Sequence[str]) -> Sequence[Volume]:
        volumes = SynapseVolumes(self.folder("test_vol_h5"), names, self.num_classes)
        return _Turned(volumes, volumes.paths, self.reading.orientation)


class AcdcLayout(_InLists):
    """`train/` and `valid/case_NNN_sliceED_K.npz`, `test/case_NNN_volume_ED.npz`."""

    parts = ("train", "valid", "test")
    val_list = "valid.txt"
    case_of = staticmethod(acdc.case_of)

    def names(self, part: str) -> list[str]:
        return [name.removesuffix(".npz") for name in super().names(part)]

    def slices(self, names: Sequence[str], cache: str) -> Slices:
        validates = set(self.names("val"))
        parts = ([n for n in names if (n in validates) == wanted] for wanted in (False, True))
        train, valid = (
            acdc.AcdcSlices(self.folder(part), some, self.num_classes)
            for part, some in zip(("train", "valid"), parts, strict=True)
        )
        return _cached(train + valid, cache)

    def cases(self, names: Sequence[str], cache: str) -> Sequence[Volume]:
        return acdc.AcdcStacks(self.slices(names, cache))

    def tests(self, names: Sequence[str]) -> Sequence[Volume]:
        volumes = acdc.AcdcVolumes(self.folder("test"), names, self.num_classes)
        return _Turned(volumes, volumes.files, self.reading.orientation)


class PictureLayout:
    """Pictures with masks in folders of their own for each part; lists, where the data has some, choose among them."""

    parts: tuple[str, ...] = ()
    val_list = "val.txt"
    val_is_apart = True
    ships_a_split = False
    case_of = staticmethod(str)  # a name is a case
    instances = False  # whether masks number objects

    def __init__(self, root: Path, lists: Path, num_classes: int, reading: Reading) -> None:
        _check_range(reading)
        self.root, self.lists, self.reading = root, lists, reading
        self._pairs: dict[str, Pair] = {}

    def names(self, part: str) -> list[str]:
        found = {pair.name: pair for pair in self._part(part)}
        self._pairs |= found
        path = self.lists / f"{part}.txt"
        if not path.is_file():
            return list(found)
        names = read_list(path, NAME)
        require_listed(self.root / part / name for name in names if name not in self._pairs)
        return names

    def slices(self, names: Sequence[str], cache: str) -> Slices:
        pairs = [self._pairs[name] for name in names]
        slices = histology.PictureSlices(pairs, label_values=self.reading.label_values, **self._how())
        return _cached(slices, cache, str(self.reading))

    def cases(self, names: Sequence[str], cache: str) -> Sequence[Volume]:
        return histology.PictureVolumes(self.slices(names, cache))

    def tests(self, names: Sequence[str]) -> Sequence[Volume]:
        return self.cases(names, "")

    def _how(self) -> dict[str, Any]:
        return {"channels": self.reading.channels, "instances": self.instances}

    def _part(self, part: str) -> list[Pair]:
        return histology.find_pairs(self.root, part, **self._how())

    @classmethod
    def look_through(cls, root: Path, lists: Path, *, progress: Any = iter, **how: Any) -> dict[str, Any]:
        """What the masks hold; every picture of every part is read, and none may be in two parts.

        Raises:
            FileNotFoundError: there is no part to train on.
            Defects: all that is wrong with the files, or two that train and validate have one name.
        """
        layout = cls(root, lists, 2, Reading((0, 255), 3, Intensity("range")))
        pairs, defects = layout._all_pairs()
        table, more = histology.look_at_all(list(pairs), instances=cls.instances, progress=progress)
        defects += [*more, *histology.told_twice(pairs)]
        if defects:
            raise Defects(root, defects)
        return {} if cls.instances else {"DATA.LABEL_VALUES": list(table)}

    def _all_pairs(self) -> tuple[dict[Pair, str], list[Defect]]:
        """Every pair with its part, and what is wrong with them at first sight; training does without a test."""
        found: dict[Pair, str] = {}
        defects: list[Defect] = []
        for part in ("train", "val", "test"):
            try:
                pairs, more = histology.look_for_pairs(self.root, part, **self._how())
            except FileNotFoundError:
                if part != "test":
                    raise
                continue
            found |= dict.fromkeys(pairs, part)
            defects += more
        return found, defects


class GlasLayout(PictureLayout):
    """The same, whose masks number the glands."""

    instances = True


class FolderLayout:
    """`images/` and `labels/` of one's own, pictures or volumes; a name in a list is a case."""

    parts = (IMAGES, LABELS)
    val_list = "val.txt"
    val_is_apart = True
    ships_a_split = False
    case_of = staticmethod(str)  # a name is a case

    def __init__(self, root: Path, lists: Path, num_classes: int, reading: Reading) -> None:
        self.root, self.reading = root, reading
        self.pairs = {pair.name: pair for pair in find_pairs(root)}
        self.are_volumes = next(iter(self.pairs.values())).is_volume
        if not self.are_volumes:
            _check_range(reading)
        self.listed = folder.read_parts(lists)

    def names(self, part: str) -> list[str]:
        return self.listed[part]

    def slices(self, names: Sequence[str], cache: str) -> Slices:
        pairs = self._of(names)
        if not self.are_volumes:
            how = {"label_values": self.reading.label_values, "channels": self.reading.channels}
            slices = histology.PictureSlices(pairs, **how)
            cached = _cached(slices, cache, str(self.reading))
            cached.looked_at = True
            return cached
        # Unpacking a volume for every slice of it would take longer than training on it.
        cached = CachedVolumes(pairs, self.reading, cache or self.root / "cache")
        cached.looked_at = True
        return cached

    def cases(self, names: Sequence[str], cache: str) -> Sequence[Volume]:
        if self.are_volumes:
            return VolumePairs(self._of(names), self.reading)
        return histology.PictureVolumes(self.slices(names, cache))

    def tests(self, names: Sequence[str]) -> Sequence[Volume]:
        return self.cases(names, "")

    def _of(self, names: Sequence[str]) -> list[Pair]:
        require_listed(self.root / IMAGES / name for name in names if name not in self.pairs)
        return [self.pairs[name] for name in names]

    @staticmethod
    def look_through(root: Path, lists: Path, **how: Any) -> dict[str, Any]:
        """All that the files say of themselves."""
        return folder.look_through(root, lists, **how).keys()


def _check_range(reading: Reading) -> None:
    if reading.intensity.how != "range":
        how = f"DATA.INTENSITY is {reading.intensity.how}"
        raise ValueError(f"{how}; expected range: pictures are scaled by what their bits hold")


def _axes(npz: Path) -> str:
    try:
        geometry = synapse.read_npz_geometry(npz)
    except ValueError:  # a bad file is told with the others, later
        return ""
    return orientation(geometry) if geometry and synapse.says_axes(npz) else ""


def _prepared(path: Path) -> dict[str, Any]:
    """What a preparing script wrote of intensities and axes, by configuration key.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        how = Intensity(known["intensity"], tuple(known["window"] or Intensity().window))
        check_axes(known["axis_order"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: is not understood ({brief(error)}); prepare the data again, or remove it") from None
    return {"DATA.INTENSITY": how.how, "DATA.WINDOW": list(how.window), "DATA.AXIS_ORDER": known["axis_order"]}


def _read(path: Path) -> list[str]:
    """The names in a list; none where it is not there, or empty."""
    return read_list(path) if path.is_file() and path.stat().st_size else []


LAYOUTS: dict[str, type[Layout]] = {
    "Synapse": SynapseLayout,
    "Phantom": SynapseLayout,
    "ACDC": AcdcLayout,
    "GlaS": GlasLayout,
    "MoNuSeg": PictureLayout,
    "Folder": FolderLayout,
}
