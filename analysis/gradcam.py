"""Show what in an image speaks for a class, by Grad-CAM of every stage of a trained network."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Sequence
from functools import partial

_log = logging.getLogger("gradcam.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Compute and draw as the command line says; returns 0 when done, 2 on bad input."""
    from configs.arguments import analysis_parser, run_guarded

    parser = analysis_parser("gradcam.py", __doc__ or "")
    add = parser.add_argument
    add("--case", default="", metavar="NAME", help="which case (default: the first)")
    add("--slice", type=int, metavar="N", help="which slice of it, from 1 on (default: that with most classes)")
    add("--class", dest="target", metavar="NAME_OR_NUMBER", help="default: the one with most pixels in the prediction")
    return run_guarded("gradcam.py", lambda: gradcam(parser.parse_args(argv)))


def gradcam(args: argparse.Namespace) -> int:
    """Find slice and class, compute the heat of every layer, write figure, arrays and numbers."""
    import numpy as np

    import utils
    from analysis.heat import HeatMap, draw, grad_cam, onto_image
    from analysis.layers import stage_layers
    from analysis.session import open_session
    from datasets import class_names
    from datasets.transforms import resize_label
    from evaluation.overlay import richest_slice
    from evaluation.predict import predict_volume

    with utils.logging_session("gradcam.py"):
        session = open_session(args)
        network, config, size = session.network, session.config, session.config.data.img_size
        predict = partial(
            predict_volume, network, img_size=size, batch_size=config.test.batch_size, device=session.device
        )
        volume = session.volumes[_case(args.case, session.volumes.cases)]
        if args.slice is not None and not 1 <= args.slice <= len(volume.image):
            raise ValueError(f"--slice is {args.slice}; expected 1..{len(volume.image)}, {volume.name} has so many")
        labeled = volume.label is not None and volume.label.any()
        index = (args.slice or 1 + richest_slice(volume.label if labeled else predict(volume.image))) - 1
        image = session.network_input(volume, index)
        labels = predict(image)[0]
        slices = {} if volume.label is None else {"truth": volume.label[index]}
        slices |= {"prediction": resize_label(labels, volume.image.shape[-2:])}
        names = ["background", *class_names(config.data.dataset, config.model.num_classes)]
        found = [array[array > 0] for array in reversed(slices.values()) if array.any()]
        commonest = int(np.bincount(found[0]).argmax()) if found else 1
        target = commonest if args.target is None else _class(args.target, names)
        masks = {name: array == target for name, array in slices.items()}
        pixels = labels == target
        if not pixels.any():
            said = "%s is predicted nowhere in slice %d of %s; its logit is summed over all pixels"
            _log.warning(said, names[target], index + 1, volume.name)
            pixels |= True
        layers = session.layers or stage_layers(network)
        heats = [
            HeatMap(layer, heat, onto_image(heat, network, size, volume.image.shape[-2:]))
            for layer, heat in zip(layers, grad_cam(network, image, layers, target, pixels), strict=True)
        ]
        record = {
            "case": volume.name,
            "slice": index + 1,
            "class": target,
            "class_name": names[target],
            "logits_summed_over": "all" if pixels.all() else "prediction",
            "truth_share_of_pixels": float(masks["truth"].mean()) if "truth" in masks else None,
            "prediction_share_of_pixels": float(masks["prediction"].mean()),
            "layers": [one.numbers(masks) for one in heats],
        }
        arrays = {f"{one.layer.label}.map": one.inside for one in heats} | {
            f"{one.layer.label}.heat": one.heat for one in heats
        }
        name = f"{volume.name}{'' if volume.is_picture else f'_slice{index + 1}'}_{names[target].replace(' ', '_')}"
        session.write(f"gradcam_{name}", draw(volume, index, names[target], masks, heats), arrays, record)
    return 0


def _case(name: str, cases: Sequence[str]) -> int:
    """The place of a case by its name, of the first without one."""
    if name and name not in cases:
        close = ", ".join(difflib.get_close_matches(name, cases) or cases[:3])
        raise ValueError(f"--case: there is no case {name!r} among {len(cases)}; expected one such as {close}")
    return cases.index(name) if name else 0


def _class(named: str, names: Sequence[str]) -> int:
    """A class by its name or number."""
    for number, name in enumerate(names):
        if named.lower() in (name.lower(), str(number)):
            return number
    raise ValueError(f"--class is {named!r}; expected 0..{len(names) - 1} or one of {', '.join(names)}")


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
