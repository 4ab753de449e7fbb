"""What is compared: training and its parts, networks, metrics, whole evaluations, the training transform."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import utils
from datasets import build_dataset
from datasets.cache import keep_in_memory
from datasets.loader import build_loader
from datasets.sets.phantom import make_phantom, prepare_phantom
from datasets.slices import CaseSlices
from datasets.transforms import RandomGenerator
from evaluation.metrics import compare_classes
from evaluation.predict import predict_volume
from losses import Criterion, KDloss
from networks import build_network, list_networks
from scripts.benchmarks.measure import Comparison, Settings, Work
from selfreg import Features, FeatureTap
from tests.reference import evaluation as published
from tests.reference import regularizer
from tests.reference.swin import SwinUnet
from tests.reference.transforms import training_transform

NUM_CLASSES = 9


def rows(s: Settings) -> Iterator[Comparison]:
    """Of the two that `what` names, the first is A."""
    naive, half, tf32 = replace(s, naive=True), replace(s, precision="bfloat16"), replace(s, precision="tf32")
    volume, step = f"{s.depth} x {s.side} x {s.side}", f"step of Swin-UNet {s.img_size}, batch {s.batch}"
    on_gpu = s.device == "cuda"

    yield Comparison("metrics", f"8 organs in {volume}: ours, MedPy", (_metrics, s), (_metrics, naive), ">= 80")
    what = f"{volume} by Swin-UNet {s.img_size}: ours, slice by slice and MedPy"
    target = ">= 200" if on_gpu else ">= 15"
    yield Comparison("evaluation", what, (_evaluation, s), (_evaluation, naive), target)
    what = f"24 slices {s.side} to {s.img_size} on one core: ours, SciPy"
    yield Comparison("transforms", what, (_transforms, s), (_transforms, naive), ">= 5")
    yield Comparison("kept", f"240 slices {s.side} x {s.side} from memory to batches of 24, one core", (_kept, s))
    target = ">= 5" if on_gpu else ">= 1.25"
    yield Comparison("step", f"{step}: ours, naive", (_steps, s), (_steps, naive), target)
    what = f"{step}: ours in bfloat16, naive in float32"
    yield Comparison("step_bf16", what, (_steps, half), (_steps, naive), ">= 2.5")
    what = f"{step}: without the regularizer, with it"
    target = "<= 1.03" if on_gpu else "<= 1.04"
    yield Comparison("regularizer", what, (_steps, replace(s, kd=False)), (_steps, s), target)
    short = replace(s, img_size=s.img_size // 2, side=s.img_size // 2, steps=100, workers=0)
    what = "logarithm of the loss of 100 steps: float32, bfloat16"
    yield Comparison("curve_bf16", what, (_losses, short), (_losses, replace(short, precision="bfloat16")))
    for workers in (0, 1, 2):
        what = f"4 x {step}: on one batch, on files of {s.side} x {s.side} read by {workers} workers"
        four = replace(s, steps=4, workers=workers)
        yield Comparison("loader", what, (_steps, four), (_epochs, four), "<= 1.05")
    for one in (s, half):
        what = f"{step}, {one.precision}: ours, a matrix product of as many operations"
        yield Comparison("flops", what, (_steps, one), (_product, one))
        yield Comparison(
            "train", f"8 batches of {s.batch} from files, {one.precision}", (_epochs, replace(one, steps=8))
        )
    for name in ("swin_unet", "unet"):
        for one in (replace(way, network=name) for way in (s, tf32, half)):
            what = f"step of {name}, batch {s.batch}, {one.precision}"
            yield Comparison("precisions", what, (_steps, one))
            if one.precision != "float32":
                what = f"{what}: compiled, not compiled"
                yield Comparison("compiled", what, (_steps, replace(one, compile=True)), (_steps, one))
    for name in list_networks():
        one = replace(s, network=name)
        what = f"step of {name}, batch {s.batch}: without the regularizer, with it"
        yield Comparison("networks", what, (_steps, replace(one, kd=False)), (_steps, one))
        yield Comparison("networks", f"logits of {name}, batch {s.batch}", (_logits, one))


def volume_pair(s: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A CT phantom, its eight organs, and a prediction two voxels off; (D, H, W) float32, uint8, uint8."""
    path = s.folder / "volume.npz"
    if not path.exists():  # the seed is of a phantom that has all organs
        image, truth = make_phantom(np.random.default_rng(2), (s.depth, s.side, s.side))
        np.savez(path, image=image, truth=truth, prediction=np.roll(truth, (2, -2), (1, 2)))
    with np.load(path) as file:
        return file["image"], file["truth"], file["prediction"]


