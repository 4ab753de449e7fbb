"""The official ACDC download to npz slices and volumes, split 70/10/20 as in this line of papers.

How the published files were scaled is not known. Here each volume is clipped to its 0.5th and 99.5th percentile and
scaled to [0, 1], as `test.py --input` scales with DATA.INTENSITY percentile.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasets.errors import Defect
from datasets.intensity import Intensity
from datasets.sets import acdc
from datasets.splits import read_list
from scripts.preparation.pipeline import NO_AXES, ROOT, Case, Facts, Plan
from scripts.preparation.volumes import Pair, read_pairs

SPLITS = ("train", "valid", "test")  # and the folders of their files
_EXPECTED = "folders such as training/patient001 with Info.cfg, patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz"


def plan(args: argparse.Namespace) -> Plan:
    """The patients 001 to 100 below RAW, in the split of the papers."""
    if (args.scale == "window") != bool(args.window):
        raise ValueError(f"--scale is {args.scale}; expected --window LOW HIGH with --scale window and with no other")
    lists = {split: ROOT / f"datasets/lists/acdc/{split}.txt" for split in SPLITS}
    split_of = {name: split for split, path in lists.items() for name in read_list(path)}
    cases, left_out, defects = find_cases(args.raw, split_of)
    found = f"{len(cases)} patients below {args.raw}; {len(split_of) - len(cases)} of the split are not there"
    if left_out:
        found += f"\nleft out, not in the split of 001 to 100: {len(left_out)} patients, {left_out[0]} ..."
    return Plan(
        cases,
        found,
        defects,
        {split: f"{split}.txt" for split in SPLITS},
        partial(read, axis_order=args.axis_order),
        partial(write, intensity=Intensity(args.scale, tuple(args.window)) if args.window else Intensity(args.scale)),
        "train.py --cfg configs/acdc_unet.yaml",
        "runs/acdc",
    )


def find_cases(raw: Path, split_of: dict[str, str]) -> tuple[list[Case], list[str], list[Defect]]:
    """The patients of the split below `raw`, the names of all others, and what is wrong with folders and Info.cfg.

    The sources of a case are Info.cfg, then image and label of each phase.
    """
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; expected the official download, {_EXPECTED}")
    cases: list[Case] = []
    left_out: list[str] = []
    defects: list[Defect] = []
    seen: dict[str, Path] = {}
    for folder in sorted(path for path in raw.rglob("patient[0-9][0-9][0-9]") if path.is_dir()):
        name = f"case_{folder.name.removeprefix('patient')}"
        if any(part.startswith((".", "__")) for part in folder.relative_to(raw).parts):
            continue
        if name not in split_of:
            left_out.append(folder.name)
        elif seen.setdefault(name, folder) != folder:
            defects.append(Defect(folder, f"is {folder.name}, as is {seen[name]}; expected one, remove one"))
        else:
            sources, found = _read_info(folder / "Info.cfg")
            cases += [] if found else [Case(name, split_of[name], sources)]
            defects += found
    if not seen:
        raise ValueError(f"{raw}: holds no patient of 001 to 100, found {len(left_out)} others; expected {_EXPECTED}")
    return sorted(cases, key=lambda case: case.name), left_out, defects


def _read_info(info: Path) -> tuple[tuple[Path, ...], list[Defect]]:
    """Info.cfg and the files of both phases that it names, and what is wrong with them."""
    example = "expected lines such as 'ED: 1' and 'ES: 12' that name the frames, so download it again"
    if not info.is_file():
        return (), [Defect(info, f"is not there; {example}")]
    lines = [line.partition(":") for line in info.read_text("utf-8-sig", errors="replace").splitlines()]
    frames = {key.strip(): value.strip() for key, _, value in lines}
    sources, defects = [info], []
    for phase in acdc.PHASES:
        number = frames.get(phase, "")
        if not re.fullmatch(r"0*[1-9][0-9]{0,3}", number):
            defects.append(Defect(info, f"says {phase}: {number[:40] or 'nothing'}; {example}"))
            continue
        for ending in (".nii", "_gt.nii"):
            path = info.with_name(f"{info.parent.name}_frame{int(number):02d}{ending}")
            sources.append(path if path.is_file() else path.with_name(f"{path.name}.gz"))
            if not sources[-1].is_file():
                what = f"is not there, but Info.cfg says {phase}: {number}; expected it, so download it again"
                defects.append(Defect(sources[-1], what))
    if not defects and sources[1] == sources[3]:
        defects.append(Defect(info, f"says ED and ES: {frames['ED']}; expected two frames, so download it again"))
    return tuple(sources), defects


def read(case: Case, *, axis_order: str) -> list[Pair]:
    """The image and label of both phases; raises Defects with everything that is wrong with them."""
    hint = ", ".join(f"{index} {name}" for index, name in enumerate(acdc.CLASSES, 1))
    hint = f"{hint}, so download it again"
    # Public copies carry an sform of unit scale beside a true pixdim.
    return read_pairs(case.sources[1:], axis_order, range(len(acdc.CLASSES) + 1), hint, spacing="pixdim")


def write(case: Case, pairs: Sequence[Pair], out: Path, *, intensity: Intensity) -> Facts:
    """Write the slices of both phases of a patient or, to test on, the volumes."""
    entries, counts = [], Counter[str]()
    (out / case.split).mkdir(parents=True)
    for phase, pair, source in zip(acdc.PHASES, pairs, case.sources[1::2], strict=True):
        image, label = intensity.scale(pair.image, intensity.limits(pair.image, source), source), pair.label
        names = [acdc.slice_name(case.name, phase, index) for index in range(len(image))]
        if case.split == "test":
            names, image, label = [acdc.volume_name(case.name, phase)], image[None], label[None]
        for name, pixels, classes in zip(names, image, label, strict=True):
            path = out / case.split / f"{name}.npz"
            acdc.write(path, pixels, classes, pair.geometry)
        entries += [f"{name}.npz" for name in names]
        counts.update(pair.counts(acdc.CLASSES))
    axes = NO_AXES if NO_AXES in (pair.axes for pair in pairs) else pairs[-1].axes
    what = " and ".join(f"{phase} {pair.grid}" for phase, pair in zip(acdc.PHASES, pairs, strict=True))
    return Facts(what, entries, dict(counts), axes)
