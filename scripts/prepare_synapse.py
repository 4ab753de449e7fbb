"""Turn raw CT volumes with organ labels into the Synapse layout: npz slices, h5 volumes and lists.

python scripts/prepare_synapse.py RAW OUT [--labels synapse8] [--test_cases 0001 0002 ...] [--jobs 4]
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets.base import Defect
    from scripts.preparing import Facts

TEST_CASES = tuple(f"case{n:04d}" for n in (8, 22, 38, 36, 32, 2, 29, 3, 1, 4, 25, 35))
TRAIN_CASES = tuple(f"case{n:04d}" for n in (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40))
_PARTS = ("train_npz", "test_vol_h5")
# Place in each tuple: the raw value. Value there: the organ, in the order of datasets.synapse.ORGANS.
LABEL_MAPS = {"btcv13": (0, 7, 4, 3, 2, 0, 5, 8, 1, 0, 0, 6, 0, 0), "synapse8": (0, 1, 2, 3, 4, 5, 6, 7, 8)}
_EXPECTED_NAMES = (
    "img/img0001.nii.gz with label/label0001.nii.gz, NAME_image.nii.gz with NAME_label.nii.gz, "
    "or imagesTr/NAME.nii.gz with labelsTr/NAME.nii.gz"
)


@dataclass(frozen=True)
class Case:
    """One patient: the two files, and "train" or "test"."""

    name: str
    image: Path
    label: Path
    split: str = ""

    @property
    def sources(self) -> tuple[Path, ...]:
        """All files that the case is made from."""
        return self.image, self.label


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from configs.arguments import OneLineParser

    parser = OneLineParser(prog="prepare_synapse.py", description="Turn raw CT volumes into the Synapse layout.")
    add = parser.add_argument
    add("raw", type=Path, metavar="RAW", help=f"folder of NIfTI pairs, at any depth: {_EXPECTED_NAMES}")
    add("out", type=Path, metavar="OUT", help="gets train_npz/, test_vol_h5/ and lists/")
    add("--labels", choices=tuple(LABEL_MAPS), default="btcv13", help="numbers in the raw labels: 13 or 8 organs")
    add("--test_cases", nargs="+", metavar="ID", help="0008, case0008 or a whole name (default: the official ones)")
    add("--train_cases", nargs="+", metavar="ID", help="default: all that are not test cases")
    add("--jobs", type=int, default=1, metavar="N", help="processes, each with one case in memory (default: 1)")
    add("--window", type=float, nargs=2, default=(-125.0, 275.0), metavar=("LOW", "HIGH"), help="HU that give 0 and 1")
    add("--axis_order", choices=("zxy", "zyx"), default="zxy", help="of the arrays: the published one, or SimpleITK's")
    return parser


def find_cases(raw: Path) -> tuple[dict[str, Case], list[Path], list[Defect]]:
    """Pair images and labels below `raw` by name; returns the cases, the images of folders without any labels, and
    what is wrong: pairs that lack one half, have one twice or an odd name, or share a name.

    Raises:
        ValueError: there is no such folder, or nothing in it pairs.
    """
    from datasets.base import Defect

    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; expected the raw volumes, {_EXPECTED_NAMES}")
    files = sorted(path for path in raw.rglob("*.nii*") if path.name.endswith((".nii", ".nii.gz")) and path.is_file())
    pairs: dict[tuple[Path, str], dict[str, Path]] = {}
    defects = []
    for path in files:
        group, name, role = _classify(path)
        halves = pairs.setdefault((group, name), {}) if role else {}
        if role in halves:
            what = f"is a second {role} of {name}, beside {halves[role]}; expected one, remove one"
            defects.append(Defect(path, what))
        halves[role] = path
    labelled = {group for (group, _), halves in pairs.items() if "label" in halves}
    unlabelled = [halves["image"] for (group, _), halves in pairs.items() if group not in labelled]
    cases: dict[str, Case] = {}
    for name, halves in ((name, halves) for (group, name), halves in pairs.items() if group in labelled):
        if defect := _pair_defect(name, halves):
            defects.append(defect)
            continue
        case = Case(name, halves["image"], halves["label"])
        if name in cases:
            what = f"is {name}, as is {cases[name].image}; expected one, rename or remove one"
            defects.append(Defect(case.image, what))
        cases[name] = case
    if not cases and not defects:
        raise ValueError(f"{raw}: no image with its label in {len(files)} NIfTI files; expected {_EXPECTED_NAMES}")
    return dict(sorted(cases.items())), unlabelled, defects


def _classify(path: Path) -> tuple[Path, str, str]:
    """The folder that holds both halves of the pair, the case's name, and "image", "label" or, of neither, ""."""
    stem, folder = path.name.removesuffix(".gz").removesuffix(".nii"), path.parent
    official, ending = re.fullmatch(r"(img|label)(\d+)", stem), stem.rpartition("_")[2]
    if stem.startswith("."):
        return folder, stem, ""
    if folder.name in ("imagesTr", "labelsTr"):
        role = folder.name.removesuffix("sTr")
        return folder.parent, stem.removesuffix("_0000") if role == "image" else stem, role
    if official:
        group = folder.parent if folder.name in ("img", "label") else folder
        return group, f"case{official[2]:0>4}", "image" if official[1] == "img" else "label"
    return folder, stem.removesuffix(f"_{ending}"), ending if ending in ("image", "label") and ending != stem else ""


