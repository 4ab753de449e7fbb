"""Reading back a summary: what test.py wrote comes back as it is, anything else is refused by its file and place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.summary import is_number, read_summary, summarize, write_json
from tests.evaluation.test_report import ORGANS, in_mm, results


@pytest.mark.parametrize("made", [results, in_mm])
def test_what_was_written_comes_back(made: Any, tmp_path: Path) -> None:
    summary = summarize(made(), ORGANS)
    write_json(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path) == summary


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("cases",), [], "0 cases"),
        (("cases", 0), 3, "TypeError"),
        (("cases", 0, "name"), ["a"], "the name of a case is no text"),
        (("cases", 0, "name"), 3, "the name of a case is no text"),
        (("unit",), None, "the unit"),
        (("published",), "dice", "TypeError"),
        (("published", "per_class"), {}, "0 classes"),
        (("cases", 0, "strict"), None, "TypeError"),
        (("cases", 0, "strict", "per_class"), {"heart": {}}, "its strict classes are heart"),
        (("cases", 0, "strict", "dice"), float("nan"), "its strict dice is nan"),
        (("cases", 0, "published", "dice"), None, "its published dice is None"),
        (("cases", 0, "published", "dice"), True, "its published dice is True"),
        (("cases", 0, "published", "hd95"), "3", "its published hd95 is '3'"),
        (("cases", 0, "published", "jaccard"), 1.5, "its published jaccard is 1.5"),
        (("cases", 0, "published", "per_class", ORGANS[0], "assd"), -1, "its published assd is -1"),
    ],
)
def test_a_damaged_summary_is_refused(place: tuple[Any, ...], value: Any, message: str, tmp_path: Path) -> None:
    summary = summarize(results(), ORGANS)
    node: Any = summary
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError) as caught:
        read_summary(tmp_path)
    assert f"{tmp_path / 'summary.json'}: is no summary that test.py wrote" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 5000])
def test_what_is_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match="summary.json: is not a JSON file"):
        read_summary(tmp_path)


def test_numbers() -> None:
    assert is_number(0) and is_number(1.0) and is_number(-1, lowest=-1.0)
    for value in (True, "1", None, float("nan"), float("inf"), 10**400, -0.1):
        assert not is_number(value)
    assert not is_number(1.1, highest=1.0)
