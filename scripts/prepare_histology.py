"""Turn the official downloads of GlaS and MoNuSeg into train/ and test/ of img/ and labelcol/: PNG pictures and masks.

python scripts/prepare_histology.py GlaS|MoNuSeg RAW OUT [--split papers|all] [--jobs 4]

A mask is 255 where a gland or nucleus is, else 0. A nucleus has the pixels whose centres lie within its outline (see
datasets/outlines.py). What the papers use of MoNuSeg are 30 of its 37 training cases, and its 14 test cases.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets.base import Defect

SPLITS = Path(__file__).resolve().parent.parent / "datasets" / "splits"
PARTS, HALVES = ("train", "val", "test"), ("img", "labelcol")
OBJECTS = {"GlaS": "glands", "MoNuSeg": "nuclei"}
_EXPECTED = {
    "GlaS": "train_1.bmp with train_1_anno.bmp and so on, as in Warwick QU Dataset (Released 2016_07_08)",
    "MoNuSeg": "NAME.tif with NAME.xml, as in Tissue Images/ and Annotations/ or in MoNuSegTestData/",
}
_PAIRS = "train/ and test/ of img/ and labelcol/"
_KINDS = {".tif": "picture", ".tiff": "picture", ".xml": "outlines"}
_PLAIN = re.compile(r"\w[\w.\-]*", re.ASCII)
_WHITE = 255  # of a mask


@dataclass(frozen=True)
class Case:
    """A picture and its annotation, an outline file or a mask, and the part that it belongs to.

    `instances` says that the values of the mask number objects.
    """

    name: str
    split: str
    image: Path
    annotation: Path
    instances: bool = False

    @property
    def sources(self) -> tuple[Path, Path]:
        """The files that it is made from."""
        return self.image, self.annotation


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from configs.arguments import OneLineParser

    parser = OneLineParser(prog="prepare_histology.py", description="Turn GlaS or MoNuSeg into PNG pictures and masks.")
    add = parser.add_argument
    add("dataset", choices=tuple(_EXPECTED), help="which of both RAW is")
    add("raw", type=Path, metavar="RAW", help=f"the unpacked download, or a folder of {_PAIRS}")
    add("out", type=Path, metavar="OUT", help="gets train/ and test/ of img/ and labelcol/, and lists/")
    add("--split", choices=("papers", "all"), default="papers", help="of MoNuSeg: 30 and 14 cases (default), or all")
    add("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    return parser


def find_cases(dataset: str, raw: Path, split: str) -> tuple[list[Case], str, list[Defect]]:
    """The cases below `raw`, a sentence on how they are split, and what is wrong with names and headers.

    Raises:
        ValueError: there is no such folder, or nothing of the data set in it.
    """
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; expected {_EXPECTED[dataset]}, or {_PAIRS}")
    if dataset == "MoNuSeg" and any(raw.rglob("*.[xX][mM][lL]")):
        cases, how, defects = _find_outlined(raw, split)
    else:
        cases, how, defects = _find_paired(raw, dataset)
    if not cases and not defects:
        raise ValueError(f"{raw}: holds nothing of {dataset}; expected {_EXPECTED[dataset]}, or {_PAIRS}; {how}")
    return cases, how, defects + list(_name_defects(cases))


def _find_outlined(raw: Path, split: str) -> tuple[list[Case], str, list[Defect]]:
    """Pictures with their outlines, at any depth, by name.

    "papers" takes the names of the shipped lists and no others. "all" takes every one; one that is in no list tests
    where a folder of it says so, and else trains.
    """
    from datasets.base import Defect, read_list

    listed = {name: part for part in ("train", "test") for name in read_list(SPLITS / "monuseg" / f"{part}.txt")}
    found, defects = _halves_by_name(raw)
    chosen = sorted(found if split == "all" else found.keys() & listed.keys())
    cases = []
    for stem in chosen:
        halves = found[stem]
        for half, other, suffix in (("picture", "outlines", ".xml"), ("outlines", "picture", ".tif")):
            if other not in halves:
                defects.append(Defect(halves[half], f"has no {other}; expected {stem}{suffix} below {raw}, add it"))
        if len(halves) == 2:
            tests = "test" in "/".join(halves["picture"].relative_to(raw.parent).parts[:-1]).lower()
            part = listed.get(stem, "test" if tests else "train")
            cases.append(Case(stem, part, halves["picture"], halves["outlines"]))
    how = f"--split {split}, {len(listed.keys() & found.keys())} of the papers' {len(listed)} names are there"
    left = sorted(found.keys() - set(chosen))
    if left:
        how += f"; left out, {len(left)} that --split all would take: {', '.join(left)}"
    return cases, how, defects


def _halves_by_name(raw: Path) -> tuple[dict[str, dict[str, Path]], list[Defect]]:
    """The "picture" and the "outlines" of each name below `raw`, and those that are there twice."""
    from datasets.base import Defect

    found: dict[str, dict[str, Path]] = {}
    defects = []
    for path in sorted(raw.rglob("*")):
        half = _KINDS.get(path.suffix.lower())
        hidden = any(name.startswith((".", "__MACOSX")) for name in path.relative_to(raw).parts)
        if half and not hidden and path.is_file():
            halves = found.setdefault(path.stem, {})
            if half in halves:
                what = f"is a second file of the {half} of {path.stem}, beside {halves[half]}; expected one, remove one"
                defects.append(Defect(path, what))
            halves.setdefault(half, path)
    return found, defects


def _find_paired(raw: Path, dataset: str) -> tuple[list[Case], str, list[Defect]]:
    """Pictures with masks: the official GlaS at any depth, or folders for each part."""
    from datasets.histology import ANNOTATED, look_for_pairs

    root, instances = raw, dataset == "GlaS"
    if not any(raw.glob("[Tt]rain*/")) and not any(raw.glob("[Tt]est*/")):
        masks = (path for path in sorted(raw.rglob(f"[!.]*{ANNOTATED}.*")) if "__MACOSX" not in path.parts)
        root = next((path.parent for path in masks), raw)
    cases, defects = [], []
    for part in PARTS:
        try:
            pairs, found = look_for_pairs(root, part, instances=instances)
        except FileNotFoundError:  # a part may be missing, such as the one to validate on
            continue
        cases += [Case(pair.name, part, pair.image, pair.label, instances) for pair in pairs]
        defects += [defect for defect in found if defect not in defects]
    return cases, "split as names and folders have it", defects


def _name_defects(cases: Sequence[Case]) -> Iterator[Defect]:
    """Names that are not plain, or are in two parts: a list and its reader know a picture by its name alone."""
    from datasets.base import Defect

    first: dict[str, Case] = {}
    for case in cases:
        if not _PLAIN.fullmatch(case.name):
            expected = "expected letters, digits, '_', '-' and '.', so rename both files"
            yield Defect(case.image, f"is not a plain name; {expected}")
        other = first.setdefault(case.name, case)
        if other is not case:
            found = f"is {case.name} in {case.split}, as is {other.image} in {other.split}"
            yield Defect(case.image, f"{found}; expected it in one part, rename or remove one with its mask")


def read_case(case: Case) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The pixels (H, W, 3) uint8 of a case, its mask (H, W) bool, and how many objects there are.

    Raises:
        Defects, ValueError, OSError: a file is damaged or cannot be used; the message names it.
    """
    from datasets.base import Defects
    from datasets.images import read_picture
    from datasets.outlines import draw, outline_defects, read_outlines

    pixels = read_picture(case.image, opaque=True)
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        found = f"has shape {pixels.shape} of {pixels.dtype}"
        raise ValueError(f"{case.image}: {found}; expected three channels (RGB) of 8 bits, so convert it")
    if case.annotation.suffix.lower() != ".xml":
        return pixels, *_read_mask(case)
    outlines = read_outlines(case.annotation)
    defects = list(outline_defects(case.annotation, outlines, pixels.shape[:2]))
    if defects:
        raise Defects(case.annotation, defects)
    return pixels, *draw(outlines, pixels.shape[:2])


