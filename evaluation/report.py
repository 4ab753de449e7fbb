"""The report of a test: one self-contained HTML page with results, charts, overlays and settings."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from datasets.readers import read_image
from evaluation import charts
from evaluation.metrics import OVERLAPS
from evaluation.summary import CONVENTIONS, TITLES, Summary, number
from utils import write_text

Overlay = tuple[str, str, list[str]]  # title, caption, and the halves of a PNG as data URLs
Chart = tuple[str, str, str]  # title, caption, and the SVG
Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # steps and values by name, as training logged them

_CURVES = {"loss": "Loss", "ce": "Cross-entropy", "dice": "Dice loss", "dice_loss": "Dice loss", "scr": "SCR"}
_CURVES |= {"ifd": "IFD", "val_dice": "Validation Dice"}  # "dice" is what earlier runs call the Dice loss


@dataclass(frozen=True)
class Provenance:
    """The origin of a report."""

    settings: Mapping[str, object] = field(default_factory=dict)  # the few that matter most
    configuration: str = ""  # all of them, as text
    environment: Mapping[str, object] = field(default_factory=dict)  # device and versions
    curves: Curves = field(default_factory=dict)
    title: str = "Segmentation report"


def write_html(path: Path, summary: Summary, overlays: Path, provenance: Provenance) -> None:
    """Write the report of a test; of the overlays in a folder, CASE.png, it has the worst, median and best case's."""
    tables, dice = summary.tables(), summary.of_cases[..., 0]
    # By strict, then published Dice, ascending; NaN is sorted to the end.
    ranked = np.lexsort((summary.cases, *dice.T)).tolist()
    images = []
    for title, place in _selected(ranked, dice[:, 1]):
        name = summary.cases[place]
        shown = ", ".join(f"{number(one, 'dice')} {kind}" for one, kind in zip(dice[place], CONVENTIONS, strict=True))
        images.append((title, f"{name}, Dice {shown}", halves(overlays / f"{name}.png")))
    zeros = np.zeros_like(summary.scores)  # 1 where a published 0 stands for a distance that there is not
    zeros[:, :, 0] = np.isnan(summary.scores[:, :, 1]) & [metric not in OVERLAPS for metric in summary.metrics]
    page = render(
        "report.html.j2",
        conventions=CONVENTIONS,
        titles={metric: TITLES[metric] for metric in summary.metrics},
        summary=summary,
        tables=tables,
        zeros=replace(summary, scores=zeros).tables(),
        cases={summary.cases[place]: tables["case"][summary.cases[place]] for place in ranked},
        boxes=_boxes(summary),
        images=images,
        curves=_curves(provenance.curves),
        provenance=provenance,
    )
    write_text(path, page)


def render(template: str, **context: object) -> str:
    """A page from one of the templates; every value is escaped."""
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    pages.filters["number"] = number
    return pages.get_template(template).render(**context)


def halves(path: Path) -> list[str]:
    """The left and the right half of a PNG file as data URLs, one below the other on a narrow page."""
    parts, image = [], Image.fromarray(read_image(path)).convert("RGB")
    for left, right in ((0, image.width // 2), (image.width // 2, image.width)):
        buffer = io.BytesIO()
        image.crop((left, 0, right, image.height)).save(buffer, format="PNG", optimize=True)
        parts.append(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return parts


def _selected(ranked: list[int], dice: np.ndarray) -> list[tuple[str, int]]:
    """The worst, median and best case, none of them twice; those without a Dice only if none has any."""
    defined = [place for place in ranked if not np.isnan(dice[place])] or ranked
    if len(defined) == 1:
        return [("The only case" if len(ranked) == 1 else "The only case with a Dice", defined[0])]
    median = [("Median", defined[(len(defined) - 1) // 2])] if len(defined) > 2 else []
    return [("Worst", defined[0]), *median, ("Best", defined[-1])]


def _boxes(summary: Summary) -> list[Chart]:
    """The Dice of the cases as a box plot for each convention, on one axis."""
    dice = summary.scores[..., 0]
    lowest = min(0.8, np.floor(10 * np.nanmin(dice)) / 10)
    found = []
    for place, kind in enumerate(CONVENTIONS):
        columns = {name: one[~np.isnan(one)] for name, one in zip(summary.classes, dice[..., place].T, strict=True)}
        medians = [f"{name} {np.median(one):.4f}" if len(one) else f"{name} undefined" for name, one in columns.items()]
        label = f"Box plot of the Dice of the cases by class, {kind} convention. Medians: {', '.join(medians)}."
        found.append(("Dice", f"{kind} convention", charts.dice_boxes(columns, lowest, label)))
    return found


def _curves(curves: Curves) -> list[Chart]:
    """The known curves of a run, each in a chart of its own."""
    found = []
    for name, title in _CURVES.items():
        steps, values = curves.get(name, ((), ()))
        finite = np.flatnonzero(np.isfinite(values)).tolist()
        if not finite:
            continue
        best = max(finite, key=values.__getitem__) if name.startswith("val_") else None
        place = finite[-1] if best is None else best
        what = f"{'last' if best is None else 'best'} {values[place]:.4g} at step {steps[place]}"
        label = f"{title} over the steps of the training, {what}."
        found.append((title, what, charts.curve(steps, values, label, best)))
    return found
