"""What a test leaves behind: the summary, the table on the terminal, per-case figures, overlays and one HTML page."""

from __future__ import annotations

import colorsys
import csv
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Geometry, Volume
from evaluation import html
from evaluation.metrics import METRICS, ClassScores
from utils import whole_or_absent

CONVENTIONS = ("published", "strict")

# Class 1 has the first. Seven of Okabe and Ito, then those that stay farthest from these and from grey for readers
# who see all colours, no red or no green.
_COLOURS = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
    *("#1111FF", "#77FF99", "#991111", "#111199", "#1177FF"),
)


@dataclass(frozen=True)
class CaseResult:
    """What was measured on one case: its name and the scores of the classes 1 to K - 1, in that order."""

    name: str
    scores: tuple[ClassScores, ...]


def summarise(results: Sequence[CaseResult], class_names: Sequence[str], *, unit: str = "voxels") -> dict[str, Any]:
    """Mean scores in both conventions: overall, per organ and per case, as plain data that JSON can hold.

    A case's mean is taken over its classes, the overall mean over the cases' means. A strict figure that is
    undefined is left out of every mean and counted in `strict["undefined"]`; a mean of nothing is None.
    `class_names` names the classes from 1 on, `unit` is that of HD95 and ASSD ("voxels" at unit spacing, or "mm").

    Raises:
        ValueError: there are no results, or the names are not as many as the classes, or not all different.
    """
    _check(results, class_names)
    summary: dict[str, Any] = {}
    cases: list[dict[str, Any]] = [{"name": result.name} for result in results]
    for convention in CONVENTIONS:
        table = [[getattr(scores, convention) for scores in result.scores] for result in results]
        for case, row in zip(cases, table, strict=True):
            per_class = {organ: _means([scores]) for organ, scores in zip(class_names, row, strict=True)}
            case[convention] = _means(row) | {"per_class": per_class}
        columns = dict(zip(class_names, zip(*table, strict=True), strict=True))
        summary[convention] = _means([case[convention] for case in cases])
        summary[convention]["per_class"] = {organ: _means(column) for organ, column in columns.items()}
        if convention == "strict":
            summary["strict"]["undefined"] = _undefined(columns)
    return summary | {"unit": unit, "cases": cases}


def format_table(summary: Mapping[str, Any]) -> str:
    """The summary as plain text: a row for each case, a row for each organ, the means last."""
    unit, cases = summary["unit"], summary["cases"]
    organs = [(organ, _by_convention(summary, organ)) for organ in summary["published"]["per_class"]]
    rows = [(case["name"], case) for case in cases]
    width = max(len(name) for name, _ in [("case", None), *rows, *organs])
    head = " ".join(f"{title:>8}" for title in ("Dice", "HD95", "Jaccard", "ASSD"))
    lines = [
        f"cases: {len(cases)}; Dice and Jaccard from 0 to 1, HD95 and ASSD in {unit}; - is undefined",
        f"{'':{width}}  {'published convention':^{len(head)}}  {'strict convention':^{len(head)}}",
    ]
    for title, block in (("case", rows), ("organ", organs), (None, [("mean", summary)])):
        lines += [f"{title:{width}}  {head}  {head}"] if title else []
        lines += [f"{name:{width}}  {_cells(row['published'])}  {_cells(row['strict'])}" for name, row in block]
        lines += ["-" * len(lines[-1])] if title else []
    undefined, total = summary["strict"]["undefined"], len(cases) * len(organs)
    if undefined["hd95"]:
        lines.append(
            f"strict: of {total} figures each, {undefined['dice']} of Dice and {undefined['hd95']} of HD95 are "
            "undefined and left out of the means"
        )
    return "\n".join(lines)


