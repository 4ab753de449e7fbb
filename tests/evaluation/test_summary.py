"""The summary of a test: means by hand in both conventions, as a table, as files, and read back."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.metrics import METRICS, ClassScores, compare_classes
from evaluation.summary import (
    CaseResult,
    format_table,
    is_number,
    read_summary,
    summarize,
    write_csv,
    write_json,
)
from tests.evaluation.test_overlay import NAMES, volume

ORGANS = ("liver", "spleen")
MM = ("hd95_mm", "assd_mm")
NAN = math.nan


def scores(*values: float) -> dict[str, float]:
    return dict(zip(METRICS, values, strict=True))


def measured(*values: float) -> ClassScores:
    """Neither mask is empty: the conventions agree."""
    return ClassScores(scores(*values), scores(*values))


FALSE_NEGATIVE = ClassScores(scores(0, 0, 0, 0), scores(0, NAN, 0, NAN))
FALSE_POSITIVE = ClassScores(scores(1, 0, 1, 0), scores(0, NAN, 0, NAN))
ABSENT = ClassScores(scores(0, 0, 0, 0), scores(NAN, NAN, NAN, NAN))


def results() -> list[CaseResult]:
    return [
        CaseResult("a", (measured(0.8, 4, 0.6, 2), measured(0.6, 8, 0.4, 4))),
        CaseResult("b", (measured(0.4, 2, 0.2, 1), FALSE_POSITIVE)),
        CaseResult("c", (ABSENT, ABSENT)),
    ]


def in_mm() -> list[CaseResult]:
    """The same with distances in mm too: three times those of a, twice that of b's liver."""
    a, b, c = results()
    return [
        CaseResult("a", a.scores, (measured(0.8, 12, 0.6, 6), measured(0.6, 24, 0.4, 12))),
        CaseResult("b", b.scores, (measured(0.4, 4, 0.2, 2), FALSE_POSITIVE)),
        CaseResult("c", c.scores, c.scores),
    ]


def test_published_means_by_hand() -> None:
    published = summarize(results(), ORGANS).to_json()["published"]
    # Case means of Dice: (0.8 + 0.6) / 2 = 0.7, (0.4 + 1) / 2 = 0.7, 0. HD95: 6, 1, 0.
    assert published["dice"] == pytest.approx(1.4 / 3)
    assert published["hd95"] == pytest.approx(7 / 3)
    assert published["jaccard"] == pytest.approx((0.5 + 0.6 + 0) / 3)
    assert published["assd"] == pytest.approx((3 + 0.5 + 0) / 3)
    assert published["per_class"]["liver"] == pytest.approx(scores(0.4, 2, 0.8 / 3, 1))
    assert published["per_class"]["spleen"] == pytest.approx(scores(1.6 / 3, 8 / 3, 1.4 / 3, 4 / 3))


def test_strict_means_leave_out_what_is_undefined() -> None:
    strict = summarize(results(), ORGANS).to_json()["strict"]
    # Case means of Dice: 0.7, (0.4 + 0) / 2 = 0.2, none. HD95: 6, 2 (the liver alone), none.
    assert strict["dice"] == pytest.approx(0.45)
    assert strict["hd95"] == pytest.approx(4)
    assert strict["per_class"]["liver"] == pytest.approx(scores(0.6, 3, 0.4, 1.5))
    assert strict["per_class"]["spleen"] == pytest.approx(scores(0.3, 8, 0.2, 4))
    undefined = strict["undefined"]
    assert {name: undefined[name] for name in METRICS} == scores(2, 3, 2, 3)
    assert undefined["per_class"] == {"liver": scores(1, 1, 1, 1), "spleen": scores(1, 2, 1, 2)}


def test_the_spread_is_that_of_the_cases_means() -> None:
    summary = summarize(results(), ORGANS).to_json()
    # As above; strictly c has no mean. NumPy's ddof=1 is the sample standard deviation.
    published = {"dice": [0.7, 0.7, 0], "hd95": [6, 1, 0], "jaccard": [0.5, 0.6, 0], "assd": [3, 0.5, 0]}
    strict = {"dice": [0.7, 0.2], "hd95": [6, 2], "jaccard": [0.5, 0.1], "assd": [3, 1]}
    for convention, means in (("published", published), ("strict", strict)):
        expected = {name: np.std(values, ddof=1) for name, values in means.items()}
        assert summary[convention]["std"] == pytest.approx(expected)
    for few in (results()[:1], results()[1:]):  # of b and c, c has no strict mean
        assert summarize(few, ORGANS).to_json()["strict"]["std"] == dict.fromkeys(METRICS)


def test_each_case_has_its_own_means() -> None:
    cases = summarize(results(), ORGANS).to_json()["cases"]
    assert [case["name"] for case in cases] == ["a", "b", "c"]
    assert cases[1]["published"]["dice"] == pytest.approx(0.7)
    assert cases[1]["strict"]["dice"] == pytest.approx(0.2)
    assert cases[1]["strict"]["per_class"]["spleen"] == scores(0, None, 0, None)
    assert {name: cases[2]["strict"][name] for name in METRICS} == scores(None, None, None, None)
    assert cases[2]["published"]["dice"] == 0.0


