"""Two works measured in turn, each in a fresh process: seconds and their ratio, memory, and how far results differ."""

from __future__ import annotations

import gc
import multiprocessing
import resource
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

_LONG_SECONDS = 20.0  # a work that takes longer, as those of MedPy, is called once
Work = Callable[[], object]
Prepare = Callable[[], Work]  # a function of a module, or a partial of one
Run = tuple[float, float, object]  # seconds of a call, GB that it took in addition to its inputs, what it returned


@dataclass(frozen=True)
class Settings:
    """A volume of `depth` x `side` x `side`, a network of `img_size`, and `steps` steps a call, of `batch` slices each.

    `folder` holds files for the length of the run; `workers` processes load slices.
    """

    folder: Path
    device: str = "cpu"
    depth: int = 120
    side: int = 512
    img_size: int = 224
    batch: int = 4
    steps: int = 1
    workers: int = 8
    naive: bool = False  # the reference Swin-UNet, transforms by SciPy, metrics by MedPy
    network: str = "swin_unet"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the network
    kd: bool = True
    precision: str = "float32"

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of a network's input."""
        return self.img_size, self.img_size


@dataclass(frozen=True)
class Comparison:
    """One line of the table: the time of `b` by that of `a`, or of `a` alone.

    Where both works return tuples of arrays, these are compared; a text that `a` returns is its note. `size` is the
    place on the curve `what`.
    """

    row: str
    what: str
    a: Prepare
    b: Prepare | None = None
    target: str = ""
    size: int | None = None


def measure(comparison: Comparison, rounds: int) -> dict[str, object]:
    """A record for the table, with the seconds of every round."""
    runs: dict[str, list[Run]] = {"A": [], "B": []}
    for _ in range(rounds):  # in turn, so that whatever else the machine does falls on both
        for side, prepare in (("A", comparison.a), ("B", comparison.b)):
            if prepare and (not runs[side] or runs[side][0][0] < _LONG_SECONDS):
                runs[side].append(_run_apart(prepare))
    seconds = {side: [run[0] for run in runs[side]] for side in runs}
    a, b = (runs[side][0][2] if runs[side] else None for side in runs)
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) and isinstance(b, tuple) else ()
    return {
        **{"what": comparison.what, "size": comparison.size, "target": comparison.target},
        **{f"{side}, s": seconds[side] or None for side in runs},
        "B / A": float(np.median(np.divide(seconds["B"], seconds["A"]))) if comparison.b else None,
        **{f"{side}, GB": max((run[1] for run in runs[side]), default=None) for side in runs},
        "difference": max((float(np.abs(np.subtract(x, y, dtype=float)).max()) for x, y in pairs), default=None),
        "note": a if isinstance(a, str) else "",
    }


def _run_apart(prepare: Prepare) -> Run:
    """Measure in a process that keeps its memory and the settings of its libraries to itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.benchmark", "timm", "scipy.ndimage", "medpy.metric", "h5py"])
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(_run, prepare).result()
        finally:  # a loader's workers ignore signals: they end with the loader
            pool.submit(gc.collect).result()


def _run(prepare: Prepare) -> Run:
    """The median of calls within a tenth of a second, after one to warm up; one that takes long is the only one."""
    from torch.utils.benchmark import timer  # it waits for a GPU; importing it warns where there is nvcc and no GPU

    work, seconds, result = prepare(), list[float](), None
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = _peak_gb()
    while sum(seconds[1:]) < 0.1 and (not seconds or seconds[0] < _LONG_SECONDS):
        start = timer()
        result = work()
        seconds.append(timer() - start)
    median = float(np.median(seconds[1:] or seconds))
    return median, _peak_gb() - before, result if isinstance(result, str | tuple) else None


def _peak_gb() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def table(records: pd.DataFrame) -> str:
    """The records as text, the seconds as medians; notes follow."""
    shown = records.assign(**records.filter(like=", s").map(np.median, na_action="ignore"))
    shown = shown.astype({"size": "Int64"}).drop(columns="note").dropna(axis="columns", how="all")
    notes = [f"{record.what}: {record.note}" for record in records.itertuples() if record.note]
    return "\n".join([shown.to_string(index=False, na_rep="", float_format="{:.4g}".format), *notes])


def draw_curves(records: pd.DataFrame, path: Path | None) -> pd.Series:
    """The exponents of the power laws through the points of every curve, and an image of them where it has a path."""
    figure, exponents = Figure(figsize=(9, 3.6), layout="constrained"), {}
    for axes, column in zip(figure.subplots(1, 2), ("A, s", "A, GB"), strict=True):
        for what, points in records.dropna(subset="size").groupby("what", sort=False):
            sizes, values = points["size"], points[column].map(np.median)
            exponents[what, column] = np.polyfit(np.log(sizes), np.log(values), 1)[0]
            axes.loglog(sizes / sizes.iloc[0], values / values.iloc[0], "o-", label=what)
        axes.set(xlabel="size, relative to the smallest", ylabel=column)
        axes.legend(fontsize=6)
    if path:
        figure.savefig(path, dpi=110, metadata={"Software": None})
    return pd.Series(exponents, name="exponent")
