"""The benchmark at tiny sizes: what it compares is equal, what it reports is whole; no time is asserted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datasets.phantom import make_phantom
from scripts import benchmark
from scripts.benchmarks import gpu, inputs, networks, precision, scaling, session, shares, training, volumes
from scripts.benchmarks.measure import Apart, Figure, Pair, Timing, here, in_turn
from scripts.benchmarks.report import number, table
from scripts.benchmarks.rows import BY_DEFAULT, ROWS

TINY = {
    "rounds": 2,
    "depth": 6,
    "side": 160,
    "img_size": 32,
    "batch": 2,
    "workers": 1,
    "network": {"embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 4},
}


@pytest.fixture
def settings(tmp_path: Path) -> inputs.Settings:
    return inputs.Settings(folder=tmp_path, **TINY)


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.what: figure for figure in figures}


def test_rows_into_table_and_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "found.json"
    names = ["metrics", "transforms", "regulariser", "gpu_train"]
    args = benchmark.parser().parse_args(["--only", *names, "--output", str(output)])
    assert session.run(benchmark.check(args), args, **TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1, "every line has every column"
    assert {line.split("|")[1].strip() for line in lines[2:]} == set(names)
    report = json.loads(output.read_text())
    assert list(report["rows"]) == names
    assert report["settings"]["rounds"] == 2 and report["environment"]["threads"] == torch.get_num_threads()
    assert report["environment"]["processor"] and report["environment"]["torch"] == torch.__version__.split("+")[0]
    figures = [figure for row in report["rows"].values() for figure in row["figures"]]
    assert len(figures) == len(lines) - 2
    ratio = report["rows"]["metrics"]["figures"][0]
    assert ratio["ours"]["rounds"] == 2 and ratio["other"]["rounds"] == 1 and ratio["at_least"] == 80
    assert ratio["value"] == pytest.approx(ratio["other"]["median"] / ratio["ours"]["median"])
    found = {figure["what"]: figure for figure in figures}
    for what in ("largest difference", "label pixels that differ", "largest difference of an image"):
        assert found[what]["reached"] is True, found[what]
    assert 0.2 < found["peak memory, with to without"]["value"] < 5


def test_rows_that_need_a_gpu(settings: inputs.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in session.ON_GPU:
        (figure,) = session.measure(name, settings)
        assert figure.value is None and figure.reached is None
        assert "| not measured |" in table({name: [figure]}) and "needs a GPU" in table({name: [figure]})


def test_every_row_has_its_measure() -> None:
    assert {*session.ON_CPU, *session.ON_GPU, "scaling"} == set(ROWS)
    assert set(ROWS) - set(BY_DEFAULT) == {"networks", "scaling"}


def test_bad_options(tmp_path: Path, refused: Callable) -> None:
    error = refused(benchmark.main, ["--only", "metrics", "speed"])
    assert "'speed'" in error and all(name in error for name in ROWS)
    assert "--rounds is 0" in refused(benchmark.main, ["--rounds", "0"])
    assert "--threads is -1" in refused(benchmark.main, ["--threads", "-1"])
    assert "--only scaling" in refused(benchmark.main, ["--figure", tmp_path / "curves.png"])
    assert "--figure" in refused(benchmark.main, ["--only", "scaling", "--figure", tmp_path / "curves.txt"])
    (tmp_path / "file").touch()
    assert "--output" in refused(benchmark.main, ["--output", tmp_path / "file" / "found.json"])


def test_whole_evaluations_agree(settings: inputs.Settings) -> None:
    found = by_name(volumes.evaluation(settings))
    assert found["voxels that differ"].value == 0
    assert found["largest difference of a metric"].value <= 1e-9
    _, truth, prediction = inputs.volume_pair(settings)
    assert len(np.unique(truth)) > 3 and (prediction != truth).any()
    ours, _ = volumes.evaluating(settings)()
    assert (ours == prediction).mean() > 0.9, "the guided network answers with the prediction of the pair"


def test_both_training_steps_are_the_same(settings: inputs.Settings) -> None:
    """Loss for loss over three steps, drop path and channel draws included."""
    losses = []
    for step in (inputs.our_step(settings), inputs.reference_step(settings)):
        torch.manual_seed(1)
        random.seed(1)
        losses.append([step(*inputs.resident_batch(settings)).item() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(set(losses[0])) == 3, "the weights move"


def test_loader_row(settings: inputs.Settings) -> None:
    figures = training.loader(settings)
    assert [f"{workers} workers" in figure.what for workers, figure in enumerate(figures)] == [True] * 3
    assert all(figure.ours.low / figure.other.high <= figure.value for figure in figures)
    assert all(figure.value <= figure.ours.high / figure.other.low for figure in figures)


def test_shares_are_of_a_whole(settings: inputs.Settings) -> None:
    found = shares.shares(settings)
    for kind in ("float32", "bfloat16"):
        of_kind = [figure.value for figure in found if kind in figure.what]
        assert len(of_kind) > 4 and sum(of_kind) == pytest.approx(100)
    assert any("matrix products" in figure.what and figure.value > 1 for figure in found)


def test_loss_curves_are_compared(settings: inputs.Settings) -> None:
    small = "DATA.PHANTOM.TRAIN_CASES 1 DATA.PHANTOM.TEST_CASES 1 DATA.PHANTOM.DEPTH 8 MODEL.SWIN.EMBED_DIM 12"
    (figure,) = precision.curve_bf16(settings, steps=2, opts=small.split())
    assert 0 < figure.value < 5, "two precisions, one curve"


def test_operations_of_a_step() -> None:
    """SPEC section 3: 12.2 GFLOP forward for a slice; the backward pass is twice that."""
    settings = inputs.Settings(folder=Path(), batch=2)
    assert training.operations(settings) == pytest.approx(2 * 3 * 12.2e9, rel=0.05)


def test_gpu_rows_run_anywhere(settings: inputs.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_MODES", (("float32", False, None),))
    found = by_name([*gpu.train(replace(settings, steps=2)), *gpu.inference(settings)])
    assert found["inference, bfloat16"].value > 0 and found["inference, bfloat16"].unit == "slices/s"
    assert found["peak memory, float32"].value > 0 and found["peak memory, published"].value > 0


def test_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    grid = scaling.Grid(sides=(("unet", (32, 64)), ("swin_unet", (32, 64))), batches=(1, 2), depths=(2, 8))
    monkeypatch.setattr(session, "QUICK_GRID", grid)
    words = ["--quick", "--only", "scaling", "--output", tmp_path / "out.json", "--figure", tmp_path / "curves.png"]
    args = benchmark.parser().parse_args([str(word) for word in words])
    assert session.run(benchmark.check(args), args, **{**TINY, "rounds": 1}) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    curves = report["curves"]
    assert [curve["sizes"] for curve in curves] == [[1024, 4096], [1024, 4096], [1, 2], [2, 8]]
    assert all(min(curve["seconds"]) > 0 for curve in curves)
    assert capsys.readouterr().out.count("| scaling ") == len(report["rows"]["scaling"]["figures"]) == 8
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_exponent() -> None:
    assert scaling.exponent((1, 2, 4), (3, 12, 48)) == pytest.approx(2)
    assert scaling.exponent((5, 50), (7, 7)) == pytest.approx(0)


def test_sides_are_called_in_turn() -> None:
    calls = []
    pair = in_turn(here(lambda: calls.append("a") or 1), here(lambda: calls.append("b") or 2), 3)
    assert calls == list("abababab") and pair[3:] == (1, 2)
    calls.clear()
    pair = in_turn(here(lambda: calls.append("a")), here(lambda: calls.append("b")), 3, other_rounds=1, warm_up=False)
    assert calls == list("abaa") and (pair.ours.rounds, pair.other.rounds) == (3, 1)


def test_the_ratio_is_that_of_rounds() -> None:
    ours, other = iter([1.0, 1.0, 5.0, 1.0]), iter([9.0, 2.0, 10.0, 3.0])
    pair = in_turn(lambda: (next(ours), None), lambda: (next(other), None), 3)  # the first of each warms up
    assert pair.ratio == 2.0 and pair.ours.median == 1.0 and pair.other.median == 3.0


def test_ratios_and_limits() -> None:
    assert Timing.of([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0, 3)
    pair = Pair(Timing.of([1.0, 2.0, 9.0]), Timing.of([8.0]), 4.0, None, None)
    assert pair.speed_up("", at_least=4).value == 4 and pair.speed_up("", at_least=4).reached is True
    assert pair.speed_up("", at_least=4.1).reached is False and pair.speed_up("").reached is None
    assert pair.overhead("", at_most=0.25).reached is True and pair.overhead("", at_most=0.2).reached is False


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (80, "80"), (0.12345, "0.123"), (1234.5, "1234"), (1e-9, "1.0e-09"), (2e8, "2.0e+08")]
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def take(megabytes: int) -> Callable[[], float]:
    return lambda: float(np.ones(megabytes * 10**6, dtype=np.uint8).sum())


def fail() -> Callable[[], None]:
    raise ValueError("nothing to prepare")


def test_memory_of_a_process_apart() -> None:
    here_too = np.ones(400 * 10**6, dtype=np.uint8)
    with Apart(take, 200) as work:
        seconds, total = work()
        peak = work.peak()
    assert total == 200e6 and seconds > 0
    assert peak.extra_gb == pytest.approx(0.2, abs=0.05), "what this process holds is not counted"
    assert here_too[-1] == 1
    with pytest.raises(ValueError, match="nothing to prepare"):
        Apart(fail)


def test_the_phantom_has_every_organ() -> None:
    _, label = make_phantom(np.random.default_rng(inputs.SEED), (40, 96, 96))
    assert np.unique(label).tolist() == list(range(9))


def test_deformed_labels_are_near() -> None:
    label = np.zeros((2, 100, 100), dtype=np.uint8)
    label[:, 40:60, 40:60] = 3
    moved = inputs.deformed(label, share=0.02)
    assert (moved != label).any()
    assert (moved[:, 42:58, 42:58] == 3).all(), "nothing moves by more than two pixels"
    moved[:, 38:62, 38:62] = 0
    assert not moved.any()


def test_a_guided_network_goes_on_where_it_was() -> None:
    class Network(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 3, 1, 1)

    network = volumes.Guided(Network(), torch.tensor([0, 1, 2, 1, 0])[:, None, None])
    found = [network(torch.zeros(size, 1, 1, 1)).argmax(1).flatten().tolist() for size in (2, 2, 1, 3)]
    assert found == [[0, 1], [2, 1], [0], [0, 1, 2]]


def test_every_network_is_measured(settings: inputs.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "list_networks", lambda: ["unet"])
    (figure,) = networks.networks(settings)
    assert figure.what.startswith("unet 32, step of batch 2") and "17.3 M parameters" in figure.note
    assert figure.value > 0 and figure.ours.rounds == figure.other.rounds == 2


def test_operations_are_counted_by_pencil(settings: inputs.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "our_network", lambda settings, name: nn.Conv2d(1, 4, 3, padding=1, bias=False))
    assert networks.size_of(settings, "unet") == (36, 2 * 36 * 32 * 32)
