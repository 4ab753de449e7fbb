"""Turn raw CT volumes with organ labels into the Synapse layout: npz slices, h5 volumes and lists (SPEC section 6).

python scripts/prepare_synapse.py RAW OUT [--labels synapse8] [--test_cases 0001 0002 ...] [--jobs 4]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets.base import Geometry

TEST_CASES = tuple(f"case{number}" for number in "0008 0022 0038 0036 0032 0002 0029 0003 0001 0004 0025 0035".split())
TRAIN_CASES = tuple(
    f"case{number}"
    for number in "0005 0006 0007 0009 0010 0021 0023 0024 0026 0027 0028 0030 0031 0033 0034 0037 0039 0040".split()
)
# Place in each tuple: the raw value. Value there: the organ, in the order of datasets.synapse.ORGANS.
LABEL_MAPS = {
    "btcv13": (0, 7, 4, 3, 2, 0, 5, 8, 1, 0, 0, 6, 0, 0),
    "synapse8": (0, 1, 2, 3, 4, 5, 6, 7, 8),
}
TOLERANCE = 1e-3
_EXPECTED_NAMES = (
    "img/img0001.nii.gz with label/label0001.nii.gz, NAME_image.nii.gz with NAME_label.nii.gz, "
    "or imagesTr/NAME.nii.gz with labelsTr/NAME.nii.gz"
)


@dataclass(frozen=True)
class Case:
    """One patient: the two files of the raw release, and whether it is for "train" or "test"."""

    name: str
    image: Path
    label: Path
    split: str = ""


@dataclass(frozen=True)
class Options:
    """How every case is prepared, and where to."""

    out: Path
    labels: str
    window: tuple[float, float]
    axis_order: str


@dataclass(frozen=True)
class Summary:
    """What became of a case: its shape (D, H, W), voxels of each label, and the largest raw label value."""

    case: Case
    shape: tuple[int, int, int]
    voxels: tuple[int, ...]
    largest_raw: int


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ValueError(f"{message}; see --help")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = _Parser(prog="prepare_synapse.py", description="Turn raw CT volumes into the Synapse layout.")
    parser.add_argument("raw", type=Path, metavar="RAW", help=f"folder of NIfTI pairs, at any depth: {_EXPECTED_NAMES}")
    parser.add_argument("out", type=Path, metavar="OUT", help="gets train_npz/, test_vol_h5/ and lists/")
    parser.add_argument("--labels", choices=tuple(LABEL_MAPS), default="btcv13",
                        help="numbers in the raw labels: the 13 organs of the release, or the 8 organs already")
    parser.add_argument("--test_cases", nargs="+", metavar="ID", help="0008, case0008 or a whole name (default: official)")
    parser.add_argument("--train_cases", nargs="+", metavar="ID", help="default: all that are not test cases")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, each with one case in memory")
    parser.add_argument("--window", type=float, nargs=2, default=(-125.0, 275.0), metavar=("LOW", "HIGH"),
                        help="HU that become 0 and 1 (default: -125 275)")
    parser.add_argument("--axis_order", choices=("zxy", "zyx"), default="zxy",
                        help="order of the arrays' axes: the published one (default), or SimpleITK's")
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
        found = _classify(path)
        if found is not None:
            group, name, role = found
            halves = pairs.setdefault((group, name), {})
            if role in halves:
                raise ValueError(f"{path}: is a second {role} of {name}, beside {halves[role]}; expected one, remove one")
            halves[role] = path
    labelled = {group for (group, _), halves in pairs.items() if "label" in halves}
    unlabelled = [halves["image"] for (group, _), halves in pairs.items() if group not in labelled]
    cases: dict[str, Case] = {}
    for (group, name), halves in pairs.items():
        if group in labelled:
            case = _whole_case(name, halves)
            if name in cases:
                raise ValueError(f"{case.image}: is {name}, and so is {cases[name].image}; expected one, rename or remove one")
            cases[name] = case
    if not cases:
        raise ValueError(f"{raw}: holds no image with its label (NIfTI files found: {len(files)}); expected {_EXPECTED_NAMES}")
    return dict(sorted(cases.items())), unlabelled


def _classify(path: Path) -> tuple[Path, str, str] | None:
    """The folder that holds both halves of the pair, the case's name, and "image" or "label"; None for other files."""
    stem, folder = path.name.removesuffix(".gz").removesuffix(".nii"), path.parent
    official = re.fullmatch(r"(img|label)(\d+)", stem)
    if stem.startswith("."):
        return None
    if folder.name == "imagesTr":
        return folder.parent, stem.removesuffix("_0000"), "image"
    if folder.name == "labelsTr":
        return folder.parent, stem, "label"
    if official:
        group = folder.parent if folder.name in ("img", "label") else folder
        return group, f"case{official[2]:0>4}", "image" if official[1] == "img" else "label"
    for role in ("image", "label"):
        if stem.endswith(f"_{role}"):
            return folder, stem.removesuffix(f"_{role}"), role
    return None


