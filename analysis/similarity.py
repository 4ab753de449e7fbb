"""Measure how similar the channels of a trained network are, in the halves that IFD pulls together."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

_log = logging.getLogger("similarity.py")

_IMAGES = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and draw as the command line says; returns 0 when done, 2 on bad input."""
    from configs.arguments import analysis_parser, run_guarded

    parser = analysis_parser("similarity.py", __doc__ or "")
    text = f"slices at most, evenly spread over the cases (default: {_IMAGES}); those without a label are left out"
    parser.add_argument("--images", type=int, default=_IMAGES, metavar="N", help=text)
    return run_guarded("similarity.py", lambda: similarity(parser.parse_args(argv)))


def similarity(args: argparse.Namespace) -> int:
    """Measure the channels of the layers over some slices; print a table, write figure, arrays and numbers."""
    import utils
    from analysis.channels import draw, measure_channels
    from analysis.layers import regularized_layers, stage_layers
    from analysis.session import open_session

    if args.images < 1:
        raise ValueError(f"--images is {args.images}; expected at least 1")
    with utils.logging_session("similarity.py"):
        session = open_session(args)
        layers = session.layers or regularized_layers(session.network)
        slices = session.spread_slices(args.images)
        channels = measure_channels(session.network, session.network_inputs(slices), layers)
        measured = dict(zip(layers, channels, strict=True))
        for layer, one in measured.items():
            _log.info("%-16s %s", layer.label, one.describe("all"))
        drawn = session.layers or stage_layers(session.network)
        title = f"{session.config.model.type} on {session.config.data.dataset}, {len(slices)} slices"
        figure = draw({layer: measured[layer] for layer in drawn}, title)
        arrays = {
            f"{layer.label}.{name}": array for layer, one in measured.items() for name, array in vars(one).items()
        }
        rows = [{"layer": layer.label, "module": layer.name, **one.numbers()} for layer, one in measured.items()]
        session.write("similarity", figure, arrays, {"images": len(slices), "layers": rows})
    return 0


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())
