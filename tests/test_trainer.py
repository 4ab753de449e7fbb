"""The training loop: rate, steps, accumulation, saves, resuming, steps that are not finite."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from torch import Tensor, nn

import losses
from configs.config import get_config
from engine.distributed import Ranks
from engine.logger import MetricLogger
from networks import build_network
from train import build_monitor
from trainer import Diverged, Options, Schedule, Trainer


class Batch(NamedTuple):
    image: Tensor
    label: Tensor
    names: list[str]


class Sampler:
    def __init__(self, length: int, batch_size: int) -> None:
        self.length, self.epoch, self.start = length, 0, 0
        self.per_epoch = math.ceil(length / batch_size)


class Loader:
    """Batches made from (epoch, index) alone; `spoil` maps a (epoch, batch) to something done to it."""

    def __init__(self, length: int = 6, batch_size: int = 2, spoil: dict | None = None, side: int = 4) -> None:
        self.sampler, self.batch_size, self.spoil = Sampler(length, batch_size), batch_size, spoil or {}
        self.side = side

    def __len__(self) -> int:
        return self.sampler.per_epoch

    def __iter__(self):
        epoch = self.sampler.epoch
        for first in range(self.sampler.start * self.batch_size, self.sampler.length, self.batch_size):
            count = min(self.batch_size, self.sampler.length - first)
            generator = torch.Generator().manual_seed(1000 * epoch + first)
            image = torch.randn(count, 1, self.side, self.side, generator=generator)
            action = self.spoil.get((epoch, first // self.batch_size))
            image = action(image) if action else image
            yield Batch(image, (image[:, 0] > 0).to(torch.uint8), [f"e{epoch}i{first + i}" for i in range(count)])


class Criterion(nn.Module):
    """Cross-entropy and a term that draws from Python's generator, as KDloss does."""

    needs_features = False

    def forward(self, logits: Tensor, label: Tensor, features: None, epoch: float) -> dict[str, Tensor]:
        ce = nn.functional.cross_entropy(logits, label.long())
        return {"loss": ce * (0.5 + random.random()), "ce": ce}


def build(
    folder: Path,
    *,
    epochs: int = 3,
    options: Options | None = None,
    max_steps: int = 0,
    seed: int = 0,
    **loader: object,
) -> Trainer:
    folder.mkdir(exist_ok=True)
    random.seed(seed)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.2), nn.Conv2d(4, 2, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9)
    data = Loader(**loader)
    options = options or Options(save_seconds=0)
    schedule = Schedule(epochs, -(-len(data) // options.accumulation_steps), base_lr=0.1, max_steps=max_steps)
    logger = MetricLogger(folder, schedule.total_steps, log_freq=1)
    parts = network, Criterion(), optimizer, data, schedule, folder, logger
    return Trainer(*parts, options)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.network.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_rates_are_used(tmp_path: Path) -> None:
    trainer = build(tmp_path, epochs=2)
    used = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (used.append(trainer.optimizer.param_groups[0]["lr"]), step())
    trainer.fit()
    assert used == pytest.approx([0.1, 0.1] + [0.1 * (1 - n / 6) ** 0.9 for n in range(1, 5)])


def test_files_and_metrics(tmp_path: Path) -> None:
    trainer = build(tmp_path, options=Options(save_seconds=0, save_freq=2))
    result = trainer.fit()
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 10))
    assert {"loss", "ce", "lr", "epoch"} <= set(rows(tmp_path)[0]) and result["loss"] > 0
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    assert (state["epoch"], state["step"]) == (3, 9)
    best = torch.load(tmp_path / "best.pth", weights_only=True)
    assert same(list(best.values()), weights(trainer)), "without validation the last is the best"
    assert sorted(p.name for p in tmp_path.glob("epoch_*")) == ["epoch_2.pth"]
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_max_steps_ends_in_mid_epoch(tmp_path: Path) -> None:
    trainer = build(tmp_path, max_steps=4)
    trainer.fit()
    assert trainer.at.step == 4 and (tmp_path / "best.pth").is_file()


