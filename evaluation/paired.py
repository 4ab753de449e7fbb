"""The paired difference of two methods on the same cases: mean, 95 % interval, median and Wilcoxon's test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import ttest_1samp, wilcoxon

LEVEL = 0.95
_RESAMPLES = 10_000
_SEED = 2024  # of the resampling: the same data give the same interval


@dataclass(frozen=True)
class Paired:
    """A mean difference with its bootstrap interval, the median over the cases, and their Wilcoxon signed-rank p value.

    Mean and median part where few cases differ by much. `low` and `high` are NaN where there is one case alone, `p`
    where no case differs or there is one alone.
    """

    mean: float
    low: float
    high: float
    median: float
    p: float
    cases: int


def paired(differences: Sequence[Sequence[float]] | np.ndarray) -> Paired:
    """The statistics of differences (S, N): S repetitions, such as seeds, each on the same N cases.

    The interval (95 %) is of the percentile bootstrap. Repetitions and cases are resampled independently, so that it
    covers another training as well as other cases; as the bootstrap of few repetitions is too narrow, it reaches at
    least as far as Student's over their means. With one repetition it is the ordinary bootstrap over cases. Median
    and Wilcoxon's signed-rank test are over the cases' means over the repetitions.

    Raises:
        ValueError: no differences, another shape than (S, N), or one that is not finite.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"paired: the differences have shape {table.shape}; expected (repetitions, cases), none of 0")
    if not np.isfinite(table).all():
        raise ValueError(
            "paired: a difference is not finite; expected cases that are defined in both, leave out others"
        )
    ends = [_interval(table)] + ([_student(table.mean(axis=1))] if len(table) > 1 else [])
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    cases = table.mean(axis=0)
    return Paired(float(table.mean()), low, high, float(np.median(cases)), _wilcoxon(cases), len(cases))


def paired_few(differences: Sequence[float]) -> Paired:
    """The statistics of a few differences, such as those of seeds: as `paired`, but with Student's interval (95 %).

    The bootstrap of so few is too narrow, and leaves out 0 wherever all have one sign.

    Raises:
        ValueError: no differences, or one that is not finite.
    """
    found = paired([differences])
    low, high = (found.low, found.high) if found.cases == 1 else _student(np.asarray(differences))
    return replace(found, low=low, high=high)


def _student(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of the mean of some values; where they are all the same, that one."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    interval = ttest_1samp(values, 0).confidence_interval(LEVEL)
    return float(interval.low), float(interval.high)


def _interval(table: np.ndarray) -> tuple[float, float]:
    """Percentiles of the mean over repetitions and cases that are drawn with replacement."""
    repetitions, cases = table.shape
    if cases == 1:
        return float("nan"), float("nan")
    generator = np.random.default_rng(_SEED)
    # How often each is drawn, as a fraction: the mean of what was drawn is one product.
    rows = generator.multinomial(repetitions, np.full(repetitions, 1 / repetitions), _RESAMPLES) / repetitions
    columns = generator.multinomial(cases, np.full(cases, 1 / cases), _RESAMPLES) / cases
    means = np.einsum("bs,sn,bn->b", rows, table, columns, optimize=True)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _wilcoxon(differences: np.ndarray) -> float:
    if len(differences) < 2 or not differences.any():
        return float("nan")
    return float(wilcoxon(differences).pvalue)
