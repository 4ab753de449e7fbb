"""Outlines of objects in a picture, as Aperio ImageScope writes them (MoNuSeg): read, checked, and drawn as a mask.

Outlines are in pixels of the picture from its upper left corner on: pixel (row, column) reaches from (x, y) = (column,
row) to (column + 1, row + 1), and belongs to an outline where its centre (column + 0.5, row + 0.5) lies within, by the
even-odd rule. A centre that lies on an outline itself belongs to the shape on its right, or below it, so that of two
shapes with an edge in common every pixel belongs to one alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets.base import Defect

# Far more than any picture has: what a file may cost follows from them.
_LARGEST = 2**25  # bytes; the largest file of MoNuSeg has some five million
_MOST_REGIONS = 2**16
_DEEPEST = 64  # elements in one another
_AT_ONCE = 2**20  # crossings of edges and rows that are worked out together
_FAR = 0.1  # of the side; a vertex farther outside belongs to another picture
_FEWEST = 3  # vertices of an outline


def read_outlines(path: Path) -> list[np.ndarray]:
    """Read the regions of an Aperio annotation file, each an array (N, 2) of its vertices (x, y) in pixels.

    Raises:
        ValueError: it is no such file, is too large, has too many regions, declares a document type or entities, or a
            vertex is no number; the message names it and the region.
    """
    from xml.parsers import expat

    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path}: has more than {_LARGEST >> 20} MiB; expected outlines of one picture")
    regions: list[list[tuple[float, float]]] = []
    within: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if not within and tag != "Annotations":
            raise ValueError(f"{path}: begins with <{tag}>; expected <Annotations>, as Aperio ImageScope writes it")
        within.append(tag)
        if len(within) > _DEEPEST:
            raise ValueError(f"{path}: has elements {len(within)} deep; expected Aperio's outlines, copy it again")
        if tag == "Region":
            if len(regions) == _MOST_REGIONS:
                raise ValueError(f"{path}: has more than {_MOST_REGIONS} regions; expected outlines of one picture")
            regions.append([])
        elif tag == "Vertex" and regions:
            regions[-1].append(_vertex(attributes, f"{path}: region {len(regions)}"))

    def refuse(*_: object) -> None:
        raise ValueError(f"{path}: declares a document type; expected plain XML, so remove its <!DOCTYPE ...>")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, lambda tag: within.pop()
    parser.StartDoctypeDeclHandler = refuse  # entities are declared there, and in no other place
    try:
        parser.Parse(path.read_bytes(), True)
    except (expat.ExpatError, LookupError) as error:  # the second of an unknown encoding
        raise ValueError(f"{path}: is no readable XML ({error}); expected Aperio's outlines, copy it again") from None
    return [np.reshape(np.array(region, dtype=np.float64), (-1, 2)) for region in regions]


def _vertex(attributes: dict[str, str], where: str) -> tuple[float, float]:
    try:
        x, y = float(attributes["X"]), float(attributes["Y"])
    except (KeyError, ValueError):
        x = y = math.nan
    if not (math.isfinite(x) and math.isfinite(y)):
        found = " ".join(f'{key}="{value[:40]}"' for key, value in attributes.items())
        raise ValueError(f"{where} has the vertex {found}; expected X and Y, finite numbers")
    return x, y


def outline_defects(path: Path, outlines: Sequence[np.ndarray], size: tuple[int, int]) -> Iterator[Defect]:
    """Outlines that do not belong to a picture of `size` (H, W): outside of it, or with a vertex far outside."""
    side = np.array(size[::-1], dtype=np.float64)
    expected = (
        f"expected it within {size[1]} x {size[0]} pixels (width x height), so take the annotation of this picture"
    )
    if not outlines:
        yield Defect(path, "has no region; expected outlines, so take the annotation of this picture")
    for number, outline in enumerate(outlines, 1):
        if len(outline) < _FEWEST:
            continue
        low, high = outline.min(axis=0), outline.max(axis=0)
        where = f"lies at x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
        if (high <= 0).any() or (low >= side).any():
            yield Defect(path, f"region {number} {where}, outside the picture; {expected}")
        elif (low < -_FAR * side).any() or (high > (1 + _FAR) * side).any():
            yield Defect(path, f"region {number} {where}, far beyond the picture; {expected}")


def rasterise(outline: np.ndarray, mask: np.ndarray) -> bool:
    """Set the pixels of `mask` (H, W) bool whose centres lie within an outline (N, 2) of (x, y); the even-odd rule.

    Returns whether there is any. See the head of this module for where the centres are.
    """
    height, width = mask.shape
    top = max(0, math.floor(outline[:, 1].min() - 0.5))
    bottom = min(height, math.ceil(outline[:, 1].max() + 0.5))
    if bottom <= top:
        return False
    ends = np.stack([outline, np.roll(outline, -1, axis=0)])
    # From above to below, so that an edge crosses a row at the same number whichever shape it belongs to.
    (x0, y0), (x1, y1) = np.where(
        ends[0, :, 1] <= ends[1, :, 1], ends.transpose(0, 2, 1), ends[::-1].transpose(0, 2, 1)
    )
    first_row, end_row = (np.clip(np.ceil(y - 0.5), top, bottom).astype(np.int64) for y in (y0, y1))
    counts = np.zeros((bottom - top) * (width + 1), dtype=np.int64)
    for edges, rows in _crossings(first_row, end_row):
        slope = (x1[edges] - x0[edges]) / (y1[edges] - y0[edges])
        crossings = x0[edges] + (rows + 0.5 - y0[edges]) * slope
        first = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)  # column from which on it lies to the left
        counts += np.bincount((rows - top) * (width + 1) + first, minlength=len(counts))
    inside = counts.reshape(bottom - top, width + 1)[:, :width].cumsum(axis=1) % 2 == 1
    mask[top:bottom] |= inside
    return bool(inside.any())


def _crossings(first_row: np.ndarray, end_row: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each edge with each row from its first to before its end, a part of these pairs at a time."""
    lengths = end_row - first_row
    ends = np.cumsum(lengths)
    borders = np.searchsorted(ends, np.arange(_AT_ONCE, ends[-1], _AT_ONCE), side="right")
    for part in np.split(np.arange(len(lengths)), borders):
        before = np.cumsum(lengths[part]) - lengths[part]
        edges = np.repeat(part, lengths[part])
        yield edges, np.arange(len(edges)) + np.repeat(first_row[part] - before, lengths[part])


def draw(outlines: Iterable[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, dict[str, int]]:
    """The mask (H, W) bool of all outlines together, and how many were drawn, clipped, too short or too small."""
    mask = np.zeros(size, dtype=bool)
    counts = {"objects": 0, "clipped": 0, "short": 0, "small": 0}
    for outline in outlines:
        if len(outline) < _FEWEST:
            counts["short"] += 1
            continue
        counts["objects" if rasterise(outline, mask) else "small"] += 1
        counts["clipped"] += bool((outline < 0).any() or (outline > size[::-1]).any())
    return mask, counts
