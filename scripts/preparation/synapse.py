"""Raw CT volumes with organ labels to the Synapse layout: npz slices to train on, h5 volumes to test on."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasets.case import slice_name
from datasets.errors import Defect
from datasets.intensity import scale_intensity
from datasets.sets import synapse
from datasets.splits import read_list
from scripts.preparation.pipeline import ROOT, Case, Facts, Plan
from scripts.preparation.volumes import Pair, read_pairs

# Place in each tuple: the raw value. Value there: the organ, in the order of datasets.sets.synapse.ORGANS.
LABEL_MAPS = {"btcv13": (0, 7, 4, 3, 2, 0, 5, 8, 1, 0, 0, 6, 0, 0), "synapse8": tuple(range(9))}
_TRAIN = "train.py --dataset Synapse --cfg configs/swin_tiny_patch4_window7_224_lite.yaml --max_epochs 150 "
_TRAIN += "--gpu_id 0 --img_size 224 --base_lr 0.05 --batch_size 32 --lambda_x 0.010"
_EXPECTED = "img/img0001.nii.gz with label/label0001.nii.gz, NAME_image.nii.gz with NAME_label.nii.gz, "
_EXPECTED += "or imagesTr/NAME.nii.gz with labelsTr/NAME.nii.gz"


def plan(args: argparse.Namespace) -> Plan:
    """The pairs below RAW, split as published or as asked."""
    pairs, left_out, defects = find_pairs(args.raw)
    if defects:  # which cases there would be is not known
        split, how = dict.fromkeys(pairs, "train"), "none yet"
    else:
        split, how = choose_split(list(pairs), args.test_cases, args.train_cases)
    found = f"{len(split)} cases below {args.raw}; split: {how}"
    if left_out:
        found += f"\nleft out, {len(left_out)} images in folders without labels: {left_out[0]} ..."
    return Plan(
        [Case(name, split[name], pairs[name]) for name in split],
        found,
        defects,
        {"train": "train.txt", "test": "test_vol.txt"},
        partial(read, labels=args.labels, axis_order=args.axis_order),
        partial(write, labels=args.labels, window=args.window),
        _TRAIN,
        "11_1",
    )


def find_pairs(raw: Path) -> tuple[dict[str, tuple[Path, Path]], list[Path], list[Defect]]:
    """Image and label of each case below `raw`, the images of folders without any labels, and what is wrong."""
    if not raw.is_dir():
        raise ValueError(f"{raw}: no such folder; expected the raw volumes, {_EXPECTED}")
    files = [path for path in sorted(raw.rglob("[!.]*")) if path.name.endswith((".nii", ".nii.gz")) and path.is_file()]
    named = [(path, *_classify(path)) for path in files]
    labelled = {group for _, group, _, half in named if half == "label"}
    left_out = [path for path, group, _, half in named if half == "image" and group not in labelled]
    halves: dict[str, dict[str, Path]] = {}
    defects = []
    for path, group, name, half in named:
        if not half or group not in labelled:
            continue
        other = halves.setdefault(name, {}).setdefault(half, path)
        if not re.fullmatch(r"\w[\w.\-]*", name, re.ASCII):
            defects.append(Defect(path, f"case name {name!r} is not plain; expected letters, digits, '_', '-', '.'"))
        if other != path:
            defects.append(Defect(path, f"is a second {half} of {name}, beside {other}; expected one, remove one"))
    for of_case in halves.values():
        if len(of_case) < 2:
            ((half, path),) = of_case.items()
            missing = "label" if half == "image" else "image"
            defects.append(Defect(path, f"has no {missing} beside it; expected {_EXPECTED}, add or remove it"))
    if not halves:
        raise ValueError(f"{raw}: no image with its label in {len(files)} NIfTI files; expected {_EXPECTED}")
    pairs = {name: (of_case["image"], of_case["label"]) for name, of_case in sorted(halves.items()) if len(of_case) > 1}
    return pairs, left_out, defects


def _classify(path: Path) -> tuple[Path, str, str]:
    """The folder that holds images and labels, the case's name, and "image", "label" or, of neither, ""."""
    stem, folder = path.name.removesuffix(".gz").removesuffix(".nii"), path.parent
    if folder.name in ("imagesTr", "labelsTr"):
        half = folder.name.removesuffix("sTr")
        return folder.parent, stem.removesuffix("_0000") if half == "image" else stem, half
    if official := re.fullmatch(r"(img|label)(\d+)", stem):
        group = folder.parent if folder.name in ("img", "label") else folder
        return group, f"case{official[2]:0>4}", "image" if official[1] == "img" else "label"
    name, _, ending = stem.rpartition("_")
    return folder, name, ending if name and ending in ("image", "label") else ""


