"""What decodes pictures, kept quiet and bounded in time; PIL's readers are chosen by what a file begins with."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL import Image

_MOST_SCANS = 100  # of a JPEG; progressive ones have some ten, and each is a pass over the whole picture
_SCAN = b"\xff\xda"  # begins one, and stands nowhere within
_BLOCK = 2**20  # bytes


def open_content(file: BinaryIO, head: bytes) -> Image.Image:
    """Open a picture by its first bytes, `head`, not by its name; PIL's own `open` would warn of large ones on the way.

    Raises:
        ValueError: it is none of PNG, JPEG, TIFF and BMP, or a JPEG that would be decoded without end.
        Exception: whatever PIL raises at what is damaged.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        from PIL.PngImagePlugin import PngImageFile as Plugin
    elif head.startswith(b"\xff\xd8\xff"):
        from PIL.JpegImagePlugin import JpegImageFile as Plugin

        _check_scans(file)
    elif head.startswith(b"BM"):
        from PIL.BmpImagePlugin import BmpImageFile as Plugin
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        from PIL.TiffImagePlugin import TiffImageFile as Plugin

        _hush_libtiff()
    else:
        raise ValueError("it begins like no PNG, JPEG, TIFF or BMP")
    return Plugin(file)


def _check_scans(file: BinaryIO) -> None:
    scans, last = 0, b""
    while block := file.read(_BLOCK):
        scans += (last + block).count(_SCAN)
        last = block[-1:]
    file.seek(0)
    if scans > _MOST_SCANS:
        raise ValueError(f"it has {scans} scans, and no picture more than {_MOST_SCANS}")


@lru_cache
def _hush_libtiff() -> None:
    """Keep libtiff from writing of what is damaged to standard error: PIL raises, but does not ask it to be quiet."""
    from PIL import Image

    with suppress(OSError, AttributeError):  # where libtiff is part of PIL's own library, it is out of reach
        set_handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


@contextmanager
def hushed() -> Iterator[None]:
    """Drop what the process writes to standard error: GDCM's decoders tell of damage there, and in no other way.

    That of other threads is dropped too.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
