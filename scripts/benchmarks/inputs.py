"""What the rows measure on: sizes, a volume pair, slices, and training steps of ours and of the reference."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import utils
from datasets.phantom import make_phantom
from datasets.synapse import SynapseSlices, slice_name, slice_path, write_slice
from datasets.transforms import Draw, RandomGenerator
from losses import Criterion, KDloss
from networks import build_network
from selfreg import FeatureTap
from tests.reference import regulariser, swin

SEED = 2  # of a phantom that has all eight organs


@dataclass(frozen=True)
class Settings:
    """The sizes of a run: volumes of `depth` x `side` x `side`, networks of `img_size`, batches of `batch` slices.

    `steps` training steps are timed in one piece. `workers` processes read for the rows that train from files on a GPU.
    `network` holds options of Swin-UNet beside these; `folder` takes files for the length of the run.
    """

    folder: Path
    rounds: int = 5
    device: str = "cpu"
    depth: int = 120
    side: int = 512
    img_size: int = 224
    batch: int = 4
    steps: int = 1
    workers: int = 8
    num_classes: int = 9
    network: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of a network's input."""
        return self.img_size, self.img_size

    @property
    def volume_shape(self) -> str:
        """For the table."""
        return f"{self.depth} x {self.side} x {self.side}"


class VolumePair(NamedTuple):
    """A CT phantom, its eight organs, and a prediction of them; (D, H, W) float32, uint8, uint8."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def volume_pair(settings: Settings) -> VolumePair:
    """The volume of this run, made on first use."""
    path = settings.folder / "volume.npz"
    if not path.exists():
        image, truth = make_phantom(np.random.default_rng(SEED), (settings.depth, settings.side, settings.side))
        np.savez(path, image=image, truth=truth, prediction=deformed(truth))
    with np.load(path) as file:
        return VolumePair(file["image"], file["truth"], file["prediction"])


def deformed(label: np.ndarray, share: float = 0.004) -> np.ndarray:
    """Labels (D, H, W) moved by smooth waves, up to `share` of the side: two pixels of 512, as a network errs."""
    depth, height, width = label.shape
    rows, columns = np.indices((height, width))
    moved = np.empty_like(label)
    for i in range(depth):
        down = share * height * np.sin(2 * np.pi * (5 * columns / width + 3 * i / depth))
        right = share * width * np.cos(2 * np.pi * (6 * rows / height - 2 * i / depth))
        from_row = np.rint(rows + down).astype(int).clip(0, height - 1)
        from_column = np.rint(columns + right).astype(int).clip(0, width - 1)
        moved[i] = label[i, from_row, from_column]
    return moved


def slices(settings: Settings, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` slices of the volume, spread over it: images and labels, (count, H, W)."""
    pair = volume_pair(settings)
    chosen = np.linspace(0, settings.depth - 1, count).astype(int)
    return pair.image[chosen], pair.truth[chosen]


def slice_files(settings: Settings, count: int) -> SynapseSlices:
    """The same slices as a training set on disk."""
    folder = settings.folder / f"slices_{count}"
    names = [slice_name("case0001", i) for i in range(count)]
    if not folder.exists():
        folder.mkdir()
        for name, image, label in zip(names, *slices(settings, count), strict=True):
            write_slice(slice_path(folder, name), image, label)
    return SynapseSlices(folder, names, settings.num_classes)


def draws(settings: Settings, count: int) -> list[Draw]:
    """What augmentation does to `count` slices, the same in every round."""
    generator, coins, integers = RandomGenerator(settings.size), random.Random(0), np.random.RandomState(0)
    return [generator.draw(coins, integers) for _ in range(count)]


class Resident(NamedTuple):
    """One batch on its device: `image` (B, 1, H, W), `label` (B, H, W)."""

    image: Tensor
    label: Tensor


def resident_batch(settings: Settings) -> Resident:
    """A batch of random brightness and of labels in cells of 16 pixels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(settings.batch, 1, *settings.size, generator=generator)
    cells = -(-settings.img_size // 16)
    label = torch.randint(settings.num_classes, (settings.batch, cells, cells), generator=generator)
    label = label.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    label = label[:, : settings.img_size, : settings.img_size].to(torch.uint8)
    return Resident(image.to(settings.device), label.contiguous().to(settings.device))


def our_network(settings: Settings, name: str = "swin_unet") -> nn.Module:
    """A network of ours with fresh weights, the same in every process."""
    torch.manual_seed(0)
    options = settings.network if name == "swin_unet" else {}
    network = build_network(name, num_classes=settings.num_classes, img_size=settings.img_size, **options)
    return network.to(settings.device)


def reference_network(settings: Settings) -> swin.SwinUnet:
    """The naive Swin-UNet with the weights of `our_network`."""
    network = swin.SwinUnet(num_classes=settings.num_classes, img_size=settings.img_size, **settings.network)
    network.load_state_dict(our_network(settings).state_dict())
    return network.to(settings.device)


Step = Callable[[Tensor, Tensor], Tensor]


def our_step(
    settings: Settings, *, name: str = "swin_unet", kd: bool = True, precision: str = "float32", compiled: bool = False
) -> Step:
    """A training step of ours: (image, label) to the loss, the weights moved; this process is set up as by train.py."""
    autocast = utils.select_precision(precision, torch.device(settings.device))
    utils.keep_freed_memory()
    network = our_network(settings, name).train()
    if compiled:
        network.compile()
    criterion = Criterion(settings.num_classes, kd=KDloss() if kd else None)
    tap = FeatureTap(network) if criterion.needs_features else lambda image: (network(image), None)

    def loss_of(image: Tensor, label: Tensor) -> Tensor:
        with torch.autocast(image.device.type, dtype=autocast, enabled=autocast is not None):
            logits, features = tap(image)
        return criterion(logits, label, features)["loss"]

    return _step(network, loss_of, fused=True)  # as train.py builds it


def reference_step(settings: Settings) -> Step:
    """The same step of the naive network with the naive loss."""
    network = reference_network(settings).train()

    def loss_of(image: Tensor, label: Tensor) -> Tensor:
        logits, encoder, decoder, final = network(image)
        return regulariser.total_loss(logits, label, encoder, decoder, final)

    return _step(network, loss_of, fused=False)


def _step(network: nn.Module, loss_of: Step, fused: bool) -> Step:
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=fused)

    def step(image: Tensor, label: Tensor) -> Tensor:
        loss = loss_of(image, label)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def on_one_batch(settings: Settings, step: Step, steps: int) -> Callable[[], None]:
    """Some steps on a batch that is there."""
    batch = resident_batch(settings)

    def run() -> None:
        for _ in range(steps):
            step(*batch)

    return run
