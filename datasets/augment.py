"""The field's usual augmentation beside the published one, off by default: scaling, elastic, intensities, noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Key = tuple[int, int, int]  # seed, epoch and index of a slice, which its draws follow from

_CONTROL_POINTS = 6  # a side, of an elastic deformation
_OWN = 1  # apart from the generators of the published augmentation


class AugmentationParams(NamedTuple):
    """What is done to one slice; `noise_seed` is that of its noise."""

    zoom: float
    displacement: np.ndarray  # (2, 6, 6), fraction of the side
    brightness: float
    contrast: float
    gamma: float
    noise: float
    noise_seed: int


@dataclass(frozen=True)
class Augmentation:
    """How far each part goes, 0 for not at all; of every slice each is done with `probability`.

    Args:
        scale: zoom by a factor from 1 / (1 + scale) to 1 + scale, about the center.
        elastic: standard deviation of the displacement of 6 x 6 control points, as a fraction of the side.
        brightness: factor of the intensities from 1 - brightness to 1 + brightness.
        contrast: factor of the differences from the mean, likewise.
        gamma: exponent from 1 / (1 + gamma) to 1 + gamma, of the intensities between their minimum and maximum.
        noise: largest standard deviation of Gaussian noise, in intensities, which are from 0 to 1.
    """

    scale: float = 0.0
    elastic: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    probability: float = 0.3

    def __bool__(self) -> bool:
        return any(astuple(self)[:-1]) and self.probability > 0

    def draw(self, key: Key) -> AugmentationParams:
        """The draws of a slice, the same for the same key whatever is off."""
        generator = np.random.default_rng([*key, _OWN])
        done = generator.random(6) < self.probability
        signed = generator.uniform(-1, 1, 4)
        displacement = generator.standard_normal((2, _CONTROL_POINTS, _CONTROL_POINTS))
        return AugmentationParams(
            zoom=(1 + self.scale * done[0]) ** signed[0],
            displacement=self.elastic * done[1] * displacement,
            brightness=1 + self.brightness * done[2] * signed[1],
            contrast=1 + self.contrast * done[3] * signed[2],
            gamma=(1 + self.gamma * done[4]) ** signed[3],
            noise=self.noise * done[5] * generator.random(),
            noise_seed=int(generator.integers(2**32)),
        )

    def __call__(self, image: Tensor, label: Tensor, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        """A batch `image` (B, C, H, W) and `label` (B, H, W), augmented slice by slice; new tensors of these types."""
        params = [self.draw(key) for key in keys]
        if self.scale or self.elastic:
            image, label = _deform(image, label, params)

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=image.dtype).to(image.device, non_blocking=True)[:, None, None, None]

        if self.brightness:
            image = image * column([p.brightness for p in params])
        if self.contrast:
            mean = image.mean(dim=(1, 2, 3), keepdim=True)
            image = (image - mean) * column([p.contrast for p in params]) + mean
        if self.gamma:
            low, high = image.amin(dim=(1, 2, 3), keepdim=True), image.amax(dim=(1, 2, 3), keepdim=True)
            spread = (high - low).clamp_min(1e-6)
            image = ((image - low) / spread) ** column([p.gamma for p in params]) * spread + low
        if self.noise:
            noise = [torch.randn(image.shape[1:], generator=_seeded(p.noise_seed)) for p in params]
            image = image + torch.stack(noise).to(image) * column([p.noise for p in params])
        return image, label


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _deform(image: Tensor, label: Tensor, params: Sequence[AugmentationParams]) -> tuple[Tensor, Tensor]:
    """Zoom and displace: the image linearly, the label by the nearest neighbor, 0 from outside."""
    size = list(image.shape[2:])
    zoom = torch.tensor([p.zoom for p in params], dtype=image.dtype)
    affine = torch.eye(2, 3, dtype=image.dtype) / zoom[:, None, None]
    grid = F.affine_grid(affine, [len(params), 1, *size], align_corners=False)
    coarse = torch.from_numpy(np.stack([p.displacement for p in params])).to(image.dtype)
    fine = F.interpolate(coarse, size, mode="bicubic", align_corners=True)
    grid = (grid + 2 * fine.movedim(1, -1)).to(image.device, non_blocking=True)  # the grid runs from -1 to 1
    moved = F.grid_sample(image, grid, mode="bilinear", align_corners=False)
    classes = F.grid_sample(label[:, None].to(image.dtype), grid, mode="nearest", align_corners=False)
    return moved, classes[:, 0].to(label.dtype)
