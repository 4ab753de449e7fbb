"""Measure how alike the channels of a trained network are, in the halves that IFD pulls together."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.channels import ChannelSimilarity
    from analysis.layers import Layer
    from analysis.session import Session

    Measured = Mapping[Layer, ChannelSimilarity]

_log = logging.getLogger("similarity.py")

_IMAGES = 64
_BATCH_ON_A_CPU = 4  # as in evaluation.predict
_LETTERS_AN_INCH = 12  # of a figure's title


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and draw as the command line says; returns 0 when done, 2 on bad input."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import analysis_parser, run_guarded

    parser = analysis_parser("similarity.py", __doc__)
    parser.add_argument(
        "--images",
        type=int,
        default=_IMAGES,
        metavar="N",
        help=f"slices at most, evenly spread over the cases (default: {_IMAGES}); those without a label are left out",
    )
    return run_guarded("similarity.py", lambda: _similarity(parser.parse_args(argv)))


# Torch and all that needs it are imported inside the functions, so that --help and a wrong flag answer at once.
def _similarity(args: argparse.Namespace) -> int:
    import utils
    from analysis.layers import regularised_layers, stage_layers
    from analysis.session import open_session

    if args.images < 1:
        raise ValueError(f"--images is {args.images}; expected at least 1")
    with utils.logging_session("similarity.py"):
        session = open_session(args)
        layers = session.layers or regularised_layers(session.network)
        drawn = session.layers or stage_layers(session.network)
        measured, images = _measure(session, layers, args.images)
        _write(Path(args.output), measured, drawn, session.described() | {"images": images})
    return 0


def _measure(session: Session, layers: Sequence[Layer], most: int) -> tuple[Measured, int]:
    """The layers' channels over `most` slices at most, and over how many it was."""
    from analysis.channels import measure_channels
    from analysis.slices import batched, candidate_slices, read_slices, spread

    places = spread(candidate_slices(session.volumes), most)
    _log.info("%d layers over %d slices", len(layers), len(places))
    size = session.cfg.TEST.BATCH_SIZE
    images = read_slices(session.volumes, places, session.size)
    batches = batched(images, size if session.device.type == "cuda" else min(size, _BATCH_ON_A_CPU), session.device)
    measured = measure_channels(session.network, batches, layers)
    return dict(zip(layers, measured, strict=True)), len(places)


def _write(folder: Path, measured: Measured, drawn: Sequence[Layer], record: dict[str, Any]) -> None:
    """The figure of some layers, matrices and numbers of all; the numbers last: where they are, all is there."""
    import numpy as np

    import utils

    rows = [{"layer": layer.label, "module": layer.name, **one.numbers()} for layer, one in measured.items()]
    arrays = {
        f"{layer.label}.{key}": getattr(one, key)
        for layer, one in measured.items()
        for key in ("order", "scores", "correlation", "cosine")
    }
    arrays = {key: array.astype(np.float32) if array.ndim == 2 else array for key, array in arrays.items()}
    text = json.dumps(record | {"layers": rows}, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "similarity.png"
    title = "{network} on {dataset}, {images} slices".format(**record)
    utils.atomic_write(picture, lambda path: draw({layer: measured[layer] for layer in drawn}, title, path))
    utils.atomic_write(folder / "similarity.npz", lambda path: np.savez_compressed(path, **arrays))
    utils.atomic_write(folder / "similarity.json", lambda path: path.write_text(text, encoding="utf-8"))
    _log.info("%s\n\nfigure: %s", format_table(rows), picture)


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The numbers as text, a line a layer."""
    from evaluation.summary import aligned

    lines = [("layer", "channels", "constant", "|r|", "upper", "lower", "between", "pair r", "effective rank", "share")]
    for row in rows:
        absolute = row["mean_abs_correlation"]
        values = [*absolute.values(), row["pair_correlation"]]
        rank, share = row["effective_rank"]["all"], row["effective_rank_share"]["all"]
        lines.append(
            (row["layer"], str(row["channels"]), str(row["constant_channels"]), *map(_short, values))
            + ("-" if rank is None else f"{rank:.1f}", _short(share))
        )
    return "\n".join(aligned(lines))


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def draw(measured: Measured, title: str, path: Path) -> None:
    """One column a layer: the correlations within the upper half of its channels over those within the lower half."""
    from matplotlib.figure import Figure

    columns = len(measured)
    figure = Figure(figsize=(max(1.75 * columns + 0.9, 6.0), 4.8), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.07, wspace=0.02)
    said = f"{title}: correlation of channels, highest score first (grey: constant)"
    figure.suptitle(fill(said, int(_LETTERS_AN_INCH * figure.get_figwidth())), fontsize=10, parse_math=False)
    axes = figure.subplots(2, columns, squeeze=False)
    for column, (layer, one) in zip(axes.T, measured.items(), strict=True):
        numbers = one.numbers()
        for panel, half in zip(column, ("upper", "lower"), strict=True):
            shown = one.correlation[getattr(one, half), getattr(one, half)]
            image = panel.imshow(shown, cmap=_colours(), vmin=-1, vmax=1, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.set_xlabel(_caption(numbers, half), fontsize=7.5)
            for spine in panel.spines.values():
                spine.set(linewidth=0.5, color="0.6")
        column[0].set_title(layer.label, fontsize=8.5, fontweight="bold", pad=23)
        under = _under_title(layer, numbers)
        column[0].text(0.5, 1.02, under, fontsize=7.5, ha="center", transform=column[0].transAxes, parse_math=False)
    for panel, half in zip(axes[:, 0], ("upper", "lower"), strict=True):
        panel.set_ylabel(f"{half} half", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, pad=0.01, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.ax.tick_params(labelsize=7)
    bar.set_label("Pearson correlation", fontsize=8)
    figure.savefig(path, format="png")


def _colours() -> Any:
    """From blue over white to red; grey is for channels that are constant and have no correlation."""
    from matplotlib import colormaps

    return colormaps["RdBu_r"].with_extremes(bad="0.75")


def _under_title(layer: Layer, numbers: Mapping[str, Any]) -> str:
    from analysis.layers import short_name

    channels, constant = numbers["channels"], numbers["constant_channels"]
    notes = ["median in neither"] * (channels % 2) + [f"{constant} constant"] * bool(constant)
    return f"{short_name(layer)}\n{', '.join([f'{channels} channels', *notes])}"


def _caption(numbers: Mapping[str, Any], half: str) -> str:
    rank, share = numbers["effective_rank"][half], numbers["effective_rank_share"][half]
    if rank is None:
        return "all constant"
    absolute = _short(numbers["mean_abs_correlation"][half])
    return f"mean |r| {absolute}\neffective rank {rank:.1f} of {round(rank / share)}"


if __name__ == "__main__":
    sys.exit(main())
