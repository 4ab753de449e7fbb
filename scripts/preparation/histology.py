"""The official GlaS and MoNuSeg to train/ and test/ of img/ and labelcol/: PNG images and masks of 0 and 255.

Outlines of MoNuSeg are in pixels from the upper left corner: pixel (row, column) belongs to an outline where its
center (x, y) = (column + 0.5, row + 0.5) lies within, by the even-odd rule.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from matplotlib.path import Path as Polygon
from PIL import Image
from scipy import ndimage

from datasets.errors import Defect, Defects
from datasets.label_values import label_table, mask_values, to_classes
from datasets.readers import read_image, read_mask
from datasets.sets.histology import ANNOTATED, find_cases
from datasets.splits import read_list
from scripts.preparation.pipeline import ROOT, Case, Facts, Plan

SPLITS = ("train", "val", "test")
OBJECTS = {"GlaS": "glands", "MoNuSeg": "nuclei"}
# Seven tiles have wrong names in the folder of the papers, and so in its split: that name, and the tile that it is.
# By the masks, against those of the official download, which has the names right (Dice 0.93 and more).
MISNAMED = {
    "TCGA-21-5784-01Z-00-DX1": "TCGA-BC-A217-01Z-00-DX1",
    "TCGA-A7-A13E-01Z-00-DX1": "TCGA-FG-A87N-01Z-00-DX1",
    "TCGA-B0-5698-01Z-00-DX1": "TCGA-UZ-A9PJ-01Z-00-DX1",
    "TCGA-B0-5710-01Z-00-DX1": "TCGA-F9-A8NY-01Z-00-DX1",
    "TCGA-B0-5711-01Z-00-DX1": "TCGA-UZ-A9PN-01Z-00-DX1",
    "TCGA-CH-5767-01Z-00-DX1": "TCGA-MH-A561-01Z-00-DX1",
    "TCGA-AY-A8YK-01A-01-TS1": "TCGA-XS-A8TJ-01Z-00-DX1",
}
_EXPECTED = {
    "GlaS": "train_1.bmp with train_1_anno.bmp and so on, as in Warwick QU Dataset (Released 2016_07_08)",
    "MoNuSeg": "NAME.tif with NAME.xml, as in Tissue Images/ and Annotations/ or in MoNuSegTestData/",
}
_PAIRS = "train/ and test/ of img/ and labelcol/"
_HALF_OF = {".tif": "image", ".tiff": "image", ".xml": "outlines"}
_MAX_XML = 2**24  # bytes; the largest file of MoNuSeg has some five million
_FAR = 0.1  # of the side; a vertex farther outside belongs to another image


def plan(args: argparse.Namespace) -> Plan:
    """The images with their masks or outlines below RAW."""
    dataset, raw = args.dataset, args.raw
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; expected {_EXPECTED[dataset]}, or {_PAIRS}")
    if args.out.resolve().is_relative_to(raw.resolve()):
        raise ValueError(f"OUT is {args.out}, within RAW {raw}; expected another place, give one")
    if dataset == "MoNuSeg" and any(raw.rglob("*.[xX][mM][lL]")):
        cases, how, defects = find_outlined(raw, args.split)
    else:
        cases, how, defects = find_paired(raw, dataset)
    if not cases and not defects:
        raise ValueError(f"{raw}: holds nothing of {dataset}; expected {_EXPECTED[dataset]}, or {_PAIRS}")
    return Plan(
        cases,
        f"{len(cases)} cases below {raw}; {how}",
        [*defects, *_name_defects(cases)],
        {split: f"{split}.txt" for split in SPLITS},
        partial(read, dataset=dataset),
        partial(write, what=OBJECTS[dataset]),
        f"train.py --cfg configs/{dataset.lower()}_unet.yaml",
        f"runs/{dataset.lower()}",
    )


def find_outlined(raw: Path, split: str) -> tuple[list[Case], str, list[Defect]]:
    """Images with their outlines, at any depth, by name; "papers" takes the tiles of the papers, "all" every one.

    One that the papers do not have tests where a folder of it says so, and else trains.
    """
    lists = {part: ROOT / f"datasets/lists/monuseg/{part}.txt" for part in ("train", "test")}
    papers = {MISNAMED.get(name, name): part for part, path in lists.items() for name in read_list(path)}
    found: dict[str, dict[str, Path]] = {}
    cases, defects = [], []
    for path in sorted(raw.rglob("*")):
        half = _HALF_OF.get(path.suffix.lower())
        hidden = any(name.startswith((".", "__MACOSX")) for name in path.relative_to(raw).parts)
        if half and not hidden and path.is_file():
            other = found.setdefault(path.stem, {}).setdefault(half, path)
            if other != path:
                what = f"is a second file of the {half} of {path.stem}, beside {other}; expected one, remove one"
                defects.append(Defect(path, what))
    for name in sorted(found if split == "all" else papers):
        halves = found.get(name, {})
        if len(halves) == 2:
            tests = "test" in "/".join(halves["image"].relative_to(raw.parent).parts[:-1]).lower()
            sources = halves["image"], halves["outlines"]
            cases.append(Case(name, papers.get(name, "test" if tests else "train"), sources))
        elif halves:
            ((half, there),) = halves.items()
            missing, suffix = ("outlines", "xml") if half == "image" else ("image", "tif")
            defects.append(Defect(there, f"has no {missing}; expected {name}.{suffix} below {raw}, add it"))
        else:
            what = f"is not there; expected the papers' {len(papers)} tiles, add it or take what is there (--split all)"
            defects.append(Defect(raw / f"{name}.tif", what))
    how = f"--split {split}, {len(papers.keys() & found.keys())} of the papers' {len(papers)} tiles are there"
    if left_out := sorted(found.keys() - papers) if split == "papers" else []:
        how += f"; left out, {len(left_out)} that --split all would take: {', '.join(left_out)}"
    return cases, how, defects


def find_paired(raw: Path, dataset: str) -> tuple[list[Case], str, list[Defect]]:
    """Images with masks: the official GlaS at any depth, or folders for each split."""
    root = raw
    if not any(raw.glob("[Tt]rain*/")) and not any(raw.glob("[Tt]est*/")):
        masks = (path for path in sorted(raw.rglob(f"[!.]*{ANNOTATED}.*")) if "__MACOSX" not in path.parts)
        root = next((path.parent for path in masks), raw)
    cases: list[Case] = []
    defects: list[Defect] = []
    for split in SPLITS:
        try:
            found_cases, found = find_cases(root, split)
        except FileNotFoundError:  # a split may be missing, such as the one to validate on
            continue
        cases += [Case(case.name, split, case.files) for case in found_cases]
        defects += [defect for defect in found if defect not in defects]
    return cases, "split as names and folders have it", defects


def _name_defects(cases: Sequence[Case]) -> Iterator[Defect]:
    """Names that are not plain, or are in two splits: a list and its reader know an image by its name alone."""
    first: dict[str, Case] = {}
    for case in cases:
        image = case.sources[0]
        if not re.fullmatch(r"\w[\w.\-]*", case.name, re.ASCII):
            yield Defect(image, "is not a plain name; expected letters, digits, '_', '-' and '.', rename both files")
        if (other := first.setdefault(case.name, case)) is not case:
            what = f"is {case.name} in {case.split}, as is {other.sources[0]} in {other.split}"
            yield Defect(image, f"{what}; expected it in one split, rename or remove one with its mask")


class Mask(NamedTuple):
    """The pixels (H, W, 3) uint8 of an image, its mask (H, W) bool, its objects, and outlines without a pixel."""

    pixels: np.ndarray
    mask: np.ndarray
    objects: int
    left_out: int = 0


def read(case: Case, *, dataset: str) -> Mask:
    """The image and mask of a case.

    Raises:
        Defects, ValueError, OSError: a file is damaged or cannot be used; the message names it.
    """
    image, annotation = case.sources
    pixels = read_image(image)
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        what = f"has shape {pixels.shape} of {pixels.dtype}; expected three channels (RGB) of 8 bits, so convert it"
        raise ValueError(f"{image}: {what}")
    if annotation.suffix.lower() == ".xml":
        outlines = read_outlines(annotation, pixels.shape[:2])
        mask = np.zeros(pixels.shape[:2], dtype=bool)
        drawn = sum(fill(outline, mask) for outline in outlines)
        return Mask(pixels, mask, drawn, len(outlines) - drawn)
    raw = read_mask(annotation)
    values = mask_values(raw)
    if dataset == "GlaS":  # whose masks number the glands
        mask = to_classes(raw, (0, 255), annotation, threshold=1) > 0
    else:
        mask = to_classes(raw, label_table({annotation: values}, 2), annotation) > 0
    if mask.shape != pixels.shape[:2]:
        raise ValueError(
            f"{annotation}: has {mask.shape} pixels but {image.name} {pixels.shape[:2]}; expected the same"
        )
    numbered = len(set(values) - {0})
    return Mask(pixels, mask, numbered if numbered > 1 else ndimage.label(mask, np.ones((3, 3)))[1])


def write(case: Case, found: Mask, out: Path, *, what: str) -> Facts:
    """Write the image and the mask of a case as PNG; `what` are its objects."""
    pixels, mask, objects, left_out = found
    for half, array in (("img", pixels), ("labelcol", mask.astype(np.uint8) * np.uint8(255))):
        (out / case.split / half).mkdir(parents=True)
        Image.fromarray(array).save(out / case.split / half / f"{case.name}.png", format="PNG", compress_level=6)
    counts = {what: objects, f"pixels of {what}": int(mask.sum()), "of background": int((~mask).sum())}
    counts |= {"outlines without a pixel": left_out} if left_out else {}
    return Facts(f"{mask.shape[1]} x {mask.shape[0]} pixels", [case.name], counts)


def read_outlines(path: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """The regions that Aperio ImageScope marks in an image of `size` (H, W): vertices (N, 2) of (x, y) in pixels.

    Raises:
        Defects: it is no such file, or outlines do not belong to the image: outside, or with a vertex far outside.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes() if path.stat().st_size <= _MAX_XML else b"")
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the others of an unknown encoding
        what = f"is no readable XML of {_MAX_XML >> 20} MiB at most ({error})"
        raise Defects(path, [Defect(path, f"{what}; expected outlines by Aperio ImageScope, copy it again")]) from None
    outlines, defects, side = [], [], np.array(size[::-1])
    expected = f"expected it within {size[1]} x {size[0]} pixels, so take the annotation of this image"
    for number, region in enumerate(root.iter("Region"), 1):
        try:
            vertices = [(float(vertex.attrib["X"]), float(vertex.attrib["Y"])) for vertex in region.iter("Vertex")]
        except (KeyError, ValueError):
            vertices = [(np.nan, np.nan)] * 3
        outlines.append(np.reshape(vertices, (-1, 2)))
        low, high = outlines[-1].min(axis=0, initial=np.inf), outlines[-1].max(axis=0, initial=-np.inf)
        inside = (high > 0) & (low < side) & (low >= -_FAR * side) & (high <= (1 + _FAR) * side)
        if len(vertices) > 2 and not inside.all():
            where = f"region {number} lies at x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
            defects.append(Defect(path, f"{where}; {expected}"))
    if defects or not outlines:
        raise Defects(path, defects or [Defect(path, f"has no region; {expected}")])
    return outlines


def fill(outline: np.ndarray, mask: np.ndarray) -> bool:
    """Set the pixels of `mask` (H, W) bool whose centers lie within an outline (N, 2) of (x, y); are there any?"""
    if len(outline) < 3:
        return False
    left, top = np.maximum(np.floor(outline.min(axis=0)), 0).astype(int)
    right, bottom = np.ceil(outline.max(axis=0)).astype(int)
    window = mask[top:bottom, left:right]
    centers = np.argwhere(np.ones_like(window))[:, ::-1] + (left + 0.5, top + 0.5)
    inside = Polygon(outline).contains_points(centers)
    window |= inside.reshape(window.shape)
    return bool(inside.any())
