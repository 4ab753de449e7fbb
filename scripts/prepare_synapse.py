"""Turn raw CT volumes with organ labels into the Synapse layout: npz slices, h5 volumes and lists (SPEC section 6).

python scripts/prepare_synapse.py RAW OUT [--labels synapse8] [--test_cases 0001 0002 ...] [--jobs 4]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

TEST_CASES = tuple(f"case{n:04d}" for n in (8, 22, 38, 36, 32, 2, 29, 3, 1, 4, 25, 35))
TRAIN_CASES = tuple(f"case{n:04d}" for n in (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40))
_PARTS = ("train_npz", "test_vol_h5", "lists")  # in the order they are put in place: lists name files that are there
# Place in each tuple: the raw value. Value there: the organ, in the order of datasets.synapse.ORGANS.
LABEL_MAPS = {"btcv13": (0, 7, 4, 3, 2, 0, 5, 8, 1, 0, 0, 6, 0, 0), "synapse8": (0, 1, 2, 3, 4, 5, 6, 7, 8)}
TOLERANCE = 1e-3  # mm, and between the entries of a direction
_EXPECTED_NAMES = (
    "img/img0001.nii.gz with label/label0001.nii.gz, NAME_image.nii.gz with NAME_label.nii.gz, "
    "or imagesTr/NAME.nii.gz with labelsTr/NAME.nii.gz"
)


@dataclass(frozen=True)
class Case:
    """One patient, and what is known so far: the files and "train" or "test"; from the headers the shape (D, H, W),
    the spacing and the axes; and once it is prepared, the voxels of each label 0..8 and the largest raw label value.
    """

    name: str
    image: Path
    label: Path
    split: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, ...] = ()
    axes: str = ""
    voxels: tuple[int, ...] = ()
    largest_raw: int = 0


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


def find_cases(raw: Path) -> tuple[dict[str, Case], list[Path]]:
    """Pair images and labels below `raw` by name; returns the cases, and the images of folders without any labels.

    Raises:
        ValueError: there is no such folder, nothing in it pairs, a pair lacks one half, or two pairs share a name.
    """
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; expected the raw volumes, {_EXPECTED_NAMES}")
    files = sorted(path for path in raw.rglob("*.nii*") if path.name.endswith((".nii", ".nii.gz")) and path.is_file())
    pairs: dict[tuple[Path, str], dict[str, Path]] = {}
    for path in files:
        group, name, role = _classify(path)
        halves = pairs.setdefault((group, name), {}) if role else {}
        if role in halves:
            raise ValueError(f"{path}: is a second {role} of {name}, beside {halves[role]}; expected one, remove one")
        halves[role] = path
    labelled = {group for (group, _), halves in pairs.items() if "label" in halves}
    unlabelled = [halves["image"] for (group, _), halves in pairs.items() if group not in labelled]
    cases: dict[str, Case] = {}
    for name, halves in ((name, halves) for (group, name), halves in pairs.items() if group in labelled):
        case = _whole_case(name, halves)
        if name in cases:
            raise ValueError(f"{case.image}: is {name}, as is {cases[name].image}; expected one, rename or remove one")
        cases[name] = case
    if not cases:
        raise ValueError(f"{raw}: no image with its label in {len(files)} NIfTI files; expected {_EXPECTED_NAMES}")
    return dict(sorted(cases.items())), unlabelled


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


def _whole_case(name: str, halves: dict[str, Path]) -> Case:
    for here, other in (("image", "label"), ("label", "image")):
        if other not in halves:
            raise ValueError(f"{halves[here]}: has no {other} beside it; expected {_EXPECTED_NAMES}, add or remove it")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
        raise ValueError(f"{halves['image']}: case name {name!r} is not plain; expected letters, digits, '_', '-', '.'")
    return Case(name, halves["image"], halves["label"])


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


def check_headers(case: Case, axis_order: str) -> Case:
    """Read both headers of a case and see that they describe one grid; returns the case with what they say.

    Raises:
        ValueError: a file is not a 3-D NIfTI volume, or image and label differ in size or in physical position.
    """
    from evaluation.nifti import orientation, read_header

    shape, geometry = read_header(case.image, axis_order)
    label_shape, label_geometry = read_header(case.label, axis_order)
    if label_shape != shape:
        raise ValueError(f"{case.label}: has size {label_shape} but {case.image.name} {shape}; expected the same size")
    for key in ("spacing", "origin", "direction"):
        here, there = getattr(label_geometry, key), getattr(geometry, key)
        if not np.allclose(here, there, rtol=0.0, atol=TOLERANCE):
            differ = f"its {key} is {_numbers(here)} but {case.image.name} has {_numbers(there)}"
            raise ValueError(f"{case.label}: {differ}; expected one grid, so take the image's own label or resample it")
    return replace(case, shape=shape, spacing=geometry.spacing, axes=orientation(geometry))


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


def prepare_case(case: Case, *, out: Path, labels: str, window: tuple[float, float], axis_order: str) -> Case:
    """Prepare one case and write its files, all of them or, on an error, none; returns the case with its counts.

    Raises:
        ValueError: the image or the label is damaged or holds what cannot be used; nothing is written then.
        OSError: a file cannot be written.
    """
    from datasets.synapse import ORGANS, slice_name, slice_path, volume_path, write_slice, write_volume
    from evaluation.nifti import read_image, scale_intensity

    image, geometry = read_image(case.image, axis_order)
    raw, _ = read_image(case.label, axis_order)
    label = map_labels(raw, labels, case.label)
    image = scale_intensity(image, *window, where=case.image)
    if case.split == "train":
        for index in range(len(image)):
            path = slice_path(out / "train_npz", slice_name(case.name, index))
            write_slice(path, image[index], label[index], geometry)
    else:
        write_volume(volume_path(out / "test_vol_h5", case.name), image, label, geometry)
    voxels = np.bincount(label.ravel(), minlength=len(ORGANS) + 1)
    return replace(case, voxels=tuple(voxels.tolist()), largest_raw=int(raw.max()))


def prepare_all(cases: Sequence[Case], prepare: Callable[[Case], Case], jobs: int) -> Iterator[Case]:
    """Prepare the cases, in this process or in several, and yield them in their order."""
    workers = min(jobs, len(cases), os.cpu_count() or 1)
    if workers == 1:
        yield from map(prepare, cases)
        return
    # Spawned, not forked: a fork would take over the locks of libraries that already run threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(prepare, cases)
        except BrokenProcessPool:
            raise OSError(f"a process of --jobs {jobs} was killed, likely for want of memory; give fewer") from None


def write_lists(cases: Sequence[Case], out: Path) -> None:
    """Write lists/train.txt, one slice a line, and lists/test_vol.txt, one case a line."""
    from datasets.synapse import slice_name

    names = {
        "train": [slice_name(case.name, i) for case in cases if case.split == "train" for i in range(case.shape[0])],
        "test_vol": [case.name for case in cases if case.split == "test"],
    }
    for name, lines in names.items():
        text = "".join(f"{line}\n" for line in lines)
        (out / "lists" / f"{name}.txt").write_text(text, encoding="utf-8")


def run(args: argparse.Namespace) -> int:
    """Check everything, prepare every case, write the lists last."""
    low, high = args.window
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; expected 1 or more")
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"--window is {low} {high}; expected two finite numbers, the lower one first")
    found, unlabelled = find_cases(args.raw)
    split, how = choose_split(list(found), args.test_cases, args.train_cases)
    cases = [check_headers(replace(found[name], split=split[name]), args.axis_order) for name in split]
    print(f"{len(cases)} cases below {args.raw}; split: {how}")
    if unlabelled:
        print(f"left out, {len(unlabelled)} images in folders without labels: {unlabelled[0]} ...")
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        for part in _PARTS:
            (args.out / part).mkdir(exist_ok=True)
        # Everything is made beside its place and moved at the end: a bad file in the last case leaves nothing.
        with TemporaryDirectory(prefix=".partial-", dir=args.out) as name:
            staging = Path(name)
            for part in _PARTS:
                (staging / part).mkdir()
            prepare = partial(
                prepare_case, out=staging, labels=args.labels, window=(low, high), axis_order=args.axis_order
            )
            done = []
            for case in prepare_all(cases, prepare, args.jobs):
                done.append(case)
                print(_case_line(case), flush=True)
            write_lists(done, staging)
            for made in (path for part in _PARTS for path in sorted((staging / part).iterdir())):
                made.replace(args.out / made.relative_to(staging))
    finally:
        # rmdir takes only empty folders: those of a run that failed, or of a split without cases.
        for folder in (*(args.out / part for part in _PARTS), args.out):
            with suppress(OSError):
                folder.rmdir()
    _report(done, args.out, args.labels)
    return 0


def _numbers(values: Iterable[float]) -> str:
    return f"({', '.join(f'{value:.7g}' for value in values)})"


def _organ_counts(voxels: Iterable[int]) -> str:
    from datasets.synapse import ORGANS

    return ", ".join(f"{organ} {count}" for organ, count in zip(("background", *ORGANS), voxels, strict=True))


def _case_line(case: Case) -> str:
    depth, height, width = case.shape
    where = f"{depth} slices of {height}x{width}, spacing {_numbers(case.spacing)} mm, {case.axes}"
    return f"{case.name}: {case.split}, {where}; voxels: {_organ_counts(case.voxels)}"


def _report(cases: Sequence[Case], out: Path, labels: str) -> None:
    for split in ("train", "test"):
        depths = [case.shape[0] for case in cases if case.split == split]
        print(f"{split}: {len(depths)} cases, {sum(depths)} slices")
    print(f"voxels in all: {_organ_counts(np.sum([case.voxels for case in cases], axis=0))}")
    by_axes: dict[str, list[str]] = {}
    for case in cases:
        by_axes.setdefault(case.axes, []).append(case.name)
    if len(by_axes) > 1:
        groups = "; ".join(f"{axes}: {', '.join(names)}" for axes, names in by_axes.items())
        print(f"WARNING: the cases differ in orientation, so some slices are mirrored against others ({groups})")
    if labels == "btcv13" and all(case.largest_raw <= 8 for case in cases):
        print("WARNING: no raw label is above 8; if these are the 8 organs already, run again with --labels synapse8")
    root, lists = shlex.quote(str(out)), shlex.quote(str(out / "lists"))
    print(f"next: python train.py --dataset Synapse --root_path {root} --list_dir {lists} --output_dir RUN")
    print(f"then: python test.py --dataset Synapse --volume_path {root} --list_dir {lists} --output_dir RUN")


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the data set; returns 0, or 2 after one line on standard error that says what is wrong."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import run_guarded

    return run_guarded("prepare_synapse.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