def _pair_defect(name: str, halves: dict[str, Path]) -> Defect | None:
    from datasets.base import Defect

    for here, other in (("image", "label"), ("label", "image")):
        if other not in halves:
            what = f"has no {other} beside it; expected {_EXPECTED_NAMES}, add or remove it"
            return Defect(halves[here], what)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
        return Defect(halves["image"], f"case name {name!r} is not plain; expected letters, digits, '_', '-', '.'")
    return None


def choose_split(
    names: Sequence[str], test_cases: Sequence[str] | None, train_cases: Sequence[str] | None
) -> tuple[dict[str, str], str]:
    """Give each case its "train" or "test"; returns that, and a sentence that says how it was chosen.

    Raises:
        ValueError: an asked-for case is not there, or is asked for twice.
    """
    if test_cases is None and train_cases is None:
        if set(names) <= {*TEST_CASES, *TRAIN_CASES}:
            return {name: "test" if name in TEST_CASES else "train" for name in names}, "the official split"
        return dict.fromkeys(names, "train"), "all train, not being the official cases; --test_cases chooses"
    test = {_resolve(case, names, "--test_cases") for case in test_cases or ()}
    train = {_resolve(case, names, "--train_cases") for case in train_cases or ()}
    if test & train:
        both = ", ".join(sorted(test & train))
        raise ValueError(f"--test_cases and --train_cases both name {both}; expected a case in one of them")
    if train_cases is None:
        train = set(names) - test
    chosen = {name: "test" if name in test else "train" for name in names if name in test | train}
    left_out = [name for name in names if name not in chosen]
    return chosen, "as asked" + (f"; left out, named in neither list: {', '.join(left_out)}" if left_out else "")


def _resolve(case: str, names: Sequence[str], option: str) -> str:
    for name in (case, f"case{case}"):
        if name in names:
            return name
    raise ValueError(f"{option} names {case!r}, which is not there; expected some of {', '.join(names)}")


def check_case(case: Case, *, labels: str, axis_order: str) -> list[Defect]:
    """Read both files of a case whole; what is wrong: damage, NaN, grids that differ, labels, too few slices."""
    from datasets.base import Defect, defect_of
    from scripts.preparing import read_pair

    arrays, defects = read_pair(case.image, case.label, axis_order)
    if case.label in arrays:
        try:
            map_labels(arrays[case.label], labels, case.label)
        except ValueError as error:
            defects.append(defect_of(case.label, error))
    if case.image in arrays and len(arrays[case.image]) < 2:
        defects.append(Defect(case.image, "is a volume of one slice; expected 2 or more, so give the whole scan"))
    return defects


def map_labels(raw: np.ndarray, labels: str, where: object) -> np.ndarray:
    """Turn raw label values into organs 0..8, uint8, by the map named `labels`.

    Raises:
        ValueError: a value is not a whole number that the map knows; the message names `where` and the value.
    """
    table = np.array(LABEL_MAPS[labels], dtype=np.uint8)
    stray = raw[~((raw >= 0) & (raw < len(table)) & (raw == np.round(raw)))]
    if stray.size:
        other = next(name for name in LABEL_MAPS if name != labels)
        expected = f"whole numbers 0..{len(table) - 1} (--labels {labels})"
        raise ValueError(f"{where}: holds the label {stray[0]:g}; expected {expected}, mend it or try --labels {other}")
    return table[raw.astype(np.uint8)]


