"""Augmentation and resizing against SciPy, NumPy's own rotations, and the published draws."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from datasets.transforms import Draw, RandomGenerator, resize, resize_image, resize_label, rot_flip, rotate
from tests.reference import transforms as reference

DRAWS = [Draw("none"), Draw("rotate", angle=-20), Draw("rotate", angle=7)]
DRAWS += [Draw("rot_flip", k=k, axis=axis) for k in range(4) for axis in (0, 1)]


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(shape, dtype=np.float32), rng.integers(0, 9, shape).astype(np.uint8)


def each(operation: Callable[..., np.ndarray], array: np.ndarray, *args: object) -> np.ndarray:
    """An operation on slices (H, W), on a slice or on each of a batch."""
    return operation(array, *args) if array.ndim == 2 else np.stack([operation(one, *args) for one in array])


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
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, each(reference.rot_flip, before, k, axis))


@pytest.mark.parametrize("angle", [-20, -7, 0, 13, 19, 90, 3.7])
@pytest.mark.parametrize("shape", [(16, 16), (11, 18), (2, 16, 16)])
def test_rotate(shape: tuple[int, ...], angle: int) -> None:
    image, label = pair(shape)
    for got in both_kinds(rotate, image, label, angle):
        for before, after in zip((image, label), got, strict=True):
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, each(reference.rotate, before, angle))


@pytest.mark.parametrize("size", [(8, 8), (23, 17), (40, 40), (1, 1), (20, 33)])
@pytest.mark.parametrize("shape", [(20, 20), (15, 33), (2, 20, 20), (1, 8, 8), (1, 1), (2, 3)])
def test_resize(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    image, label = pair(shape)
    for got_image, got_label in both_kinds(resize, image, label, size):
        assert (got_image.dtype, got_label.dtype) == (image.dtype, label.dtype)
        np.testing.assert_allclose(got_image, each(reference.resize, image, size, 3), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(got_label, each(reference.resize, label, size, 0))
    exact = image.astype(np.float64)
    got = resize_image(exact, size)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, each(reference.resize, exact, size, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape, size", [((512, 512), (224, 224)), ((224, 224), (512, 512)), ((300, 40), (97, 129))])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_resize_beyond_one_block(shape: tuple, size: tuple, dtype: type, tolerance: float) -> None:
    image = 100 * pair(shape)[0].astype(dtype)
    got, expected = resize_image(image, size), reference.resize(image, size, 3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize("old, new", [(512, 224), (30, 8), (117, 225)])
def test_scipy_s_last_pixel_may_fall_outside(old: int, new: int) -> None:
    """By rounding, SciPy's last coordinate can exceed the last pixel, and is 0 then."""
    ones = np.ones((old, old))
    expected = reference.resize(ones, (new, new), 3)
    assert not expected[-1].any() and not expected[:, -1].any(), "choose sizes where it happens"
    np.testing.assert_allclose(resize_image(ones, (new, new)), expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(resize_label(ones, (new, new)), reference.resize(ones, (new, new), 0))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_whole_numbers(dtype: str) -> None:
    """As SciPy has it; but a bool image counts as 0 and 1 and is rounded, where SciPy cuts 0.99 off to False."""
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 101, (2, 20, 31)).astype(dtype)
    size = (12, 37)
    if dtype == "bool":
        expected = each(reference.resize, values.astype(np.float64), size, 3) >= 0.5
    else:
        expected = each(reference.resize, values, size, 3)
    for image, label in both_kinds(resize, values, values, size):
        assert image.dtype == label.dtype == dtype
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(label, each(reference.resize, values, size, 0))
    np.testing.assert_array_equal(rotate(values, values, 11)[0], each(reference.rotate, values, 11))
    np.testing.assert_array_equal(rot_flip(values, values, 1, 0)[0], each(reference.rot_flip, values, 1, 0))


