"""The training loop: network, criterion, optimizer and loader in; weights, metrics and resumable saves out."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from engine.checkpoint import LAST, PREVIOUS, file_digest, save_checkpoint
from engine.distributed import Ranks
from engine.logger import MetricLogger
from engine.resume import Progress, State, generator_states, pack_state, restore_state, trained
from engine.signals import StopSignals
from selfreg import Features, FeatureTap
from utils import atomic_write, sum_heads

_log = logging.getLogger(__name__)

_MAX_BAD_STEPS = 3
Logits = Tensor | Sequence[Tensor]
Terms = Mapping[str, Tensor]


class Batch(Protocol):
    """`image` (B, C, H, W) and `label` (B, H, W) on the device, and the names of the slices."""

    @property
    def image(self) -> Tensor: ...
    @property
    def label(self) -> Tensor: ...
    @property
    def names(self) -> list[str]: ...


class Sampler(Protocol):
    """The order of an epoch: of `length` slices in `per_epoch` batches, those from `start` on."""

    epoch: int
    start: int
    length: int

    @property
    def per_epoch(self) -> int: ...


class Loader(Protocol):
    """The batches of an epoch, in the order of its sampler."""

    @property
    def sampler(self) -> Sampler: ...
    def __iter__(self) -> Iterator[Batch]: ...


class Loss(Protocol):
    """Logits, labels, features and the epoch to terms by name, `loss` among them."""

    @property
    def needs_features(self) -> bool: ...
    def drawer(self, features: Features | None) -> Callable[[], Tensor] | None: ...
    def __call__(
        self, logits: Logits, label: Tensor, features: Features | None, epoch: float, draws: Tensor | None = None
    ) -> Terms: ...


Monitor = Callable[[int, float, Logits, Tensor, Features], None]
Validation = Callable[[nn.Module, Callable[[Iterable[int]], Iterator[int]]], Mapping[str, float]]


@dataclass(frozen=True)
class Schedule:
    """How long to train and at what rate.

    The rate after step n, counted from 0, is `base_lr * (1 - n/N)^power`; it is set after the step, so the first two
    steps both run at `base_lr`. `warmup_steps` first raises it linearly; `power` 0 keeps it constant.
    """

    epochs: int
    steps_per_epoch: int
    base_lr: float
    power: float = 0.9
    max_steps: int = 0
    warmup_steps: int = 0

    @property
    def total_steps(self) -> int:
        """N, in optimizer steps."""
        steps = self.epochs * self.steps_per_epoch
        return min(steps, self.max_steps) if self.max_steps else steps

    def lr_after(self, step: int) -> float:
        """The rate to set after optimizer step `step`; -1 gives the rate of the first one."""
        if step + 1 < self.warmup_steps:
            return self.base_lr * (step + 2) / (self.warmup_steps + 1)
        return self.base_lr * max(0.0, 1 - max(step, 0) / self.total_steps) ** self.power

    def set_lr(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Set the rate of an optimizer that has taken so many steps."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr_after(steps - 1)


@dataclass(frozen=True)
class Options:
    """What the loop does beside its steps; see `TrainConfig` in configs/schema.py."""

    autocast: torch.dtype | None = None  # of the forward pass; None: the dtype of the weights
    accumulation_steps: int = 1
    clip_grad: float = 0.0
    val_freq: int = 10
    save_freq: int = 0
    save_seconds: float = 60.0
    compile: bool = False  # forward pass and loss, as one graph


class Diverged(RuntimeError):
    """Loss, gradient or weights are not finite; `last` is the path of the run's last.pth."""

    def __init__(self, at: Progress, last: Path) -> None:
        kept = f"{last} is from before" if last.exists() else "nothing was saved yet"
        super().__init__(
            f"loss or gradient not finite {max(1, at.bad_steps)} times in a row, {kept}; "
            "lower --base_lr or the weight of the regularizer (see log.txt)"
        )


def skip_step(at: Progress, what: str, names: Iterable[str], last: Path) -> None:
    """The policy on a loss or gradient that is not finite: its step is skipped, and the third in a row ends the run."""
    at.bad_steps += 1
    at.accumulated = 0
    _log.warning("step %d skipped, its %s not finite: slices %s", at.step, what, ", ".join(names))
    if at.bad_steps >= _MAX_BAD_STEPS:
        raise Diverged(at, last)


