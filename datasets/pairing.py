"""Image files and label files, paired by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets.case import Case
from datasets.errors import MAX_NAME, Defect
from datasets.readers import BESIDE, SUFFIXES, is_image, stem_of

LABEL_SUFFIXES = ("_mask", "_segmentation", "_anno", "_gt", "_seg", "_label", "_labels", "_manual1")

CHANNEL = re.compile(r"(.+)_(\d{4})")  # of nnU-Net


def files_in(folder: Path, defects: list[Defect]) -> list[Path]:
    """The images and volumes of a folder; hidden files, tables and notes are passed over, others are defects."""
    files = []
    for path in sorted(folder.glob("[!.]*")):
        lower = path.name.lower()
        if lower.endswith(SUFFIXES) and path.is_file():
            files.append(path)
        elif path.is_dir() or not lower.endswith(BESIDE):
            expected = f"files that end in {', '.join(SUFFIXES)}, so convert it or move it away"
            defects.append(Defect(path, f"is neither an image nor a volume; expected {expected}"))
    return files


def pair(images: Iterable[Path], labels: Iterable[Path], defects: list[Defect], suffix: str = "") -> list[Case]:
    """Pair images and labels by name, sorted; what is wrong goes to `defects`.

    A label has the name of its image, or that with a suffix: the one that is given, else one of LABEL_SUFFIXES. Where
    no label is named CASE_0000, images CASE_0000, CASE_0001, ... are the channels of CASE, as nnU-Net has it.
    """
    suffixes = ("", suffix) if suffix else ("", *LABEL_SUFFIXES)
    by_label: dict[str, Path] = {}
    for path in labels:
        _add(by_label, stem_of(path), path, defects)
    channels: dict[str, dict[int, Path]] = {}
    label_of: dict[str, str] = {}
    for path in images:
        stem = stem_of(path)
        numbered = CHANNEL.fullmatch(stem)
        found = _label_name(stem, suffixes, by_label)
        name, number = (stem, 0)
        if not found and numbered and (found := _label_name(numbered[1], suffixes, by_label)):
            name, number = numbered[1], int(numbered[2])
        if not found:
            what = f"has no label; expected one named {stem}, or with {', '.join(suffixes[1:4])} or --label_suffix"
            defects.append(Defect(path, f"{what}; add it or remove this file"))
        elif number in channels.setdefault(name, {}):
            defects.append(Defect(path, f"has the name of {channels[name][number].name}; expected one, rename one"))
        elif what := wrong_name(name):
            defects.append(Defect(path, what))
        else:
            channels[name][number], label_of[name] = path, found
    used = set(label_of.values())
    what = "has no image of its name; expected one, add it or remove this label"
    bad = {defect.path for defect in defects}
    defects += [Defect(path, what) for name, path in by_label.items() if name not in used and path not in bad]
    cases = [
        Case(name, tuple(files[number] for number in sorted(files)), by_label[label_of[name]])
        for name, files in sorted(channels.items())
        if files
    ]
    _check_channels(cases, channels, defects)
    return cases


def _label_name(stem: str, suffixes: Sequence[str], labels: dict[str, Path]) -> str:
    return next((stem + suffix for suffix in suffixes if stem + suffix in labels), "")


def _add(found: dict[str, Path], name: str, path: Path, defects: list[Defect]) -> None:
    if name in found:
        defects.append(Defect(path, f"has the name of {found[name].name}; expected one of each, rename one"))
    found.setdefault(name, path)


def _check_channels(cases: Sequence[Case], channels: dict[str, dict[int, Path]], defects: list[Defect]) -> None:
    """Every case has the same channels 0, 1, ..., and all files are images or all are volumes."""
    usual = Counter(tuple(sorted(channels[case.name])) for case in cases).most_common(1)
    kinds = Counter(is_image(case.images[0]) for case in cases).most_common(1)
    for case in cases:
        numbers = tuple(sorted(channels[case.name]))
        expected = usual[0][0]
        if numbers != expected or numbers != tuple(range(len(numbers))):
            want = ", ".join(f"_{number:04d}" for number in range(len(expected)))
            what = (
                f"has the channels {', '.join(f'_{number:04d}' for number in numbers)}; expected {want} of every case"
            )
            defects.append(Defect(case.images[0], what))
        if any(is_image(path) != kinds[0][0] for path in case.files):
            what = "is of another kind than most files; expected images alone or volumes alone, also as labels"
            defects.append(Defect(case.images[0], what))


def wrong_name(name: str) -> str:
    """What is wrong with the name of a case, which becomes a line of a list and the name of a mask."""
    if not name.isprintable() or name != name.strip() or "/" in name or "\\" in name:
        return (
            "has a name with a control character, or blanks around it; expected letters that can be printed, rename it"
        )
    if len(name.encode()) > MAX_NAME:
        return f"has a name of {len(name.encode())} bytes; expected {MAX_NAME} at most, rename it"
    return ""
