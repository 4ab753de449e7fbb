"""The report as one HTML page that needs no other file: figures, charts, pictures, settings; nothing fetched or run."""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
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

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2430; --soft: #5d6878; --line: #dfe3e9;
  --accent: #0b6fb8; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b212a; --text: #e6eaf0; --soft: #9aa6b6;
  --line: #303945; --accent: #6cb8f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
.card h2 { font-size: 1rem; margin: 0; }
p { margin: .35rem 0; }
.soft { color: var(--soft); font-size: .9rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  margin-top: 1.25rem; }
.card, .table, figure { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.card { padding: 1rem 1.25rem; }
.numbers { display: flex; flex-wrap: wrap; align-items: flex-end; gap: .5rem 1.75rem; margin: .75rem 0; }
.numbers div { display: flex; flex-direction: column-reverse; }
.numbers dt { color: var(--soft); font-size: .8rem; }
.numbers dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.numbers dd.main { font-size: 1.7rem; font-weight: 700; line-height: 1.2; color: var(--accent); }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .4rem .75rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead tr:first-child > *, .settings tr:first-child > * { border-top: 0; }
thead th { color: var(--soft); font-weight: 600; }
th[scope=row], th.name { position: sticky; left: 0; background: var(--card); text-align: left; font-weight: 500; }
th[scope=row] span { display: block; width: max-content; max-width: min(16rem, 40vw); white-space: normal;
  overflow-wrap: anywhere; }
th.group { text-align: center; }
@media (max-width: 45rem) { th.group { text-align: left; } }
.of4 tr > :nth-child(6), .of6 tr > :nth-child(8), th.group:last-child { border-left: 1px solid var(--line); }
tfoot td, tfoot th[scope=row] { font-weight: 700; }
.settings td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 0; padding: .75rem; min-width: 0; }
figcaption { font-size: .9rem; margin-bottom: .4rem; overflow-wrap: anywhere; }
figcaption b { font-weight: 600; }
.pictures, .charts { display: grid; gap: 1rem; }
.charts + .soft { margin-top: .6rem; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.halves { display: flex; flex-wrap: wrap; border-radius: .3rem; overflow: hidden; background: #fff; }
.halves img { display: block; flex: 1 1 20rem; width: 50%; height: auto; }
.chart { display: block; width: 100%; max-width: 27rem; height: auto; margin: 0 auto; }
.chart text { font-family: inherit; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; padding: .5rem .75rem; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; margin-top: 1rem; }
pre { margin: 0; padding: .5rem .75rem; border-top: 1px solid var(--line); font-size: .82rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
"""


@dataclass(frozen=True)
class Origin:
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


def page(summary: Mapping[str, Any], pictures: Sequence[tuple[str, str, Sequence[bytes]]], origin: Origin) -> str:
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
        "<h1>Segmentation report</h1>",
        f'<p class="soft">{intro}</p>',
        f'<div class="cards">{"".join(_card(summary, convention) for convention in _CONVENTIONS)}</div>',
        "<h2>Classes</h2>",
        _table("class", list(organs.items()), feet[:1], shown_metrics(summary)),
        *_boxes(summary, list(organs)),
    ]
    if pictures:
        parts += [
            "<h2>Pictures</h2>",
            f'<div class="pictures">{"".join(_picture(*picture) for picture in pictures)}</div>',
        ]
    parts += ["<h2>Cases, worst first</h2>", _table("case", cases, feet, shown_metrics(summary))]
    parts += [*_training(origin.curves), *_provenance(origin)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Segmentation report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
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
        figures.append(_figure("Dice", f"{convention} convention", drawn))
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
        figures.append(_figure(title, what, drawn))
    return ["<h2>Training</h2>", f'<div class="charts">{"".join(figures)}</div>'] if figures else []


def _provenance(origin: Origin) -> list[str]:
    parts = []
    for title, rows in (("Settings", origin.settings), ("Environment", origin.environment)):
        parts += [f"<h2>{title}</h2>", _settings(rows)] if rows else []
        if title == "Settings" and origin.configuration:
            whole = f"<pre>{escape(origin.configuration)}</pre>"
            parts.append(f"<details><summary>The whole configuration</summary>{whole}</details>")
    return parts


def _figure(title: str, what: str, content: str) -> str:
    caption = f'<figcaption><b>{escape(title)}</b> <span class="soft">{escape(what)}</span></figcaption>'
    return f"<figure>{caption}{content}</figure>"


def _picture(title: str, what: str, parts: Sequence[bytes]) -> str:
    """A figure of PNG files; the first is described and the others belong to it."""
    described = escape(f"{title}: {what}; image, truth, prediction and errors")
    images = [
        f'<img src="data:image/png;base64,{base64.b64encode(part).decode("ascii")}" alt="{"" if place else described}">'
        for place, part in enumerate(parts)
    ]
    return _figure(title, what, f'<div class="halves">{"".join(images)}</div>')


def _settings(settings: Mapping[str, object]) -> str:
    rows = [f'<tr><th scope="row">{escape(str(k))}</th><td>{escape(str(v))}</td></tr>' for k, v in settings.items()]
    return f'<div class="table"><table class="settings"><tbody>{"".join(rows)}</tbody></table></div>'
