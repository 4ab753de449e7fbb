"""Two summaries of the same cases against each other."""

from __future__ import annotations

from typing import Any

import pytest

from evaluation.comparison import compare_summaries, format_comparison, worst_first
from evaluation.summary import CaseResult, summarize
from tests.evaluation.test_report import INVENTED, MISSED, ORGANS, measured


def summaries() -> tuple[dict[str, Any], dict[str, Any]]:
    first = [
        CaseResult("a", (measured(0.8, 4, 0.6, 2), measured(0.6, 8, 0.4, 4))),
        CaseResult("b", (measured(0.4, 2, 0.2, 1), INVENTED)),
        CaseResult("c", (measured(0.5, 6, 0.3, 3), measured(0.5, 6, 0.3, 3))),
    ]
    second = [
        CaseResult("c", (measured(0.7, 5, 0.5, 2), measured(0.5, 6, 0.3, 3))),
        CaseResult("a", (measured(0.9, 3, 0.7, 1), measured(0.5, 9, 0.3, 5))),
        CaseResult("b", (MISSED, measured(0.2, 9, 0.1, 8))),
    ]
    return summarize(first, ORGANS), summarize(second, ORGANS)


def test_differences_by_pencil() -> None:
    found = compare_summaries(*summaries())
    # Means of a case, published: a 0.7 and 0.7, b 0.7 and 0.1, c 0.5 and 0.6; matched by name, not by place.
    dice = found["published"]["overall"]["dice"]
    assert (dice["first"], dice["second"], dice["n"]) == (pytest.approx(1.9 / 3), pytest.approx(1.4 / 3), 3)
    assert dice["mean"] == pytest.approx(-0.5 / 3)
    assert dice["low"] <= dice["mean"] <= dice["high"]
    assert {case["name"]: round(case["published"]["dice"], 6) for case in found["cases"]} == {
        "a": 0,
        "b": -0.6,
        "c": 0.1,
    }
    assert [case["name"] for case in worst_first(found)] == ["b", "a", "c"]


def test_what_is_undefined_in_one_is_left_out_of_both() -> None:
    found = compare_summaries(*summaries())["strict"]["per_class"]
    # The liver of b was missed by the second, so it has no distance there; the means are over a and c in both.
    liver = found["liver"]["hd95"]
    assert (liver["first"], liver["second"], liver["mean"], liver["n"]) == (5, 4, -1, 2)
    assert (liver["only_first"], liver["only_second"]) == (1, 0)
    # The spleen of b was invented by the first: a Dice of 0, and no distance.
    assert found["spleen"]["dice"]["n"] == 3 and found["spleen"]["hd95"]["n"] == 2
    assert (found["spleen"]["hd95"]["only_first"], found["spleen"]["hd95"]["only_second"]) == (0, 1)


def test_an_organ_that_one_alone_has_found_makes_its_distance_no_worse() -> None:
    first = summarize([CaseResult("a", (measured(0.8, 2, 0.6, 1), MISSED))], ORGANS)
    second = summarize([CaseResult("a", (measured(0.8, 2, 0.6, 1), measured(0.5, 10, 0.3, 5)))], ORGANS)
    found = compare_summaries(first, second)
    assert found["strict"]["overall"]["hd95"]["mean"] == found["cases"][0]["strict"]["hd95"] == 0
    assert found["strict"]["overall"]["dice"]["mean"] == pytest.approx(0.25)


def test_one_case_has_a_difference_and_no_interval() -> None:
    one = summarize([CaseResult("a", (measured(0.8, 4, 0.6, 2), measured(0.6, 8, 0.4, 4)))], ORGANS)
    dice = compare_summaries(one, one)["strict"]["overall"]["dice"]
    assert dice == {
        "first": dice["second"],
        "second": pytest.approx(0.7),
        "mean": 0,
        "median": 0,
        "n": 1,
        "only_first": 0,
        "only_second": 0,
    } | dict.fromkeys(("low", "high", "p"))


def test_text_says_both_conventions_and_the_worst_case_first() -> None:
    first, second = summaries()
    lines = format_comparison(compare_summaries(first, second), "plain", "regularised").splitlines()
    assert lines[:2] == ["A: plain", "B: regularised"]
    assert "B - A, with its 95% bootstrap interval over the cases" in lines
    row = next(line for line in lines if line.startswith("Dice "))
    assert row.split()[:4] == ["Dice", "0.6333", "0.4667", "-0.1667"]
    assert [line.split()[0] for line in lines[-3:]] == ["b", "a", "c"]
    assert sum(line.startswith("Dice, liver") for line in lines) == 2


def test_refusals() -> None:
    first, second = summaries()
    fewer = {**second, "cases": second["cases"][:2]}
    with pytest.raises(
        ValueError, match="different cases: only the first has b, only the second none; expected the same"
    ):
        compare_summaries(first, fewer)
    others = summarize([CaseResult("a", (measured(0.8, 4, 0.6, 2),) * 2)], ("liver", "aorta"))
    alone = {**first, "cases": first["cases"][:1]}
    with pytest.raises(ValueError, match="different classes: only the first has spleen, only the second aorta"):
        compare_summaries(alone, others)
    with pytest.raises(ValueError, match="are in voxels, of the second in pixels; expected one unit"):
        compare_summaries(first, {**second, "unit": "pixels"})
