"""Files made to do harm, by kind and name; each must be refused, those of `SOUND` taken.

The harm is of four sorts: code that would run, memory or time out of proportion to the file, a reach for other files,
and values that are no data. Nothing here is large: what a file claims and what it holds differ.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from tests.reliability.fuzzing import Scene, Write

_HUGE = 10**12


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return open, (str(self.marker), "w")


def writes(content: bytes | str) -> Write:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda path, scene: path.write_bytes(raw)


# --- npz -------------------------------------------------------------------------------------------------------------


def _npz(**change: Callable[[np.ndarray], Any] | None) -> Write:
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


def _zip(image: bytes, *, packing: int = zipfile.ZIP_DEFLATED, label: bytes | None = None) -> Write:
    def write(path: Path, scene: Scene) -> None:
        with zipfile.ZipFile(path, "w", packing) as file:
            file.writestr("image.npy", image)
            file.writestr("label.npy", image if label is None else label)

    return write


def _npz_code(path: Path, scene: Scene) -> None:
    np.savez(path, image=np.array([[Code(scene.marker)]], dtype=object), label=np.zeros((1, 1), np.uint8))


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


NPZ: dict[str, Write] = {
    "code in an array": _npz_code,
    "claims 10^12 pixels": _zip(_npy((10**6, 10**6))),
    "deflate bomb": _zip(_npy((20000, 20000), "|u1", bytes(4 * 10**8))),
    "objects": _npz(image=lambda a: a.astype(object)),
    "claims 10^30 pixels": _zip(_npy((10**15, 10**15))),
    "claims a negative side": _zip(_npy((-40, -40))),
    "claims 10^9 pixels": _zip(_npy((40000, 25000), "|u1")),
    "bzip2 bomb": _zip(_npy((20000, 20000), "|u1", bytes(4 * 10**8)), packing=zipfile.ZIP_BZIP2),
    "code as a bare pickle": lambda path, scene: path.write_bytes(pickle.dumps(Code(scene.marker))),
    "code in the header": lambda path, scene: _zip(
        _npy((4, 4)).replace(b"(4, 4)", f"open({str(scene.marker)!r}, 'w')".encode())
    )(path, scene),
    "deep header": _zip(_npy((4, 4)).replace(b"(4, 4)", b"(" * 4000)),
    "long header": _zip(_npy((4, 4), extra=", 'x': '" + "y" * 30000 + "'")),
    "shape of floats": _zip(_npy((4.0, 4.0))),
    "no such type": _zip(_npy((4, 4), "<q9")),
    "a text of 2 GB": _zip(_npy((1, 1), "|S2000000000")),
    "python 2 header": _zip(_npy((4, 4)).replace(b"(4, 4)", b"(4L,  4L)")),
    "lies about length": _npz_lies_about_length,
    "text": _npz(image=lambda a: a.astype("U9")),
    "bytes": _npz(label=lambda a: a.astype("S3")),
    "complex": _npz(image=lambda a: a.astype(np.complex64)),
    "dates": _npz(image=lambda a: a.astype("i8").view("M8[s]")),
    "structured": _npz(label=lambda a: np.zeros(a.shape, [("a", "u1"), ("b", "u1")])),
    "fractions": _npz(label=lambda a: a + 0.5),
    "label NaN": _npz(label=_first(np.nan)),
    "label infinite": _npz(label=_first(np.inf)),
    "label 2^63": _npz(label=_first(2.0**63)),
    "label -1": _npz(label=_first(-1)),
    "label 2^64-1": _npz(label=lambda a: np.full(a.shape, 2**64 - 1, np.uint64)),
    "image NaN": _npz(image=_first(np.nan)),
    "image infinite": _npz(image=_first(-np.inf)),
    "image beyond float32": _npz(image=_first(1e300)),
    "one dimension": _npz(image=np.ravel, label=np.ravel),
    "three dimensions": _npz(image=lambda a: a[None], label=lambda a: a[None]),
    "no dimension": _npz(image=lambda a: a[0, 0], label=lambda a: a[0, 0]),
    "no pixels": _npz(image=lambda a: a[:0], label=lambda a: a[:0]),
    "other shape": _npz(label=lambda a: a[:7]),
    "no label": _npz(label=None),
    "no arrays": lambda path, scene: zipfile.ZipFile(path, "w").close(),
}

NPZ_SOUND: dict[str, Write] = {
    "label of whole floats": _npz(label=lambda a: a.astype(np.float64)),
    "label of truths": _npz(label=lambda a: a > 4),
    "half precision": _npz(image=lambda a: a.astype(np.float16)),
    "Fortran order": _npz(image=np.asfortranarray),
    "big-endian": _npz(image=lambda a: a.astype(">f8")),
}


# --- h5 --------------------------------------------------------------------------------------------------------------


def _h5(change: Callable[[h5py.File, Scene], object]) -> Write:
    """The good volume after `change(file, scene)`."""

    def write(path: Path, scene: Scene) -> None:
        path.write_bytes(scene.good)
        with h5py.File(path, "r+") as file:
            change(file, scene)

    return write


def _put(key: str, how: Callable[[np.ndarray], Any], **options: Any) -> Write:
    def change(file: h5py.File, scene: Scene) -> None:
        value = how(file[key][()]) if key in file else how(np.zeros(()))
        if key in file:
            del file[key]
        file.create_dataset(key, data=value, **options)

    return _h5(change)


def _claim(key: str, shape: tuple[int, ...], dtype: object = "f4", **options: Any) -> Write:
    """A dataset that claims a shape and stores nothing."""

    def change(file: h5py.File, scene: Scene) -> None:
        file.pop(key, None)
        file.create_dataset(key, shape, dtype, **options)

    return _h5(change)


def _link(key: str, target: Callable[[Scene], object]) -> Write:
    def change(file: h5py.File, scene: Scene) -> None:
        file.pop(key, None)
        file[key] = target(scene)

    return _h5(change)


def _virtual(key: str, source: Callable[[Scene], object]) -> Write:
    def change(file: h5py.File, scene: Scene) -> None:
        shape = file["image"].shape
        file.pop(key, None)
        layout = h5py.VirtualLayout(shape, "f4")
        layout[...] = h5py.VirtualSource(str(source(scene)), "image", shape)
        file.create_virtual_dataset(key, layout, fillvalue=0)

    return _h5(change)


def _external(key: str, source: Callable[[Scene], object]) -> Write:
    def change(file: h5py.File, scene: Scene) -> None:
        shape = file["image"].shape
        file.pop(key, None)
        file.create_dataset(key, shape, "u1", external=[(str(source(scene)), 0, h5py.h5f.UNLIMITED)])

    return _h5(change)


def _loop(file: h5py.File, scene: Scene) -> None:
    del file["image"]
    file["image"], file["there"] = h5py.SoftLink("/there"), h5py.SoftLink("/image")


def _aside(file: h5py.File, scene: Scene) -> None:
    file.move("image", "there")
    file["image"] = h5py.SoftLink("/there")


def _unknown_filter(file: h5py.File, scene: Scene) -> None:
    """A chunk that says it needs a filter that is not here: HDF5 would look for a plugin to load."""
    del file["image"]
    dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    dcpl.set_chunk((3, 40, 40))
    dcpl.set_filter(31999, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(file.id, b"image", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((3, 40, 40)), dcpl)
    file["image"].id.write_direct_chunk((0, 0, 0), b"abc")


def _with_geometry(**change: Any) -> Write:
    values = {"spacing": [1.0] * 3, "origin": [0.0] * 3, "direction": np.eye(3).ravel(), "axis_order": np.bytes_("zxy")}

    def write(file: h5py.File, scene: Scene) -> None:
        for key, value in (values | change).items():
            file[key] = value

    return _h5(write)


def _bomb(file: h5py.File, scene: Scene) -> None:
    """5 MB that become 5 GB: every chunk is the same run of zeros, packed."""
    import zlib

    packed = zlib.compress(bytes(2**26))
    for key in ("image", "label"):
        del file[key]
        data = file.create_dataset(key, (80, 8192, 8192), "u1", chunks=(1, 8192, 8192), compression="gzip")
        for index in range(80):
            data.id.write_direct_chunk((index, 0, 0), packed)


H5: dict[str, Write] = {
    "a link to a pipe": _link("image", lambda scene: h5py.ExternalLink(str(scene.pipe), "image")),
    "claims 10^12 voxels in chunks": _claim("image", (10**4, 10**4, 10**4), chunks=(1, 64, 64)),
    "virtual, of another file": _virtual("image", lambda scene: scene.elsewhere),
    "external storage": _external("image", lambda scene: scene.elsewhere),
    "a link to another file": _link("label", lambda scene: h5py.ExternalLink(str(scene.elsewhere), "label")),
    "a link loop": _h5(_loop),
    "deflate bomb": _h5(_bomb),
    "virtual, of a pipe": _virtual("image", lambda scene: scene.pipe),
    "external storage in a pipe": _external("image", lambda scene: scene.pipe),
    "virtual, of itself": _virtual("image", lambda scene: "."),
    "external storage of /etc/passwd": _external("label", lambda scene: "/etc/passwd"),
    "geometry of another file": _link("spacing", lambda scene: h5py.ExternalLink(str(scene.elsewhere), "image")),
    "geometry in a pipe": _link("origin", lambda scene: h5py.ExternalLink(str(scene.pipe), "image")),
    "geometry of 10^12 numbers": _h5(
        lambda file, scene: (
            [file.create_dataset(k, (_HUGE,), "f8", chunks=(999,)) for k in ("spacing", "origin")]
            and file.create_dataset("direction", (9,), "f8")
        )
    ),
    "geometry external": _external("spacing", lambda scene: "/etc/passwd"),
    "claims 10^12 voxels at once": _claim("image", (10**4, 10**4, 10**4)),
    "claims 10^9 voxels": _claim("image", (1000, 1000, 1000), chunks=(10, 100, 100)),
    "both claim 10^18 voxels": _h5(
        lambda file, scene: [
            (file.pop(key), file.create_dataset(key, (10**6,) * 3, "u1", chunks=(1, 64, 64)))
            for key in ("image", "label")
        ]
    ),
    "a link to nowhere": _link("image", lambda scene: h5py.SoftLink("/absent")),
    "a link to /dev/zero": _link("image", lambda scene: h5py.ExternalLink("/dev/zero", "image")),
    "a link upwards": _link("image", lambda scene: h5py.ExternalLink("../../../absent.h5", "image")),
    "an unknown filter": _h5(_unknown_filter),
    "a group": _h5(lambda file, scene: (file.pop("image"), file.create_group("image"))),
    "a type": _link("image", lambda scene: np.dtype("f4")),
    "text": _put("image", lambda a: "hello"),
    "texts": _put("image", lambda a: np.full(a.shape, "hello", object), dtype=h5py.string_dtype()),
    "fixed texts": _put("image", lambda a: np.full(a.shape, b"hello")),
    "lists": _claim("image", (3, 40, 40), h5py.vlen_dtype(np.dtype("f4"))),
    "references": _claim("image", (3, 40, 40), h5py.ref_dtype),
    "compound": _put("label", lambda a: np.zeros(a.shape, [("a", "u1"), ("b", "f4")])),
    "complex": _put("image", lambda a: a.astype(np.complex64)),
    "opaque": _put("image", lambda a: a.view("V4")),
    "arrays in voxels": _claim("image", (3, 40, 40), np.dtype(("f4", (10000,)))),
    "no value": _claim("image", None, "f4"),  # a dataset of the null space
    "one value": _put("image", lambda a: np.float32(1)),
    "four dimensions": _put("image", lambda a: a[None]),
    "no voxels": _put("image", lambda a: a[:0]),
    "other shape": _put("label", lambda a: a[:, :7]),
    "fractions": _put("label", lambda a: a + 0.25),
    "label 200": _put("label", lambda a: a + 200),
    "image NaN": _put("image", lambda a: a * np.nan),
    "no label": _h5(lambda file, scene: file.pop("label")),
    "nothing": _h5(lambda file, scene: file.clear()),
    "spacing of texts": _with_geometry(spacing=["1", "2", "x"]),
    "spacing of none": _with_geometry(spacing=h5py.Empty("f8")),
    "spacing complex": _with_geometry(spacing=np.ones(3, complex)),
    "spacing 0": _with_geometry(spacing=[0.0, 1.0, 1.0]),
    "origin NaN": _with_geometry(origin=[np.nan, 0.0, 0.0]),
    "direction infinite": _with_geometry(direction=[np.inf] * 9),
    "axis order of numbers": _with_geometry(axis_order=3),
    "axis order of many": _with_geometry(axis_order=[b"zxy", b"zyx"]),
    "axis order of no letters": _with_geometry(axis_order=np.bytes_(b"\xff\xfe\xfd")),
    "axis order twice": _with_geometry(axis_order=np.bytes_("zzy")),
}

H5_SOUND: dict[str, Write] = {
    "geometry": _with_geometry(),
    "axis order as text": _with_geometry(axis_order="zyx"),
    "label of truths": _put("label", lambda a: a > 4),
    "packed hard": _put("label", lambda a: np.zeros(a.shape, "u1"), compression="gzip", shuffle=True, fletcher32=True),
    "half precision": _put("image", lambda a: a.astype("f2")),
    "big-endian": _put("image", lambda a: a.astype(">f8")),
}


# --- NIfTI -----------------------------------------------------------------------------------------------------------


def _header(*fields: tuple[int, str, tuple[float, ...]]) -> Write:
    """The good image with header fields overwritten: (offset, struct layout, values)."""

    def write(path: Path, scene: Scene) -> None:
        content = bytearray(gzip.decompress(scene.good))
        for offset, layout, values in fields:
            struct.pack_into(f"<{layout}", content, offset, *values)
        path.write_bytes(gzip.compress(content, 1))

    return write


def _nifti_bomb(path: Path, scene: Scene) -> None:
    """The good image, and behind it 2 GB of zeros in 2 MB: gzip allows any number of members."""
    path.write_bytes(scene.good + gzip.compress(bytes(2**25), 9) * 64)


def _nifti_bomb_as_promised(path: Path, scene: Scene) -> None:
    """A header that promises 8 GB, and gzip members that hold them."""
    header = bytearray(gzip.decompress(scene.good)[:352])
    struct.pack_into("<8h", header, 40, 3, 32767, 32767, 8, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    path.write_bytes(gzip.compress(bytes(header)) + gzip.compress(bytes(2**25), 9) * 512)


def _dims(*dims: int) -> tuple[int, str, tuple[int, ...]]:
    return 40, "8h", (*dims, *[1] * (8 - len(dims)))


def _nifti_two(path: Path, scene: Scene) -> None:
    header = bytearray(540)
    struct.pack_into("<i8s", header, 0, 540, b"n+2\0\r\n\x1a\n")
    path.write_bytes(gzip.compress(bytes(header)))


def _extension(path: Path, scene: Scene) -> None:
    """A header extension that claims two gigabytes."""
    content = bytearray(gzip.decompress(scene.good))
    struct.pack_into("<f", content, 108, 368.0)
    content[348:352] = b"\1\0\0\0" + struct.pack("<2i", 2**31 - 16, 6) + bytes(8)
    path.write_bytes(gzip.compress(bytes(content)))


def _trailing(path: Path, scene: Scene) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(scene.good) + bytes(500)))


def _big_endian(path: Path, scene: Scene) -> None:
    import SimpleITK as sitk

    raw = path.with_name("plain.nii")
    image = sitk.GetImageFromArray(np.zeros((3, 40, 40), np.uint8))
    sitk.WriteImage(image, str(raw))
    content = bytearray(raw.read_bytes())
    raw.unlink()
    for offset, layout in ((0, "i"), (32, "i"), (40, "8h"), (68, "4h"), (76, "8f"), (108, "3f"), (252, "2h")):
        values = struct.unpack_from(f"<{layout}", content, offset)
        struct.pack_into(f">{layout}", content, offset, *values)
    values = struct.unpack_from("<18f", content, 256)
    struct.pack_into(">18f", content, 256, *values)
    path.write_bytes(gzip.compress(bytes(content)))


_NAN = float("nan")
NIFTI: dict[str, Write] = {
    "claims 32767^3 voxels": _header(_dims(3, 32767, 32767, 32767)),
    "gzip bomb": _nifti_bomb,
    "gzip bomb as promised": _nifti_bomb_as_promised,
    "claims 32767^3 voxels of 8 bytes": _header(_dims(3, 32767, 32767, 32767), (70, "2h", (64, 64))),
    "claims 10^9 voxels": _header(_dims(3, 1000, 1000, 1000)),
    "seven dimensions": _header(_dims(7, 40, 40, 3, 2, 2, 2, 2)),
    "32767 dimensions": _header(_dims(32767, 40, 40, 3)),
    "no dimensions": _header(_dims(0, 40, 40, 3)),
    "-1 dimensions": _header(_dims(-1, 40, 40, 3)),
    "a negative side": _header(_dims(3, -40, 40, 3)),
    "a side of 0": _header(_dims(3, 0, 40, 3)),
    "voxels begin at 10^30": _header((108, "f", (1e30,))),
    "voxels begin nowhere": _header((108, "f", (_NAN,))),
    "voxels begin after the end": _header((108, "f", (60000.0,))),
    "RGB": _header((70, "2h", (128, 24))),
    "complex": _header((70, "2h", (32, 64))),
    "bits": _header((70, "2h", (1, 1))),
    "no such type": _header((70, "2h", (-77, 32))),
    "type and bits differ": _header((70, "2h", (64, 8))),
    "spacing NaN": _header((80, "f", (_NAN,))),
    "spacing -1": _header((80, "3f", (-1.0, -1.0, -1.0))),
    "spacing 0": _header((80, "3f", (0.0, 0.0, 0.0))),
    "position infinite": _header((280, "12f", (float("inf"),) * 12)),
    "direction of zeros": _header((252, "2h", (0, 1)), (280, "12f", (0.0,) * 12)),
    "NIfTI-2": _nifti_two,
    "header and image apart": _header((344, "4s", (b"ni1\0",))),
    "cut before its checksum": lambda path, scene: path.write_bytes(scene.good[:-8]),
    "header alone": lambda path, scene: path.write_bytes(gzip.compress(gzip.decompress(scene.good)[:352])),
    "text, packed": lambda path, scene: path.write_bytes(gzip.compress(b"hello\n" * 999)),
    "wrong checksum": lambda path, scene: path.write_bytes(scene.good[:-8] + bytes(8)),
}

NIFTI_SOUND: dict[str, Write] = {
    "header extension of 2 GB": _extension,
    "scale NaN": _header((112, "2f", (_NAN, 0.0)), (70, "2h", (4, 16))),
    "not packed": lambda path, scene: path.write_bytes(gzip.decompress(scene.good)),
    "a few bytes behind the voxels": _trailing,
    "two members": lambda path, scene: path.write_bytes(
        gzip.compress(gzip.decompress(scene.good)[:500]) + gzip.compress(gzip.decompress(scene.good)[500:])
    ),
    "one frame": _header(_dims(4, 40, 40, 3, 1)),
    "big-endian": _big_endian,
    "spacing 1e-30": _header((80, "3f", (1e-30,) * 3), (252, "2h", (0, 0))),
}


# --- yaml ------------------------------------------------------------------------------------------------------------


def _append(text: str) -> Write:
    """The good configuration and more; a key that comes twice takes the later value."""
    return lambda path, scene: path.write_bytes(scene.good + b"\n" + text.encode())


def _python(path: Path, scene: Scene) -> None:
    path.write_text(f"open({str(scene.marker)!r}, 'w')\ncfg = dict(SEED=1)\n")


def _tag(text: str) -> Write:
    """`{0}` is the marker's path."""
    return lambda path, scene: path.write_text(text.format(scene.marker))


