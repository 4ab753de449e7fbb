"""NIfTI volumes: headers that lie, bombs, and odd files that are sound."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from tests.reliability.fuzzing import Scene, Write


def _header(*fields: tuple[int, str, tuple[float, ...]]) -> Write:
    """The good image with header fields overwritten: (offset, struct layout, values)."""

    def write(path: Path, scene: Scene) -> None:
        content = bytearray(gzip.decompress(scene.good))
        for offset, layout, values in fields:
            struct.pack_into(f"<{layout}", content, offset, *values)
        path.write_bytes(gzip.compress(content, 1))

    return write


def _dims(*dims: int) -> tuple[int, str, tuple[int, ...]]:
    return 40, "8h", (*dims, *[1] * (8 - len(dims)))


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
    "claims 32767^3 voxels of 8 bytes": _header(_dims(3, 32767, 32767, 32767), (70, "2h", (64, 64))),
    "seven dimensions": _header(_dims(7, 40, 40, 3, 2, 2, 2, 2)),
    "32767 dimensions": _header(_dims(32767, 40, 40, 3)),
    "a side of 0": _header(_dims(3, 0, 40, 3)),
    "voxels begin at 10^30": _header((108, "f", (1e30,))),
    "voxels begin after the end": _header((108, "f", (60000.0,))),
    "RGB": _header((70, "2h", (128, 24))),
    "type and bits differ": _header((70, "2h", (64, 8))),
    "position infinite": _header((280, "12f", (float("inf"),) * 12)),
    "direction of zeros": _header((252, "2h", (0, 1)), (280, "12f", (0.0,) * 12)),
    "header and image apart": _header((344, "4s", (b"ni1\0",))),
    "cut before its checksum": lambda path, scene: path.write_bytes(scene.good[:-8]),
    "header alone": lambda path, scene: path.write_bytes(gzip.compress(gzip.decompress(scene.good)[:352])),
    "text, packed": lambda path, scene: path.write_bytes(gzip.compress(b"hello\n" * 999)),
    "wrong checksum": lambda path, scene: path.write_bytes(scene.good[:-8] + bytes(8)),
}

NIFTI_SOUND: dict[str, Write] = {
    "spacing NaN": _header((80, "f", (_NAN,))),
    "spacing 0": _header((80, "3f", (0.0, 0.0, 0.0))),
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
