"""docs/results.md says what docs/results.json holds: its tables, its sentences, and every number in between."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from configs.config import get_config
from networks import build_network
from scripts.studies.execute import digest
from scripts.studies.plan import Run, Study, read_study
from scripts.studies.results import CellResult, format_results, summarize
from tests.conftest import ROOT

PAGE = (ROOT / "docs/results.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS: dict[str, Any] = json.loads((ROOT / "docs/results.json").read_text(encoding="utf-8"))
AT_224: dict[str, Any] = json.loads((ROOT / "docs/results_224.json").read_text(encoding="utf-8"))
YAML = Path("configs/studies/monuseg_unet.yaml")
Cell = tuple[str, float, float, str]
NONE, IFD, SCR, BOTH = (("unet_width_24", *weights, "") for weights in ((0, 0), (0, 0.015), (0.015, 0), (0.015, 0.015)))


@pytest.fixture(scope="module")
def study() -> Study:
    return summarize(RESULTS)[0]


@pytest.fixture(scope="module")
def cells() -> dict[Cell, CellResult]:
    return {found.cell: found for found in summarize(RESULTS)[1]}


def test_the_tables_are_made_from_the_results() -> None:
    tables = format_results(RESULTS).strip().split("\n\n")
    assert len(tables) == 5
    for table in (*tables, format_results(AT_224).split("\n\n")[0]):
        assert table in PAGE


def test_both_scorings_are_of_the_same_networks_and_agree() -> None:
    assert AT_224["study"]["opts"] == RESULTS["study"]["opts"] | {"TEST.SCORE_AT": "network"}
    for ours, theirs in zip(RESULTS["runs"], AT_224["runs"], strict=True):
        assert ours["validation"] == theirs["validation"] and ours["layers"] == theirs["layers"]
    found, at_224 = summarize(RESULTS)[1], summarize(AT_224)[1]
    assert [one.verdict for one in found] == [one.verdict for one in at_224]
    assert all(one.gain is None or one.gain.high < one.published_gain for one in at_224)
    assert abs(at_224[0].published - at_224[0].seeds["dice"].mean()) < 1 and at_224[0].cell == NONE


def test_the_results_are_those_of_the_yaml(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert read_study(YAML) == (study, RESULTS["study"])
    assert len(RESULTS["runs"]) == len(study.runs()) == 20
    assert all(len(run["cases"]) == 14 for run in RESULTS["runs"])


OUTLIER = "TCGA-HT-8564-01Z-00-DX1"


def with_and_without_the_outlier(cell: Cell) -> tuple[str, str]:
    """The mean gain of a cell over the seeds, in points, on that image and on the others."""
    dice = {
        (run["lambda_1"], run["lambda_2"], run["seed"]): {
            name: case["published"]["dice"] for name, case in run["cases"].items()
        }
        for run in RESULTS["runs"]
    }
    gain = {
        name: fmean(100 * (dice[*cell[1:3], seed][name] - dice[0, 0, seed][name]) for seed in RESULTS["study"]["seeds"])
        for name in RESULTS["runs"][0]["cases"]
    }
    there = gain.pop(OUTLIER)
    return f"{there:+.2f}", f"{fmean(gain.values()):+.2f}"


def sentences(cells: dict[Cell, CellResult]) -> list[str]:
    """What the page says in words, with its numbers computed anew."""
    said = []
    for name, cell in (("IFD alone", IFD), ("SCR alone", SCR), ("Both", BOTH)):
        found, gain = cells[cell], cells[cell].gain
        said.append(
            f"- **{name}: {found.verdict}** by this much data, {gain.mean:+.2f} points ({gain.low:+.2f} to "
            f"{gain.high:+.2f}). The published gain is {found.published_gain:+.2f}."
        )
    scr, alone, both = map(with_and_without_the_outlier, (SCR, IFD, BOTH))
    said.append(
        f"{OUTLIER}, the worst one of most networks, decides what the means say. On it SCR changes Dice by {scr[0]} "
        f"points, IFD by {alone[0]} and both by {both[0]}; over the others the gains are {scr[1]}, {alone[1]} and "
        f"{both[1]}."
    )
    chosen = [cell.seeds["validation"].mean() for cell in cells.values()]
    said.append(
        "On the validation images no cell is better than another: their means lie within "
        f"{max(chosen) - min(chosen):.2f} points."
    )
    plain, ifd = cells[NONE].seeds.mean(), cells[IFD].seeds.mean()
    numbers = [
        (plain[name], ifd[name]) for name in ("mean_abs_correlation", "effective_rank_share", "pair_correlation")
    ]
    correlation, rank, pairs = (f"{before:.3f} to {after:.3f}" for before, after in numbers)
    before, after = pairs.split(" to ")
    said.append(
        f"the mean absolute correlation rises from {correlation}, and the effective rank falls from {rank} of the "
        f"channels; the pairs that IFD acts on, whose signed correlations average {before}, are then at {after}."
    )
    published = cells[NONE].published, cells[SCR].published, cells[IFD].published, cells[BOTH].published
    said.append(
        "a Dice of {:.2f} % without the regularizer, {:.2f} with SCR alone, {:.2f} with IFD alone and {:.2f} with "
        "both".format(*published)
    )
    return said


def test_the_sentences_say_the_measured_numbers(cells: dict[Cell, CellResult]) -> None:
    flat = " ".join(PAGE.split())
    for sentence in sentences(cells):
        assert sentence in flat


def test_readme_says_the_same(cells: dict[Cell, CellResult]) -> None:
    scr, ifd, both = (cells[cell] for cell in (SCR, IFD, BOTH))
    first, second, third = (f"{one.gain.mean:+.2f}" for one in (scr, ifd, both))
    spans = [f"({one.gain.low:+.2f} to {one.gain.high:+.2f})" for one in (scr, ifd, both)]
    said = (
        f"{scr.verdict}. A U-Net of a third of the published width, on MoNuSeg, five seeds: Dice {first} points with "
        f"SCR (95 % interval {spans[0][1:]}, {second} with IFD {spans[1]}, {third} with both {spans[2]}; published "
        f"{scr.published_gain:+.2f}, {ifd.published_gain:+.2f}, {both.published_gain:+.2f}."
    )
    assert scr.verdict == ifd.verdict == both.verdict
    assert said in " ".join(README.split())


def test_what_is_said_without_a_number(cells: dict[Cell, CellResult]) -> None:
    for cell in (IFD, SCR, BOTH):
        gain = cells[cell].gain
        assert gain.low <= 0 <= gain.high < cells[cell].published_gain
    for cell, holds in ((IFD, False), (BOTH, False), (SCR, True)):
        for name in cells[cell].changes.keys() - {"validation"}:
            gain = cells[cell].changes[name]
            assert (gain.low <= 0 <= gain.high) == holds, (cell, name)
            assert holds or (gain.mean < 0) == (name == "effective_rank_share")
    # IFD makes the channels of every layer that it acts on more alike.
    plain, ifd = (cells[cell].layers.drop(index="final") for cell in (NONE, IFD))
    assert len(plain) == 7 and (ifd["mean_abs_correlation"] > plain["mean_abs_correlation"]).all()
    assert (ifd["effective_rank_share"] < plain["effective_rank_share"]).all()
    worst = [min(run["cases"], key=lambda name: run["cases"][name]["published"]["dice"]) for run in RESULTS["runs"]]
    assert worst.count(OUTLIER) > len(worst) / 2
    dead = [layer["constant_channels"] for run in RESULTS["runs"] for layer in run["layers"]]
    assert sum(dead) == 1
    for run in RESULTS["runs"]:
        assert all(case["published"] == case["strict"] for case in run["cases"].values())


def constants(study: Study) -> set[str]:
    """The numbers of the setting, from the configuration, the networks and the split themselves."""
    cfg = study.config(study.runs()[0])
    full = get_config(ROOT / "configs/monuseg_unet.yaml")
    sizes = [
        sum(p.numel() for p in build_network("unet", num_classes=2, in_channels=3, **one.model.options).parameters())
        for one in (cfg, full)
    ]
    tests = len(RESULTS["runs"][0]["cases"])
    listed = (ROOT / "datasets/lists/monuseg/train.txt").read_text(encoding="utf-8").split()
    validation, batch = cfg.data.val_cases, cfg.data.batch_size
    training = len(listed) - validation
    numbers = [
        *(
            cfg.model.options["width"],
            full.model.options["width"],
            cfg.data.img_size[0],
            cfg.train.epochs,
            cfg.train.val_freq,
        ),
        *(batch, training // batch, len(listed), validation, training, tests, *study.seeds, cfg.loss.lambda_1),
        *(f"{size / 1e6:.1f}" for size in sizes),
    ]
    return {str(number) for number in numbers}


# Of the data (their SOURCE), of the machine, of the rule, of names and of counting words; nothing that was measured.
_OTHERS = {"1000", "512", "0", "1e-3", "2", "95", "0.05"}


def test_every_other_number_is_of_the_setting(study: Study, cells: dict[Cell, CellResult]) -> None:
    tables = [*format_results(RESULTS).splitlines(), *format_results(AT_224).splitlines()]
    text = "\n".join(line for line in PAGE.splitlines() if line not in tables and not line.startswith("    "))
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|\[configs/[^\]]*\]", " ", text)
    text = " ".join(text.split())
    for sentence in sentences(cells):
        text = text.replace(sentence, " ")
    numbers = re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e-\d+)?", text)
    assert len(numbers) > 20
    assert set(numbers) <= constants(study) | _OTHERS


@pytest.mark.parametrize("path", sorted((ROOT / "docs/results").glob("*.json")), ids=lambda path: path.stem)
def test_results_under_way_are_of_their_yaml(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan, content = read_study(ROOT / f"configs/studies/{path.stem}.yaml")
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["protocol"] == digest(content) and results["study"] == content
    runs = [Run(**{name: run[name] for name in Run._fields}) for run in results["runs"]]
    assert len(set(runs)) == len(runs) and {*runs} <= {*plan.runs()}
    # The first runs wrote looked.json, which was tracked then, beside the lists.
    assert {one["git_commit"].removesuffix("-dirty") for one in results["environments"]} == {plan.commit}
    assert format_results(results).startswith("| network | lambda_1 (SCR) |")
