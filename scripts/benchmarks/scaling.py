"""How time and memory grow with image size, batch and depth; every point in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure as Picture

from scripts.benchmarks.inputs import Settings, on_one_batch, our_step, volume_pair
from scripts.benchmarks.measure import Apart, Figure, repeat
from scripts.benchmarks.volumes import evaluating


@dataclass(frozen=True)
class Grid:
    """Where the curves are measured: sides of the images by network, batches and depths."""

    # 336 pixels do not fit Swin-UNet's windows of 7.
    sides: tuple[tuple[str, tuple[int, ...]], ...] = (("unet", (224, 336, 448)), ("swin_unet", (224, 448)))
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    depths: tuple[int, ...] = (40, 80, 160, 320)


class Point(NamedTuple):
    """Seconds, and GB beside the inputs and the weights."""

    seconds: float
    gigabytes: float


@dataclass(frozen=True)
class Curve:
    """Points at several sizes."""

    name: str
    over: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    gigabytes: tuple[float, ...]

    @classmethod
    def of(cls, name: str, over: str, sizes: Sequence[int], points: Sequence[Point]) -> Curve:
        """The curve through points at the sizes."""
        return cls(name, over, tuple(sizes), *(tuple(values) for values in zip(*points, strict=True)))

    def figures(self) -> list[Figure]:
        """The exponents of the power laws through the curve, for the table."""
        found = []
        for quantity, unit, values in (("time", "s", self.seconds), ("memory", "GB", self.gigabytes)):
            note = ", ".join(f"{size}: {value:.3g} {unit}" for size, value in zip(self.sizes, values, strict=True))
            what = f"{self.name}: exponent of {quantity} over {self.over}"
            found.append(Figure(what, exponent(self.sizes, values), note=note))
        return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the line of least squares through (log size, log value)."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def curves(settings: Settings, grid: Grid) -> list[Curve]:
    """All curves; `settings` says what stays the same along each."""
    found = []
    for name, sides in grid.sides:
        points = [_training(replace(settings, img_size=side), name) for side in sides]
        pixels = [side * side for side in sides]
        found.append(Curve.of(f"{name}, training step, batch {settings.batch}", "pixels", pixels, points))
    points = [_training(replace(settings, batch=batch), "swin_unet") for batch in grid.batches]
    found.append(Curve.of(f"swin_unet {settings.img_size}, training step", "batch size", grid.batches, points))
    points = [_evaluation(settings, depth) for depth in grid.depths]
    name = f"evaluation, slices of {settings.side} x {settings.side}"
    return [*found, Curve.of(name, "depth", grid.depths, points)]


def _training(settings: Settings, name: str) -> Point:
    with Apart(_steps, settings, name, device=settings.device) as work:
        return Point(repeat(work, settings.rounds).median / settings.steps, work.peak().extra_gb)


def _steps(settings: Settings, name: str) -> Callable[[], None]:
    return on_one_batch(settings, our_step(settings, name=name), settings.steps)


def _evaluation(settings: Settings, depth: int) -> Point:
    with Apart(evaluating, _stretched(settings, depth), device=settings.device) as work:
        return Point(work()[0], work.peak().extra_gb)


def _stretched(settings: Settings, depth: int) -> Settings:
    """Settings whose volume is that of the run, made `depth` slices deep."""
    folder = settings.folder / f"depth_{depth}"
    folder.mkdir()
    chosen = np.arange(depth) * settings.depth // depth
    pair = volume_pair(settings)
    np.savez(folder / "volume.npz", **{name: array[chosen] for name, array in pair._asdict().items()})
    return replace(settings, depth=depth, folder=folder)


def draw(found: Sequence[Curve], path: Path) -> None:
    """One picture of the curves, each relative to its smallest size, with the line of proportional growth."""
    picture = Picture(figsize=(9, 3.6), layout="constrained")
    largest = max(curve.sizes[-1] / curve.sizes[0] for curve in found)
    for axes, quantity in zip(picture.subplots(1, 2), ("seconds", "gigabytes"), strict=True):
        for curve in found:
            values = getattr(curve, quantity)
            label = f"{curve.name}, over {curve.over} ({exponent(curve.sizes, values):.2f})"
            axes.loglog([s / curve.sizes[0] for s in curve.sizes], [v / values[0] for v in values], "o-", label=label)
        axes.loglog([1, largest], [1, largest], "k:", label="proportional")
        axes.set_xlabel("size, relative to the smallest")
        axes.set_ylabel("time" if quantity == "seconds" else "memory")
        axes.legend(fontsize=6)
    picture.savefig(path, dpi=110, metadata={"Software": None})