def choose_split(
    names: Sequence[str], test_cases: Sequence[str] | None, train_cases: Sequence[str] | None
) -> tuple[dict[str, str], str]:
    """Give each case its "train" or "test"; returns that, and a sentence that says how it was chosen.

    Raises:
        ValueError: an asked-for case is not there, or is asked for twice.
    """
    if test_cases is None and train_cases is None:
        shipped = {split: read_list(ROOT / f"datasets/lists/synapse/{split}.txt") for split in ("train", "test_vol")}
        if set(names) <= {*(name.rsplit("_slice", 1)[0] for name in shipped["train"]), *shipped["test_vol"]}:
            return {name: "test" if name in shipped["test_vol"] else "train" for name in names}, "the official one"
        return dict.fromkeys(names, "train"), "all train, not being the official cases; --test_cases chooses"
    test, train = (
        {_resolve(case, names, option) for case in asked or ()}
        for option, asked in (("--test_cases", test_cases), ("--train_cases", train_cases))
    )
    if both := ", ".join(sorted(test & train)):
        raise ValueError(f"--test_cases and --train_cases both name {both}; expected a case in one of them")
    train = set(names) - test if train_cases is None else train
    left_out = ", ".join(name for name in names if name not in test | train)
    how = "as asked" + (f"; left out, named in neither list: {left_out}" if left_out else "")
    return {name: "test" if name in test else "train" for name in names if name in test | train}, how


def _resolve(case: str, names: Sequence[str], option: str) -> str:
    if found := [name for name in (case, f"case{case}") if name in names]:
        return found[0]
    raise ValueError(f"{option} names {case!r}, which is not there; expected some of {', '.join(names)}")


def read(case: Case, *, labels: str, axis_order: str) -> Pair:
    """The image and label of a case; raises Defects with everything that is wrong with them."""
    other = next(name for name in LABEL_MAPS if name != labels)
    hint = f"fix it or try --labels {other} in the place of {labels}"
    return read_pairs(case.sources, axis_order, LABEL_MAPS[labels], hint)[0]


def write(case: Case, pair: Pair, out: Path, *, labels: str, window: tuple[float, float]) -> Facts:
    """Write the slices of a training case, or the volume of a test case."""
    image = scale_intensity(pair.image, *window, where=case.sources[0])
    folder = out / ("train_npz" if case.split == "train" else "test_vol_h5")
    folder.mkdir(parents=True)
    if case.split == "train":
        entries = [slice_name(case.name, index) for index in range(len(image))]
        for name, pixels, classes in zip(entries, image, pair.label, strict=True):
            synapse.write(synapse.slice_path(folder, name), pixels, classes, pair.geometry)
    else:
        entries = [case.name]
        synapse.write(synapse.volume_path(folder, case.name), image, pair.label, pair.geometry)
    doubt = "no raw label is above 8; if these are the 8 organs already, run again with --labels synapse8"
    few = labels == "btcv13" and pair.largest <= 8
    return Facts(pair.grid, entries, pair.counts(synapse.ORGANS), pair.axes, doubt if few else "")
