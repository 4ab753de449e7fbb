"""The elements of a DICOM file, as far as to see whether it holds what it says (PS3.5, chapters 7 and 10).

GDCM takes the memory that an element claims before it looks whether there is so much, follows sequences in sequences to
the end of the stack, and hands out whatever is in memory for pixels that are not there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

_PREAMBLE, _MARK = 128, b"DICM"
_ENDLESS = 0xFFFFFFFF  # a length that a delimiter tells
_DEEPEST = 100  # sequences and items in one another
_PARTS, _ITEM = 0xFFFE, 0xE000  # the group of items and delimiters, which have no kind
_META = 2  # the group that is always written in one way

Tag = tuple[int, int]
_SYNTAX: Tag = (_META, 0x10)  # how all other groups are written
_PIXELS: Tag = (0x7FE0, 0x10)
_SIZE = {(0x28, 0x02): 1, (0x28, 0x10): 0, (0x28, 0x11): 0, (0x28, 0x100): 0}  # samples, rows, columns, bits

# Kinds of values; those of the second line have a length of four bytes.
_SHORT = b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
_LONG = b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()

_UID = b"1.2.840.10008.1.2"
_OTHERWISE = (_UID + b".2", _UID + b".1.99", b"1.2.840.113619.5.2")  # big-endian; deflated; GE's own
_PLAIN = (_UID, _UID + b".1")
# Packed pixels, and what a piece of them begins with.
_RUNS = tuple(bytes([count, 0, 0, 0]) for count in range(1, 16))
_JPEG, _JPEG_2000 = b"\xff\xd8\xff", (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")
_PACKED = {_UID + b".5": _RUNS, **{_UID + b".4." + number: _JPEG for number in b"50 51 57 70 80 81".split()}}
_PACKED |= {_UID + b".4." + number: _JPEG_2000 for number in b"90 91".split()}


class _Unknown(Exception):
    """What follows is written as no element can be, or otherwise than here."""


def check_elements(file: BinaryIO, size: int) -> bool:
    """Refuse a file whose elements claim more than it holds, or whose pixels are not what its header promises.

    What is not written as elements are, and what is big-endian or deflated, is left to GDCM to judge.

    Returns whether the pixels are packed in a way that only their reader can judge.

    Args:
        file: open at its beginning.
        size: bytes in it.

    Raises:
        ValueError: it is such a file; the message says what is wrong.
    """
    if file.read(_PREAMBLE + len(_MARK))[_PREAMBLE:] != _MARK:
        return True
    syntax, numbers, pieces = b"", dict(_SIZE), None
    try:
        for tag, length, depth in _elements(file, size):
            if tag == _SYNTAX:
                syntax = file.read(length).rstrip(b"\0 ")
                if syntax in _OTHERWISE:
                    return True
            elif tag in _SIZE and depth == 0 and length == 2:
                numbers[tag] = int.from_bytes(file.read(2), "little")
            elif tag == _PIXELS and depth == 0:
                pieces = 0
                _check_pixels(syntax, numbers, length)
            elif tag == (_PARTS, _ITEM) and pieces is not None:
                pieces += 1
                if pieces == 2 and not file.read(length).startswith(_PACKED[syntax]):  # the first is a table
                    raise ValueError(f"its pixels do not begin as those of its packing {syntax.decode()} do")
    except _Unknown:
        return True
    if pieces is None or (syntax in _PACKED and pieces < 2):
        raise ValueError("it holds no pixels")
    return syntax in _PACKED


def _check_pixels(syntax: bytes, numbers: dict[Tag, int], length: int) -> None:
    samples, rows, columns, bits = numbers.values()
    if syntax not in _PLAIN and syntax not in _PACKED:
        raise ValueError(f"its pixels are packed as {syntax[:64].decode(errors='replace')}, which is not read")
    if (length == _ENDLESS) != (syntax in _PACKED):
        raise ValueError(f"its pixels are not packed as its packing {syntax.decode()} says")
    expected = samples * rows * columns * bits // 8
    if length < expected:
        raise ValueError(f"its pixels have {length} bytes; expected {expected} of {rows} x {columns} of {bits} bits")


def _elements(file: BinaryIO, size: int) -> Iterator[tuple[Tag, int, int]]:
    """Each element's tag and length, and in how many others it is; `file` is where its value begins."""
    has_kinds, in_pixels = None, False
    ends: list[int] = []  # where the sequences and items end that this element is in
    while len(head := file.read(8)) == 8:
        group, number, kind, length = struct.unpack("<2H2sH", head)
        if group > _META and has_kinds is None:
            has_kinds = kind in _SHORT or kind in _LONG
        if group == _PARTS or (group > _META and not has_kinds):
            kind, (length,) = b"", struct.unpack_from("<I", head, 4)
        elif kind in _LONG:
            length = int.from_bytes(file.read(4), "little")
        elif kind not in _SHORT:
            if group <= _META:
                raise ValueError(f"its element ({group:04x},{number:04x}) is of no kind of values")
            raise _Unknown
        start = file.tell()
        if length != _ENDLESS and length > size - start:
            claim = f"claims {length} bytes where {size - start} follow"
            raise ValueError(f"its element ({group:04x},{number:04x}) {claim}")
        yield (group, number), length, len(ends)
        in_pixels = in_pixels or ((group, number) == _PIXELS and not ends)
        if group == _PARTS and number != _ITEM:
            del ends[-1:]
        elif length == _ENDLESS and kind == b"UN":  # its inside may be written otherwise
            raise _Unknown
        elif length == _ENDLESS or kind == b"SQ" or (group == _PARTS and not in_pixels):
            ends.append(size if length == _ENDLESS else start + length)
            if len(ends) > _DEEPEST:
                raise ValueError(f"its sequences are {len(ends)} deep")
        else:
            file.seek(start + length)
        while ends and file.tell() >= ends[-1]:
            ends.pop()
