"""PNG pictures: sizes that lie, bombs, chunks of all kinds, and odd files that are sound; all grey, of 40 x 40 pixels.

Files are put together by the specification of PNG, or by PIL, from the pixels of the sound one.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.reliability.fuzzing import Scene, Write, writes, zeros_packed

_MAGIC = b"\x89PNG\r\n\x1a\n"
_SIDE = 40
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # types of colour


def pixels_of(scene: Scene) -> np.ndarray:
    """The pixels of the sound picture."""
    return np.array(Image.open(io.BytesIO(scene.good)))


def saved(change: Callable[[np.ndarray], Any], kind: str = "PNG", **options: Any) -> Write:
    """The sound picture's pixels after a change, which may hand back an image of PIL's, written by PIL."""

    def write(path: Path, scene: Scene) -> None:
        made = change(pixels_of(scene))
        image = made if isinstance(made, Image.Image) else Image.fromarray(made)
        image.save(path, format=kind, **options)

    return write


def converted(mode: str, kind: str = "PNG", **options: Any) -> Write:
    """The sound picture in another of PIL's modes."""
    return saved(lambda pixels: Image.fromarray(pixels).convert(mode), kind, **options)


def _chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack(">I", len(data) if length is None else length) + kind + data + _checksum(kind + data)


def _checksum(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def _header(width: int = _SIDE, height: int = _SIDE, bits: int = 8, colour: int = GREY, *last: int) -> bytes:
    return _chunk(b"IHDR", struct.pack(">2I5B", width, height, bits, colour, *(last or (0, 0, 0))))


def _png(*chunks: bytes) -> Write:
    return writes(_MAGIC + b"".join(chunks) + _chunk(b"IEND", b""))


def _rows(size: int = _SIDE + 1, count: int = _SIDE) -> bytes:
    """Rows of `size` bytes each, the first of which says that nothing was filtered."""
    return _chunk(b"IDAT", zlib.compress(bytes(size) * count))


def _with(*chunks: bytes, before: bytes = b"IDAT") -> Write:
    """The sound picture with more chunks before the first of some kind."""

    def write(path: Path, scene: Scene) -> None:
        place = scene.good.index(before) - 4
        path.write_bytes(scene.good[:place] + b"".join(chunks) + scene.good[place:])

    return write


def _interlaced(path: Path, scene: Scene) -> None:
    pixels, rows = pixels_of(scene), b""
    for top, left, down, right in _ADAM7:
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[top::down, left::right])
    _png(_header(_SIDE, _SIDE, 8, GREY, 0, 0, 1), _chunk(b"IDAT", zlib.compress(rows)))(path, scene)


def _wrong_checksum(path: Path, scene: Scene) -> None:
    place = scene.good.index(b"IEND") - 8
    path.write_bytes(scene.good[:place] + bytes(4) + scene.good[place + 4 :])


def _frames(count: int) -> Iterator[bytes]:
    yield _chunk(b"acTL", struct.pack(">2I", count, 0))
    yield _chunk(b"fcTL", struct.pack(">5I2H2B", 0, _SIDE, _SIDE, 0, 0, 1, 1, 0, 0))


def _late(chunk: Callable[[], bytes]) -> Write:
    """A chunk that is dear to make, made when it is needed."""
    return lambda path, scene: _with(chunk())(path, scene)


