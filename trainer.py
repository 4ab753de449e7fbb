"""The training loop: objects in, a trained network and a record of the run out. It knows no dataset and no network."""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from selfreg import FeatureTap
from utils import generator_states, restore_generators, save_checkpoint, whole_or_absent

_log = logging.getLogger(__name__)

_SIGNAL_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}
_MAX_BAD_STEPS = 3


class Diverged(RuntimeError):
    """The loss, the gradient or the weights are not finite."""


@dataclass(frozen=True)
class Schedule:
    """How long to train and at what rate (SPEC section 4).

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


@dataclass(frozen=True)
class Options:
    """What the loop does beside its steps; see configs/defaults.py, TRAIN, for each."""

    autocast: torch.dtype | None = None  # of the forward pass; None: as the weights are
    accumulation_steps: int = 1
    clip_grad: float = 0.0
    val_freq: int = 10
    save_freq: int = 0
    save_seconds: float = 60.0
    log_freq: int = 20
    image_freq: int = 200


class Trainer:
    """Train a network and keep the record of the run in `output_dir`.

    Args:
        network: on its device already; maps images to logits.
        criterion: called as (logits, label, features or None) -> terms by name, `loss` among them; its
            `needs_features` says whether the network is read by a `FeatureTap`.
        optimizer: over the network's parameters.
        loader: batches with `image`, `label` on the device, and `names`; its sampler takes `epoch` and `start`.
        schedule: length and rate.
        validate: network -> scores by name, `dice` among them, which chooses best.pth; None: the last is the best.
        writer: a TensorBoard writer, or None; may be set later.
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
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
        writer: Any = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.network, self.criterion, self.optimizer, self.loader = network, criterion, optimizer, loader
        self.schedule, self.output_dir, self.device = schedule, output_dir, device
        self.options, self.validate, self.writer = options or Options(), validate, writer
        self.config = config or {}
        self.tap = FeatureTap(network) if criterion.needs_features else None
        self.epoch, self.batch_in_epoch, self.step = 0, 0, 0
        self.best = -math.inf
        self.bad_steps = 0
        self._signal = 0
        self._saved_at = time.monotonic()
        self._set_lr(schedule.lr_after(-1))

    def fit(self) -> dict[str, Any]:
        """Train to the end of the schedule; returns the last epoch's mean terms and the best validation score.

        Raises:
            Diverged: loss or gradient were not finite three times in a row, or at the end; no such step was applied.
            SystemExit: 130 or 143 after Ctrl-C or SIGTERM, once last.pth is saved.
        """
        means: dict[str, float] = {}
        self._forget_later_metrics()
        in_main_thread = threading.current_thread() is threading.main_thread()
        handlers = {n: signal.signal(n, self._on_signal) for n in _SIGNAL_EXIT} if in_main_thread else {}
        try:
            while not self._done():
                means = self._train_epoch()
                self.epoch, self.batch_in_epoch = self.epoch + 1, 0
                self._end_epoch(means)
                self._stop_where_signalled()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.bad_steps:
            self._diverged()
        for name, save in (("best.pth", self._save_weights), ("last.pth", lambda name: self._save_last())):
            if not (self.output_dir / name).exists():  # a finished run, resumed into another folder
                save(name)
        return {**means, "best_dice": self.best if math.isfinite(self.best) else None}

    def _out_of_steps(self) -> bool:
        return self.step >= self.schedule.total_steps

    def _done(self) -> bool:
        # An epoch that was interrupted on its last batch still has its end to come; steps that were left out as
        # not finite do not add epochs.
        return not self.batch_in_epoch and (self.epoch >= self.schedule.epochs or self._out_of_steps())

    def _stop_where_signalled(self) -> None:
        if self._signal:
            self._save_last()
            _log.info("stopped by signal %d after step %d; go on with --resume", self._signal, self.step)
            raise SystemExit(_SIGNAL_EXIT[self._signal])

    def _train_epoch(self) -> dict[str, float]:
        """One epoch, or the rest of it; returns the mean of every term."""
        self.network.train()
        self.loader.sampler.epoch = self.epoch
        self.loader.sampler.start = self.batch_in_epoch * self.loader.batch_size
        bar = tqdm(
            self.loader,
            desc=f"epoch {self.epoch + 1}/{self.schedule.epochs}",
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        sums: dict[str, float] = {}
        counted = 0
        for batch in bar:
            terms = self._train_batch(batch)
            if terms is not None:
                counted += 1
                sums = {name: sums.get(name, 0.0) + value for name, value in terms.items()}
                bar.set_postfix({name: f"{value:.3f}" for name, value in terms.items()})
            self._stop_where_signalled()
            if self._out_of_steps():
                break
        return {name: value / counted for name, value in sums.items()}

    def _train_batch(self, batch: Any) -> dict[str, float] | None:
        """One batch, and the optimiser's step where it completes one; returns its terms, or None if not finite."""
        logits, terms = self._forward(batch.image, batch.label)
        (terms["loss"] / self.options.accumulation_steps).backward()
        # Read after the backward pass has been handed over, and in one piece: a GPU waits for nothing.
        values = dict(zip(terms, torch.stack([value.detach() for value in terms.values()]).tolist(), strict=True))
        self.batch_in_epoch += 1
        if not math.isfinite(values["loss"]):
            self._skip(batch.names, f"loss is ({values})")
            return None
        last_of_epoch = self.batch_in_epoch == math.ceil(self.loader.sampler.length / self.loader.batch_size)
        if self.batch_in_epoch % self.options.accumulation_steps == 0 or last_of_epoch:
            if not self._optimise():
                self._skip(batch.names, "gradient is")
                return None
            self._record(values, batch, logits.detach())
            self._set_lr(self.schedule.lr_after(self.step - 1))
        return values

    def _forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        dtype = self.options.autocast
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            logits, features = self.tap(image) if self.tap else (self.network(image), None)
        return logits, self.criterion(logits, label, features)

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
        _log.warning("step %d left out, its %s not finite: slices %s", self.step, what, ", ".join(names))
        if self.bad_steps >= _MAX_BAD_STEPS:
            self._diverged()

    def _diverged(self) -> None:
        path = self.output_dir / "last.pth"
        kept = f"{path} is from before" if path.exists() else "nothing was saved yet"
        raise Diverged(
            f"loss or gradient not finite {self.bad_steps} times in a row, {kept}; "
            "lower --base_lr or the weight of the regulariser (see log.txt)"
        )

    def _record(self, values: dict[str, float], batch: Any, logits: Tensor) -> None:
        """Log step `self.step`, which has just been taken."""
        lr = self.optimizer.param_groups[0]["lr"]
        if self.step % self.options.log_freq == 0 or self.step in (1, self.schedule.total_steps):
            self._write_metrics({"step": self.step, "epoch": self.epoch, "lr": lr, **values})
            if self.writer:
                self.writer.add_scalar("train/lr", lr, self.step)
                for name, value in values.items():
                    self.writer.add_scalar(f"train/{name}", value, self.step)
        if self.writer and (self.step % self.options.image_freq == 0 or self.step == 1):
            image, label, classes = batch.image, batch.label, max(1, logits.shape[1] - 1)
            # The slice with most classes; many hold nothing but background.
            shown_index = max(range(len(label)), key=lambda i: len(label[i].unique()))
            shown = image[shown_index, :1].float()
            low, high = shown.min(), shown.max()
            self.writer.add_image(
                "train/image", ((shown - low) / (high - low).clamp_min(1e-6)).cpu().numpy(), self.step
            )
            self.writer.add_image(
                "train/prediction", (logits[shown_index].argmax(0, keepdim=True) / classes).cpu().numpy(), self.step
            )
            self.writer.add_image("train/truth", (label[shown_index, None] / classes).cpu().numpy(), self.step)

    def _end_epoch(self, means: dict[str, float]) -> None:
        """Validate where it is time to, and save."""
        if not all(torch.isfinite(p).all() for p in self.network.parameters()):
            self.bad_steps = max(1, self.bad_steps)
            self._diverged()
        last = self._done()
        text = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        _log.info("epoch %d/%d  step %d  %s", self.epoch, self.schedule.epochs, self.step, text)
        if self.validate and (self.epoch % self.options.val_freq == 0 or last):
            scores = {name.replace(" ", "_"): value for name, value in self.validate(self.network).items()}
            self._write_metrics({"step": self.step, "epoch": self.epoch, **{f"val_{k}": v for k, v in scores.items()}})
            if self.writer:
                for name, value in scores.items():
                    self.writer.add_scalar(f"val/{name}", value, self.step)
            better = scores["dice"] > self.best
            _log.info(
                "epoch %d  validation Dice %.4f%s", self.epoch, scores["dice"], ", the best so far" if better else ""
            )
            if better:
                self.best = scores["dice"]
                self._save_weights("best.pth")
        if last and not self.validate:
            self._save_weights("best.pth")
        if self.options.save_freq and self.epoch % self.options.save_freq == 0:
            self._save_weights(f"epoch_{self.epoch}.pth")
        if last or time.monotonic() - self._saved_at >= self.options.save_seconds:
            self._save_last()

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _write_metrics(self, row: dict[str, Any]) -> None:
        with open(self.output_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _save_weights(self, name: str) -> None:
        save_checkpoint(self.network.state_dict(), self.output_dir / name)

    def _save_last(self) -> None:
        """Write all that resuming needs, as plain data."""
        save_checkpoint(
            {
                "model": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "gradients": [p.grad for p in self.network.parameters()],  # of an accumulation under way
                "epoch": self.epoch,
                "batch_in_epoch": self.batch_in_epoch,
                "step": self.step,
                "best": self.best,
                "slices": self.loader.sampler.length,
                "generators": generator_states(),
                "config": self.config,
            },
            self.output_dir / "last.pth",
        )
        self._saved_at = time.monotonic()

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what `last.pth` holds.

        Raises:
            ValueError: it is of another network, optimiser or training set, or is no such file.
        """
        try:
            if state["slices"] != self.loader.sampler.length:
                raise ValueError(f"it trained on {state['slices']} slices, here are {self.loader.sampler.length}")
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for parameter, gradient in zip(self.network.parameters(), state["gradients"], strict=True):
                parameter.grad = None if gradient is None else gradient.to(self.device)
            self.epoch, self.batch_in_epoch, self.step = (int(state[k]) for k in ("epoch", "batch_in_epoch", "step"))
            self.best = float(state["best"])
            restore_generators(state["generators"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            why = f"it holds no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise ValueError(
                f"--resume: the checkpoint does not belong to this run ({why}); "
                "expected a last.pth made with the same configuration"
            ) from error
        self._set_lr(self.schedule.lr_after(self.step - 1))
        _log.info("resumed at epoch %d, step %d", self.epoch, self.step)

    def _forget_later_metrics(self) -> None:
        """Drop lines of metrics.jsonl from after this step: of a killed run, to be made again, or of an older run."""
        path = self.output_dir / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            kept = "".join(line for line in lines if _step_of(line) <= self.step) if self.step else ""
            whole_or_absent(path, lambda temporary: temporary.write_text(kept, encoding="utf-8"))

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signal = number


def _step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; of one that a kill cut off, infinite."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
