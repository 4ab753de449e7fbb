"""Augmentation and resizing equal to the published ones, with the recorded draws."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from datasets.transforms import RandomGenerator, resize_image, resize_label, rot_flip, rotate
from tests.reference import golden

CASES = golden.figures("augment/augment")["cases"] if golden.available("augment/augment") else []


def inputs(case: dict) -> tuple[np.ndarray, np.ndarray]:
    height, width = case["H"], case["W"]
    image = golden.generator(case["seed"]).random((height, width)).astype(np.float32)
    cells = golden.generator(case["seed"] + 7000).integers(0, case.get("nc", 9), (-(-height // 4), -(-width // 4)))
    label = cells.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    return image, label.astype(case.get("label_dtype", "int64"))


def close(ours: np.ndarray, name: str, exact: bool) -> None:
    recorded = golden.arrays("augment/augment")
    ours = ours.squeeze()
    if f"{name}__idx" in recorded:
        ours, theirs = ours.reshape(-1)[recorded[f"{name}__idx"]], recorded[f"{name}__val"]
    else:
        theirs = recorded[name].squeeze()
    if exact:
        np.testing.assert_array_equal(ours, theirs)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case: dict, tensors: bool) -> None:
    image, label = inputs(case)
    if tensors:
        image, label = torch.from_numpy(image), torch.from_numpy(label)
    name, op = case["name"], case["op"]
    if op == "scipy.ndimage.zoom":
        what, function = (image, resize_image) if case["order"] == 3 else (label, resize_label)
        close(np.asarray(function(what, tuple(case["target"]))), name, exact=case["order"] == 0)
        return
    if op == "scipy.ndimage.rotate":
        close(np.asarray(rotate(image, label, case["angle"])[0]), name, exact=True)
        return
    if op == "RandomGenerator":
        random.seed(case["python_and_np_seed"])
        np.random.seed(case["python_and_np_seed"])
        generator = RandomGenerator(tuple(case["output_size"]))
        draw = generator.draw()
        assert draw.kind == case["branch"]
        assert random.random() == case["random_random_after"]
        assert np.random.randint(2**30) == case["np_randint_2^30_after"]
        image, label = generator(image, label, draw)
    elif op == "random_rot_flip":
        image, label = rot_flip(image, label, *case["drawn"])
    else:
        image, label = rotate(image, label, *case["drawn"])
    close(np.asarray(image), f"{name}__image", exact=op != "RandomGenerator")
    close(np.asarray(label), f"{name}__label", exact=True)
