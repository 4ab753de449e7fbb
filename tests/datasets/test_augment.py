"""The augmentation beside the published one: known geometry, formulas, and draws that follow from the key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.augment import Augmentation

ALL = Augmentation(scale=0.4, elastic=0.03, brightness=0.3, contrast=0.3, gamma=0.5, noise=0.1, probability=0.5)


def batch(count: int = 6, side: int = 32) -> tuple[torch.Tensor, torch.Tensor, list]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 1, side, side, generator=generator)
    label = torch.randint(0, 3, (count, side, side), generator=generator, dtype=torch.uint8)
    return image, label, [(1, 2, index) for index in range(count)]


def test_it_is_off_by_default_and_at_probability_0() -> None:
    assert not Augmentation() and not Augmentation(scale=0.4, probability=0) and ALL


def test_the_draws_follow_from_the_key_alone() -> None:
    image, label, keys = batch()
    whole = ALL(image, label, keys)
    alone = ALL(image[3:4], label[3:4], keys[3:4])
    assert torch.equal(whole[0][3], alone[0][0]) and torch.equal(whole[1][3], alone[1][0])
    other = ALL(image[3:4], label[3:4], [(1, 3, 3)])
    assert not torch.equal(other[0], alone[0]), "another epoch"
    fewer = Augmentation(noise=0.1, probability=0.5).draw(keys[3])
    assert fewer.noise == ALL.draw(keys[3]).noise, "what is off shifts no draw"


def test_each_part_is_done_with_its_probability() -> None:
    params = [ALL.draw((5, 0, index)) for index in range(4000)]
    for done in (
        [p.zoom != 1 for p in params],
        [p.displacement.any() for p in params],
        [p.brightness != 1 for p in params],
        [p.contrast != 1 for p in params],
        [p.gamma != 1 for p in params],
        [p.noise != 0 for p in params],
    ):
        assert np.mean(done) == pytest.approx(0.5, abs=0.03)
    zooms = [p.zoom for p in params]
    assert 1 / 1.4 <= min(zooms) < 0.73 and 1.38 < max(zooms) <= 1.4


def test_zoom_keeps_the_center_and_scales_image_and_label_alike() -> None:
    side = 64
    label = torch.zeros(40, side, side, dtype=torch.uint8)
    label[:, 24:40, 20:44] = 2  # 16 x 24 about the center
    image = label[:, None].float() / 2
    augmentation = Augmentation(scale=0.5, probability=1)
    keys = [(0, 0, index) for index in range(40)]
    moved, classes = augmentation(image, label, keys)
    assert classes.dtype == torch.uint8 and set(classes.unique().tolist()) == {0, 2}
    for index, key in enumerate(keys):
        zoom = augmentation.draw(key).zoom
        rows, columns = np.nonzero(classes[index].numpy())
        assert np.ptp(rows) + 1 == pytest.approx(16 * zoom, abs=2) and np.ptp(columns) + 1 == pytest.approx(
            24 * zoom, abs=2
        )
        assert rows.mean() == pytest.approx(31.5, abs=1) and columns.mean() == pytest.approx(31.5, abs=1)
        assert ((moved[index, 0] > 0.5) == (classes[index] == 2)).float().mean() > 0.97


def test_an_elastic_deformation_moves_image_and_label_alike() -> None:
    rows = torch.arange(64, dtype=torch.float32)
    image = torch.sin(rows / 9)[:, None] * torch.cos(rows / 7)[None]
    label = (image > 0.1).to(torch.uint8)
    many = (image.expand(8, 1, 64, 64), label.expand(8, 64, 64), [(0, 0, index) for index in range(8)])
    moved, classes = Augmentation(elastic=0.02, probability=1)(*many)
    inside = (slice(None), slice(10, -10), slice(10, -10))
    assert ((moved[:, 0] > 0.1) == (classes == 1))[inside].float().mean() > 0.97
    assert not torch.equal(classes, many[1])


def test_intensities_against_their_formulas() -> None:
    image, label, keys = batch()
    for name in ("brightness", "contrast", "gamma"):
        augmentation = Augmentation(**{name: 0.4}, probability=1)
        found, same = augmentation(image, label, keys)
        assert same is label
        for index, key in enumerate(keys):
            x, value = image[index].double().numpy(), getattr(augmentation.draw(key), name)
            expected = {
                "brightness": x * value,
                "contrast": (x - x.mean()) * value + x.mean(),
                "gamma": ((x - x.min()) / np.ptp(x)) ** value * np.ptp(x) + x.min(),
            }[name]
            np.testing.assert_allclose(found[index], expected, atol=2e-6)


def test_noise_has_its_spread() -> None:
    image, label, keys = (
        torch.zeros(50, 1, 64, 64),
        torch.zeros(50, 64, 64, dtype=torch.uint8),
        [(3, 0, i) for i in range(50)],
    )
    augmentation = Augmentation(noise=0.2, probability=1)
    found, _ = augmentation(image, label, keys)
    spreads = found.std(dim=(1, 2, 3))
    np.testing.assert_allclose(spreads, [augmentation.draw(key).noise for key in keys], rtol=0.05, atol=1e-3)
    assert spreads.max() <= 0.21