class Identical(Loader):
    """The same slice over and over; `spoil` as in Loader."""

    def __iter__(self):
        image = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        for index in range(self.sampler.start, self.sampler.length):
            action = self.spoil.get((self.sampler.epoch, index))
            yield Batch(action(image) if action else image, (image[:, 0] > 0).to(torch.uint8), ["x"])


def without_draws(trainer: Trainer, loader: Loader) -> Trainer:
    """A trainer whose gradients depend on the slices alone."""

    class Mean(nn.Module):
        needs_features = False

        def forward(self, logits: Tensor, label: Tensor, features: None, epoch: float) -> dict[str, Tensor]:
            return {"loss": nn.functional.cross_entropy(logits, label.long())}

    trainer.network[1].p = 0.0
    trainer.criterion, trainer.loader = Mean(), loader
    return trainer


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    """Two batches of 2 make the step of one batch of 4 where the loss is a mean."""

    class Same(Loader):
        def __iter__(self):
            images = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(self.sampler.epoch))
            for image in images.split(self.batch_size):
                yield Batch(image, (image[:, 0] > 0).to(torch.uint8), ["x"] * len(image))

    ends = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        options = Options(accumulation_steps=accumulation)
        trainer = build(tmp_path / str(batch_size), epochs=2, options=options, length=8, batch_size=batch_size)
        without_draws(trainer, Same(8, batch_size)).fit()
        assert trainer.at.step == 4
        ends.append(weights(trainer))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("accumulation, lengths", [(2, (3, 4)), (3, (4, 5, 6)), (5, (2, 5))])
def test_an_incomplete_group_steps_with_its_mean_gradient(
    tmp_path: Path, accumulation: int, lengths: tuple[int, ...]
) -> None:
    """Identical slices: however many the last group has, the weights end the same."""
    ends = []
    for length in lengths:
        options = Options(accumulation_steps=accumulation)
        trainer = build(tmp_path / str(length), options=options, length=length, batch_size=1)
        ends.append(weights(without_draws(trainer, Identical(length, 1)).fit() and trainer))
    for end in ends[1:]:
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(ends[0], end, strict=True))


def test_a_skipped_batch_leaves_its_group_the_mean_gradient(tmp_path: Path) -> None:
    """Of a group of two the first is not finite: the step is that of a group of identical slices."""
    spoil = {(0, 0): lambda image: image * math.nan}
    ends = []
    for name, length, broken in (("whole", 4, {}), ("spoiled", 4, spoil)):
        trainer = build(tmp_path / name, epochs=1, options=Options(accumulation_steps=2), length=length, batch_size=1)
        without_draws(trainer, Identical(length, 1, broken)).fit()
        ends.append(weights(trainer))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 7, 8])
def test_interrupted_and_resumed_is_the_same_run(tmp_path: Path, stop_at: int, accumulation: int) -> None:
    options = Options(save_seconds=1e9, accumulation_steps=accumulation)
    whole = build(tmp_path / "whole", options=options)
    whole.fit()

    def send(image: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return image

    first = build(tmp_path / "cut", options=options, spoil={divmod(stop_at, 3): send})
    with pytest.raises(SystemExit) as stop:
        first.fit()
    assert stop.value.code == 143
    # A line written after the save, as by a run that was killed later, is dropped and made again.
    with open(tmp_path / "cut" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 99, "loss": 0.0}) + "\n")
    second = build(tmp_path / "cut", options=options, seed=99)
    path = tmp_path / "cut" / "last.pth"
    second.resume(torch.load(path, weights_only=True), path)
    second.fit()
    assert same(weights(whole), weights(second))
    best = torch.load(tmp_path / "cut" / "best.pth", weights_only=True)
    assert same(list(best.values()), weights(whole)), "an interruption on the very last step leaves no gap"
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "cut/metrics.jsonl").read_bytes()


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    for state in ({"model": {}}, {"model": {"a": torch.zeros(1)}, "optimizer": {}}):
        with pytest.raises(ValueError, match="^last.pth: the checkpoint does not belong to this run"):
            trainer.resume(state, Path("last.pth"))


