"""Two tests of the same cases compared: the differences, their intervals and Wilcoxon's test, as text and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
from scipy.stats import sem, t, wilcoxon

from evaluation import charts
from evaluation.metrics import OVERLAPS
from evaluation.report import Chart, Overlay, render
from evaluation.summary import CONVENTIONS, TITLES, Json, Summary, aligned, mean, named, number

LEVEL = 0.95
ONE_TRAINING = "each is one training, of one seed: the difference holds for these two, its interval for other cases"
_RESAMPLES = 10_000
_SEED = 2024  # of the resampling: the same data give the same interval


@dataclass(frozen=True)
class Paired:
    """Statistics of paired differences; of a single case, interval and p are NaN."""

    mean: float
    low: float
    high: float
    median: float  # over the cases
    p: float  # of Wilcoxon's signed-rank test; NaN where no case differs
    cases: int
    p_mean: float = np.nan  # of the mean: the larger of the bootstrap's and Student's


def paired(differences: Sequence[Sequence[float]] | np.ndarray, groups: Sequence[str] = ()) -> Paired:
    """The statistics of differences (S, N): S repetitions, such as seeds, each on the same N cases.

    The interval (95 %) is of the percentile bootstrap. Repetitions and cases are resampled independently, so that it
    covers another training as well as other cases; as the bootstrap of few repetitions is too narrow, it reaches at
    least as far as Student's over their means. Median and Wilcoxon's test are over the cases' means. Cases of one of
    the `groups`, such as two scans of a person, are not independent: groups are then resampled and tested in their
    place.
    """
    table = np.asarray(differences, dtype=np.float64)
    seeds, (_, members) = table.mean(axis=1), np.unique(groups or range(table.shape[1]), return_inverse=True)
    sizes = np.bincount(members)
    sums = np.stack([np.bincount(members, row) for row in table])
    low, high, p_mean = _bootstrap(sums, sizes)
    if len(table) > 1:
        ends = _student(seeds)
        low, high = min(low, ends[0]), max(high, ends[1])
        p_mean = max(p_mean, 2 * t.sf(abs(seeds.mean()) / max(sem(seeds), np.finfo(float).tiny), len(seeds) - 1))
    units = sums.mean(axis=0) / sizes
    p = wilcoxon(units).pvalue if len(units) > 1 and units.any() else np.nan
    return Paired(float(table.mean()), low, high, float(np.median(units)), float(p), table.shape[1], float(p_mean))


def paired_few(differences: Sequence[float]) -> Paired:
    """As `paired`, of one repetition on a few: with Student's interval (95 %), as the bootstrap is too narrow."""
    found = paired([differences])
    low, high = (np.nan, np.nan) if len(differences) == 1 else _student(np.asarray(differences))
    return replace(found, low=low, high=high)