def _read_mask(case: Case) -> tuple[np.ndarray, dict[str, int]]:
    """The mask of a case, and how many objects it numbers or, where it numbers none, how many pieces it has."""
    from scipy import ndimage

    from datasets.histology import foreground
    from datasets.images import label_table, mask_values, read_mask, to_classes

    raw = read_mask(case.annotation, palette=case.instances)
    values = mask_values(raw)
    if case.instances:
        mask = foreground(raw, case.annotation) > 0
    else:
        mask = to_classes(raw, label_table({case.annotation: values}, 2), case.annotation) > 0
    numbered = len(set(values) - {0})
    touching = np.ones((3, 3))
    return mask, {"objects": numbered if numbered > 1 else ndimage.label(mask, touching)[1]}


def check_case(case: Case) -> list[Defect]:
    """Read a case whole, and say what is wrong with it."""
    from datasets.base import Defects, defect_of

    try:
        read_case(case)
    except Defects as error:
        return list(error.defects)
    except (ValueError, OSError) as error:
        return [defect_of(case.annotation if str(case.annotation) in str(error) else case.image, error)]
    return []


def make_case(case: Case, out: Path) -> dict[str, Any]:
    """Write the picture and the mask of a case as PNG; returns its size, the pixels of both classes and the objects."""
    pixels, mask, objects = read_case(case)
    _write_png(out / case.split / "img" / f"{case.name}.png", pixels)
    _write_png(out / case.split / "labelcol" / f"{case.name}.png", mask.astype(np.uint8) * np.uint8(_WHITE))
    return {"size": mask.shape, "pixels": np.bincount(mask.ravel(), minlength=2).tolist(), **objects}