def _lolz() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines)


_BAD_YAML = {
    "an object": "SEED: !!python/object:argparse.Namespace {a: 1}",
    "a module": "SEED: !!python/module:os",
    "a name": "SEED: !!python/name:os.system",
    "an own tag": "SEED: !mine 3",
    "merge bomb": "a: &a {x: 1}\nb: {<<: [*a, *a, *a]}",
    "deep lists": "SEED: " + "[" * 20000,
    "deep maps": "".join(" " * n + "a:\n" for n in range(300)),
    "deep flow maps": "{a: " * 5000,
    "NaN": "TRAIN.MOMENTUM: .nan",
    "infinite": "TRAIN.WEIGHT_DECAY: .inf",
    "rate NaN": "TRAIN.LR_POWER: .nan",
    "window infinite": "DATA.WINDOW: [-.inf, .inf]",
    "window of three": "DATA.WINDOW: [1, 2, 3]",
    "window of none": "DATA.WINDOW: []",
    "window of lists": "DATA.WINDOW: [[1], [2]]",
    "10^400 as a float": "TRAIN.MOMENTUM: 1" + "0" * 400,
    "10^5000": "SEED: 1" + "0" * 5000,
    "10^30 steps": "TRAIN.EPOCHS: 1" + "0" * 30,
    "size 10^9": "DATA.IMG_SIZE: 1000000000",
    "size 10^30": "DATA.IMG_SIZE: 1" + "0" * 30,
    "batch 10^18": "TEST.BATCH_SIZE: 1" + "0" * 18,
    "width 10^9": "MODEL.SWIN.EMBED_DIM: 1000000000",
    "width 10^18": "MODEL.SWIN.EMBED_DIM: 1" + "0" * 18,
    "width 10^30": "MODEL.SWIN.EMBED_DIM: 1" + "0" * 30,
    "depth 10^9": "MODEL.SWIN.DEPTHS: [1000000000, 2, 2, 2]",
    "depth -1": "MODEL.SWIN.DEPTHS: [-1, 2, 2, 2]",
    "999 stages": "MODEL.SWIN: {DEPTHS: [" + "2, " * 998 + "2], NUM_HEADS: [" + "1, " * 998 + "1]}",
    "no stages": "MODEL.SWIN: {DEPTHS: [], NUM_HEADS: []}",
    "no heads": "MODEL.SWIN.NUM_HEADS: [0, 1, 2, 4]",
    "window 10^9": "MODEL.SWIN.WINDOW_SIZE: 1000000000",
    "patch 0": "MODEL.SWIN.PATCH_SIZE: 0",
    "mlp ratio 10^300": "MODEL.SWIN.MLP_RATIO: 1.0e+300",
    "mlp ratio NaN": "MODEL.SWIN.MLP_RATIO: .nan",
    "U-Net width 10^9": "MODEL.UNET.WIDTH: 1000000000",
    "10^9 workers": "DATA.NUM_WORKERS: 1000000000",
    "no such network": "MODEL.TYPE: resnet",
    "seed 2^64": "SEED: 18446744073709551616",
    "seed of truth": "SEED: yes",
    "seed of a date": "SEED: 2024-01-01",
    "seed in 60s": "SEED: 190:20:30.15",
    "seed of bytes": "SEED: !!binary aGVsbG8=",
    "seed of a set": "SEED: !!set {a, b}",
    "seed of pairs": "SEED: !!pairs [a: 1]",
    "a path with a zero": 'DATA.ROOT_PATH: "a\\0b"',
    "a path with lines": 'DATA.ROOT_PATH: "a\\nb"',
    "a path of half a letter": 'DATA.ROOT_PATH: "a\\uD800b"',
    "a name that moves the cursor": 'MODEL.NAME: "\\e[2J\\e[H"',
    "a key that moves the cursor": '"\\e[2J": 1',
    "a key of two lines": '"SEED\\nSEED": 1',
    "a key of numbers": "1: 2",
    "a key of none": "~: 2",
    "a key of a list": "? [1, 2]\n: 3",
    "a key of 50000 letters": "A" * 50000 + ": 1",
    "a key in the middle": "MODEL.SWIN.FOO: 1",
    "an inner key": "__dict__: {a: 1}",
    "another file": "BASE: ['/etc/passwd']",
    "a section of a number": "MODEL: 3",
    "a section of none": "TRAIN: ~",
    "a number of a section": "SEED: {a: 1}",
    "versions of no kind": "ENVIRONMENT: 3",
    "two documents": "---\nSEED: 1\n---\nSEED: 2",
    "a directive": "%YAML 9.9\n---\nSEED: 1",
    "tabs": "TRAIN:\n\tEPOCHS: 3",
    "open quotes": 'SEED: "3',
}