def test_distances_in_mm_are_added_to_those_in_voxels() -> None:
    plain, summary = summarize(results(), ORGANS).to_json(), summarize(in_mm(), ORGANS).to_json()
    # Case means in mm, published: (12 + 24) / 2 = 18, (4 + 0) / 2 = 2, 0; strict: 18, 4, none.
    assert summary["published"]["hd95_mm"] == pytest.approx(20 / 3)
    assert summary["strict"]["hd95_mm"] == pytest.approx(11)
    assert summary["strict"]["std"]["hd95_mm"] == pytest.approx(np.std([18, 4], ddof=1))
    assert summary["published"]["per_class"]["liver"]["assd_mm"] == pytest.approx((6 + 2 + 0) / 3)
    assert summary["strict"]["per_class"]["spleen"]["hd95_mm"] == pytest.approx(24)
    assert summary["cases"][1]["strict"]["per_class"]["spleen"]["hd95_mm"] is None

    def without_mm(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: without_mm(value) for key, value in node.items() if key not in MM}
        return [without_mm(value) for value in node] if isinstance(node, list) else node

    assert without_mm(summary) == plain, "what is in voxels stays as it is"
    mixed = [*in_mm()[:2], results()[2]]  # not every case has them
    assert summarize(mixed, ORGANS).to_json() == plain


def test_real_distances_in_mm_are_those_of_the_spacing() -> None:
    """One voxel apart along z, of 10 mm: 1 in voxels and 10 in mm."""
    truth, pred = np.zeros((2, 6, 12, 12), np.uint8)
    truth[2:4, 4:8, 4:8], pred[3:5, 4:8, 4:8] = 1, 1
    both = [compare_classes(pred, truth, 2, spacing) for spacing in (None, (10.0, 1.5, 1.5))]
    strict = summarize([CaseResult("a", *both)], ["heart"]).to_json()["strict"]
    assert (strict["hd95"], strict["hd95_mm"]) == (1.0, 10.0)


def test_from_label_arrays_to_the_summary() -> None:
    case, prediction = volume()
    summary = summarize([CaseResult(case.name, compare_classes(prediction, case.label, 4))], NAMES)
    # Class 2 is 15 columns wide and predicted two columns off: 13 of 15 in common.
    assert summary.to_json()["published"]["per_class"]["spleen"]["dice"] == pytest.approx(13 / 15)
    assert summary.undefined("hd95") == 0


def test_the_table_is_aligned_and_says_what_it_shows() -> None:
    lines = format_table(summarize(in_mm(), ORGANS)).splitlines()
    assert "HD95 and ASSD in voxels and in mm" in lines[0]
    assert lines[1].split() == ["published", "strict"]
    assert [line.count("HD95 mm") for line in lines if line.startswith(("case ", "class ", "total "))] == [2, 2, 2]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:-1]}
    assert rows["a"][:6] == "0.7000 6.00 0.5000 3.00 18.00 9.00".split()
    assert rows["c"][6:] == ["-"] * 6
    assert rows["spleen"][:2] == ["0.5333", "2.67"]
    assert rows["mean"][:4] == "0.4667 2.33 0.3667 1.17".split()
    assert rows["mean"][6:] == "0.4500 4.00 0.3000 2.00 11.00 5.50".split()
    assert [rows["std"][column] for column in (0, 6)] == [
        f"{np.std(x, ddof=1):.4f}" for x in ([0.7, 0.7, 0], [0.7, 0.2])
    ]
    assert len({len(line) for line in lines[1:-1]}) == 1
    assert lines[-1].startswith("strict: of 6 values each, 2 of Dice and 3 of HD95 are undefined")


def test_csv_read_back(tmp_path: Path) -> None:
    names = ["left, kidney", 'the "spleen"']
    write_csv(
        tmp_path / "per_case.csv", summarize([*in_mm(), CaseResult("d", *[(measured(1 / 3, 1, 1, 1),) * 2] * 2)], names)
    )
    with (tmp_path / "per_case.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [f"{name}_{convention}" for convention in ("published", "strict") for name in (*METRICS, *MM)]
    assert list(rows[0]) == ["case", "class", "organ", *columns]
    assert [(row["case"], row["class"], row["organ"]) for row in rows[1:3]] == [
        ("a", "2", names[1]),
        ("b", "1", names[0]),
    ]
    assert (rows[3]["dice_published"], rows[3]["dice_strict"], rows[3]["hd95_strict"]) == ("1.0", "0.0", "")
    assert [float(rows[1][name]) for name in ("hd95_published", "hd95_mm_published", "assd_mm_strict")] == [8, 24, 12]
    assert all(rows[4][f"{name}_strict"] == "" for name in (*METRICS, *MM))
    assert float(rows[-1]["dice_published"]) == 1 / 3, "every digit"


@pytest.mark.parametrize("made", [results, in_mm])
def test_what_was_written_comes_back(made: Callable[[], list[CaseResult]], tmp_path: Path) -> None:
    summary = summarize(made(), ORGANS)
    write_json(tmp_path / "summary.json", summary.to_json())
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "published": {\n    "dice": ')
    assert json.loads(text) == summary.to_json() == read_summary(tmp_path).to_json()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("published",), "dice", "TypeError"),
        (("cases", 0, "name"), "../a", "name of a case"),
        (("cases", 0, "name"), "/a", "name of a case"),
        (("cases", 0, "strict"), None, "TypeError"),
        (("cases", 0, "strict", "per_class"), {"heart": {}}, "KeyError"),
        (("cases", 0, "published", "per_class", "liver", "hd95"), "far", "ValueError"),
    ],
)
def test_a_damaged_summary_is_refused(place: tuple[Any, ...], value: Any, message: str, tmp_path: Path) -> None:
    summary = node = summarize(results(), ORGANS).to_json()
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError) as caught:
        read_summary(tmp_path)
    assert f"{tmp_path / 'summary.json'}: is no summary that test.py wrote" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match="summary.json: is not a JSON file"):
        read_summary(tmp_path)


def test_numbers() -> None:
    assert is_number(0) and is_number(1.0)
    for value in (True, "1", None, NAN, math.inf, 10**400, -0.1):
        assert not is_number(value)
