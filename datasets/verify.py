"""The checks of a data set: of each file, each list, each case and the whole, as defects to report all at once.

`scripts/verify_data.py` reports them; `datasets.check` is what train.py and test.py see to before they begin.
"""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from datasets.base import (
    MOST_PIXELS,
    MOST_VOXELS,
    Defect,
    Geometry,
    brief,
    check_claim,
    check_label,
    defect_of,
    read_list,
    require_listed,
)
from datasets.geometry import geometry_from
from datasets.synapse import (
    DAMAGE,
    case_of,
    own_dataset,
    read_npy_header,
    read_slice,
    read_volume,
    volume_path,
)

_GEOMETRY = tuple(field.name for field in fields(Geometry))
_RANGE = (0.0, 1.0)
_ROUNDING = 1e-4  # what interpolation and float16 leave beyond the range is no defect
_SPACING_DIGITS = 3  # mm; scanners round no finer
_GEOMETRY_BYTES = 1024  # nine numbers and the head of their array take 200
_LABELS_SHOWN = 12


class Header(NamedTuple):
    """What a file says of its arrays before any pixel: the shape of both, and the dtype of each."""

    shape: tuple[int, ...]
    image: str
    label: str


@dataclass(frozen=True)
class Finding:
    """What one file holds, as far as it could be read: its defects, and facts for a summary.

    `dtypes` are those of image and label as stored, `low` and `high` the range of the image, `voxels` the number of
    each label 0..K-1, `spacing` in mm (x, y, z) or None where the file stores none. A file that could not be read
    has its `defects` and an empty `shape`. `blank` is an image of one value; that is a defect where a label marks
    an organ in it, and else may be the end of a scan.
    """

    path: Path
    defects: tuple[Defect, ...] = ()
    shape: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    low: float = math.inf
    high: float = -math.inf
    voxels: tuple[int, ...] = ()
    spacing: tuple[float, ...] | None = None
    blank: bool = False


def read_header(path: Path) -> Header | None:
    """The header of a slice (npz) or volume (h5), without decoding its pixels.

    None unless both arrays are there and whole, hold numbers, and have one shape of the right rank. It does not say
    what is wrong then: `read_slice` and `read_volume` do, and they have the last word.
    """
    describe, ndim = (_h5_arrays, 3) if path.suffix == ".h5" else (_npz_arrays, 2)
    try:
        (shape, image), (label_shape, label) = describe(path)
    except DAMAGE:
        return None
    usable = shape == label_shape and len(shape) == ndim and min(shape) > 0
    return Header(shape, str(image), str(label)) if usable else None


def _npz_arrays(path: Path) -> list[tuple[tuple[int, ...], np.dtype]]:
    with zipfile.ZipFile(path) as file:
        return [_npy_claim(file, key, path) for key in ("image", "label")]


