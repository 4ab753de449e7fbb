"""The report of a test: one self-contained HTML page with results, charts, overlays and settings."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from evaluation import charts
from evaluation.summary import CONVENTIONS, TITLES, Summary, number, shown_metrics
from utils import atomic_write

TEMPLATES = Path(__file__).with_name("templates")
Overlay = tuple[str, str, list[bytes]]  # title, caption, and the halves of a PNG
Chart = tuple[str, str, str]  # title, caption, and the SVG

# The curves of a run that are drawn, and their titles; "dice" is what earlier runs call the Dice loss.
_CURVES = {
    **{"loss": "Loss", "ce": "Cross-entropy", "dice": "Dice loss", "dice_loss": "Dice loss", "scr": "SCR"},
    **{"ifd": "IFD", "val_dice": "Validation Dice"},
}


@dataclass(frozen=True)
class Provenance:
    """The origin of a report.

    Attributes:
        settings: the few that a reader looks for first.
        configuration: all of them, as text.
        environment: device and versions.
        curves: steps and values by name, as training logged them.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    configuration: str = ""
    environment: Mapping[str, object] = field(default_factory=dict)
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]] = field(default_factory=dict)


def write_html(path: Path, summary: Summary, overlays: Path | None, provenance: Provenance) -> None:
    """Write the report of a summary (see `evaluation.summary.summarize`).

    `overlays` is the folder with the PNG of each case, of which the page embeds those of the worst, the median and the
    best one.

    Raises:
        FileNotFoundError: there is no overlay of one of these.
    """
    images = []
    for title, case in _selected(summary) if overlays else []:
        dice = ", ".join(f"{number(case[kind]['dice'], 'dice')} {kind}" for kind in CONVENTIONS)
        images.append((title, f"{case['name']}, Dice {dice}", halves(Path(overlays or "") / f"{case['name']}.png")))
    metrics, names = shown_metrics(summary), list(summary["published"]["per_class"])
    headline = {
        kind: [(TITLES[m], number(summary[kind][m], m), _spread(summary[kind]["std"][m], m)) for m in metrics]
        for kind in CONVENTIONS
    }
    page = render(
        "report.html.j2",
        conventions=CONVENTIONS,
        metrics=metrics,
        titles=TITLES,
        unit=summary["unit"],
        headline=headline,
        undefined=summary["strict"]["undefined"],
        total=len(summary["cases"]) * len(names),
        classes=[(name, {kind: summary[kind]["per_class"][name] for kind in CONVENTIONS}) for name in names],
        cases=[(case["name"], case) for case in worst_first(summary)],
        feet=[("mean", summary), ("std", {kind: summary[kind]["std"] for kind in CONVENTIONS})],
        boxes=_boxes(summary, names),
        images=images,
        curves=_curves(provenance.curves),
        provenance=provenance,
    )
    atomic_write(path, lambda partial: partial.write_text(page, encoding="utf-8"))


def render(template: str, **context: object) -> str:
    """A page from one of the templates; every value is escaped."""
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    pages.filters |= {"number": number, "base64": lambda content: base64.b64encode(content).decode()}
    return pages.get_template(template).render(**context)


def worst_first(summary: Summary) -> list[Summary]:
    """The cases by strict, then published Dice, ascending; those without any Dice come last."""

    def rank(case: Summary) -> tuple[float, float, str]:
        strict = case["strict"]["dice"]
        return (2.0 if strict is None else strict, case["published"]["dice"], case["name"])

    return sorted(summary["cases"], key=rank)


def halves(path: Path) -> list[bytes]:
    """The left and the right half of a PNG file, one below the other on a narrow page."""
    parts = []
    with Image.open(path) as image:
        width, height = image.size
        for left, right in ((0, width // 2), (width // 2, width)):
            buffer = io.BytesIO()
            image.convert("RGB").crop((left, 0, right, height)).save(buffer, format="PNG", optimize=True)
            parts.append(buffer.getvalue())
    return parts


def _selected(summary: Summary) -> list[tuple[str, Summary]]:
    """The worst, median and best case by strict Dice, none of them twice; those without a Dice only if none has any."""
    ranked = worst_first(summary)
    ranked = [case for case in ranked if case["strict"]["dice"] is not None] or ranked
    if len(ranked) == 1:
        return [("The only case" if len(summary["cases"]) == 1 else "The only case with a Dice", ranked[0])]
    median = [("Median", ranked[(len(ranked) - 1) // 2])] if len(ranked) > 2 else []
    return [("Worst", ranked[0]), *median, ("Best", ranked[-1])]


def _spread(std: float | None, metric: str) -> str:
    return "" if std is None else number(std, metric)


def _boxes(summary: Summary, names: Sequence[str]) -> list[Chart]:
    """The Dice of the cases as a box plot for each convention, on one axis."""
    tables = {
        kind: {
            name: [dice for case in summary["cases"] if (dice := case[kind]["per_class"][name]["dice"]) is not None]
            for name in names
        }
        for kind in CONVENTIONS
    }
    lowest = charts.lowest_shown([value for table in tables.values() for column in table.values() for value in column])
    found = []
    for kind, table in tables.items():
        medians = {
            name: number(statistics.median(column), "dice") if column else "undefined" for name, column in table.items()
        }
        listed = ", ".join(f"{name} {median}" for name, median in medians.items())
        label = f"Box plot of the Dice of the cases by class, {kind} convention. Medians: {listed}."
        found.append(
            ("Dice", f"{kind} convention", charts.dice_boxes(table, lowest, ident=f"boxes-{kind}", label=label))
        )
    return found


def _curves(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> list[Chart]:
    """The known curves of a run, each in a chart of its own."""
    found = []
    for name, title in _CURVES.items():
        steps, values = curves.get(name, ((), ()))
        finite = [place for place, value in enumerate(values) if math.isfinite(value)]
        if not finite:
            continue
        is_score = name.startswith("val_")
        place = max(finite, key=values.__getitem__) if is_score else finite[-1]
        what = f"{'best' if is_score else 'last'} {values[place]:.4g} at step {steps[place]}"
        label = f"{title} over the steps of the training, {what}."
        drawn = charts.curve(steps, values, ident=f"curve-{name}", label=label, mark=place if is_score else None)
        found.append((title, what, drawn))
    return found
