"""Evaluate a checkpoint on whole volumes or images, or predict some; `python test.py --help` lists the options."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from configs.arguments import check_command_line, run_guarded, test_parser

if __name__ == "__main__":  # before torch is imported
    check_command_line("test.py", test_parser())

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import utils
from configs.saved import config_text
from configs.schema import Config
from datasets.case import Volume, Volumes
from datasets.transforms import resize_label
from engine import distributed
from engine.distributed import Ranks
from engine.logger import read_curves
from evaluation.inference import Trained, find_trained, find_volumes, identity, label_values, load_network, names_of
from evaluation.masks import mask_suffix, write_image_mask, write_mask
from evaluation.metrics import ClassScores, compare_at_spacings
from evaluation.overlay import write_overlay
from evaluation.predict import fitting_batch_size, predict_volume, prediction_memmap, without_ignored
from evaluation.report import Provenance, write_html
from evaluation.summary import CaseResult, format_table, summarize, write_csv, write_json

_log = logging.getLogger("test.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate or predict as the command line says; returns 0 when done, 2 on bad input."""
    return run_guarded("test.py", lambda: test(test_parser().parse_args(argv)))


def test(args: argparse.Namespace) -> int:
    """Load, predict, score, report."""
    trained = find_trained(args)
    config = trained.config
    output_dir = find_output_dir(args, trained.weights)
    device = utils.select_device(config.gpu_id, config.n_gpu, distributed.local_rank())
    with ExitStack() as stack:
        ranks = stack.enter_context(distributed.process_group(device))
        stack.enter_context(utils.logging_session("test.py", quiet=not ranks.first))
        utils.seed_everything(config.seed, config.deterministic)
        autocast = utils.select_precision(config.test.precision, device, allow_slow=config.slow_bfloat16)
        utils.tune_malloc()
        network = load_network(trained, device)
        shape = (config.model.in_channels, *config.data.img_size)
        batch_size = config.test.batch_size or fitting_batch_size(network, shape, device, autocast)
        volumes = find_volumes(config, args.input, ranks)
        if config.test.metrics == "medpy":
            import_module("medpy.metric")  # it is optional: refused before results are removed
        if ranks.first:  # the lock is not that of the run, which may be trained on meanwhile
            stack.enter_context(utils.locked(output_dir / "predictions"))
            (output_dir / "overlays").mkdir(exist_ok=True)
            utils.log_to(output_dir / "test_log.txt")
            remove_results(output_dir, volumes.cases, scored=not args.input)
        ranks.barrier()
        cases = ranks.in_order(dict(predict(network, volumes, output_dir, config, ranks, autocast, batch_size)))
        if ranks.first and args.input:
            _log.info("%d masks in %s", len(cases), output_dir / "predictions")
        elif ranks.first:
            unit = "pixels" if volumes[0].is_image else "voxels"
            write_report(cases, unit, output_dir, trained, provenance(trained, device, batch_size))
    return 0


def find_output_dir(args: argparse.Namespace, weights: Path) -> Path:
    """The folder of the results: --output, else --output_dir, else the run that --checkpoint names."""
    in_a_run = args.checkpoint and Path(args.checkpoint).is_dir()
    output_dir = args.output or args.output_dir or (str(weights.parent) if in_a_run else "")
    if not output_dir:
        raise ValueError("--output is not given; expected a folder for the results")
    utils.check_writable(Path(output_dir), "--output" if args.output else "--output_dir")
    return Path(output_dir)


def remove_results(output_dir: Path, cases: Sequence[str], *, scored: bool) -> None:
    """Remove what a test will write, so that a test that is interrupted leaves nothing of the one before beside it."""
    if scored:
        for name in ("summary.json", "report.html", "per_case.csv"):
            (output_dir / name).unlink(missing_ok=True)
    for case in cases:
        for suffix in (".nii.gz", ".mha", ".nrrd", ".png", ".tif"):
            (output_dir / "predictions" / f"{case}{suffix}").unlink(missing_ok=True)
        (output_dir / "overlays" / f"{case}.png").unlink(missing_ok=True)


