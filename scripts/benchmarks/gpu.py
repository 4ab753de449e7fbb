"""Rows that need a GPU: training against the published way, inference, and GPU forms of rows that the CPU has too."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import utils
from datasets.base import Sample
from datasets.transforms import RandomGenerator
from scripts.benchmarks import training, volumes
from scripts.benchmarks.inputs import (
    Settings,
    our_network,
    our_step,
    reference_network,
    reference_step,
    resident_batch,
    slice_files,
)
from scripts.benchmarks.measure import Apart, Figure, in_turn
from tests.reference.transforms import training_transform

_BATCH, _STEPS = 24, 10
_BATCHES_AN_EPOCH = 8
# Precision, compiled, and how many times the published way's speed that is to reach.
_MODES = (("float32", False, None), ("tf32", False, None), ("bfloat16", False, None), ("bfloat16", True, 5.0))


def on_gpu(settings: Settings) -> Settings:
    """The same measured on the GPU, by batches of 24."""
    return replace(settings, device="cuda", batch=_BATCH, steps=_STEPS)


def metrics(settings: Settings) -> list[Figure]:
    """The metrics of label volumes that are on the device."""
    return volumes.metrics(settings)


def evaluation(settings: Settings) -> list[Figure]:
    """A volume predicted and measured on the device."""
    return volumes.evaluation(settings, at_least=200)


def regulariser(settings: Settings) -> list[Figure]:
    """What the regulariser adds to our own step."""
    return training.regulariser(settings, at_most=1.03)


class PublishedSlices(Dataset):
    """Slices that a worker reads, augments and resizes by SciPy, one at a time."""

    def __init__(self, slices: Dataset, size: tuple[int, int]) -> None:
        self.slices, self.generator = slices, RandomGenerator(size)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample: Sample = self.slices[index]
        draw = self.generator.draw(random, np.random)
        image, label = training_transform(sample.image, sample.label, self.generator.size, *draw)
        return torch.from_numpy(image).unsqueeze(0), torch.from_numpy(label)


def published_epochs(settings: Settings, dataset: Dataset) -> Callable[[], None]:
    """Epochs as published: float32, transforms in worker processes."""
    loader = DataLoader(
        PublishedSlices(dataset, settings.size),
        batch_size=settings.batch,
        shuffle=True,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
    )
    step = reference_step(settings)

    def run() -> None:
        for image, label in loader:
            step(image.to(settings.device), label.to(settings.device))

    return run


def our_epochs(settings: Settings, dataset: Dataset, precision: str, compiled: bool) -> Callable[[], None]:
    """Epochs of ours, which read in as many worker processes."""
    step = our_step(settings, precision=precision, compiled=compiled)
    return training.epochs(training.our_loader(settings, dataset, settings.workers), step)


def train(settings: Settings) -> list[Figure]:
    """Whole epochs from files, ours in every precision against the published way, and the memory that they take."""
    count, device, figures = _BATCHES_AN_EPOCH * settings.batch, settings.device, []
    dataset = slice_files(settings, count)
    with Apart(published_epochs, settings, dataset, device=device) as published:
        for precision, compiled, at_least in _MODES:
            name = f"{precision}{', compiled' if compiled else ''}"
            with Apart(our_epochs, settings, dataset, precision, compiled, device=device) as ours:
                times = in_turn(ours, published, settings.rounds)
                peak = ours.peak()
            way = f"float32 and {settings.workers} SciPy workers"
            what = f"training from files, batch {settings.batch}, {name}, against {way}"
            rates = f"{count / times.ours.median:.1f} slices/s; published {count / times.other.median:.1f}"
            figures += [
                times.speed_up(what, at_least=at_least, note=rates),
                Figure(f"peak memory, {name}", peak.gb, "GB"),
            ]
        figures.append(Figure("peak memory, published", published.peak().gb, "GB"))
    return figures


def inferring(settings: Settings, precision: str) -> Callable[[], None]:
    """Logits of a batch that is there, by ours."""
    autocast = utils.select_precision(precision, torch.device(settings.device))
    network, image = our_network(settings).eval(), resident_batch(settings).image

    @torch.inference_mode()
    def run() -> None:
        for _ in range(settings.steps):
            with torch.autocast(image.device.type, dtype=autocast, enabled=autocast is not None):
                network(image)

    return run


def inferring_one_by_one(settings: Settings) -> Callable[[], None]:
    """Logits of the same slices one by one, by the naive network."""
    network, image = reference_network(settings).eval(), resident_batch(settings).image

    @torch.no_grad()
    def run() -> None:
        for _ in range(settings.steps):
            for one in image.split(1):
                network(one)

    return run


def inference(settings: Settings) -> list[Figure]:
    """Slices a second through the network alone."""
    count, device, figures = settings.batch * settings.steps, settings.device, []
    with Apart(inferring_one_by_one, settings, device=device) as naive:
        for precision in ("float32", "bfloat16"):
            with Apart(inferring, settings, precision, device=device) as ours:
                times = in_turn(ours, naive, settings.rounds)
            what = f"inference by {settings.batch}, {precision}, against the naive network slice by slice"
            figures += [
                times.speed_up(what),
                Figure(f"inference, {precision}", count / times.ours.median, "slices/s"),
            ]
    return figures
