"""Files of NumPy arrays, .npz."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.reliability.fuzzing import Code, Scene, Write


def _npz(change: Mapping[str, Callable[[np.ndarray], Any] | None]) -> Write:
    """The good slice with some arrays changed; None leaves one out."""

    def write(path: Path, scene: Scene) -> None:
        arrays = dict(np.load(io.BytesIO(scene.good)))
        for key, how in change.items():
            arrays[key] = how(arrays.get(key)) if how else None
        with path.open("wb") as file:
            np.savez(file, **{key: value for key, value in arrays.items() if value is not None})

    return write


def _npy(shape: object, descr: str = "<f4", body: bytes = b"", extra: str = "") -> bytes:
    """An .npy file of which the header says what it likes."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}{extra}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def _zip(key: str, image: bytes, *, packing: int = zipfile.ZIP_DEFLATED, label: bytes | None = None) -> Write:
    def write(path: Path, scene: Scene) -> None:
        with zipfile.ZipFile(path, "w", packing) as file:
            file.writestr(f"{key}.npy", image)
            file.writestr("label.npy", image if label is None else label)

    return write


def _npz_code(key: str) -> Write:
    def write(path: Path, scene: Scene) -> None:
        np.savez(path, **{key: np.array([[Code(scene.marker)]], dtype=object), "label": np.zeros((1, 1), np.uint8)})

    return write


def _npz_lies_about_length(path: Path, scene: Scene) -> None:
    """The directory of the archive promises a terabyte."""
    content = bytearray(scene.good)
    place = content.rindex(b"PK\x01\x02")
    struct.pack_into("<2I", content, place + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(content)


def _first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float64)
        array.flat[0] = value
        return array

    return change


def npz_attacks(key: str) -> dict[str, Write]:
    """Bad slices or volumes whose image is the array `key`."""
    return {
        "code in an array": _npz_code(key),
        "claims 10^12 pixels": _zip(key, _npy((10**6, 10**6))),
        "deflate bomb": _zip(key, _npy((20000, 20000), "|u1", bytes(4 * 10**8))),
        "objects": _npz({key: lambda a: a.astype(object)}),
        "claims 10^30 pixels": _zip(key, _npy((10**15, 10**15))),
        "claims a negative side": _zip(key, _npy((-40, -40))),
        "claims 10^9 pixels": _zip(key, _npy((40000, 25000), "|u1")),
        "bzip2 bomb": _zip(key, _npy((20000, 20000), "|u1", bytes(4 * 10**8)), packing=zipfile.ZIP_BZIP2),
        "code as a bare pickle": lambda path, scene: path.write_bytes(pickle.dumps(Code(scene.marker))),
        "code in the header": lambda path, scene: _zip(
            key, _npy((4, 4)).replace(b"(4, 4)", f"open({str(scene.marker)!r}, 'w')".encode())
        )(path, scene),
        "deep header": _zip(key, _npy((4, 4)).replace(b"(4, 4)", b"(" * 4000)),
        "long header": _zip(key, _npy((4, 4), extra=", 'x': '" + "y" * 30000 + "'")),
        "shape of floats": _zip(key, _npy((4.0, 4.0))),
        "no such type": _zip(key, _npy((4, 4), "<q9")),
        "a text of 2 GB": _zip(key, _npy((1, 1), "|S2000000000")),
        "python 2 header": _zip(key, _npy((4, 4)).replace(b"(4, 4)", b"(4L,  4L)")),
        "lies about length": _npz_lies_about_length,
        "text": _npz({key: lambda a: a.astype("U9")}),
        "bytes": _npz({"label": lambda a: a.astype("S3")}),
        "complex": _npz({key: lambda a: a.astype(np.complex64)}),
        "dates": _npz({key: lambda a: a.astype("i8").view("M8[s]")}),
        "structured": _npz({"label": lambda a: np.zeros(a.shape, [("a", "u1"), ("b", "u1")])}),
        "fractions": _npz({"label": lambda a: a + 0.5}),
        "label NaN": _npz({"label": _first(np.nan)}),
        "label infinite": _npz({"label": _first(np.inf)}),
        "label 2^63": _npz({"label": _first(2.0**63)}),
        "label -1": _npz({"label": _first(-1)}),
        "label 2^64-1": _npz({"label": lambda a: np.full(a.shape, 2**64 - 1, np.uint64)}),
        "image NaN": _npz({key: _first(np.nan)}),
        "image infinite": _npz({key: _first(-np.inf)}),
        "image beyond float32": _npz({key: _first(1e300)}),
        "one dimension": _npz({key: np.ravel, "label": np.ravel}),
        "three dimensions": _npz({key: lambda a: a[None], "label": lambda a: a[None]}),
        "no dimension": _npz({key: lambda a: a[0, 0], "label": lambda a: a[0, 0]}),
        "no pixels": _npz({key: lambda a: a[:0], "label": lambda a: a[:0]}),
        "other shape": _npz({"label": lambda a: a[:, :7]}),
        "no label": _npz({"label": None}),
        "no arrays": lambda path, scene: zipfile.ZipFile(path, "w").close(),
    }


def npz_sound(key: str) -> dict[str, Write]:
    """Odd ones that are sound."""
    return {
        "label of whole floats": _npz({"label": lambda a: a.astype(np.float64)}),
        "label of truths": _npz({"label": lambda a: a > 4}),
        "half precision": _npz({key: lambda a: a.astype(np.float16)}),
        "Fortran order": _npz({key: np.asfortranarray}),
        "big-endian": _npz({key: lambda a: a.astype(">f8")}),
    }
