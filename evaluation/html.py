"""The report as one HTML page that needs no other file: figures, pictures and settings, nothing fetched or run."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

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
h3 { font-size: 1rem; margin: 0; }
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
th.group { text-align: center; }
.of4 tr > :nth-child(6), .of6 tr > :nth-child(8), th.group:last-child { border-left: 1px solid var(--line); }
tfoot td, tfoot th[scope=row] { font-weight: 700; }
.settings td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 0 0 1rem; padding: .75rem; }
figure img { display: block; width: 100%; height: auto; border-radius: .3rem; background: #fff; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .4rem; }
"""


def page(summary: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]], settings: Mapping[str, object]) -> str:
    """The page of a summary (see `report.summarise`), PNG pictures with their captions, and the run's settings."""
    organs = {
        name: {convention: summary[convention]["per_class"][name] for convention in _CONVENTIONS}
        for name in summary["published"]["per_class"]
    }
    worst_first = sorted(summary["cases"], key=_rank)
    cases = [(case["name"], case) for case in worst_first]
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
        "<h2>Organs</h2>",
        _table("organ", list(organs.items()), feet[:1], shown_metrics(summary)),
        "<h2>Cases, worst first</h2>",
        _table("case", cases, feet, shown_metrics(summary)),
    ]
    if pictures:
        parts += ["<h2>Pictures</h2>", *(_picture(caption, content) for caption, content in pictures)]
    if settings:
        parts += ["<h2>Settings</h2>", _settings(settings)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Segmentation report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


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
        f'<section class="card"><h3>{title}</h3><dl class="numbers">{"".join(entries)}</dl>'
        f'<p class="soft">{sentence}</p>{note}</section>'
    )


def _table(title: str, rows: Sequence[tuple[str, Any]], feet: Sequence[tuple[str, Any]], metrics: Sequence[str]) -> str:
    """A table with the metrics in both conventions, a row for each name and the feet below."""
    groups = "".join(f'<th class="group" colspan="{len(metrics)}" scope="colgroup">{c}</th>' for c in _CONVENTIONS)
    heads = "".join(f'<th scope="col">{TITLES[name]}</th>' for name in metrics) * len(_CONVENTIONS)
    body, foot = ("".join(_row(name, scores, metrics) for name, scores in part) for part in (rows, feet))
    return (
        f'<div class="table"><table class="of{len(metrics)}"><thead><tr><td></td>{groups}</tr>'
        f'<tr><th class="name" scope="col">{title}</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody><tfoot>{foot}</tfoot></table></div>"
    )


def _row(name: str, scores: Mapping[str, Any], metrics: Sequence[str]) -> str:
    cells = [number(metric, scores[convention][metric]) for convention in _CONVENTIONS for metric in metrics]
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _picture(caption: str, content: bytes) -> str:
    data = base64.b64encode(content).decode("ascii")
    caption = escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="Image and labels of {caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _settings(settings: Mapping[str, object]) -> str:
    rows = [f'<tr><th scope="row">{escape(str(k))}</th><td>{escape(str(v))}</td></tr>' for k, v in settings.items()]
    return f'<div class="table"><table class="settings"><tbody>{"".join(rows)}</tbody></table></div>'
