"""JSON files that a command has written, read back by another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from utils import first_line


def read_json(path: Path, writer: str) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is none; the command that should have written it is named.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not a JSON file ({first_line(error)}); expected what {writer} writes") from None


def is_number(value: object, lowest: float = 0.0, highest: float = sys.float_info.max) -> bool:
    """Whether this is a finite number from `lowest` to `highest`."""
    return type(value) in (int, float) and lowest <= value <= highest
