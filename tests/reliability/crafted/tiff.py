"""TIFF pictures: directories that lie, loop or reach out of the file, and odd files that are sound; 40 x 40 pixels."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from PIL import Image

from tests.reliability.crafted.png import converted, saved
from tests.reliability.fuzzing import Write, writes, zeros_packed

_SIDE = 40
_SHORT, _LONG = 3, 4
# Numbers of tags.
_WIDTH, _HEIGHT, _BITS, _PACKING, _PHOTOMETRIC, _OFFSETS = 256, 257, 258, 259, 262, 273
_ORIENTATION, _SAMPLES, _EXIF = 274, 277, 34665
_ROWS, _COUNTS, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_COUNTS, _FORMAT = (
    *(278, 279, 284, 317, 322, 323, 324, 325, 339),
)
_DEFLATE, _LZW, _FAX, _JPEG, _PACKBITS = 8, 5, 4, 7, 32773
_BODY = 8  # where the pixels begin, right behind the head

Entry = tuple[int, int, int]  # type, count, and the value or where it is


def _tiff(change: Mapping[int, Entry | None] | None = None, body: bytes = bytes(_SIDE * _SIDE), more: int = 0) -> Write:
    """A grey picture by its directory, some entries of which are changed; None leaves one out.

    `more` is where the next directory is said to be.
    """
    entries: dict[int, Entry | None] = {
        _WIDTH: (_LONG, 1, _SIDE),
        _HEIGHT: (_LONG, 1, _SIDE),
        _BITS: (_SHORT, 1, 8),
        _PACKING: (_SHORT, 1, 1),
        _PHOTOMETRIC: (_SHORT, 1, 1),
        _OFFSETS: (_LONG, 1, _BODY),
        _SAMPLES: (_SHORT, 1, 1),
        _ROWS: (_LONG, 1, _SIDE),
        _COUNTS: (_LONG, 1, len(body)),
    } | dict(change or {})
    kept = sorted((tag, entry) for tag, entry in entries.items() if entry)
    directory = struct.pack("<H", len(kept))
    for tag, (kind, count, value) in kept:
        directory += struct.pack("<2HI", tag, kind, count) + struct.pack("<I", value)
    return writes(struct.pack("<2sHI", b"II", 42, _BODY + len(body)) + body + directory + struct.pack("<I", more))


def _tiled(offset: int, size: int = 48) -> Write:
    tiles = {
        _TILE_WIDTH: (_LONG, 1, size),
        _TILE_HEIGHT: (_LONG, 1, size),
        _TILES: (_LONG, 1, offset),
        _TILE_COUNTS: (_LONG, 1, 48 * 48),
    }
    return _tiff({**tiles, _OFFSETS: None, _COUNTS: None, _ROWS: None}, bytes(48 * 48))


def _size(width: int, height: int) -> dict[int, Entry | None]:
    return {_WIDTH: (_LONG, 1, width), _HEIGHT: (_LONG, 1, height), _ROWS: (_LONG, 1, height)}


def _packed(packing: int, body: bytes) -> Write:
    return _tiff({_PACKING: (_SHORT, 1, packing)}, body)


def _pages(count: int) -> bytes:
    """As many directories of the same pixels, each of which names the next."""
    tags = {_WIDTH: _SIDE, _HEIGHT: _SIDE, _BITS: 8, _PACKING: 1, _PHOTOMETRIC: 1, _OFFSETS: 8, _SAMPLES: 1}
    tags |= {_ROWS: _SIDE, _COUNTS: _SIDE * _SIDE}
    entries = b"".join(struct.pack("<2H2I", tag, _LONG, 1, value) for tag, value in sorted(tags.items()))
    size, first = 2 + len(entries) + 4, _BODY + _SIDE * _SIDE
    places = [first + size * (number + 1) for number in range(count - 1)] + [0]
    directories = b"".join(struct.pack("<H", len(tags)) + entries + struct.pack("<I", place) for place in places)
    return struct.pack("<2sHI", b"II", 42, first) + bytes(_SIDE * _SIDE) + directories


def _big(width: int, height: int) -> Write:
    """BigTIFF, of numbers of 8 bytes."""
    entries = {_WIDTH: width, _HEIGHT: height, _BITS: 8, _PACKING: 1, _PHOTOMETRIC: 1, _OFFSETS: 16, _SAMPLES: 1}
    entries |= {_ROWS: height, _COUNTS: _SIDE * _SIDE}
    body = bytes(_SIDE * _SIDE)
    directory = struct.pack("<Q", len(entries))
    directory += b"".join(struct.pack("<2HQQ", tag, 16, 1, value) for tag, value in sorted(entries.items()))
    return writes(struct.pack("<2s3HQ", b"II", 43, 8, 0, 16 + len(body)) + body + directory + bytes(8))


def _noise(size: int = 1600) -> bytes:
    return np.random.default_rng(0).bytes(size)


TIFF: dict[str, Write] = {
    "claims 4 gigapixels": _tiff(_size(65535, 65535)),
    "10^5 pages": lambda path, scene: path.write_bytes(_pages(10**5)),
    "float": saved(lambda pixels: pixels.astype(np.float32), "TIFF"),
    "tiles out of file": _tiled(2**31),
    "claims 2^32 a side": _tiff(_size(2**32 - 1, 2**32 - 1)),
    "claims 8192 x 8192": _tiff(_size(8192, 8192)),
    "claims 8192 x 8192 of 16 bits": _tiff({**_size(8192, 8192), _BITS: (_SHORT, 1, 16)}),
    "claims 8192 x 8192, deflated": _tiff({**_size(8192, 8192), _PACKING: (_SHORT, 1, _DEFLATE)}, zeros_packed(9999)),
    "claims 8192 x 8192, tiled": _tiff({**_size(8192, 8192), _TILE_WIDTH: (_LONG, 1, 2**30)}),
    "BigTIFF of 2^60 pixels": _big(2**30, 2**30),
    "no width": _tiff(_size(0, _SIDE)),
    "no height": _tiff(_size(_SIDE, 0)),
    "no width said": _tiff({_WIDTH: None}),
    "width of nothing": _tiff({_WIDTH: (_LONG, 0, 0)}),
    "width of texts": _tiff({_WIDTH: (2, 4, 0x20202020)}),
    "strips out of file": _tiff({_OFFSETS: (_LONG, 1, 2**31)}),
    "strips in the directory of 2^30": _tiff({_OFFSETS: (_LONG, 2**30, 8)}),
    "no strips": _tiff({_OFFSETS: None, _COUNTS: None}),
    "strips too short": _tiff(body=bytes(99)),
    "packed, strips too short": _packed(_DEFLATE, zeros_packed(99)),
    "noise for deflate": _packed(_DEFLATE, _noise()),
    "noise for LZW": _packed(_LZW, _noise()),
    "noise for JPEG": _packed(_JPEG, _noise()),
    "noise for ZSTD": _packed(50000, _noise()),
    "noise for LZMA": _packed(34925, _noise()),
    "noise for WebP": _packed(50001, _noise()),
    "no such packing": _packed(999, _noise()),
    "directory out of file": writes(struct.pack("<2sHI", b"II", 42, 2**31) + bytes(99)),
    "directory of 65535 entries": writes(struct.pack("<2sHIH", b"II", 42, 8, 65535) + bytes(99)),
    "two pages": saved(lambda pixels: pixels, "TIFF", save_all=True, append_images=[Image.new("L", (40, 40))]),
    "32 bits": saved(lambda pixels: pixels.astype(np.int32), "TIFF"),
    "64 bits": _tiff({_BITS: (_SHORT, 1, 64)}, bytes(_SIDE * _SIDE * 8)),
    "signed": _tiff({_FORMAT: (_SHORT, 1, 2)}),
    "complex": _tiff({_FORMAT: (_SHORT, 1, 6)}),
    "3 bits": _tiff({_BITS: (_SHORT, 1, 3)}),
    "RGBA": converted("RGBA", "TIFF"),
    "CMYK": converted("CMYK", "TIFF"),
    "palette": converted("P", "TIFF"),
    "Lab": _tiff({_PHOTOMETRIC: (_SHORT, 1, 8)}),
    "three channels": converted("RGB", "TIFF"),
    "65535 channels": _tiff({_SAMPLES: (_SHORT, 1, 65535)}),
    "turned": _tiff({_ORIENTATION: (_SHORT, 1, 6)}),
    "white is 0": _tiff({_PHOTOMETRIC: (_SHORT, 1, 0)}),
    "PNG of four channels": converted("RGBA"),
}

TIFF_ODD: dict[str, Write] = {
    "a directory that names itself": _tiff(more=_BODY + _SIDE * _SIDE),
    "a directory that names the head": _tiff(more=8),
    "deflate bomb": lambda path, scene: _packed(_DEFLATE, zeros_packed(2**31))(path, scene),
    "noise for fax": _packed(_FAX, _noise()),
    "noise for PackBits": _packed(_PACKBITS, _noise()),
    "predictor 9": _tiff({_PREDICTOR: (_SHORT, 1, 9), _PACKING: (_SHORT, 1, _DEFLATE)}, zeros_packed(1600)),
    "planes of no kind": _tiff({_PLANAR: (_SHORT, 1, 99)}),
    "resolution out of file": _tiff({282: (5, 1, 2**31), 283: (5, 1, 2**31)}),
    "resolution by 0": _tiff({282: (5, 1, 8), 283: (5, 1, 8), 296: (_SHORT, 1, 2)}),
    "EXIF in the pixels": _tiff({_EXIF: (_LONG, 1, 8)}),
    "EXIF that names itself": _tiff({_EXIF: (_LONG, 1, _BODY + _SIDE * _SIDE)}),
    "description of 2^31 letters": _tiff({270: (2, 2**31, 8)}),
    "rows of a strip 2^32": _tiff({_ROWS: (_LONG, 1, 2**32 - 1)}),
    "rows of a strip 0": _tiff({_ROWS: (_LONG, 1, 0)}),
}


TIFF_SOUND: dict[str, Write] = {
    "by its directory": _tiff(),
    "1 bit": saved(lambda pixels: pixels > 99, "TIFF"),
    "1 bit by fax": saved(lambda pixels: pixels > 99, "TIFF", compression="group4"),
    "16 bits": saved(lambda pixels: pixels.astype(np.uint16) * 257, "TIFF"),
    "deflated": saved(lambda pixels: pixels, "TIFF", compression="tiff_adobe_deflate"),
    "LZW": saved(lambda pixels: pixels, "TIFF", compression="tiff_lzw"),
    "PackBits": saved(lambda pixels: pixels, "TIFF", compression="packbits"),
    "big-endian": saved(lambda pixels: pixels.astype(">u2"), "TIFF"),
    "BigTIFF": _big(_SIDE, _SIDE),
    "tiled": _tiled(_BODY),
    "PNG by content": converted("L"),
}
