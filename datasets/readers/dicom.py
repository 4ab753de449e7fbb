"""DICOM, by pydicom: one series of a folder as a volume, its slices sorted by where they lie in the patient."""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import imagecodecs
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from datasets.case import Geometry
from datasets.errors import MAX_VOXELS, Defect, Defects, brief, defect_of
from datasets.readers.grid import arrange, check_axes, reorient

SUFFIXES = (".dcm", ".dicom", ".ima")
# What may lie beside images, and is passed over.
BESIDE = (".raw", ".zraw", ".txt", ".csv", ".json", ".md", ".xml", ".xls", ".xlsx", ".ini", ".db")

_INDEX = "dicomdir"  # the name of a table of contents
_MARK, _MARK_AT = b"DICM", 128
_SKEW = 1e-2  # of the products of the axes, which are often written with few digits
_TOLERANCE = 1e-3  # mm, and between the entries of a direction
# How far slices may be from where even distances along the normal put them, as a fraction of the distance: positions
# are often written with one digit behind the point.
_UNEVEN = 0.1

# What decodes compressed pixels; pydicom itself decodes runs (RLE).
_DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    uid.JPEGBaseline8Bit: imagecodecs.jpeg_decode,
    uid.JPEGExtended12Bit: imagecodecs.jpeg_decode,
    uid.JPEGLossless: imagecodecs.jpegsof3_decode,
    uid.JPEGLosslessSV1: imagecodecs.jpegsof3_decode,
    uid.JPEGLSLossless: imagecodecs.jpegls_decode,
    uid.JPEGLSNearLossless: imagecodecs.jpegls_decode,
    uid.JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    uid.JPEG2000: imagecodecs.jpeg2k_decode,
}
# Where a value of a multi-frame file stands in the functional groups of a frame, or of all frames.
_GROUP_OF = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what matters it raises, too
warnings.filterwarnings("ignore", module=r"pydicom\.")