def write_csv(path: Path, results: Sequence[CaseResult], class_names: Sequence[str]) -> None:
    """Write one row for each case and class with the metrics in both conventions, an empty cell where undefined.

    Raises:
        ValueError: as in `summarise`.
    """
    _check(results, class_names)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "class", "organ", *(f"{name}_{kind}" for kind in CONVENTIONS for name in METRICS)])
    for result in results:
        for label, (organ, scores) in enumerate(zip(class_names, result.scores, strict=True), start=1):
            figures = [getattr(scores, kind)[name] for kind in CONVENTIONS for name in METRICS]
            cells = ["" if math.isnan(value) else repr(float(value)) for value in figures]
            writer.writerow([result.name, label, organ, *cells])
    _write(path, text.getvalue().encode())


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary as JSON."""
    _write(path, (json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_html(
    path: Path, summary: Mapping[str, Any], overlays: Sequence[Path], settings: Mapping[str, object]
) -> None:
    """Write one HTML file that needs no other: figures, overlays (PNG files, embedded) and the settings of the run.

    Raises:
        FileNotFoundError: an overlay does not exist.
    """
    pictures = [(Path(overlay).stem, Path(overlay).read_bytes()) for overlay in overlays]
    _write(path, html.page(summary, pictures, settings).encode())


def write_overlay(path: Path, volume: Volume, prediction: np.ndarray, class_names: Sequence[str]) -> None:
    """Write a PNG of one slice, image, truth and prediction side by side, about 1200 x 450 pixels.

    The slice is the one whose truth has most classes, then most labelled voxels; without a label the prediction
    decides and the panel of the truth is left out. `prediction` is (D, H, W), classes numbered from 1 as in
    `class_names`; the image is (D, H, W), or in colour (D, H, W, 3) or (D, 3, H, W). Where the geometry is known,
    an axial slice lies as a radiologist reads it.

    Raises:
        ValueError: the shapes do not fit together, or a class has no name.
    """
    _check_overlay(volume, prediction, class_names)
    has_truth = volume.label is not None and volume.label.any()
    index = _richest_slice(volume.label if has_truth else prediction)
    panels = [("image", None)] if volume.label is None else [("image", None), ("truth", volume.label[index])]
    panels.append(("prediction", prediction[index]))

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(4.0 * len(panels), 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    picture = _display(volume.image[index])
    for axes, (title, labels) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        shown = _upright(picture if labels is None else _paint(picture, labels), volume.geometry)
        axes.imshow(shown, aspect="equal", interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    title = f"{volume.name}, slice {index + 1} of {len(prediction)}"
    figure.suptitle(title, fontsize=12, parse_math=False)
    shown = sorted({int(label) for _, labels in panels[1:] for label in np.unique(labels)} - {0})
    if shown:
        handles = [Patch(color=_colour(label), label=class_names[label - 1]) for label in shown]
        # An entry takes its swatch and about 7 pixels a letter; as many fit beside each other as the panels are wide.
        entry = 50 + 7 * max(len(class_names[label - 1]) for label in shown)
        columns = min(len(shown), max(1, 400 * len(panels) // entry))
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of letters in a name that the font lacks: a box stands for each
        figure.savefig(buffer, format="png")
    _write(path, buffer.getvalue())


def _check(results: Sequence[CaseResult], class_names: Sequence[str]) -> None:
    """Refuse results that the names do not fit."""
    if not results:
        raise ValueError("there are no results; expected at least one case")
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"the class names are {', '.join(class_names)}; expected each name once")
    for result in results:
        if len(result.scores) != len(class_names) or not result.scores:
            raise ValueError(
                f"{result.name}: {len(result.scores)} classes were scored but {len(class_names)} are named; expected "
                "one name for each class from 1 on, without the background"
            )


def _means(scores: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Each metric's mean over the figures that are defined, None if none is."""
    means: dict[str, float | None] = {}
    for name in METRICS:
        defined = [float(row[name]) for row in scores if _defined(row[name])]
        means[name] = math.fsum(defined) / len(defined) if defined else None
    return means


