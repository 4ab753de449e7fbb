"""SimpleITK as it is used here: quiet, told no name that ends it, and its errors in a line."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import SimpleITK


def check_name(path: Path) -> None:
    """Refuse a name that is not UTF-8: SimpleITK ends the whole process at it.

    Raises:
        ValueError: it is such a name.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: its name is not UTF-8; expected one that is, so rename it") from None


def quiet_sitk() -> ModuleType:
    """SimpleITK, with its warnings kept off standard error: every failure here becomes an exception of one line.

    The switch is the process's: switched back by one thread, it would let a warning of another through.
    """
    # Imported where it is needed: it is slow to load, and most of what reads data does without it.
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


def header_reader(sitk: SimpleITK, image_io: str, path: Path) -> SimpleITK.ImageFileReader:
    """A reader of a file by the part of ITK of that name, such as "NiftiImageIO", its header read.

    Raises:
        RuntimeError: ITK does not take the header.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def brief_of_itk(error: Exception) -> str:
    """The last line of an error's text, where ITK says what is wrong, without the name of its part."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^(ITK ERROR: )?(\w+\(0x[0-9a-f]+\): )?", "", lines[-1]).strip()
