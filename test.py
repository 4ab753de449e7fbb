"""Evaluate a checkpoint on whole volumes or pictures, or predict some; `python test.py --help` lists the options."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from configs.arguments import overrides_of, run_guarded, test_parser
from configs.checks import value_at
from configs.config import (
    completed,
    config_beside,
    config_within,
    data_keywords,
    get_config,
    look_keywords,
    naming,
    network_keywords,
    overlap_of,
    reading_keywords,
    size_of,
)

_log = logging.getLogger("test.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate or predict as the command line says; returns 0 when done, 2 on bad input."""
    return run_guarded("test.py", lambda: _test(test_parser().parse_args(argv)))


# Torch and all that needs it are imported inside the functions, so that --help and a wrong flag answer at once.
def _test(args: argparse.Namespace) -> int:
    import distributed
    import utils
    from datasets.histology import PictureVolumes
    from networks import build_network, load_weights
    from networks.pretrained import find_weights

    named = args.checkpoint or args.output_dir
    if not named:
        raise ValueError("neither --output_dir nor --checkpoint is given; expected a run's folder or a file of weights")
    cfg_files = (config_beside(named) or _config_within(Path(named), args.trust_checkpoint), args.cfg)
    cfg = _with_its_data(get_config(*cfg_files, opts=args.opts, overrides=_test_overrides(args)), args.input)
    is_file = args.checkpoint and not Path(named).is_dir()
    weights = Path(named) if is_file else find_weights(named, cfg.TRAIN.EPOCHS)
    output_dir = _output_dir(args, weights)
    device = utils.select_device(cfg.GPU_ID, cfg.N_GPU, distributed.local_rank())
    with distributed.process_group(device) as ranks, utils.logging_session("test.py", quiet=not ranks.first):
        utils.seed_everything(cfg.SEED, cfg.DETERMINISTIC)
        autocast = utils.select_precision(cfg.TEST.PRECISION, device)
        utils.keep_freed_memory()
        with naming(*cfg_files):
            network = build_network(cfg.MODEL.TYPE, **network_keywords(cfg))
        load_weights(network, weights, complete=True, trust=args.trust_checkpoint)
        network.to(device).eval()
        volumes = _find_volumes(cfg, args.input, ranks)
        for folder in ("predictions", "overlays"):
            (output_dir / folder).mkdir(parents=True, exist_ok=True)
        if ranks.first:
            utils.log_to(output_dir / "test_log.txt")
        cases = ranks.in_order(dict(_predict(network, volumes, output_dir, cfg, ranks, autocast)))
        if ranks.first and args.input:
            _log.info("%d masks in %s", len(cases), output_dir / "predictions")
        elif ranks.first:
            unit = "pixels" if isinstance(volumes, PictureVolumes) else "voxels"
            _report(cases, unit, output_dir, cfg, _settings(cfg, weights) | utils.environment(device))
    return 0


def _config_within(weights: Path, trust: bool) -> Mapping[str, Any]:
    """The configuration in a file that train.py saved to go on from, which may lie anywhere; of other files, none."""
    from checkpoint import read_checkpoint

    return (
        config_within(read_checkpoint(weights, trust=trust)) if weights.suffix == ".pth" and weights.is_file() else {}
    )


def _with_its_data(cfg: Any, given: str) -> Any:
    """The configuration, completed by the data where it is not that of a run, which has been."""
    from datasets import look_through

    whole = completed(cfg, {"DATA.AXIS": ""})
    unknown = [key for key in ("MODEL.NUM_CLASSES", "MODEL.IN_CHANNELS", "DATA.INTENSITY") if not value_at(whole, key)]
    if unknown and given:
        raise ValueError(
            f"{', '.join(unknown)}: not known of these weights; give the run's folder, or them by --opts KEY VALUE"
        )
    return completed(cfg, look_through(cfg.DATA.DATASET, **look_keywords(cfg))) if unknown else whole


def _test_overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The keys that the flags set, and those of a run's configuration that another machine or data folder forgets."""
    overrides = {"GPU_ID": 0, "N_GPU": 1} | overrides_of(args)
    for theirs, ours in (("DATA.BATCH_SIZE", "TEST.BATCH_SIZE"), ("PRECISION", "TEST.PRECISION")):
        if theirs in overrides:
            overrides[ours] = overrides.pop(theirs)
    if {"DATA.ROOT_PATH", "DATA.VOLUME_PATH"} & set(overrides):
        overrides = {"DATA.LIST_DIR": "", "DATA.VOLUME_PATH": ""} | overrides
    return overrides


