"""Paired differences: the interval against naive resampling and SciPy, the test against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from evaluation.paired import paired, paired_few


def test_by_pencil() -> None:
    found = paired([[0.5, 0.5, 0.5, 0.5, 0.5]])
    assert (found.mean, found.low, found.high, found.median, found.cases) == (0.5, 0.5, 0.5, 0.5, 5)
    # Of the cases' means over two repetitions, which are 2, 1 and 9.
    assert paired([[1, 2, 8], [3, 0, 10]]).median == 2
    # Of the 2^5 ways to give five differences a sign two are as one-sided as all of one sign.
    assert found.p == pytest.approx(2 / 32)


def test_one_repetition_is_the_ordinary_bootstrap_over_cases() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0.3, 1, 30)
    theirs = bootstrap((differences,), np.mean, method="percentile", n_resamples=20_000, rng=rng).confidence_interval
    found = paired([differences])
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert found.mean == pytest.approx(differences.mean())


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


def test_two_repetitions_decide_nothing() -> None:
    found = paired([[0.6, 0.7, 0.8], [1.2, 1.3, 1.4]])
    assert found.low < 0 < found.high


def test_of_a_few_the_interval_is_student_s() -> None:
    found = paired_few([1.0, 2.0, 3.0, 4.0, 5.0])
    # 3 -+ t(0.975, 4 degrees of freedom) * sqrt(2.5 / 5)
    assert (found.mean, found.low, found.high) == pytest.approx((3, 3 - 2.7764451 * 0.5**0.5, 3 + 2.7764451 * 0.5**0.5))
    assert (paired_few([0.5] * 3).low, paired_few([0.5] * 3).high) == (0.5, 0.5)
    assert math.isnan(paired_few([1.0]).low)


def test_the_same_differences_give_the_same_interval() -> None:
    table = np.random.default_rng(5).normal(size=(3, 7))
    assert paired(table) == paired(table.copy())
    turned = paired(-table)
    assert turned.mean == -paired(table).mean and turned.p == paired(table).p


def test_where_nothing_can_be_said() -> None:
    one = paired([[0.2]])
    assert one.mean == 0.2 and all(map(math.isnan, (one.low, one.high, one.p)))
    assert math.isnan(paired([[0.0, 0.0, 0.0]]).p)


@pytest.mark.parametrize("differences", [[], [[]], [1.0, 2.0], [[1.0, math.nan]], [[math.inf, 1.0]]])
def test_refusals(differences: list) -> None:
    with pytest.raises(ValueError, match="paired: .* expected"):
        paired(differences)
