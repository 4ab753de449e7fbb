"""JPEG and BMP pictures: sizes that lie, scans without end, modes that are not taken, and odd files that are sound."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.reliability.crafted.png import converted, saved
from tests.reliability.fuzzing import Scene, Write, writes

_SIZE_AT = 5  # bytes behind the marker of a JPEG's frame, where height and width are


def _jpeg(change: Callable[[bytearray, int], Any]) -> Write:
    """The sound JPEG after `change(content, place)`, where `place` is that of the marker of its frame."""

    def write(path: Path, scene: Scene) -> None:
        content = bytearray(scene.good)
        made = change(content, content.index(b"\xff\xc0"))
        path.write_bytes(made if isinstance(made, bytes) else content)

    return write


def _sized(height: int, width: int) -> Write:
    return _jpeg(lambda content, place: struct.pack_into(">2H", content, place + _SIZE_AT, height, width))


def _frame(marker: int) -> Write:
    """A frame of another kind: lossless, arithmetic, .."""
    return _jpeg(lambda content, place: content.__setitem__(place + 1, marker))


def _before(segment: bytes, count: int = 1) -> Write:
    """The sound JPEG with a segment more, many times, behind its first two bytes."""
    return lambda path, scene: path.write_bytes(scene.good[:2] + segment * count + scene.good[2:])


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _scans(side: int, count: int) -> bytes:
    """A progressive JPEG, flat grey, its last scan many times over: each costs a pass over all of the picture."""
    stream = io.BytesIO()
    Image.new("L", (side, side), 99).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


JPEG: dict[str, Write] = {
    "claims 4 gigapixels": _sized(65500, 65500),
    "10^4 scans": lambda path, scene: path.write_bytes(_scans(4096, 10**4)),
    "CMYK": converted("CMYK", "JPEG"),
    "three channels": converted("RGB", "JPEG"),
    "no height": _sized(0, 40),
    "no width": _sized(40, 0),
    "claims 8192 x 8192": _sized(8192, 8192),
    "5 channels": _jpeg(lambda content, place: content.__setitem__(place + 9, 5)),
    "12 bits": _jpeg(lambda content, place: content.__setitem__(place + 4, 12)),
    "lossless": _frame(0xC3),
    "hierarchical": _frame(0xC5),
    "no frame": _jpeg(lambda content, place: bytes(content[:place]) + b"\xff\xd9"),
    "no scan": _jpeg(lambda content, place: bytes(content[: content.index(b"\xff\xda")]) + b"\xff\xd9"),
    "half a scan": lambda path, scene: path.write_bytes(scene.good[: -len(scene.good) // 3]),
    "no tables": _jpeg(lambda content, place: bytes(content[:2] + content[place:])),
    "magic alone": writes(b"\xff\xd8\xff"),
    "markers alone": writes(b"\xff\xd8" + b"\xff" * 10**6),
    "GIF": converted("L", "GIF"),
    "JPEG 2000": converted("L", "JPEG2000"),
    "WebP": converted("RGB", "WEBP"),
}

JPEG_ODD: dict[str, Write] = {
    "arithmetic": _frame(0xC9),
    "progressive, falsely": _frame(0xC2),
    "3000 comments of 64 KB": lambda path, scene: _before(_segment(0xFE, bytes(65533)), 300)(path, scene),
    "10^5 comments": _before(_segment(0xFE, b"hello"), 10**5),
    "half a profile": _before(_segment(0xE2, b"ICC_PROFILE\0\1\7" + bytes(99))),
    "EXIF that is none": _before(_segment(0xE1, b"Exif\0\0MM\0*" + b"\xff" * 99)),
    "EXIF that names itself": _before(
        _segment(0xE1, b"Exif\0\0MM\0*" + struct.pack(">IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8))
    ),
    "more pictures": _before(_segment(0xE2, b"MPF\0MM\0*" + struct.pack(">IH", 8, 65535) + bytes(99))),
    "Photoshop's, in vain": _before(_segment(0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 99)),
    "tables of noise": _before(_segment(0xC4, np.random.default_rng(0).bytes(99))),
    "a restart for each block": _before(_segment(0xDD, struct.pack(">H", 1))),
}

JPEG_SOUND: dict[str, Write] = {
    "progressive": converted("L", "JPEG", progressive=True),
    "turned by EXIF": _before(_segment(0xE1, b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0))),
    "a comment": _before(_segment(0xFE, b"hello")),
    "PNG by content": converted("L"),
    "bytes behind the end": lambda path, scene: path.write_bytes(scene.good + bytes(99)),
}


def _bmp(*fields: tuple[int, str, int]) -> Write:
    """The sound BMP with numbers of its header overwritten: (offset, struct layout, value)."""

    def write(path: Path, scene: Scene) -> None:
        content = bytearray(scene.good)
        for offset, layout, value in fields:
            struct.pack_into(f"<{layout}", content, offset, value)
        path.write_bytes(content)

    return write


# Where things are in the header of a BMP.
_PIXELS, _HEAD, _WIDTH, _HEIGHT, _BITS, _PACKING, _COLOURS = 10, 14, 18, 22, 28, 30, 46

BMP: dict[str, Write] = {
    "claims 2^62 pixels": _bmp((_WIDTH, "i", 2**31 - 1), (_HEIGHT, "i", 2**31 - 1)),
    "palette": saved(lambda pixels: Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE), "BMP"),
    "32 bits": converted("RGBA", "BMP"),
    "claims 8192 x 8192": _bmp((_WIDTH, "i", 8192), (_HEIGHT, "i", 8192)),
    "no width": _bmp((_WIDTH, "i", 0)),
    "no height": _bmp((_HEIGHT, "i", 0)),
    "a negative width": _bmp((_WIDTH, "i", -40)),
    "three channels": converted("RGB", "BMP"),
    "pixels out of file": _bmp((_PIXELS, "I", 2**31)),
    "header of 2^31 bytes": _bmp((_HEAD, "I", 2**31)),
    "header of no known size": _bmp((_HEAD, "I", 41)),
    "3 bits": _bmp((_BITS, "H", 3)),
    "64 bits": _bmp((_BITS, "H", 64)),
    "no such packing": _bmp((_PACKING, "I", 99)),
    "a JPEG within": _bmp((_PACKING, "I", 4)),
    "masks without masks": _bmp((_PACKING, "I", 3)),
    "magic alone": writes(b"BM"),
    "header alone": lambda path, scene: path.write_bytes(scene.good[:54]),
    "RGBA by content": converted("RGBA"),
}

BMP_ODD: dict[str, Write] = {
    "packed by runs, falsely": _bmp((_PACKING, "I", 1)),
    "2^32 colours": _bmp((_COLOURS, "I", 2**32 - 1)),
    "one colour": _bmp((_COLOURS, "I", 1)),
    "pixels in the header": _bmp((_PIXELS, "I", 14)),
    "upside down": _bmp((_HEIGHT, "i", -40)),
}

BMP_SOUND: dict[str, Write] = {
    "1 bit": saved(lambda pixels: pixels > 99, "BMP"),
    "PNG by content": converted("L"),
    "bytes behind the end": lambda path, scene: path.write_bytes(scene.good + bytes(99)),
}
