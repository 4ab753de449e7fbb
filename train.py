"""Train a network with the SelfReg loss; `python train.py --help` lists the options."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from configs.arguments import overrides_of, run_guarded, train_parser
from configs.config import (
    completed,
    data_keywords,
    get_config,
    look_keywords,
    naming,
    network_keywords,
    overlap_of,
    size_of,
    to_plain,
)
from configs.saved import check_continues, is_of

_log = logging.getLogger("train.py")

_PUBLISHED_BATCH = 24


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns 0 done, 2 bad input, 3 diverged, 130 or 143 interrupted."""
    words = sys.argv[1:] if argv is None else list(argv)
    return run_guarded("train.py", lambda: _train(train_parser().parse_args(words), words))


# Torch and all that needs it are imported inside the functions, so that --help and a wrong flag answer at once.
def _train(args: argparse.Namespace, words: Sequence[str]) -> int:
    import utils
    from engine import distributed

    cfg = get_config(args.cfg, opts=args.opts, overrides=overrides_of(args))
    if not cfg.OUTPUT_DIR:
        raise ValueError("--output_dir is not given; expected a folder for this run, such as runs/first")
    output_dir = Path(cfg.OUTPUT_DIR)
    utils.check_writable(output_dir, "--output_dir")
    if cfg.DATA.FOLDS and args.fold is None:
        return _cross_validate(cfg, words, output_dir)
    device = utils.select_device(cfg.GPU_ID, cfg.N_GPU, distributed.local_rank())
    with ExitStack() as run:
        ranks = run.enter_context(distributed.process_group(device))
        run.enter_context(utils.logging_session("train.py", quiet=not ranks.first))
        if ranks.first:
            run.enter_context(utils.locked(output_dir))
        ranks.barrier()  # a process that is started again looks for saves when the first has the folder to itself
        return _fit(cfg, output_dir, args, ranks)


def _cross_validate(cfg: Any, words: Sequence[str], output_dir: Path) -> int:
    import utils
    from engine import distributed
    from evaluation.cross_validation import cross_validate

    if distributed.local_rank() is not None:
        raise ValueError("--folds starts commands of its own; with torchrun give each fold by itself, --fold 0, 1, ...")
    with utils.logging_session("train.py"):
        cfg = _with_its_data(cfg, distributed.Ranks())
        device = ["--gpu_id", str(cfg.GPU_ID), "--n_gpu", str(cfg.N_GPU)]

        def is_trained(fold: int, run: Path) -> bool:
            return is_of(completed(cfg, {"DATA.FOLD": fold, "DATA.AXIS": ""}), run)

        return cross_validate(words, device, cfg.DATA.FOLDS, output_dir, is_trained)


def _fit(cfg: Any, output_dir: Path, args: argparse.Namespace, ranks: Any) -> int:
    import utils
    from datasets import keep_folds
    from trainer import Diverged

    saved = _saved_state(args, output_dir)
    utils.seed_everything(cfg.SEED, cfg.DETERMINISTIC, ranks.rank)
    cfg = _with_its_data(cfg, ranks)
    trainer = _build(cfg, output_dir, args, saved, ranks)
    if ranks.first:
        if saved and saved.instead_of:
            # It is damaged, and would take the place of the sound save at the next one.
            saved.instead_of.unlink(missing_ok=True)
        if cfg.DATA.FOLDS:
            keep_folds(cfg.DATA.DATASET, **data_keywords(cfg))
        _open_record(trainer, output_dir)
    try:
        trainer.fit()
    except Diverged as error:
        sys.stderr.write(f"train.py: error: {error}\n")
        return 3
    finally:
        trainer.record.close()
        trainer.loader.close()
    best = output_dir / "best.pth"
    _log.info("done: weights in %s; evaluate with: python test.py --output_dir %s", best, output_dir)
    return 0


def _build(cfg: Any, output_dir: Path, args: argparse.Namespace, saved: Any, ranks: Any) -> Any:
    """All parts of a run, everything checked and nothing written."""
    import utils
    from trainer import Trainer

    device = ranks.device
    autocast = utils.select_precision(cfg.PRECISION, device)
    if cfg.COMPILE:
        utils.check_compiler(device)
    network = _network(cfg, args, saved, device)
    utils.keep_freed_memory()
    loader, validate = _build_data(cfg, ranks, autocast)
    criterion = _criterion(cfg.LOSS, cfg.MODEL.NUM_CLASSES)
    optimizer, schedule = _optimizer(network, cfg.TRAIN), _schedule(cfg, len(loader))
    trainer = Trainer(
        *(network, criterion, optimizer, loader, schedule, output_dir, device),
        options=_options(cfg, autocast),
        validate=validate,
        config=to_plain(cfg),
        ranks=ranks,
    )
    if saved:
        trainer.resume(saved.state, saved.path)
    return trainer