YAML: dict[str, Write] = {
    "code: a .py": _python,
    "code: a call": _tag("SEED: !!python/object/apply:builtins.open ['{0}', w]\n"),
    "code: a command": _tag("SEED: !!python/object/apply:os.system ['touch {0}']\n"),
    "alias bomb": writes(_lolz()),
    "5 MB": _append("# " + "x" * (5 * 2**20)),
    "code: a new object": _tag("SEED: !!python/object/new:builtins.open ['{0}', w]\n"),
    "code: a constructor": _tag("!!python/object/apply:subprocess.Popen [[touch, '{0}']]\n"),
    "code: a list's items": _tag(
        "SEED: !!python/object/new:type\n  args: [z, !!python/tuple [], {{'extend': !!python/name:exec }}]\n"
        "  listitems: \"open('{0}', 'w')\"\n"
    ),
    "zeros in text": lambda path, scene: path.write_bytes(scene.good[:50] + b"\0" + scene.good[50:]),
    "Latin-1": lambda path, scene: path.write_bytes(scene.good + b"\nMODEL.NAME: \xe9\n"),
    "a list": writes("- 1\n- 2\n"),
    "a word": writes("hello\n"),
    "a number": writes("3\n"),
    **{name: _append(text) for name, text in _BAD_YAML.items()},
}

