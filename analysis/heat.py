"""Grad-CAM of a segmentation network: where in a layer's map the evidence for a class lies.

Selvaraju et al. 2017; the logits of a class summed over its pixels, as in Seg-Grad-CAM (Vinogradova et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from torch import Tensor, nn

from analysis.layers import Layer, channels_first, padded_size
from utils import sum_heads


def grad_cam(network: nn.Module, image: Tensor, layer: Layer, target: int, pixels: np.ndarray) -> np.ndarray:
    """The Grad-CAM of a layer for a class: ReLU of the sum over channels of activation times mean gradient.

    The gradient is that of the class's logit, summed over some pixels. The network is run in eval mode, and gradients
    of its parameters are cleared.

    Args:
        network: (1, C, H, W) to logits (1, K, H, W), or to a tuple of heads, which are summed.
        image: (1, C, H, W), on the network's device.
        layer: of `analysis.layers`.
        target: the class, 0..K-1.
        pixels: (H, W) bool, those whose logits are summed.

    Returns:
        (h, w) float32 of at least 0, at the size that the map has inside the network, padding included.

    Raises:
        ValueError: the logits do not depend on the layer.
    """
    was_training = network.training
    size = image.shape[-2:]
    try:
        with _probe(network, layer) as probe:
            cam = _UnscaledCAM(_Summed(network), [probe], lambda x: channels_first(network, layer, x, size))
            try:
                return cam(image, [SemanticSegmentationTarget(target, pixels.astype(np.float32))])[0]
            except _NoGradient:
                raise ValueError(
                    f"layer {layer}: the logits do not depend on it; expected a layer on the way to them, so name "
                    "another (--layers)"
                ) from None
            finally:
                cam.activations_and_grads.release()
    finally:
        network.zero_grad(set_to_none=True)
        network.train(was_training)


def onto_image(heat: np.ndarray, network: nn.Module, size: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """A layer's heat (h, w) on the pixels of the slice, bilinearly, its highest value 1 (or all 0): (*shape) float32.

    `size` is that of the network's input, to which the slice, of `shape`, was zoomed. Inside, the network pads below
    and to the right; the heat there is cut off.
    """
    inside = F.interpolate(
        torch.from_numpy(heat)[None, None], size=padded_size(network, size), mode="bilinear", align_corners=False
    )
    on_slice = F.interpolate(
        inside[:, :, : size[0], : size[1]], size=tuple(shape), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    highest = on_slice.max()
    return on_slice / highest if highest > 0 else on_slice


class _NoGradient(Exception):
    pass


class _Summed(nn.Module):
    """A network whose heads, where it has several, are summed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return sum_heads(self.network(x))


class _UnscaledCAM(GradCAM):
    """The package's Grad-CAM of one layer, at the layer's own size and in its own numbers.

    The package would stretch it over the input, which is not where the map of a network that pads inside lies.
    """

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: list[Any], eigen_smooth: bool) -> np.ndarray:
        seen = self.activations_and_grads
        if not seen.gradients:
            raise _NoGradient
        maps = (seen.activations[0].numpy(), seen.gradients[0].numpy())
        return self.get_cam_image(input_tensor, self.target_layers[0], targets, *maps, eigen_smooth)

    def aggregate_multi_layers(self, cam_per_target_layer: np.ndarray) -> np.ndarray:
        return np.maximum(cam_per_target_layer, 0)


@contextmanager
def _probe(network: nn.Module, layer: Layer) -> Iterator[nn.Module]:
    """A module that a layer's map passes through, for the package looks at the outputs of modules alone.

    Behind it goes a copy, so that no later layer can change in place what the probe has seen.
    """
    probe, module = nn.Identity(), network.get_submodule(layer.name)
    if layer.is_final and network.tap_spec.final_side == "input":
        handle = module.register_forward_pre_hook(lambda _, inputs: (probe(inputs[0]).clone(), *inputs[1:]))
    else:
        handle = module.register_forward_hook(lambda _, inputs, output: probe(output).clone())
    try:
        yield probe
    finally:
        handle.remove()
