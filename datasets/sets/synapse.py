"""Synapse: `train_npz/caseNNNN_sliceSSS.npz` to train on, `test_vol_h5/caseNNNN.npy.h5` to test on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets.case import Case, DataSet, Facts, Geometry, Volume
from datasets.errors import BadFile, Defects, brief
from datasets.intensity import Intensity, check_image
from datasets.label_values import check_label
from datasets.readers.arrays import GEOMETRY, geometry_from, read_arrays, read_shapes, write_arrays
from datasets.readers.grid import check_axes, reorient_volume
from datasets.splits import require_listed
from datasets.verify import SAMPLE, leakage, verify

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
PREPARED = "prepared.json"  # beside the lists: how scripts/prepare.py scaled the files it made


def slice_path(folder: Path, name: str) -> Path:
    """File of the slice `name`."""
    return folder / f"{name}.npz"


def volume_path(folder: Path, name: str) -> Path:
    """File of the volume `name`; a list may write the name with or without `.npy.h5`."""
    return folder / f"{name.removesuffix('.h5').removesuffix('.npy')}.npy.h5"


def write(path: Path, image: np.ndarray, label: np.ndarray, geometry: Geometry | None = None) -> None:
    """Write a slice (H, W) as npz or a volume (D, H, W) as h5, with the geometry of the volume where it is known."""
    write_arrays(path, {"image": image, "label": label}, geometry)


class ArraySet(DataSet):
    """Slices and volumes that scripts/prepare.py wrote, an image and its label in one file; its lists name files."""

    ships_split = True
    image: ClassVar[str] = "image"  # its name in a file

    def folder(self, name: str) -> Path:
        """One of `folders`; the root may be one itself, as some published commands have it."""
        beside = self.root.parent / name
        is_one = self.root.name in self.folders and not (self.root / name).is_dir()
        return beside if is_one and (beside.is_dir() or self.root.name == name) else self.root / name

    def read(self, case: Case) -> Volume:
        (path,) = case.images
        # A slice is read once a step: where it lies is read where that is asked for.
        is_slice = self._ndim(case) == 2
        stored = read_arrays(path, (self.image, "label"), () if is_slice else GEOMETRY)
        pair, how = (stored[self.image], stored["label"]), self.how
        image, label = _check_pair(*pair, self.num_classes, self._ndim(case), path, how.ignore)
        volume = Volume(case.name, _stacked(image), _stacked(label), geometry_from(stored, path), source=path)
        towards = how.orientation if image.ndim == 3 and volume.geometry and volume.geometry.oriented else ""
        return reorient_volume(volume, towards)

    def geometry_of(self, case: Case) -> Geometry | None:
        return read_shapes(case.images[0], ())[1]

    def header(self, case: Case) -> Facts:
        (path,) = case.images
        shapes, geometry = read_shapes(path, (self.image, "label"))
        image, label = shapes.values()
        if image != label or len(image) != self._ndim(case) or 0 in image:
            raise BadFile(
                f"{path}: '{self.image}' has shape {image} and 'label' {label}; expected {self._ndim(case)} dimensions "
                "and the same shape"
            )
        return Facts((1, *image)[-3:]).located(geometry)

    def inspect(self, case: Case) -> Facts:
        facts, header = super().inspect(case), self.header(case)
        return facts._replace(spacing=header.spacing, axes=header.axes)

    def _ndim(self, case: Case) -> int:
        return 3 if case.images[0].parent == self.folder(self.folders[-1]) else 2

    def inspect_all(self, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> dict[str, Any]:
        """Read a sample of what trains and validates, and all headers; returns, by configuration key, where axes point,
        where all files say so alike, and how intensities were scaled, where that was written.

        Raises:
            Defects: all that is wrong with the files and the lists.
            ValueError: what was written of the scaling is damaged; the message names it.
        """
        if defects := leakage(self):
            raise Defects(self.root, defects)
        cases = self.cases(self.training_names(), "train")
        facts = verify(self, cases, SAMPLE, progress=progress, threads=8).values()
        axes, path = {found.axes for found in facts}, self.lists / PREPARED
        keys: dict[str, Any] = {"DATA.ORIENTATION": axes.pop()} if len(axes) == 1 else {}
        if not path.is_file():
            return keys
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            how = Intensity(known["intensity"], tuple(known["window"] or Intensity().window))
            check_axes(known["axis_order"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path}: is not understood ({brief(error)}); prepare the data again, or remove it"
            ) from None
        return keys | {
            "DATA.INTENSITY": how.how,
            "DATA.WINDOW": list(how.window),
            "DATA.AXIS_ORDER": known["axis_order"],
        }


class Synapse(ArraySet):
    """The layout of TransUNet."""

    classes = ORGANS
    made_by = "prepare_synapse.py"
    splits_apart = False
    folders = ("train_npz", "test_vol_h5")
    lists_of = {"train": "train.txt", "val": "val.txt", "test": "test_vol.txt"}

    def group_of(self, name: str) -> str:
        return name.rsplit("_slice", 1)[0].removesuffix(".h5").removesuffix(".npy")

    volume_of = group_of

    def cases(self, names: Sequence[str], split: str) -> list[Case]:
        place = volume_path if split == "test" else slice_path
        folder = self.folder(self.folders[split == "test"])
        paths = [place(folder, name) for name in names]
        repeated = next((path for path, count in Counter(paths).items() if count > 1), None)
        if repeated:
            raise ValueError(f"{repeated}: is named in the list more than once; expected every case once (--list_dir)")
        require_listed(paths)
        return [Case(path.name.removesuffix(".npz").removesuffix(".npy.h5"), (path,)) for path in paths]


def _stacked(array: np.ndarray) -> np.ndarray:
    """A slice as a volume of one."""
    return array[None] if array.ndim == 2 else array


def _check_pair(
    image: np.ndarray, label: np.ndarray, num_classes: int, ndim: int, where: object, ignore: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Check an image and its label together; returns them as float32 and uint8."""
    if image.ndim != ndim:
        raise ValueError(f"{where}: 'image' has shape {image.shape}; expected {ndim} dimensions")
    if image.shape != label.shape:
        raise ValueError(f"{where}: 'image' has shape {image.shape} but 'label' {label.shape}; expected the same shape")
    return check_image(image, where), check_label(label, num_classes, where, ignore)