def _whole_case(name: str, halves: dict[str, Path]) -> Case:
    for here, other in (("image", "label"), ("label", "image")):
        if other not in halves:
            raise ValueError(f"{halves[here]}: has no {other} of the same name; expected {_EXPECTED_NAMES}, add or remove it")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name):
        raise ValueError(f"{halves['image']}: the case's name {name!r} is not plain; expected letters, digits, '_', '-', '.'")
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
        return dict.fromkeys(names, "train"), "all train: these are not the official cases and no --test_cases are given"
    test = {_resolve(case, names, "--test_cases") for case in test_cases or ()}
    train = {_resolve(case, names, "--train_cases") for case in train_cases or ()}
    if test & train:
        raise ValueError(f"--test_cases and --train_cases both name {', '.join(sorted(test & train))}; expected one of the two")
    if train_cases is None:
        train = set(names) - test
    chosen = {name: "test" if name in test else "train" for name in names if name in test | train}
    left_out = [name for name in names if name not in chosen]
    return chosen, "as asked" + (f"; left out, named in neither list: {', '.join(left_out)}" if left_out else "")


def _resolve(case: str, names: Sequence[str], option: str) -> str:
    for name in (case, f"case{case}"):
        if name in names:
            return name
    raise ValueError(f"{option} names {case!r}, which is not among the cases found; expected some of {', '.join(names)}")


def check_headers(cases: Iterable[Case], axis_order: str) -> dict[str, tuple[tuple[int, int, int], Geometry]]:
    """Read every header and see that image and label lie on one grid; returns shape (D, H, W) and geometry by case.

    Raises:
        ValueError: a file is not a 3-D NIfTI volume, or image and label differ in size or in physical position.
    """
    from evaluation.nifti import read_header

    headers = {}
    for case in cases:
        shape, geometry = read_header(case.image, axis_order)
        label_shape, label_geometry = read_header(case.label, axis_order)
        if label_shape != shape:
            raise ValueError(f"{case.label}: its size is {label_shape} but {case.image.name} has {shape}; expected the same size")
        for key in ("spacing", "origin", "direction"):
            here, there = getattr(label_geometry, key), getattr(geometry, key)
            if not np.allclose(here, there, rtol=0.0, atol=TOLERANCE):
                raise ValueError(
                    f"{case.label}: its {key} is {_numbers(here)} but {case.image.name} has {_numbers(there)}; "
                    "expected the same grid, so take the label that belongs to the image or resample it"
                )
        headers[case.name] = shape, geometry
    return headers


def map_labels(raw: np.ndarray, labels: str, where: object) -> np.ndarray:
    """Turn raw label values into organs 0..8, uint8, by the map named `labels`.

    Raises:
        ValueError: a value is not a whole number that the map knows; the message names `where` and the value.
    """
    table = np.array(LABEL_MAPS[labels], dtype=np.uint8)
    stray = raw[~((raw >= 0) & (raw < len(table)) & (raw == np.round(raw)))]
    if stray.size:
        other = next(name for name in LABEL_MAPS if name != labels)
        raise ValueError(
            f"{where}: holds the label {stray.flat[0]:g}; expected whole numbers 0..{len(table) - 1} (--labels {labels}), "
            f"so mend the file, or give --labels {other} if its numbers are 0..{len(LABEL_MAPS[other]) - 1}"
        )
    return table[raw.astype(np.uint8)]


