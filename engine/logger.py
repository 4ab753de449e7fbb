"""The metrics of a run: metrics.jsonl, TensorBoard, a progress bar on a terminal and lines in a pipe."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from torch import Tensor
from tqdm import tqdm

from utils import no_link

Curve = tuple[list[int], list[float]]  # steps and values
Item = TypeVar("Item")

_log = logging.getLogger(__name__)

_METRICS = "metrics.jsonl"
_EVENTS = "log"  # folder of TensorBoard's events
# What matters most comes first: a narrow terminal cuts off the rest.
_BAR = "{desc}: {percentage:3.0f}%{postfix} |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
_LINE_SECONDS = 30.0  # at least this long from one line of progress to the next, where there is no bar


class MetricLogger:
    """Log one run; without a folder (a process that does not write) nothing happens.

    Args:
        folder: of the run, or None.
        total_steps: of the whole run.
        log_freq: steps between rows of metrics.jsonl.
        image_freq: steps between TensorBoard images.

    `error` is why TensorBoard's events cannot be written, or None; metrics.jsonl is complete all the same.
    """

    def __init__(self, folder: Path | None, total_steps: int, *, log_freq: int = 20, image_freq: int = 200) -> None:
        self.folder, self.total_steps = folder, total_steps
        self.log_freq, self.image_freq = log_freq, image_freq
        # In this thread: that of tensorboardX's SummaryWriter dies on a full disk, and the run waits for it forever.
        self._events: EventsWriter | None = None
        self.error: OSError | None = None
        self._path = folder / _METRICS if folder else None
        self._bar, self._watched = tqdm(disable=True), ""
        self._first_step, self._begun = 0, time.monotonic()
        self._line_at = self._begun

    def begin(self, step: int, size: int) -> None:
        """Start after step `step` with the first `size` bytes of metrics.jsonl: a resumed run writes the rows that
        came after its last save again."""
        self._first_step, self._begun = step, time.monotonic()
        self._line_at = self._begun
        if not self._path:
            return
        kept = self._path.read_bytes()[:size] if self._path.is_file() else b""
        if len(kept) < size:
            _log.warning("%s: rows of steps up to %d are missing, and are not written again", self._path, step)
        with open(self._path, "ab", opener=no_link) as file:
            file.truncate(kept.rfind(b"\n") + 1)
        events = self._path.with_name(_EVENTS)
        events.mkdir(exist_ok=True)
        self._events = EventsWriter(str(events / "events"))
        self._add(step, session_log=SessionLog(status=SessionLog.START))  # TensorBoard drops what came after `step`

    def size(self) -> int:
        """Bytes of metrics.jsonl, all of them on the disk."""
        if not self._path:
            return 0
        with open(self._path, "ab", opener=no_link) as file:
            os.fsync(file.fileno())
            return file.tell()

    def log_step(self, step: int, epoch: int, lr: float, terms: Mapping[str, float]) -> None:
        """Log the terms of an optimizer step, every `log_freq` steps."""
        if step % self.log_freq == 0 or step in (1, self.total_steps):
            self._write(step, epoch, {"lr": lr, **terms}, "train")

    def log_gradients(self, step: int, epoch: int, norms: Mapping[str, float], factor: float) -> None:
        """Log the gradient norm of each part of the loss; warn of one above `factor` times the segmentation's."""
        if not self.folder or not all(map(math.isfinite, norms.values())):
            return
        limit = factor * norms["segmentation"]
        for name, norm in norms.items():
            if name != "segmentation" and norm > limit > 0:
                _log.warning(
                    "step %d: the gradient of %s is %.1f times that of the segmentation loss; expected %g times at "
                    "most (LOSS.GRADIENT_FACTOR): lower its weight, or see docs/stability.md for other distances",
                    *(step, name, norm / norms["segmentation"], factor),
                )
        self._write(step, epoch, norms, "gradient", "grad_")

    def log_scores(self, step: int, epoch: int, scores: Mapping[str, float]) -> None:
        """Log the scores of a validation after `epoch` epochs."""
        self._write(step, epoch, {name.replace(" ", "_"): score for name, score in scores.items()}, "val", "val_")

    def _write(self, step: int, epoch: int, values: Mapping[str, float], group: str, prefix: str = "") -> None:
        """A row of metrics.jsonl, its names with `prefix`, and scalars of TensorBoard in `group`."""
        if self._path:
            row = {"step": step, "epoch": epoch, **{f"{prefix}{name}": value for name, value in values.items()}}
            with open(self._path, "a", encoding="utf-8", opener=no_link) as file:
                file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self._add(step, summary=summary.scalar(f"{group}/{name}", value))

    def _add(self, step: int, **content: Summary | SessionLog) -> None:
        """Add to TensorBoard's events."""
        if self._events and self.folder:
            try:
                self._events.write_event(Event(wall_time=time.time(), step=step, **content))
                self._events.flush()
            except OSError as error:
                self._events, self.error = None, OSError(error.errno, error.strerror, str(self.folder / _EVENTS))

    def log_images(self, step: int, image: Tensor, label: Tensor, logits: Tensor) -> None:
        """Log a slice with its prediction and truth to TensorBoard, every `image_freq` steps.

        Shapes (B, C, H, W), (B, H, W) and (B, K, H, W).
        """
        if not self._events or not (step % self.image_freq == 0 or step == 1):
            return
        # The slice with most classes; many hold nothing but background.
        index, last_class = max(range(len(label)), key=lambda i: len(label[i].unique())), logits.shape[1] - 1
        shown = image[index, :1].float()
        low, high = shown.min(), shown.max()
        for name, panel in (
            ("image", (shown - low) / (high - low).clamp_min(1e-6)),
            ("prediction", logits[index].argmax(0, keepdim=True) / last_class),
            ("truth", label[index, None] / last_class),
        ):
            self._add(step, summary=summary.image(f"train/{name}", panel.cpu().numpy()))

    def watch(self, items: Iterable[Item], what: str, done: int = 0, total: int | None = None) -> Iterator[Item]:
        """The items, with a progress bar where standard error is a terminal."""
        self._watched = what
        self._bar = progress_bar(what, enabled=self.folder is not None)(items, initial=done, total=total)
        return iter(self._bar)

    def progress(self, step: int, terms: Mapping[str, float]) -> None:
        """Show the progress: on the bar, or every half minute in a line."""
        if not self._bar.disable:
            shown = [f"{self.time_left(step)} left", *(f"{name} {value:.3f}" for name, value in terms.items())]
            self._bar.set_postfix_str(", ".join(shown))
        elif self.folder and time.monotonic() - self._line_at >= _LINE_SECONDS:
            self._line_at = time.monotonic()
            _log.info("%s  step %d/%d  %s", self._watched, step, self.total_steps, self.describe(step, terms))

    def describe(self, step: int, terms: Mapping[str, float]) -> str:
        """Terms and time left, as text."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in terms.items())
        return f"{values}  {self.time_left(step)} left" if step < self.total_steps else values

    def time_left(self, step: int) -> str:
        """How long the rest will take at the pace so far, validation and saves included."""
        taken, left = step - self._first_step, self.total_steps - step
        return tqdm.format_interval((time.monotonic() - self._begun) / taken * left) if taken else "?"


def progress_bar(what: str, *, enabled: bool = True) -> Callable[..., tqdm]:
    """A tqdm bar over the iterator it is called with, where standard error is a terminal."""
    return partial(tqdm, desc=what, leave=False, bar_format=_BAR, disable=not (enabled and sys.stderr.isatty()))


def read_curves(run: Path) -> dict[str, Curve]:
    """Every metric that a run logged, by name, over its steps.

    Raises:
        ValueError: the folder has no metrics.jsonl, or a line of it is no row of numbers.
    """
    path = run / _METRICS
    if not path.is_file():
        raise ValueError(f"{run}: has no {_METRICS}; expected the folder of a run that train.py wrote")
    curves: dict[str, Curve] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
            for name, value in row.items():
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(float(value))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            shown = line[:80].decode(errors="replace")
            raise ValueError(f"{path}: line {number} is {shown!r}; expected a row that train.py wrote") from error
    return curves
