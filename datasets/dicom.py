"""DICOM in: one series of a folder as a volume, its slices sorted by where they lie in the patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.base import MOST_PIXELS, MOST_VOXELS, Defect, Defects, Geometry, check_claim, shorten
from datasets.decoders import hushed
from datasets.elements import check_elements
from datasets.readers.itk import brief_of_itk, check_name, header_reader, quiet_sitk
from datasets.readers.orientation import arrange, check_axes, turn

if TYPE_CHECKING:
    import SimpleITK

SUFFIXES = (".dcm", ".dicom", ".ima")
BESIDE = (".txt", ".json", ".csv")  # what may lie beside images, and is passed over
_INDEX = "dicomdir"  # the name of a table of contents

_SERIES, _FRAMES = "0020|000e", "0028|0008"
_PLACE = {"ImagePositionPatient": "0020|0032", "ImageOrientationPatient": "0020|0037", "PixelSpacing": "0028|0030"}
_SCALE = {"RescaleIntercept": "0028|1052", "RescaleSlope": "0028|1053"}
_COUNTS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
_SKEW = 1e-2  # of the products of the axes; they are often written with few digits
_LEFT_BEHIND = (85, 42)  # numbers that differ in every type
_MARK, _MARK_AT = b"DICM", 128

# How far slices may be from where even distances along the normal put them, as a share of the distance: positions are
# often written with one digit behind the point.
_UNEVEN = 0.1
_TOLERANCE = 1e-3  # mm, and between the entries of a direction


@dataclass(frozen=True)
class _Slice:
    """What a file's header says: its series, its size (x, y), and where it lies (mm, LPS)."""

    path: Path
    series: str
    size: tuple[int, ...]
    dtype: np.dtype
    is_packed: bool
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def height(self) -> float:
        """Its position in mm along the normal of its plane."""
        return float(np.dot(self.origin, np.reshape(self.direction, (3, 3))[:, 2]))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name or by the mark that it bears, or, where it cannot be read, by its name."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") if path.is_file() else BytesIO() as file:  # opening a pipe would wait for ever
            return file.read(_MARK_AT + len(_MARK))[_MARK_AT:] == _MARK
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder; see `is_dicom`."""
    return [path for path in _files(folder) if is_dicom(path)]


def read_series(folder: Path | str, axis_order: str = "zxy", orientation: str = "") -> tuple[np.ndarray, Geometry]:
    """Read the one DICOM series of a folder as an array (D, H, W), rescaled as its files say, and its geometry.

    The series counts as a file whose x and y run along the rows and columns of the slices, and whose z along their
    normal; `axis_order` and `orientation` are then those of `datasets.readers.nifti.read_image`.

    Raises:
        FileNotFoundError: there is no such folder.
        Defects: it does not hold one whole series of even slices, and nothing else; every fault by its file.
    """
    folder = Path(folder)
    check_axes(axis_order, orientation)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one that holds a DICOM series")
    check_name(folder)
    sitk = quiet_sitk()
    slices = sorted(_read_headers(sitk, folder), key=lambda one: one.height)
    _refuse(folder, _misplaced(slices))
    stored = _read_voxels(sitk, folder, slices)
    first, last = slices[0], slices[-1]
    between = (last.height - first.height) / (len(slices) - 1)
    geometry = Geometry((*first.spacing, between), first.origin, first.direction)
    geometry = turn(geometry, axis_order, orientation)
    return np.ascontiguousarray(arrange(stored, geometry)), geometry


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("[!.]*")):
        if not path.is_dir() and path.suffix.lower() not in BESIDE and path.name.lower() != _INDEX:
            yield path


def _refuse(folder: Path, defects: Sequence[Defect]) -> None:
    if defects:
        raise Defects(folder, defects)


def _read_headers(sitk: SimpleITK, folder: Path) -> list[_Slice]:
    """The headers of all files of a folder, unsorted, of one series and one grid; raises Defects."""
    slices, defects = [], []
    for path in _files(folder):
        try:
            check_name(path)
            slices.append(_read_header(sitk, path))
        except (ValueError, OSError) as error:
            defects.append(Defect(path, str(error).removeprefix(f"{path}: ")))
    counts = Counter(one.series for one in slices)
    if len(counts) > 1:
        listed = ", ".join(f"{shorten(series, 64)} (files: {count})" for series, count in counts.items())
        what = f"holds {len(counts)} series: {listed}; expected one, so put each into a folder of its own"
        defects.append(Defect(folder, what))
    elif len(slices) > 1:
        defects += _odd_ones(slices)
    elif not defects:
        found = "one DICOM slice" if slices else "no DICOM series"
        what = f"holds {found}; expected the two or more slices of one, or a picture (PNG, TIFF) of a single slice"
        defects.append(Defect(folder, what))
    _refuse(folder, defects)
    return slices


def _read_header(sitk: SimpleITK, path: Path) -> _Slice:
    if not path.is_file():
        raise ValueError(f"{path}: is a link to nowhere, or no file at all; expected a slice, so copy it again")
    with path.open("rb") as file:
        try:
            is_packed = check_elements(file, path.stat().st_size)
        except ValueError as error:
            raise _unreadable(path, error) from None
    with hushed() if is_packed else nullcontext():
        reader = _reader(sitk, path)
    keys = reader.GetMetaDataKeys()
    frames = reader.GetMetaData(_FRAMES).strip() if _FRAMES in keys else "1"
    size = reader.GetSize()
    if reader.GetNumberOfComponents() != 1:
        raise ValueError(f"{path}: is in colour; expected one number a pixel, so export it as grey")
    if len(size) != 3 or size[2] != 1 or frames not in ("", "1"):
        raise ValueError(f"{path}: holds {frames} frames; expected one slice a file, so export it as single frames")
    lacking = [name for name, key in _PLACE.items() if key not in keys]
    if lacking:
        raise ValueError(f"{path}: does not say where it lies ({', '.join(lacking)}); expected a slice of a CT or MR")
    _check_numbers(reader, path)
    try:
        dtype = sitk.GetArrayFromImage(sitk.Image(1, 1, 1, reader.GetPixelID())).dtype
    except RuntimeError as error:
        raise _unreadable(path, error) from None
    check_claim(size[:2], dtype, path.stat().st_size, MOST_PIXELS, "the slice", path)
    series = reader.GetMetaData(_SERIES).strip() if _SERIES in keys else ""
    where = reader.GetSpacing()[:2], reader.GetOrigin(), reader.GetDirection()
    return _Slice(path, series, size[:2], dtype, is_packed, *where)


def _check_numbers(reader: SimpleITK.ImageFileReader, path: Path) -> None:
    """Refuse a place or a scale that is no numbers: GDCM takes others in their stead, and says nothing."""
    scale = {name: key for name, key in _SCALE.items() if key in reader.GetMetaDataKeys()}
    for name, key in (_PLACE | scale).items():
        text = reader.GetMetaData(key)
        try:
            numbers = np.array([float(number) for number in text.strip("\0 ").split("\\")])
        except ValueError:
            numbers = np.array([np.nan])
        usable = np.isfinite(numbers).all() and len(numbers) == _COUNTS.get(name, 1)
        if name == "PixelSpacing":
            usable = usable and (numbers > 0).all()
        elif usable and name == "ImageOrientationPatient":
            axes = numbers.reshape(2, 3)
            usable = np.allclose(axes @ axes.T, np.eye(2), rtol=0.0, atol=_SKEW)
        if not usable:
            raise ValueError(f"{path}: its {name} is {shorten(text.strip(), 64)!r}; expected sound numbers, mend it")


def _reader(sitk: SimpleITK, path: Path) -> SimpleITK.ImageFileReader:
    try:
        return header_reader(sitk, "GDCMImageIO", path)
    except RuntimeError as error:
        raise _unreadable(path, error) from None


def _odd_ones(slices: Sequence[_Slice]) -> Iterator[Defect]:
    """The slices that differ from most in size, spacing or direction."""
    keys = ("size", "spacing", "direction")
    usual = {key: Counter(getattr(one, key) for one in slices).most_common(1)[0][0] for key in keys}
    for one in slices:
        odd = [key for key in keys if not np.allclose(getattr(one, key), usual[key], rtol=0.0, atol=_TOLERANCE)]
        if odd:
            found, expected = (_numbers(values) for values in (getattr(one, odd[0]), usual[odd[0]]))
            what = (
                f"has the {odd[0]} {found} but most slices have {expected}; expected slices of one grid, move it away"
            )
            yield Defect(one.path, what)


def _misplaced(slices: Sequence[_Slice]) -> list[Defect]:
    """What is wrong with the places of sorted slices: doubled ones, missing ones, and a shift that adds up."""
    heights = np.array([one.height for one in slices])
    gaps = np.diff(heights)
    pairs = list(zip(gaps.tolist(), slices[:-1], slices[1:], strict=True))
    doubled = [(lower, upper) for gap, lower, upper in pairs if gap < _TOLERANCE]
    if doubled:
        what = "lies where {} lies; expected one slice in each place, so move one of both away"
        return [Defect(upper.path, what.format(lower.path.name)) for lower, upper in doubled]
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    uneven = [pair for pair in pairs if abs(pair[0] - usual) > _UNEVEN * usual]
    if uneven:
        what = "lies {:.4g} mm from {}, its neighbour; expected {:.4g} mm between all slices, so add what is missing"
        return [Defect(upper.path, what.format(gap, lower.path.name, usual)) for gap, lower, upper in uneven]
    extent = float(heights[-1] - heights[0])
    steps = np.linspace(0.0, extent, len(slices))[:, None] * np.reshape(slices[0].direction, (3, 3))[:, 2]
    off = np.linalg.norm(np.array([one.origin for one in slices]) - slices[0].origin - steps, axis=1)
    worst = int(off.argmax())
    if off[worst] <= _UNEVEN * usual + _TOLERANCE * extent:
        return []
    what = f"lies {off[worst]:.4g} mm from where even distances along the normal of the slices would put it"
    return [Defect(slices[worst].path, f"{what}; expected a box (no tilted gantry), so resample the series")]


def _read_voxels(sitk: SimpleITK, folder: Path, slices: Sequence[_Slice]) -> np.ndarray:
    """The numbers [z, y, x] of sorted slices, in a type that holds those of every file; raises Defects."""
    shape = (len(slices), *reversed(slices[0].size))
    # One series reader for all files would take the type of the first, and cut off what does not fit into it.
    dtype = np.result_type(*{one.dtype for one in slices})
    check_claim(shape, dtype, sum(one.path.stat().st_size for one in slices), MOST_VOXELS, "the series", folder)
    stored, defects = np.empty(shape, dtype), []
    for plane, one in zip(stored, slices, strict=True):
        try:
            plane[:] = _read_plane(sitk, one)
            _check_finite(plane, one.path)
        except (RuntimeError, ValueError) as error:
            error = _unreadable(one.path, error) if isinstance(error, RuntimeError) else error
            defects.append(Defect(one.path, str(error).removeprefix(f"{one.path}: ")))
    _refuse(folder, defects)
    return stored


def _read_plane(sitk: SimpleITK, one: _Slice) -> np.ndarray:
    """The numbers [y, x] of a slice.

    GDCM says nothing of packed pixels that it cannot unpack, and hands out what was in memory before: then two readings
    differ if other numbers lay there, where the next array of that size is made.
    """
    if not one.is_packed:
        return sitk.GetArrayFromImage(_reader(sitk, one.path).Execute())[0]
    planes = []
    for number in _LEFT_BEHIND:
        with hushed():
            reader = _reader(sitk, one.path)
            np.full(one.size, number, one.dtype)  # and gone
            planes.append(sitk.GetArrayFromImage(reader.Execute())[0])
    if (planes[0] != planes[1]).any():
        raise ValueError(f"{one.path}: its pixels cannot be unpacked; expected sound ones, so copy it again")
    return planes[0]


def _check_finite(plane: np.ndarray, path: Path) -> None:
    if plane.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite to a network
            bad = int((~np.isfinite(plane.astype(np.float32))).sum())
        if bad:
            raise ValueError(f"{path}: holds {bad} NaN or infinite values; expected finite numbers, mend the file")


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.6g}' for value in values)})"


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: is not a readable DICOM image ({shorten(brief_of_itk(error))}); expected the slices of one CT or MR "
        "series and nothing else, so copy it again, or move it away"
    )