YAML_SOUND: dict[str, Write] = {
    "comments alone": _append("# nothing more"),
    "byte order mark": lambda path, scene: path.write_bytes(b"\xef\xbb\xbf" + scene.good),
    "versions of a date": _append("ENVIRONMENT: {when: 2024-01-01, 1: 2, deep: {a: [1, {b: ~}]}}"),
    "versions of bytes": _append("ENVIRONMENT: {a: !!binary aGVsbG8=, b: !!set {c}}"),
}


# --- checkpoints -----------------------------------------------------------------------------------------------------

State = dict[str, Any]


def _weights(change: Callable[[State], object]) -> Write:
    """The good weights after `change(state)`, which may hand back something else altogether."""

    def write(path: Path, scene: Scene) -> None:
        state = torch.load(io.BytesIO(scene.good), weights_only=True)
        returned = change(state)
        torch.save(state if returned is None else returned, path)

    return write


def _tensor(make: Callable[[torch.Tensor], torch.Tensor]) -> Write:
    """The first weight of two dimensions or more, remade."""

    def change(state: State) -> None:
        key = next(key for key, value in state.items() if value.ndim == 2 and value.is_floating_point())
        state[key] = make(state[key])

    return _weights(change)


def _filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


def _itself(state: State) -> dict:
    state["model"] = state
    return state