def _network(cfg: Any, args: argparse.Namespace, saved: Any, device: Any) -> Any:
    """The network on its device; one that goes on gets its weights with all the rest that was saved, later."""
    from networks import build_network

    with naming(args.cfg):
        network = build_network(cfg.MODEL.TYPE, **network_keywords(cfg))
    if saved:
        check_continues(cfg, saved.state.get("config", {}), saved.path)
    else:
        _start_weights(network, cfg.MODEL.PRETRAIN_CKPT, args)
    if cfg.TRAIN.SYNC_BN:
        from engine.distributed import with_synchronised_batch_norm

        network = with_synchronised_batch_norm(network, device)
    network.to(device)
    if cfg.COMPILE:
        network.compile()
    return network


def _open_record(trainer: Any, output_dir: Path) -> None:
    """Begin to write: the log, the configuration and TensorBoard's events."""
    from tensorboardX import SummaryWriter

    import utils
    from configs.saved import config_text

    utils.log_to(output_dir / "log.txt")
    text = config_text(trainer.config, utils.environment(trainer.device))
    utils.atomic_write(output_dir / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))
    trainer.record.writer = SummaryWriter(str(output_dir / "log"), purge_step=trainer.step)
    millions = sum(p.numel() for p in trainer.network.parameters()) / 1e6
    slices, where = len(trainer.loader.dataset), trainer.config["DATA"]["DATASET"]
    name, rate = trainer.config["MODEL"]["TYPE"], trainer.schedule.base_lr
    processes = f" in {trainer.ranks.world} processes" if trainer.ranks.world > 1 else ""
    what = f"{name} on {where}: {slices} slices, {millions:.1f} M parameters"
    _log.info("%s, first rate %g, %s%s", what, rate, trainer.device, processes)


def _with_its_data(cfg: Any, ranks: Any) -> Any:
    """The configuration with what its empty keys stand for: folders, and what files of one's own say of themselves."""
    from tqdm import tqdm

    from datasets import look_through

    bar = partial(tqdm, desc="looking at the data", leave=False, disable=not sys.stderr.isatty())
    facts = look_through(cfg.DATA.DATASET, **look_keywords(cfg), progress=bar) if ranks.local_rank == 0 else {}
    ranks.barrier()
    return completed(cfg, facts or look_through(cfg.DATA.DATASET, **look_keywords(cfg)))


def _build_data(cfg: Any, ranks: Any, autocast: Any) -> tuple[Any, Callable[..., dict[str, float]] | None]:
    """The training loader and, where cases are held out, the validation; all files are looked at before any step."""
    from tqdm import tqdm

    from datasets import build_dataset, check_quick, class_names
    from datasets.loading import build_loader
    from evaluation.predict import validate

    train_set, val_set = (build_dataset(cfg.DATA.DATASET, split, **data_keywords(cfg)) for split in ("train", "val"))
    if ranks.local_rank == 0:  # one process a machine; a cache is made by it, too
        for dataset in (train_set, val_set):
            bar = partial(tqdm, desc="checking the data", leave=False, disable=not sys.stderr.isatty())
            check_quick(dataset, bar, learn=dataset is train_set)
    ranks.barrier()
    size = size_of(cfg)
    loader = build_loader(
        train_set,
        size=size,
        batch_size=cfg.DATA.BATCH_SIZE,
        seed=cfg.SEED,
        rank=ranks.rank,
        world=ranks.world,
        device=ranks.device,
        workers=cfg.DATA.NUM_WORKERS,
        start_method=cfg.DATA.START_METHOD,
        rot_flip=cfg.AUG.ROT_FLIP,
        rotate=cfg.AUG.ROTATE,
        repeat_choices=cfg.AUG.REPEAT_CHOICES,
    )
    if not len(val_set):
        return loader, None
    _log.info("validation on %s", ", ".join(val_set.cases))
    names = class_names(cfg.DATA.DATASET, cfg.MODEL.NUM_CLASSES)
    how = {"img_size": size, "batch_size": cfg.TEST.BATCH_SIZE, "device": ranks.device, "autocast": autocast}
    how["overlap"] = overlap_of(cfg)
    foreground = cfg.TRAIN.VAL_DICE == "lumped"

    def scores(network: Any, progress: Callable) -> dict[str, float]:
        return validate(
            network, val_set, class_names=names, progress=progress, ranks=ranks, foreground=foreground, **how
        )

    return loader, scores


