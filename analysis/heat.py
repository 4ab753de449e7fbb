"""Heat maps by Grad-CAM: where a layer's map holds the evidence for a class.

Selvaraju et al. 2017; the logits of a class summed over its pixels, as in Seg-Grad-CAM (Vinogradova et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from analysis.layers import Layer, channels_first, layer_maps, padded_size
from datasets.base import Volume
from evaluation.overlay import display, upright

_WIDTH, _MAX_HEIGHT = 2.0, 6.0  # inches of a panel
_OUTLINES = {"truth": ("cyan", "#00E5FF"), "prediction": ("white", "#FFFFFF")}


def grad_cam(
    network: nn.Module, image: Tensor, layers: Sequence[Layer], target: int, pixels: np.ndarray
) -> list[np.ndarray]:
    """Grad-CAM of layers for a class: ReLU of the sum over channels of map times mean gradient.

    The gradient is that of the logits of class `target`, summed over `pixels` (H, W) bool, for an image (1, C, H, W) on
    the device of the network, which is in eval mode. Heat is (h, w) float32, at the layer's size, padding included.

    Raises:
        ValueError: the logits do not depend on a layer.
    """
    logits, maps = layer_maps(network, layers, image.clone().requires_grad_())
    evidence = logits[0, target][torch.from_numpy(pixels).to(logits.device)].sum()
    heats = []
    for layer, feature, gradient in zip(
        layers, maps, torch.autograd.grad(evidence, maps, allow_unused=True), strict=True
    ):
        if gradient is None:
            raise ValueError(f"layer {layer}: the logits do not depend on it; expected one that they do (--layers)")
        gradient, feature = (channels_first(network, layer, x.detach(), image.shape[2:]) for x in (gradient, feature))
        heats.append(F.relu((gradient.mean((2, 3), keepdim=True) * feature).sum(1))[0].cpu().numpy())
    return heats


def onto_image(heat: np.ndarray, network: nn.Module, size: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """A layer's heat (h, w) on the pixels of the slice, bilinearly, its maximum 1 (or all 0): (*shape) float32.

    `size` is that of the network's input, to which the slice, of `shape`, was resized. Inside, the network pads below
    and to the right; the heat there is cut off.
    """
    inside = F.interpolate(torch.from_numpy(heat)[None, None], padded_size(network, size), mode="bilinear")
    on_slice = F.interpolate(inside[..., : size[0], : size[1]], tuple(shape), mode="bilinear")[0, 0].numpy()
    return on_slice / (on_slice.max() or 1)


class HeatMap(NamedTuple):
    """The heat of a layer for a class."""

    layer: Layer
    inside: np.ndarray  # (h, w), as `grad_cam` gives it
    heat: np.ndarray  # (H, W) on the slice, as `onto_image` gives it

    def share_in(self, mask: np.ndarray | None) -> float | None:
        """The fraction of the heat in a mask (H, W); None without a mask, pixels in it, or heat."""
        known = mask is not None and mask.any() and self.heat.any()
        return float(self.heat[mask].sum(dtype=np.float64) / self.heat.sum(dtype=np.float64)) if known else None

    def numbers(self, masks: Mapping[str, np.ndarray]) -> dict[str, object]:
        """What the heat comes to, for JSON; `peak` is (row, column)."""
        peak = np.argwhere(self.heat == self.heat.max())[0].tolist() if self.heat.any() else None
        shares = {f"share_in_{name}": self.share_in(masks.get(name)) for name in _OUTLINES}
        own = {"layer": self.layer.label, "module": self.layer.name, "map_size": self.inside.shape}
        return {**own, **shares, "peak": peak}


def draw(
    volume: Volume, index: int, class_name: str, masks: Mapping[str, np.ndarray], heat_maps: Sequence[HeatMap]
) -> Figure:
    """A slice with the outlines of a class, then each layer's heat over it; `masks` (H, W) of truth and prediction."""
    image = upright(display(volume.image[index : index + 1][0]), volume.geometry)
    outlines = {name: upright(mask, volume.geometry) for name, mask in masks.items() if mask.any()}
    where = next(iter(outlines), "prediction")  # the heat is compared with the truth where there is any
    legend = [f"{_OUTLINES[name][0]}: {name}" for name in outlines]
    panels = [("image", image, [*legend, f"{where}: {masks[where].mean():.0%} of the pixels"])]
    for one in heat_maps:
        heat, share = upright(one.heat, volume.geometry)[..., None], one.share_in(masks[where])
        opacity = 0.15 + 0.7 * heat  # the hotter, the less of the image is seen
        hot = (1 - opacity) * 0.75 * image.mean(axis=2, keepdims=True) + opacity * colormaps["inferno"](heat[..., 0])[
            ..., :3
        ]
        said = f"{share:.0%} of the heat in the {where}" if share is not None else "" if one.heat.any() else "no heat"
        size = "{} \N{MULTIPLICATION SIGN} {}".format(*one.inside.shape)
        panels.append((one.layer.label, hot, [one.layer.name[-22:], size, said]))
    height = min(_WIDTH * image.shape[0] / image.shape[1], _MAX_HEIGHT)
    figure = Figure(figsize=(_WIDTH * len(panels), height + 0.96), dpi=150, layout="constrained")
    place = volume.name if volume.is_picture else f"{volume.name}, slice {index + 1} of {len(volume.image)}"
    figure.suptitle(f"Grad-CAM of {class_name}: {place}", fontsize=10, parse_math=False, wrap=True)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, pixels, lines) in zip(axes, panels, strict=True):
        axis.imshow(pixels, interpolation="nearest")
        for name, mask in outlines.items():
            if not mask.all() and min(mask.shape) > 1:  # around everything there is no line
                axis.contour(mask.astype(float), levels=[0.5], colors=[_OUTLINES[name][1]], linewidths=0.6)
        axis.set_title(title, fontsize=8.5, fontweight="bold", pad=4)
        axis.set_xlabel("\n".join(lines), fontsize=7.5, parse_math=False)
        axis.set(xticks=[], yticks=[], frame_on=False)
    return figure
