"""Evaluate a checkpoint on whole volumes or pictures, or predict some; `python test.py --help` lists the options."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.arguments import run_guarded, test_parser
from configs.config import overlap_of, reading_keywords, size_of
from evaluation.inference import find_trained, find_volumes, load_network

_log = logging.getLogger("test.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate or predict as the command line says; returns 0 when done, 2 on bad input."""
    return run_guarded("test.py", lambda: _test(test_parser().parse_args(argv)))


# Torch and all that needs it are imported inside the functions, so that --help and a wrong flag answer at once.
def _test(args: argparse.Namespace) -> int:
    import utils
    from datasets.histology import PictureVolumes
    from engine import distributed

    trained = find_trained(args)
    cfg, weights = trained.cfg, trained.weights
    output_dir = _output_dir(args, weights)
    device = utils.select_device(cfg.GPU_ID, cfg.N_GPU, distributed.local_rank())
    with distributed.process_group(device) as ranks, utils.logging_session("test.py", quiet=not ranks.first):
        utils.seed_everything(cfg.SEED, cfg.DETERMINISTIC)
        autocast = utils.select_precision(cfg.TEST.PRECISION, device)
        utils.keep_freed_memory()
        network = load_network(trained, device)
        volumes = find_volumes(cfg, args.input, ranks)
        for folder in ("predictions", "overlays"):
            (output_dir / folder).mkdir(parents=True, exist_ok=True)
        if ranks.first:
            utils.log_to(output_dir / "test_log.txt")
        cases = ranks.in_order(dict(_predict(network, volumes, output_dir, cfg, ranks, autocast)))
        if ranks.first and args.input:
            _log.info("%d masks in %s", len(cases), output_dir / "predictions")
        elif ranks.first:
            unit = "pixels" if isinstance(volumes, PictureVolumes) else "voxels"
            _report(cases, unit, output_dir, cfg, _provenance(cfg, weights, device))
    return 0


def _output_dir(args: argparse.Namespace, weights: Path) -> Path:
    """Where results go: --output, else --output_dir, else the run that --checkpoint names."""
    import utils

    in_a_run = args.checkpoint and Path(args.checkpoint).is_dir()
    output_dir = args.output or args.output_dir or (str(weights.parent) if in_a_run else "")
    if not output_dir:
        raise ValueError("--output is not given; expected a folder for the results")
    utils.check_writable(Path(output_dir), "--output" if args.output else "--output_dir")
    return Path(output_dir)


def _predict(
    network: Any, volumes: Any, output_dir: Path, cfg: Any, ranks: Any, autocast: Any
) -> Iterator[tuple[int, Any]]:
    """Predict this process's cases; writes each mask and overlay, yields each one's place and its scores."""
    from datasets import class_names
    from engine.logger import format_duration
    from evaluation.predict import predict_volume, prediction_memmap
    from evaluation.report import CaseResult, write_overlay

    names = class_names(cfg.DATA.DATASET, cfg.MODEL.NUM_CLASSES)
    how = {
        "img_size": size_of(cfg),
        "batch_size": cfg.TEST.BATCH_SIZE,
        "device": ranks.device,
        "autocast": autocast,
        "overlap": overlap_of(cfg),
    }
    places, begun = ranks.shard(len(volumes)), time.monotonic()
    for done, place in enumerate(places):
        volume = volumes[place]
        left = format_duration((time.monotonic() - begun) / done * (len(places) - done)) if done else "?"
        depth, *_, height, width = volume.image.shape
        shape = f"{height}x{width}" if volume.is_picture else f"{depth}x{height}x{width}"
        _log.info("%d/%d  %s  %s  %s left", place + 1, len(volumes), volume.name, shape, left)
        mask = predict_volume(network, volume.image, out=prediction_memmap(volume, output_dir), **how)
        _write_mask(output_dir / "predictions", volume, mask, cfg)
        write_overlay(output_dir / "overlays" / f"{volume.name}.png", volume, mask, names)
        yield place, CaseResult(volume.name, *_scores(volume, mask, cfg, ranks.device))


def _write_mask(folder: Path, volume: Any, mask: Any, cfg: Any) -> None:
    """The prediction beside others, with what the training labels held for each class: a picture, or NIfTI."""
    from evaluation.nifti import write_mask
    from evaluation.pictures import write_picture_mask

    values = reading_keywords(cfg)["label_values"]
    if volume.is_picture:
        write_picture_mask(folder / volume.name, mask[0], values, volume.source)
    else:
        write_mask(folder / f"{volume.name}.nii.gz", mask, volume.geometry, values)


def _scores(volume: Any, mask: Any, cfg: Any, device: Any) -> Sequence[Any]:
    """The scores of each class at unit spacing and, where the spacing is known, in mm too."""
    import torch

    from datasets.transforms import resize_label
    from evaluation.metrics import compare_classes

    if volume.label is None:
        return ((),)
    # A GPU measures where it predicts; the truth follows the prediction there.
    pair = (torch.from_numpy(mask).to(device), volume.label)
    spacings = [None, volume.geometry.array_spacing] if volume.geometry else [None]
    if cfg.TEST.SCORE_AT == "network":
        pair, spacings = tuple(resize_label(labels, size_of(cfg)) for labels in pair), [None]
    if volume.is_picture:
        pair = tuple(labels[0] for labels in pair)
    how = {"method": cfg.TEST.METRICS, "assd": cfg.TEST.ASSD}
    return [compare_classes(*pair, cfg.MODEL.NUM_CLASSES, spacing, **how) for spacing in spacings]


def _settings(cfg: Any, weights: Path) -> dict[str, object]:
    """What the report says of how it was come by."""
    return {
        "checkpoint": weights,
        "dataset": cfg.DATA.DATASET,
        "network": cfg.MODEL.TYPE,
        "img_size": cfg.DATA.IMG_SIZE,
        "inference": cfg.TEST.INFERENCE,
        "overlap": overlap_of(cfg),
        "precision": cfg.TEST.PRECISION,
        "metrics": cfg.TEST.METRICS,
        "score_at": cfg.TEST.SCORE_AT,
    }


def _provenance(cfg: Any, weights: Path, device: Any) -> Any:
    """What the report says of the run; curves where its record lies beside the weights and can be read."""
    import utils
    from engine.logger import has_record, read_curves
    from evaluation.html import Provenance

    curves = {}
    if has_record(weights.parent):
        try:
            curves = read_curves(weights.parent)
        except (ValueError, OSError) as error:
            _log.warning("the report has no training curves: %s", error)
    return Provenance(_settings(cfg, weights), cfg.dump(sort_keys=False), utils.environment(device), curves)


def _report(results: Sequence[Any], unit: str, output_dir: Path, cfg: Any, provenance: Any) -> None:
    from datasets import class_names
    from evaluation import report

    names = class_names(cfg.DATA.DATASET, cfg.MODEL.NUM_CLASSES)
    summary = report.summarise(results, names, unit=unit)
    report.write_csv(output_dir / "per_case.csv", results, names)
    report.write_html(output_dir / "report.html", summary, output_dir / "overlays", provenance)
    report.write_summary(output_dir / "summary.json", summary)  # last: where it is, the test is done
    _log.info("%s\n\nreport: %s", report.format_table(summary), output_dir / "report.html")


if __name__ == "__main__":
    sys.exit(main())