class _Slice(NamedTuple):
    """A frame of a file, and what the header says: its series, its size (x, y), where it lies (mm, LPS), its scale."""

    path: Path
    frame: int
    series: str
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    scale: tuple[float, float]

    @property
    def height(self) -> float:
        """Its position in mm along the normal of its plane."""
        return float(np.dot(self.origin, np.reshape(self.direction, (3, 3))[:, 2]))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name or by the mark that it bears, or, where it cannot be read, by its name."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return file.read(_MARK_AT + len(_MARK))[_MARK_AT:] == _MARK
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder; see `is_dicom`."""
    return [path for path in _files(folder) if is_dicom(path)]


def read_series(folder: Path | str, axis_order: str = "zxy", orientation: str = "") -> tuple[np.ndarray, Geometry]:
    """Read the one DICOM series of a folder as an array (D, H, W), rescaled as its files say, and its geometry.

    The series counts as a file whose x and y run along the rows and columns of the slices, and whose z along their
    normal; `axis_order` and `orientation` are then those of `datasets.readers.nifti.open_image`. Photometric
    interpretation is for a display, and changes no number.

    Raises:
        FileNotFoundError: there is no such folder.
        Defects: it does not hold one whole series of even slices, and nothing else; every fault by its file.
    """
    folder = Path(folder)
    check_axes(axis_order, orientation)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one that holds a DICOM series")
    slices, defects = [], []
    for path in _files(folder):
        try:
            slices += _read_headers(path)
        except (ValueError, OSError) as error:
            defects.append(defect_of(path, error))
    defects += _mixed(folder, slices, bool(defects))
    slices.sort(key=lambda one: one.height)
    defects += _misplaced(slices) if not defects else []
    stored = _read_voxels(slices, defects) if not defects else np.empty(0)
    if defects:
        raise Defects(folder, defects)
    first, last = slices[0], slices[-1]
    between = (last.height - first.height) / (len(slices) - 1)
    geometry = reorient(Geometry((*first.spacing, between), first.origin, first.direction), axis_order, orientation)
    return np.ascontiguousarray(arrange(stored, geometry)), geometry


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("[!.]*")):
        if not path.is_dir() and path.suffix.lower() not in BESIDE and path.name.lower() != _INDEX:
            yield path


def _read(path: Path, *, whole: bool) -> Dataset:
    if not path.is_file():
        raise ValueError(f"{path}: is a link to nowhere, or no file at all; expected a slice, so copy it again")
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=not whole, force=is_dicom(path))
        if "Rows" not in dataset or "Columns" not in dataset:
            raise ValueError("it has no image")
        return dataset
    except Exception as error:  # pydicom reports damage in as many ways as a file can be damaged
        raise _unreadable(path, error) from None


def _read_headers(path: Path) -> list[_Slice]:
    """The slice of a file, or all of a multi-frame one."""
    header = _read(path, whole=False)
    try:
        frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel", 1))
        size = int(header.Columns), int(header.Rows)
        series = str(header.get("SeriesInstanceUID", ""))
    except Exception as error:  # each value is decoded as it is asked for
        raise _unreadable(path, error) from None
    if samples != 1 or not str(header.get("PhotometricInterpretation", "MONOCHROME2")).startswith("MONOCHROME"):
        raise ValueError(f"{path}: is in color; expected one number a pixel, so export it as grey")
    if math.prod(size) * frames > MAX_VOXELS:
        raise ValueError(f"{path}: claims {frames} frames of {size}; expected {MAX_VOXELS} pixels at most")
    found = []
    for frame in range(frames):
        position, axes, spacing = (
            _numbers(header, frame, key, count, path)
            for key, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
        )
        slope, intercept = (
            _numbers(header, frame, key, 1, path, default)[0]
            for key, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        rows, columns = np.reshape(axes, (2, 3))
        if abs(rows @ rows - 1) > _SKEW or abs(columns @ columns - 1) > _SKEW or abs(rows @ columns) > _SKEW:
            raise ValueError(f"{path}: its ImageOrientationPatient is {list(axes)}; expected two unit axes, fix it")
        if min(spacing) <= 0:
            raise ValueError(f"{path}: its PixelSpacing is {list(spacing)}; expected positive numbers, fix it")
        rows, normal = rows / np.linalg.norm(rows), np.cross(rows, columns)
        normal /= np.linalg.norm(normal)
        direction = tuple(np.column_stack([rows, np.cross(normal, rows), normal]).ravel().tolist())
        found.append(_Slice(path, frame, series, size, spacing[::-1], position, direction, (slope, intercept)))
    return found


def _numbers(
    header: Dataset, frame: int, key: str, count: int, path: Path, default: float | None = None
) -> tuple[float, ...]:
    """A value of a frame, in its own functional groups, in those that all share, or of the file."""
    try:
        groups = [*header.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]]
        groups += header.get("SharedFunctionalGroupsSequence", [])[:1]
        places = [group[_GROUP_OF[key]][0] for group in groups if group.get(_GROUP_OF[key])]
        value = next((place.get(key) for place in (*places, header) if place.get(key) is not None), default)
    except Exception as error:  # each value is decoded as it is asked for
        raise _unreadable(path, error) from None
    if value is None:
        advice = "expected a slice of a CT or MR" if "NumberOfFrames" not in header else "convert it, by dcm2niix"
        raise ValueError(f"{path}: does not say where it lies (no {key}); {advice}")
    try:
        numbers = tuple(map(float, cast(Iterable, value) if count > 1 else [value]))
    except (ValueError, TypeError):
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{path}: its {key} is {str(value)[:64]!r}; expected sound numbers, fix it")
    return numbers


def _mixed(folder: Path, slices: Sequence[_Slice], damaged: bool) -> list[Defect]:
    """Several series, slices that differ from most in size, spacing or direction, or less than two of them."""
    counts = Counter(one.series for one in slices)
    if len(counts) > 1:
        listed = ", ".join(f"{series[:64]} (files: {count})" for series, count in counts.items())
        what = f"holds {len(counts)} series: {listed}; expected one, so put each into a folder of its own"
        return [Defect(folder, what)]
    if len(slices) < 2 and not damaged:
        found = "one DICOM slice" if slices else "no DICOM series"
        what = f"holds {found}; expected the two or more slices of one, or an image (PNG, TIFF) of a single slice"
        return [Defect(folder, what)]
    defects = []
    keys = ("size", "spacing", "direction")
    usual = {key: Counter(getattr(one, key) for one in slices).most_common(1)[0][0] for key in keys if slices}
    for one in slices:
        odd = [key for key in keys if not np.allclose(getattr(one, key), usual[key], rtol=0.0, atol=_TOLERANCE)]
        if odd:
            found, expected = (
                f"({', '.join(f'{value:.6g}' for value in values)})" for values in (getattr(one, odd[0]), usual[odd[0]])
            )
            what = f"has the {odd[0]} {found} but most slices have {expected}; expected one grid, move it away"
            defects.append(Defect(one.path, what))
    return list(dict.fromkeys(defects))


def _misplaced(slices: Sequence[_Slice]) -> list[Defect]:
    """What is wrong with the places of sorted slices: doubled ones, missing ones, and a shift that adds up."""
    heights = np.array([one.height for one in slices])
    gaps = np.diff(heights)
    pairs = list(zip(gaps.tolist(), slices[:-1], slices[1:], strict=True))
    doubled = [(lower, upper) for gap, lower, upper in pairs if gap < _TOLERANCE]
    if doubled:
        what = "lies where {} lies; expected one slice in each place, so move one of both away"
        return [Defect(upper.path, what.format(_name(lower))) for lower, upper in doubled]
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    uneven = [pair for pair in pairs if abs(pair[0] - usual) > _UNEVEN * usual]
    if uneven:
        what = "lies {:.4g} mm from {}, its neighbor; expected {:.4g} mm between all slices, so add what is missing"
        return [Defect(upper.path, what.format(gap, _name(lower), usual)) for gap, lower, upper in uneven]
    extent = float(heights[-1] - heights[0])
    steps = np.linspace(0.0, extent, len(slices))[:, None] * np.reshape(slices[0].direction, (3, 3))[:, 2]
    off = np.linalg.norm(np.array([one.origin for one in slices]) - slices[0].origin - steps, axis=1)
    worst = int(off.argmax())
    if off[worst] <= _UNEVEN * usual + _TOLERANCE * extent:
        return []
    what = f"lies {off[worst]:.4g} mm from where even distances along the normal of the slices would put it"
    return [Defect(slices[worst].path, f"{what}; expected a box (no tilted gantry), so resample the series")]


def _name(one: _Slice) -> str:
    return f"{one.path.name}, frame {one.frame + 1}" if one.frame else one.path.name


def _read_voxels(slices: Sequence[_Slice], defects: list[Defect]) -> np.ndarray:
    """The numbers [z, y, x] of sorted slices, in a type that holds those of all; what is wrong goes to `defects`."""
    planes: list[np.ndarray] = [np.empty(0)] * len(slices)
    of_file: dict[Path, list[int]] = {}
    for index, one in enumerate(slices):
        of_file.setdefault(one.path, []).append(index)
    for path, indices in of_file.items():
        try:
            pixels = _pixels(path)
            for index in indices:
                one = slices[index]
                planes[index] = _rescaled(pixels[one.frame], *one.scale)
                if planes[index].shape != one.size[::-1]:
                    raise ValueError(
                        f"{path}: has pixels of {planes[index].shape}, not {one.size[::-1]}; copy it again"
                    )
                if planes[index].dtype.kind == "f" and not np.isfinite(planes[index]).all():
                    raise ValueError(f"{path}: holds NaN or infinite values; expected finite numbers, fix the file")
        except (ValueError, OSError) as error:
            defects.append(defect_of(path, error))
    return np.stack(planes) if not defects else np.empty(0)


def _pixels(path: Path) -> np.ndarray:
    """The pixels of a file as stored, (frames, H, W)."""
    dataset = _read(path, whole=True)
    try:
        syntax = dataset.file_meta.TransferSyntaxUID
        frames, shape = int(dataset.get("NumberOfFrames") or 1), (int(dataset.Rows), int(dataset.Columns))
        if syntax not in _DECODERS:
            return dataset.pixel_array.reshape(frames, *shape)
        encoded = generate_frames(dataset.PixelData, number_of_frames=frames)
        pixels = np.stack([_DECODERS[syntax](frame) for frame in encoded])
        bits, is_signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
        if pixels.dtype.kind == "u" and is_signed:  # but JPEG 2000 keeps a sign itself
            sign = 1 << (bits - 1)
            pixels = ((pixels.astype(np.int32) & (2 * sign - 1)) ^ sign) - sign
        return pixels
    except Exception as error:  # so many libraries, so many ways to report damage
        raise _unreadable(path, error) from None


def _rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """The numbers, whole where slope and intercept are, else float32."""
    if slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < 2**24:
        exact = stored.astype(np.int64) * int(slope) + int(intercept)
        return exact.astype(
            np.promote_types(np.int16, np.result_type(*map(np.min_scalar_type, (exact.min(), exact.max()))))
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite to a network, and refused
        return (stored * np.float64(slope) + intercept).astype(np.float32)


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: is not a readable DICOM image ({brief(error)}); expected the slices of one CT or MR "
        "series and nothing else, so copy it again, or move it away"
    )
