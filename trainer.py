"""The training loop: objects in, a trained network and a record of the run out. It knows no dataset and no network."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import LAST, save_checkpoint, save_last
from engine.distributed import Ranks
from engine.logger import MetricLogger
from engine.state import check_state
from selfreg import Features, FeatureTap
from utils import first_line, generator_states, restore_generators, sum_heads

_log = logging.getLogger(__name__)

_SIGNAL_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}
_MAX_BAD_STEPS = 3
# What a state that another program or configuration wrote can do to those that take it up.
_OF_ANOTHER_RUN = (KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)


class Diverged(RuntimeError):
    """The loss, the gradient or the weights are not finite."""


@dataclass(frozen=True)
class Options:
    """What the loop does beside its steps; see configs/defaults.py, TRAIN and LOSS, for each."""

    autocast: torch.dtype | None = None  # of the forward pass; None: as the weights are
    accumulation_steps: int = 1
    clip_grad: float = 0.0
    val_freq: int = 10
    save_freq: int = 0
    save_seconds: float = 60.0
    log_freq: int = 20
    image_freq: int = 200
    gradient_factor: float = 0.0
    gradient_freq: int = 200


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
        """N, in optimiser steps."""
        steps = self.epochs * self.steps_per_epoch
        return min(steps, self.max_steps) if self.max_steps else steps

    def lr_after(self, step: int) -> float:
        """The rate to set after optimiser step `step`; -1 gives the rate of the first one."""
        if step + 1 < self.warmup_steps:
            return self.base_lr * (step + 2) / (self.warmup_steps + 1)
        return self.base_lr * max(0.0, 1 - max(step, 0) / self.total_steps) ** self.power


class Trainer:
    """Train a network and keep the record of the run in `output_dir`.

    Args:
        network: on its device already; maps images to logits, or to a tuple of several heads'.
        criterion: called as (logits, label, features or None, epochs trained) -> terms by name, `loss` among them; its
            `needs_features` says whether the network is read by a `FeatureTap`, and its `gradient_norms` what each
            part adds to the gradient, `segmentation` among them.
        optimizer: over the network's parameters.
        loader: batches with `image`, `label` on the device, and `names`; its sampler takes `epoch` and `start`, and
            knows its `length` and how many batches there are `per_epoch`.
        schedule: length and rate.
        validate: (network, progress) -> scores by name, `dice` among them, which chooses best.pth; `progress` wraps
            its iterator over the cases. None: the last is the best.
        config: of the run, to be kept in last.pth.
        ranks: the processes that train together, each with its part of every batch; the first writes.
    """

    def __init__(
        self,
        network: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: Any,
        schedule: Schedule,
        output_dir: Path,
        device: torch.device,
        *,
        options: Options | None = None,
        validate: Callable[..., dict[str, float]] | None = None,
        config: dict[str, Any] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.network, self.criterion, self.optimizer, self.loader = network, criterion, optimizer, loader
        self.schedule, self.output_dir, self.device = schedule, output_dir, device
        self.options, self.validate, self.config = options or Options(), validate, config or {}
        self.ranks = ranks or Ranks(device=device)
        self.record = MetricLogger(
            output_dir if self.ranks.first else None,
            schedule.total_steps,
            log_freq=self.options.log_freq,
            image_freq=self.options.image_freq,
        )
        self._forward_pass = self.ranks.together(
            _ForwardPass(network, criterion.needs_features),
            some_unused=getattr(network, "has_unused_parameters", False),
        )
        self.epoch, self.batch_in_epoch, self.step = 0, 0, 0
        self.best = -math.inf
        self.bad_steps = 0
        self._sums: dict[str, float] = {}  # of the terms of this epoch
        self._summed = 0
        self._metrics_size = 0
        self._signal = 0
        self._to_stop = self._to_save = False  # as all processes agree
        self._saved_at = time.monotonic()
        self._set_lr(schedule.lr_after(-1))

    def fit(self) -> dict[str, Any]:
        """Train to the end of the schedule; returns the last epoch's mean terms and the best validation score.

        Raises:
            Diverged: loss or gradient were not finite three times in a row, or at the end; no such step was applied.
            SystemExit: 130 or 143 after Ctrl-C or SIGTERM, once last.pth is saved.
        """
        means: dict[str, float] = {}
        if self.step:
            _log.info("resumed at epoch %d, step %d", self.epoch, self.step)
        self.record.begin(self.step, self._metrics_size)
        with self._signals_wait():
            while not self._done():
                self._train_epoch()
                means = self._end_epoch()
        if self.bad_steps:
            self._diverged()
        # A finished run, resumed into another folder.
        if self.ranks.any(self.ranks.first and not (self.output_dir / LAST).exists()):
            self._save_last()
        if not (self.output_dir / "best.pth").exists():
            self._save_weights("best.pth")
        return {**means, "best_dice": self.best if math.isfinite(self.best) else None}

    def _out_of_steps(self) -> bool:
        return self.step >= self.schedule.total_steps

    def _done(self) -> bool:
        # An epoch that was interrupted on its last batch still has its end to come; steps that were left out as
        # not finite do not add epochs.
        return not self.batch_in_epoch and (self.epoch >= self.schedule.epochs or self._out_of_steps())

    def _train_epoch(self) -> None:
        """One epoch, or the rest of it."""
        if self._out_of_steps():  # interrupted in the validation after the last step
            return
        self.network.train()
        sampler = self.loader.sampler
        sampler.epoch, sampler.start = self.epoch, self.batch_in_epoch
        epoch = f"epoch {self.epoch + 1}/{self.schedule.epochs}"
        for batch in self.record.watch(self._batches(), epoch, self.batch_in_epoch, sampler.per_epoch):
            terms = self._train_batch(batch)
            if terms is not None:
                self._sums = {name: self._sums.get(name, 0.0) + value for name, value in terms.items()}
                self._summed += 1
            self.record.progress(self.step, epoch, self._means())
            if self._to_stop:
                self._stop()
            # What leads into a divergence is not a save to go back to.
            if self._to_save and not self.bad_steps:
                self._save_last()
            if self._out_of_steps():
                break

    def _batches(self) -> Iterator[Any]:
        """The batches of the epoch; a file that cannot be read ends the run, but after a save."""
        try:
            yield from self.loader
        except Exception:
            if self.ranks.world == 1 and self.step:  # a save of several needs all, and the others know of nothing
                self._save_last()
            raise

    def _train_batch(self, batch: Any) -> dict[str, float] | None:
        """One batch, and the optimiser's step where it completes one; returns its terms, or None if not finite."""
        logits, features = self._forward(batch.image)
        epoch = self.epoch + self.batch_in_epoch / self.loader.sampler.per_epoch
        terms = self.criterion(logits, batch.label, features, epoch)
        if features and self._is_time_to_weigh():
            self._weigh(logits, batch.label, features, epoch)
        (terms["loss"] / self.options.accumulation_steps).backward()
        values = self._agree(terms)
        self.batch_in_epoch += 1
        if not math.isfinite(values["loss"]):
            self._skip(batch.names, f"loss is ({values})")
            return None
        last_of_epoch = self.batch_in_epoch == self.loader.sampler.per_epoch
        if self.batch_in_epoch % self.options.accumulation_steps == 0 or last_of_epoch:
            if not self._optimise():
                self._skip(batch.names, "gradient is")
                return None
            self.record.step(self.step, self.epoch, self.optimizer.param_groups[0]["lr"], values)
            self.record.panels(self.step, batch.image, batch.label, sum_heads(logits).detach())
            self._set_lr(self.schedule.lr_after(self.step - 1))
        return values

    def _forward(self, image: Tensor) -> tuple[Any, Features | None]:
        dtype = self.options.autocast
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            return self._forward_pass(image)

    def _is_time_to_weigh(self) -> bool:
        first_of_step = self.batch_in_epoch % self.options.accumulation_steps == 0
        return self.options.gradient_factor > 0 and first_of_step and self.step % self.options.gradient_freq == 0

    def _weigh(self, logits: Any, label: Tensor, features: Features, epoch: float) -> None:
        """MetricLogger what each part of the loss adds to the gradient, as a mean over all processes."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        norms = self.criterion.gradient_norms(logits, label, features, parameters, epoch)
        together = (self.ranks.all_reduce(torch.tensor(list(norms.values()))) / self.ranks.world).tolist()
        means = dict(zip(norms, together, strict=True))
        self.record.gradients(self.step + 1, self.epoch, means, self.options.gradient_factor)

    def _agree(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """The terms of the whole batch; and let all processes know whether one is to stop, and whether to save.

        Read after the backward pass has been handed over, and in one piece: a GPU waits for nothing.
        """
        values = torch.stack([value.detach() for value in terms.values()])
        wishes = [float(bool(self._signal)), float(self.ranks.first and self._is_time_to_save())]
        if self.ranks.world > 1:
            together = self.ranks.all_reduce(torch.cat([values, values.new_tensor(wishes)]))
            values, wishes = together[:-2] / self.ranks.world, together[-2:].tolist()
        self._to_stop, self._to_save = (wish > 0 for wish in wishes)
        return dict(zip(terms, values.tolist(), strict=True))

    def _optimise(self) -> bool:
        """Take the step, unless its gradient is not finite; returns whether it was taken."""
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if not torch.isfinite(norm):
            return False
        if self.options.clip_grad:
            nn.utils.clip_grads_with_norm_(parameters, self.options.clip_grad, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.bad_steps = 0
        self.step += 1
        return True

    def _skip(self, names: list[str], what: str) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.bad_steps += 1
        names = [name for part in self.ranks.gather(names) for name in part]
        _log.warning("step %d left out, its %s not finite: slices %s", self.step, what, ", ".join(names))
        if self.bad_steps >= _MAX_BAD_STEPS:
            self._diverged()

    def _diverged(self) -> None:
        path = self.output_dir / LAST
        kept = f"{path} is from before" if path.exists() else "nothing was saved yet"
        raise Diverged(
            f"loss or gradient not finite {self.bad_steps} times in a row, {kept}; "
            "lower --base_lr or the weight of the regulariser (see log.txt)"
        )

    def _check_weights(self) -> None:
        """Never save, nor validate, weights that are not finite."""
        if not all(torch.isfinite(p).all() for p in self.network.parameters()):
            self.bad_steps = max(1, self.bad_steps)
            self._diverged()

    def _end_epoch(self) -> dict[str, float]:
        """Validate where it is time to, and save; returns the mean terms of the epoch."""
        self._check_weights()
        means, epoch = self._means(), self.epoch + 1
        last = epoch >= self.schedule.epochs or self._out_of_steps()
        words = self.record.described(self.step, means)
        _log.info("epoch %d/%d  step %d  %s", epoch, self.schedule.epochs, self.step, words)
        if self.validate and (epoch % self.options.val_freq == 0 or last):
            self._validate(epoch)
        elif last and not self.validate:
            self._save_weights("best.pth")
        if self.options.save_freq and epoch % self.options.save_freq == 0:
            self._save_weights(f"epoch_{epoch}.pth")
        self.epoch, self.batch_in_epoch = epoch, 0
        self._sums, self._summed = {}, 0
        if self.ranks.any(bool(self._signal)):
            self._stop()
        if self.ranks.any((last or self._is_time_to_save()) and not self.bad_steps):
            self._save_last()
        return means

    def _means(self) -> dict[str, float]:
        return {name: value / self._summed for name, value in self._sums.items()}

    def _validate(self, epoch: int) -> None:
        scores = self.validate(self.network, self._until_signalled)
        self.record.scores(self.step, epoch, scores)
        better = scores["dice"] > self.best
        _log.info("epoch %d  validation Dice %.4f%s", epoch, scores["dice"], ", the best so far" if better else "")
        if better:
            self.best = scores["dice"]
            self._save_weights("best.pth")

    def _until_signalled(self, items: Iterable[Any]) -> Iterator[Any]:
        """The cases of a validation; one that is interrupted is made again after resuming."""
        for item in self.record.watch(items, "validation"):
            yield item
            if self._signal and self.ranks.world == 1:  # several stop together, at the end of the epoch
                self._stop()

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _save_weights(self, name: str) -> None:
        if self.ranks.first:
            save_checkpoint(self.network.state_dict(), self.output_dir / name)

    def _is_time_to_save(self) -> bool:
        return time.monotonic() - self._saved_at >= self.options.save_seconds

    def _save_last(self) -> None:
        """Write all that resuming needs, as plain data; every process gives its generators."""
        self._check_weights()
        generators = self.ranks.gather(generator_states(self.device))
        if self.ranks.first:
            save_last(self._state(generators), self.output_dir)
        self.ranks.barrier()  # whoever ends first has the others killed, and the save is the first's
        self._saved_at = time.monotonic()

    def _state(self, generators: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradients": [p.grad for p in self.network.parameters()],  # of an accumulation under way
            "epoch": self.epoch,
            "batch_in_epoch": self.batch_in_epoch,
            "step": self.step,
            "best": self.best,
            "bad_steps": self.bad_steps,
            "sums": self._sums,
            "summed": self._summed,
            "metrics_size": self.record.size(),
            "slices": self.loader.sampler.length,
            "generators": generators,
            "config": self.config,
        }

    def resume(self, state: dict[str, Any], source: Path) -> None:
        """Go on from `state`, which is what the `last.pth` in `source` holds.

        Raises:
            ValueError: it is of another network, optimiser, training set or number of processes, or is no such file.
        """
        try:
            self._restore(state)
        except _OF_ANOTHER_RUN as error:
            why = f"it holds no {error}" if isinstance(error, KeyError) else first_line(error)
            raise ValueError(
                f"{source}: the checkpoint does not belong to this run ({why}); "
                "expected a last.pth made with the same configuration (--resume)"
            ) from error
        self._set_lr(self.schedule.lr_after(self.step - 1))

    def _restore(self, state: dict[str, Any]) -> None:
        slices, processes = state["slices"], len(state["generators"])
        if slices != self.loader.sampler.length:
            raise ValueError(f"it trained on {slices} slices, here are {self.loader.sampler.length}")
        if processes != self.ranks.world:
            raise ValueError(f"{processes} processes trained it, here are {self.ranks.world}")
        check_state(state, self.network, self.optimizer, self.loader.sampler.per_epoch)
        self.network.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]  # a file's own would be taken as they are
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        for parameter, gradient in zip(self.network.parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(self.device)
        self.epoch, self.batch_in_epoch, self.step = (state[k] for k in ("epoch", "batch_in_epoch", "step"))
        self.best, self.bad_steps = state["best"], state["bad_steps"]
        self._sums, self._summed = dict(state["sums"]), state["summed"]
        self._metrics_size = state["metrics_size"]
        restore_generators(state["generators"][self.ranks.rank], self.device)

    @contextmanager
    def _signals_wait(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C wait until the batch at hand is done."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        handlers = {n: signal.signal(n, self._on_signal) for n in _SIGNAL_EXIT} if in_main_thread else {}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signal = number

    def _stop(self) -> None:
        """Save and end; a process that has no signal of its own ends with another's."""
        number = self._signal or signal.SIGTERM
        self._save_last()
        _log.info("stopped by signal %d after step %d; go on with --resume", number, self.step)
        raise SystemExit(_SIGNAL_EXIT[number])


class _ForwardPass(nn.Module):
    """A network and, where they are wanted, the features of its pass: what several processes run together."""

    def __init__(self, network: nn.Module, with_features: bool) -> None:
        super().__init__()
        self.network = network
        self.tap = FeatureTap(network) if with_features else None

    def forward(self, image: Tensor) -> tuple[Tensor, Features | None]:
        return self.tap(image) if self.tap else (self.network(image), None)
