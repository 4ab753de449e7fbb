"""The memory of a look at a folder of one's own: believed where it can be true, and else as if it were not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets.looks
import pytest

from datasets.sets.folder import Folder, look_through
from tests.own_data import write_pictures, write_volumes

Seen = dict[str, Any]


def rewritten(root: Path, change: Callable[[Seen], object]) -> None:
    path = root / "lists/looked.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content["case 1"])
    path.write_text(json.dumps(content))


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Folder]:
    root = write_pictures(tmp_path / "own", 4)
    return root, look_through(root, root / "lists")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pairs that are looked at."""
    names, look_at = [], datasets.looks.look_at
    monkeypatch.setattr(datasets.looks, "look_at", lambda pair, *how: [names.append(pair.name), look_at(pair, *how)][1])
    return names


LOOKS = {
    "of another stamp": lambda seen: seen.update(stamp=[1, 2, 3, 4], look=[3, [0, 1, 2], ""]),
    "channels of no picture": lambda seen: seen["look"].__setitem__(0, 7),
    "channels of texts": lambda seen: seen["look"].__setitem__(0, "3"),
    "values of texts": lambda seen: seen["look"].__setitem__(1, ["0"]),
    "a fraction": lambda seen: seen["look"].__setitem__(1, [0, 0.5]),
    "values beyond 255": lambda seen: seen["look"].__setitem__(1, [0, 10**30]),
    "values twice": lambda seen: seen["look"].__setitem__(1, [0, 255, 255]),
    "no values": lambda seen: seen["look"].__setitem__(1, None),
    "no axis": lambda seen: seen["look"].__setitem__(2, "w"),
    "an axis of a picture": lambda seen: seen.update(look=[3, [0, 255], "z"]),
    "too little": lambda seen: seen.update(look=[3]),
    "too much": lambda seen: seen.update(look=[3, [0, 255], "", 1]),
    "nothing": lambda seen: seen.clear(),
}


@pytest.mark.parametrize("kind", LOOKS)
def test_what_no_look_can_have_been_is_not_believed(own: tuple[Path, Folder], read: list[str], kind: str) -> None:
    root, found = own
    rewritten(root, LOOKS[kind])
    assert look_through(root, root / "lists") == found
    assert "case 1" in read
    read.clear()
    assert look_through(root, root / "lists") == found and not read, "mended"


def test_a_picture_is_no_volume(tmp_path: Path, read: list[str]) -> None:
    root = write_volumes(tmp_path / "own")
    found = look_through(root, root / "lists")
    path = root / "lists/looked.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["case1"]["look"] = [1, [0, 1, 2], ""]
    path.write_text(json.dumps(content))
    read.clear()
    assert look_through(root, root / "lists") == found and read == ["case1"]


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_list_that_leads_nowhere_is_no_reason_to_split_anew(own: tuple[Path, Folder], part: str) -> None:
    root, _ = own
    path = root / f"lists/{part}.txt"
    path.unlink(missing_ok=True)
    path.symlink_to("absent.txt")
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{part}\.txt: no such list"):
        look_through(root, root / "lists")
    assert path.is_symlink()


def deep(path: Path) -> None:
    path.write_text("[" * 10**5, encoding="utf-8")


def giant(path: Path) -> None:
    """As long as no look at four pairs can be, and blank."""
    path.write_text(" " * 2**15 + path.read_text(encoding="utf-8"), encoding="utf-8")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [deep, giant, pipe])
def test_a_file_of_another_kind_is_passed_over(own: tuple[Path, Folder], read: list[str], spoil: Callable) -> None:
    root, found = own
    spoil(root / "lists/looked.json")
    assert look_through(root, root / "lists") == found and len(read) == 4
