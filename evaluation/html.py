"""The report as one HTML page that needs no other file: figures, charts, pictures, settings; nothing fetched or run."""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from evaluation import charts
from evaluation.metrics import METRICS

MM_METRICS = ("hd95_mm", "assd_mm")  # beside those in voxels, where the size of the voxels is known
TITLES = {
    **{"dice": "Dice", "hd95": "HD95", "jaccard": "Jaccard", "assd": "ASSD"},
    **{"hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"},
}

_CONVENTIONS = {
    "published": (
        "Published convention",
        (
            "As the literature reports it: an organ that was invented scores Dice 1 and distance 0, one that was "
            "missed, or is in neither the prediction nor the truth, scores 0 throughout. Use it to compare with "
            "published tables."
        ),
    ),
    "strict": (
        "Strict convention",
        (
            "An organ that was missed or invented scores Dice 0 and has no distance; one that is in neither is left "
            "out. Undefined figures take no part in the means and are counted."
        ),
    ),
}

# What is drawn of a run's record, and how it is called.
_CURVES = {
    **{"loss": "Loss", "ce": "Cross-entropy", "dice": "Dice loss", "scr": "SCR", "ifd": "IFD"},
    "val_dice": "Validation Dice",
}

STYLE = Path(__file__).with_name("page.css")


