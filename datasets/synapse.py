"""The Synapse layout: npz slices to train on, h5 volumes to test on, lists that name them."""

from __future__ import annotations

import ast
import lzma
import math
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO

import h5py
import numpy as np
from torch.utils.data import Dataset

from datasets.base import (
    MOST_PIXELS,
    MOST_VOXELS,
    BadFile,
    Geometry,
    Sample,
    Volume,
    brief,
    check_claim,
    check_pair,
    require_listed,
    shorten,
)
from datasets.geometry import NUMBERS, ORIENTED, TEXTS, geometry_arrays, geometry_from, oriented_from

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")

_SLICE_MARK = "_slice"
_VOLUME_SUFFIX = ".npy.h5"
_LONGEST_HEADER = 10_000  # bytes of an .npy file; as many as NumPy takes
_BLOCK = 2**18  # bytes
# Where two threads parse at once, Python 3.11 may raise a SystemError: github.com/python/cpython/issues/106905
_ONE_AT_A_TIME = Lock()
_LONG_OF_PYTHON_2 = re.compile(r"(\d)L\b")
_ORDER_BYTES = 16  # more than the three letters of an axis order take
_MOST_OF_GEOMETRY = 128  # bytes of one array; the nine numbers of a direction take 72


# The libraries report damage in as many ways as a file can be damaged.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError, OSError, AttributeError, TypeError),
    *(ValueError, NotImplementedError, MemoryError, SyntaxError, RuntimeError, struct.error),
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


def write_slice(
    path: Path, image: np.ndarray, label: np.ndarray, geometry: Geometry | None = None, *, oriented: bool = True
) -> None:
    """Write one slice: `image`, `label` (H, W) and, where it is known, the volume's geometry beside them.

    `oriented` says whether it is known where the geometry's axes point; see `says_axes`.
    """
    write_npz(path, image, label, geometry, "image", oriented=oriented)


def write_npz(
    path: Path, image: np.ndarray, label: np.ndarray, geometry: Geometry | None, key: str, *, oriented: bool = True
) -> None:
    """Write an image, under the name `key`, its label and the geometry as in `write_slice`; always the same bytes."""
    extra = {} if geometry is None else geometry_arrays(geometry, oriented=oriented)
    np.savez(path, **{key: image}, label=label, **extra)


def write_volume(
    path: Path, image: np.ndarray, label: np.ndarray, geometry: Geometry | None = None, *, oriented: bool = True
) -> None:
    """Write one volume: `image`, `label` (D, H, W) and the geometry as in `write_slice`."""
    with h5py.File(path, "w") as file:
        file["image"] = image
        # With a checksum: HDF5 unpacks a damaged lzf block to whatever lies in memory, and says nothing.
        file.create_dataset("label", data=label, compression="lzf", fletcher32=True)
        for key, value in ({} if geometry is None else geometry_arrays(geometry, oriented=oriented)).items():
            file[key] = value


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library says of a damaged file into a ValueError that names it."""
    try:
        yield
    except BadFile:
        raise
    except DAMAGE as error:
        raise BadFile(f"{path}: is not a readable {kind} file ({brief(error)}); make or copy it again") from error


def _missing_array(path: Path, key: str, found: Sequence[str], image_key: str = "image") -> BadFile:
    names = shorten(", ".join(found)) or "nothing"
    return BadFile(f"{path}: holds no '{key}'; found {names}, expected '{image_key}' and 'label'")


def read_slice(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one npz slice as `(image, label)`, both (H, W), float32 and uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, lacks an array, or holds what cannot be trained on; the message names it.
    """
    return read_npz(path, num_classes, "image", 2)