def _compute_metrics(prediction: np.ndarray, truth: np.ndarray, s: Settings) -> np.ndarray:
    if s.naive:
        found = published.measure_classes(prediction, truth, NUM_CLASSES)
    else:
        a, b = (torch.from_numpy(label).to(s.device) for label in (prediction, truth))
        found = [scores.published for scores in compare_classes(a, b, NUM_CLASSES)]
    return np.array([list(scores.values()) for scores in found])


def _metrics(s: Settings) -> Work:
    _, truth, prediction = volume_pair(s)
    return lambda: (_compute_metrics(prediction, truth, s),)


def _evaluation(s: Settings) -> Work:
    """A volume predicted, and the given prediction measured: the noise of an untrained network has no organs."""
    image, truth, prediction = volume_pair(s)
    network = make_network(s).eval()

    def run() -> tuple[np.ndarray]:
        if s.naive:
            published.predict(network, image, s.img_size, s.device)
        else:
            predict_volume(network, image, img_size=s.img_size, device=s.device)
        return (_compute_metrics(prediction, truth, s),)

    return run


def _transforms(s: Settings) -> Work:
    torch.set_num_threads(1)
    size = s.img_size, s.img_size
    chosen = np.linspace(0, s.depth - 1, 24).astype(int)
    images, labels, _ = (array[chosen] for array in volume_pair(s))
    transform, choices, integers = RandomGenerator(size), random.Random(0), np.random.RandomState(0)
    draws = [transform.draw(choices, integers) for _ in chosen]

    def by_scipy() -> tuple[np.ndarray, ...]:
        each = zip(images, labels, draws, strict=True)
        done = [training_transform(image, label, size, *draw) for image, label, draw in each]
        return tuple(np.stack(arrays) for arrays in zip(*done, strict=True))

    return by_scipy if s.naive else lambda: transform(images, labels, draws)


def _kept(s: Settings) -> Work:
    """An epoch of the loader's reader, every slice in memory; on a GPU to pinned memory."""
    torch.set_num_threads(1)
    utils.tune_malloc()
    slices = keep_in_memory(slice_files(replace(s, steps=10, batch=24)), 4 << 30)
    loader = build_loader(slices, size=(s.img_size, s.img_size), batch_size=24, seed=0, device=s.device)
    for index in range(len(slices)):
        slices[index]
    return lambda: sum(len(batch.names) for batch in loader.reader)


def slice_files(s: Settings) -> CaseSlices:
    """A training set of phantom slices on disk, for so many steps, made on first use."""
    root = s.folder / f"{s.steps}_batches_of_{s.side}"
    prepare_phantom(root, size=s.side, depth=s.steps * s.batch, train_cases=1, test_cases=1)
    return cast(CaseSlices, build_dataset("Phantom", "train", num_classes=NUM_CLASSES, root_path=str(root)))


def random_batch(s: Settings) -> tuple[Tensor, Tensor]:
    """`image` (B, 1, H, W) of random brightness and `label` (B, H, W) of random classes, on the device."""
    image = torch.rand(s.batch, 1, s.img_size, s.img_size, device=s.device)
    return image, torch.randint_like(image[:, 0], NUM_CLASSES).byte()


