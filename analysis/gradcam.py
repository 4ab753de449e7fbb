"""Heat maps of the evidence for a class in an image, by Grad-CAM of every stage of a trained network."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

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
    from analysis.heat import draw, find_subject, fraction_in, grad_cam, onto_image
    from analysis.layers import regularized_stages
    from analysis.session import open_session

    with utils.logging_session("gradcam.py"):
        session = open_session(args)
        network, size = session.network, session.config.data.img_size
        subject = find_subject(session, args.case, args.slice, args.target)
        volume, number, image, pixels, name, target, masks = subject
        if not pixels.any():
            said = "%s is predicted nowhere in slice %d of %s; its logit is summed over all pixels"
            _log.warning(said, name, number, volume.name)
            pixels |= True
        layers = session.layers or [stage[-1] for stage in regularized_stages(network)]
        maps = dict(zip(layers, grad_cam(network, image, layers, target, pixels), strict=True))
        heats = {layer: onto_image(heat, network, size, masks["prediction"].shape) for layer, heat in maps.items()}
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
            "class_name": name,
            "logits_summed_over": "all" if pixels.all() else "prediction",
            "truth_share_of_pixels": float(masks["truth"].mean()) if "truth" in masks else None,
            "prediction_share_of_pixels": float(masks["prediction"].mean()),
            "layers": rows,
        }
        arrays = {f"{layer.label}.map": heat for layer, heat in maps.items()}
        arrays |= {f"{layer.label}.heat": heat for layer, heat in heats.items()}
        place = volume.name if volume.is_picture else f"{volume.name}_slice{number}"
        session.write(f"gradcam_{place}_{name.replace(' ', '_')}", draw(subject, maps, heats), arrays, record)
    return 0


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
