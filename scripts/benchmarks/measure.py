"""Two works measured in turn, each in a fresh process: seconds and their ratio, memory, and how far results differ."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

NUM_CLASSES = 9
Work = Callable[[], object]
Prepare = Callable[[], Work]  # a function of a module, or a partial of one


@dataclass(frozen=True)
class Settings:
    """A volume of `depth` x `side` x `side`, networks of `img_size`, and `steps` steps a call, of `batch` slices each.

    `folder` holds files for the length of the run; `workers` processes load slices for a GPU.
    """

    folder: Path
    device: str = "cpu"
    depth: int = 120
    side: int = 512
    img_size: int = 224
    batch: int = 4
    steps: int = 1
    workers: int = 8
    embed_dim: int = 96  # of Swin-UNet
    window_size: int = 7

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of a network's input."""
        return self.img_size, self.img_size


@dataclass(frozen=True)
class Comparison:
    """One line of the table: the time of `b` by that of `a`, or of `a` alone.

    Where both works return tuples of arrays, these are compared; a text that `a` returns is its note. The sides named
    in `once`, "B" or "AB", take minutes and are called once. `size` is the place on the curve `what`.
    """

    row: str
    what: str
    a: Prepare
    b: Prepare | None = None
    target: str = ""
    once: str = ""
    size: int | None = None


def measure(comparison: Comparison, rounds: int) -> dict[str, object]:
    """A record for the table, with the seconds of every round."""
    sides = {"A": comparison.a} | ({"B": comparison.b} if comparison.b else {})
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    gigabytes, results = dict.fromkeys(sides, 0.0), dict[str, object]()
    for i in range(rounds):  # in turn, so that whatever else the machine does falls on both
        for side, prepare in sides.items():
            if not (i and side in comparison.once):
                taken, memory, results[side] = _run_apart(prepare, side in comparison.once)
                seconds[side].append(taken)
                gigabytes[side] = max(gigabytes[side], memory)
    return {
        "what": comparison.what,
        "size": comparison.size,
        "target": comparison.target,
        **{f"{side}, s": seconds.get(side) for side in "AB"},
        "B / A": float(np.median(np.divide(seconds["B"], seconds["A"]))) if comparison.b else None,
        **{f"{side}, GB": gigabytes.get(side) for side in "AB"},
        "difference": _largest_difference(results["A"], results.get("B")),
        "note": results["A"] if isinstance(results["A"], str) else "",
    }


def _largest_difference(a: object, b: object) -> float | None:
    if not (isinstance(a, tuple) and isinstance(b, tuple)):
        return None
    return max(float(np.abs(np.subtract(x, y, dtype=float)).max()) for x, y in zip(a, b, strict=True))


def _run_apart(prepare: Prepare, once: bool) -> tuple[float, float, object]:
    """Measure in a process that keeps its memory and the settings of its libraries to itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.benchmark", "timm", "scipy.ndimage", "medpy.metric", "h5py"])
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        try:
            return pool.submit(_run, prepare, once).result()
        finally:  # a loader's workers ignore signals: they end with the loader
            pool.submit(gc.collect).result()


def _run(prepare: Prepare, once: bool) -> tuple[float, float, object]:
    """Seconds of a call, the GB that it took in addition to its inputs, and the text or arrays that it returned."""
    # Importing it warns where there is nvcc and no GPU.
    from torch.utils.benchmark import Timer, timer

    work, results = prepare(), list[object]()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, start = _peak_gb(), timer()
    if once:
        results.append(work())
        seconds = timer() - start
    else:
        names = {"work": work, "results": results}
        timed = Timer("results[:] = [work()]", globals=names, num_threads=torch.get_num_threads())
        seconds = timed.blocked_autorange(min_run_time=0.1).median
    return seconds, _peak_gb() - before, results[0] if isinstance(results[0], str | tuple) else None


def _peak_gb() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def table(records: pd.DataFrame) -> str:
    """The records as text, the seconds as medians; notes follow."""
    medians = records.filter(like=", s").map(np.median, na_action="ignore")
    shown = records.assign(**medians, size=records["size"].astype("Int64")).drop(columns="note")
    shown = shown.dropna(axis="columns", how="all")
    notes = [f"{record.what}: {record.note}" for record in records.itertuples() if record.note]
    return "\n".join([shown.to_string(index=False, na_rep="", float_format="{:.4g}".format), *notes])


def draw_curves(records: pd.DataFrame, path: Path | None) -> pd.Series:
    """The exponents of the power laws through the points of every curve, and an image of them where it has a path."""
    figure, exponents = Figure(figsize=(9, 3.6), layout="constrained"), {}
    for axes, column in zip(figure.subplots(1, 2), ("A, s", "A, GB"), strict=True):
        for what, points in records.dropna(subset="size").groupby("what", sort=False):
            sizes, values = points["size"] / points["size"].iloc[0], points[column].map(np.median)
            exponents[what, column] = np.polyfit(np.log(sizes), np.log(values), 1)[0]
            axes.loglog(sizes, values / values.iloc[0], "o-", label=f"{what} ({exponents[what, column]:.2f})")
        axes.axline((1, 1), (2, 2), color="k", linestyle=":", label="proportional")
        axes.set(xlabel="size, relative to the smallest", ylabel=column)
        axes.legend(fontsize=6)
    if path:
        figure.savefig(path, dpi=110, metadata={"Software": None})
    return pd.Series(exponents, name="exponent")
