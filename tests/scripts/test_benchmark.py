"""The benchmark at tiny sizes: what it compares is equal, what it reports is complete; no time is asserted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import benchmark
from scripts.benchmarks import measure
from scripts.benchmarks import rows as compared
from scripts.benchmarks.measure import Comparison, Run, Settings

TINY = {
    "depth": 6,
    "side": 160,
    "img_size": 32,
    "batch": 2,
    "workers": 1,
    "options": {"embed_dim": 12, "window_size": 4},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path, **TINY)


@pytest.mark.long
def test_rows_into_table_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(compared, "rows", lambda s, rows=compared.rows: rows(replace(s, **TINY)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "found.json"
    rows = ["metrics", "transforms", "regularizer", "gpu_train"]
    assert benchmark.main(["--only", *rows, "--rounds", "2", "--output", str(output)]) == 0
    printed, report = capsys.readouterr().out, json.loads(output.read_text(encoding="utf-8"))
    metrics, transforms, regularizer, *on_gpu = report["records"]
    assert [found["row"] for found in report["records"]] == [*rows, rows[-1]]
    assert len(metrics["A, s"]) == len(metrics["B, s"]) == len(regularizer["B, s"]) == 2
    assert metrics["difference"] <= 1e-9 and transforms["difference"] <= 1e-5
    assert 0.2 < regularizer["A, GB"] / regularizer["B, GB"] < 5
    assert {found["note"] for found in on_gpu} == {"needs a GPU"}
    assert all(found["what"] in printed for found in report["records"]) and report["environment"]["processor"]


def test_bad_options(tmp_path: Path, refused: Callable) -> None:
    error = refused(benchmark.main, ["--only", "metrics", "speed"])
    assert "'speed'" in error and all(name in error for name in benchmark.ROWS)
    assert "--rounds is 0" in refused(benchmark.main, ["--rounds", "0"])
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}: " in refused(benchmark.main, ["--output", tmp_path / "file" / "found.json"])


def test_every_row_has_its_comparisons(settings: Settings) -> None:
    found = {comparison.row for comparison in compared.rows(settings)}
    assert found == {row.removeprefix("gpu_") for row in benchmark.ROWS}


@pytest.mark.parametrize("row", ["train", "kept", "flops", "networks"])
def test_works_run(settings: Settings, row: str) -> None:
    settings = replace(settings, options={}, img_size=224) if row == "networks" else settings
    comparison = next(found for found in compared.rows(settings) if found.row == row)
    assert all(side[0](side[1])() is not None for side in (comparison.a, comparison.b) if side)


def test_whole_evaluations_agree(settings: Settings) -> None:
    ours, published = (compared._evaluation(replace(settings, naive=naive))() for naive in (False, True))
    np.testing.assert_allclose(ours[0], published[0], atol=1e-9)
    image, truth, prediction = compared.volume_pair(settings)
    assert image.shape == truth.shape and len(np.unique(truth)) > 3 and (prediction != truth).any()


def test_both_training_steps_are_the_same(settings: Settings) -> None:
    """Loss for loss over three steps, drop path and channel draws included."""
    losses = []
    for naive in (False, True):
        step = compared.make_step(replace(settings, naive=naive))
        torch.manual_seed(1)
        random.seed(1)
        losses.append([step(*compared.random_batch(settings)).item() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(set(losses[0])) == 3, "the weights move"


def test_losses_under_bfloat16(settings: Settings) -> None:
    steps = replace(settings, steps=14, workers=0)
    plain, half = (compared._losses(replace(steps, precision=name))()[0] for name in ("float32", "bfloat16"))
    assert plain.shape == (5,) and 0 < np.abs(plain - half).max() < 0.05


def test_operations_of_a_forward_pass(settings: Settings) -> None:
    """12.2 GFLOP for a slice."""
    full = replace(settings, img_size=224, batch=1, options={})
    operations = compared.count_operations(compared.make_network(full).eval(), compared.random_batch(full)[0])
    assert operations == pytest.approx(12.2e9, rel=0.05)


def test_sides_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, calls = {"a": iter([1.0, 5.0, 1.0]), "b": iter([2.0, 10.0, 3.0])}, []
    monkeypatch.setattr(measure, "_run_apart", lambda side: calls.append(side) or Run(next(seconds[side]), 0, None))
    assert measure.measure(Comparison("", "", "a", "b"), 3)["B / A"] == 2.0, "of the rounds"
    assert calls == list("ababab")


def test_what_takes_minutes_is_called_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, calls = {"a": 1.0, "b": 222.0}, []
    monkeypatch.setattr(measure, "_run_apart", lambda side: calls.append(side) or Run(seconds[side], 0, None))
    assert measure.measure(Comparison("", "", "a", "b"), 3)["B / A"] == 222.0
    assert calls == list("abaa")
    monkeypatch.setattr(measure, "_LONG_SECONDS", 0.0)
    calls.clear()
    measure._run(lambda settings: lambda: calls.append(""), settings)
    assert len(calls) == 1


def take(settings: Settings) -> Callable[[], str]:
    return lambda: str(np.ones(settings.depth * 10**6, dtype=np.uint8).sum())


def test_a_fresh_process(settings: Settings) -> None:
    held = np.ones(400 * 10**6, dtype=np.uint8)
    found = measure.measure(Comparison("", "", (take, replace(settings, depth=200))), 1)
    assert found["note"] == "200000000" and found["A, GB"] == pytest.approx(0.2, abs=0.05) and held[-1] == 1
    with_worker = Comparison("", "", (compared._epochs, settings))
    assert measure.measure(with_worker, 1)["A, s"], "it ends although the worker ignores signals"
