"""NIfTI-1 and NIfTI-2 volumes, by nibabel: read as (D, H, W) a few slices at a time, masks written on their grid."""

from __future__ import annotations

import gzip
import math
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from datasets.case import Geometry
from datasets.errors import MAX_VOXELS, warn_once
from datasets.readers.grid import as_stored, check_axes, reorient, slice_first
from utils import atomic_write, release_pages

SUFFIXES = (".nii.gz", ".nii")

_SCALE = ("scl_slope", "scl_inter")
_BLOCK = 2**24  # bytes that are read or written at a time
_AHEAD = 2**26  # bytes of slices that are read at once where they do not lie one behind the other
_MAX_SKEW = 1e-2  # cosine between axes of the affine
_MAX_ROUNDING = 1e-3  # of pixdim, relative to the affine
_GZIP_LEVEL = 6
_MAX_CODE = 5  # of qform and sform


class _Nifti1(nib.Nifti1Header):
    quaternion_threshold = np.float64(1e-4)  # that a quaternion may be longer than 1, as writers round


class _Nifti2(nib.Nifti2Header):
    quaternion_threshold = np.float64(1e-4)


class NiftiImage:
    """The numbers of a NIfTI file as (D, H, W), read from it a range of slices at a time: a `SlicedImage`.

    An image of one slice is (1, H, W). A compressed file is decompressed at the first read, into a temporary file that
    has no name and is removed with the object.
    """

    ndim = 3

    def __init__(self, path: Path, header: nib.Nifti1Header, geometry: Geometry) -> None:
        self.path, self.geometry = path, geometry
        self._sizes = dict(zip("xyz", _shape(header), strict=True))
        self.shape = tuple(self._sizes[axis] for axis in geometry.axis_order)
        self._stored = header.get_data_dtype()
        self._start = max(int(header["vox_offset"]), header.template_dtype.itemsize)
        slope, self._intercept = (float(np.nan_to_num(header[key], posinf=0, neginf=0)) for key in _SCALE)
        self._slope = slope or 1.0  # 0 stands for numbers that are not scaled
        self._scaled = bool(slope) and (slope, self._intercept) != (1.0, 0.0)
        is_real = self._stored.kind == "f" or not self._scaled
        self.dtype = self._stored.newbyteorder("=") if is_real else np.dtype(np.float32)
        self._file: BinaryIO | None = None
        self._ahead = 0, np.empty((0, *self.shape[1:]), self.dtype)
        self._lock = Lock()  # one place in the file, and one block of slices, for all threads
        if not _is_compressed(path) and path.stat().st_size < self._end:
            raise _unreadable(path, f"it holds {path.stat().st_size} bytes where its header promises {self._end}")

    @property
    def _end(self) -> int:
        return self._start + math.prod(self.shape) * self._stored.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, slices: slice) -> np.ndarray:
        """The slices of a range, (d, H, W).

        Raises:
            ValueError: the file was changed, or is damaged; the message names it.
            OSError: there is no room to decompress it; the message names the temporary folder.
        """
        rows = range(len(self))[slices]
        if not rows:
            return np.empty((0, *self.shape[1:]), self.dtype)
        first, last = min(rows), max(rows) + 1
        with self._lock:
            if self.geometry.axis_order[0] == "z":
                return self.read(first, last)[:: rows.step]
            # Each read passes through the whole file: make fewer of them.
            start, block = self._ahead
            if not start <= first < last <= start + len(block):
                del block, self._ahead
                count = max(last - first, _AHEAD // (math.prod(self.shape[1:]) * self.dtype.itemsize))
                self._ahead = start, block = first, self.read(first, min(first + count, len(self)))
            return block[first - start : last - start][:: rows.step].copy()

    def read(self, first: int, last: int) -> np.ndarray:
        """The slices of a range, read in blocks of the file's planes of x and y."""
        slices = np.empty((last - first, *self.shape[1:]), self.dtype)
        target = as_stored(slices, self.geometry)
        axis = self.geometry.axis_order[0]
        if axis in self.geometry.flips:
            first, last = len(self) - last, len(self) - first
        zs, ys, xs = (slice(first, last) if name == axis else slice(0, self._sizes[name]) for name in "zyx")
        for z, planes in self._planes(zs.start, zs.stop):
            target[z - zs.start :][: len(planes)] = self._numbers(planes[:, ys, xs])
        return slices

    def check(self) -> None:
        """Decompress a compressed file, and look at every number.

        Raises:
            ValueError: it is damaged, or holds NaN or infinite values.
        """
        bad = 0
        for _, planes in self._planes(0, self._sizes["z"]) if self.dtype.kind == "f" else ():
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite to a network
                bad += int((~np.isfinite(self._numbers(planes).astype(np.float32))).sum())
        if bad:
            raise ValueError(f"{self.path}: holds {bad} NaN or infinite values; expected finite numbers, fix the file")
        self._open()

    def _numbers(self, stored: np.ndarray) -> np.ndarray:
        if not self._scaled:
            return stored
        with np.errstate(over="ignore"):
            # In the steps that SimpleITK takes, for numbers equal to the bit.
            return (stored.astype(self.dtype).astype(np.float64) * self._slope + self._intercept).astype(self.dtype)

    def _planes(self, first: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks [z, y, x] as stored, and the z where each begins."""
        file, plane = self._open(), (self._sizes["y"], self._sizes["x"])
        step = max(1, _BLOCK // (math.prod(plane) * self._stored.itemsize))
        for z in range(first, last, step):
            count = min(step, last - z)
            file.seek(self._start + z * math.prod(plane) * self._stored.itemsize)
            block = np.fromfile(file, self._stored, count * math.prod(plane))
            if block.size < count * math.prod(plane):
                raise _unreadable(self.path, "it has become shorter since it was opened")
            yield z, block.reshape(count, *plane)

    def _open(self) -> BinaryIO:
        if self._file is None:
            is_compressed = _is_compressed(self.path)
            self._file = _decompress(self.path, self._end) if is_compressed else self.path.open("rb", buffering=0)
        return self._file


def open_image(
    path: Path | str, axis_order: str = "zxy", orientation: str = "", *, whole: bool = True, spacing: str = "affine"
) -> NiftiImage:
    """Open a NIfTI file to be read slice by slice, its voxels checked in bounded memory unless `whole` is false.

    Args:
        axis_order: "zxy", the published one for Synapse, takes voxel (x, y, z) to [z, x, y]; "zyx" is SimpleITK's own.
            In an image of one slice, the axis without extent goes first.
        orientation: where x, y and z shall point, such as "RAS", to the right, anterior and superior; the file's axes
            that come nearest are turned there first. "" takes them as they are stored.
        spacing: "affine" takes the lengths of the columns of the sform or qform, "pixdim" those of the header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a 2-D or 3-D NIfTI file of one number a voxel, is damaged, or holds NaN; the message names
            it.
    """
    path = Path(path)
    check_axes(axis_order, orientation)
    header = _read_header(path)
    geometry = _geometry(header, path, spacing)
    if orientation and not geometry.oriented:
        raise ValueError(
            f"{path}: does not say where its axes point (qform_code and sform_code are 0); expected a file that does, "
            "so fix its header, or take its axes as they are stored (--opts DATA.ORIENTATION stored)"
        )
    geometry = slice_first(reorient(geometry, axis_order, orientation), _shape(header))
    image = NiftiImage(path, header, geometry)
    if whole:
        image.check()
    return image


def write_mask(path: Path, array: np.ndarray, geometry: Geometry, values: np.ndarray) -> None:
    """Write an array (D, H, W) of whole numbers with the header of the file that `geometry` was read from.

    Type, scale and intent are those of a mask; all else is as it was, to the bit. Without a header, qform and sform are
    the affine. No second copy of the array is made, so it may lie on the disk (np.memmap). The file is written
    atomically.

    Args:
        path: a name that ends in .nii.gz or .nii.
        values: uint8, what is written for 0, 1, ...; the numbers themselves where it is empty.

    Raises:
        OSError: the file cannot be written.
    """
    stored = as_stored(array, geometry)
    header = _mask_header(geometry, stored.shape[::-1])
    planes = max(1, _BLOCK // stored[0].size)

    def write(partial: Path) -> None:
        with (
            partial.open("wb") as file,
            # Without name and time: equal masks make equal files.
            gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)
            if path.name.lower().endswith(".gz")
            else nullcontext(file) as stream,
        ):
            stream.write(header.binaryblock + bytes(4))
            for first in range(0, len(stored), planes):
                block = np.ascontiguousarray(stored[first : first + planes], dtype=np.uint8)
                stream.write((values[block] if len(values) else block).data)
                release_pages(array)

    atomic_write(path, write)


def _mask_header(geometry: Geometry, shape: tuple[int, ...]) -> nib.Nifti1Header:
    if geometry.header is None:
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        header.set_zooms(geometry.spacing)
        header.set_xyzt_units("mm")
        header.set_qform(geometry.affine, 1)
        header.set_sform(geometry.affine, 1)
    else:
        header = geometry.header.copy()
        if _shape(header) != shape:
            header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    for key in ("cal_min", "cal_max", "scl_inter", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
        header[key] = 0
    header["scl_slope"], header["intent_name"] = 1, b""
    header["vox_offset"] = header.template_dtype.itemsize + 4
    return header


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _read(stream: BinaryIO | gzip.GzipFile, size: int, path: Path) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(path, str(error)) from None


def _decompress(path: Path, end: int) -> BinaryIO:
    """The first `end` bytes of a compressed file in a temporary one; the rest is read too, for its checksum."""
    position = 0
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115, it is the result
        with gzip.open(path) as stream:
            while block := _read(stream, _BLOCK, path):
                file.write(block[: max(0, end - position)])
                position += len(block)
        file.flush()
    except OSError as error:
        raise OSError(
            f"{path}: cannot be decompressed into the temporary folder {tempfile.tempdir} ({error.strerror or error}); "
            "make room there, or name another (TMPDIR)"
        ) from None
    if position < end:
        raise _unreadable(path, f"it holds {position} bytes where its header promises {end}")
    return file


def _read_header(path: Path) -> nib.Nifti1Header:
    """The header as it is stored: as nibabel loads it, pixdim is repaired and the scale forgotten."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a NIfTI volume (.nii or .nii.gz)")
    with gzip.open(path) if _is_compressed(path) else path.open("rb") as stream:
        block = _read(stream, _Nifti2.template_dtype.itemsize, path)
    kind, magic = (_Nifti1, block[344:348]) if block[344:348] == b"n+1\0" else (_Nifti2, block[4:8])
    size = kind.template_dtype.itemsize
    order = "<" if block[:4] == size.to_bytes(4, "little") else ">"
    if magic not in (b"n+1\0", b"n+2\0") or len(block) < size:
        raise _unreadable(path, "it does not begin with a NIfTI header")
    header = kind(block[:size], order, check=False)
    shape = _shape(header)
    if len(shape) != 3 or min(shape) < 1:
        advice = ", so write its channels as CASE_0000.nii.gz, CASE_0001.nii.gz, ..." if len(shape) == 4 else ""
        raise ValueError(f"{path}: has the shape {shape} as (x, y, z, ...); expected a 3-D volume or one slice{advice}")
    if math.prod(shape) > MAX_VOXELS:
        raise ValueError(f"{path}: has the shape {shape}; expected {MAX_VOXELS} voxels at most")
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V")
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise ValueError(f"{path}: has the NIfTI data type {header['datatype']}; expected one number a voxel")
    codes = int(header["qform_code"]), int(header["sform_code"])
    if not all(0 <= code <= _MAX_CODE for code in codes):
        raise ValueError(
            f"{path}: its qform_code and sform_code are {codes}; expected 0 to {_MAX_CODE}, fix its header"
        )
    if not np.isfinite(header["vox_offset"]):
        raise _unreadable(path, "its voxels begin nowhere")
    return header


def _shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    """The sizes along x, y and z, and along further axes where these have an extent; of two dimensions, z is 1."""
    count, *sizes = header["dim"].tolist()
    shape = [*sizes[: max(0, count)], *[1] * (3 - count)] if 1 < count <= len(sizes) else []
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _geometry(header: nib.Nifti1Header, path: Path, spacing: str) -> Geometry:
    """Where the voxels lie by the sform, else the qform, else pixdim."""
    try:
        affine = header.get_best_affine()
    except (ValueError, HeaderDataError) as error:
        raise _unreadable(path, str(error)) from None
    extended = np.array(_shape(header)) > 1
    for axis in range(3):
        if not extended[axis] and not affine[:3, axis].any():  # two dimensions need say nothing of the third
            affine[:3, axis] = np.cross(affine[:3, (axis + 1) % 3], affine[:3, (axis + 2) % 3])
            affine[:3, axis] /= np.linalg.norm(affine[:3, axis]) or 1.0
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    lengths, pixdim = np.linalg.norm(lps[:, :3], axis=0), header["pixdim"][1:4].astype(float)
    direction = lps[:, :3] / np.where(lengths > 0, lengths, 1.0)
    if not np.isfinite(lps).all() or not abs(np.linalg.det(direction)) > 0.1:
        raise ValueError(
            f"{path}: its affine is {np.round(affine[:3], 6).tolist()}; expected three axes that differ, fix its header"
        )
    if (skew := np.abs(direction.T @ direction - np.eye(3)).max()) > _MAX_SKEW:
        warn_once(
            f"{path}: the axes of its affine are not at right angles (cosine {skew:.2g}); distances are not exact"
        )
    if spacing == "pixdim":
        if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
            raise ValueError(
                f"{path}: its pixdim is {pixdim.tolist()}; expected positive numbers, or DATA.SPACING affine"
            )
        lengths = pixdim
    elif not np.allclose(lengths[extended], pixdim[extended], rtol=_MAX_ROUNDING, atol=0.0):
        shown = [", ".join(f"{value:.6g}" for value in values) for values in (pixdim, lengths)]
        warn_once(
            f"{path}: its pixdim is ({shown[0]}) mm, but its affine has ({shown[1]}), which is taken; "
            "--opts DATA.SPACING pixdim takes the former"
        )
    size, origin, axes = (tuple(values.ravel().tolist()) for values in (lengths, lps[:, 3], direction))
    is_oriented = bool(header["qform_code"] or header["sform_code"])
    return Geometry(size, origin, axes, oriented=is_oriented, header=header)


def _unreadable(path: Path, why: str) -> ValueError:
    why = " ".join(why.split())[:160]
    return ValueError(f"{path}: is not a readable NIfTI file ({why}); expected a .nii or .nii.gz volume, copy it again")
