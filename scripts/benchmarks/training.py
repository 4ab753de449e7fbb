"""Rows on training: steps, the regularizer, the loader, precision, arithmetic, every network; and logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import utils
from datasets.base import Sample, read_list
from datasets.loading import build_loader
from datasets.phantom import prepare_phantom
from datasets.synapse import SynapseSlices
from datasets.transforms import RandomGenerator
from losses import Criterion, KDloss
from networks import build_network, list_networks
from scripts.benchmarks.measure import NUM_CLASSES, Comparison, Settings, Work
from selfreg import FeatureTap
from tests.reference import regularizer
from tests.reference.swin import SwinUnet
from tests.reference.transforms import training_transform


def rows(s: Settings) -> Iterator[Comparison]:
    """Of the two that `what` names, the first is A."""
    ours, naive, regularizer = partial(_steps, s), partial(_steps, s, "naive"), "without the regularizer, with it"
    step = f"step of Swin-UNet {s.img_size}, batch {s.batch}"
    half = partial(ours, precision="bfloat16")
    yield Comparison("step", f"{step}: ours, naive", ours, naive, ">= 1.25")
    yield Comparison("step_bf16", f"{step}: ours in bfloat16, naive in float32", half, naive, ">= 2.5")
    yield Comparison("regularizer", f"{step}: {regularizer}", partial(ours, kd=False), ours, "<= 1.04")
    for name in list_networks():
        what, network = f"{name} {s.img_size}, batch {s.batch}", partial(_steps, s, name)
        yield Comparison("networks", f"step of {what}: {regularizer}", partial(network, kd=False), network)
        yield Comparison("networks", f"logits of {what}", partial(_logits, s, name))
    for workers in (0, 1, 2):
        what = f"4 x {step}: on one batch, on files of {s.side} x {s.side} read by {workers} workers"
        four = partial(_steps, replace(s, steps=4))
        yield Comparison("loader", what, four, partial(_epochs, s, 4, workers), "<= 1.05")
    for precision, steps in (("float32", ours), ("bfloat16", half)):
        what = f"{step}, {precision}: ours, a matrix product of as many operations"
        yield Comparison("flops", what, steps, partial(_product, s, precision))
        yield Comparison("breakdown", f"{step}, {precision}", partial(_breakdown, s, precision), once="A")
        what, logits = f"logits of {s.batch} slices: ours in {precision}, naive one by one", partial(_logits, s)
        yield Comparison("inference", what, partial(logits, precision=precision), partial(logits, "naive", slices=1))
    small = replace(s, img_size=s.img_size // 2, side=s.img_size // 2)
    what, losses = "logarithm of the loss of 100 steps: float32, bfloat16", partial(_losses, small, 100)
    yield Comparison("curve_bf16", what, partial(losses, "float32"), partial(losses, "bfloat16"), once="AB")
    for name, halves in (("unet", (2, 3, 4)), ("swin_unet", (2, 4))):  # windows of 7 tile 224 and 448
        for side in (s.img_size * half // 2 for half in halves):
            what = f"step of {name}, batch {s.batch}, over pixels"
            yield Comparison("scaling", what, partial(_steps, replace(s, img_size=side), name), size=side**2)
    for batch in (1, 2, 4, 8, 16):
        what = f"step of swin_unet {s.img_size}, over batch size"
        yield Comparison("scaling", what, partial(_steps, replace(s, batch=batch)), size=batch)
    for precision, compiled in (("float32", False), ("tf32", False), ("bfloat16", False), ("bfloat16", True)):
        what = f"8 batches of {s.batch} from files: ours in {precision}{' and compiled' * compiled}, published"
        epochs = partial(_epochs, s, 8, s.workers, precision, compiled)
        yield Comparison("train", what, epochs, partial(_published_epochs, s, 8), ">= 5" * compiled)


def slice_files(s: Settings, batches: int) -> SynapseSlices:
    """A training set of phantom slices on disk, made on first use."""
    root, count = s.folder / f"{batches}_batches_of_{s.side}", batches * s.batch
    prepare_phantom(root, size=s.side, depth=count, train_cases=1, test_cases=1)
    return SynapseSlices(root / "train_npz", read_list(root / "lists" / "train.txt"), NUM_CLASSES)


def random_batch(s: Settings) -> tuple[Tensor, Tensor]:
    """`image` (B, 1, H, W) of random brightness and `label` (B, H, W) of random classes, on the device."""
    shape, generator = (s.batch, *s.size), torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator).unsqueeze(1)
    label = torch.randint(NUM_CLASSES, shape, generator=generator, dtype=torch.uint8)
    return image.to(s.device), label.to(s.device)


def make_network(s: Settings, name: str = "swin_unet") -> nn.Module:
    """A network of ours with fresh weights, the same in every process; "naive" is the reference Swin-UNet with them."""
    torch.manual_seed(0)
    sizes = {"num_classes": NUM_CLASSES, "img_size": s.img_size}
    swin_options = {"embed_dim": s.embed_dim, "window_size": s.window_size}
    if name != "naive":
        return build_network(name, **sizes, **(swin_options if name == "swin_unet" else {})).to(s.device)
    network = SwinUnet(num_classes=NUM_CLASSES, img_size=s.img_size, embed_dim=s.embed_dim, window_size=s.window_size)
    network.load_state_dict(make_network(s).state_dict())
    return network.to(s.device)


def make_step(
    s: Settings, name: str = "swin_unet", kd: bool = True, precision: str = "float32", compiled: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """A training step, image and label to the loss, set up as by train.py; or the "naive" one."""
    autocast = utils.select_precision(precision, torch.device(s.device), allow_slow=True)
    network, ours = make_network(s, name).train(), name != "naive"
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=ours)
    criterion = Criterion(NUM_CLASSES, kd=KDloss() if kd else None)
    tap = FeatureTap(network) if ours and kd else None
    if ours:
        utils.tune_malloc()
    if compiled:
        network.compile()

    def loss_of(image: Tensor, label: Tensor) -> Tensor:
        if not ours:
            logits, encoder, decoder, final = network(image)
            return regularizer.total_loss(logits, label, encoder, decoder, final)
        with torch.autocast(s.device, dtype=autocast, enabled=autocast is not None):
            logits, features = tap(image) if tap else (network(image), None)
        return criterion(logits, label, features)["loss"]

    def step(image: Tensor, label: Tensor) -> Tensor:
        loss = loss_of(image, label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _steps(s: Settings, name: str = "swin_unet", kd: bool = True, precision: str = "float32") -> Work:
    step, (image, label) = make_step(s, name, kd, precision), random_batch(s)
    return lambda: [step(image, label) for _ in range(s.steps)]


def _epochs(
    s: Settings, batches: int, workers: int, precision: str = "float32", compiled: bool = False
) -> Callable[[], list[Tensor]]:
    step, slices = make_step(s, precision=precision, compiled=compiled), slice_files(s, batches)
    loader = build_loader(slices, size=s.size, batch_size=s.batch, seed=0, device=s.device, workers=workers)

    def run() -> list[Tensor]:
        loader.sampler.epoch += 1
        return [step(batch.image, batch.label) for batch in loader]

    return run


def _losses(s: Settings, steps: int, precision: str) -> Work:
    """As means of 10 steps, as batches differ more than precisions, and logarithms, for a relative difference."""
    epoch = _epochs(s, steps, 0, precision)
    return lambda: (np.log(pd.Series(torch.stack(epoch()).cpu()).rolling(10).mean().dropna()).to_numpy(),)


def _published_epochs(s: Settings, batches: int) -> Work:
    """In float32, with transforms by SciPy in the processes that read."""
    step, collate = make_step(s, "naive"), partial(_collate_by_scipy, s.size)
    slices, workers = slice_files(s, batches), s.workers
    loader = DataLoader(slices, s.batch, True, num_workers=workers, collate_fn=collate, persistent_workers=True)
    return lambda: [step(image.to(s.device), label.to(s.device)) for image, label in loader]


def _collate_by_scipy(size: tuple[int, int], samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    draw = RandomGenerator(size).draw
    done = [training_transform(sample.image, sample.label, size, *draw()) for sample in samples]
    images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*done, strict=True))
    return images.unsqueeze(1), labels


def _logits(s: Settings, name: str = "swin_unet", precision: str = "float32", slices: int | None = None) -> Work:
    """Those of a batch, so many slices at a time, and the network's size in words."""
    autocast = utils.select_precision(precision, torch.device(s.device), allow_slow=True)
    network, (image, _) = make_network(s, name).eval(), random_batch(s)
    parameters, operations = sum(p.numel() for p in network.parameters()), count_operations(network, image[:1])

    @torch.no_grad()
    def run() -> str:
        with torch.autocast(s.device, dtype=autocast, enabled=autocast is not None):
            for part in image.split(slices or s.batch):
                network(part)
        return f"{parameters / 1e6:.1f} M parameters, {operations / 1e9:.1f} GFLOP a slice"

    return run


def count_operations(network: nn.Module, image: Tensor) -> int:
    """Floating-point operations of a forward pass; a product and a sum count two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def _product(s: Settings, precision: str) -> Work:
    """Of as many operations as `_steps`, whose backward passes have two products for each of the forward ones."""
    forward = count_operations(make_network(s).eval(), random_batch(s)[0])
    side = round((3 * s.steps * forward / 2) ** (1 / 3))
    matrix = torch.randn(side, side, device=s.device).to(getattr(torch, precision))
    return lambda: matrix @ matrix


def _breakdown(s: Settings, precision: str) -> Work:
    """Percent of a step's time by operation."""
    steps, kind = _steps(s, precision=precision), "cpu" if s.device == "cpu" else "device"
    steps()

    def run() -> str:
        with profile(activities=[getattr(ProfilerActivity, s.device.upper())], acc_events=True) as profiler:
            steps()
        taken = pd.Series({event.key: getattr(event, f"self_{kind}_time_total") for event in profiler.key_averages()})
        largest = (100 * taken / taken.sum()).nlargest(10)
        return "; ".join(f"{name} {percent:.1f} %" for name, percent in largest.items())

    return run