def _pickled(build: Callable[[Scene], object]) -> Write:
    return lambda path, scene: path.write_bytes(pickle.dumps(build(scene), protocol=2))


def _tar(path: Path, scene: Scene) -> None:
    """torch's oldest format is a tar, unpacked into a folder: a member's name may lead out of it."""
    with tarfile.open(path, "w") as file:
        for name in ("storages", "tensors", "pickle", f"../../../../../../../..{scene.marker}"):
            member = tarfile.TarInfo(name)
            member.size = 4
            file.addfile(member, io.BytesIO(b"\x80\x02N."))


def _packed_records(path: Path, scene: Scene) -> None:
    """A .pth is a zip; one whose largest record becomes 640 MB when it is unpacked."""
    with zipfile.ZipFile(io.BytesIO(scene.good)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        largest = max(old.infolist(), key=lambda info: info.file_size).filename
        for info in old.infolist():
            if info.filename != largest:
                new.writestr(info.filename, old.read(info))
        with new.open(largest, "w", force_zip64=True) as stream:
            for _ in range(40):
                stream.write(bytes(2**24))


class _Call:
    """Pickles as a call of a global that torch lets through."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def _legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def _legacy_claims(path: Path, scene: Scene) -> None:
    """The format before zip, its storage said to hold 10^9 numbers where it holds 999983."""
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(999983)}, stream, _use_new_zipfile_serialization=False)
    path.write_bytes(stream.getvalue().replace(struct.pack("<i", 999983), struct.pack("<i", 10**9)))


PTH: dict[str, Write] = {
    "code": lambda path, scene: torch.save({"model": Code(scene.marker)}, path),
    "code as a bare pickle": _pickled(lambda scene: Code(scene.marker)),
    "a view of 10^12 numbers": _tensor(lambda t: t.flatten()[0].expand(10**6, 10**6)),
    "packed records": _packed_records,
    "NaN": _tensor(_filled(float("nan"))),
    "complex": _tensor(lambda t: t.to(torch.complex64)),
    "code beside the weights": lambda path, scene: torch.save(
        {**torch.load(io.BytesIO(scene.good)), "more": Code(scene.marker)}, path
    ),
    "code in a legacy file": lambda path, scene: torch.save(
        {"model": Code(scene.marker)}, path, _use_new_zipfile_serialization=False
    ),
    "a command": lambda path, scene: path.write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % bytes(scene.marker)),
    "a tar that leads out": _tar,
    "10^12 bytes by a call": lambda path, scene: torch.save({"a": _Call(bytearray, _HUGE)}, path),
    "legacy that claims 10^9 numbers": _legacy_claims,
    "infinite": _tensor(_filled(float("inf"))),
    "sparse": _tensor(lambda t: t.to_sparse()),
    "sparse rows": _tensor(lambda t: t.to_sparse_csr()),
    "quantised": _tensor(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "nowhere": _tensor(lambda t: t.to("meta")),
    "other shape": _tensor(lambda t: t[:1]),
    "one dimension less": _tensor(lambda t: t[0]),
    "no numbers": _tensor(lambda t: t[:0]),
    "nothing": _weights(lambda state: {}),
    "a list": _weights(lambda state: list(state.values())),
    "a tensor": _weights(lambda state: torch.zeros(3)),
    "a number": _weights(lambda state: 3),
    "none": _pickled(lambda scene: None),
    "texts": _weights(lambda state: {key: "hello" for key in state}),
    "keys of numbers": _weights(lambda state: dict(enumerate(state.values()))),
    "keys of 10^6 letters": _weights(lambda state: {"a" * 10**6 + key: value for key, value in state.items()}),
    "keys of two lines": _weights(lambda state: {f"\n{key}\n\x1b[2J": value for key, value in state.items()}),
    "half of it": _weights(lambda state: dict(list(state.items())[: len(state) // 2])),
    "a pickle of 10^6 lists": writes(b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"."),
    "a pickle of memory": writes(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"."),
}

PTH_SOUND: dict[str, Write] = {
    "itself": _weights(_itself),
    "wrapped": _weights(lambda state: {"model": {f"module.{key}": value for key, value in state.items()}}),
    "legacy": lambda path, scene: _legacy(torch.load(io.BytesIO(scene.good), weights_only=True), path),
    "half precision": _weights(lambda state: {key: value.half() for key, value in state.items()}),
    "a view": _tensor(lambda t: t.flatten()[0].expand(t.shape)),
}


def _optimizer(change: Callable[[State], object]) -> Write:
    return _weights(lambda state: change(state["optimizer"]) and None)


def _momentum(make: Callable[[torch.Tensor], object]) -> Write:
    def change(optimizer: State) -> None:
        entry = next(iter(optimizer["state"].values()))
        entry["momentum_buffer"] = make(entry["momentum_buffer"])

    return _optimizer(change)


def _set(**values: object) -> Write:
    return _weights(lambda state: state.update(values))


def _gradients(value: object) -> Write:
    return _weights(lambda state: state.update(gradients=[value] * len(state["gradients"])))


def _ring() -> dict:
    ring: dict[str, Any] = {}
    ring["MODEL"] = ring
    return ring


RESUME: dict[str, Write] = {
    "code": PTH["code"],
    "momentum of other shape": _momentum(lambda m: torch.zeros(3)),
    "momentum of 10^12 numbers": _momentum(lambda m: torch.zeros(1).expand(10**6, 10**6)),
    "epoch infinite": _set(epoch=float("inf")),
    "weights alone": _weights(lambda state: state["model"]),
    "configuration of no kind": _set(config=[1, 2]),
    "momentum a text": _momentum(lambda m: "hello"),
    "momentum NaN": _momentum(lambda m: m * float("nan")),
    "momentum complex": _momentum(lambda m: m.to(torch.complex64)),
    "other moments": _optimizer(lambda optimizer: optimizer["state"].update({0: {"exp_avg": torch.zeros(3)}})),
    "no groups": _optimizer(lambda optimizer: optimizer.update(param_groups=[])),
    "groups of texts": _optimizer(lambda optimizer: optimizer.update(param_groups=["a"])),
    "a group's rate a text": _optimizer(lambda optimizer: optimizer["param_groups"][0].update(momentum="much")),
    "a group's rate NaN": _optimizer(lambda optimizer: optimizer["param_groups"][0].update(momentum=float("nan"))),
    "optimizer a list": _set(optimizer=[1]),
    "gradients too few": _weights(lambda state: state.update(gradients=state["gradients"][:-1])),
    "gradients of other shape": _gradients(torch.zeros(2)),
    "gradients of texts": _gradients("a"),
    "gradients none": _set(gradients=None),
    "epoch NaN": _set(epoch=float("nan")),
    "epoch -5": _set(epoch=-5),
    "epoch 10^30": _set(epoch=10**30),
    "epoch a text": _set(epoch="two"),
    "epoch a tensor": _set(epoch=torch.zeros(3)),
    "step -5": _set(step=-5),
    "batch -5": _set(batch_in_epoch=-5),
    "batch 10^9": _set(batch_in_epoch=10**9),
    "sums a text": _set(sums="much"),
    "sums of texts": _set(sums={"loss": "much"}),
    "summed -1": _set(summed=-1),
    "bad steps 10^9": _set(bad_steps=10**9),
    "record of -5 bytes": _set(metrics_size=-5),
    "record of 10^18 bytes": _set(metrics_size=10**18),
    "best a text": _set(best="much"),
    "best NaN": _set(best=float("nan")),
    "slices a tensor": _set(slices=torch.zeros(3)),
    "slices 5": _set(slices=5),
    "configuration of itself": _set(config=_ring()),
    "configuration of tensors": _set(config={"SEED": torch.zeros(3)}),
    "configuration of number keys": _set(config={1: 2}),
    "another configuration": _set(config={"SEED": 99}),
    "generators none": _set(generators=None),
    "generators of texts": _set(generators=[{"python": ("a", "b", "c"), "torch": "d"}]),
    "generators too short": _set(generators=[{"python": (3, (1, 2), None), "torch": torch.zeros(3)}]),
    "generators beyond": _set(generators=[{"python": (3, (2**70,) * 625, None), "torch": torch.zeros(9)}]),
    "weights NaN": _weights(lambda state: [value.mul_(float("nan")) for value in state["model"].values()] and None),
    "weights a list": _set(model=[1]),
    "weights of texts": _set(model={"a": "b"}),
}


def safetensors(header: Mapping[str, Any] | bytes, body: bytes = b"", length: int | None = None) -> Write:
    import json

    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return writes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)


def _entry(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


SAFETENSORS: dict[str, Write] = {
    "claims 10^12 numbers": safetensors(_entry([10**6, 10**6], [0, 4 * 10**12])),
    "header of 2^60 bytes": safetensors(b"{}", length=2**60),
    "code": lambda path, scene: torch.save({"model": Code(scene.marker)}, path),
    "shape and offsets differ": safetensors(_entry([4], [0, 8]), bytes(8)),
    "offsets backwards": safetensors(_entry([4], [16, 0]), bytes(16)),
    "shape overflows": safetensors(_entry([2**32, 2**32, 4], [0, 0])),
    "a negative side": safetensors(_entry([-4], [0, 16]), bytes(16)),
    "no such type": safetensors(_entry([4], [0, 16], "F99"), bytes(16)),
    "deep header": safetensors(b'{"a":' * 50000),
    "not text": safetensors(b"\xff" * 64),
    "no header": safetensors(b"", length=0),
    "no tensors": safetensors({}),
    "other tensors": safetensors(_entry([4], [0, 16]), bytes(16)),
    "metadata of numbers": safetensors({"__metadata__": {"a": 3}}),
    "a list": safetensors(b"[1, 2]"),
}


# --- lists -----------------------------------------------------------------------------------------------------------


def _lines(*lines: str) -> Write:
    return _append_line("\n".join(lines))


def _append_line(text: str) -> Write:
    return lambda path, scene: path.write_bytes(scene.good.rstrip(b"\n") + b"\n" + text.encode() + b"\n")


LISTS: dict[str, Write] = {
    "up and down again": _lines("../train_npz/case0000_slice000"),
    "absolute": lambda path, scene: path.write_text(f"{scene.elsewhere.with_suffix('')}\n"),
    "elsewhere": lambda path, scene: path.write_text(f"../../{scene.elsewhere.name}\n"),
    "a zero byte": _lines("case0000\0_slice000"),
    "10^6 letters": _lines("a" * 10**6),
    "300 letters": _lines("a" * 300),
    "parent": _lines(".."),
    "here": _lines("."),
    "home": _lines("~"),
    "home's file": _lines("~/x"),
    "backslashes": _lines("..\\..\\x"),
    "a command": lambda path, scene: path.write_text(f"$(touch {scene.marker})\n"),
    "an option": _lines("--output_dir"),
    "hidden": _lines(".hidden"),
    "other digits": _lines("case１"),
    "upside down": _lines("case\u202e0000"),
    "moves the cursor": _lines("\x1b[2J"),
    "a comment": _lines("# case0000"),
    "two columns": _lines("case0000_slice000\tcase0000_slice001"),
    "a blank inside": _lines("case 0000"),
    "with a colon": _lines("C:case0000"),
    "UTF-16": lambda path, scene: path.write_bytes(scene.good.decode().encode("utf-16")),
    "Latin-1": lambda path, scene: path.write_bytes(scene.good + b"case\xe9\n"),
    "blanks": writes(" \n\t\n \n"),
    "every line twice": lambda path, scene: path.write_bytes(scene.good * 2),
    "no such file": _lines("case9999_slice999"),
    "another drive": _lines("//host/share"),
    "a device": _lines("/dev/zero"),
    "a web address": _lines("file:///etc/passwd"),
}

LISTS_SOUND: dict[str, Write] = {
    "byte order mark": lambda path, scene: path.write_bytes(b"\xef\xbb\xbf" + scene.good),
    "Windows lines": lambda path, scene: path.write_bytes(scene.good.replace(b"\n", b"\r\n")),
    "blank lines": lambda path, scene: path.write_bytes(b"\n\n" + scene.good.replace(b"\n", b"\n \n")),
    "no last line end": lambda path, scene: path.write_bytes(scene.good.rstrip(b"\n")),
}