def _write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, format="PNG", compress_level=6)


def describe(case: Case, facts: dict[str, Any], *, what: str) -> str:
    """The line that is printed of a case; `what` are its objects."""
    height, width = facts["size"]
    line = f"{case.name}: {case.split}, {width} x {height} pixels, {_share(facts['pixels'], what)}"
    line += f"; {facts['objects']} {what}"
    notes = {"clipped": "reach over the border", "short": "of fewer than 3 points left out", "small": "without a pixel"}
    return line + "".join(f", {facts[key]} {note}" for key, note in notes.items() if facts.get(key))


def _share(pixels: Sequence[int], what: str) -> str:
    return f"background {pixels[0]}, {what} {pixels[1]} ({100 * pixels[1] / max(1, sum(pixels)):.1f} %)"


def lists_of(done: Sequence[tuple[Case, dict[str, Any]]]) -> dict[str, list[str]]:
    """The lines of train.txt, test.txt and, where there is a part to validate on, val.txt: names without suffix."""
    parts = [part for part in PARTS if part != "val" or not done or any(case.split == part for case, _ in done)]
    return {f"{part}.txt": [case.name for case, _ in done if case.split == part] for part in parts}


def run(args: argparse.Namespace) -> int:
    """Check everything, make every case, write the lists last."""
    from scripts.preparing import Recipe, prepare

    if args.out.resolve().is_relative_to(args.raw.resolve()):
        raise ValueError(f"OUT is {args.out}, within RAW {args.raw}; expected another place, give one")
    cases, how, defects = find_cases(args.dataset, args.raw, args.split)
    print(f"{len(cases)} cases below {args.raw}; {how}")
    parts = tuple(f"{part}/{half}" for part in PARTS for half in HALVES)
    describing = partial(describe, what=OBJECTS[args.dataset])
    recipe = Recipe(parts, {"dataset": args.dataset}, check_case, make_case, describing, lists_of)
    done = prepare(recipe, cases, raw=args.raw, out=args.out, jobs=args.jobs, defects=defects)
    _report(done, args)
    return 0


def _report(done: Sequence[tuple[Case, dict[str, Any]]], args: argparse.Namespace) -> None:
    from scripts.preparing import checksum, tell_next

    what = OBJECTS[args.dataset]
    for part in PARTS:
        facts = [of_case for case, of_case in done if case.split == part]
        if facts:
            sizes = Counter("{1} x {0}".format(*of_case["size"]) for of_case in facts)
            shown = ", ".join(f"{size} ({count})" for size, count in sizes.most_common())
            share = _share(np.sum([of_case["pixels"] for of_case in facts], axis=0).tolist(), what)
            objects = sum(of_case["objects"] for of_case in facts)
            print(f"{part}: {len(facts)} cases of {shown} pixels; {share}; {objects} {what}")
    print(checksum(args.out, tuple(lists_of(done))))
    tell_next(args.dataset, args.out, {case.split for case, _ in done})


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the data set; returns 0, or 2 after one line on standard error that says what is wrong."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import run_guarded

    return run_guarded("prepare_histology.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
