"""GlaS and MoNuSeg, and any pictures with masks: pairs of files as slices to train on and as pictures to test on.

A mask has the name of its picture, with or without `_anno`. One folder holds both, as the official GlaS does, or two
folders beside each other do: `img/` and `labelcol/`, or `images/` and `masks/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datasets.base import BadFile, Defect, Defects, Sample, Volume, defect_of
from datasets.images import (
    PICTURES,
    is_noise,
    is_picture,
    label_table,
    mask_values,
    picture_header,
    read_mask,
    read_picture,
    to_classes,
    to_unit,
    value_defects,
)
from datasets.pairs import Pair

CLASSES = {"GlaS": ("gland",), "MoNuSeg": ("nucleus",)}

ANNOTATED = "_anno"  # behind the name of a mask
_IMAGES, _MASKS = ("img", "images"), ("labelcol", "masks")
_PARTS = {"train": "Train_Folder", "val": "Val_Folder", "test": "Test_Folder"}  # the second as UCTransNet has it
_OFFICIAL = {"train": re.compile(r"train_\d+"), "test": re.compile(r"test[AB]_\d+")}  # of GlaS, all in one folder
_NO_PICTURES = (".txt", ".csv", ".json", ".md", ".xml", ".xls", ".xlsx", ".ini", ".db")
_EXPECTED = (
    "train/ and test/, or Train_Folder/ and Test_Folder/, of img/ and labelcol/ or images/ and masks/ each; "
    "or train_1.bmp with train_1_anno.bmp, testA_1.bmp ... in one folder"
)
_ANY_VALUE = tuple(range(256))


class PictureSlices(Dataset):
    """Pictures with their masks as `Sample`s, each read and checked when it is asked for.

    The image of a sample is (3, H, W) or, of one channel, (H, W), float32 in [0, 1]; its label (H, W) uint8, 0..K-1.

    Args:
        pairs: such as `find_pairs` gives.
        label_values: what a mask holds for class 0, 1, ..; see `images.label_table`.
        channels: 1 or 3; a picture with another number is refused.
        instances: the masks number objects, as GlaS's do: what is not 0 is class 1, whatever `label_values` says.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        label_values: Sequence[int] = (0, 255),
        channels: int = 3,
        instances: bool = False,
    ) -> None:
        self.pairs, self.channels, self.instances = list(pairs), channels, instances
        self.label_values = tuple(label_values)
        self.num_classes = 2 if instances else len(self.label_values)
        self.names = [pair.name for pair in self.pairs]
        self.files = [pair.image for pair in self.pairs]
        self.label_files = [pair.label for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        pixels, mask = _read(pair, self.channels, self.instances)
        label = foreground(mask, pair.label) if self.instances else to_classes(mask, self.label_values, pair.label)
        return Sample(to_unit(pixels), label, pair.name)


class PictureVolumes(Sequence):
    """The pictures of `slices` as `Volume`s of one slice, image (1, 3, H, W) or (1, H, W) and label (1, H, W).

    Args:
        slices: a `PictureSlices`, or a `CachedSlices` of one.
    """

    def __init__(self, slices: PictureSlices) -> None:
        self.slices = slices
        source = getattr(slices, "source", slices)
        self.names, self.num_classes = list(slices.names), source.num_classes
        self.files, self.label_files = source.files, source.label_files

    @property
    def cases(self) -> list[str]:
        """The names of the pictures."""
        return self.names

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> Volume:
        image, label, name = self.slices[index]
        return Volume(name, image[None], label[None], is_picture=True, source=self.files[index])


def foreground(mask: np.ndarray, where: Path) -> np.ndarray:
    """Turn a mask whose values number objects into 0 and 1, uint8.

    Raises:
        ValueError: its values are the noise of JPEG and no numbers of objects; the message names `where`.
    """
    for defect in _number_defects(where, mask_values(mask)):
        raise BadFile(str(defect))
    return (mask > 0).astype(np.uint8)


def find_pairs(root: Path, part: str, *, channels: int = 3, instances: bool = False) -> list[Pair]:
    """Pair the pictures and masks of one part of a data set by name, and look at their headers.

    In the layout of UCTransNet "train" and "val" are its Train_Folder and Val_Folder; where there is no folder to
    validate on, "val" is empty.

    Args:
        root: the folder of the data set.
        part: "train", "val" or "test".
        channels: that the pictures have.
        instances: as for `PictureSlices`.

    Raises:
        FileNotFoundError: there is no such folder, or it has no such part.
        Defects: files without partner, two of one name, no pictures at all, sizes that differ within a pair, and
            pictures of another kind, all together.
    """
    pairs, defects = look_for_pairs(root, part, channels=channels, instances=instances)
    if defects:
        raise Defects(root, defects)
    return pairs


def look_for_pairs(
    root: Path, part: str, *, channels: int = 3, instances: bool = False
) -> tuple[list[Pair], list[Defect]]:
    """As `find_pairs`, but the pairs that can be used and what is wrong with others.

    Raises:
        FileNotFoundError: there is no such folder, or it has no such part.
    """
    if part not in _PARTS:
        raise ValueError(f"part is {part!r}; expected one of {', '.join(_PARTS)}")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such data folder; expected {_EXPECTED} (--root_path)")
    defects: list[Defect] = []
    halves = _halves(root, part, defects)
    if halves is None:
        return [], []
    pairs = list(_paired(*halves, defects))
    if not pairs and not defects:
        defects.append(Defect(root, f"has no picture to {part} on; expected {_EXPECTED}"))
    found = {pair: list(header_defects(pair, channels=channels, instances=instances)) for pair in pairs}
    defects += [defect for of_pair in found.values() for defect in of_pair]
    return [pair for pair in pairs if not found[pair]], defects


def header_defects(pair: Pair, *, channels: int = 3, instances: bool = False, opaque: bool = False) -> Iterator[Defect]:
    """What is wrong with a pair as far as its headers tell."""
    headers = []
    for path, options in ((pair.image, {}), (pair.label, {"palette": instances})):
        try:
            headers.append(picture_header(path, **options))
        except (ValueError, OSError) as error:
            yield defect_of(path, error)
    if len(headers) == 2:
        yield from _mismatches(pair, headers[0][:2], headers[0].channels, headers[1][:2], channels)


def look_at_all(
    pairs: Sequence[Pair],
    *,
    instances: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    threads: int = 4,
) -> tuple[tuple[int, ...], list[Defect]]:
    """Decode every picture and mask; returns what a mask holds for class 0 and 1, and all that is wrong.

    Args:
        instances: as for `PictureSlices`.
        progress: wraps the iterator over the pairs, such as tqdm.
    """

    def look(pair: Pair) -> tuple[int, ...] | list[Defect]:
        defects = []
        for path, read in ((pair.image, read_picture), (pair.label, partial(read_mask, palette=instances))):
            try:
                pixels = read(path)
            except (ValueError, OSError) as error:
                defects.append(defect_of(path, error))
        return defects or mask_values(pixels)

    with ThreadPoolExecutor(threads) as pool:
        seen = dict(zip(pairs, progress(pool.map(look, pairs)), strict=True))
    defects = [defect for found in seen.values() if isinstance(found, list) for defect in found]
    values = {pair.label: found for pair, found in seen.items() if isinstance(found, tuple)}
    if instances:
        return (0, 1), defects + [defect for path, found in values.items() for defect in _number_defects(path, found)]
    try:
        return label_table(values, 2) if values else (0, 255), defects
    except Defects as error:
        return (0, 255), [*defects, *error.defects]


def told_twice(pairs: Mapping[Pair, str]) -> Iterator[Defect]:
    """Pictures that are in two parts, and those that train and validate under one name."""
    names: dict[str, Path] = {}
    contents: dict[bytes, tuple[str, Path]] = {}
    for pair, part in pairs.items():
        other = names.setdefault(pair.name, pair.image) if part != "test" else pair.image
        if other != pair.image:
            yield Defect(pair.image, f"has the name of {other}; expected one of each, rename one")
        twin, path = contents.setdefault(sha256(pair.image.read_bytes()).digest(), (part, pair.image))
        if twin != part:
            what = f"is the picture {path}; expected it in one part, or the test measures what was learnt by heart"
            yield Defect(pair.image, what)


def _read(pair: Pair, channels: int, instances: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels and the raw mask of a pair; a ValueError where they do not belong together."""
    pixels, mask = read_picture(pair.image), read_mask(pair.label, palette=instances)
    found = 1 if pixels.ndim == 2 else pixels.shape[2]
    for defect in _mismatches(pair, pixels.shape[:2], found, mask.shape, channels):
        raise BadFile(str(defect))
    return pixels, mask


def _mismatches(
    pair: Pair, size: tuple[int, int], channels: int, mask_size: tuple[int, int], expected: int
) -> Iterator[Defect]:
    if channels != expected:
        kind = "three channels (RGB)" if expected == 3 else "one channel (grey)"
        mode = "RGB" if expected == 3 else "L"
        what = f"has {channels} channel{'s' * (channels > 1)}; expected {kind}"
        yield Defect(pair.image, f"{what}, so convert it, by PIL: Image.open(FILE).convert('{mode}').save(NEW)")
    if size != mask_size:
        what = f"has {mask_size[0]} x {mask_size[1]} pixels but {pair.image.name} {size[0]} x {size[1]}"
        yield Defect(pair.label, f"{what}; expected the same size, so take the mask of this very picture")


def _number_defects(path: Path, values: tuple[int, ...]) -> list[Defect]:
    """What is wrong with the values of a mask that numbers objects: only that they come from a JPEG."""
    return value_defects(path, values, (0, 255) if is_noise(values) else _ANY_VALUE)


def _halves(root: Path, part: str, defects: list[Defect]) -> tuple[dict[str, Path], dict[str, Path]] | None:
    """The pictures and the masks of a part, each by the name of the picture; None for a "val" that is not there."""
    folder = next((root / name for name in (part, _PARTS[part]) if (root / name).is_dir()), None)
    if folder is None:
        mixed = next((f for f in (root, *sorted(root.glob("*/"))) if any(f.glob(f"*{ANNOTATED}.*"))), None)
        has_parts = any((root / name).is_dir() for name in (*_PARTS, *_PARTS.values()))
        if part == "val" and (mixed or has_parts):
            return None
        if mixed is None or has_parts:
            raise FileNotFoundError(f"{root}: has no part to {part} on; expected {_EXPECTED} (--root_path)")
        return _one_folder(mixed, part, defects)
    images, masks = (_first_folder(folder, names) for names in (_IMAGES, _MASKS))
    if images and masks:
        return _by_name(_pictures(images, defects), defects), _by_name(_pictures(masks, defects), defects, ANNOTATED)
    if images or masks:
        missing, beside = (_MASKS, images) if images else (_IMAGES, masks)
        raise FileNotFoundError(f"{folder}: has {beside.name}/ but no {' or '.join(missing)}; expected {_EXPECTED}")
    return _one_folder(folder, "", defects)


def _first_folder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _one_folder(folder: Path, part: str, defects: list[Defect]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The pictures and the masks of a folder of both; with `part`, only those that the official GlaS names so."""
    files = _pictures(folder, defects)
    if part:
        defects += [
            Defect(path, "is named for no part; expected train_1.bmp, testA_1.bmp or testB_1.bmp, rename or remove it")
            for path in files
            if not any(pattern.match(path.stem) for pattern in _OFFICIAL.values())
        ]
        files = [path for path in files if _OFFICIAL[part].fullmatch(path.stem.removesuffix(ANNOTATED))]
    masks = [path for path in files if path.stem.endswith(ANNOTATED)]
    images = [path for path in files if not path.stem.endswith(ANNOTATED)]
    return _by_name(images, defects), _by_name(masks, defects, ANNOTATED)


def _pictures(folder: Path, defects: list[Defect]) -> list[Path]:
    """The pictures of a folder; of files that are none, tables and notes are passed over."""
    files = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() not in _NO_PICTURES)
    what = f"is no picture; expected files that end in {', '.join(PICTURES)}, so convert it or move it away"
    defects += [Defect(path, what) for path in files if not (path.is_file() and is_picture(path))]
    return [path for path in files if path.is_file() and is_picture(path)]


def _by_name(files: Iterable[Path], defects: list[Defect], ending: str = "") -> dict[str, Path]:
    """Files by their names, without the suffix and, where they have it, without `ending`."""
    found: dict[str, Path] = {}
    for path in files:
        name = path.stem.removesuffix(ending)
        if name in found:
            defects.append(Defect(path, f"is a second {name}, beside {found[name].name}; expected one, remove one"))
        found.setdefault(name, path)
    return found


def _paired(images: dict[str, Path], masks: dict[str, Path], defects: list[Defect]) -> Iterator[Pair]:
    for here, there, other in ((images, masks, "mask"), (masks, images, "picture")):
        what = f"has no {other}; expected one of the same name (a mask may end in {ANNOTATED}), add it or remove this"
        defects += [Defect(path, what) for name, path in here.items() if name not in there]
    for name in sorted(images.keys() & masks.keys()):
        yield Pair(name, images[name], masks[name])