def _output_dir(args: argparse.Namespace, weights: Path) -> Path:
    """Where results go: --output, else --output_dir, else the run that --checkpoint names."""
    import utils

    in_a_run = args.checkpoint and Path(args.checkpoint).is_dir()
    output_dir = args.output or args.output_dir or (str(weights.parent) if in_a_run else "")
    if not output_dir:
        raise ValueError("--output is not given; expected a folder for the results")
    utils.check_writable(Path(output_dir), "--output" if args.output else "--output_dir")
    return Path(output_dir)


def _find_volumes(cfg: Any, given: str, ranks: Any) -> Any:
    """The volumes to predict, every one of them read and checked before anything is written."""
    from tqdm import tqdm

    from datasets import build_dataset, check_all, reading
    from datasets.inputs import InputVolumes

    if given:
        volumes = InputVolumes(Path(given), reading(**reading_keywords(cfg)))
    else:
        volumes = build_dataset(cfg.DATA.DATASET, "test", **data_keywords(cfg, test=True))
        if not len(volumes):
            raise ValueError(f"{cfg.DATA.DATASET}: there is no case to test on; name some in test.txt (--list_dir)")
    if ranks.first:
        bar = partial(tqdm, total=len(volumes), desc="checking the data", leave=False, disable=not sys.stderr.isatty())
        if given:
            volumes.check(bar)
        else:
            check_all(volumes, bar, threads=2)
    ranks.wait()
    return volumes


def _predict(
    network: Any, volumes: Any, output_dir: Path, cfg: Any, ranks: Any, autocast: Any
) -> Iterator[tuple[int, Any]]:
    """Predict this process's cases; writes each mask and overlay, yields each one's place and its scores."""
    from datasets import class_names
    from evaluation.predict import predict_volume, room_for
    from evaluation.report import CaseResult, write_overlay
    from record import in_words

    names = class_names(cfg.DATA.DATASET, cfg.MODEL.NUM_CLASSES)
    how = {
        "img_size": size_of(cfg),
        "batch_size": cfg.TEST.BATCH_SIZE,
        "device": ranks.device,
        "autocast": autocast,
        "overlap": overlap_of(cfg),
    }
    places, begun = ranks.share(len(volumes)), time.monotonic()
    for done, place in enumerate(places):
        volume = volumes[place]
        left = in_words((time.monotonic() - begun) / done * (len(places) - done)) if done else "?"
        depth, *_, height, width = volume.image.shape
        shape = f"{height}x{width}" if volume.is_picture else f"{depth}x{height}x{width}"
        _log.info("%d/%d  %s  %s  %s left", place + 1, len(volumes), volume.name, shape, left)
        mask = predict_volume(network, volume.image, out=room_for(volume, output_dir), **how)
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

    from evaluation.metrics import compare_classes

    if volume.label is None:
        return ((),)
    # A GPU measures where it predicts; the truth follows the prediction there.
    pair = (torch.from_numpy(mask).to(device), volume.label)
    if volume.is_picture:
        pair = tuple(labels[0] for labels in pair)
    how = {"method": cfg.TEST.METRICS, "assd": cfg.TEST.ASSD}
    spacings = [None, volume.geometry.array_spacing] if volume.geometry else [None]
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
    }


def _report(results: Sequence[Any], unit: str, output_dir: Path, cfg: Any, settings: dict[str, object]) -> None:
    from datasets import class_names
    from evaluation import report

    names = class_names(cfg.DATA.DATASET, cfg.MODEL.NUM_CLASSES)
    summary = report.summarise(results, names, unit=unit)
    report.write_csv(output_dir / "per_case.csv", results, names)
    overlays = [output_dir / "overlays" / f"{result.name}.png" for result in results]
    report.write_html(output_dir / "report.html", summary, overlays, settings)
    report.write_summary(output_dir / "summary.json", summary)  # last: where it is, the test is done
    _log.info("%s\n\nreport: %s", report.format_table(summary), output_dir / "report.html")


if __name__ == "__main__":
    sys.exit(main())