def predict(
    network: nn.Module,
    volumes: Volumes,
    output_dir: Path,
    config: Config,
    ranks: Ranks,
    autocast: torch.dtype | None,
    batch_size: int,
) -> Iterator[tuple[int, CaseResult]]:
    """Predict and score this process's cases; mask and overlay are written while the next case is predicted."""
    places, begun = ranks.shard(len(volumes)), time.monotonic()
    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer:
        for done, place in enumerate(places):
            volume = volumes[place]
            left = tqdm.format_interval((time.monotonic() - begun) / done * (len(places) - done)) if done else "?"
            shape = "x".join(map(str, volume.image.shape[volume.is_image * -2 :]))
            _log.info("%d/%d  %s  %s  %s left", place + 1, len(volumes), volume.name, shape, left)
            mask = predict_volume(
                network,
                volume.image,
                img_size=config.data.img_size,
                batch_size=batch_size,
                device=ranks.device,
                autocast=autocast,
                overlap=config.test.window_overlap,
                out=prediction_memmap(volume, output_dir),
            )
            if written:
                written.result()  # one case at a time, and an error of it
            written = writer.submit(write_case, output_dir, volume, mask, config)
            scores, in_mm = [*score(volume, mask, config, ranks.device), ()][:2]
            yield place, CaseResult(volume.name, scores, in_mm, volumes.group_of(volume.name))
        if written:
            written.result()


def write_case(output_dir: Path, volume: Volume, mask: np.ndarray, config: Config) -> None:
    """Write a predicted mask, in the values of the training labels, and its overlay."""
    folder, values = output_dir / "predictions", label_values(config)
    if volume.is_image:
        write_image_mask(folder / volume.name, mask[0], values, volume.source)
    else:
        write_mask(folder / f"{volume.name}{mask_suffix(volume.source)}", mask, volume.geometry, values)
    names = names_of(config)
    write_overlay(output_dir / "overlays" / f"{volume.name}.png", volume, mask, names)


def score(volume: Volume, mask: np.ndarray, config: Config, device: torch.device) -> list[tuple[ClassScores, ...]]:
    """The scores of each class at unit spacing and, where the spacing is known, in mm too; none without a label."""
    if volume.label is None:
        return [()]
    # A GPU computes them where it predicts; the truth follows the prediction there.
    mask, truth = without_ignored(mask, volume.label) if config.data.ignore_label >= 0 else (mask, volume.label)
    predicted = torch.from_numpy(mask).to(device)
    spacings = [None, volume.geometry.array_spacing] if volume.geometry else [None]
    if config.test.score_at == "network":
        size, spacings = config.data.img_size, [None]
        predicted, truth = resize_label(predicted, size), resize_label(truth, size)
    if volume.is_image:
        predicted, truth = predicted[0], truth[0]
    how = {"method": config.test.metrics, "assd": config.test.assd}
    return compare_at_spacings(predicted, truth, config.model.num_classes, spacings, **how)


def provenance(trained: Trained, device: torch.device, batch_size: int) -> Provenance:
    """The title, settings, environment and training curves for the report."""
    config, weights, run = trained.config, trained.weights, trained.training
    what = f"{'/'.join(weights.resolve().parts[-2:])}: {config.data.dataset}, {config.model.type}"
    how = f"lambda_1 {run.loss.lambda_1}, lambda_2 {run.loss.lambda_2}, seed {run.seed}" if run else "training unknown"
    title = f"{what}, {how}, tested {time.strftime('%Y-%m-%d')}"
    settings = {
        "checkpoint": weights,
        "dataset": config.data.dataset,
        "network": config.model.type,
        "img_size": config.data.img_size,
        "inference": config.test.inference,
        "overlap": config.test.window_overlap,
        "batch_size": batch_size,
        "precision": config.test.precision,
        "metrics": config.test.metrics,
        "score_at": config.test.score_at,
    }
    curves = {}
    if (weights.parent / "metrics.jsonl").is_file():
        try:
            curves = read_curves(weights.parent)
        except (ValueError, OSError) as error:
            _log.warning("the report has no training curves: %s", error)
    return Provenance(settings, config_text(config, {}), utils.environment(device), curves, title)


def write_report(
    results: Sequence[CaseResult], unit: str, output_dir: Path, trained: Trained, provenance: Provenance
) -> None:
    """Write per_case.csv, report.html and summary.json, and print the table."""
    names = names_of(trained.config)
    summary = summarize(results, names, unit=unit)
    write_csv(output_dir / "per_case.csv", summary)
    write_html(output_dir / "report.html", summary, output_dir / "overlays", provenance)
    # Last: where it is, the test is done.
    write_json(output_dir / "summary.json", {"of": identity(trained), **summary.to_json()})
    _log.info("%s\n\nreport: %s", format_table(summary), output_dir / "report.html")


if __name__ == "__main__":
    sys.exit(main())
