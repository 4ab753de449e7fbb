"""Train a network with the SelfReg loss; `python train.py --help` lists the options."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from configs.arguments import check_command_line, overrides_of, run_guarded, train_parser, visible

if __name__ == "__main__":  # before torch is imported
    check_command_line("train.py", train_parser())

import torch
from torch import nn

import utils
from configs.config import get_config, to_dict
from configs.saved import check_continues, config_text, is_of
from configs.schema import Config, LossConfig, TrainConfig
from datasets import describe, keep_folds
from datasets.augment import Augmentation
from datasets.cache import CachedSlices, keep_in_memory
from datasets.case import IGNORE
from datasets.loader import TrainingLoader, build_loader
from engine import distributed
from engine.checkpoint import LAST, PREVIOUS, Saved, read_checkpoint, read_last
from engine.distributed import Ranks
from engine.logger import MetricLogger, progress_bar
from evaluation.cross_validation import cross_validate
from evaluation.inference import inspect_data, names_of, network_of, open_slices, open_volumes, preprocessing
from evaluation.predict import validate
from losses import Criterion, KDloss
from networks import load_weights
from selfreg import Features
from selfreg.kdloss import Consistency, Distance, Distillation
from selfreg.variants import DeepSupervision, MeanTeacher
from trainer import Diverged, Logits, Monitor, Options, Schedule, Trainer, Validation

_log = logging.getLogger("train.py")

_PUBLISHED_BATCH = 24


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns 0 done, 2 bad input, 3 diverged, 130 or 143 interrupted."""
    words = sys.argv[1:] if argv is None else list(argv)
    return run_guarded("train.py", lambda: train(train_parser().parse_args(words), words))


