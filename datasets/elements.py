"""The elements of a DICOM file, as far as to see whether it can hold what it says (PS3.5, chapter 7)."""

from __future__ import annotations

import struct
from typing import BinaryIO

_PREAMBLE, _MARK = 128, b"DICM"
_ENDLESS = 0xFFFFFFFF  # a length that a delimiter tells
_PARTS = 0xFFFE  # the group of items and delimiters, which have no kind
_META = 2
_PIXELS = (0x7FE0, 0x10)
_SYNTAX = (2, 0x10)  # how all that follows the group 2 is written
_OTHERWISE = (b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99")  # big-endian; deflated
# Kinds of values; those of the second line have a length of four bytes.
_SHORT = b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
_LONG = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()


def check_lengths(file: BinaryIO, size: int) -> None:
    """Refuse a file of which an element claims to be longer than what is left of the file.

    GDCM would take the memory for it first, up to 4 GB. What is written as no element can be is left to GDCM to judge.

    Args:
        file: open at its beginning.
        size: bytes in it.

    Raises:
        ValueError: it is such a file; the message says which element.
    """
    if file.read(_PREAMBLE + len(_MARK))[_PREAMBLE:] != _MARK:
        return
    has_kinds, in_pixels = None, False
    while len(head := file.read(8)) == 8:
        group, number, kind, length = struct.unpack("<2H2sH", head)
        if group > _META and has_kinds is None:
            has_kinds = kind in _SHORT or kind in _LONG
        if group == _PARTS or (group > _META and not has_kinds):
            (length,) = struct.unpack_from("<I", head, 4)
            kind = b""
        elif kind in _LONG:
            length = int.from_bytes(file.read(4), "little")
        elif kind not in _SHORT:
            return
        in_pixels = in_pixels or (group, number) == _PIXELS
        if length == _ENDLESS:
            if kind == b"UN":  # its inside may be written otherwise
                return
            continue  # what is in it follows, as if it were not within
        if length > size - file.tell():
            left = size - file.tell()
            raise ValueError(f"its element ({group:04x},{number:04x}) claims {length} bytes where {left} follow")
        if (group, number) == _SYNTAX:
            if file.read(length).rstrip(b"\0 ") in _OTHERWISE:
                return
        elif kind != b"SQ" and (group != _PARTS or in_pixels):
            file.seek(length, 1)
