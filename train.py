"""Train a network with the SelfReg loss; `python train.py --help` lists the options."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from configs.arguments import overrides_of, run_guarded, train_parser
from configs.config import check_continues, config_text, data_keywords, get_config, network_keywords, to_plain

_log = logging.getLogger("train.py")

_PUBLISHED_BATCH = 24


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns 0 done, 2 bad input, 3 diverged, 130 or 143 interrupted."""
    return run_guarded("train.py", lambda: _train(train_parser().parse_args(argv)))


# Torch and all that needs it are imported inside the functions, so that --help and a wrong flag answer at once.
def _train(args: argparse.Namespace) -> int:
    import utils
    from trainer import Diverged

    cfg = get_config(args.cfg, opts=args.opts, overrides=overrides_of(args))
    output_dir = _output_dir(cfg.OUTPUT_DIR, args.resume)
    try:
        with utils.logging_session("train.py"):
            utils.seed_everything(cfg.SEED, cfg.DETERMINISTIC)
            trainer = _build(cfg, output_dir, args)
            try:
                trainer.fit()
            finally:
                trainer.writer.close()
            best = output_dir / "best.pth"
            _log.info("done: weights in %s; evaluate with: python test.py --output_dir %s", best, output_dir)
    except Diverged as error:
        sys.stderr.write(f"train.py: error: {error}\n")
        return 3
    except SystemExit as stop:
        return int(stop.code)
    return 0


def _output_dir(name: str, resume: str) -> Path:
    import utils

    if not name:
        raise ValueError("--output_dir is not given; expected a folder for this run, such as runs/first")
    utils.check_writable(Path(name), "--output_dir")
    if (Path(name) / "last.pth").exists() and not resume:
        raise ValueError(f"--output_dir: {name} holds a run already; go on with it by --resume, or give another folder")
    return Path(name)


def _build(cfg: Any, output_dir: Path, args: argparse.Namespace) -> Any:
    """All parts of a run, everything checked before the output folder is touched."""
    from tensorboardX import SummaryWriter

    import utils
    from losses import Criterion, KDloss
    from networks import build_network
    from trainer import Trainer

    device = utils.select_device(cfg.GPU_ID, cfg.N_GPU)
    autocast = utils.select_precision(cfg.PRECISION, device)
    if cfg.COMPILE:
        utils.check_compiler(device)
    network = build_network(cfg.MODEL.TYPE, **network_keywords(cfg))
    state = _resume_state(args, output_dir)
    if state is None:
        _start_weights(network, cfg.MODEL.PRETRAIN_CKPT, args)
    else:
        check_continues(cfg, state.get("config", {}))
    network.to(device)
    utils.keep_freed_memory()
    if cfg.COMPILE:
        network.compile()
    loader, validate = _build_data(cfg, device, autocast)
    cfg = _resolved(cfg)
    kd = KDloss(lambda_1=cfg.LOSS.LAMBDA_1, lambda_2=cfg.LOSS.LAMBDA_2)
    criterion = Criterion(cfg.MODEL.NUM_CLASSES, ce_weight=cfg.LOSS.CE_WEIGHT, dice_weight=cfg.LOSS.DICE_WEIGHT, kd=kd)
    optimizer, schedule = _optimizer(network, cfg.TRAIN), _schedule(cfg, len(loader))
    trainer = Trainer(
        *(network, criterion, optimizer, loader, schedule, output_dir, device),
        options=_options(cfg, autocast),
        validate=validate,
        config=to_plain(cfg),
    )
    if state is not None:
        trainer.resume(state)

    output_dir.mkdir(parents=True, exist_ok=True)
    utils.log_to(output_dir / "log.txt")
    text = config_text(cfg, utils.environment(device))
    utils.whole_or_absent(output_dir / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))
    trainer.writer = SummaryWriter(str(output_dir / "log"), purge_step=trainer.step)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    what = f"{cfg.MODEL.TYPE} on {cfg.DATA.DATASET}: {len(loader.dataset)} slices, {millions:.1f} M parameters"
    _log.info("%s, first rate %g, %s", what, schedule.base_lr, device)
    return trainer


def _resolved(cfg: Any) -> Any:
    """The configuration with the folders that its empty keys stand for."""
    from datasets import locate

    root, lists = locate(cfg.DATA.DATASET, cfg.DATA.ROOT_PATH, cfg.DATA.LIST_DIR)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATA.ROOT_PATH, cfg.DATA.LIST_DIR = str(root), str(lists)
    cfg.DATA.VOLUME_PATH = cfg.DATA.VOLUME_PATH or str(root)
    cfg.freeze()
    return cfg


def _build_data(cfg: Any, device: Any, autocast: Any) -> tuple[Any, Callable[[Any], dict[str, float]] | None]:
    """The training loader and, where cases are held out, the validation; every file is read once, before any step."""
    from tqdm import tqdm

    from datasets import build_dataset, check_all, class_names
    from datasets.loading import build_loader
    from evaluation.predict import validate

    train_set, val_set = (build_dataset(cfg.DATA.DATASET, split, **data_keywords(cfg)) for split in ("train", "val"))
    for dataset in (train_set, val_set):
        check_all(
            dataset,
            partial(tqdm, total=len(dataset), desc="checking the data", leave=False, disable=not sys.stderr.isatty()),
        )
    size = (cfg.DATA.IMG_SIZE, cfg.DATA.IMG_SIZE)
    loader = build_loader(
        train_set,
        size=size,
        batch_size=cfg.DATA.BATCH_SIZE,
        seed=cfg.SEED,
        device=device,
        workers=cfg.DATA.NUM_WORKERS,
        rot_flip=cfg.AUG.ROT_FLIP,
        rotate=cfg.AUG.ROTATE,
        repeat_choices=cfg.AUG.REPEAT_CHOICES,
    )
    if not len(val_set):
        return loader, None
    _log.info("validation on %s", ", ".join(val_set.cases))
    names = class_names(cfg.DATA.DATASET, cfg.MODEL.NUM_CLASSES)
    how = {"img_size": size, "batch_size": cfg.TEST.BATCH_SIZE, "device": device, "autocast": autocast}
    return loader, partial(validate, volumes=val_set, class_names=names, **how)


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

    names = {field.name for field in fields(Options)} - {"autocast"}
    return Options(autocast=autocast, **{name: cfg.TRAIN[name.upper()] for name in names})


def _resume_state(args: argparse.Namespace, output_dir: Path) -> dict | None:
    """The content of the checkpoint to go on from; None starts afresh."""
    from networks.pretrained import read_checkpoint

    path = output_dir / "last.pth" if args.resume == "auto" else Path(args.resume)
    if not args.resume or (args.resume == "auto" and not path.exists()):
        return None
    return read_checkpoint(path, trust=args.trust_checkpoint)


def _start_weights(network: Any, path: str, args: argparse.Namespace) -> None:
    """Fill the network from the file that the configuration names, where it is there."""
    from networks import load_weights

    asked_for = "MODEL.PRETRAIN_CKPT" in args.opts
    if path and (Path(path).exists() or asked_for):
        load_weights(network, path, ignore_head=args.ignore_head, trust=args.trust_checkpoint)
    elif path:
        _log.info(
            "no ImageNet start: %s is not there, so training starts from random weights; "
            "put Swin-T's public checkpoint there, or name a file by --opts MODEL.PRETRAIN_CKPT FILE",
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
