"""A study's figures against plain arithmetic, the refusal of cells with too few seeds, and the tables."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from scipy.stats import spearmanr

from scripts.studies.figure import draw
from scripts.studies.results import format_results, rank_correlation, summarize

SEEDS, CASES = (1, 2, 3), ("a", "b", "c", "d")
METRICS = ("dice", "hd95", "jaccard", "assd")


def made(gain: float = 0.1, noise: float = 0.01, folds: int = 0) -> dict[str, Any]:
    """Results as `collect` makes them: one network, without and with the regulariser."""
    rng = np.random.default_rng(0)
    network = {"cfg": "configs/unet_224.yaml", "published": [[0, 0, 70.0], [0.1, 0.1, 75.5]]}
    study = {"networks": {"unet": network}, "lambda_x": [0, 0.1], "seeds": list(SEEDS), "min_seeds": 3, "folds": folds}
    runs = []
    for weight in (0.0, 0.1):
        for seed in SEEDS:
            for fold in range(folds) if folds else (None,):
                names = CASES if fold is None else CASES[fold::folds]
                dice = {name: float(0.6 + weight * gain * 10 + rng.normal(0, noise)) for name in names}
                runs.append(run_of(weight, seed, fold, dice))
    return {"study": study, "environments": [{}], "runs": runs}


def run_of(weight: float, seed: int, fold: int | None, dice: dict[str, float]) -> dict[str, Any]:
    cases = {
        n: {c: dict.fromkeys(METRICS, d) | {"jaccard": d / 2} for c in ("published", "strict")} for n, d in dice.items()
    }
    layers = [layer("encoder[0][0]", "down1", 0.5 + weight), layer("final", "up4", 0.0)]
    return {
        **{"network": "unet", "lambda_1": weight, "lambda_2": weight, "seed": seed, "fold": fold, "cases": cases},
        **{"seconds": {"train": 60.0, "test": 5.0}, "validation": {"epoch": 2, "dice": 0.5}, "layers": layers},
    }


def layer(label: str, module: str, value: float) -> dict[str, Any]:
    one = {"all": value, "upper": 0.0, "lower": 0.0}
    numbers = {"mean_abs_correlation": one, "effective_rank_share": one}
    return {"layer": label, "module": module, "channels": 8, "pair_correlation": value, "pair_cosine": None} | numbers


def test_mean_and_spread_over_seeds_and_the_paired_gain() -> None:
    results = made()
    study, (plain, regularised) = summarize(results)
    dice = {
        weight: np.array(
            [
                [100 * case["published"]["dice"] for case in run["cases"].values()]
                for run in results["runs"]
                if run["lambda_1"] == weight
            ]
        )
        for weight in (0.0, 0.1)
    }
    assert list(plain.seeds.index) == [1, 2, 3] and plain.gain is None and plain.verdict == ""
    for weight, found in ((0.0, plain), (0.1, regularised)):
        means = dice[weight].mean(axis=1)
        assert found.seeds["dice"].to_numpy() == pytest.approx(means)
        assert found.seeds["jaccard"].to_numpy() == pytest.approx(means / 2)
    gain = regularised.gain
    assert gain.mean == pytest.approx((dice[0.1] - dice[0.0]).mean())
    assert gain.low <= gain.mean <= gain.high and gain.cases == 4 and gain.p == pytest.approx(2 / 2**4)
    assert regularised.published_gain == pytest.approx(5.5) and plain.published_gain is None
    # Of the layers that are regularised; the teacher is not one.
    assert plain.seeds["effective_rank_share"].to_numpy() == pytest.approx([0.5] * 3)
    assert regularised.changes["mean_abs_correlation"].mean == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("gain", "noise", "verdict"), [(0.1, 0.01, "held"), (-0.1, 0.01, "not held"), (0.0, 0.1, "not decided")]
)
def test_verdicts(gain: float, noise: float, verdict: str) -> None:
    _, (_, regularised) = summarize(made(gain, noise))
    assert regularised.verdict == verdict
    assert f"| {verdict} |" in format_results(made(gain, noise))


def test_a_gain_within_half_a_point_is_equivalent() -> None:
    _, (_, regularised) = summarize(made(0.001, 0.0005))
    assert abs(regularised.gain.mean) < 0.5 and regularised.verdict in ("held", "equivalent")
    _, (_, nothing) = summarize(made(0.0, 0.001))
    assert nothing.verdict == "equivalent" and -0.5 < nothing.gain.low < 0 < nothing.gain.high < 0.5


def test_p_values_are_corrected_for_all_cells_of_a_network() -> None:
    """Holm: the smallest of m times m, the next times m - 1, and none below the one before."""
    results = made(0.1, 0.01)
    rng = np.random.default_rng(4)
    settings = {"LOSS.LAMBDA_1": 0.1, "LOSS.LAMBDA_2": 0}
    results["study"]["variants"] = {name: settings for name in ("one", "two")}
    for name, gain in (("one", 0.02), ("two", 0.0)):
        for seed in SEEDS:
            dice = {case: float(0.6 + gain + rng.normal(0, 0.01)) for case in CASES}
            results["runs"].append(run_of(0.1, seed, None, dice) | {"lambda_2": 0, "variant": name})
    _, cells = summarize(results)
    raw = sorted((cell.gain.p_mean, cell.p_holm) for cell in cells if cell.gain)
    expected, highest = [], 0.0
    for rank, (p, _) in enumerate(raw):
        highest = max(highest, min(1, p * (3 - rank)))
        expected.append(highest)
    assert [holm for _, holm in raw] == pytest.approx(expected) and len(raw) == 3
    assert [cell.cell[3] for cell in cells] == ["", "", "one", "two"]
    text = format_results(results)
    assert "| unet one | 0.1 | 0 | 3 |" in text and "rank one | corr. one" in text


def test_cases_of_a_person_count_once() -> None:
    results = made()
    for run in results["runs"]:
        for name, case in run["cases"].items():
            case["group"] = "p1" if name in "ab" else "p2"
    _, (_, grouped) = summarize(results)
    _, (_, apart) = summarize(made())
    assert grouped.gain.mean == apart.gain.mean and grouped.gain.p == pytest.approx(2 / 2**2)
    assert apart.gain.p == pytest.approx(2 / 2**4)


def test_distances_are_in_mm_where_they_are_known() -> None:
    results = made()
    assert "| HD95 |" in format_results(results)
    _, (plain, _) = summarize(results)
    dice = [case["strict"]["hd95"] for run in results["runs"][:3] for case in run["cases"].values()]
    assert plain.seeds["hd95"].mean() == pytest.approx(np.mean(dice))
    for run in results["runs"]:
        for case in run["cases"].values():
            case["strict"]["hd95_mm"] = 7.5
    _, (plain, _) = summarize(results)
    assert plain.seeds["hd95"].tolist() == [7.5] * 3


def test_a_development_phase_has_validation_alone() -> None:
    results = made()
    results["study"]["development"] = True
    for number, run in enumerate(results["runs"]):
        run |= {
            "cases": {},
            "layers": [],
            "seconds": {"train": 3.0},
            "validation": {"epoch": 1, "dice": 0.5 + number / 100},
        }
    accuracy, times = format_results(results).strip().split("\n\n")
    assert accuracy.splitlines()[2].startswith("| unet | 0 | 0 | 3 | 51.00 ± 1.00 |  |")
    assert accuracy.splitlines()[3].startswith("| unet | 0.1 | 0.1 | 3 | 54.00 ± 1.00 | +3.00 (+3.00 to +3.00) |")


def test_folds_of_a_seed_are_put_together() -> None:
    results = made(folds=2)
    _, (plain, _) = summarize(results)
    assert list(plain.seeds.index) == [1, 2, 3] and plain.seeds["dice"].mean() == pytest.approx(60, abs=1)
    results["runs"] = [run for run in results["runs"] if (run["lambda_1"], run["seed"], run["fold"]) != (0.0, 2, 1)]
    _, (plain, regularised) = summarize(results)
    assert not plain.is_reported and list(plain.seeds.index) == [1, 3]
    # It has its seeds, but nothing to be held against.
    assert regularised.is_reported and regularised.gain is None


def test_a_cell_with_fewer_seeds_than_stated_is_not_reported() -> None:
    results = made()
    results["runs"] = [run for run in results["runs"] if (run["lambda_1"], run["seed"]) != (0.1, 3)]
    _, (plain, regularised) = summarize(results)
    assert plain.is_reported and not regularised.is_reported and list(regularised.seeds.index) == [1, 2]
    row = next(line for line in format_results(results).splitlines() if line.startswith("| unet | 0.1 |"))
    assert "2 of the 3 that it takes: not reported" in row and "%" not in row and "70" not in row


def test_tables() -> None:
    text = format_results(made())
    accuracy, redundancy, related, by_layer, taken = text.strip().split("\n\n")
    assert accuracy.splitlines()[3].startswith("| unet | 0.1 | 0.1 | 3 | 50.00 ± 0.00 | 69.75 ± 0.76 |")
    assert accuracy.splitlines()[3].endswith("| 75.50 | +5.50 | held |")
    assert "| 0.600 ± 0.000 | +0.100 (+0.100 to +0.100) |" in redundancy
    assert by_layer.splitlines()[2] == "| `encoder[0][0]`, `down1` | 8 | 0.500 | 0.500 | 0.600 | 0.600 |"
    assert related.splitlines()[2].startswith("| unet | 6 | +")
    assert taken.splitlines()[2] == "| train | 6 | 60 | 6.0 |"
    assert all(
        len(set(map(lambda line: line.count("|"), table.splitlines()))) == 1
        for table in (accuracy, redundancy, related, by_layer, taken)
    )


def test_the_figure(tmp_path: Path) -> None:
    draw({"": made()}, tmp_path / "a.png")
    draw({"one": made(), "two": made(-0.1)}, tmp_path / "c.png")
    one, two = (matplotlib.image.imread(tmp_path / name) for name in ("a.png", "c.png"))
    assert one.std() > 0.01 and two.shape[0] == one.shape[0] and two.shape[1] > 1.4 * one.shape[1]
    results = made()
    results["runs"] = results["runs"][:2]
    with pytest.raises(ValueError, match="no cell of the study has the seeds"):
        draw({"": results}, tmp_path / "b.png")


def test_the_rank_correlation_of_redundancy_and_accuracy() -> None:
    """Against SciPy's, over all runs of the reported cells."""
    results = made(0.05, 0.03)
    rng = np.random.default_rng(1)
    for run in results["runs"]:
        run["layers"][0]["effective_rank_share"] = {"all": float(rng.random()), "upper": 0.0, "lower": 0.0}
    _, cells = summarize(results)
    dice = [np.mean([case["strict"]["dice"] for case in run["cases"].values()]) for run in results["runs"]]
    ranks = [run["layers"][0]["effective_rank_share"]["all"] for run in results["runs"]]
    count, (rho, low, high) = rank_correlation(cells)
    assert count == 6 and rho == pytest.approx(spearmanr(ranks, dice).statistic)
    assert -1 <= low <= rho <= high <= 1
    assert rank_correlation(cells[:1]) == (3, None)


def test_a_seed_that_is_there_twice_is_refused() -> None:
    results = made()
    results["runs"].append(copy.deepcopy(results["runs"][-1]))
    with pytest.raises(ValueError, match="unet/lambda_0.1_0.1/seed_3 is there twice"):
        summarize(results)


def test_refusals() -> None:
    other = made()
    cases = other["runs"][-1]["cases"]
    cases["e"] = cases.pop("a")
    with pytest.raises(ValueError, match="not every run was tested on e; expected the same data"):
        summarize(other)
    broken = copy.deepcopy(made())
    del broken["runs"][0]["network"]
    for what in ({}, {"study": {}}, {"study": made()["study"]}, broken, {"study": made()["study"], "runs": [3]}):
        with pytest.raises(ValueError):
            summarize(what)


def test_the_figure_of_runs_whose_channels_are_all_constant(tmp_path: Path) -> None:
    results = made()
    for run in results["runs"]:
        run["layers"][0]["effective_rank_share"] = {"all": None, "upper": None, "lower": None}
    draw({"$\\frac{$": results}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
