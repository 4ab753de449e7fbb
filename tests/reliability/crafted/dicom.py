"""DICOM slices: one of a series that lies about its size, its packing or its place, or that is of another series.

A file is taken apart into its elements and put together again (DICOM PS3.5, explicit VR, little endian).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from tests.reliability.fuzzing import Scene, Write, writes

_LONG = (b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT", b"UC", b"UR")  # kinds whose length takes four bytes
_HEAD = 132  # a preamble of 128 bytes, and DICM
_ENDLESS = 0xFFFFFFFF

Tag = tuple[int, int]
Element = tuple[bytes, bytes]  # kind and value

_SYNTAX: Tag = (0x0002, 0x0010)
_CLASS: Tag = (0x0008, 0x0016)
_SERIES: Tag = (0x0020, 0x000E)
_POSITION, _DIRECTION = (0x0020, 0x0032), (0x0020, 0x0037)
_SAMPLES, _PHOTOMETRIC, _FRAMES, _ROWS, _COLUMNS, _SPACING, _BITS, _STORED, _HIGH, _SIGNED = (
    *((0x0028, number) for number in (0x02, 0x04, 0x08, 0x10, 0x11, 0x30, 0x100, 0x101, 0x102, 0x103)),
)
_INTERCEPT, _SLOPE = (0x0028, 0x1052), (0x0028, 0x1053)
_CHARACTERS: Tag = (0x0008, 0x0005)
_PIXELS: Tag = (0x7FE0, 0x0010)


# Of what the sound slice holds, and PS3.6.
_KINDS = {
    **dict.fromkeys([(0x0008, 0x0016), (0x0008, 0x0018), (0x0020, 0x000D), _SERIES], b"UI"),
    **dict.fromkeys([_POSITION, _DIRECTION, _SPACING, _INTERCEPT, _SLOPE], b"DS"),
    **dict.fromkeys([_SAMPLES, _ROWS, _COLUMNS, _BITS, _STORED, _HIGH, _SIGNED], b"US"),
    **dict.fromkeys([(0x0008, 0x0060), _PHOTOMETRIC], b"CS"),
    _PIXELS: b"OW",
}


def _elements(content: bytes) -> dict[Tag, Element]:
    """The elements of a file as SimpleITK writes it, without kinds but for those of the head."""
    found, place = {}, _HEAD
    while place < len(content):
        tag = struct.unpack_from("<2H", content, place)
        if tag[0] != 2:
            kind, (length,), start = _KINDS.get(tag, b""), struct.unpack_from("<I", content, place + 4), place + 8
        else:
            kind = content[place + 4 : place + 6]
            long = kind in _LONG
            (length,) = struct.unpack_from("<I" if long else "<H", content, place + (8 if long else 6))
            start = place + (12 if long else 8)
        found[tag] = (kind, content[start : start + length])
        place = start + length
    return {tag: element for tag, element in found.items() if element[0]}


def _element(tag: Tag, kind: bytes, value: bytes, length: int | None = None) -> bytes:
    value += b" " * (len(value) % 2)
    length = len(value) if length is None else length
    long = kind in _LONG
    return struct.pack("<2H2s", *tag, kind) + struct.pack("<2xI" if long else "<H", length) + value


def _dicom(change: Mapping[Tag, bytes | Element | None], pixels: bytes | None = None) -> Write:
    """The sound slice with other values of elements, None for none; `pixels` is its last element, head and all."""

    def write(path: Path, scene: Scene) -> None:
        elements = _elements(scene.good) | {_SYNTAX: (b"UI", b"1.2.840.10008.1.2.1\0")}
        for tag, value in change.items():
            kind = elements[tag][0] if tag in elements else _KINDS.get(tag, b"LO")
            if value is None:
                elements.pop(tag, None)
            else:
                elements[tag] = value if isinstance(value, tuple) else (kind, value)
        own = _element(_PIXELS, *elements.pop(_PIXELS))
        elements.pop((0x0002, 0x0000), None)
        meta = b"".join(_element(tag, *value) for tag, value in sorted(elements.items()) if tag[0] == 2)
        body = b"".join(_element(tag, *value) for tag, value in sorted(elements.items()) if tag[0] > 2)
        length = _element((0x0002, 0x0000), b"UL", struct.pack("<I", len(meta)))
        path.write_bytes(bytes(128) + b"DICM" + length + meta + body + (own if pixels is None else pixels))

    return write


def _short(value: int) -> bytes:
    return struct.pack("<H", value)


def _syntax(uid: str, pixels: bytes | None = None) -> Write:
    return _dicom({_SYNTAX: (b"UI", uid.encode() + b"\0" * (len(uid) % 2))}, pixels)


def _pieces(*pieces: bytes) -> bytes:
    """Pixels in pieces, as compressed ones are: an empty table of offsets, and an end."""
    items = b"".join(struct.pack("<2HI", 0xFFFE, 0xE000, len(piece)) + piece for piece in (b"", *pieces))
    return struct.pack("<2H2s2xI", *_PIXELS, b"OB", _ENDLESS) + items + struct.pack("<2HI", 0xFFFE, 0xE0DD, 0)


def _nested(depth: int) -> Element:
    """Sequences in sequences, without lengths and without end."""
    item = struct.pack("<2HI", 0xFFFE, 0xE000, _ENDLESS)
    return b"SQ", (item + struct.pack("<2H2s2xI", 0x0040, 0xA730, b"SQ", _ENDLESS)) * depth


def _neighbour(path: Path, scene: Scene) -> None:
    """The slice beside it, once more."""
    path.write_bytes(path.with_name("000.dcm").read_bytes())


DICOM: dict[str, Write] = {
    "claims 65535 x 65535": _dicom({_ROWS: _short(65535), _COLUMNS: _short(65535)}),
    "a link to a pipe": lambda path, scene: path.symlink_to(scene.pipe),
    "JPEG that is none": _syntax("1.2.840.10008.1.2.4.70", _pieces(b"\xff\xd8\xff" + bytes(999))),
    "another series": _dicom({_SERIES: b"1.2.3.99"}),
    "JPEG without pieces": _syntax("1.2.840.10008.1.2.4.70"),
    "JPEG of 12 bits that is none": _syntax("1.2.840.10008.1.2.4.51", _pieces(b"\xff\xd8\xff\xc1" + bytes(999))),
    "JPEG-LS that is none": _syntax("1.2.840.10008.1.2.4.80", _pieces(b"\xff\xd8\xff\xf7" + bytes(999))),
    "JPEG 2000 that is none": _syntax("1.2.840.10008.1.2.4.90", _pieces(b"\xff\x4f\xff\x51" + bytes(999))),
    "MPEG": _syntax("1.2.840.10008.1.2.4.100", _pieces(bytes(999))),
    "runs that are none": _syntax("1.2.840.10008.1.2.5", _pieces(bytes(999))),
    "no such packing": _syntax("1.2.3"),
    "big-endian that is not": _syntax("1.2.840.10008.1.2.2"),
    "no side": _dicom({_ROWS: _short(0)}),
    "rows of texts": _dicom({_ROWS: (b"LO", b"many")}),
    "one row more": _dicom({_ROWS: _short(41)}),
    "10^9 frames": _dicom({_FRAMES: (b"IS", b"1000000000")}),
    "-1 frames": _dicom({_FRAMES: (b"IS", b"-1")}),
    "in colour": _dicom({_SAMPLES: _short(3), _PHOTOMETRIC: b"RGB"}),
    "64 bits": _dicom({_BITS: _short(64), _STORED: _short(64), _HIGH: _short(63)}),
    "no bits": _dicom({_BITS: _short(0)}),
    "no pixels": _dicom({}, b""),
    "pixels too short": _dicom({_PIXELS: bytes(99)}),
    "pixels of 2^32 bytes": _dicom({}, _element(_PIXELS, b"OW", bytes(3200), 0xFFFFFFFE)),
    "pixels without end": _dicom({}, _element(_PIXELS, b"OW", bytes(3200), _ENDLESS)),
    "lies where its neighbour lies": _neighbour,
    "lies 1 m away": _dicom({_POSITION: b"1\\2\\1000"}),
    "position NaN": _dicom({_POSITION: b"nan\\nan\\nan"}),
    "position infinite": _dicom({_POSITION: b"1\\2\\inf"}),
    "position 1e300": _dicom({_POSITION: b"1\\2\\1e300"}),
    "position of texts": _dicom({_POSITION: b"here\\there\\nowhere"}),
    "no position": _dicom({_POSITION: None}),
    "direction of zeros": _dicom({_DIRECTION: b"0\\0\\0\\0\\0\\0"}),
    "direction NaN": _dicom({_DIRECTION: b"nan\\0\\0\\0\\1\\0"}),
    "direction of one number": _dicom({_DIRECTION: b"1"}),
    "no direction": _dicom({_DIRECTION: None}),
    "spacing 0": _dicom({_SPACING: b"0\\0"}),
    "spacing -1": _dicom({_SPACING: b"-1\\-1"}),
    "spacing NaN": _dicom({_SPACING: b"nan\\nan"}),
    "no spacing": _dicom({_SPACING: None}),
    "slope NaN": _dicom({_SLOPE: (b"DS", b"nan")}),
    "slope infinite": _dicom({_SLOPE: (b"DS", b"inf")}),
    "slope 1e300": _dicom({_SLOPE: (b"DS", b"1e300")}),
    "a report": _dicom({_CLASS: (b"UI", b"1.2.840.10008.5.1.4.1.1.88.11\0")}, b""),
    "magic alone": writes(bytes(128) + b"DICM"),
    "text": writes("hello\n" * 999),
}

DICOM_ODD: dict[str, Write] = {
    "deflated that is not": _syntax("1.2.840.10008.1.2.1.99"),
    "10^5 sequences in sequences": _dicom({(0x0040, 0xA730): _nested(10**5)}),
    "100 sequences in sequences": _dicom({(0x0040, 0xA730): _nested(100)}),
    "a text of 30 MB": _dicom({(0x0040, 0xA160): (b"UT", b"x" * 30 * 2**20)}),
    "letters of no kind": _dicom({_CHARACTERS: (b"CS", b"\xff\xfe\\ISO 9999")}),
    "moves the cursor": _dicom({_SERIES: b"\x1b[2J\n"}),
    "a series' name of 60000 letters": _dicom({_SERIES: b"1" * 60000}),
    "slope 0": _dicom({_SLOPE: (b"DS", b"0")}),
    "slope of texts": _dicom({_SLOPE: (b"DS", b"steep")}),
    "intercept 1e30": _dicom({_INTERCEPT: (b"DS", b"1e30")}),
    "a sign of no kind": _dicom({_SIGNED: _short(9)}),
    "12 bits at the top": _dicom({_STORED: _short(12), _HIGH: _short(15)}),
}

DICOM_SOUND: dict[str, Write] = {
    "put together again": _dicom({}),
    "a private element": _dicom({(0x0009, 0x0010): (b"LO", b"SOMEONE")}),
}
