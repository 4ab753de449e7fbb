"""What is wrong with files: errors and defects that name them, and what a file may claim."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger(__name__)

# Bounds on what a file may claim of itself, for what it claims costs it nothing.
MAX_PIXELS = 2**26  # a slice of 8192 x 8192
MAX_VOXELS = 2**30  # a scan of 512 x 512 x 4096
MAX_NAME = 200  # bytes; a file system takes 255, and the suffix is still to come

_DEFECTS_SHOWN = 8  # in one line; a command prints each on a line of its own before


class BadFile(ValueError):
    """A file that is read but cannot be used; the message names it."""


class Defect(NamedTuple):
    """One thing that is wrong: the file it is in, and what was found, what was expected and what to do."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def defect_of(path: Path, error: Exception) -> Defect:
    """An error that was raised of a file, as a defect of it; the path, which stands before it, is not said again."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Defect(path, text.removeprefix(f"{path}: "))


class Defects(ValueError):
    """Everything that is wrong with what was given, found before anything was begun; `defects` has each by its file.

    As text it is one line: `where`, how many there are, and the first of them.
    """

    def __init__(self, where: object, defects: Sequence[Defect]) -> None:
        self.where, self.defects = where, tuple(defects)
        shown = "; ".join(map(str, self.defects[:_DEFECTS_SHOWN]))
        more = len(self.defects) - _DEFECTS_SHOWN
        super().__init__(
            f"{where}: {len(self.defects)} defect{'s' * (len(self.defects) > 1)}, nothing was begun: {shown}"
            + (f"; and {more} more" if more > 0 else "")
        )


def brief(error: Exception) -> str:
    """The first line of an error's text, shortened, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return shorten(lines[0]) if lines else type(error).__name__


def shorten(text: str, length: int = 160) -> str:
    """The text, cut off where it is longer: what a file says may be a message's whole page."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


@cache
def warn_once(message: str) -> None:
    """Log a warning, once however often a file is read."""
    _log.warning("%s", message)