def make_network(s: Settings) -> nn.Module:
    """A network with fresh weights, the same in every process."""
    torch.manual_seed(0)
    network = build_network(s.network, num_classes=NUM_CLASSES, img_size=s.img_size, **s.options)
    if s.naive:
        naive = SwinUnet(num_classes=NUM_CLASSES, img_size=s.img_size, **s.options)
        naive.load_state_dict(network.state_dict())
        return naive.to(s.device)
    utils.tune_malloc()  # as train.py and test.py do
    return network.to(s.device)


def make_step(s: Settings) -> Callable[[Tensor, Tensor], Tensor]:
    """A training step, image and label to the loss, set up as by train.py; or the naive one."""
    network = make_network(s).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=not s.naive)
    criterion = Criterion(NUM_CLASSES, kd=KDloss() if s.kd else None)
    tap = FeatureTap(network, permanent=s.compile) if s.kd and not s.naive else None
    autocast = _autocast(s)

    def forward(image: Tensor, label: Tensor, draws: Tensor | None = None) -> tuple[Tensor, Features | None]:
        if s.naive:
            logits, *maps = network(image)
            return regularizer.total_loss(logits, label, *maps), None
        with autocast:
            logits, features = tap(image) if tap else (network(image), None)
        return criterion(logits, label, features, draws=draws)["loss"], features

    compiled, drawer = torch.compile(forward) if s.compile else None, None

    def step(image: Tensor, label: Tensor) -> Tensor:
        nonlocal drawer
        if compiled and drawer:
            loss, _ = compiled(image, label, drawer())
        else:
            loss, features = forward(image, label)
            drawer = criterion.drawer(features) if s.compile else None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _autocast(s: Settings) -> torch.autocast:
    dtype = utils.select_precision(s.precision, torch.device(s.device), allow_slow=True)
    return torch.autocast(s.device, dtype=dtype, enabled=dtype is not None)


def _steps(s: Settings) -> Work:
    step, (image, label) = make_step(s), random_batch(s)
    return lambda: [step(image, label) for _ in range(s.steps)]


def _epochs(s: Settings) -> Callable[[], list[Tensor]]:
    step, slices, size = make_step(s), slice_files(s), (s.img_size, s.img_size)
    loader = build_loader(slices, size=size, batch_size=s.batch, seed=0, device=s.device, workers=s.workers)

    def run() -> list[Tensor]:
        loader.sampler.epoch += 1
        return [step(batch.image, batch.label) for batch in loader]

    return run


def _losses(s: Settings) -> Work:
    """As means of 10 steps, as batches differ more than precisions, and logarithms, for a relative difference."""
    epoch = _epochs(s)
    return lambda: (np.log(pd.Series(torch.stack(epoch()).cpu()).rolling(10).mean().dropna()).to_numpy(),)


def _logits(s: Settings) -> Work:
    """Those of a batch, and the network's size in words."""
    network, (image, _), autocast = make_network(s).eval(), random_batch(s), _autocast(s)
    parameters, operations = sum(p.numel() for p in network.parameters()), count_operations(network, image[:1])

    @torch.no_grad()
    def run() -> str:
        with autocast:
            network(image)
        return f"{parameters / 1e6:.1f} M parameters, {operations / 1e9:.1f} GFLOP a slice"

    return run


def count_operations(network: nn.Module, image: Tensor) -> int:
    """Floating-point operations of a forward pass; a product and a sum count two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def _product(s: Settings) -> Work:
    """Of as many operations as `_steps`, whose backward passes have two products for each of the forward ones."""
    forward = count_operations(make_network(s).eval(), random_batch(s)[0])
    side = round((3 * s.steps * forward / 2) ** (1 / 3))
    matrix = torch.randn(side, side, device=s.device).to(getattr(torch, s.precision))
    return lambda: matrix @ matrix