def _defined(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _undefined(columns: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """How many figures of each metric are undefined, in all and per organ."""
    per_class = {
        organ: {name: sum(not _defined(scores[name]) for scores in column) for name in METRICS}
        for organ, column in columns.items()
    }
    return {name: sum(counts[name] for counts in per_class.values()) for name in METRICS} | {"per_class": per_class}


def _by_convention(summary: Mapping[str, Any], organ: str) -> dict[str, dict[str, float | None]]:
    """An organ's scores, laid out as those of a case."""
    return {convention: summary[convention]["per_class"][organ] for convention in CONVENTIONS}


def _cells(scores: Mapping[str, float | None]) -> str:
    """The four metrics of a table row, each eight characters wide."""
    return " ".join(f"{html.number(name, scores[name], missing='-'):>8}" for name in METRICS)


def _check_overlay(volume: Volume, prediction: np.ndarray, class_names: Sequence[str]) -> None:
    """Refuse arrays that do not lie on one grid and classes without a name."""
    image, label = volume.image, volume.label
    grids = [image.shape] if image.ndim == 3 else [image.shape[:3], (image.shape[0], *image.shape[2:])]
    if prediction.ndim != 3 or prediction.shape not in grids or not prediction.size:
        raise ValueError(
            f"{volume.name}: the prediction has shape {prediction.shape} and the image {image.shape}; expected "
            "(D, H, W) for both, so resize the prediction to the image's grid"
        )
    if label is not None and label.shape != prediction.shape:
        raise ValueError(
            f"{volume.name}: the truth has shape {label.shape} and the prediction {prediction.shape}; expected the same"
        )
    highest = max(int(labels.max()) for labels in (label, prediction) if labels is not None)
    if highest > len(class_names):
        raise ValueError(
            f"{volume.name}: class {highest} occurs but {len(class_names)} classes are named; expected one name for "
            "each class from 1 on, without the background"
        )


def _richest_slice(labels: np.ndarray) -> int:
    """Index of the slice with most classes, then most labelled voxels; the middle one if nothing is labelled."""
    ranks = []
    for index, plane in enumerate(labels.astype(np.intp)):
        counts = np.bincount(plane.ravel())[1:]
        ranks.append((np.count_nonzero(counts), int(counts.sum()), -index))
    best = max(ranks)
    return -best[2] if best[0] else len(labels) // 2


def _display(plane: np.ndarray) -> np.ndarray:
    """A slice as (H, W, 3) in [0, 1], from its 1st to its 99th percentile, whatever its intensities mean."""
    plane = np.asarray(plane, dtype=np.float64)
    if plane.ndim == 3 and plane.shape[-1] != 3:
        plane = np.moveaxis(plane, 0, -1)
    low, high = np.percentile(plane, [1, 99])
    if low == high:
        low, high = plane.min(), plane.max()
    plane = np.clip((plane - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    plane = plane if plane.ndim == 3 else plane[..., None]
    return np.broadcast_to(plane, (*plane.shape[:2], 3))


def _upright(picture: np.ndarray, geometry: Geometry | None) -> np.ndarray:
    """An axial slice (H, W, 3) with anterior up and the patient's right at the left; any other one as it is stored."""
    if geometry is None or geometry.axis_order[0] != "z":
        return picture
    # Rows and columns of the file's direction matrix: patient axes (left, posterior, superior) by file axes.
    by_axis = dict(zip("xyz", np.reshape(geometry.direction, (3, 3)).T, strict=True))
    towards = [by_axis[axis] for axis in geometry.axis_order[1:]]
    patient_axes = [int(np.abs(direction).argmax()) for direction in towards]
    if sorted(patient_axes) != [0, 1]:
        return picture
    flipped = [i for i, direction in enumerate(towards) if direction[patient_axes[i]] < 0]
    picture = np.flip(picture, axis=flipped)
    return picture.swapaxes(0, 1) if patient_axes == [0, 1] else picture


def _paint(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The (H, W, 3) picture with each class of (H, W) labels laid over it in its colour."""
    painted = picture.copy()
    for label in set(np.unique(labels).tolist()) - {0}:
        inside = labels == label
        painted[inside] = 0.35 * picture[inside] + 0.65 * np.asarray(_colour(int(label)))
    return painted


def _colour(label: int) -> tuple[float, float, float]:
    """The colour of a class, as red, green and blue from 0 to 1; it depends on the class number alone."""
    if label <= len(_COLOURS):
        code = _COLOURS[label - 1]
        return tuple(int(code[start : start + 2], 16) / 255 for start in (1, 3, 5))
    # Steps of the golden ratio around the hues: no two of them fall together.
    return colorsys.hsv_to_rgb(0.618034 * label % 1.0, 0.6, 0.95)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; folders that are missing are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_or_absent(path, lambda partial: partial.write_bytes(content))
