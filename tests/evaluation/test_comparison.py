"""Two summaries of the same cases compared; paired differences against naive resampling, SciPy and counting by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from evaluation.comparison import compare_summaries, format_comparison, paired, paired_few, worst_first
from evaluation.summary import CaseResult, Summary, read_summary, summarize, write_json
from tests.evaluation.test_summary import FALSE_NEGATIVE, FALSE_POSITIVE, ORGANS, measured


def summaries() -> tuple[Summary, Summary]:
    first = [
        CaseResult("a", (measured(0.8, 4, 0.6, 2), measured(0.6, 8, 0.4, 4))),
        CaseResult("b", (measured(0.4, 2, 0.2, 1), FALSE_POSITIVE)),
        CaseResult("c", (measured(0.5, 6, 0.3, 3), measured(0.5, 6, 0.3, 3))),
    ]
    second = [
        CaseResult("c", (measured(0.7, 5, 0.5, 2), measured(0.5, 6, 0.3, 3))),
        CaseResult("a", (measured(0.9, 3, 0.7, 1), measured(0.5, 9, 0.3, 5))),
        CaseResult("b", (FALSE_NEGATIVE, measured(0.2, 9, 0.1, 8))),
    ]
    return summarize(first, ORGANS), summarize(second, ORGANS)


def test_differences_by_hand() -> None:
    found = compare_summaries(*summaries())
    # Means of a case, published: a 0.7 and 0.7, b 0.7 and 0.1, c 0.5 and 0.6; matched by name, not by place.
    dice = found["published"]["overall"]["dice"]
    assert (dice["first"], dice["second"], dice["n"]) == (pytest.approx(1.9 / 3), pytest.approx(1.4 / 3), 3)
    assert dice["mean"] == pytest.approx(-0.5 / 3)
    assert dice["low"] <= dice["mean"] <= dice["high"]
    differences = {case["name"]: case["published"]["dice"] for case in found["cases"]}
    assert differences == pytest.approx({"a": 0, "b": -0.6, "c": 0.1})
    assert found["cases"][1]["published"]["per_class"] == pytest.approx({"liver": -0.4, "spleen": -0.8})
    assert [case["name"] for case in worst_first(found)] == ["b", "a", "c"]


def test_what_is_undefined_in_one_is_left_out_of_both() -> None:
    found = compare_summaries(*summaries())["strict"]["per_class"]
    # The liver of b is a false negative of the second, without a distance; the means are over a and c in both.
    liver = found["liver"]["hd95"]
    assert (liver["first"], liver["second"], liver["mean"], liver["n"]) == (5, 4, -1, 2)
    assert (liver["only_first"], liver["only_second"]) == (1, 0)
    # The spleen of b is a false positive of the first: a Dice of 0, and no distance.
    assert found["spleen"]["dice"]["n"] == 3 and found["spleen"]["hd95"]["n"] == 2
    assert (found["spleen"]["hd95"]["only_first"], found["spleen"]["hd95"]["only_second"]) == (0, 1)


def test_a_class_that_one_alone_has_found_makes_its_distance_no_worse() -> None:
    first = summarize([CaseResult("a", (measured(0.8, 2, 0.6, 1), FALSE_NEGATIVE))], ORGANS)
    second = summarize([CaseResult("a", (measured(0.8, 2, 0.6, 1), measured(0.5, 10, 0.3, 5)))], ORGANS)
    found = compare_summaries(first, second)
    assert found["strict"]["overall"]["hd95"]["mean"] == found["cases"][0]["strict"]["hd95"] == 0
    assert found["strict"]["overall"]["dice"]["mean"] == pytest.approx(0.25)


def test_one_case_has_a_difference_and_no_interval() -> None:
    one = summarize([CaseResult("a", (measured(0.8, 4, 0.6, 2), measured(0.6, 8, 0.4, 4)))], ORGANS)
    dice = compare_summaries(one, one)["strict"]["overall"]["dice"]
    assert dice.pop("first") == dice.pop("second") == pytest.approx(0.7)
    zeros = dict.fromkeys(("mean", "median", "only_first", "only_second"), 0)
    assert dice == zeros | {"n": 1} | dict.fromkeys(("low", "high", "p"))


def test_text_has_both_conventions_and_the_worst_case_first() -> None:
    lines = format_comparison(compare_summaries(*summaries()), "plain", "regularized").splitlines()
    assert lines[:2] == ["A: plain", "B: regularized"]
    assert any(line.startswith("B minus A, with its 95% bootstrap interval over the cases; ") for line in lines)
    row = next(line for line in lines if line.startswith("Dice "))
    assert row.split()[:4] == ["Dice", "0.6333", "0.4667", "-0.1667"]
    assert [line.split()[0] for line in lines[-3:]] == ["b", "a", "c"]
    assert sum(line.startswith("Dice, liver") for line in lines) == 2


def test_refusals() -> None:
    first, second = summaries()
    fewer = summarize([CaseResult(name, (measured(1, 0, 1, 0),) * 2) for name in "ac"], ORGANS)
    with pytest.raises(
        ValueError, match="different cases: only the first has b, only the second none; expected the sa"
    ):
        compare_summaries(first, fewer)
    others = summarize([CaseResult(name, (measured(1, 0, 1, 0),) * 2) for name in "abc"], ("liver", "aorta"))
    with pytest.raises(ValueError, match="different classes: only the first has spleen, only the second aorta"):
        compare_summaries(first, others)
    pixels = summarize([CaseResult(name, (measured(1, 0, 1, 0),) * 2) for name in "abc"], ORGANS, unit="pixels")
    with pytest.raises(ValueError, match="different units: only the first has voxels, only the second pixels"):
        compare_summaries(first, pixels)


def test_paired_by_hand() -> None:
    found = paired([[0.5, 0.5, 0.5, 0.5, 0.5]])
    assert (found.mean, found.low, found.high, found.median) == (0.5, 0.5, 0.5, 0.5)
    # Of the 2^5 ways to give five differences a sign two are as one-sided as all of one sign.
    assert found.p == pytest.approx(2 / 32)
    # Of the cases' means over two repetitions, which are 2, 1 and 9.
    assert paired([[1, 2, 8], [3, 0, 10]]).median == 2
    one = paired([[0.2]])
    assert one.mean == 0.2 and all(map(math.isnan, (one.low, one.high, one.p)))
    assert math.isnan(paired([[0.0, 0.0, 0.0]]).p)


def test_one_repetition_is_the_ordinary_bootstrap_over_cases() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0.3, 1, 30)
    theirs = bootstrap((differences,), np.mean, method="percentile", n_resamples=20_000, rng=rng).confidence_interval
    found = paired([differences])
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert found == paired([differences.copy()]), "the same data give the same interval"


def test_repetitions_and_cases_are_both_drawn_anew() -> None:
    rng = np.random.default_rng(4)
    table = rng.normal(0, 1, (4, 1)) + rng.normal(0, 0.5, (1, 9)) + rng.normal(0, 0.1, (4, 9))
    naive = []
    for _ in range(4000):
        rows, columns = rng.integers(0, 4, 4), rng.integers(0, 9, 9)
        naive.append(np.mean([[table[row, column] for column in columns] for row in rows]))
    low, high = np.quantile(naive, [0.025, 0.975])
    # Student's over the four repetitions: mean -+ t(0.975, 3 degrees of freedom) * s / 2.
    means = table.mean(axis=1)
    reach = 3.1824463 * means.std(ddof=1) / 2
    found = paired(table)
    assert found.low == pytest.approx(min(low, means.mean() - reach), abs=0.08)
    assert found.high == pytest.approx(max(high, means.mean() + reach), abs=0.08)
    # Wider than over the cases of these very trainings alone.
    alone = paired([table.mean(axis=0)])
    assert found.high - found.low > 1.5 * (alone.high - alone.low)


def test_where_cases_differ_more_than_repetitions_the_bootstrap_decides() -> None:
    table = np.random.default_rng(6).normal(0, 1, 12) + np.zeros((5, 1))
    alone = paired(table[:1])
    assert (paired(table).low, paired(table).high) == pytest.approx((alone.low, alone.high), abs=0.05)


def test_of_a_few_the_interval_is_student_s() -> None:
    found = paired_few([1.0, 2.0, 3.0, 4.0, 5.0])
    # 3 -+ t(0.975, 4 degrees of freedom) * sqrt(2.5 / 5)
    assert (found.mean, found.low, found.high) == pytest.approx((3, 3 - 2.7764451 * 0.5**0.5, 3 + 2.7764451 * 0.5**0.5))
    assert (paired_few([0.5] * 3).low, paired_few([0.5] * 3).high) == (0.5, 0.5)
    assert math.isnan(paired_few([1.0]).low)


def test_groups_are_resampled_in_place_of_their_cases() -> None:
    """Cases that differ within no group say no more than one of each; p and median are the groups'."""
    rng = np.random.default_rng(1)
    table = rng.normal(0.01, 0.05, (3, 12))
    twice, groups = np.repeat(table, 2, axis=1), [f"person {number // 2}" for number in range(24)]
    one, two = paired(table, [f"person {number:02d}" for number in range(12)]), paired(twice, groups)
    assert one == paired(table), "a person a case"
    assert (two.mean, two.median, two.p) == pytest.approx((one.mean, one.median, one.p))
    assert two.high - two.low == pytest.approx(one.high - one.low, rel=0.03) and two.cases == 24
    alone = paired(twice)
    assert alone.high - alone.low < two.high - two.low


