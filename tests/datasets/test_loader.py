"""Batches: the order of an epoch, draws that no worker changes, the transform, and going on in the middle."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import build_dataset
from datasets.augment import Augmentation
from datasets.case import Sample
from datasets.loader import Batch, EpochBatches, TrainingLoader, build_loader
from datasets.transforms import RandomGenerator
from tests.conftest import make_synapse
from tests.reference import transforms as reference


def loader_of(root: Path, **options: object) -> TrainingLoader:
    slices = build_dataset("Synapse", "train", num_classes=9, root_path=str(root), cache=str(options.pop("cache", "")))
    return build_loader(slices, **{"size": (16, 16), "batch_size": 2, "seed": 3, **options})


def batches(root: Path, epoch: int = 0, start: int = 0, **options: object) -> list[Batch]:
    loader = loader_of(root, **options)
    loader.sampler.epoch, loader.sampler.start = epoch, start
    return list(loader)


def mixed(folder: Path) -> Path:
    """Five slices of 20 x 20 and three of 24 x 28."""
    root = make_synapse(folder / "d", train=1, shape=(5, 20, 20))
    other = make_synapse(folder / "e", train=1, shape=(3, 24, 28))
    names = [f"case0009_slice{i:03d}" for i in range(3)]
    for i, name in enumerate(names):
        (other / f"train_npz/case0000_slice{i:03d}.npz").rename(root / f"train_npz/{name}.npz")
    with open(root / "lists/train.txt", "a", encoding="utf-8") as file:
        file.write("\n".join(names) + "\n")
    return root


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
    assert equal(batches(synapse, epoch=2)[1:], batches(synapse, epoch=2, start=1))


def test_an_epoch_repeats_no_other_s_draws(tmp_path: Path) -> None:
    root = make_synapse(tmp_path / "d", train=1, shape=(1, 20, 20))
    images = [batches(root, epoch=epoch)[0].image for epoch in range(12)]
    assert len({tuple(image.flatten().tolist()) for image in images}) > 4


@pytest.mark.parametrize("length", [1, 7])
def test_order_is_a_permutation(length: int) -> None:
    sampler = EpochBatches(length, batch_size=3, seed=0)
    sampler.epoch = 4
    keys = [key for batch in sampler for key in batch]
    assert [(epoch, place) for epoch, place, _ in keys] == [(4, place) for place in range(length)]
    assert sorted(index for _, _, index in keys) == list(range(length))
    assert len(sampler) == sampler.per_epoch == {1: 1, 7: 3}[length]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_each_batch(world: int) -> None:
    """Put together, the parts are the batches of one process; a last one of 2 is filled up from its beginning."""
    whole = list(EpochBatches(14, batch_size=6, seed=0))
    parts = [list(EpochBatches(14, batch_size=6, seed=0, rank=rank, world=world)) for rank in range(world)]
    together = [sum(of_batch, []) for of_batch in zip(*parts, strict=True)]
    assert together[:2] == whole[:2]
    assert together[2] == (whole[2] * world)[: max(2, world)]
    assert len({len(part) for of_batch in parts for part in of_batch[:2]}) == 1
    assert [len(part[2]) for part in parts] == [max(1, 2 // world)] * world


def test_a_batch_that_processes_cannot_share() -> None:
    with pytest.raises(ValueError, match="--batch_size is 5, which 2 processes cannot share equally; expected a mult"):
        EpochBatches(14, batch_size=5, seed=0, world=2)


@pytest.mark.parametrize("epoch", range(3))
def test_batches_are_the_published_transform_of_the_drawn_slices(tmp_path: Path, epoch: int) -> None:
    """Order, draws and transform written out; slices of two sizes share batches."""
    root = mixed(tmp_path)
    slices = build_dataset("Synapse", "train", num_classes=9, root_path=str(root))
    found = batches(root, epoch=epoch, batch_size=3)
    place = 0
    for batch in found:
        for image, label, name in zip(*batch, strict=True):
            index = int(np.random.default_rng([3, epoch]).permutation(8)[place])
            coins = random.Random(f"3 {epoch} {index}")
            draw = RandomGenerator((16, 16)).draw(coins, np.random.RandomState(coins.getrandbits(32)))
            expected = reference.training_transform(*slices[index][:2], (16, 16), *draw)
            assert name == slices[index].name
            np.testing.assert_allclose(image[0], expected[0], rtol=0, atol=1e-6)
            np.testing.assert_array_equal(label, expected[1])
            place += 1
    assert place == 8 and [len(batch.names) for batch in found] == [3, 3, 2]


def test_a_slice_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    root = mixed(tmp_path)
    one_by_one = batches(root, batch_size=1)
    together = batches(root, batch_size=8)[0]
    assert torch.equal(torch.cat([batch.image for batch in one_by_one]), together.image)
    assert torch.equal(torch.cat([batch.label for batch in one_by_one]), together.label)


def test_workers_only_read(synapse: Path) -> None:
    """What a worker hands over is the slice itself, beside its draw."""
    drawn = loader_of(synapse).dataset
    sample, draw, key = drawn[2, 0, 4]
    np.testing.assert_array_equal(sample.image, drawn.slices[4].image)
    np.testing.assert_array_equal(sample.label, drawn.slices[4].label)
    assert draw == drawn[2, 5, 4][1], "the place in the epoch changes no draw"
    assert key == (drawn.seed, 2, 4)


def test_augmentation_follows_the_published_one(synapse: Path) -> None:
    augmentation = Augmentation(scale=0.3, noise=0.1, probability=1)
    loader, plain = loader_of(synapse, augmentation=augmentation), loader_of(synapse)
    for batch, published in zip(loader, plain, strict=True):
        keys = [(loader.dataset.seed, 0, loader.dataset.slices.names.index(name)) for name in batch.names]
        image, label = augmentation(published.image, published.label, keys)
        assert torch.equal(batch.image, image) and torch.equal(batch.label, label)


@pytest.mark.parametrize("cached", [pytest.param(False, marks=pytest.mark.long), True])
def test_spawned_workers_give_the_batches_of_forked_ones(tmp_path: Path, cached: bool) -> None:
    """Spawned, as Windows and macOS start them, a worker gets everything by pickling; a whole epoch and a rest."""
    root, cache = mixed(tmp_path), str(tmp_path / "cache") if cached else ""
    for epoch, start in ((0, 0), (3, 1)):
        ours = {"workers": 2, "epoch": epoch, "start": start, "cache": cache}
        spawned, forked = (batches(root, start_method=method, **ours) for method in ("spawn", "fork"))
        assert equal(spawned, forked) and equal(spawned, batches(root, epoch=epoch, start=start))


def test_what_the_trainer_asks_of_it(synapse: Path) -> None:
    loader = loader_of(synapse, batch_size=4)
    assert (len(loader), loader.sampler.per_epoch, len(loader.dataset), loader.sampler.length) == (2, 2, 6, 6)
    loader.sampler.start = 1
    assert len(loader) == 1 and loader.sampler.per_epoch == 2


def test_nothing_is_left_after_the_last_batch(synapse: Path) -> None:
    assert batches(synapse, start=3) == batches(synapse, start=4) == []


@pytest.mark.parametrize("repeat", [False, True])
def test_published_choices_repeat_at_their_place(synapse: Path, monkeypatch: pytest.MonkeyPatch, repeat: bool) -> None:
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


class Colored(list):
    """Two images of 20 x 20 and two of 24 x 28, in three channels."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        shapes = [(20, 20), (24, 28), (20, 20), (24, 28)]
        super().__init__(
            Sample(rng.random((3, *shape), np.float32), rng.integers(0, 2, shape, np.uint8), f"{i}")
            for i, shape in enumerate(shapes)
        )


def test_color_images_come_as_they_are_transformed_alone() -> None:
    images = Colored()
    loader = build_loader(images, size=(16, 12), batch_size=4, seed=3)
    (batch,) = loader
    assert batch.image.shape == (4, 3, 16, 12) and batch.label.shape == (4, 16, 12)
    transform = RandomGenerator((16, 12))
    for place, name in enumerate(batch.names):
        sample, draw, _ = loader.dataset[(0, place, int(name))]
        for colour in range(3):
            image, label = transform(sample.image[colour].copy(), sample.label, draw)
            np.testing.assert_array_equal(batch.image[place, colour], image)
        np.testing.assert_array_equal(batch.label[place], label)