def prepare_case(case: Case, options: Options) -> Summary:
    """Prepare one case and write its files, all of them or, on an error, none.

    Raises:
        ValueError: the image or the label is damaged or holds what cannot be used; nothing is written then.
        OSError: a file cannot be written.
    """
    from datasets.synapse import ORGANS, slice_name, slice_path, volume_path, write_slice, write_volume
    from evaluation.nifti import read_image, scale_intensity

    image, geometry = read_image(case.image, options.axis_order)
    raw, _ = read_image(case.label, options.axis_order)
    label = map_labels(raw, options.labels, case.label)
    image = scale_intensity(image, *options.window, where=case.image)
    written: list[Path] = []
    try:
        if case.split == "train":
            folder = options.out / "train_npz"
            for index in range(len(image)):
                path = slice_path(folder, slice_name(case.name, index))
                _write_whole(path, lambda partial, i=index: write_slice(partial, image[i], label[i], geometry))
                written.append(path)
        else:
            path = volume_path(options.out / "test_vol_h5", case.name)
            _write_whole(path, lambda partial: write_volume(partial, image, label, geometry))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    voxels = np.bincount(label.ravel(), minlength=len(ORGANS) + 1)
    return Summary(case, image.shape, tuple(voxels.tolist()), int(raw.max()))


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    partial = path.with_name(f".partial-{path.name}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def prepare_all(cases: Sequence[Case], options: Options, jobs: int) -> Iterator[Summary]:
    """Prepare the cases, in this process or in several, and yield their summaries in the cases' order."""
    workers = min(jobs, len(cases), os.cpu_count() or 1)
    if workers == 1:
        for case in cases:
            yield prepare_case(case, options)
        return
    # Spawned, not forked: a fork would take over the locks of libraries that already run threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(prepare_case, cases, [options] * len(cases))
        except BrokenProcessPool:
            raise OSError(f"a process of --jobs {jobs} was killed, most likely for want of memory; give fewer --jobs") from None


def write_lists(cases: Sequence[Case], headers: dict[str, tuple[tuple[int, int, int], Geometry]], out: Path) -> None:
    """Write lists/train.txt, one slice a line, and lists/test_vol.txt, one case a line."""
    from datasets.synapse import slice_name

    names = {"train": [], "test_vol": []}
    for case in cases:
        if case.split == "test":
            names["test_vol"].append(case.name)
        else:
            names["train"] += [slice_name(case.name, index) for index in range(headers[case.name][0][0])]
    for name, lines in names.items():
        text = "".join(f"{line}\n" for line in lines)
        _write_whole(out / "lists" / f"{name}.txt", lambda partial, text=text: partial.write_text(text, encoding="utf-8"))


def run(args: argparse.Namespace) -> None:
    """Check everything, prepare every case, write the lists last."""
    from evaluation.nifti import scale_intensity

    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; expected 1 or more")
    scale_intensity(np.zeros(1), *args.window)
    found, unlabelled = find_cases(args.raw)
    split, how = choose_split(list(found), args.test_cases, args.train_cases)
    cases = [Case(name, found[name].image, found[name].label, split[name]) for name in split]
    headers = check_headers(cases, args.axis_order)
    print(f"{len(cases)} cases below {args.raw}; split: {how}")
    if unlabelled:
        print(f"left out, {len(unlabelled)} images in folders without labels: {unlabelled[0]} ...")
    options = Options(args.out, args.labels, tuple(args.window), args.axis_order)
    made = _make_folders(args.out)
    summaries: list[Summary] = []
    try:
        for summary in prepare_all(cases, options, args.jobs):
            summaries.append(summary)
            print(_case_line(summary, headers[summary.case.name][1]), flush=True)
        write_lists(cases, headers, args.out)
    except BaseException:
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()
        raise
    _report(summaries, headers, options)


def _make_folders(out: Path) -> list[Path]:
    """Make the output folders; returns those that were not there, a parent before its children."""
    made = []
    for folder in (*reversed(out.parents), out, out / "train_npz", out / "test_vol_h5", out / "lists"):
        if not folder.is_dir():
            folder.mkdir()
            made.append(folder)
    return made


def _numbers(values: Iterable[float]) -> str:
    return f"({', '.join(f'{value:.7g}' for value in values)})"


def _organ_counts(voxels: Sequence[int]) -> str:
    from datasets.synapse import ORGANS

    return ", ".join(f"{organ} {count}" for organ, count in zip(ORGANS, voxels[1:], strict=True))


def _case_line(summary: Summary, geometry: Geometry) -> str:
    from evaluation.nifti import orientation

    depth, height, width = summary.shape
    return (
        f"{summary.case.name}: {summary.case.split}, {depth} slices of {height}x{width}, spacing "
        f"{_numbers(geometry.spacing)} mm, {orientation(geometry)}; voxels: {_organ_counts(summary.voxels)}"
    )


def _report(
    summaries: Sequence[Summary], headers: dict[str, tuple[tuple[int, int, int], Geometry]], options: Options
) -> None:
    from evaluation.nifti import orientation

    for split in ("train", "test"):
        chosen = [summary for summary in summaries if summary.case.split == split]
        print(f"{split}: {len(chosen)} cases, {sum(summary.shape[0] for summary in chosen)} slices")
    print(f"voxels in all: {_organ_counts(np.sum([summary.voxels for summary in summaries], axis=0).tolist())}")
    by_axes: dict[str, list[str]] = {}
    for summary in summaries:
        by_axes.setdefault(orientation(headers[summary.case.name][1]), []).append(summary.case.name)
    if len(by_axes) > 1:
        groups = "; ".join(f"{axes}: {', '.join(names)}" for axes, names in by_axes.items())
        print(f"WARNING: the cases differ in orientation, so some slices are mirrored against others ({groups})")
    if options.labels == "btcv13" and all(summary.largest_raw <= 8 for summary in summaries):
        print("WARNING: no raw label is above 8; if these are the 8 organs already, run again with --labels synapse8")
    out, lists = shlex.quote(str(options.out)), shlex.quote(str(options.out / "lists"))
    print(f"next: python train.py --dataset Synapse --root_path {out} --list_dir {lists} --output_dir RUN")
    print(f"then: python test.py --dataset Synapse --volume_path {out} --list_dir {lists} --output_dir RUN")


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the data set; returns 0, or 2 after one line on standard error that says what is wrong."""
    try:
        args = build_parser().parse_args(argv)
        root = str(Path(__file__).resolve().parent.parent)
        if root not in sys.path:
            sys.path.insert(0, root)
        run(args)
    except KeyboardInterrupt:
        print("prepare_synapse.py: interrupted", file=sys.stderr)
        return 130
    except MemoryError:
        print("prepare_synapse.py: out of memory; give fewer --jobs", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}; expected a folder that can be written to, give another OUT"
        print(f"prepare_synapse.py: {' '.join(text.split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
