"""The Synapse layout: npz slices to train on, h5 volumes to test on, lists that name them (SPEC section 6)."""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from torch.utils.data import Dataset

from datasets.base import Geometry, Sample, Volume, brief, check_pair, require_listed

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")

_SLICE_MARK = "_slice"
_VOLUME_SUFFIX = ".npy.h5"
_GEOMETRY_KEYS = ("spacing", "origin", "direction")


# np.load reports damage in as many ways as a zip file can be damaged; AttributeError is a bare .npy array.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError, OSError, AttributeError, TypeError),
    *(ValueError, NotImplementedError, MemoryError, SyntaxError, RuntimeError, tokenize.TokenError),
)


def slice_name(case: str, index: int) -> str:
    """Name of one slice of a case, as the published lists write it: `case0005_slice000`."""
    return f"{case}{_SLICE_MARK}{index:03d}"


def case_of(name: str) -> str:
    """The case that a slice belongs to."""
    return name.rsplit(_SLICE_MARK, 1)[0]


def slice_path(folder: Path, name: str) -> Path:
    """File of the slice `name`."""
    return folder / f"{name}.npz"


def volume_path(folder: Path, name: str) -> Path:
    """File of the volume `name`; a list may write the name with or without `.npy.h5`."""
    return folder / f"{name.removesuffix('.h5').removesuffix('.npy')}{_VOLUME_SUFFIX}"


def _geometry_arrays(geometry: Geometry) -> dict[str, np.ndarray]:
    arrays = {key: np.asarray(getattr(geometry, key), dtype=np.float64) for key in _GEOMETRY_KEYS}
    return arrays | {"affine": geometry.affine, "axis_order": np.bytes_(geometry.axis_order)}


def write_slice(path: Path, image: np.ndarray, label: np.ndarray, geometry: Geometry | None = None) -> None:
    """Write one slice: `image`, `label` (H, W) and, where it is known, the volume's geometry beside them."""
    extra = {} if geometry is None else _geometry_arrays(geometry)
    np.savez(path, image=image, label=label, **extra)


def write_volume(path: Path, image: np.ndarray, label: np.ndarray, geometry: Geometry | None = None) -> None:
    """Write one volume: `image`, `label` (D, H, W) and, where it is known, its geometry beside them."""
    with h5py.File(path, "w") as file:
        file["image"] = image
        file.create_dataset("label", data=label, compression="lzf")
        for key, value in ({} if geometry is None else _geometry_arrays(geometry)).items():
            file[key] = value


def _missing_array(path: Path, key: str, found: Sequence[str]) -> ValueError:
    return ValueError(f"{path}: holds no '{key}'; found {', '.join(found) or 'nothing'}, expected 'image' and 'label'")


def read_slice(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one npz slice as `(image, label)`, both (H, W), float32 and uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, lacks an array, or holds what cannot be trained on; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such slice; expected an npz file with 'image' and 'label'")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = file.files
            arrays = {key: file[key] for key in ("image", "label") if key in found}
    except _DAMAGE as error:
        raise ValueError(f"{path}: is not a readable npz file ({brief(error)}); make or copy it again") from error
    for key in ("image", "label"):
        if not isinstance(arrays.get(key), np.ndarray):
            raise _missing_array(path, key, found)
    return check_pair(arrays["image"], arrays["label"], num_classes, 2, path)


def read_volume(path: Path, num_classes: int) -> Volume:
    """Read one h5 volume, image (D, H, W) float32 and label uint8, with its geometry where the file holds one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, lacks an array, or holds what cannot be evaluated; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such volume; expected an h5 file with 'image' and 'label'")
    try:
        with h5py.File(path, "r") as file:
            for key in ("image", "label"):
                if not isinstance(file.get(key), h5py.Dataset):
                    raise _missing_array(path, key, list(file))
            image, label = file["image"][()], file["label"][()]
            stored = {key: np.asarray(file[key][()]) for key in (*_GEOMETRY_KEYS, "axis_order") if key in file}
    except (OSError, RuntimeError, KeyError, TypeError, MemoryError) as error:
        raise ValueError(f"{path}: is not a readable h5 file ({brief(error)}); make or copy it again") from error
    image, label = np.asarray(image), np.asarray(label)
    image, label = check_pair(image, label, num_classes, 3, path)
    return Volume(path.name.removesuffix(_VOLUME_SUFFIX), image, label, _geometry_from(stored, path))


def _geometry_from(stored: dict[str, np.ndarray], path: Path) -> Geometry | None:
    if not all(key in stored for key in _GEOMETRY_KEYS):
        return None
    try:
        values = {key: tuple(float(v) for v in stored[key].ravel()) for key in _GEOMETRY_KEYS}
        order = stored["axis_order"].item().decode() if "axis_order" in stored else "zyx"
        if [len(values[key]) for key in _GEOMETRY_KEYS] != [3, 3, 9] or sorted(order) != ["x", "y", "z"]:
            raise ValueError(f"{ {key: len(value) for key, value in values.items()} }, axis_order {order!r}")
        determinant = np.linalg.det(np.reshape(values["direction"], (3, 3)))
        if not np.isfinite(np.concatenate(list(values.values()))).all() or min(values["spacing"]) <= 0:
            raise ValueError("a spacing that is not positive, or a number that is not finite")
        if not 0.5 < abs(determinant) < 2:
            raise ValueError(f"directions of determinant {determinant:g}")
        return Geometry(**values, axis_order=order)
    except (ValueError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: its geometry is not understood ({brief(error)}); expected 'spacing' and 'origin' of 3 numbers, "
            "'direction' of 9 and 'axis_order' such as zxy"
        ) from error


class SynapseSlices(Dataset):
    """The slices that a list names, as `Sample`s, each file checked as it is read."""

    def __init__(self, folder: Path, names: Sequence[str], num_classes: int) -> None:
        self.folder, self.names, self.num_classes = folder, list(names), num_classes
        require_listed(slice_path(folder, name) for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        return Sample(*read_slice(slice_path(self.folder, name), self.num_classes), name)


class SynapseVolumes(Sequence):
    """The volumes that a list names, read one at a time when they are asked for."""

    def __init__(self, folder: Path, names: Sequence[str], num_classes: int) -> None:
        self.paths, self.num_classes = [volume_path(folder, name) for name in names], num_classes
        repeated = next((path for path, count in Counter(self.paths).items() if count > 1), None)
        if repeated:
            raise ValueError(f"{repeated}: is named in the list more than once; expected every case once (--list_dir)")
        require_listed(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Volume:
        return read_volume(self.paths[index], self.num_classes)


class StackedSlices(Sequence):
    """Cases of npz slices put back together as volumes, for validation on cases held out of training.

    A case whose slices differ in size cannot be one volume; each of its slices stands for itself then.
    """

    def __init__(self, slices: SynapseSlices) -> None:
        self.slices = slices
        by_case: dict[str, list[int]] = {}
        for index in sorted(range(len(slices)), key=lambda i: slices.names[i]):
            by_case.setdefault(case_of(slices.names[index]), []).append(index)
        self.cases = list(by_case)
        self.groups: list[tuple[str, list[int]]] = []
        for case, members in by_case.items():
            if len({slices[i].image.shape for i in members}) == 1:
                self.groups.append((case, members))
            else:
                self.groups += [(slices.names[i], [i]) for i in members]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Volume:
        name, members = self.groups[index]
        samples = [self.slices[i] for i in members]
        return Volume(name, np.stack([s.image for s in samples]), np.stack([s.label for s in samples]))