@dataclass(frozen=True)
class Provenance:
    """How a report was come by.

    Attributes:
        settings: the few that a reader looks for first.
        configuration: all of them, as text.
        environment: device and versions.
        curves: steps and values by name, as training recorded them.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    configuration: str = ""
    environment: Mapping[str, object] = field(default_factory=dict)
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]] = field(default_factory=dict)


def page(
    summary: Mapping[str, Any], pictures: Sequence[tuple[str, str, Sequence[bytes]]], provenance: Provenance
) -> str:
    """The page of a summary (see `report.summarise`), of pictures and of what is known of the run.

    A picture is a title, what it shows, and PNG files that stand beside each other where there is room.
    """
    organs = {
        name: {convention: summary[convention]["per_class"][name] for convention in _CONVENTIONS}
        for name in summary["published"]["per_class"]
    }
    cases = [(case["name"], case) for case in worst_first(summary)]
    beside = " and, beside, in mm" if len(shown_metrics(summary)) > len(METRICS) else ""
    intro = (
        f"Cases: {len(cases)}, classes: {len(organs)}. Dice and Jaccard from 0 to 1, HD95 and ASSD in "
        f"{escape(summary['unit'])}{beside}; a dash stands for an undefined figure, and &plusmn; or std for the "
        "sample standard deviation over the cases."
    )
    feet = [("mean", summary), ("std", {convention: summary[convention]["std"] for convention in _CONVENTIONS})]
    parts = [
        f'<p class="soft">{intro}</p>',
        f'<div class="cards">{"".join(_card(summary, convention) for convention in _CONVENTIONS)}</div>',
        "<h2>Classes</h2>",
        _table("class", list(organs.items()), feet[:1], shown_metrics(summary)),
        *_boxes(summary, list(organs)),
    ]
    if pictures:
        parts += [
            "<h2>Pictures</h2>",
            f'<div class="pictures">{"".join(picture_figure(*picture) for picture in pictures)}</div>',
        ]
    parts += ["<h2>Cases, worst first</h2>", _table("case", cases, feet, shown_metrics(summary))]
    parts += [*_training(provenance.curves), *_provenance(provenance)]
    return document("Segmentation report", parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page of these elements under its title, with the style of all pages."""
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def worst_first(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The cases of a summary by strict, then published Dice, ascending; those without any Dice come last."""
    return sorted(summary["cases"], key=_rank)


def shown_metrics(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics that a summary has: in mm, too, where it has those."""
    return (*METRICS, *(name for name in MM_METRICS if name in summary["published"]))


def number(metric: str, value: float | None, missing: str = "\N{EN DASH}") -> str:
    """A figure as text: four decimals for overlaps, two for distances, `missing` where it is undefined."""
    if value is None:
        return missing
    return f"{value:.2f}" if metric.startswith(("hd95", "assd")) else f"{value:.4f}"


def _rank(case: Mapping[str, Any]) -> tuple[float, float, str]:
    """Sorting key, worst first: by strict Dice, then by published Dice; a case without any Dice comes last."""
    strict = case["strict"]["dice"]
    return (2.0 if strict is None else strict, case["published"]["dice"], case["name"])


def _card(summary: Mapping[str, Any], convention: str) -> str:
    """The headline figures in one convention and a sentence on what it means."""
    title, sentence = _CONVENTIONS[convention]
    scores = summary[convention]
    entries = []
    for name in shown_metrics(summary):
        kind, std = ' class="main"' if name == "dice" else "", scores["std"][name]
        spread = "" if std is None else f'<span class="soft"> &plusmn; {number(name, std)}</span>'
        entries.append(f"<div><dt>{TITLES[name]}</dt><dd{kind}>{number(name, scores[name])}{spread}</dd></div>")
    note = ""
    if convention == "strict":
        total = len(summary["cases"]) * len(scores["per_class"])
        undefined = scores["undefined"]
        note = (
            f'<p class="soft">Undefined here: {undefined["dice"]} of {total} Dice and {undefined["hd95"]} of {total} '
            "HD95 figures.</p>"
        )
    return (
        f'<section class="card"><h2>{title}</h2><dl class="numbers">{"".join(entries)}</dl>'
        f'<p class="soft">{sentence}</p>{note}</section>'
    )


def _table(title: str, rows: Sequence[tuple[str, Any]], feet: Sequence[tuple[str, Any]], metrics: Sequence[str]) -> str:
    """A table with the metrics in both conventions, a row for each name and the feet below."""
    groups = "".join(f'<th class="group" colspan="{len(metrics)}" scope="colgroup">{c}</th>' for c in _CONVENTIONS)
    heads = "".join(f'<th scope="col">{TITLES[name]}</th>' for name in metrics) * len(_CONVENTIONS)
    body, foot = ("".join(_row(name, scores, metrics) for name, scores in part) for part in (rows, feet))
    return (
        f'<div class="table" role="region" aria-label="Scores by {title}" tabindex="0">'
        f'<table class="of{len(metrics)}"><thead><tr><td></td>{groups}</tr>'
        f'<tr><th class="name" scope="col">{title}</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody><tfoot>{foot}</tfoot></table></div>"
    )


def _row(name: str, scores: Mapping[str, Any], metrics: Sequence[str]) -> str:
    cells = [number(metric, scores[convention][metric]) for convention in _CONVENTIONS for metric in metrics]
    return f'<tr><th scope="row"><span>{escape(name)}</span></th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _boxes(summary: Mapping[str, Any], organs: Sequence[str]) -> list[str]:
    """The Dice of the cases as a box plot for each convention, on one axis."""
    tables = {
        convention: {
            organ: [
                case[convention]["per_class"][organ]["dice"]
                for case in summary["cases"]
                if case[convention]["per_class"][organ]["dice"] is not None
            ]
            for organ in organs
        }
        for convention in _CONVENTIONS
    }
    lowest = charts.lowest_shown([value for table in tables.values() for column in table.values() for value in column])
    figures = []
    for convention, table in tables.items():
        medians = ", ".join(f"{organ} {_median(column)}" for organ, column in table.items())
        label = f"Box plot of the Dice of the cases by class, {convention} convention. Medians: {medians}."
        drawn = charts.dice_boxes(table, lowest, ident=f"boxes-{convention}", label=label)
        figures.append(figure("Dice", f"{convention} convention", drawn))
    note = (
        "A point is a case. The box reaches from the first to the third quartile, the bar in it is the median, and the "
        "whiskers end at the last case within 1.5 times the length of the box."
    )
    return [
        "<h2>Spread over the cases</h2>",
        f'<div class="charts">{"".join(figures)}</div>',
        f'<p class="soft">{note}</p>',
    ]


def _median(values: Sequence[float]) -> str:
    return number("dice", statistics.median(values)) if values else "undefined"


def _training(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> list[str]:
    """The curves of a run that are known by name, each in a chart of its own."""
    figures = []
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
        figures.append(figure(title, what, drawn))
    return ["<h2>Training</h2>", f'<div class="charts">{"".join(figures)}</div>'] if figures else []


def _provenance(provenance: Provenance) -> list[str]:
    parts = []
    for title, rows in (("Settings", provenance.settings), ("Environment", provenance.environment)):
        parts += [f"<h2>{title}</h2>", _settings(rows)] if rows else []
        if title == "Settings" and provenance.configuration:
            whole = f"<pre>{escape(provenance.configuration)}</pre>"
            parts.append(f"<details><summary>The whole configuration</summary>{whole}</details>")
    return parts


def text_table(label: str, rows: Sequence[Sequence[str]]) -> str:
    """A table of text, the first row its heads and the first column the names of the rows; `label` says what it is."""
    (name, *heads), *body = ([escape(cell) for cell in row] for row in rows)
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    lines = [
        f'<tr><th scope="row"><span>{first}</span></th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in body
    ]
    return (
        f'<div class="table" role="region" aria-label="{escape(label)}" tabindex="0"><table>'
        f'<thead><tr><th class="name" scope="col">{name}</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def figure(title: str, what: str, content: str) -> str:
    """A figure, an element of the page, under a caption of its title and of what it shows."""
    caption = f'<figcaption><b>{escape(title)}</b> <span class="soft">{escape(what)}</span></figcaption>'
    return f"<figure>{caption}{content}</figure>"


def picture_figure(title: str, what: str, parts: Sequence[bytes]) -> str:
    """A figure of PNG files that stand beside each other where there is room; the first is described for all."""
    described = escape(f"{title}: {what}; image, truth, prediction and errors")
    images = [
        f'<img src="data:image/png;base64,{base64.b64encode(part).decode("ascii")}" alt="{"" if place else described}">'
        for place, part in enumerate(parts)
    ]
    return figure(title, what, f'<div class="halves">{"".join(images)}</div>')


def _settings(settings: Mapping[str, object]) -> str:
    rows = [f'<tr><th scope="row">{escape(str(k))}</th><td>{escape(str(v))}</td></tr>' for k, v in settings.items()]
    return f'<div class="table"><table class="settings"><tbody>{"".join(rows)}</tbody></table></div>'