PNG: dict[str, Write] = {
    "claims 4 gigapixels": _png(_header(65535, 65535), _rows()),
    "RGBA": converted("RGBA"),
    "text bomb": _late(lambda: _chunk(b"zTXt", b"Comment\0\0" + zeros_packed(2**31))),
    "palette": converted("P"),
    "claims 2^31 a side": _png(_header(2**31 - 1, 2**31 - 1), _rows()),
    "claims 2^32 a side": _png(_header(2**32 - 1, 2**32 - 1), _rows()),
    "claims 8192 x 8192": _png(_header(8192, 8192), _rows()),
    "bomb as promised": lambda path, scene: _png(_header(65535, 65535), _chunk(b"IDAT", zeros_packed(65536 * 65535)))(
        path, scene
    ),
    "claims 8192 x 8192, interlaced": _png(_header(8192, 8192, 8, GREY, 0, 0, 1), _rows()),
    "no width": _png(_header(0), _rows(1)),
    "no height": _png(_header(_SIDE, 0), _rows()),
    "profile bomb": _late(lambda: _chunk(b"iCCP", b"icc\0\0" + zeros_packed(2**31))),
    "international text bomb": _late(lambda: _chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros_packed(2**31))),
    "grey and alpha": converted("LA"),
    "transparent colour": saved(lambda pixels: pixels, transparency=0),
    "three channels": converted("RGB"),
    "three channels of 16 bits": _png(_header(_SIDE, _SIDE, 16, COLOUR), _rows(1 + 6 * _SIDE)),
    "many frames": _with(*_frames(2)),
    "10^9 frames": _with(*_frames(10**9)),
    "3 bits": _png(_header(bits=3), _rows()),
    "no such colour": _png(_header(colour=5), _rows()),
    "palette of no colours": _png(_header(colour=PALETTE), _rows()),
    "header of 4 bytes": _png(_chunk(b"IHDR", struct.pack(">I", _SIDE)), _rows()),
    "no header": _png(_rows()),
    "no pixels": _png(_header()),
    "pixels that are not packed": _png(_header(), _chunk(b"IDAT", bytes(999))),
    "pixels of 2^31 bytes": _png(_header(), _chunk(b"IDAT", bytes(99), 2**31 - 1)),
    "filter of no kind": _png(_header(), _chunk(b"IDAT", zlib.compress((b"\x07" + bytes(_SIDE)) * _SIDE))),
    "magic alone": writes(_MAGIC),
    "GIF": converted("L", "GIF"),
    "WebP": converted("RGB", "WEBP"),
    "PPM": converted("L", "PPM"),
    "EPS": converted("L", "EPS"),
    "PDF": converted("L", "PDF"),
    "ICO": converted("L", "ICO"),
    "text": writes("hello\n" * 99),
}

# What may be refused, or taken for what it holds beside.
PNG_ODD: dict[str, Write] = {
    "no such packing": _png(_header(_SIDE, _SIDE, 8, GREY, 9, 0, 0), _rows()),
    "half the pixels": _png(_header(), _rows(count=20)),
    "wrong checksum": _wrong_checksum,
    "bomb behind the pixels": lambda path, scene: _png(_header(), _chunk(b"IDAT", zeros_packed(2**31)))(path, scene),
    "10^5 texts": _with(*[_chunk(b"tEXt", b"Comment\0hello")] * 10**5),
    "a text of 30 MB": _late(lambda: _chunk(b"tEXt", b"Comment\0" + b"x" * 30 * 2**20)),
    "header twice": _with(_header(8192, 8192)),
    "10^5 empty pieces": _with(*[_chunk(b"IDAT", b"")] * 10**5),
    "unknown, critical": _with(_chunk(b"ABCD", b"hello")),
    "EXIF that is none": _with(_chunk(b"eXIf", b"MM\0*" + b"\xff" * 99)),
    "size of pixels 0": _with(_chunk(b"pHYs", bytes(9))),
    "gamma 0": _with(_chunk(b"gAMA", bytes(4))),
}

PNG_SOUND: dict[str, Write] = {
    "interlaced": _interlaced,
    "1 bit": saved(lambda pixels: pixels > 99),
    "2 bits": _png(_header(bits=2), _rows(1 + _SIDE // 4)),
    "16 bits": saved(lambda pixels: pixels.astype(np.uint16) * 257),
    "texts": _with(_chunk(b"tEXt", b"Comment\0hello"), _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"hello"))),
    "JPEG by content": converted("L", "JPEG"),
    "TIFF by content": converted("L", "TIFF"),
    "bytes behind the end": lambda path, scene: path.write_bytes(scene.good + bytes(99)),
}

# Sound where no other picture has to be of the same size.
PNG_SMALL: dict[str, Write] = {
    "one pixel": saved(lambda pixels: pixels[:1, :1]),
    "one row": saved(lambda pixels: pixels[:1]),
}
