"""The elements of DICOM files: what leads out of the file, has no bottom or holds no pixels, however it is written."""

from __future__ import annotations

import io
import struct

import pytest

from datasets.elements import check_elements

IMPLICIT, EXPLICIT, BIG_ENDIAN = b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"
JPEG, RUNS, MPEG = b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.4.100\0"
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


ROWS, COLUMNS, BITS = (element(0x28, number, b"US", b"\x08\0") for number in (0x10, 0x11, 0x100))
PLAIN_ROWS = element(0x28, 0x10, b"", b"\x08\0")
PIXELS, PLAIN_PIXELS = (element(0x7FE0, 0x10, kind, bytes(64)) for kind in (b"OW", b""))


def pieces(*contents: bytes) -> bytes:
    """Packed pixels, the table before them empty."""
    return element(0x7FE0, 0x10, b"OB", b"".join(map(item, (b"", *contents))) + ENDS, ENDLESS)


def nested(depth: int) -> bytes:
    """Sequences in sequences, of known length."""
    content = ROWS
    for _ in range(depth):
        content = element(0x40, 0x10, b"SQ", item(content))
    return content


SOUND = {
    "explicit": (EXPLICIT, ROWS, COLUMNS, BITS, PIXELS),
    "implicit": (IMPLICIT, PLAIN_ROWS, PLAIN_PIXELS),
    "written otherwise than it says": (IMPLICIT, ROWS, COLUMNS, BITS, PIXELS),
    "a sequence": (EXPLICIT, ROWS, element(0x40, 0x10, b"SQ", item(ROWS) + item(ROWS)), ROWS, PIXELS),
    "one without length": (
        *(EXPLICIT, ROWS),
        element(0x40, 0x10, b"SQ", item(ROWS, ENDLESS) + ITEM_ENDS + ENDS, ENDLESS),
        *(ROWS, PIXELS),
    ),
    "one without length or kinds": (
        *(IMPLICIT, PLAIN_ROWS),
        element(0x40, 0x10, b"", item(PLAIN_ROWS, ENDLESS) + ITEM_ENDS + ENDS, ENDLESS),
        *(PLAIN_ROWS, PLAIN_PIXELS),
    ),
    "forty in one another": (EXPLICIT, nested(40), PIXELS),
    # The rows of a thumbnail are not those of the picture.
    "pixels in a sequence": (EXPLICIT, ROWS, COLUMNS, BITS, element(0x88, 0x200, b"SQ", item(ROWS + PIXELS)), PIXELS),
    # What is in the pieces of a packed picture is no element, though it may look like one.
    "pixels in pieces": (JPEG, ROWS, pieces(b"\xff\xd8\xff\xc3" + element(8, 8, b"LO", b"", 9999))),
    "in many": (JPEG, ROWS, pieces(b"\xff\xd8\xff\xc3", b"abcd", b"efgh")),
    "in runs": (RUNS, ROWS, pieces(b"\1" + bytes(63))),
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
    "a piece": (JPEG, ROWS, element(0x7FE0, 0x10, b"OB", item(b"") + item(bytes(8), 2**31), ENDLESS)),
    "the head": (EXPLICIT, element(2, 0x12, b"UI", b"1.2", 999)),
}


@pytest.mark.parametrize("kind", LIES)
def test_what_leads_out_of_the_file_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"its element \([0-9a-f]{4},[0-9a-f]{4}\) claims \d+ bytes where \d+ follow"):
        check(*LIES[kind])


NO_PIXELS = {
    "none": ((EXPLICIT, ROWS), "it holds no pixels"),
    "in a sequence alone": ((EXPLICIT, element(0x88, 0x200, b"SQ", item(PIXELS))), "it holds no pixels"),
    "too few": (
        (EXPLICIT, ROWS, COLUMNS, BITS, element(0x7FE0, 0x10, b"OW", bytes(62))),
        "62 bytes; expected 64 of 8 x",
    ),
    "no pieces": ((JPEG, ROWS, PIXELS), "are not packed as its packing 1.2.840.10008.1.2.4.70 says"),
    "pieces of what is not packed": ((EXPLICIT, ROWS, pieces(bytes(8))), "are not packed as"),
    "a table alone": ((JPEG, ROWS, pieces()), "it holds no pixels"),
    "a head of no kind": ((EXPLICIT, element(2, 0x12, b"XX", b"1.2"), PIXELS), r"\(0002,0012\) is of no kind"),
    "of no runs": ((RUNS, ROWS, pieces(bytes(64))), "do not begin as those of"),
    "of another kind": ((JPEG, ROWS, pieces(b"RIFF")), "do not begin as those of"),
    "of a kind that is not read": ((MPEG, ROWS, pieces(bytes(8))), "packed as 1.2.840.10008.1.2.4.100, which is not"),
    "behind the end of the stack": ((EXPLICIT, nested(60), PIXELS), "its sequences are 101 deep"),
    "the same without lengths": (
        (EXPLICIT, element(0x40, 0x10, b"SQ", item(b"", ENDLESS), ENDLESS) * 60),
        "its sequences are 101 deep",
    ),
}


@pytest.mark.parametrize("kind", NO_PIXELS)
def test_what_holds_no_pixels_is_refused(kind: str) -> None:
    elements, message = NO_PIXELS[kind]
    with pytest.raises(ValueError, match=message):
        check(*elements)


def test_what_bears_no_mark_is_left_to_its_reader() -> None:
    check_elements(io.BytesIO(b"\xff" * 999), 999)
    check_elements(io.BytesIO(b""), 0)
