"""Rows on volumes and slices: metrics, whole evaluations, the training transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from datasets.transforms import RandomGenerator, resize_label
from evaluation.metrics import METRICS, ClassScores, compare_classes
from evaluation.predict import predict_volume
from scripts.benchmarks.inputs import Settings, draws, our_network, reference_network, slices, volume_pair
from scripts.benchmarks.measure import Apart, Figure, here, in_turn
from tests.reference import evaluation as naive
from tests.reference.transforms import training_transform

_ONCE = "MedPy measured once: it takes minutes"
_SLICES = 24
_EVALUATIONS = 3  # rounds of ours at most; one takes half a minute on two cores


class Guided(nn.Module):
    """A network in full whose logits are then raised at given masks, slice after slice.

    What an untrained network draws is noise, whose surfaces are like no organ's; so its cost is measured and the masks
    are those of a prediction that is nearly right.

    Args:
        masks: (D, H, W) at the network's size; every D slices they begin anew.
    """

    def __init__(self, network: nn.Module, masks: Tensor) -> None:
        super().__init__()
        self.network, self.next = network, 0
        self.register_buffer("masks", masks.long().unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        chosen = torch.arange(self.next, self.next + len(x), device=x.device) % len(self.masks)
        self.next = (self.next + len(x)) % len(self.masks)
        return logits.scatter_add(1, self.masks[chosen], torch.full_like(logits, 100.0))


def guided(settings: Settings, network: nn.Module) -> Guided:
    """A network that answers with the prediction of the volume pair."""
    masks = resize_label(torch.from_numpy(volume_pair(settings).prediction), settings.size)
    return Guided(network.eval(), masks).to(settings.device)


def largest_difference(ours: Sequence[ClassScores], reference: Sequence[dict[str, float]]) -> float:
    """The largest difference of any metric of any class, in the published convention."""
    pairs = zip(ours, reference, strict=True)
    return float(max(abs(one.published[name] - other[name]) for one, other in pairs for name in METRICS))


def metrics(settings: Settings, method: str = "fast") -> list[Figure]:
    """All organs of a volume pair against MedPy: time, agreement, memory."""
    _, truth, prediction = volume_pair(settings)

    def by_medpy() -> list[dict[str, float]]:
        return naive.measure_classes(prediction, truth, settings.num_classes)

    with Apart(measuring, settings, method, device=settings.device) as ours:
        times = in_turn(ours, here(by_medpy), settings.rounds, other_rounds=1, warm_up=False)
        memory = ours.peak()
    what = f"{settings.num_classes - 1} organs in {settings.volume_shape}, method {method}, against MedPy"
    return [
        times.speed_up(what, at_least=80, note=_ONCE),
        Figure("largest difference", largest_difference(times.our_result, times.other_result), at_most=1e-9),
        Figure("memory beside the two volumes", memory.extra_gb, "GB", at_most=1.5),
    ]


def measuring(settings: Settings, method: str) -> Callable[[], tuple[ClassScores, ...]]:
    """The metrics of the volume pair by ours, ready to be called."""
    _, truth, prediction = volume_pair(settings)
    labels = [on_device(array, settings) for array in (prediction, truth)]
    return lambda: compare_classes(*labels, settings.num_classes, method=method)


def on_device(array: np.ndarray, settings: Settings) -> np.ndarray | Tensor:
    """The array itself for the CPU, a tensor for a GPU."""
    return array if settings.device == "cpu" else torch.from_numpy(array).to(settings.device)


def evaluation(settings: Settings, method: str = "fast", at_least: float = 15) -> list[Figure]:
    """A volume predicted and measured, against slice by slice in SciPy and class by class in MedPy."""
    image, truth, _ = volume_pair(settings)
    network = guided(settings, reference_network(settings))
    how = {"num_classes": settings.num_classes, "side": settings.img_size, "device": settings.device}
    published = here(lambda: naive.evaluate(network, image, truth, **how))
    with Apart(evaluating, settings, method, device=settings.device) as ours:
        rounds = min(settings.rounds, _EVALUATIONS)
        times = in_turn(ours, published, rounds, other_rounds=1, warm_up=False)
        memory = ours.peak()
    (prediction, scores), (expected, others) = times.our_result, times.other_result
    what = f"{settings.volume_shape}, Swin-UNet {settings.img_size} included, against slice by slice and MedPy"
    return [
        times.speed_up(what, at_least=at_least, note=_ONCE),
        Figure("voxels that differ", int((prediction != expected).sum())),
        Figure("largest difference of a metric", largest_difference(scores, others)),
        Figure("memory beside the volume and the weights", memory.extra_gb, "GB"),
    ]


def evaluating(settings: Settings, method: str = "fast") -> Callable[[], tuple[np.ndarray, tuple[ClassScores, ...]]]:
    """The whole evaluation of the volume pair by ours, ready to be called: the prediction and its scores."""
    image, truth, _ = volume_pair(settings)
    network = guided(settings, our_network(settings))

    def evaluate() -> tuple[np.ndarray, tuple[ClassScores, ...]]:
        prediction = predict_volume(network, image, img_size=settings.size, device=settings.device)
        labels = [on_device(array, settings) for array in (prediction, truth)]
        return prediction, compare_classes(*labels, settings.num_classes, method=method)

    return evaluate


def transforms(settings: Settings) -> list[Figure]:
    """The training transform of a batch on one core, against SciPy slice by slice."""
    images, labels = slices(settings, _SLICES)
    drawn = draws(settings, _SLICES)
    transform = RandomGenerator(settings.size)
    batched = here(lambda: transform(images, labels, drawn))

    def by_scipy() -> list[tuple[np.ndarray, np.ndarray]]:
        triples = zip(images, labels, drawn, strict=True)
        return [training_transform(image, label, settings.size, *draw) for image, label, draw in triples]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, _ = batched()
        times = in_turn(batched, here(by_scipy), settings.rounds)
    finally:
        torch.set_num_threads(threads)
    expected_images, expected_labels = (np.stack(part) for part in zip(*times.other_result, strict=True))
    our_images, our_labels = times.our_result
    per_second = _SLICES / times.ours.median
    what = f"{_SLICES} slices {settings.side} to {settings.img_size} on one core, against SciPy"
    return [
        times.speed_up(what, at_least=5, note="tables of the draws are made before, once a run"),
        Figure("slices a second", per_second, "/s", note=f"SciPy {_SLICES / times.other.median:.3g} /s"),
        Figure("first pass, tables made", first, "s"),
        Figure("label pixels that differ", int((our_labels != expected_labels).sum()), at_most=0),
        Figure("largest difference of an image", _apart(our_images, expected_images), at_most=1e-5),
    ]


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    difference = float(np.abs(one.astype(np.float64) - other).max())
    return difference if math.isfinite(difference) else math.inf
