"""Turn the official ACDC download into npz slices, npz volumes and lists, split 70/10/20.

python scripts/prepare_acdc.py RAW OUT [--jobs 4] [--scale percentile]

How the published files were scaled is not known. Here each volume is clipped to its 0.5th and 99.5th percentile and
scaled to [0, 1], as `test.py --input` scales with DATA.INTENSITY percentile. Slices come first, then the file's x and
y (DATA.AXIS_ORDER zxy), as in the published Synapse data.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets.base import Defect
    from scripts.preparing import Facts

SPLITS = ("train", "valid", "test")  # and the folders of their files
LAST_PATIENT = 100  # of those that have published labels from the start; 101 to 150 are the later test set
_PATIENT = re.compile(r"patient(\d{3})")
_LONGEST_INFO = 2**20  # bytes; those of the download have some hundred
_SUFFIXES = (".nii.gz", ".nii")
_SPACING = "pixdim"  # public copies have an sform of unit scale beside it
_EXPECTED = (
    "folders such as training/patient001 with Info.cfg, patient001_frame01.nii.gz and patient001_frame01_gt.nii.gz"
)


@dataclass(frozen=True)
class Patient:
    """One patient: its case name, "train", "valid" or "test", Info.cfg, its group, and (image, label) of each phase."""

    name: str
    split: str
    info: Path
    group: str
    frames: tuple[tuple[str, Path, Path], ...]  # phase, image, label

    @property
    def sources(self) -> tuple[Path, ...]:
        """All files that the case is made from."""
        return self.info, *(path for _, *paths in self.frames for path in paths)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from configs.arguments import OneLineParser

    parser = OneLineParser(prog="prepare_acdc.py", description="Turn the official ACDC download into npz files.")
    add = parser.add_argument
    add("raw", type=Path, metavar="RAW", help=f"the download, at any depth: {_EXPECTED}")
    add("out", type=Path, metavar="OUT", help="gets train/, valid/, test/ and lists/")
    add("--jobs", type=int, default=1, metavar="N", help="processes, each with one volume in memory (default: 1)")
    add("--scale", choices=("percentile", "window"), default="percentile", help="how intensities become [0, 1]")
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of --scale window: what gives 0 and 1")
    add("--axis_order", choices=("zxy", "zyx"), default="zxy", help="of the arrays (default: zxy)")
    return parser


def find_patients(raw: Path, split_of: Mapping[str, str]) -> tuple[list[Patient], list[str], list[Defect]]:
    """The patients of the split below `raw`, the names of all others, and what is wrong with folders and Info.cfg.

    Raises:
        ValueError: there is no such folder, or no patient of the split in it.
    """
    from datasets.base import Defect, Defects

    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; expected the official download, {_EXPECTED}")
    folders = [path for path in sorted(raw.rglob("patient*")) if path.is_dir() and _PATIENT.fullmatch(path.name)]
    own = [path for path in folders if not any(part.startswith((".", "__")) for part in path.relative_to(raw).parts)]
    left_out = sorted({path.name for path in own if _case_name(path) not in split_of})
    defects: list[Defect] = []
    patients: dict[str, Patient] = {}
    seen: dict[str, Path] = {}
    for folder in (path for path in own if _case_name(path) in split_of):
        name = _case_name(folder)
        if name in seen:
            defects.append(Defect(folder, f"is {folder.name}, as is {seen[name]}; expected one, remove one"))
            continue
        seen[name] = folder
        try:
            patients[name] = _read_patient(folder, split_of[name])
        except Defects as error:
            defects += error.defects
    if not seen:
        found = f"found {len(left_out)} others" if left_out else "found none at all"
        raise ValueError(f"{raw}: holds no patient of 001 to {LAST_PATIENT:03d}, {found}; expected {_EXPECTED}")
    return [patients[name] for name in sorted(patients)], left_out, defects


def _case_name(folder: Path) -> str:
    return f"case_{_PATIENT.fullmatch(folder.name)[1]}"


def _read_patient(folder: Path, split: str) -> Patient:
    """What Info.cfg says of a patient, and the files of both phases, which are there.

    Raises:
        Defects: one of them is missing, or Info.cfg cannot be understood.
    """
    from datasets.acdc import PHASES
    from datasets.base import Defect, Defects

    info = folder / "Info.cfg"
    values = _read_info(info)
    defects, frames = [], []
    for phase in PHASES:
        if not re.fullmatch(r"0*[1-9]\d{0,3}", values.get(phase, "")):
            found = f"says {phase}: {values[phase]}" if phase in values else f"has no {phase}"
            expected = "expected the number of a frame, as in 'ED: 1' and 'ES: 12'"
            defects.append(Defect(info, f"{found}; {expected}, so mend it or download it again"))
            continue
        stem = f"{folder.name}_frame{int(values[phase]):02d}"
        paths = [_with_suffix(folder / stem), _with_suffix(folder / f"{stem}_gt")]
        why = f"is not there, but Info.cfg says {phase}: {values[phase]}; expected it, so download it again"
        defects += [Defect(path, why) for path in paths if not path.is_file()]
        frames.append((phase, *paths))
    if not defects and frames[0][1] == frames[1][1]:
        defects.append(Defect(info, f"says ED and ES: {values['ED']}; expected two frames, so mend it"))
    if defects:
        raise Defects(folder, defects)
    return Patient(_case_name(folder), split, info, values.get("Group", ""), tuple(frames))


def _read_info(path: Path) -> dict[str, str]:
    """The keys and values of an Info.cfg, one `KEY: value` a line.

    Raises:
        Defects: it is not there, or is no text.
    """
    from datasets.base import Defect, Defects

    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= _LONGEST_INFO):  # a pipe would never end
            raise OSError("no file of this kind")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        what = "is not there; expected it to name the frames, as in 'ED: 1' and 'ES: 12', so download it again"
        raise Defects(path.parent, [Defect(path, what)]) from None
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot be read as text ({type(error).__name__}); expected lines such as 'ED: 1', so download it again"
        raise Defects(path.parent, [Defect(path, what)]) from None
    return {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}


def _with_suffix(stem: Path) -> Path:
    """The file of that name, packed or not; where there is none, the packed one."""
    found = (path for suffix in _SUFFIXES if (path := stem.with_name(f"{stem.name}{suffix}")).is_file())
    return next(found, stem.with_name(f"{stem.name}{_SUFFIXES[0]}"))


def check_patient(patient: Patient, *, axis_order: str) -> list[Defect]:
    """Read all volumes of a patient, and say what is wrong: damage, NaN, grids that differ, labels, too few slices."""
    from scripts.preparing import read_pair

    defects: list[Defect] = []
    for _, image, label in patient.frames:
        arrays, found = read_pair(image, label, axis_order, _SPACING)
        defects += found
        if image in arrays:
            defects += _image_defects(arrays[image], image)
        if label in arrays:
            defects += _label_defects(arrays[label], label)
    return defects


def _image_defects(image: np.ndarray, path: Path) -> Iterator[Defect]:
    from datasets.base import Defect

    if len(image) < 2:
        what = "is a volume of one slice; expected 2 or more along z, so download it again"
        yield Defect(path, what)
    if image.min() == image.max():
        yield Defect(path, f"is {image.flat[0]:g} everywhere; expected an image, so download it again")


def _label_defects(label: np.ndarray, path: Path) -> Iterator[Defect]:
    from datasets.acdc import CLASSES
    from datasets.base import Defect

    stray = label[~np.isin(label, range(len(CLASSES) + 1))]
    if stray.size:
        names = ", ".join(f"{index} {name}" for index, name in enumerate(CLASSES, 1))
        what = f"holds the label {stray[0]:g} and {stray.size} stray voxels in all; expected 0, {names}"
        yield Defect(path, f"{what}, so download it again")


def prepare_patient(patient: Patient, out: Path, *, scale: str, window: Sequence[float], axis_order: str) -> Facts:
    """Write the files of one patient; returns the shape of each volume, spacing, axes and voxels of each label."""
    from datasets.acdc import CLASSES, slice_name, volume_name, write
    from datasets.intensity import Intensity
    from datasets.readers import read_image, read_label
    from scripts.preparing import NO_AXES, axes_of

    intensity = Intensity(scale, tuple(window)) if window else Intensity(scale)
    shapes, axes, voxels = [], [], np.zeros(len(CLASSES) + 1, dtype=np.int64)
    for phase, image_path, label_path in patient.frames:
        raw, geometry = read_image(image_path, axis_order, spacing=_SPACING)
        image = intensity.scale(raw, intensity.limits(raw, image_path), image_path)
        label = read_label(label_path, axis_order, spacing=_SPACING)[0].astype(np.uint8)
        axes.append(axes_of(geometry))
        oriented = axes[-1] != NO_AXES
        if patient.split == "test":
            write(out / "test" / f"{volume_name(patient.name, phase)}.npz", image, label, geometry, oriented=oriented)
        else:
            for index in range(len(image)):
                path = out / patient.split / f"{slice_name(patient.name, phase, index)}.npz"
                write(path, image[index], label[index], geometry, oriented=oriented)
        shapes.append(image.shape)
        voxels += np.bincount(label.ravel(), minlength=len(voxels))
    known = NO_AXES if NO_AXES in axes else axes[-1]
    return {"shapes": shapes, "spacing": geometry.spacing, "axes": known, "voxels": voxels.tolist()}


def lists_of(done: Sequence[tuple[Patient, Facts]]) -> dict[str, list[str]]:
    """The lines of train.txt, valid.txt and test.txt: the names of the files, as published."""
    from datasets.acdc import slice_name, volume_name

    lists: dict[str, list[str]] = {f"{split}.txt": [] for split in SPLITS}
    for patient, facts in done:
        for (phase, *_), (depth, _, _) in zip(patient.frames, facts["shapes"], strict=True):
            if patient.split == "test":
                names = [volume_name(patient.name, phase)]
            else:
                names = [slice_name(patient.name, phase, index) for index in range(depth)]
            lists[f"{patient.split}.txt"] += [f"{name}.npz" for name in names]
    return lists


def run(args: argparse.Namespace) -> int:
    """Check everything, prepare every patient, write the lists last."""
    from scripts.preparing import Recipe, prepare

    if (args.scale == "window") != bool(args.window):
        raise ValueError(f"--scale is {args.scale}; expected --window LOW HIGH with --scale window and with no other")
    if args.window and not -math.inf < args.window[0] < args.window[1] < math.inf:
        shown = " ".join(map(str, args.window))
        raise ValueError(f"--window is {shown}; expected two finite numbers, the lower one first")
    split_of = read_split()
    patients, left_out, defects = find_patients(args.raw, split_of)
    settings = {"scale": args.scale, "window": args.window or (), "axis_order": args.axis_order}
    check, make = partial(check_patient, axis_order=args.axis_order), partial(prepare_patient, **settings)
    if not defects:
        print(f"{len(patients)} patients below {args.raw}; {len(split_of) - len(patients)} of the split are not there")
    if left_out:
        print(f"left out, not in the split of 001 to {LAST_PATIENT:03d}: {len(left_out)} patients, {left_out[0]} ...")
    preprocessing = {"intensity": args.scale, "window": args.window, "axis_order": args.axis_order}
    recipe = Recipe(SPLITS, settings, check, make, describe, lists_of, preprocessing)
    _report(prepare(recipe, patients, raw=args.raw, out=args.out, jobs=args.jobs, defects=defects), args.out)
    return 0


def read_split() -> dict[str, str]:
    """The split of this line of papers: "train", "valid" or "test" by case name."""
    from datasets.base import read_list

    folder = Path(__file__).resolve().parent.parent / "datasets" / "splits" / "acdc"
    return {name: split for split in SPLITS for name in read_list(folder / f"{split}.txt")}


def describe(patient: Patient, facts: Facts) -> str:
    """The line that is printed of a patient."""
    from datasets.acdc import CLASSES
    from scripts.preparing import counts, numbers

    phases = " and ".join(
        f"{phase} {depth} slices of {height}x{width}"
        for (phase, *_), (depth, height, width) in zip(patient.frames, facts["shapes"], strict=True)
    )
    where = f"{phases}, spacing {numbers(facts['spacing'])} mm, {facts['axes']}"
    group = f" ({patient.group})" if patient.group else ""
    return f"{patient.name}{group}: {patient.split}, {where}; voxels: {counts(CLASSES, facts['voxels'])}"


def _report(done: Sequence[tuple[Patient, Facts]], out: Path) -> None:
    from datasets.acdc import CLASSES
    from scripts.preparing import checksum, counts, tell_next, warn_of_axes

    for split in SPLITS:
        facts = [of_case for patient, of_case in done if patient.split == split]
        slices = sum(depth for of_case in facts for depth, _, _ in of_case["shapes"])
        voxels = np.sum([np.zeros(len(CLASSES) + 1, int), *(of_case["voxels"] for of_case in facts)], axis=0)
        print(f"{split}: {len(facts)} cases, {slices} slices; voxels: {counts(CLASSES, voxels)}")
    print(checksum(out, tuple(lists_of([]))))
    warn_of_axes([(patient.name, facts["axes"]) for patient, facts in done])
    tell_next("ACDC", out, {patient.split for patient, _ in done})


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the data set; returns 0, or 2 after one line on standard error that says what is wrong."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import run_guarded

    return run_guarded("prepare_acdc.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