def train(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Parse, build, fit; with --folds and no --fold, one training and test for each fold."""
    config = get_config(args.cfg, opts=args.opts, overrides=overrides_of(args))
    if not config.output_dir:
        raise ValueError("--output_dir is not given; expected a folder for this run, such as runs/first")
    output_dir = Path(config.output_dir)
    utils.check_writable(output_dir, "--output_dir")
    if config.data.folds and args.fold is None:
        return cross_validation(config, words, output_dir)
    device = utils.select_device(config.gpu_id, config.n_gpu, distributed.local_rank())
    with ExitStack() as run:
        ranks = run.enter_context(distributed.process_group(device))
        run.enter_context(utils.logging_session("train.py", quiet=not ranks.first))
        if ranks.first:
            run.enter_context(utils.locked(output_dir))
        ranks.barrier()  # a restarted process searches for saves once the first holds the folder
        saved = find_saved(args, output_dir)
        utils.seed_everything(config.seed, config.deterministic, ranks.rank)
        config = inspect_once(config, ranks)
        trainer = build_trainer(config, args, saved, output_dir, ranks)
        if ranks.first:
            begin_run(trainer, config, saved, output_dir)
        try:
            trainer.fit()
        except Diverged as error:
            sys.stderr.write(f"train.py: error: {visible(str(error))}\n")
            return 3
        finally:
            cast(TrainingLoader, trainer.loader).close()
        best = trainer.best if trainer.best.exists() else trainer.last
        _log.info("done: %s\nnext: python test.py --output_dir %s", best, shlex.quote(str(output_dir)))
    return 0


def cross_validation(config: Config, words: Sequence[str], output_dir: Path) -> int:
    """Train and test each fold by commands of their own."""
    if distributed.local_rank() is not None:
        raise ValueError("--folds starts commands of its own; with torchrun give each fold by itself, --fold 0, 1, ...")
    with utils.logging_session("train.py"):
        tree = to_dict(inspect_once(config, Ranks()))
        folds = [get_config(tree, overrides={"DATA.FOLD": fold}) for fold in range(config.data.folds)]
        device = ["--gpu_id", str(config.gpu_id), "--n_gpu", str(config.n_gpu)]
        return cross_validate(words, device, len(folds), output_dir, lambda fold, run: is_of(folds[fold], run))


def find_saved(args: argparse.Namespace, output_dir: Path) -> Saved | None:
    """The save to resume from; None starts afresh. A process that torchrun restarted resumes without --resume."""
    holds_a_run = (output_dir / LAST).exists() or (output_dir / PREVIOUS).exists()
    named = args.resume not in ("", "auto") and not (distributed.is_restart() and holds_a_run)
    if named and (not holds_a_run or Path(args.resume).resolve().parent == output_dir.resolve()):
        return Saved(Path(args.resume), read_checkpoint(args.resume, trust=args.trust_checkpoint))
    if not named and (args.resume or distributed.is_restart()):
        saved = read_last(output_dir, trust=args.trust_checkpoint)
        if saved is None and (output_dir / "metrics.jsonl").exists():
            _log.info("%s: the run was stopped before its first save and begins anew", output_dir)
        return saved
    if holds_a_run:
        raise ValueError(
            f"--output_dir: {output_dir} holds a run already; resume it by --resume, or give another folder"
        )
    return None


def inspect_once(config: Config, ranks: Ranks) -> Config:
    """The configuration completed from its data, which one process inspects."""
    return ranks.gather(inspect_data(config, progress_bar("checking the data")) if ranks.first else config)[0]


def build_trainer(
    config: Config, args: argparse.Namespace, saved: Saved | None, output_dir: Path, ranks: Ranks
) -> Trainer:
    """All parts of a run, everything checked and nothing written."""
    device = ranks.device
    autocast = utils.select_precision(config.precision, device, allow_slow=config.slow_bfloat16)
    if config.compile:
        utils.check_compiler(device)
    network = build_network(config, args, saved, device)
    extra = build_extra(config, network, device)
    utils.tune_malloc()
    loader = build_data(config, ranks)
    criterion = build_criterion(config.loss, config.model.num_classes, ignore=config.data.ignore_label >= 0)
    schedule = build_schedule(config, len(loader))
    log = (config.train.log_freq, config.train.image_freq)
    logger = MetricLogger(output_dir if ranks.first else None, schedule.total_steps, log_freq=log[0], image_freq=log[1])
    heads = extra.parameters() if isinstance(extra, DeepSupervision) else ()
    optimizer = build_optimizer([*network.parameters(), *heads], config.train)
    if isinstance(extra, MeanTeacher):
        optimizer.register_step_post_hook(lambda *_: extra.update(network))
    trainer = Trainer(
        network,
        criterion,
        optimizer,
        loader,
        schedule,
        output_dir,
        logger,
        options=Options(
            autocast=autocast,
            accumulation_steps=config.train.accumulation_steps,
            clip_grad=config.train.clip_grad,
            val_freq=config.train.val_freq,
            save_freq=config.train.save_freq,
            save_seconds=config.train.save_seconds,
            compile=config.compile,
        ),
        validate=build_validation(config, ranks, autocast),
        monitor=build_monitor(config, network, criterion, logger, ranks),
        extra=extra,
        config=to_dict(config),
        data=describe(loader.dataset.slices, open_volumes(config, "val")),
        ranks=ranks,
    )
    if saved:
        trainer.resume(saved.state, saved.path)
    return trainer


def build_network(config: Config, args: argparse.Namespace, saved: Saved | None, device: torch.device) -> nn.Module:
    """The network on its device; a resumed one gets its weights later, with the rest of the save."""
    network = network_of(config)
    if saved and "config" in saved.state:  # a file without is refused for more, by `Trainer.resume`
        check_continues(config, saved.state["config"], saved.path)
    for path in () if saved else config.model.pretrain_ckpt:
        if Path(path).exists() or "MODEL.PRETRAIN_CKPT" in args.opts:
            load_weights(network, path, ignore_head=args.ignore_head, trust=args.trust_checkpoint)
        else:
            _log.info(
                "random init instead of ImageNet weights: %s does not exist; docs/networks.md says where to get it "
                "(or name a file by --opts MODEL.PRETRAIN_CKPT FILE)",
                path,
            )
    if config.train.sync_bn:
        if device.type != "cuda":  # torch has no such layer for CPUs
            raise ValueError("--sync_bn needs GPUs, and the device is the CPU; leave it out, or give larger batches")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network.to(device)
    if config.compile:
        network.compile()
    return network


def build_extra(config: Config, network: nn.Module, device: torch.device) -> nn.Module | None:
    """What training alone has: the heads of deep supervision, or the averaged network that teaches."""
    loss, model = config.loss, config.model
    if loss.deep_supervision and loss.teacher == "average":
        raise ValueError("LOSS.DEEP_SUPERVISION and LOSS.TEACHER average are both on; expected one of them (--opts)")
    if loss.deep_supervision:
        example = torch.zeros(2, model.in_channels, *config.data.img_size, device=device)
        return DeepSupervision(network, model.num_classes, example).to(device)
    return MeanTeacher(network, loss.teacher_decay) if loss.teacher == "average" and loss.lambda_1 else None


def build_data(config: Config, ranks: Ranks) -> TrainingLoader:
    """The training loader, its cache written."""
    train_set, val_set = open_slices(config), open_volumes(config, "val")
    if ranks.local_rank == 0:  # one process a machine, which makes the cache, too
        for dataset in (train_set, getattr(val_set, "slices", None)):
            if isinstance(dataset, CachedSlices):
                dataset.prepare(progress_bar("writing the cache"))
    ranks.barrier()
    return build_loader(
        keep_in_memory(train_set, int(config.data.cache_memory * utils.memory_share())),
        size=config.data.img_size,
        batch_size=config.data.batch_size,
        seed=config.seed,
        rank=ranks.rank,
        world=ranks.world,
        device=ranks.device,
        workers=utils.count_workers() if config.data.num_workers < 0 else config.data.num_workers,
        rot_flip=config.aug.rot_flip,
        rotate=config.aug.rotate,
        repeat_choices=config.aug.repeat_choices,
        augmentation=Augmentation(
            scale=config.aug.scale,
            elastic=config.aug.elastic,
            brightness=config.aug.brightness,
            contrast=config.aug.contrast,
            gamma=config.aug.gamma,
            noise=config.aug.noise,
            probability=config.aug.probability,
        ),
    )


def build_validation(config: Config, ranks: Ranks, autocast: torch.dtype | None) -> Validation | None:
    """The scores of the cases that are held out of training; None where none are."""
    val_set = open_volumes(config, "val")
    if not len(val_set):
        return None
    _log.info("validation on %s", ", ".join(val_set.cases))

    def scores(network: nn.Module, progress: Callable[[Iterable[int]], Iterator[int]]) -> Mapping[str, float]:
        return validate(
            network,
            val_set,
            class_names=names_of(config),
            img_size=config.data.img_size,
            batch_size=config.validation_batch,
            device=ranks.device,
            autocast=autocast,
            overlap=config.test.window_overlap,
            foreground=config.train.val_dice == "foreground",
            progress=progress,
            ranks=ranks,
        )

    return scores


def build_criterion(loss: LossConfig, num_classes: int, *, ignore: bool = False) -> Criterion:
    """Cross-entropy, Dice and the regularizer."""
    kd = KDloss(
        lambda_1=loss.lambda_1,
        lambda_2=loss.lambda_2,
        distance=cast(Distance, loss.distance),
        warmup_epochs=loss.warmup_epochs,
        scr=cast(Consistency, loss.scr),
        ifd=cast(Distillation, loss.ifd),
    )
    return Criterion(
        num_classes,
        ce_weight=loss.ce_weight,
        dice_weight=loss.dice_weight,
        kd=kd,
        ignore_index=IGNORE if ignore else None,
        head_decay=0.5 if loss.deep_supervision else 1.0,
    )


def build_monitor(
    config: Config, network: nn.Module, criterion: Criterion, logger: MetricLogger, ranks: Ranks
) -> Monitor | None:
    """The check of what each part of the loss adds to the gradient; None where it is off, or the graph is compiled,
    which frees what its first backward pass used: the check takes one for each part."""
    factor, freq = config.loss.gradient_factor, config.loss.gradient_freq
    if not factor or config.compile:
        return None
    parameters = [p for p in network.parameters() if p.requires_grad]

    def monitor(step: int, epochs: float, logits: Logits, label: torch.Tensor, features: Features) -> None:
        if step % freq == 0:
            norms = criterion.gradient_norms(logits, label, features, parameters, epochs)
            means, _ = ranks.mean_and_any({name: torch.tensor(norm) for name, norm in norms.items()})
            logger.log_gradients(step + 1, int(epochs), means, factor)

    return monitor


def build_optimizer(weights: Sequence[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW; fused, a step is one pass over the weights: on a CPU 2.5 and 3.5 times as fast."""
    rate, decay = train.base_lr, train.weight_decay
    if train.optimizer == "adamw":
        return torch.optim.AdamW(weights, rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(weights, rate, momentum=train.momentum, weight_decay=decay, fused=True)


def build_schedule(config: Config, batches: int) -> Schedule:
    """The schedule, by the published rule: a batch other than 24 that is divisible by 6 scales the rate by batch/24.

    The batch is the one that a step sees, accumulation included.
    """
    train, batch = config.train, config.data.batch_size * config.train.accumulation_steps
    scaled = train.scale_lr and batch != _PUBLISHED_BATCH and batch % 6 == 0
    return Schedule(
        epochs=train.epochs,
        steps_per_epoch=-(-batches // train.accumulation_steps),
        base_lr=train.base_lr * batch / _PUBLISHED_BATCH if scaled else train.base_lr,
        power=train.lr_power if train.lr_schedule == "poly" else 0.0,
        max_steps=train.max_iterations,
        warmup_steps=train.warmup_steps,
    )


def begin_run(trainer: Trainer, config: Config, saved: Saved | None, output_dir: Path) -> None:
    """Begin to write: the folds, the log and the configuration."""
    data = config.data
    if saved and saved.instead_of:  # it is damaged, and would replace the undamaged save at the next one
        saved.instead_of.unlink(missing_ok=True)
    if data.folds:
        keep_folds(
            data.dataset,
            folds=data.folds,
            preprocessing=preprocessing(config),
            root_path=data.root_path,
            list_dir=data.list_dir,
            suffix=data.label_suffix,
        )
    utils.log_to(output_dir / "log.txt")
    if saved:
        trainer.bring_best(saved.path.parent)
    text = config_text(config, utils.environment(trainer.ranks.device))
    utils.write_text(output_dir / "config.yaml", text)
    millions = sum(p.numel() for p in trainer.network.parameters()) / 1e6
    processes = f" in {trainer.ranks.world} processes" if trainer.ranks.world > 1 else ""
    what = f"{config.model.type} on {data.dataset}: {trainer.loader.sampler.length} slices, {millions:.1f} M parameters"
    _log.info("%s, first rate %g, %s%s", what, trainer.schedule.base_lr, trainer.ranks.device, processes)


if __name__ == "__main__":
    sys.exit(main())
