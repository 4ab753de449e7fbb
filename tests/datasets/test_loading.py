"""Batches: the order of an epoch, draws that no worker changes, and going on in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datasets import build_dataset
from datasets.loading import Batch, EpochSampler, build_loader
from tests.conftest import make_synapse


def batches(root: Path, epoch: int = 0, start: int = 0, **options: object) -> list[Batch]:
    slices = build_dataset("Synapse", "train", num_classes=9, root_path=str(root))
    loader = build_loader(slices, **{"size": (16, 16), "batch_size": 2, "seed": 3, **options})
    loader.sampler.epoch, loader.sampler.start = epoch, start
    return list(loader)


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.image, y.image) and torch.equal(x.label, y.label) and x.names == y.names
        for x, y in zip(a, b, strict=True)
    )


def test_shapes_and_the_last_batch(tmp_path: Path) -> None:
    root = make_synapse(tmp_path / "d", train=1, shape=(5, 20, 20))
    found = batches(root)
    assert [tuple(b.image.shape) for b in found] == [(2, 1, 16, 16), (2, 1, 16, 16), (1, 1, 16, 16)]
    assert [tuple(b.label.shape) for b in found] == [(2, 16, 16), (2, 16, 16), (1, 16, 16)]
    assert found[0].image.dtype == torch.float32 and found[0].label.dtype == torch.uint8
    assert sorted(name for b in found for name in b.names) == [f"case0000_slice{i:03d}" for i in range(5)]


def test_workers_change_nothing_and_epochs_differ(synapse: Path) -> None:
    assert equal(batches(synapse), batches(synapse, workers=2))
    assert not equal(batches(synapse), batches(synapse, epoch=1))
    assert not equal(batches(synapse), batches(synapse, seed=4))


def test_goes_on_in_the_middle(synapse: Path) -> None:
    assert equal(batches(synapse, epoch=2)[1:], batches(synapse, epoch=2, start=2))


def test_an_epoch_repeats_no_other_s_draws(tmp_path: Path) -> None:
    root = make_synapse(tmp_path / "d", train=1, shape=(1, 20, 20))
    images = [batches(root, epoch=epoch)[0].image for epoch in range(12)]
    assert len({tuple(image.flatten().tolist()) for image in images}) > 4


@pytest.mark.parametrize("length", [1, 7])
def test_order_is_a_permutation(length: int) -> None:
    sampler = EpochSampler(length, seed=0)
    sampler.epoch = 4
    assert [(epoch, place) for epoch, place, _ in sampler] == [(4, place) for place in range(length)]
    assert sorted(index for _, _, index in sampler) == list(range(length))
    assert len(sampler) == length


def test_mixed_sizes_train_together(tmp_path: Path) -> None:
    root = make_synapse(tmp_path / "d", train=1, shape=(2, 20, 20))
    other = make_synapse(tmp_path / "e", train=1, shape=(2, 24, 28))
    (other / "train_npz/case0000_slice000.npz").rename(root / "train_npz/case0009_slice000.npz")
    with open(root / "lists/train.txt", "a") as file:
        file.write("case0009_slice000\n")
    assert sum(len(b.names) for b in batches(root)) == 3


def test_nothing_is_left_after_the_last_batch(synapse: Path) -> None:
    assert batches(synapse, start=6) == batches(synapse, start=8) == []


@pytest.mark.parametrize("repeat", [False, True])
def test_published_choices_repeat_at_their_place(synapse: Path, monkeypatch: pytest.MonkeyPatch, repeat: bool) -> None:
    from datasets.transforms import RandomGenerator

    kinds: list[str] = []
    draw = RandomGenerator.draw

    def spy(*args: object) -> object:
        kinds.append((drawn := draw(*args)).kind)
        return drawn

    monkeypatch.setattr(RandomGenerator, "draw", spy)
    epochs = []
    for epoch in range(6):
        kinds.clear()
        batches(synapse, epoch=epoch, repeat_choices=repeat)
        epochs.append(tuple(kinds))
    assert (len(set(epochs)) == 1) == repeat