def prepare_case(case: Case, out: Path, *, labels: str, window: tuple[float, float], axis_order: str) -> Facts:
    """Write the files of one case; returns its shape, spacing, axes, voxels of each label and largest raw label.

    Raises:
        ValueError: the image or the label is damaged or holds what cannot be used.
        OSError: a file cannot be written.
    """
    from datasets.intensity import scale_intensity
    from datasets.readers import read_image, read_label
    from datasets.synapse import ORGANS, slice_name, slice_path, volume_path, write_slice, write_volume
    from scripts.preparing import NO_AXES, axes_of

    image, geometry = read_image(case.image, axis_order)
    axes = axes_of(geometry)
    raw, _ = read_label(case.label, axis_order)
    label = map_labels(raw, labels, case.label)
    image = scale_intensity(image, *window, where=case.image)
    if case.split == "train":
        for index in range(len(image)):
            path = slice_path(out / "train_npz", slice_name(case.name, index))
            write_slice(path, image[index], label[index], geometry, oriented=axes != NO_AXES)
    else:
        path = volume_path(out / "test_vol_h5", case.name)
        write_volume(path, image, label, geometry, oriented=axes != NO_AXES)
    return {
        "shape": image.shape,
        "spacing": geometry.spacing,
        "axes": axes,
        "voxels": np.bincount(label.ravel(), minlength=len(ORGANS) + 1).tolist(),
        "largest_raw": int(raw.max()),
    }


def lists_of(done: Sequence[tuple[Case, Facts]]) -> dict[str, list[str]]:
    """The lines of train.txt, one slice a line, and of test_vol.txt, one case a line."""
    from datasets.synapse import slice_name

    return {
        "train.txt": [
            slice_name(case.name, index)
            for case, facts in done
            if case.split == "train"
            for index in range(facts["shape"][0])
        ],
        "test_vol.txt": [case.name for case, _ in done if case.split == "test"],
    }


def run(args: argparse.Namespace) -> int:
    """Check everything, prepare every case, write the lists last."""
    from scripts.preparing import Recipe, prepare

    low, high = args.window
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"--window is {low} {high}; expected two finite numbers, the lower one first")
    found, unlabelled, defects = find_cases(args.raw)
    if defects:  # which cases there would be is not known then
        split, how = dict.fromkeys(found, "train"), "none yet"
    else:
        split, how = choose_split(list(found), args.test_cases, args.train_cases)
    cases = [replace(found[name], split=split[name]) for name in split]
    settings = {"labels": args.labels, "window": (low, high), "axis_order": args.axis_order}
    recipe = Recipe(
        _PARTS,
        settings,
        partial(check_case, labels=args.labels, axis_order=args.axis_order),
        partial(prepare_case, **settings),
        describe,
        lists_of,
        {"intensity": "window", "window": [low, high], "axis_order": args.axis_order},
    )
    print(f"{len(cases)} cases below {args.raw}; split: {how}")
    if unlabelled:
        print(f"left out, {len(unlabelled)} images in folders without labels: {unlabelled[0]} ...")
    _report(prepare(recipe, cases, raw=args.raw, out=args.out, jobs=args.jobs, defects=defects), args.out, args.labels)
    return 0


def describe(case: Case, facts: Facts) -> str:
    """The line that is printed of a case."""
    from datasets.synapse import ORGANS
    from scripts.preparing import counts, numbers

    depth, height, width = facts["shape"]
    where = f"{depth} slices of {height}x{width}, spacing {numbers(facts['spacing'])} mm, {facts['axes']}"
    return f"{case.name}: {case.split}, {where}; voxels: {counts(ORGANS, facts['voxels'])}"


def _report(done: Sequence[tuple[Case, Facts]], out: Path, labels: str) -> None:
    from datasets.synapse import ORGANS
    from scripts.preparing import checksum, counts, tell_next, warn_of_axes

    for split in ("train", "test"):
        depths = [facts["shape"][0] for case, facts in done if case.split == split]
        print(f"{split}: {len(depths)} cases, {sum(depths)} slices")
    print(f"voxels in all: {counts(ORGANS, np.sum([facts['voxels'] for _, facts in done], axis=0))}")
    print(checksum(out, tuple(lists_of([]))))
    warn_of_axes([(case.name, facts["axes"]) for case, facts in done])
    if labels == "btcv13" and all(facts["largest_raw"] <= 8 for _, facts in done):
        print("WARNING: no raw label is above 8; if these are the 8 organs already, run again with --labels synapse8")
    tell_next("Synapse", out, {case.split for case, _ in done})


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the data set; returns 0, or 2 after one line on standard error that says what is wrong."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import run_guarded

    return run_guarded("prepare_synapse.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