def test_a_bad_step_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = build(tmp_path, epochs=2, spoil={(0, 1): lambda image: image * float("nan")})
    trainer.fit()
    assert trainer.at.step == 5, "one of six steps"
    assert all(torch.isfinite(p).all() for p in weights(trainer))
    assert "e0i2, e0i3" in caplog.text


def test_a_gradient_that_is_not_finite_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = build(tmp_path, epochs=1)
    calls = []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * float("inf") if len(calls) == 2 else gradient

    trainer.network[2].bias.register_hook(spoil)
    trainer.fit()
    assert trainer.at.step == 2 and all(torch.isfinite(p).all() for p in weights(trainer))
    assert "gradient is not finite" in caplog.text


def test_an_older_run_s_metrics_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 7}\n{"step": 2, "lo')
    build(tmp_path, epochs=1).fit()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert 7 not in [row["loss"] for row in rows(tmp_path)]


def test_three_bad_steps_end_the_run(tmp_path: Path) -> None:
    spoil = {(1, b): lambda image: image * float("inf") for b in range(3)}
    trainer = build(tmp_path, spoil=spoil)
    with pytest.raises(Diverged, match="3 times in a row"):
        trainer.fit()
    assert torch.load(tmp_path / "last.pth", weights_only=True)["epoch"] == 1


def test_validation_selects_the_best(tmp_path: Path) -> None:
    scores = iter([0.3, 0.7, 0.5, 0.6])
    kept = []
    trainer = build(tmp_path, epochs=4, options=Options(val_freq=1))

    def validate(network: nn.Module, progress: object) -> dict[str, float]:
        kept.append(weights(trainer))
        return {"dice": next(scores), "left kidney": 0.1}

    trainer.validate = validate
    assert trainer.fit()["best_dice"] == 0.7
    assert same(list(torch.load(tmp_path / "best.pth", weights_only=True).values()), kept[1])
    assert [row["val_dice"] for row in rows(tmp_path) if "val_dice" in row] == [0.3, 0.7, 0.5, 0.6]


def test_gradient_clipping(tmp_path: Path) -> None:
    trainer = build(tmp_path, epochs=1, options=Options(clip_grad=1e-6))
    before = weights(trainer)
    trainer.fit()
    moved = max((a - b).abs().max().item() for a, b in zip(before, weights(trainer), strict=True))
    assert 0 < moved < 1e-5


def regularized(
    folder: Path, kd: losses.KDloss, factor: float = 0.0, freq: int = 1, lr: float = 1e-3, spoil: dict | None = None
) -> Trainer:
    """A small U-Net with the loss itself, trained for two epochs."""
    torch.manual_seed(0)
    random.seed(0)
    folder.mkdir(exist_ok=True)
    network, data = build_network("unet", num_classes=2, img_size=32, width=4), Loader(side=32, spoil=spoil)
    optimizer, schedule = torch.optim.SGD(network.parameters(), lr=lr), Schedule(2, 3, base_lr=lr)
    criterion, logger = losses.Criterion(2, kd=kd), MetricLogger(folder, schedule.total_steps, log_freq=1)
    config = get_config(overrides={"LOSS.GRADIENT_FACTOR": factor, "LOSS.GRADIENT_FREQ": freq})
    monitor = build_monitor(config, network, criterion, logger, Ranks())
    parts = network, criterion, optimizer, data, schedule, folder, logger
    trainer = Trainer(*parts, monitor=monitor)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("weight, warned", [(1e-3, False), (1e4, True)])
def test_warns_of_a_term_with_a_larger_gradient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, weight: float, warned: bool
) -> None:
    regularized(tmp_path, losses.KDloss(lambda_1=weight, lambda_2=0), factor=5.0, freq=2)
    found = [row for row in rows(tmp_path) if "grad_segmentation" in row]
    assert [row["step"] for row in found] == [1, 3, 5]
    assert all(row["grad_ifd"] == 0 < row["grad_scr"] for row in found)
    assert all((row["grad_scr"] > 5 * row["grad_segmentation"]) == warned for row in found)
    assert sum("the gradient of scr is" in message for message in caplog.messages) == warned * len(found)