def _criterion(loss: Any, num_classes: int) -> Any:
    from losses import Criterion, KDloss

    kd = KDloss(
        lambda_1=loss.LAMBDA_1, lambda_2=loss.LAMBDA_2, distance=loss.DISTANCE, warmup_epochs=loss.WARMUP_EPOCHS
    )
    return Criterion(num_classes, ce_weight=loss.CE_WEIGHT, dice_weight=loss.DICE_WEIGHT, kd=kd)


def _schedule(cfg: Any, batches: int) -> Any:
    from trainer import Schedule

    return Schedule(
        epochs=cfg.TRAIN.EPOCHS,
        steps_per_epoch=-(-batches // cfg.TRAIN.ACCUMULATION_STEPS),
        base_lr=_base_lr(cfg),
        power=cfg.TRAIN.LR_POWER if cfg.TRAIN.LR_SCHEDULE == "poly" else 0.0,
        max_steps=cfg.TRAIN.MAX_ITERATIONS,
        warmup_steps=cfg.TRAIN.WARMUP_STEPS,
    )


def _options(cfg: Any, autocast: Any) -> Any:
    from dataclasses import fields

    from trainer import Options

    keys = {**cfg.TRAIN, "GRADIENT_FACTOR": cfg.LOSS.GRADIENT_FACTOR, "GRADIENT_FREQ": cfg.LOSS.GRADIENT_FREQ}
    if cfg.COMPILE:  # a compiled graph frees what its first backward pass has used, and each term takes one
        keys["GRADIENT_FACTOR"] = 0.0
    return Options(autocast, **{f.name: keys[f.name.upper()] for f in fields(Options) if f.name != "autocast"})


def _saved_state(args: argparse.Namespace, output_dir: Path) -> Any:
    """The `checkpoint.Saved` to go on from; None starts afresh.

    What torchrun starts again after a process was lost goes on without being told.
    """
    from engine.checkpoint import LAST, PREVIOUS, Saved, read_checkpoint, read_last
    from engine.distributed import is_restart

    holds_a_run = (output_dir / LAST).exists() or (output_dir / PREVIOUS).exists()
    if args.resume not in ("", "auto") and not (is_restart() and holds_a_run):
        return Saved(Path(args.resume), read_checkpoint(args.resume, trust=args.trust_checkpoint))
    if args.resume or is_restart():
        saved = read_last(output_dir, trust=args.trust_checkpoint)
        if saved is None and (output_dir / "metrics.jsonl").exists():
            _log.info("%s: the run was stopped before its first save and begins anew", output_dir)
        return saved
    if holds_a_run:
        raise ValueError(
            f"--output_dir: {output_dir} holds a run already; go on with it by --resume, or give another folder"
        )
    return None


def _start_weights(network: Any, paths: str | Sequence[str], args: argparse.Namespace) -> None:
    """Fill the network from the files that the configuration names, where they are there."""
    from networks import load_weights

    asked_for = "MODEL.PRETRAIN_CKPT" in args.opts
    for path in filter(None, [paths] if isinstance(paths, str) else paths):
        if Path(path).exists() or asked_for:
            load_weights(network, path, ignore_head=args.ignore_head, trust=args.trust_checkpoint)
        else:
            _log.info(
                "no ImageNet start: %s is not there, so what it would fill starts from random weights; put it there "
                "(README, Networks, says where it is from), or name a file by --opts MODEL.PRETRAIN_CKPT FILE",
                path,
            )


def _base_lr(cfg: Any) -> float:
    """The published rule: a batch size other than 24 that is divisible by 6 scales the rate."""
    batch = cfg.DATA.BATCH_SIZE
    scaled = cfg.TRAIN.SCALE_LR and batch != _PUBLISHED_BATCH and batch % 6 == 0
    return cfg.TRAIN.BASE_LR * batch / _PUBLISHED_BATCH if scaled else cfg.TRAIN.BASE_LR


def _optimizer(network: Any, train: Any) -> Any:
    import torch

    # Fused, a step is one pass over the weights: on the CPU 2.5 times as fast for SGD, 3.5 times for AdamW.
    common = {"lr": train.BASE_LR, "weight_decay": train.WEIGHT_DECAY, "fused": True}
    if train.OPTIMIZER == "adamw":
        return torch.optim.AdamW(network.parameters(), **common)
    return torch.optim.SGD(network.parameters(), momentum=train.MOMENTUM, **common)


if __name__ == "__main__":
    sys.exit(main())
