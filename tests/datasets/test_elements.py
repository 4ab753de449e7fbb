"""The elements of DICOM files: lengths that lead out of the file are found, in every way that elements are written."""

from __future__ import annotations

import io
import struct

import pytest

from datasets.elements import check_elements

IMPLICIT, EXPLICIT, BIG_ENDIAN = b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"
ENDLESS = 0xFFFFFFFF


def element(group: int, number: int, kind: bytes, value: bytes, length: int | None = None) -> bytes:
    """One element; without a kind where `kind` is empty."""
    length = len(value) if length is None else length
    if not kind:
        return struct.pack("<2HI", group, number, length) + value
    layout = "<2H2s2xI" if kind in (b"OB", b"OW", b"SQ", b"UN", b"UT") else "<2H2sH"
    return struct.pack(layout, group, number, kind, length) + value


def item(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<2HI", 0xFFFE, 0xE000, len(content) if length is None else length) + content


ITEM_ENDS, ENDS = (struct.pack("<2HI", 0xFFFE, number, 0) for number in (0xE00D, 0xE0DD))


def check(syntax: bytes, *elements: bytes) -> None:
    content = bytes(128) + b"DICM" + element(2, 0x10, b"UI", syntax) + b"".join(elements)
    check_elements(io.BytesIO(content), len(content))


ROWS = element(0x28, 0x10, b"US", b"\x08\0")
PLAIN_ROWS = element(0x28, 0x10, b"", b"\x08\0")
SOUND = {
    "explicit": (EXPLICIT, ROWS, element(0x7FE0, 0x10, b"OW", bytes(128))),
    "implicit": (IMPLICIT, PLAIN_ROWS, element(0x7FE0, 0x10, b"", bytes(128))),
    "written otherwise than it says": (IMPLICIT, ROWS, element(0x7FE0, 0x10, b"OW", bytes(128))),
    "a sequence": (EXPLICIT, ROWS, element(0x40, 0x10, b"SQ", item(ROWS) + item(ROWS)), ROWS),
    "one without length": (
        *(EXPLICIT, ROWS),
        element(0x40, 0x10, b"SQ", item(ROWS, ENDLESS) + ITEM_ENDS + ENDS, ENDLESS),
        ROWS,
    ),
    "one without length or kinds": (
        *(IMPLICIT, PLAIN_ROWS),
        element(0x40, 0x10, b"", item(PLAIN_ROWS, ENDLESS) + ITEM_ENDS + ENDS, ENDLESS),
        PLAIN_ROWS,
    ),
    # What is in the pieces of a packed picture is no element, though it may look like one.
    "pixels in pieces": (
        *(EXPLICIT, ROWS),
        element(0x7FE0, 0x10, b"OB", item(b"") + item(element(8, 8, b"LO", b"", 9999)) + ENDS, ENDLESS),
    ),
    "an unknown kind": (EXPLICIT, ROWS, element(0x9, 0x10, b"XX", b"", 9999)),
    "unknown, without length": (EXPLICIT, ROWS, element(0x9, 0x10, b"UN", item(PLAIN_ROWS), ENDLESS)),
    "big-endian": (BIG_ENDIAN, bytes(99)),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_fits_is_taken(kind: str) -> None:
    check(*SOUND[kind])


LIES = {
    "explicit": (EXPLICIT, ROWS, element(8, 8, b"LO", b"abcd", 6)),
    "of four bytes": (EXPLICIT, ROWS, element(8, 8, b"UT", b"abcd", 0xFFFFFFFE)),
    "implicit": (IMPLICIT, PLAIN_ROWS, element(8, 8, b"", b"abcd", 2**31)),
    "in a sequence": (EXPLICIT, ROWS, element(0x40, 0x10, b"SQ", item(element(8, 8, b"UT", b"ab", 2**31)))),
    "an item": (EXPLICIT, ROWS, element(0x40, 0x10, b"SQ", item(ROWS, 2**31), ENDLESS)),
    "a piece": (EXPLICIT, ROWS, element(0x7FE0, 0x10, b"OB", item(b"") + item(bytes(8), 2**31), ENDLESS)),
    "the head": (EXPLICIT, element(2, 0x12, b"UI", b"1.2", 999)),
}


@pytest.mark.parametrize("kind", LIES)
def test_what_leads_out_of_the_file_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"its element \([0-9a-f]{4},[0-9a-f]{4}\) claims \d+ bytes where \d+ follow"):
        check(*LIES[kind])


def test_what_bears_no_mark_is_left_to_its_reader() -> None:
    check_elements(io.BytesIO(b"\xff" * 999), 999)
    check_elements(io.BytesIO(b""), 0)