def test_gradient_norms_that_are_not_finite_are_not_logged(tmp_path: Path) -> None:
    nan = {(0, 1): lambda image: image * math.nan}
    regularized(tmp_path, losses.KDloss(1.0), factor=5.0, spoil=nan)
    found = [row for row in rows(tmp_path) if "grad_scr" in row]
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5]  # of six batches one is skipped
    assert all(math.isfinite(value) for row in found for value in row.values())


def test_gradient_norms_change_no_weight(tmp_path: Path) -> None:
    ends = [weights(regularized(tmp_path / str(factor), losses.KDloss(1.0), factor, lr=0.1)) for factor in (0.0, 5.0)]
    assert same(*ends)


def test_warm_up_follows_the_batches(tmp_path: Path) -> None:
    regularized(tmp_path, losses.KDloss(lambda_1=0, lambda_2=1.0, warmup_epochs=1))
    factors = [
        (row["loss"] - 0.4 * row["ce"] - 0.6 * row["dice_loss"]) / row["ifd"] for row in rows(tmp_path) if "ifd" in row
    ]
    assert factors == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1], abs=1e-5)


def test_autocast_runs(tmp_path: Path) -> None:
    trainer = build(tmp_path, epochs=1, options=Options(autocast=torch.bfloat16))
    seen = []
    trainer.network[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert math.isfinite(trainer.fit()["loss"])
    assert set(seen) == {torch.bfloat16}


def events_of(folder: Path) -> list[Event]:
    """TensorBoard's records: length (8 bytes), checksum (4), event, checksum (4)."""
    content, events = b"".join(path.read_bytes() for path in sorted((folder / "log").iterdir())), []
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12:end]))
        content = content[end + 4 :]
    return events


def test_tensorboard_gets_terms_and_images(tmp_path: Path) -> None:
    build(tmp_path, epochs=1).fit()
    values = [(event.step, value) for event in events_of(tmp_path) for value in event.summary.value]
    scalars = [(step, value.tag, value.simple_value) for step, value in values if not value.HasField("image")]
    expected = [(row["step"], f"train/{name}", row[name]) for row in rows(tmp_path) for name in ("lr", "loss", "ce")]
    assert scalars == [(step, tag, pytest.approx(value)) for step, tag, value in expected] and len(scalars) == 9
    images = {value.tag: (value.image.height, value.image.width) for _, value in values if value.HasField("image")}
    assert images == {f"train/{name}": (4, 4) for name in ("image", "prediction", "truth")}


def validated(folder: Path, scores: list[float], **settings: object) -> Trainer:
    trainer = build(folder, **settings)
    trainer.options = Options(val_freq=1, save_seconds=1e9)
    trainer.validate = lambda network, progress: {"dice": scores.pop(0)}
    return trainer


def resumed(source: Path, folder: Path, scores: list[float], epochs: int) -> Trainer:
    trainer = validated(folder, scores, epochs=epochs)
    trainer.resume(torch.load(source / "last.pth", weights_only=True), source / "last.pth")
    trainer.bring_best(source)
    return trainer


