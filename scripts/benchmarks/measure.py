"""How the benchmark measures: two sides in turn, each in a process of its own where that matters, and peak memory."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds of several rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Sum up the rounds."""
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


@dataclass(frozen=True)
class Figure:
    """One line of the table: a value with its unit ("x" for a ratio), what it is to reach, and the times behind it.

    A value of None was not measured, and `note` says why. `ours` and `other` are in seconds.
    """

    what: str
    value: float | None
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    ours: Timing | None = None
    other: Timing | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the value is as it is to be; None where nothing is asked of it or it was not measured."""
        if self.value is None or (self.at_least is None and self.at_most is None):
            return None
        above = self.at_least is None or self.value >= self.at_least
        return bool(above and (self.at_most is None or self.value <= self.at_most))


class Pair(NamedTuple):
    """The times of two sides that ran in turn, and what each returned last.

    `ratio` is the other's time to ours, round by round, and of these the median: what slows the machine for a while
    slows both sides of a round.
    """

    ours: Timing
    other: Timing
    ratio: float
    our_result: Any
    other_result: Any

    def speed_up(self, what: str, *, at_least: float | None = None, note: str = "") -> Figure:
        """How many times as long as ours the other side took."""
        return Figure(what, self.ratio, "x", at_least=at_least, ours=self.ours, other=self.other, note=note)

    def overhead(self, what: str, *, at_most: float, note: str = "") -> Figure:
        """How many times as long as the other side ours took."""
        return Figure(what, 1 / self.ratio, "x", at_most=at_most, ours=self.ours, other=self.other, note=note)


Timed = Callable[[], tuple[float, Any]]  # does its work once: seconds, result


def here(work: Callable[[], Any], device: str = "cpu") -> Timed:
    """Work to be timed in this process; of a GPU it waits until all is done."""

    def run() -> tuple[float, Any]:
        _synchronise(device)
        start = time.perf_counter()
        result = work()
        _synchronise(device)
        return time.perf_counter() - start, result

    return run


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def repeat(work: Timed, rounds: int) -> Timing:
    """Time one thing alone, after a call to warm up."""
    work()
    return Timing.of([work()[0] for _ in range(rounds)])


def in_turn(ours: Timed, other: Timed, rounds: int, *, other_rounds: int | None = None, warm_up: bool = True) -> Pair:
    """Time two sides in turn, so that whatever else the machine does falls on both.

    `other_rounds` is for a side that takes minutes: it is left out of later rounds, and the ratio is that of medians.
    """
    if warm_up:
        ours(), other()
    seconds: tuple[list[float], list[float]] = ([], [])
    results: list[Any] = [None, None]
    for i in range(rounds):
        for side, work in enumerate((ours, other)):
            if side == 0 or other_rounds is None or i < other_rounds:
                taken, results[side] = work()
                seconds[side].append(taken)
    times = Timing.of(seconds[0]), Timing.of(seconds[1])
    in_pairs = [other / ours for ours, other in zip(*seconds, strict=False)]
    ratio = statistics.median(in_pairs) if other_rounds is None else times[1].median / times[0].median
    return Pair(*times, ratio, *results)


class Peak(NamedTuple):
    """Bytes that a process held before its work and at most since."""

    before: int
    most: int

    @property
    def extra_gb(self) -> float:
        """What the work itself took, in GB."""
        return (self.most - self.before) / 1e9

    @property
    def gb(self) -> float:
        """All that the process held, in GB."""
        return self.most / 1e9


# A fresh process comes from a server that has imported these and done nothing else: seconds saved for each.
_IMPORTED_ONCE = ("torch", "timm.models.swin_transformer", "scipy.ndimage", "scipy.spatial", "medpy.metric", "h5py")


class Apart:
    """Work in a fresh process, which keeps its memory and the settings of its libraries to itself; a `Timed`.

    Args:
        prepare: called there as `prepare(*args)`, a function of a module; returns the work.
        device: where the work is done, and whose memory `peak` tells: resident memory on the CPU (from Linux's /proc),
            that of tensors on a GPU.
    """

    def __init__(self, prepare: Callable[..., Callable[[], Any]], *args: Any, device: str = "cpu") -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_IMPORTED_ONCE))
        self._pool = ProcessPoolExecutor(1, mp_context=context)
        try:
            self._before = self._there(_prepare, prepare, args, device, torch.get_num_threads())
        except BaseException:
            self._pool.shutdown()
            raise

    def _there(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._pool.submit(function, *args).result()

    def __call__(self) -> tuple[float, Any]:
        return self._there(_run)

    def peak(self) -> Peak:
        """Memory since the work was prepared."""
        return Peak(self._before, self._there(_most))

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._there(_forget)
        finally:
            self._pool.shutdown()


# In a process that `Apart` started: its one piece of work, and where that is done.
_work: Timed | None = None
_device = "cpu"


def _prepare(prepare: Callable[..., Callable[[], Any]], args: tuple, device: str, threads: int) -> int:
    global _work, _device
    torch.set_num_threads(threads)
    _work, _device = here(prepare(*args), device), device
    if device != "cpu":
        _synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    # ru_maxrss would begin with the peak of the process that started this one; this peak begins here and now.
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _run() -> tuple[float, Any]:
    return _work()


def _forget() -> None:
    """Let go of the work: the workers of a loader, which ignore signals, end with it alone."""
    global _work
    _work = None
    gc.collect()


def _most() -> int:
    return _resident("VmHWM") if _device == "cpu" else torch.cuda.max_memory_allocated(_device)


def _resident(field: str) -> int:
    """Bytes by a field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