def check_weights(network: nn.Module, at: Progress, last: Path) -> None:
    """Weights that are not finite are neither saved nor validated."""
    if not torch.stack([torch.isfinite(p).all() for p in network.parameters()]).all():  # a GPU is waited for once
        raise Diverged(at, last)


@dataclass(eq=False)
class Trainer:
    """Train a network; weights, saves and metrics go to `output_dir`.

    `validate` maps (network, progress) to scores by name, of which `dice` selects best.pth; `progress` wraps the
    iterator over the cases. `monitor` is called before the first backward pass of a step, as (step, epochs trained,
    logits, label, features).
    """

    network: nn.Module  # on its device already; maps images to logits, or to a tuple of several heads'
    criterion: Loss
    optimizer: torch.optim.Optimizer
    loader: Loader
    schedule: Schedule
    output_dir: Path
    logger: MetricLogger
    options: Options = Options()
    validate: Validation | None = None  # the last weights are the best
    monitor: Monitor | None = None
    extra: nn.Module | None = None  # in training alone: (image, logits, features) to logits and features
    config: Mapping[str, object] = field(default_factory=dict)  # of the run, kept in last.pth
    data: Sequence[str] = ()  # the same of its data, a line for each slice and validation case
    ranks: Ranks = Ranks()  # train together, each with its part of every batch; the first writes

    def __post_init__(self) -> None:
        # Of several processes, DDP's part of a step is no graph; their networks are compiled by themselves.
        self._compiled = torch.compile(self._forward) if self.options.compile and self.ranks.world == 1 else None
        self._draw: Callable[[], Tensor] | None = None
        permanent = self._compiled is not None
        tapped = _Tapped(self.network, self.criterion.needs_features, self.options.autocast, self.extra, permanent)
        self.model = self.ranks.wrap(
            tapped,
            find_unused=getattr(self.network, "has_unused_parameters", False),
            static=self.monitor is None,  # which takes backward passes of its own
        )
        self.at, self.signals = Progress(), StopSignals()
        self.last, self.best = self.output_dir / LAST, self.output_dir / "best.pth"
        self._saved_at = time.monotonic()
        self._trained = trained(self.optimizer)
        self.schedule.set_lr(self.optimizer, 0)

    def fit(self) -> dict[str, float | None]:
        """Train to the end of the schedule; returns the last epoch's mean terms and the best validation score.

        Raises:
            Diverged: loss or gradient were not finite three times in a row, or at the end; no such step was taken.
            SystemExit: 130 or 143 after SIGINT or SIGTERM, once last.pth is saved.
            OSError: nothing can be written, or TensorBoard's events cannot; then last.pth is saved.
        """
        means: dict[str, float] = {}
        if self.at.step:
            _log.info("resumed at epoch %d, step %d", self.at.epoch, self.at.step)
        self.logger.begin(self.at.step, self.at.metrics_size)
        with self.signals.caught():
            while not self._finished():
                self.network.train()
                for batch in self._batches():
                    epochs = self.at.epoch + self.at.batch_in_epoch / self.loader.sampler.per_epoch
                    logits, features, terms = self._pass(batch, epochs)
                    if self.monitor and features and not self.at.accumulated:
                        self.monitor(self.at.step, epochs, logits, batch.label, features)
                    (terms["loss"] / self.options.accumulation_steps).backward()
                    values, (stop, save) = self.ranks.mean_and_any(
                        terms, self._asked_to_stop(), self.ranks.first and self._time_to_save()
                    )
                    self.at.batch_in_epoch += 1
                    self.at.accumulated += 1
                    if self._accept(values, batch.names):
                        self._log_batch(batch, logits, values)
                    if stop:
                        self._stop()
                    if save and not self.at.bad_steps:  # never a save of what leads into a divergence
                        self._save_last()
                means = self._end_epoch()
        if self.at.bad_steps:
            raise Diverged(self.at, self.last)
        if self.ranks.any(self.ranks.first and not self.last.exists()):
            self._save_last()  # of a finished run that was resumed into another folder
        if not (self.validate and (self.best.exists() or math.isfinite(self.at.best))):
            self._save_weights(self.best)
        return {**means, "best_dice": self.at.best if math.isfinite(self.at.best) else None}

    def _pass(self, batch: Batch, epochs: float) -> tuple[Logits, Features | None, Terms]:
        """A forward pass. A graph needs random channels drawn before, so that the first batch is not compiled."""
        if self._compiled and self._draw:
            return self._compiled(batch.image, batch.label, epochs, self._draw())
        logits, features, terms = self._forward(batch.image, batch.label, epochs)
        if self._compiled:
            self._draw = self.criterion.drawer(features) or (lambda: torch.empty(0))
        return logits, features, terms

    def _forward(
        self, image: Tensor, label: Tensor, epochs: float, draws: Tensor | None = None
    ) -> tuple[Logits, Features | None, Terms]:
        logits, features = self.model(image)
        drawn = {} if draws is None else {"draws": draws}
        return logits, features, self.criterion(logits, label, features, epochs, **drawn)

    def _out_of_steps(self) -> bool:
        return self.at.step >= self.schedule.total_steps

    def _finished(self) -> bool:
        # An epoch that was interrupted on its last batch is yet to be validated; skipped steps add no epochs.
        return not self.at.batch_in_epoch and (self.at.epoch >= self.schedule.epochs or self._out_of_steps())

    def _batches(self) -> Iterator[Batch]:
        """The rest of the epoch; a file that cannot be read ends the run, but after a save."""
        sampler = self.loader.sampler
        sampler.epoch, sampler.start = self.at.epoch, self.at.batch_in_epoch
        title = f"epoch {self.at.epoch + 1}/{self.schedule.epochs}"
        batches = self.logger.watch(self.loader, title, self.at.batch_in_epoch, sampler.per_epoch)
        try:
            while not self._out_of_steps() and (batch := next(batches, None)):
                yield batch
        except Exception:
            if self.ranks.world == 1 and self.at.step:  # a save of several processes needs all of them
                self._save_last()
            raise

    def _accept(self, values: Mapping[str, float], names: list[str]) -> bool:
        """Take the step where the batch completes one; False where a value is not finite and the step is skipped."""
        count, batch = self.options.accumulation_steps, self.at.batch_in_epoch
        completes = batch % count == 0 or batch == self.loader.sampler.per_epoch
        if not math.isfinite(values["loss"]):
            what = f"loss is ({values})"
        elif completes and not self._step():
            what = "gradient is"
        else:
            return True
        self.optimizer.zero_grad()
        skip_step(self.at, what, chain.from_iterable(self.ranks.gather(names)), self.last)
        return False

    def _step(self) -> bool:
        """Take a step by the gradients that were added up; False where they are not finite."""
        gradients = [p.grad for p in self._trained if p.grad is not None]
        missing = self.options.accumulation_steps / self.at.accumulated
        if missing > 1:  # at the end of an epoch, or after a skipped batch: the mean all the same
            for gradient in gradients:
                gradient.mul_(missing)
        norm = nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            return False
        if self.options.clip_grad:
            nn.utils.clip_grads_with_norm_(self._trained, self.options.clip_grad, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.at.bad_steps = self.at.accumulated = 0
        self.at.step += 1
        return True

    def _log_batch(self, batch: Batch, logits: Logits, values: Mapping[str, float]) -> None:
        self.at.sums = {name: self.at.sums.get(name, 0.0) + value for name, value in values.items()}
        self.at.summed += 1
        if not self.at.accumulated:  # a step was taken
            self.logger.log_step(self.at.step, self.at.epoch, self.optimizer.param_groups[0]["lr"], values)
            self.logger.log_images(self.at.step, batch.image, batch.label, sum_heads(logits).detach())
            self.schedule.set_lr(self.optimizer, self.at.step)
        self.logger.progress(self.at.step, self.at.means())

    def _end_epoch(self) -> dict[str, float]:
        """Validate where it is due, and save; returns the mean terms of the epoch."""
        check_weights(self.network, self.at, self.last)
        means, epoch = self.at.means(), self.at.epoch + 1
        last = epoch >= self.schedule.epochs or self._out_of_steps()
        described = self.logger.describe(self.at.step, means)
        _log.info("epoch %d/%d  step %d  %s", epoch, self.schedule.epochs, self.at.step, described)
        if self.validate and (epoch % self.options.val_freq == 0 or last):
            scores = self.validate(self.network, self._watch_validation)
            self.logger.log_scores(self.at.step, epoch, scores)
            better = scores["dice"] > self.at.best
            _log.info("epoch %d  validation Dice %.4f%s", epoch, scores["dice"], ", the best so far" if better else "")
            if better:
                self.at.best = scores["dice"]
                self._save_weights(self.best)
                self.at.best_digest = file_digest(self.best) if self.ranks.first else ""
        if self.options.save_freq and epoch % self.options.save_freq == 0:
            self._save_weights(self.output_dir / f"epoch_{epoch}.pth")
        self.at.epoch, self.at.batch_in_epoch = epoch, 0
        self.at.sums, self.at.summed = {}, 0
        if self.ranks.any(self._asked_to_stop()):
            self._stop()
        if self.ranks.any((last or self._time_to_save()) and not self.at.bad_steps):
            self._save_last()
        return means

    def _watch_validation(self, cases: Iterable[int]) -> Iterator[int]:
        """The cases of a validation; one that is interrupted is repeated after resuming."""
        for case in self.logger.watch(cases, "validation"):
            yield case
            if self.signals.received and self.ranks.world == 1:  # several stop together, at the end of the epoch
                self._stop()

    def _asked_to_stop(self) -> bool:
        return self.signals.received > 0 or self.logger.error is not None

    def _time_to_save(self) -> bool:
        return time.monotonic() - self._saved_at >= self.options.save_seconds

    def _save_weights(self, path: Path) -> None:
        if self.ranks.first:
            save_checkpoint(self.network.state_dict(), path)

    def _save_last(self) -> None:
        check_weights(self.network, self.at, self.last)
        generators = self.ranks.gather(generator_states(self.ranks.device))
        if self.ranks.first:
            self.at.metrics_size = self.logger.size()
            state = pack_state(self.at, self.network, self.optimizer, self.extra)
            run = {"slices": "\n".join(self.data), "generators": generators, "config": self.config}
            save_checkpoint(state | run, self.last, keep=self.output_dir / PREVIOUS)
        self.ranks.barrier()  # whoever ends first has the others killed, and the save is the first's
        self._saved_at = time.monotonic()

    def _stop(self) -> None:
        """Save and end the process."""
        self._save_last()
        if self.logger.error:
            raise self.logger.error
        _log.info("stopped by signal %d after step %d; resume with --resume", self.signals.number, self.at.step)
        raise SystemExit(128 + self.signals.number)

    def resume(self, state: State, source: Path) -> None:
        """Restore `state`, the content of the `last.pth` in `source`; see `engine.resume.restore_state`."""
        parts = (self.network, self.optimizer, self.extra)
        self.at = restore_state(state, source, *parts, self.ranks, self.data, self.options.accumulation_steps)
        self.schedule.set_lr(self.optimizer, self.at.step)

    def bring_best(self, folder: Path) -> None:
        """Copy the best weights from the folder of the save that was resumed, unless that is the run's own.

        Where they are gone, that is said, and the best are those of the validations to come.
        """
        if not (self.validate and math.isfinite(self.at.best)):
            return
        theirs = folder / self.best.name
        is_own = folder.resolve() == self.output_dir.resolve()
        if theirs.is_file() and (is_own or self.at.best_digest in ("", file_digest(theirs))):
            if not is_own:
                atomic_write(self.best, lambda partial: shutil.copyfile(theirs, partial))
            return
        _log.warning("%s: is missing, the weights of validation Dice %.4f are lost", theirs, self.at.best)
        if not self._finished():
            self.at.best = -math.inf


class _Tapped(nn.Module):
    """A network and, where they are wanted, the features of its pass: what several processes wrap together."""

    def __init__(
        self,
        network: nn.Module,
        with_features: bool,
        autocast: torch.dtype | None,
        extra: nn.Module | None,
        permanent: bool,
    ) -> None:
        super().__init__()
        self.network, self.autocast, self.extra = network, autocast, extra
        self.tap = FeatureTap(network, permanent=permanent) if with_features or extra else None

    def forward(self, image: Tensor) -> tuple[Logits, Features | None]:
        with torch.autocast(image.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            if self.tap is None:
                return self.network(image), None
            logits, features = self.tap(image)
            return self.extra(image, logits, features) if self.extra else (logits, features)
