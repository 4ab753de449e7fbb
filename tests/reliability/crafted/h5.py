"""HDF5 volumes: links, filters and storage elsewhere, claims, and values that are no data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.reliability.fuzzing import Scene, Write

_HUGE = 10**12


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