def _npy_claim(file: zipfile.ZipFile, key: str, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one array of an npz file, which must have as many bytes as these ask for."""
    member = file.getinfo(f"{key}.npy")
    with file.open(member) as stream:
        shape, _, dtype = read_npy_header(stream)
        size = member.file_size - stream.tell()
    check_claim(shape, dtype, member.compress_size, MOST_PIXELS, key, path)
    usual = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if not usual or size != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{path}: {key} is packed oddly, or has {size} bytes for the shape {shape} of {dtype}")
    return shape, dtype


def _h5_arrays(path: Path) -> list[tuple[tuple[int, ...], np.dtype]]:
    with h5py.File(path, "r") as file:
        arrays = [own_dataset(file, key, path) for key in ("image", "label")]
        for array in arrays:
            check_claim(array.shape, array.dtype, array.id.get_storage_size(), MOST_VOXELS, array.name, path)
        return [(array.shape, array.dtype) for array in arrays]


def inspect(path: Path, num_classes: int) -> Finding:
    """Read one slice (npz) or volume (h5) whole, and say what is wrong with it and what it holds; never raises for it.

    Args:
        path: the file; its suffix says what it is.
        num_classes: K; labels outside 0..K-1 are a defect.
    """
    header = read_header(path)
    try:
        image, label = _read_pair(path, num_classes)
    except (ValueError, OSError) as error:
        return Finding(path, tuple(_refusals(path, error, num_classes, header)))
    geometry, defects = _geometry(path)
    low, high = float(image.min()), float(image.max())
    # By plane: counting takes eight bytes a voxel.
    planes = label.reshape(-1, label.shape[-1] * label.shape[-2])
    voxels = tuple(sum(np.bincount(plane, minlength=num_classes) for plane in planes).tolist())
    return Finding(
        path,
        (*defects, *_intensity_defects(path, low, high, image.size, voxels)),
        image.shape,
        (header.image, header.label) if header else ("unknown", "unknown"),
        low,
        high,
        voxels,
        geometry and tuple(round(value, _SPACING_DIGITS) for value in geometry.spacing),
        low == high,
    )


def _read_pair(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    if path.suffix != ".h5":
        return read_slice(path, num_classes)
    volume = read_volume(path, num_classes)
    return volume.image, volume.label


def _refusals(path: Path, error: Exception, num_classes: int, header: Header | None) -> Iterator[Defect]:
    """Why the file was refused, and what is wrong with its label where that was not the reason."""
    first, own = defect_of(path, error), None
    if header is not None:  # else there are no two whole arrays to look at
        own = _label_defect(path, num_classes)
    if own is None or not own.what.startswith(first.what):
        yield first
    if own is not None:
        yield own


def _label_defect(path: Path, num_classes: int) -> Defect | None:
    """What is wrong with a label that can be read, with the labels found."""
    try:
        with h5py.File(path, "r") if path.suffix == ".h5" else np.load(path, allow_pickle=False) as file:
            label = np.asarray(file["label"][()])
    except DAMAGE:
        return None
    try:
        check_label(label, num_classes, path)
    except ValueError as error:
        found = np.unique(label)
        shown = ", ".join(f"{value:g}" for value in found[:_LABELS_SHOWN].tolist())
        more = ", ..." if len(found) > _LABELS_SHOWN else ""
        return Defect(path, f"{defect_of(path, error).what}; labels found: {shown}{more}")
    return None


def _geometry(path: Path) -> tuple[Geometry | None, list[Defect]]:
    """Where the file lies in the patient, if it says so, and what is wrong with that."""
    try:
        stored = _stored_geometry(path)
        geometry = geometry_from(stored, path)
    except DAMAGE as error:
        if str(error).startswith(f"{path}: "):
            return None, [defect_of(path, error)]
        return None, [Defect(path, f"its geometry cannot be read ({brief(error)}); make or copy it again")]
    if stored and geometry is None:
        missing = ", ".join(f"'{key}'" for key in _GEOMETRY[:3] if key not in stored)
        return None, [Defect(path, f"its geometry lacks {missing}; expected all of it or none, make the file again")]
    return geometry, []


def _stored_geometry(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".h5":
        with h5py.File(path, "r") as file:  # `read_volume` has seen that these are small, and in this very file
            return {key: np.asarray(file[key][()]) for key in _GEOMETRY if key in file}
    with np.load(path, allow_pickle=False) as file:
        keys = [key for key in _GEOMETRY if key in file]
        for key in keys:
            size = file.zip.getinfo(f"{key}.npy").file_size
            if size > _GEOMETRY_BYTES:
                raise ValueError(f"'{key}' takes {size} bytes; expected nine numbers at most")
        return {key: np.asarray(file[key]) for key in keys}


def _intensity_defects(path: Path, low: float, high: float, size: int, voxels: Sequence[int]) -> Iterator[Defect]:
    if low < _RANGE[0] - _ROUNDING or high > _RANGE[1] + _ROUNDING:
        what = f"'image' ranges from {low:g} to {high:g}; expected 0 to 1, clip and scale it as prepare_synapse.py does"
        yield Defect(path, what)
    marked = [str(index) for index, count in enumerate(voxels) if index and count]
    if low == high and size > 1 and marked:
        found = f"'image' is {low:g} everywhere, but 'label' marks {', '.join(marked)} in it"
        yield Defect(path, f"{found}; expected a picture of them, make or copy the file again")


def read_names(path: Path) -> list[str]:
    """Read a list as `read_list` does, but with the names that it repeats, which `name_defects` reports.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: the list is empty, is not text, or holds something that is not a plain file name.
    """
    try:
        return read_list(path)
    except ValueError as error:
        # It looks for repeats last: of a list that has some, all else is well.
        if not str(error).endswith("expected every name once"):
            raise
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def name_defects(where: Path, paths: Sequence[Path], folder: Path, pattern: str) -> Iterator[Defect]:
    """Files that a list names twice, or that are not there, and files of the folder that it does not name.

    Args:
        where: the list.
        paths: the file of each of its names, in order.
        folder: where these files lie.
        pattern: of the files that a list should name, such as "*.npz".
    """
    for path, count in Counter(paths).items():
        if count > 1:
            yield Defect(where, f"names {path.name} {count} times; expected every name once, mend the list")
        try:
            require_listed([path])
        except FileNotFoundError as error:
            yield defect_of(path, error)
    for path in sorted(set(folder.glob(pattern)) - set(paths)):
        yield Defect(path, f"no list names it; expected it in {where}, name it there or move it away")


def shared_cases(train: Iterable[str], test: Iterable[str], where: Path) -> Iterator[Defect]:
    """Cases that are trained or validated on and tested on; `where` is the list of the test."""
    tested = {volume_path(Path(), name).name.removesuffix(".npy.h5") for name in test}
    for case in sorted(tested & {case_of(name) for name in train}):
        what = f"names {case}, of which train.txt or val.txt names slices; expected a case in one list"
        yield Defect(where, f"{what}, or the test measures what was learnt by heart")


def case_defects(slices: Iterable[Finding]) -> Iterator[Defect]:
    """Slices that differ in size or in spacing from most of their case."""
    cases: dict[str, list[Finding]] = {}
    for finding in slices:
        if finding.shape:
            cases.setdefault(case_of(finding.path.stem), []).append(finding)
    for case, members in cases.items():
        yield from _odd_ones(case, members, "size", lambda finding: finding.shape)
        yield from _odd_ones(case, members, "spacing", lambda finding: finding.spacing)


def _odd_ones(case: str, members: Sequence[Finding], what: str, value: Callable[[Finding], Any]) -> Iterator[Defect]:
    usual, count = Counter(map(value, members)).most_common(1)[0]
    for finding in members:
        if value(finding) != usual:
            found = f"has {what} {value(finding)} but {count} of the {len(members)} slices of {case} have {usual}"
            yield Defect(finding.path, f"{found}; expected one {what} in a case, make the file again")


def class_defects(slices: Iterable[Finding], class_names: Sequence[str], where: Path) -> Iterator[Defect]:
    """Classes 1..K-1 that no training slice holds, so that nothing can be learnt of them; `where` is the list.

    Where no slice could be read, nothing is known of any class.
    """
    totals = total_voxels(slices, len(class_names) + 1)
    for index, name in enumerate(class_names, 1):
        if any(totals) and not totals[index]:
            what = f"no readable slice of it holds class {index} ({name}); expected every class 1..{len(class_names)}"
            yield Defect(where, f"{what}, add slices that do or give another --num_classes")


def total_voxels(findings: Iterable[Finding], num_classes: int) -> list[int]:
    """How many voxels of each label 0..num_classes-1 the readable files hold."""
    return np.sum([np.zeros(num_classes, int), *(f.voxels for f in findings if f.voxels)], axis=0).tolist()
