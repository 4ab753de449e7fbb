"""How the files of a data set lie in its folder: names by part, and what is read of them.

Adding a data set is adding a layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from datasets import acdc, folder, histology, synapse
from datasets.axes import orientation, turned
from datasets.base import Slices, Volume, read_list, require_listed
from datasets.cache import CachedSlices
from datasets.intensity import Reading
from datasets.synapse import StackedSlices, SynapseSlices, SynapseVolumes
from datasets.volumes import VolumePairs, VolumeSlices

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

    def case_of(self, name: str) -> str:
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

    def __init__(self, volumes: Sequence[Volume], towards: str) -> None:
        self.volumes, self.towards = volumes, towards

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> Volume:
        return turned(self.volumes[index], self.towards)


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
        return read_list(path) if part != "val" or path.is_file() else []

    def folder(self, part: str) -> Path:
        """The folder of one part; the root may be that folder itself, as some published commands have it."""
        inside = self.root / part
        return inside if inside.is_dir() or self.root.name != part else self.root

    @classmethod
    def look_through(cls, root: Path, lists: Path, **how: Any) -> dict[str, Any]:
        """Where the axes of the training volumes point, where all their files say so and alike."""
        layout = cls(root, lists, _ANY_CLASS, Reading())
        slices = layout.slices(layout.names("train"), "")
        first = {layout.case_of(name): path for name, path in zip(slices.names, slices.files, strict=True)}
        found = {_axes(path) for path in first.values()}
        return {"DATA.ORIENTATION": found.pop()} if len(found) == 1 else {}


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
        return _Turned(volumes, self.reading.orientation)


class AcdcLayout(_InLists):
    """`train/` and `valid/case_NNN_sliceED_K.npz`, `test/case_NNN_volume_ED.npz`."""

    parts = ("train", "valid", "test")
    val_list = "valid.txt"
    case_of = staticmethod(acdc.case_of)

    def __init__(self, *where: Any) -> None:
        super().__init__(*where)
        self._validates: set[str] = set()

    def names(self, part: str) -> list[str]:
        names = [name.removesuffix(".npz") for name in super().names(part)]
        self._validates |= set(names) if part == "val" else set()
        return names

    def slices(self, names: Sequence[str], cache: str) -> Slices:
        parts = ([n for n in names if (n in self._validates) == validates] for validates in (False, True))
        train, valid = (
            acdc.AcdcSlices(self.folder(part), some, self.num_classes)
            for part, some in zip(("train", "valid"), parts, strict=True)
        )
        return _cached(train + valid, cache)

    def cases(self, names: Sequence[str], cache: str) -> Sequence[Volume]:
        return acdc.AcdcStacks(self.slices(names, cache))

    def tests(self, names: Sequence[str]) -> Sequence[Volume]:
        volumes = acdc.AcdcVolumes(self.folder("test"), names, self.num_classes)
        return _Turned(volumes, self.reading.orientation)


class PictureLayout:
    """Pictures with masks in folders of their own for each part; lists, where the data has some, choose among them."""

    parts: tuple[str, ...] = ()
    val_list = "val.txt"
    val_is_apart = True
    ships_a_split = False
    instances = False  # whether masks number objects

    def __init__(self, root: Path, lists: Path, num_classes: int, reading: Reading) -> None:
        self.root, self.lists, self.reading = root, lists, reading
        self._pairs: dict[str, folder.Pair] = {}

    def names(self, part: str) -> list[str]:
        found = {pair.name: pair for pair in histology.find_pairs(self.root, part, **self._how())}
        self._pairs |= found
        path = self.lists / f"{part}.txt"
        if not path.is_file():
            return list(found)
        names = read_list(path, folder.NAME)
        require_listed(self.root / part / name for name in names if name not in self._pairs)
        return names

    def case_of(self, name: str) -> str:
        return name

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

    @staticmethod
    def look_through(root: Path, lists: Path, **how: Any) -> dict[str, Any]:
        """Nothing: what an official data set holds is known."""
        return {}


class GlasLayout(PictureLayout):
    """The same, whose masks number the glands."""

    instances = True


class FolderLayout:
    """`images/` and `labels/` of one's own, pictures or volumes; a name in a list is a case."""

    parts = (folder.IMAGES, folder.LABELS)
    val_list = "val.txt"
    val_is_apart = True
    ships_a_split = False

    def __init__(self, root: Path, lists: Path, num_classes: int, reading: Reading) -> None:
        self.root, self.reading = root, reading
        self.pairs = {pair.name: pair for pair in folder.find_pairs(root)}
        self.are_volumes = next(iter(self.pairs.values())).is_volume
        self.listed = folder.read_parts(lists)

    def names(self, part: str) -> list[str]:
        return self.listed[part]

    def case_of(self, name: str) -> str:
        return name

    def slices(self, names: Sequence[str], cache: str) -> Slices:
        pairs = self._of(names)
        if not self.are_volumes:
            how = {"label_values": self.reading.label_values, "channels": self.reading.channels}
            slices = histology.PictureSlices(pairs, **how)
            slices.looked_at = True
            return _cached(slices, cache, str(self.reading))
        # Unpacking a volume for every slice of it would take longer than training on it.
        return _cached(VolumeSlices(pairs, self.reading), cache or str(self.root / "cache"), str(self.reading))

    def cases(self, names: Sequence[str], cache: str) -> Sequence[Volume]:
        if self.are_volumes:
            return VolumePairs(self._of(names), self.reading)
        return histology.PictureVolumes(self.slices(names, cache))

    def tests(self, names: Sequence[str]) -> Sequence[Volume]:
        return self.cases(names, "")

    def _of(self, names: Sequence[str]) -> list[folder.Pair]:
        require_listed(self.root / folder.IMAGES / name for name in names if name not in self.pairs)
        return [self.pairs[name] for name in names]

    @staticmethod
    def look_through(root: Path, lists: Path, **how: Any) -> dict[str, Any]:
        """All that the files say of themselves."""
        return folder.look_through(root, lists, **how).keys()


def _axes(npz: Path) -> str:
    try:
        geometry = synapse.read_npz_geometry(npz)
    except ValueError:  # a bad file is told with the others, later
        return ""
    return orientation(geometry) if geometry else ""


LAYOUTS: dict[str, type[Layout]] = {
    "Synapse": SynapseLayout,
    "Phantom": SynapseLayout,
    "ACDC": AcdcLayout,
    "GlaS": GlasLayout,
    "MoNuSeg": PictureLayout,
    "Folder": FolderLayout,
}
