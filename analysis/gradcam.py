"""Grad-CAM of every stage of a trained network: where a layer's map holds the evidence for a class.

Selvaraju et al. 2017; the logits of a class summed over its pixels, as in Seg-Grad-CAM (Vinogradova et al. 2020).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

from configs.arguments import check_command_line, gradcam_parser, run_guarded

if __name__ == "__main__":  # before torch is imported
    check_command_line("gradcam.py", gradcam_parser())

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

import utils
from analysis.layers import Layer, channels_first, layer_maps, open_session, padded_size, regularized_stages
from datasets.case import Volume
from datasets.readers.grid import upright
from datasets.transforms import resize_label
from evaluation.inference import names_of
from evaluation.overlay import display, richest_slice
from evaluation.predict import predict_volume

_log = logging.getLogger("gradcam.py")

_OUTLINES = {"truth": ("cyan", "#00E5FF"), "prediction": ("white", "#FFFFFF")}

Heats = Mapping[Layer, np.ndarray]  # (h, w) of each layer


def main(argv: Sequence[str] | None = None) -> int:
    """Compute and draw as the command line says; returns 0 when done, 2 on bad input."""
    return run_guarded("gradcam.py", lambda: gradcam(gradcam_parser().parse_args(argv)))


def gradcam(args: argparse.Namespace) -> int:
    """Find slice and class, compute the heat of every layer, write figure, arrays and numbers."""
    with utils.logging_session("gradcam.py"):
        session = open_session(args)
        config, network, volume = session.config, session.network, session.find_volume(args.case)
        size, batch_size = config.data.img_size, config.validation_batch
        predict = partial(predict_volume, network, img_size=size, batch_size=batch_size, device=session.device)
        number = default_slice(volume, predict) if args.slice is None else args.slice
        if not 1 <= number <= len(volume.image):
            raise ValueError(f"--slice is {number}; expected 1..{len(volume.image)}, {volume.name} has so many")
        image = session.network_input(volume, number - 1)
        predicted = predict(image)[0]
        shape = (volume.image.shape[-2], volume.image.shape[-1])
        names = ["background", *names_of(config)]
        slices = {}
        if volume.label is not None:
            truth = volume.label[number - 1]
            slices["truth"] = np.where(truth < len(names), truth, 0)  # without what is to be ignored
        slices["prediction"] = resize_label(predicted, shape)
        target = commonest_class(slices) if args.target is None else class_number(args.target, names)
        masks, pixels = {part: labels == target for part, labels in slices.items()}, predicted == target
        if not pixels.any():
            said = "%s is predicted nowhere in slice %d of %s; its logit is summed over all pixels"
            _log.warning(said, names[target], number, volume.name)
            pixels |= True
        layers = session.layers or [stage[-1] for stage in regularized_stages(network)]
        maps = dict(zip(layers, grad_cam(network, image, layers, target, pixels), strict=True))
        heats = {layer: onto_image(heat, network, size, shape) for layer, heat in maps.items()}
        rows = [
            {
                "layer": layer.label,
                "module": layer.name,
                "map_size": maps[layer].shape,
                "share_in_truth": fraction_in(masks.get("truth"), heat),
                "share_in_prediction": fraction_in(masks["prediction"], heat),
                "peak": np.argwhere(heat == 1)[0].tolist() if heat.any() else None,  # row, column
            }
            for layer, heat in heats.items()
        ]
        record = {
            "case": volume.name,
            "slice": number,
            "class": target,
            "class_name": names[target],
            "logits_summed_over": "all" if pixels.all() else "prediction",
            "truth_share_of_pixels": float(masks["truth"].mean()) if "truth" in masks else None,
            "prediction_share_of_pixels": float(masks["prediction"].mean()),
            "layers": rows,
        }
        arrays = {f"{layer.label}.map": heat for layer, heat in maps.items()}
        arrays |= {f"{layer.label}.heat": heat for layer, heat in heats.items()}
        place = volume.name if volume.is_image else f"{volume.name}_slice{number}"
        figure = draw(volume, number, names[target], masks, maps, heats)
        session.write(f"gradcam_{place}_{names[target].replace(' ', '_')}", figure, arrays, record)
    return 0


def default_slice(volume: Volume, predict: Callable[..., np.ndarray]) -> int:
    """The number, from 1 on, of the slice with most classes in the truth or, without any, in the prediction."""
    label = volume.label
    return 1 + richest_slice(label if label is not None and label.any() else predict(volume.image))


def commonest_class(slices: dict[str, np.ndarray]) -> int:
    """The class with most pixels in the prediction, else in the truth, else 1."""
    foreground = [labels[labels > 0] for labels in reversed(slices.values()) if labels.any()]
    return int(np.bincount(foreground[0]).argmax()) if foreground else 1


def class_number(given: str, names: Sequence[str]) -> int:
    """A class by its name or its number."""
    known = {word: number for number, name in enumerate(names) for word in (str(number), name.lower())}
    if given.lower() not in known:
        raise ValueError(f"--class is {given!r}; expected 0..{len(names) - 1} or one of {', '.join(names)}")
    return known[given.lower()]


def grad_cam(
    network: nn.Module, image: Tensor, layers: Sequence[Layer], target: int, pixels: np.ndarray
) -> list[np.ndarray]:
    """Grad-CAM of layers for a class: ReLU of the sum over channels of map times mean gradient, each (h, w) float32.

    The gradient is that of the logits of class `target`, summed over `pixels` (H, W) bool, for an image (1, C, H, W) on
    the device of the network, which is in eval mode.
    """
    logits, maps = layer_maps(network, layers, image.clone().requires_grad_())
    evidence = logits[0, target][torch.from_numpy(pixels).to(logits.device)].sum()
    gradients, heats = torch.autograd.grad(evidence, maps, allow_unused=True), []
    for layer, feature, gradient in zip(layers, maps, gradients, strict=True):
        if gradient is None:
            raise ValueError(f"{layer.name}: the logits do not depend on it; expected one that they do (--layers)")
        gradient, feature = (channels_first(network, layer, x.detach(), image.shape[2:]) for x in (gradient, feature))
        heats.append(F.relu((gradient.mean((2, 3), keepdim=True) * feature).sum(1))[0].cpu().numpy())
    return heats


def onto_image(heat: np.ndarray, network: nn.Module, size: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """A layer's heat (h, w) on the pixels of a slice of `shape`, bilinearly, its maximum 1 (or all 0), float32.

    `size` is that of the network's input. Inside, the network pads below and to the right; the heat there is cut off.
    """
    inside = F.interpolate(torch.from_numpy(heat)[None, None], padded_size(network, size), mode="bilinear")
    on_slice = F.interpolate(inside[..., : size[0], : size[1]], tuple(shape), mode="bilinear")[0, 0].numpy()
    return on_slice / (on_slice.max() or 1)


def fraction_in(mask: np.ndarray | None, heat: np.ndarray) -> float | None:
    """The fraction of the heat (H, W) in a mask (H, W); None without a mask, pixels in it, or heat."""
    known = mask is not None and mask.any() and heat.any()
    return float(heat[mask].sum(dtype=np.float64) / heat.sum(dtype=np.float64)) if known else None


def draw(
    volume: Volume, number: int, class_name: str, masks: Mapping[str, np.ndarray], maps: Heats, heats: Heats
) -> Figure:
    """The slice with the outlines of the class, then each layer's heat (H, W), whose own map is (h, w), over it."""
    image = upright(display(volume.image[number - 1 : number][0]), volume.geometry)
    outlines = {name: upright(mask, volume.geometry) for name, mask in masks.items() if mask.any()}
    where = next(iter(outlines), "prediction")  # the heat is compared with the truth where there is any
    legend = [f"{_OUTLINES[name][0]}: {name}" for name in outlines]
    panels = [("image", image, [*legend, f"{where}: {masks[where].mean():.0%} of the pixels"])]
    for layer, heat in heats.items():
        share = f"{fraction_in(masks[where], heat) or 0:.0%} of the heat in the {where}" if heat.any() else "no heat"
        heat = upright(heat, volume.geometry)
        opacity = 0.15 + 0.7 * heat[..., None]  # the hotter, the less of the image is seen
        shown = (1 - opacity) * 0.75 * image.mean(axis=2, keepdims=True) + opacity * colormaps["inferno"](heat)[..., :3]
        panels.append((layer.label, shown, [layer.short_name, "{} x {}".format(*maps[layer].shape), share]))
    rows = 1 if len(panels) < 6 else 2  # to be read at the width of a page
    columns = -(-len(panels) // rows)
    height = min(2 * image.shape[0] / image.shape[1], 6) + 0.7
    figure = Figure((2 * columns, rows * height + 0.3), 150, layout="constrained")
    place = volume.name if volume.is_image else f"{volume.name}, slice {number} of {len(volume.image)}"
    figure.suptitle(f"Grad-CAM of {class_name}: {place}", fontsize=10, parse_math=False, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, pixels, lines) in zip(axes, panels, strict=False):
        axis.imshow(pixels, interpolation="nearest")
        for name, mask in outlines.items():
            if not mask.all() and min(mask.shape) > 1:  # around everything there is no line
                edges = np.count_nonzero(np.diff(mask, axis=0))  # those of hundreds of nuclei are drawn thinner
                width = 0.6 * min(1, sum(mask.shape) / (1 + edges))
                axis.contour(mask.astype(float), levels=[0.5], colors=[_OUTLINES[name][1]], linewidths=width)
        axis.set_title(title, fontsize=8.5, fontweight="bold", pad=4)
        axis.set_xlabel("\n".join(lines), fontsize=7.5)
        axis.set(xticks=[], yticks=[], frame_on=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
