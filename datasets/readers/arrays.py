"""npz and HDF5 files: named arrays, and the geometry that is stored beside an image."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO

import h5py
import numpy as np

from datasets.case import Geometry
from datasets.errors import MAX_VOXELS, BadFile, brief

_NUMBERS = {"spacing": 3, "origin": 3, "direction": 9}
_TEXTS = {"axis_order": "zyx", "flips": ""}  # and what they are where a file does not say it
_ORIENTED = "oriented"  # false where it is not known where the axes point
GEOMETRY = (*_NUMBERS, *_TEXTS, _ORIENTED)

_BLOCK = 2**18  # bytes, which stay in a cache of the processor
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Where two threads parse at once, Python 3.11 may raise a SystemError: github.com/python/cpython/issues/106905
_ONE_AT_A_TIME = Lock()


class _Stored:
    """An array in an open file, by what its header claims; `read` gives it."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, source: h5py.Dataset | tuple[IO[bytes], bool]) -> None:
        self.shape, self.dtype, self._source = shape, dtype, source
        if dtype.kind not in "fiubSO" or math.prod(shape) > MAX_VOXELS:
            raise ValueError(f"an array of {shape} of {dtype}; expected numbers, {MAX_VOXELS} at most")

    def read(self) -> np.ndarray:
        """The array; a ValueError where the file does not hold it all, or its checksum differs."""
        if isinstance(self._source, h5py.Dataset):
            return np.asarray(self._source[()])
        stream, in_columns = self._source
        flat = np.empty(math.prod(self.shape), self.dtype)
        memory, position = flat.view(np.uint8).data, 0
        while block := stream.read(min(_BLOCK, flat.nbytes - position)):
            memory[position : position + len(block)] = block
            position += len(block)
        if position < flat.nbytes or stream.read(1):  # the end has the checksum
            raise ValueError(f"not the {flat.nbytes} bytes of an array of {self.shape}")
        return flat.reshape(self.shape, order="F" if in_columns else "C")


def read_arrays(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Arrays of an npz or h5 file by name; of the `optional` ones, those that are there.

    Raises:
        FileNotFoundError: there is no such file.
        BadFile: it is damaged, lacks one of `names`, or reaches for other files.
    """
    with _opened(path) as file:
        return {name: array.read() for name, array in _find(file, names, optional, path)}


def read_shapes(path: Path, names: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], Geometry | None]:
    """The shapes of arrays, without their numbers, and the geometry beside them; errors as of `read_arrays`."""
    with _opened(path) as file:
        shapes = {name: array.shape for name, array in _find(file, names, (), path)}
        stored = {name: array.read() for name, array in _find(file, (), GEOMETRY, path)}
    return shapes, geometry_from(stored, path)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File | zipfile.ZipFile]:
    """An npz or h5 file; whatever is raised of its damage becomes a BadFile."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected one with an image and its 'label'")
    try:
        with h5py.File(path, "r") if path.suffix == ".h5" else zipfile.ZipFile(path) as file:
            yield file
    except BadFile:
        raise
    except Exception as error:  # the libraries report damage in as many ways as a file can be damaged
        kind = path.suffix.lstrip(".")
        raise BadFile(f"{path}: is not a readable {kind} file ({brief(error)}); make or copy it again") from error


def _find(
    file: h5py.File | zipfile.ZipFile, names: Sequence[str], optional: Sequence[str], path: Path
) -> Iterator[tuple[str, _Stored]]:
    found = [n.removesuffix(".npy") for n in file.namelist()] if isinstance(file, zipfile.ZipFile) else list(file)
    for name in names:
        if name not in found:
            raise BadFile(f"{path}: has no '{name}', only {', '.join(found)[:160] or 'nothing'}; expected it, make it")
    for name in (*names, *(name for name in optional if name in found)):
        if not isinstance(file, zipfile.ZipFile):
            link = file.get(name, getlink=True)
            array = file[name] if isinstance(link, h5py.HardLink) else None
            if not isinstance(array, h5py.Dataset) or array.shape is None or array.external or array.is_virtual:
                raise BadFile(f"{path}: '{name}' is not an array of this file; expected the numbers themselves in it")
            yield name, _Stored(array.shape, array.dtype, array)
        else:
            with file.open(f"{name}.npy") as stream:
                header = _HEADERS[np.lib.format.read_magic(stream)]
                with _ONE_AT_A_TIME:
                    shape, in_columns, dtype = header(stream)
                yield name, _Stored(shape, dtype, (stream, in_columns))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], geometry: Geometry | None = None) -> None:
    """Write arrays and, where it is known, their geometry as npz, always the same bytes, or as h5 with checksums."""
    stored = {**arrays, **({} if geometry is None else geometry_arrays(geometry))}
    if path.suffix != ".h5":
        np.savez(path, **stored)  # type: ignore[arg-type]
        return
    with h5py.File(path, "w") as file:
        for name, array in stored.items():
            # Labels with a checksum: HDF5 decodes a damaged lzf block to whatever lies in memory, and reports nothing.
            options = {"compression": "lzf", "fletcher32": True} if name == "label" else {}
            file.create_dataset(name, data=array, **options)


def geometry_arrays(geometry: Geometry) -> dict[str, np.ndarray]:
    """A geometry as arrays by name, which `geometry_from` reads."""
    arrays = {name: np.asarray(getattr(geometry, name)) for name in _NUMBERS}
    arrays |= {"affine": geometry.affine, "axis_order": np.asarray(geometry.axis_order.encode())}
    if geometry.flips:
        arrays["flips"] = np.asarray(geometry.flips.encode())
    return arrays if geometry.oriented else arrays | {_ORIENTED: np.asarray(False)}


def geometry_from(stored: Mapping[str, np.ndarray], path: Path) -> Geometry | None:
    """The geometry among the arrays of a file, or None where there is none.

    Raises:
        BadFile: they are no geometry.
    """
    if not any(name in stored for name in _NUMBERS):
        return None
    try:
        numbers = {name: tuple(float(value) for value in stored[name].ravel()) for name in _NUMBERS}
        order, flips = (bytes(stored[name][()]).decode() if name in stored else usual for name, usual in _TEXTS.items())
        oriented = bool(stored[_ORIENTED]) if _ORIENTED in stored else True
        sizes = {name: len(values) for name, values in numbers.items()}
        if sizes != _NUMBERS or sorted(order) != ["x", "y", "z"] or not set(flips) <= set("xyz"):
            raise ValueError(f"{sizes}, axis_order {order!r}, flips {flips!r}")
        finite = np.isfinite([value for values in numbers.values() for value in values]).all()
        volume = abs(np.linalg.det(np.reshape(numbers["direction"], (3, 3)))) if finite else 0
        if not 0.5 < volume < 2 or min(numbers["spacing"]) <= 0:
            raise ValueError(f"spacing {numbers['spacing']}, direction {numbers['direction']}")
        return Geometry(numbers["spacing"], numbers["origin"], numbers["direction"], order, flips, oriented)
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(
            f"{path}: its geometry is not understood ({brief(error)}); expected 'spacing' and 'origin' of 3 numbers, "
            "'direction' of 9, 'axis_order' such as zxy and, where axes run backwards, 'flips' such as xy"
        ) from error
