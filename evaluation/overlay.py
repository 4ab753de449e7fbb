"""Overlays: one slice of a case with its image, truth, prediction and errors side by side, as a PNG."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from datasets.case import Volume
from datasets.readers.grid import upright
from utils import atomic_write, release_pages

# Class 1 has the first. No two of these and of the errors' are nearer than 20 in CIEDE2000, or 12 without red or green.
_CLASS_COLORS = (
    *("#55EEFF", "#FFAA11", "#990066", "#88FFAA", "#5500DD", "#FF99BB", "#337744"),
    *("#888800", "#EE8866", "#8866AA", "#883300", "#00AA99", "#DD4466"),
)
ERRORS = (("false negative", "#FF44FF"), ("false positive", "#FFFF00"), ("wrong class", "#FFFFFF"))
_PANEL, _CELL, _GAP, _LINE = 384, 400, 8, 28  # pixels: width of a panel, with its margins, a margin, a line of text

Legend = Sequence[tuple[str, str]]  # name and color of each label from 1 on
Panel = tuple[str, Image.Image, Legend]  # its title, the image with labels over it, and what their colors mean


def write_overlay(path: Path, volume: Volume, prediction: np.ndarray, class_names: Sequence[str]) -> None:
    """Write `draw_overlay` as a PNG file."""
    image = draw_overlay(volume, prediction, class_names)
    atomic_write(path, lambda partial: image.save(partial, "PNG", compress_level=1))


def draw_overlay(volume: Volume, prediction: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """One slice, that of `richest_slice`: image, truth, prediction and errors side by side, 400 pixels wide each.

    Without a label truth and errors are left out; what it has to be ignored is in neither. Two panels have their legend
    below: the overlay may be cut in the middle. Where the geometry is known, an axial slice is drawn as a radiologist
    reads it.
    """
    label, geometry = volume.label, volume.geometry
    index = richest_slice(prediction if label is None or not label.any() else label, len(class_names))
    pixels = upright(display(volume.image[index : index + 1][0]), geometry)
    predicted = upright(prediction[index], geometry)
    truth = predicted if label is None else upright(label[index], geometry)
    ignored = truth > len(class_names)
    truth = np.where(ignored, 0, truth)
    wrong = np.where(ignored, 0, errors(predicted, truth))
    image = Image.fromarray(np.round(255 * pixels).astype(np.uint8))
    dimmed = image.convert("L").point(lambda value: 0.45 * value).convert("RGB")
    classes = [(name, class_color(number)) for number, name in enumerate(class_names, start=1)]
    panels = [
        ("image", image, ()),
        _panel("truth", image, truth, classes),
        _panel("prediction", image, predicted, classes),
        _panel("errors" if wrong.any() else "no errors", dimmed, wrong, ERRORS, opacity=1.0),
    ]
    title = volume.name if volume.is_image else f"{volume.name}, slice {index + 1} of {len(prediction)}"
    return _draw(title, panels[::2] if label is None else panels)


def errors(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Errors of a prediction in the shape of the truth: 0 none, then numbered from 1 as in `ERRORS`."""
    wrong = prediction != truth
    return np.select([wrong & (prediction == 0), wrong & (truth == 0), wrong], [1, 2, 3], 0)


def richest_slice(labels: np.ndarray, last: int = 255) -> int:
    """Index of the slice with most classes of 1..last, then most voxels of them; the middle one if there are none."""
    ranks = []
    for index, plane in enumerate(labels):
        counts = np.bincount(plane.ravel())[1 : last + 1]
        ranks.append((np.count_nonzero(counts), counts.sum(), -index))
        release_pages(labels)  # labels on the disk may not fit into memory
    classes, _, index = max(ranks)
    return -index if classes else len(labels) // 2


def display(plane: np.ndarray) -> np.ndarray:
    """A slice (H, W), (H, W, 3) or (C, H, W), of which C other than 3 shows the first channel, as (H, W, 3) in [0, 1],
    from its 1st to its 99th percentile."""
    plane = np.asarray(plane, dtype=np.float32)
    if plane.ndim == 3 and plane.shape[-1] != 3:
        plane = np.moveaxis(plane, 0, -1) if len(plane) == 3 else plane[0]
    low, high = np.percentile(plane, [1, 99])
    if low == high:
        low, high = plane.min(), plane.max()
    plane = np.clip((plane - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    return plane if plane.ndim == 3 else np.broadcast_to(plane[..., None], (*plane.shape, 3))


def class_color(label: int) -> str:
    """The color of a class, which depends on its number alone; no two of 255 have the same."""
    if label <= len(_CLASS_COLORS):
        return _CLASS_COLORS[label - 1]
    saturation, value = ((70, 87), (40, 78), (86, 61))[label % 3]
    return f"hsv({360 * (0.618034 * label + 0.75) % 360:.2f}, {saturation}%, {value}%)"  # the golden ratio of the hues


def _panel(title: str, image: Image.Image, labels: np.ndarray, legend: Legend, opacity: float = 0.65) -> Panel:
    """A panel of the labels (H, W) over the image, 0 left as it is, with the part of the legend that occurs in it."""
    colors = np.array([ImageColor.getrgb(color) for _, color in (("", "black"), *legend)], np.uint8)[labels]
    shown = np.where(labels > 0, np.uint8(255 * opacity), np.uint8(0))
    painted = Image.composite(Image.fromarray(colors), image, Image.fromarray(shown))
    return title, painted, [legend[label - 1] for label in np.unique(labels) if label]


def _draw(title: str, panels: Sequence[Panel]) -> Image.Image:
    """Panels side by side, with a legend below each two."""
    font = ImageFont.load_default(20)
    legends = []
    for (_, _, left), (_, _, right) in zip(panels[::2], panels[1::2], strict=True):
        legends.append([(_fit(name, font, _CELL - 60), color) for name, color in dict.fromkeys((*left, *right))])
    column = 60 + max((math.ceil(font.getlength(name)) for legend in legends for name, _ in legend), default=0)
    columns = 2 * _CELL // column
    wide, tall = panels[0][1].size
    scale = min(_PANEL / wide, 1.2 * _PANEL / tall)
    size = max(1, round(scale * wide)), max(1, round(scale * tall))
    below = 2 * _LINE + size[1] + _GAP
    height = below + _LINE * max(math.ceil(len(legend) / columns) for legend in legends) + _GAP
    canvas = Image.new("RGB", (_CELL * len(panels), height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _LINE // 2), _fit(title, font, 2 * (_CELL - _GAP)), "black", font, anchor="lm")
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    for number, (name, image, _) in enumerate(panels):
        draw.text(((number + 0.5) * _CELL, 1.5 * _LINE), name, "black", font, anchor="mm")
        canvas.paste(image.resize(size, how), (number * _CELL + (_CELL - size[0]) // 2, 2 * _LINE))
    for half, legend in enumerate(legends):
        for number, (name, color) in enumerate(legend):
            x, y = 2 * _CELL * half + _GAP + number % columns * column, below + number // columns * _LINE
            draw.rectangle((x, y + 5, x + 32, y + 22), color, "gray")
            draw.text((x + 40, y + _LINE // 2), name, "black", font, anchor="lm")
    return canvas


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Text of at most `width` pixels in letters that the font has (ASCII, without accents), its middle cut out."""
    plain = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    text = shown = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in plain)
    kept = len(text)
    while font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 3]} ... {text[len(text) - kept // 3 :]}"
    return shown