def read_npz(path: Path, num_classes: int, key: str, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Read an image of `ndim` dimensions, stored as `key`, and its label from an npz file, float32 and uint8.

    Raises:
        FileNotFoundError, ValueError: as in `read_slice`.
    """
    if not path.is_file():
        kind = "slice" if ndim == 2 else "volume"
        raise FileNotFoundError(f"{path}: no such {kind}; expected an npz file with '{key}' and 'label'")
    with _reading(path, "npz"), zipfile.ZipFile(path) as file:
        found = _npz_keys(file)
        for wanted in (key, "label"):
            if wanted not in found:
                raise _missing_array(path, wanted, found, key)
        image, label = (_read_npy(file, wanted, path, ndim) for wanted in (key, "label"))
    return check_pair(image, label, num_classes, ndim, path)


def read_npz_geometry(path: Path) -> Geometry | None:
    """The geometry that an npz file holds beside its image, if any.

    Raises:
        ValueError: the file is damaged, or what it holds is no geometry; the message names it.
    """
    with _reading(path, "npz"), zipfile.ZipFile(path) as file:
        keys = [key for key in (*NUMBERS, *TEXTS) if key in _npz_keys(file)]
        stored = {key: _read_npy(file, key, path, None) for key in keys}
    return geometry_from(stored, path)


def says_axes(path: Path) -> bool:
    """Whether the axes of an npz or h5 file point where its geometry says: not where it was made `oriented=False`.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    if path.suffix == ".h5":
        with _reading(path, "h5"), h5py.File(path, "r") as file:
            stored = _read_dataset(file, ORIENTED, path) if ORIENTED in list(file) else None
    else:
        with _reading(path, "npz"), zipfile.ZipFile(path) as file:
            stored = _read_npy(file, ORIENTED, path, None) if ORIENTED in _npz_keys(file) else None
    return oriented_from(stored, path)


def _npz_keys(file: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in file.namelist()]


def _read_npy(file: zipfile.ZipFile, key: str, path: Path, ndim: int | None) -> np.ndarray:
    """One array of an npz file, its claims checked before its numbers are read; np.load believes them.

    It has `ndim` dimensions; None stands for a part of a geometry, which may be text.
    """
    packed = file.getinfo(f"{key}.npy")
    if packed.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadFile(f"{path}: '{key}' is packed in an unusual way; write it with np.savez or np.savez_compressed")
    with file.open(packed) as stream:
        shape, in_columns, dtype = read_npy_header(stream)
        if ndim is not None:
            most = MOST_PIXELS if ndim == 2 else MOST_VOXELS
            check_claim(shape, dtype, packed.compress_size, most, f"'{key}'", path)
            if len(shape) != ndim:
                raise BadFile(f"{path}: '{key}' has shape {shape}; expected {ndim} dimensions")
        elif dtype.kind not in "fiubS" or math.prod(shape) * dtype.itemsize > _MOST_OF_GEOMETRY:
            raise BadFile(f"{path}: '{key}' is {shape} of {shorten(str(dtype))}; expected a geometry, make it again")
        array = np.empty(math.prod(shape), dtype)
        _fill(array, stream, f"{path}: '{key}' of shape {shape}")
    return array.reshape(shape, order="F" if in_columns else "C")


def _fill(array: np.ndarray, stream: IO[bytes], what: str) -> None:
    """Read an array's bytes to the very end of the stream: there its checksum is looked at."""
    memory, position = memoryview(array.view(np.uint8)), 0
    while block := stream.read(min(_BLOCK, len(memory) - position)):
        memory[position : position + len(block)] = block
        position += len(block)
    if position < len(memory) or stream.read(1):
        raise BadFile(f"{what} takes {len(memory)} bytes, and the file holds others; make or copy it again")


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and dtype, as the header of an .npy file claims them.

    NumPy's own readers warn, of files that Python 2 wrote, on standard error.

    Raises:
        ValueError, SyntaxError, KeyError, TypeError, struct.error: it is no such header.
    """
    layout = {(1, 0): "<H", (2, 0): "<I"}[np.lib.format.read_magic(stream)]
    (length,) = struct.unpack(layout, stream.read(struct.calcsize(layout)))
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    text = _LONG_OF_PYTHON_2.sub(r"\1", stream.read(length).decode("latin1"))
    with _ONE_AT_A_TIME:
        header = ast.literal_eval(text.strip())
    if not all(isinstance(side, int) and side >= 0 for side in header["shape"]):
        raise ValueError(f"the shape {header['shape']}")
    return header["shape"], bool(header["fortran_order"]), np.lib.format.descr_to_dtype(header["descr"])


def read_volume(path: Path, num_classes: int) -> Volume:
    """Read one h5 volume, image (D, H, W) float32 and label uint8, with its geometry where the file holds one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, lacks an array, reaches for other files, or holds what cannot be evaluated; the
            message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such volume; expected an h5 file with 'image' and 'label'")
    with _reading(path, "h5"), h5py.File(path, "r") as file:
        image, label = (_read_dataset(file, key, path) for key in ("image", "label"))
        stored = {key: _read_dataset(file, key, path) for key in NUMBERS if key in list(file)}
        stored |= {key: _read_text(file, key, path) for key in TEXTS if key in list(file)}
    image, label = check_pair(image, label, num_classes, 3, path)
    return Volume(path.name.removesuffix(_VOLUME_SUFFIX), image, label, geometry_from(stored, path))


def own_dataset(file: h5py.File, key: str, path: Path) -> h5py.Dataset:
    """A dataset whose numbers lie in this very file, not read yet.

    HDF5 follows links, external storage and virtual datasets to any file that is named, and waits at a pipe for ever.

    Raises:
        BadFile: there is no such dataset, or it is a way to another file.
    """
    if key not in list(file):  # `in file` follows links
        raise _missing_array(path, key, list(file))
    if file.id.links.get_info(key.encode()).type != h5py.h5l.TYPE_HARD:
        raise BadFile(f"{path}: '{key}' is a link; expected the numbers themselves, so write them into the file")
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise _missing_array(path, key, [name for name in file if name != key])
    if dataset.external or dataset.is_virtual:
        raise BadFile(f"{path}: '{key}' lies in another file; expected it in this one, so write it there")
    return dataset


def _read_dataset(file: h5py.File, key: str, path: Path) -> np.ndarray:
    dataset = own_dataset(file, key, path)
    check_claim(dataset.shape, dataset.dtype, dataset.id.get_storage_size(), MOST_VOXELS, f"'{key}'", path)
    return np.asarray(dataset[()])


def _read_text(file: h5py.File, key: str, path: Path) -> np.ndarray:
    dataset = own_dataset(file, key, path)
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if not is_text or dataset.shape != () or dataset.dtype.itemsize > _ORDER_BYTES:
        raise BadFile(f"{path}: '{key}' is not a short text; expected letters such as zxy")
    return np.asarray(dataset[()])


class SynapseSlices(Dataset):
    """The slices that a list names, as `Sample`s, each file checked as it is read."""

    def __init__(self, folder: Path, names: Sequence[str], num_classes: int) -> None:
        self.folder, self.names, self.num_classes = folder, list(names), num_classes
        require_listed(slice_path(folder, name) for name in self.names)

    @property
    def files(self) -> list[Path]:
        """The file of each slice."""
        return [slice_path(self.folder, name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        return Sample(*read_slice(slice_path(self.folder, name), self.num_classes), name)


class SynapseVolumes(Sequence):
    """The volumes that a list names, read one at a time when they are asked for."""

    def __init__(self, folder: Path, names: Sequence[str], num_classes: int) -> None:
        self.paths, self.num_classes = [volume_path(folder, name) for name in names], num_classes
        self.cases = [path.name.removesuffix(_VOLUME_SUFFIX) for path in self.paths]
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
        geometry = read_npz_geometry(getattr(self.slices, "source", self.slices).files[members[0]])
        image, label = np.stack([s.image for s in samples]), np.stack([s.label for s in samples])
        return Volume(name, image, label, geometry)