def test_whole_numbers_stay_in_their_range() -> None:
    image = np.random.default_rng(0).choice([0, 255], (20, 20)).astype(np.uint8)
    unbounded = reference.resize(image.astype(np.float64), (27, 27), 3)
    assert unbounded.min() < -1 and unbounded.max() > 256
    np.testing.assert_array_equal(resize_image(image, (27, 27)), reference.resize(image, (27, 27), 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    image = torch.from_numpy(pair((20, 20))[0]).to(dtype)
    expected = reference.resize(image.float().numpy(), (31, 9), 3)
    got = resize_image(image, (31, 9))
    assert got.dtype == dtype
    np.testing.assert_allclose(got.float().numpy(), expected, atol=2 * torch.finfo(dtype).eps)


def awkward(image: np.ndarray) -> list[np.ndarray]:
    """The same numbers in memory that torch does not take as it is."""
    frozen = image.copy()
    frozen.flags.writeable = False
    return [frozen, image[::-1].copy()[::-1], np.asfortranarray(image), image.astype(image.dtype.newbyteorder())]


@pytest.mark.filterwarnings("error")
def test_any_array_will_do() -> None:
    image, label = pair((20, 30))
    for other, other_label in zip(awkward(image), awkward(label), strict=True):
        for operation, *args in ((rotate, 12), (rot_flip, 3, 1), (resize, (13, 40))):
            for got, expected in zip(operation(other, other_label, *args), operation(image, label, *args), strict=True):
                np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shape, size", [((40, 40), (24, 24)), ((30, 44), (44, 30)), ((25, 31), (25, 31))])
@pytest.mark.parametrize("tensors", [False, True])
def test_training_transform(shape: tuple[int, int], size: tuple[int, int], tensors: bool) -> None:
    """Every kind of draw in one batch, against each slice by itself in SciPy."""
    image, label = pair((len(DRAWS), *shape))
    kind = torch.from_numpy if tensors else np.asarray
    got_image, got_label = (np.asarray(part) for part in RandomGenerator(size)(kind(image), kind(label), DRAWS))
    for i, draw in enumerate(DRAWS):
        expected = reference.training_transform(image[i], label[i], size, *draw)
        np.testing.assert_allclose(got_image[i], expected[0], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(got_label[i], expected[1])


def test_tables_of_many_shapes() -> None:
    """Where every slice has a shape of its own, as in ACDC and GlaS: pixel for pixel what SciPy makes of each."""
    rng = random.Random(7)
    for _ in range(60):
        shape, size = [(rng.randint(1, 90), rng.randint(1, 90)) for _ in range(2)]
        image, label = pair(shape)
        for draw in [*DRAWS, Draw("rotate", angle=rng.randint(-20, 19)), Draw("rotate", angle=rng.uniform(-180, 180))]:
            got_image, got_label = RandomGenerator(size)(image, label, draw)
            want_image, want_label = reference.training_transform(image, label, size, *draw)
            np.testing.assert_array_equal(got_label, want_label)
            np.testing.assert_allclose(got_image, want_image, rtol=0, atol=1e-6)


def test_a_slice_does_not_depend_on_its_neighbours() -> None:
    """To the last bit, so that it matters neither who shares a batch nor how large it is."""
    image, label = (torch.from_numpy(part) for part in pair((len(DRAWS), 96, 80)))
    generator = RandomGenerator((56, 48))
    together = generator(image, label, DRAWS)
    resized = resize_image(image, (56, 48))
    for i, draw in enumerate(DRAWS):
        alone = generator(image[i], label[i], draw)
        assert torch.equal(alone[0], together[0][i]) and torch.equal(alone[1], together[1][i])
        assert torch.equal(resize_image(image[i], (56, 48)), resized[i])


def test_tf32_is_for_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU may round for the network it must not round here, and what was set stays set."""
    matmul, seen, bmm = torch.backends.cuda.matmul, set(), torch.bmm

    def spy(*args: object, **options: object) -> object:
        seen.add(matmul.allow_tf32)
        return bmm(*args, **options)

    monkeypatch.setattr(torch, "bmm", spy)
    before = matmul.allow_tf32
    try:
        for allowed in (True, False):
            matmul.allow_tf32 = allowed
            resize_image(torch.rand(20, 20), (8, 8))
            assert matmul.allow_tf32 is allowed
    finally:
        matmul.allow_tf32 = before
    assert seen == {False}


def test_tables_made_for_prediction_serve_training() -> None:
    """Tables are kept; one made in inference mode must not stop autograd later."""
    image = torch.rand(2, 19, 23, requires_grad=True)
    with torch.inference_mode():
        first = resize_image(image, (29, 31)).clone(), rotate(image, image, 5)[0].clone()
    again = resize_image(image, (29, 31)), rotate(image, image, 5)[0]
    weight = torch.ones((), requires_grad=True)
    (weight * again[0].sum() + weight * again[1].sum()).backward()
    assert all(torch.equal(*both) for both in zip(first, again, strict=True))
    assert weight.grad == pytest.approx(float(again[0].sum() + again[1].sum()))


def test_draws_are_the_published_ones() -> None:
    """The same calls on the same generators, in the same order, as published."""
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


def test_impossible_arguments() -> None:
    image, label = pair((8, 8))
    with pytest.raises(ValueError, match="axis is 2"):
        rot_flip(image, label, 1, 2)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        rotate(image[0], label[0], 3)
    with pytest.raises(ValueError, match="size"):
        resize(image, label, (0, 8))
    with pytest.raises(ValueError, match=r"2 draws for \(8, 8\)"):
        RandomGenerator((8, 8))(image, label, DRAWS[:2])
    with pytest.raises(ValueError, match=r"1 draws for \(3, 8, 8\)"):
        RandomGenerator((8, 8))(*pair((3, 8, 8)), DRAWS[0])


def test_inputs_are_left_alone() -> None:
    image, label = pair((8, 8))
    before = image.copy(), label.copy()
    rot_flip(image, label, 1, 0)
    rotate(image, label, 5)
    resize(image, label, (4, 4))
    got = RandomGenerator((8, 8))(image, label, Draw("none"))
    got[0][:], got[1][:] = 7, 7  # a result is never the input itself
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_a_colour_is_a_slice_like_any_other() -> None:
    image, label = pair((len(DRAWS), 3, 30, 44))[0], pair((len(DRAWS), 30, 44))[1]
    generator = RandomGenerator((24, 32))
    got, got_label = generator(torch.from_numpy(image), torch.from_numpy(label), DRAWS)
    assert got.shape == (len(DRAWS), 3, 24, 32)
    for colour in range(3):
        alone = generator(torch.from_numpy(image[:, colour].copy()), torch.from_numpy(label), DRAWS)
        assert torch.equal(got[:, colour], alone[0]) and torch.equal(got_label, alone[1])
