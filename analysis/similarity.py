"""Similarity of the channels of a trained network, in the halves that IFD pulls together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import lru_cache

if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

from configs.arguments import check_command_line, run_guarded, similarity_parser

if __name__ == "__main__":  # before torch is imported
    check_command_line("similarity.py", similarity_parser())

import numpy as np

import utils
from analysis.channels import draw, measure_channels
from analysis.layers import open_session, regularized_stages, spread_slices


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and draw as the command line says; returns 0 when done, 2 on bad input."""
    return run_guarded("similarity.py", lambda: similarity(similarity_parser().parse_args(argv)))


def similarity(args: argparse.Namespace) -> int:
    """Compare the channels of every layer over some slices; print a table, write figure, arrays and numbers."""
    if args.images < 1:
        raise ValueError(f"--images is {args.images}; expected at least 1")
    with utils.logging_session("similarity.py"):
        session = open_session(args)
        stages = [[layer] for layer in session.layers] or regularized_stages(session.network)
        layers = [layer for stage in stages for layer in stage]
        slices = spread_slices(session.volumes, args.images)
        volume_at = lru_cache(1)(session.volumes.__getitem__)  # slices of a volume follow each other
        inputs = (session.network_input(volume_at(place), index) for place, index in slices)
        measured = dict(zip(layers, measure_channels(session.network, inputs, layers), strict=True))
        title = f"{session.config.model.type} on {session.config.data.dataset}, {len(slices)} slices"
        figure = draw({stage[-1]: measured[stage[-1]] for stage in stages}, title)
        arrays = {
            f"{layer.label}.{name}": array.astype(np.float32) if array.ndim == 2 else array
            for layer, one in measured.items()
            for name, array in vars(one).items()
        }
        rows = [{"layer": layer.label, "module": layer.name, **one.numbers()} for layer, one in measured.items()]
        session.write("similarity", figure, arrays, {"images": len(slices), "layers": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
