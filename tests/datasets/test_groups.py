"""groups.csv: no split and no fold divides a group, and a bad file is reported before anything is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import test
import train
from datasets import inspect
from datasets.errors import Defects
from datasets.sets.folder import find_cases
from datasets.splits import draw_folds, read_folds, read_groups, write_folds
from evaluation.summary import read_summary
from tests.conftest import ROOT
from tests.own_data import write_images

PAIRS = 12


def grouped(root: Path, of: int = 2) -> tuple[Path, dict[str, str]]:
    """Images, so many of each person."""
    write_images(root, PAIRS * of)
    groups = {case.name: f"person {number // of}" for number, case in enumerate(find_cases(root)[0])}
    write_groups(root, list(groups.items()))
    return root, groups


def write_groups(root: Path, rows: list[tuple[str, str]], head: str = "case,person") -> None:
    (root / "groups.csv").write_text("\n".join([head, *(f"{case},{group}" for case, group in rows)]) + "\n")


def parts_of(root: Path) -> dict[str, list[str]]:
    return {path.stem: path.read_text(encoding="utf-8").split("\n")[:-1] for path in (root / "lists").glob("*.txt")}


@pytest.mark.parametrize("of", [1, 2, 3])
def test_no_split_divides_a_person(tmp_path: Path, of: int) -> None:
    root, groups = grouped(tmp_path / "own", of)
    inspect("Folder", root_path=str(root))
    parts = parts_of(root)
    persons = {part: {groups[name] for name in names} for part, names in parts.items()}
    assert sorted(name for names in parts.values() for name in names) == sorted(groups)
    assert not persons["train"] & persons["test"] and not persons["train"] & persons["val"]
    assert not persons["val"] & persons["test"]
    count = PAIRS * of
    assert 0 <= len(parts["test"]) - round(0.2 * count) < of and 0 <= len(parts["val"]) - round(0.1 * count) < of


def test_without_the_file_and_with_a_person_a_case_the_split_is_the_same(tmp_path: Path) -> None:
    one, _ = grouped(tmp_path / "one", 1)
    two = write_images(tmp_path / "two", PAIRS)
    for root in (one, two):
        inspect("Folder", root_path=str(root))
    assert parts_of(one) == parts_of(two) and read_groups(two) == {}


def test_no_fold_divides_a_person(tmp_path: Path) -> None:
    root, groups = grouped(tmp_path / "own")
    folds = draw_folds(groups, 5, groups=groups)
    persons = [{groups[name] for name in fold} for fold in folds]
    assert sorted(name for fold in folds for name in fold) == sorted(groups)
    assert sum(map(len, persons)) == PAIRS and max(map(len, persons)) - min(map(len, persons)) <= 1
    inspect("Folder", root_path=str(root), folds=3)
    written = root / "lists/folds_3.json"
    folds = read_folds(written, [n for part in ("train", "val") for n in parts_of(root)[part]], 3, groups=groups)
    assert sum(len({groups[name] for name in fold}) for fold in folds) == len({groups[n] for f in folds for n in f})
    first, second = sorted(groups)[:2]
    write_folds(written, [[first], [second]])
    with pytest.raises(ValueError, match=r"group person 0 is in fold 0 .* and in fold 1"):
        read_folds(written, [first, second], 2, groups=groups)
    with pytest.raises(ValueError, match="there are 12 groups of cases to divide"):
        draw_folds(groups, 13, groups=groups)


def test_a_test_says_whose_its_cases_are(tmp_path: Path) -> None:
    root, groups = grouped(tmp_path / "own")
    words = [
        "--dataset",
        "Folder",
        "--root_path",
        str(root),
        "--cfg",
        str(ROOT / "configs/unet_224.yaml"),
        "--output_dir",
    ]
    words += [str(tmp_path / "run"), *"--img_size 32 --max_epochs 1 --workers 0 --opts MODEL.UNET.WIDTH 4".split()]
    assert train.main(words) == 0
    assert test.main(["--output_dir", str(tmp_path / "run")]) == 0
    summary = read_summary(tmp_path / "run")
    assert summary.groups == [groups[name] for name in summary.cases] and len(set(summary.groups)) < len(summary.cases)


def refused(root: Path) -> list[str]:
    before = sorted(root.rglob("*"))
    with pytest.raises(Defects) as raised:
        inspect("Folder", root_path=str(root))
    assert sorted(root.rglob("*")) == before
    return [f"{defect.path.name}: {defect.what}" for defect in raised.value.defects]


def test_a_person_in_two_lists(tmp_path: Path) -> None:
    root, groups = grouped(tmp_path / "own")
    inspect("Folder", root_path=str(root))
    parts = parts_of(root)
    moved = parts["test"][0]
    sibling = next(name for name in groups if groups[name] == groups[moved] and name != moved)
    (root / "lists/test.txt").write_text("\n".join(name for name in parts["test"] if name != moved) + "\n")
    (root / "lists/train.txt").write_text("\n".join([*parts["train"], moved]) + "\n")
    (line,) = refused(root)
    assert groups[moved] in line and sibling in line and moved in line and "expected it in one" in line


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda rows: [*rows, rows[0]], "line 26 names case 0 again"),
        (lambda rows: [*rows, ("case 99", "x")], "names case 99, of which there is no pair"),
        (lambda rows: rows[1:], "does not name case 0"),
        (lambda rows: [*rows[1:], ("case 0", "")], "line 25 is .*expected a case and its group"),
        (lambda rows: [*rows[1:], ("case 0", "a,b")], "line 25 is .*expected a case and its group"),
    ],
    ids=["twice", "unknown", "missing", "no group", "three columns"],
)
def test_bad_rows(tmp_path: Path, change: Callable, expected: str) -> None:
    root, groups = grouped(tmp_path / "own")
    write_groups(root, change(list(groups.items())))
    lines = refused(root)
    assert all(line.startswith("groups.csv: ") for line in lines)
    assert any(re.search(expected, line) for line in lines), lines


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"person,case\na,b\n", b'case,person\n"a'])
def test_no_table_at_all(tmp_path: Path, content: bytes) -> None:
    root, _ = grouped(tmp_path / "own")
    (root / "groups.csv").write_bytes(content)
    assert "expected case,person" in refused(root)[0]
