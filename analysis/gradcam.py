"""Show what in an image speaks for a class, by Grad-CAM of every stage of a trained network."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from analysis.layers import Layer
    from analysis.session import Session
    from analysis.slices import Subject
    from datasets.base import Volume

_log = logging.getLogger("gradcam.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Compute and draw as the command line says; returns 0 when done, 2 on bad input."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import analysis_parser, run_guarded

    parser = analysis_parser("gradcam.py", __doc__)
    add = parser.add_argument
    add("--case", default="", metavar="NAME", help="which case (default: the first)")
    add("--slice", type=int, metavar="N", help="which slice of it, from 1 on (default: that with most classes)")
    add("--class", dest="target", metavar="NAME_OR_NUMBER", help="default: the one with most pixels in the prediction")
    return run_guarded("gradcam.py", lambda: _gradcam(parser.parse_args(argv)))


# Torch and all that needs it are imported inside the functions, so that --help and a wrong flag answer at once.
def _gradcam(args: argparse.Namespace) -> int:
    import utils
    from analysis.heat import grad_cam
    from analysis.layers import stage_layers
    from analysis.session import open_session

    with utils.logging_session("gradcam.py"):
        session = open_session(args)
        volume = _volume(session, args.case)
        index = _slice(session, volume, args.slice)
        image = _input(session, volume, index)
        labels = _labels(session, image)
        subject = _subject(session, volume, index, labels, args.target)
        pixels = labels == subject.target
        if not pixels.any():
            _log.warning(
                "%s is predicted nowhere in slice %d of %s; its logit is summed over all pixels",
                *(subject.class_name, index + 1, volume.name),
            )
            pixels |= True
        layers = session.layers or stage_layers(session.network)
        maps = {layer: grad_cam(session.network, image, layer, subject.target, pixels) for layer in layers}
        _write(Path(args.output), session, subject, maps, summed_over="all" if pixels.all() else "prediction")
    return 0


def _volume(session: Session, name: str) -> Volume:
    """The case by its name, or the first."""
    names = []
    for number in range(len(session.volumes)):
        volume = session.volumes[number]
        if name in ("", volume.name):
            return volume
        names.append(volume.name)
    close = difflib.get_close_matches(name, names, n=3) or names[:3]
    raise ValueError(f"--case: there is no case {name!r} among {len(names)}; expected one such as {', '.join(close)}")


def _slice(session: Session, volume: Volume, number: int | None) -> int:
    """The index of slice `number`, counted from 1, or of the one with most classes, in the truth if there is any."""
    from evaluation.overlay import richest_slice
    from evaluation.predict import predict_volume

    depth = len(volume.image)
    if number is not None:
        if not 1 <= number <= depth:
            raise ValueError(f"--slice is {number}; expected 1..{depth}, {volume.name} has so many")
        return number - 1
    if depth == 1:
        return 0
    if volume.label is not None and volume.label.any():
        return richest_slice(volume.label)
    how = {"img_size": session.size, "batch_size": session.cfg.TEST.BATCH_SIZE, "device": session.device}
    return richest_slice(predict_volume(session.network, volume.image, **how))


def _input(session: Session, volume: Volume, index: int) -> Any:
    from analysis.slices import network_input

    return network_input(volume, index, session.size).to(session.device)


def _labels(session: Session, image: Any) -> np.ndarray:
    """What the network predicts for an image (1, C, H, W): (H, W) uint8."""
    import torch

    from utils import sum_heads

    with torch.inference_mode():
        return sum_heads(session.network(image)).argmax(dim=1)[0].to(torch.uint8).cpu().numpy()


def _subject(session: Session, volume: Volume, index: int, labels: np.ndarray, named: str | None) -> Subject:
    """The slice with its class: the one named, else the one with most predicted, or else labelled, pixels."""
    from analysis.slices import Subject
    from datasets import class_names
    from datasets.transforms import resize_label

    names = ["background", *class_names(session.cfg.DATA.DATASET, session.cfg.MODEL.NUM_CLASSES)]
    prediction = resize_label(labels, volume.image.shape[-2:])
    truth = None if volume.label is None else volume.label[index]
    target = _class_by_name(named, names) if named is not None else _commonest(prediction, truth)
    in_truth = None if truth is None else truth == target
    return Subject(volume, index, names[target], target, in_truth, prediction == target)


def _class_by_name(named: str, names: Sequence[str]) -> int:
    lowered = [name.lower() for name in names]
    if named.lower() in lowered:
        return lowered.index(named.lower())
    numbers = [str(number) for number in range(len(names))]
    if named in numbers:
        return numbers.index(named)
    raise ValueError(f"--class is {named!r}; expected 0..{len(names) - 1} or one of {', '.join(names)}")


def _commonest(*labels: np.ndarray | None) -> int:
    """The class with most pixels in the first of some label arrays that has any but background; else class 1."""
    import numpy as np

    for array in labels:
        if array is not None and array.any():
            return int(np.bincount(array[array > 0]).argmax())
    return 1


def _write(
    folder: Path, session: Session, subject: Subject, maps: dict[Layer, np.ndarray], *, summed_over: str
) -> None:
    """The strip, the heat maps and the numbers; the numbers last: where they are, all is there."""
    import numpy as np

    import utils
    from analysis.heat import onto_image
    from analysis.strip import draw

    shape = subject.prediction.shape
    heats = {layer: onto_image(heat, session.network, session.size, shape) for layer, heat in maps.items()}
    rows = [_numbers(layer, maps[layer].shape, heat, subject) for layer, heat in heats.items()]
    record = session.described() | {
        "case": subject.volume.name,
        "slice": subject.index + 1,
        "class": subject.target,
        "class_name": subject.class_name,
        "logits_summed_over": summed_over,
        "truth_share_of_pixels": None if subject.truth is None else float(subject.truth.mean()),
        "prediction_share_of_pixels": float(subject.prediction.mean()),
        "layers": rows,
    }
    arrays = {f"{layer.label}.map": heat for layer, heat in maps.items()}
    arrays |= {f"{layer.label}.heat": heat for layer, heat in heats.items()}
    text = json.dumps(record, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / _stem(subject)
    picture, data, numbers = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".npz", ".json"))
    utils.atomic_write(picture, lambda path: draw(subject, heats, rows, path))
    utils.atomic_write(data, lambda path: np.savez_compressed(path, **arrays))
    utils.atomic_write(numbers, lambda path: path.write_text(text, encoding="utf-8"))
    _log.info("%s, slice %d, %s: %s", subject.volume.name, subject.index + 1, subject.class_name, picture)


def _stem(subject: Subject) -> str:
    """What the files of a case, slice and class are called."""
    where = "" if subject.volume.is_picture else f"_slice{subject.index + 1}"
    return f"gradcam_{subject.volume.name}{where}_{subject.class_name.replace(' ', '_')}"


def _numbers(layer: Layer, map_size: Sequence[int], heat: np.ndarray, subject: Subject) -> dict[str, Any]:
    """What a heat map comes to: the shares of the heat in the class's pixels, and the (row, column) of its peak."""
    import numpy as np

    total = float(heat.sum(dtype=np.float64))

    def share(mask: np.ndarray | None) -> float | None:
        known = mask is not None and mask.any() and total > 0
        return float(heat[mask].sum(dtype=np.float64)) / total if known else None

    return {
        "layer": layer.label,
        "module": layer.name,
        "map_size": list(map_size),
        "share_in_truth": share(subject.truth),
        "share_in_prediction": share(subject.prediction),
        "peak": [int(place) for place in np.unravel_index(heat.argmax(), heat.shape)] if total > 0 else None,
    }


if __name__ == "__main__":
    sys.exit(main())
