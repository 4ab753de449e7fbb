"""Rows on volumes and slices: metrics, whole evaluations, the training transform."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import utils
from datasets.phantom import make_phantom
from datasets.transforms import RandomGenerator, resize_label
from evaluation.metrics import compare_classes
from evaluation.predict import predict_volume
from scripts.benchmarks.measure import NUM_CLASSES, Comparison, Settings, Work
from scripts.benchmarks.training import make_network
from tests.reference import evaluation as published
from tests.reference.transforms import training_transform


def rows(s: Settings) -> Iterator[Comparison]:
    """Of the two that `what` names, the first is A."""
    volume = f"{s.depth} x {s.side} x {s.side}"
    medpy, scipy = partial(_metrics, s, ours=False), partial(_transforms, s, ours=False)
    yield Comparison("metrics", f"8 organs in {volume}: ours, MedPy", partial(_metrics, s), medpy, ">= 80", once="B")
    what = f"{volume} by Swin-UNet {s.img_size}: ours, slice by slice and MedPy"
    ours, other = (partial(_evaluation, s, s.depth, ours) for ours in (True, False))
    yield Comparison("evaluation", what, ours, other, ">= 15", once="B")
    what = f"24 slices {s.side} to {s.img_size} on one core: ours, SciPy"
    yield Comparison("transforms", what, partial(_transforms, s), scipy, ">= 5")
    for depth in (s.depth * times // 3 for times in (1, 2, 4, 8)):
        what = f"evaluation of slices of {s.side} x {s.side}, over depth"
        yield Comparison("scaling", what, partial(_evaluation, s, depth), size=depth)


def volume_pair(s: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A CT phantom, its eight organs, and a prediction two voxels off; (D, H, W) float32, uint8, uint8."""
    path = s.folder / "volume.npz"
    if not path.exists():  # the seed is of a phantom that has all organs
        image, truth = make_phantom(np.random.default_rng(2), (s.depth, s.side, s.side))
        np.savez(path, image=image, truth=truth, prediction=np.roll(truth, (2, -2), (1, 2)))
    with np.load(path) as file:
        return file["image"], file["truth"], file["prediction"]


def _compute_metrics(prediction: np.ndarray, truth: np.ndarray, s: Settings, ours: bool) -> np.ndarray:
    if ours:
        a, b = (torch.from_numpy(label).to(s.device) for label in (prediction, truth))
        found = [scores.published for scores in compare_classes(a, b, NUM_CLASSES)]
    else:
        found = published.measure_classes(prediction, truth, NUM_CLASSES)
    return np.array([list(scores.values()) for scores in found])


def _metrics(s: Settings, ours: bool = True) -> Work:
    _, truth, prediction = volume_pair(s)
    return lambda: (_compute_metrics(prediction, truth, s, ours),)


def _evaluation(s: Settings, depth: int, ours: bool = True) -> Work:
    """The volume, thinned out or repeated to `depth` slices, predicted and measured.

    An untrained network predicts noise, whose surfaces are like no organ's. So its logits are computed in full and then
    raised at the given prediction, slice by slice.
    """
    image, truth, prediction = (array[np.arange(depth) * s.depth // depth] for array in volume_pair(s))
    masks = itertools.cycle(resize_label(torch.from_numpy(prediction).to(s.device), s.size).long())
    network = make_network(s, "swin_unet" if ours else "naive").eval()
    if ours:
        utils.tune_malloc()  # as test.py does

    def raise_logits(module: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
        chosen = torch.stack(list(itertools.islice(masks, len(logits)))).unsqueeze(1)
        return logits.scatter_add(1, chosen, torch.full_like(logits, 100.0))

    def run() -> tuple[np.ndarray, np.ndarray]:
        if ours:
            predicted = predict_volume(network, image, img_size=s.size, device=s.device)
        else:
            predicted = published.predict(network, image, s.img_size, s.device)
        return predicted, _compute_metrics(predicted, truth, s, ours)

    network.register_forward_hook(raise_logits)
    return run


def _transforms(s: Settings, ours: bool = True) -> Work:
    torch.set_num_threads(1)
    chosen = np.linspace(0, s.depth - 1, 24).astype(int)
    images, labels, _ = (array[chosen] for array in volume_pair(s))
    transform, choices, integers = RandomGenerator(s.size), random.Random(0), np.random.RandomState(0)
    draws = [transform.draw(choices, integers) for _ in chosen]

    def by_scipy() -> tuple[np.ndarray, ...]:
        each = zip(images, labels, draws, strict=True)
        done = [training_transform(image, label, s.size, *draw) for image, label, draw in each]
        return tuple(np.stack(arrays) for arrays in zip(*done, strict=True))

    return (lambda: transform(images, labels, draws)) if ours else by_scipy
