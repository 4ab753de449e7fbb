"""The parts of a cross-validation."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.splits import draw_folds, held_out, read_folds, write_folds

CASES = [f"case{i:02d}" for i in range(11)]


@pytest.mark.parametrize("folds", [2, 3, 5, 11])
def test_each_case_is_in_one_part_of_equal_parts(folds: int) -> None:
    parts = draw_folds(CASES, folds)
    assert sorted(case for part in parts for case in part) == CASES
    sizes = [len(part) for part in parts]
    assert len(parts) == folds and max(sizes) - min(sizes) <= 1


def test_they_follow_from_the_names_alone() -> None:
    assert draw_folds(reversed(CASES), 3) == draw_folds([*CASES, *CASES], 3)
    assert draw_folds(CASES, 3) != [CASES[0::3], CASES[1::3], CASES[2::3]], "at random"


def test_what_was_written_is_used_again(tmp_path: Path) -> None:
    path, own = tmp_path / "folds_2.json", [CASES[:5], CASES[5:]]
    assert read_folds(path, CASES, 2) == draw_folds(CASES, 2)
    write_folds(path, own)
    assert read_folds(path, CASES, 2) == own and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"folds": 3}', '{"folds": [["case00"], ["case00"]]}', '{"folds": [["a"], ["b"]]}', '{"folds": [[1]]}'],
)
def test_a_file_of_other_cases_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "folds_2.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path.name}: .*remove it"):
        read_folds(path, CASES, 2)


def test_more_parts_than_cases() -> None:
    with pytest.raises(ValueError, match="--folds is 12, but there are 11 cases"):
        draw_folds(CASES, 12)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="--list_dir"):
        write_folds(tmp_path / "absent" / "folds_2.json", [CASES])


def test_held_out() -> None:
    names = ["a_slice0", "a_slice1", "b_slice0"]
    assert held_out(names, ["a"], lambda name: name[0]) == (["b_slice0"], ["a_slice0", "a_slice1"])