def test_groups_of_unequal_size_against_plain_loops() -> None:
    rng = np.random.default_rng(2)
    row, groups = rng.normal(0, 1, 10), list("aaabbccccd")
    found = paired([row], groups)
    draws = np.random.default_rng(3)
    means = []
    for _ in range(4000):
        drawn = draws.choice(list("abcd"), 4)
        means.append(
            np.mean([value for one in drawn for value, group in zip(row, groups, strict=True) if group == one])
        )
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.05)
    assert found.median == pytest.approx(np.median([row[[g == one for g in groups]].mean() for one in "abcd"]))


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.2])
def test_p_of_the_mean_agrees_with_the_interval(shift: float) -> None:
    table = np.random.default_rng(5).normal(shift, 0.05, (6, 20))
    found = paired(table)
    assert (found.p_mean < 0.05) == (found.low > 0 or found.high < 0)
    assert paired(-table).p_mean == pytest.approx(found.p_mean)
    assert paired(np.zeros((3, 4))).p_mean == 1 and math.isnan(paired([[0.2]]).p_mean)


def test_a_comparison_takes_the_groups_of_the_tests(tmp_path: Path) -> None:
    rng, persons = np.random.default_rng(7), [f"p{number // 4}" for number in range(16)]
    tests = []
    for _ in range(2):
        scores = [(measured(dice, 4, dice, 2),) for dice in rng.uniform(0.4, 0.9, 16)]
        cases = [
            CaseResult(f"c{n}", one, group=person) for n, (one, person) in enumerate(zip(scores, persons, strict=True))
        ]
        write_json(tmp_path / "summary.json", summarize(cases, ["liver"]).to_json())
        tests.append(read_summary(tmp_path))
    found = compare_summaries(*tests)["strict"]["overall"]["dice"]
    difference = tests[1].of_cases[:, 1, 0] - tests[0].of_cases[:, 1, 0]
    expected = paired([difference], persons)
    assert (found["low"], found["high"], found["n"]) == (expected.low, expected.high, 16)
    assert found["low"] != paired([difference]).low
    # A test of before there were groups takes those of the other, whose cases come in another order.
    second = replace(tests[1], cases=tests[1].cases[::-1], scores=tests[1].scores[::-1], groups=persons[::-1])
    again = compare_summaries(replace(tests[0], groups=[]), second)
    assert again["strict"]["overall"]["dice"] == found and again["resampled"].startswith("4 groups")
