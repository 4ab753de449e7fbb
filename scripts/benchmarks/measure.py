"""Two works measured in turn, each in a fresh process: seconds and their ratio, memory, and how far results differ."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

_LONG_SECONDS = 20.0  # a work that takes longer, as those of MedPy, is called once
Work = Callable[[], object]


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
    compile: bool = False  # network, features and loss as one graph


Prepare = tuple[Callable[[Settings], Work], Settings]  # what sets a work up, and its argument


class Run(NamedTuple):
    """A call: its seconds, the GB that it took in addition to its inputs, and what it returned."""

    seconds: float
    gb: float
    result: object


@dataclass(frozen=True)
class Comparison:
    """One line of the table: the time of `b` by that of `a`, or of `a` alone.

    Where both works return tuples of arrays, these are compared; a text that `a` returns is its note.
    """

    row: str
    what: str
    a: Prepare
    b: Prepare | None = None
    target: str = ""


def measure(comparison: Comparison, rounds: int) -> dict[str, object]:
    """A record for the table, with the seconds of every round."""
    sides = {"A": comparison.a} | ({"B": comparison.b} if comparison.b else {})
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    for _ in range(rounds):  # in turn, so that whatever else the machine does falls on both
        for side, prepare in sides.items():
            if not runs[side] or runs[side][0].seconds < _LONG_SECONDS:
                runs[side].append(_run_apart(prepare))
    record: dict[str, Any] = {"what": comparison.what, "target": comparison.target}
    for side, own in runs.items():
        record |= {f"{side}, s": [run.seconds for run in own], f"{side}, GB": max(run.gb for run in own)}
    a, b = (runs[side][0].result if side in runs else None for side in ("A", "B"))
    if comparison.b:
        record["B / A"] = float(np.median(np.divide(record["B, s"], record["A, s"])))
    if isinstance(a, tuple) and isinstance(b, tuple):
        pairs = zip(a, b, strict=True)
        record["difference"] = max(float(np.abs(np.subtract(x, y, dtype=float)).max()) for x, y in pairs)
    return record | {"note": a if isinstance(a, str) else ""}


def _run_apart(prepare: Prepare) -> Run:
    """Measure in a process that keeps its memory and the settings of its libraries to itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.benchmark", "timm", "scipy.ndimage", "medpy.metric", "h5py"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_run, *prepare).result()


def _run(set_up: Callable[[Settings], Work], settings: Settings) -> Run:
    """The median of calls within a tenth of a second, after one to warm up; one that takes long is the only one."""
    from torch.utils.benchmark import timer  # it waits for a GPU; importing it warns where there is nvcc and no GPU

    work, seconds, result = set_up(settings), list[float](), None
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts again
    before = _peak_gb()
    while sum(seconds[1:]) < 0.1 and (not seconds or seconds[0] < _LONG_SECONDS):
        start = timer()
        result = work()
        seconds.append(timer() - start)
    median = float(np.median(seconds[1:] or seconds))
    return Run(median, _peak_gb() - before, result if isinstance(result, str | tuple) else None)


def _peak_gb() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def table(records: pd.DataFrame) -> str:
    """The records as text, the seconds as medians; notes follow."""
    shown = records.assign(**records.filter(like=", s").map(np.median, na_action="ignore")).drop(columns="note")
    notes = [f"{record.what}: {record.note}" for record in records.itertuples() if record.note]
    return "\n".join([shown.to_string(index=False, na_rep="", float_format="{:.4g}".format), *notes])