def _student(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of the mean of some values."""
    reach = t.ppf((1 + LEVEL) / 2, len(values) - 1) * sem(values)
    return float(values.mean() - reach), float(values.mean() + reach)


def _bootstrap(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float, float]:
    """Percentiles of the mean over repetitions and groups that are drawn with replacement, and its p value.

    `sums` (S, G) are the groups' sums over their cases, `sizes` the numbers of these.
    """
    if sums.shape[1] == 1:
        return np.nan, np.nan, np.nan
    generator = np.random.default_rng(_SEED)
    # How often each is drawn: the mean of what was drawn is one product.
    rows, columns = (generator.multinomial(n, np.full(n, 1 / n), _RESAMPLES) for n in sums.shape)
    means = np.einsum("bs,sg,bg->b", rows / len(sums), sums, columns, optimize=True) / (columns @ sizes)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    beyond = 2 * min((means <= 0).mean(), (means >= 0).mean())
    return float(low), float(high), float(np.clip(beyond, 1 / _RESAMPLES, 1))


def compare_summaries(first: Summary, second: Summary) -> Json:
    """The content of comparison.json: the differences, B minus A, between two tests of the same cases and classes.

    In both conventions `overall` and `per_class` hold for each metric the means of both over the `n` cases that are
    defined in both, the values of `Paired`, and how many cases are defined in `only_first` and `only_second`. `cases`
    has the differences of each case, and of its classes in Dice; intervals are over what is `resampled`. The distance
    of a case is the mean over the classes that have one in both: a class that only one found would make it worse.
    """
    parts = [(one.cases, one.classes, [one.unit]) for one in (first, second)]
    for what, ours, theirs in zip(("cases", "classes", "units"), *parts, strict=True):
        if {*ours} != {*theirs}:
            a, b = (", ".join(sorted(one)) or "none" for one in ({*ours} - {*theirs}, {*theirs} - {*ours}))
            raise ValueError(f"different {what}: only the first has {a}, only the second {b}; expected the same")
    metrics = [name for name in TITLES if name in first.metrics and name in second.metrics]
    order = np.ix_([*map(second.cases.index, first.cases)], [*map(second.classes.index, first.classes)])
    both = np.stack([first.scores[..., : len(metrics)], second.scores[order][..., : len(metrics)]])
    left_out = np.isnan(both).any(axis=0) & [metric not in OVERLAPS for metric in metrics]
    of_cases = mean(np.where(left_out, np.nan, both), axis=2)
    both = np.concatenate([of_cases[:, :, None], both], axis=2)  # (2, cases, all and each class, conventions, metrics)
    groups = first.groups or [second.groups[second.cases.index(name)] for name in first.cases if second.groups]
    resampled = f"{len({*groups})} groups of the cases, such as patients" if groups else "cases"
    result: Json = {"unit": first.unit, "level": LEVEL, "resampled": resampled}
    cases: list[Json] = [{"name": name} for name in first.cases]
    for place, kind in enumerate(CONVENTIONS):
        overall, *per_class = (
            {metric: _statistics(values[..., k], groups) for k, metric in enumerate(metrics)}
            for values in np.moveaxis(both[:, :, :, place], 2, 0)
        )
        result[kind] = {"overall": overall, "per_class": dict(zip(first.classes, per_class, strict=True))}
        for case, rows in zip(cases, (both[1] - both[0])[:, :, place], strict=True):
            case[kind] = {**named(metrics, rows[0]), "per_class": named(first.classes, rows[1:, 0])}
    return result | {"cases": cases}


def _statistics(values: np.ndarray, groups: Sequence[str]) -> Json:
    in_a, in_b = ~np.isnan(values)
    a, b = values[:, in_a & in_b]
    groups = [group for group, is_in in zip(groups, in_a & in_b, strict=False) if is_in]
    counts = {"n": len(a), "only_first": int((in_a & ~in_b).sum()), "only_second": int((in_b & ~in_a).sum())}
    keys = ("first", "second", "mean", "low", "high", "median", "p", "n")
    if not len(a):
        return dict.fromkeys(keys) | counts
    return named(keys, np.array([a.mean(), b.mean(), *astuple(paired([b - a], groups))])) | counts


def format_comparison(comparison: Json, first: str, second: str) -> str:
    """The comparison as plain text: a row for each metric, class and convention, then the cases' Dice."""
    lines = [
        f"A: {first}",
        f"B: {second}",
        *aligned([["training settings that differ", "A", "B"], *comparison.get("settings", ())]),
        f"B minus A, with its {LEVEL:.0%} bootstrap interval over the {comparison['resampled']}; {ONE_TRAINING}",
    ]
    for kind in CONVENTIONS:
        lines += ["", f"{kind} convention", *aligned(_rows(comparison[kind]))]
    lines += ["", "Dice of the cases, B minus A, lowest first (published, strict)"]
    return "\n".join([*lines, *aligned(_dice_of_cases(comparison))])


def page(comparison: Json, first: str, second: str, images: Sequence[Overlay]) -> str:
    """The comparison as a self-contained HTML page."""
    return render(
        "comparison.html.j2",
        first=first,
        second=second,
        level=f"{LEVEL:.0%}",
        one_training=ONE_TRAINING,
        comparison=comparison,
        dots=[_dots(comparison, kind) for kind in CONVENTIONS],
        images=images,
        tables={kind: list(_rows(comparison[kind])) for kind in CONVENTIONS},
        cases=_dice_of_cases(comparison),
    )


def worst_first(comparison: Json) -> list[Json]:
    """The cases by their difference in Dice, strict and then published, the lowest first."""
    return sorted(comparison["cases"], key=lambda case: (case["strict"]["dice"] or 0.0, case["published"]["dice"]))


def _dice_of_cases(comparison: Json) -> list[list[str]]:
    ranked = worst_first(comparison)
    return [[case["name"], *(_signed("dice", case[kind]["dice"]) for kind in CONVENTIONS)] for case in ranked]


def _blocks(block: Json) -> Json:
    """The statistics over all classes and of each, if there are several."""
    return {"all": block["overall"]} | (block["per_class"] if len(block["per_class"]) > 1 else {})


def _dots(comparison: Json, kind: str) -> Chart:
    """Each case's difference in Dice, over all classes and by class."""
    cases = [{"all": case[kind]["dice"], **case[kind]["per_class"]} for case in comparison["cases"]]
    values = {
        name: ([case[name] for case in cases if case[name] is not None], found["dice"]["low"], found["dice"]["high"])
        for name, found in _blocks(comparison[kind]).items()
    }
    label = f"Differences in Dice by class, {kind} convention, every case a point."
    return "Dice, B minus A", f"{kind} convention", charts.difference_dots(values, label)


def _rows(block: Json) -> Iterator[list[str]]:
    """A head, then each metric over all classes, then the Dice of each class."""
    yield ["", "A", "B", "B minus A", "interval", "median", "p (Wilcoxon)", "cases", "A alone", "B alone"]
    for name, metrics in _blocks(block).items():
        for metric, found in metrics.items() if name == "all" else [("dice", metrics["dice"])]:
            a, b = (number(found[side], metric, "-") for side in ("first", "second"))
            gain, low, high, median = (_signed(metric, found[key]) for key in ("mean", "low", "high", "median"))
            p = "-" if found["p"] is None else f"{found['p']:.3g}"
            counts = [str(found[key]) for key in ("n", "only_first", "only_second")]
            title = TITLES[metric] if name == "all" else f"Dice, {name}"
            yield [title, a, b, gain, "-" if low == "-" else f"{low} to {high}", median, p, *counts]


def _signed(metric: str, value: float | None) -> str:
    return "-" if value is None else f"{'-' if value < 0 else '+'}{number(abs(value), metric)}"