@pytest.mark.parametrize("epochs", [2, 3], ids=["finished", "goes on"])
@pytest.mark.parametrize("elsewhere", [True, False])
@pytest.mark.parametrize("damage", [None, "gone", "another"])
def test_best_weights_travel_with_a_run_or_it_has_none(
    epochs: int, elsewhere: bool, damage: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    validated(source, [0.9, 0.1], epochs=2).fit()
    best = (source / "best.pth").read_bytes()
    if damage:
        (source / "best.pth").unlink()
    if damage == "another":
        shutil.copy(source / "last.pth", source / "best.pth")
    folder = tmp_path / "elsewhere" if elsewhere else source
    result = resumed(source, folder, [0.2], epochs).fit()
    found = (folder / "best.pth").read_bytes() if (folder / "best.pth").exists() else None
    if damage is None:
        assert found == best and result["best_dice"] == 0.9
    elif damage == "gone" or elsewhere:  # in its own folder a run may have found better ones after its last save
        assert "best.pth: is missing, the weights of validation Dice 0.9000 are lost" in caplog.text
        assert (found is None) == (epochs == 2), "the last weights never stand in for better ones"
        assert result["best_dice"] == (0.9 if epochs == 2 else 0.2)


def test_a_bad_last_step_is_a_divergence(tmp_path: Path) -> None:
    trainer = build(tmp_path, epochs=1, spoil={(0, 2): lambda image: image * float("nan")})
    with pytest.raises(Diverged, match="1 times in a row"):
        trainer.fit()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = build(tmp_path, epochs=1)
    step = trainer.optimizer.step

    def spoil() -> None:
        step()
        with torch.no_grad():
            trainer.network[0].bias.fill_(float("nan"))

    trainer.optimizer.step = spoil
    with pytest.raises(Diverged):
        trainer.fit()
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("max_steps", [0, 8])
def test_a_validation_that_is_interrupted_is_repeated(tmp_path: Path, max_steps: int) -> None:
    """SIGTERM in the middle of the last validation, after a whole epoch and after a part of one."""

    def build_validating(folder: Path, interrupted: bool) -> Trainer:
        trainer = build(folder, options=Options(val_freq=9), max_steps=max_steps)

        def validate(network: nn.Module, progress: Callable) -> dict[str, float]:
            for case in progress(range(3)):
                if interrupted and case == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                assert case < 2 or not interrupted, "the case at hand is the last"
            return {"dice": weights(trainer)[0].sum().item()}

        trainer.validate = validate
        return trainer

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    build_validating(whole, False).fit()
    with pytest.raises(SystemExit) as stop:
        build_validating(cut, True).fit()
    assert stop.value.code == 143 and not (cut / "best.pth").exists()
    second = build_validating(cut, False)
    second.resume(torch.load(cut / "last.pth", weights_only=True), cut / "last.pth")
    second.fit()
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    best = [torch.load(folder / "best.pth", weights_only=True) for folder in (whole, cut)]
    assert same(*(list(state.values()) for state in best))


def test_a_loader_that_fails_costs_no_step(tmp_path: Path) -> None:
    def fail(image: Tensor) -> Tensor:
        raise ValueError("case.npz: is damaged")

    trainer = build(tmp_path, options=Options(save_seconds=1e9), spoil={(1, 1): fail})
    with pytest.raises(ValueError, match="case.npz: is damaged"):
        trainer.fit()
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    assert (state["epoch"], state["batch_in_epoch"], state["step"]) == (1, 1, 4)


def test_no_save_leads_into_a_divergence(tmp_path: Path) -> None:
    """Saves come after every batch, but not after one that was skipped."""
    spoil = {(0, b): lambda image: image * float("nan") for b in (1, 2)} | {(1, 0): lambda image: image * float("nan")}
    with pytest.raises(Diverged):
        build(tmp_path, spoil=spoil).fit()
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    assert (state["batch_in_epoch"], state["step"], state["bad_steps"]) == (1, 1, 0)


def test_every_generator_is_restored(tmp_path: Path) -> None:
    """Python's, NumPy's and torch's: what they draw next after a save is what they draw next after resuming."""
    trainer = build(tmp_path, epochs=1)
    trainer.fit()
    drawn = random.random(), np.random.random(), torch.rand(1).item()
    second = build(tmp_path, epochs=1, seed=5)
    np.random.seed(5)
    second.resume(torch.load(tmp_path / "last.pth", weights_only=True), tmp_path / "last.pth")
    assert (random.random(), np.random.random(), torch.rand(1).item()) == drawn
