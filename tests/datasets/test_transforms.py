"""Augmentation and resizing against SciPy, NumPy's own rotations, and the published draws."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from datasets.transforms import Draw, RandomGenerator, resize, rot_flip, rotate


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(shape, dtype=np.float32), rng.integers(0, 9, shape).astype(np.uint8)


def both_kinds(
    operation: object, image: np.ndarray, label: np.ndarray, *args: object
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The result for NumPy arrays, and that for tensors as arrays."""
    tensors = operation(torch.from_numpy(image), torch.from_numpy(label), *args)
    assert all(isinstance(t, torch.Tensor) for t in tensors)
    return [operation(image, label, *args), tuple(t.numpy() for t in tensors)]


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(8, 8), (6, 9), (3, 8, 8), (1, 6, 9)])
def test_rot_flip(shape: tuple[int, ...], k: int, axis: int) -> None:
    image, label = pair(shape)
    for got in both_kinds(rot_flip, image, label, k, axis):
        for before, after in zip((image, label), got, strict=True):
            expected = np.flip(np.rot90(before, k, axes=(-2, -1)), axis=axis - 2)
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("angle", [-20, -7, 0, 13, 19])
@pytest.mark.parametrize("shape", [(16, 16), (11, 18), (2, 16, 16)])
def test_rotate(shape: tuple[int, ...], angle: int) -> None:
    image, label = pair(shape)
    for got in both_kinds(rotate, image, label, angle):
        for before, after in zip((image, label), got, strict=True):
            expected = ndimage.rotate(before, angle, axes=(-1, -2), order=0, reshape=False)
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("size", [(8, 8), (23, 17), (40, 40), (1, 1)])
@pytest.mark.parametrize("shape", [(20, 20), (15, 33), (2, 20, 20), (1, 8, 8)])
def test_resize(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    image, label = pair(shape)
    factors = (1,) * (len(shape) - 2) + (size[0] / shape[-2], size[1] / shape[-1])
    for got_image, got_label in both_kinds(resize, image, label, size):
        assert got_image.shape[-2:] == got_label.shape[-2:] == size
        one_by_one = image.reshape(-1, *shape[-2:]), label.reshape(-1, *shape[-2:])
        expected = [
            np.stack([ndimage.zoom(s, factors[-2:], order=order) for s in part])
            for part, order in zip(one_by_one, (3, 0), strict=True)
        ]
        np.testing.assert_allclose(got_image.reshape(expected[0].shape), expected[0], atol=1e-6)
        np.testing.assert_array_equal(got_label.reshape(expected[1].shape), expected[1])


def test_draws_are_the_published_ones() -> None:
    """The same calls on the same generators, in the same order, as SPEC section 4 says."""
    generator = RandomGenerator((8, 8))
    for seed in range(200):
        random.seed(seed)
        np.random.seed(seed)
        draw = generator.draw()
        state = (random.random(), np.random.randint(2**30))
        random.seed(seed)
        np.random.seed(seed)
        if random.random() > 0.5:
            expected = Draw("rot_flip", k=np.random.randint(0, 4), axis=np.random.randint(0, 2))
        elif random.random() > 0.5:
            expected = Draw("rotate", angle=np.random.randint(-20, 20))
        else:
            expected = Draw("none")
        assert draw == expected
        assert state == (random.random(), np.random.randint(2**30))


def test_frequencies_and_range() -> None:
    generator = RandomGenerator((8, 8))
    coins, integers = random.Random(0), np.random.RandomState(0)
    draws = [generator.draw(coins, integers) for _ in range(20000)]
    share = {kind: count / len(draws) for kind, count in Counter(d.kind for d in draws).items()}
    assert share == pytest.approx({"rot_flip": 0.5, "rotate": 0.25, "none": 0.25}, abs=0.015)
    angles = {d.angle for d in draws if d.kind == "rotate"}
    assert angles == set(range(-20, 20))
    assert {(d.k, d.axis) for d in draws if d.kind == "rot_flip"} == {(k, a) for k in range(4) for a in range(2)}


def test_switched_off() -> None:
    generator = RandomGenerator((8, 8), rot_flip=0.0, rotate=0.0)
    assert {generator.draw(random.Random(i), np.random.RandomState(i)).kind for i in range(100)} == {"none"}


def test_augments_before_it_resizes() -> None:
    image, label = pair((20, 30))
    got = RandomGenerator((10, 10))(image, label, Draw("rotate", angle=15))
    expected = resize(*rotate(image, label, 15), (10, 10))
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_impossible_arguments() -> None:
    image, label = pair((8, 8))
    with pytest.raises(ValueError, match="axis is 2"):
        rot_flip(image, label, 1, 2)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        rotate(image[0], label[0], 3)
    with pytest.raises(ValueError, match="size"):
        resize(image, label, (0, 8))


def test_inputs_are_left_alone() -> None:
    image, label = pair((8, 8))
    before = image.copy(), label.copy()
    rot_flip(image, label, 1, 0)
    rotate(image, label, 5)
    resize(image, label, (4, 4))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])
