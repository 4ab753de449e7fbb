"""NIfTI in: the one place where a file's (x, y, z) becomes our arrays' (D, H, W), whole or a few slices at a time."""

from __future__ import annotations

import gzip
import math
import struct
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from datasets.axes import arrange, as_stored, check_axes, turn
from datasets.base import MOST_VOXELS, Geometry, check_claim
from datasets.itk import brief_of_itk, check_name, header_reader, quiet_sitk

if TYPE_CHECKING:
    import SimpleITK

SUFFIXES = (".nii.gz", ".nii")

# Offsets in the 348 bytes of a NIfTI-1 header, and numbers of its data types (nifti1.h).
HEADER_BYTES = 348
_DIM, _DATATYPE, _PIXDIM, _VOX_OFFSET, _SCALE, _QFORM_CODE, _QFORM = 40, 70, 76, 108, 112, 252, 256
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_CODES = range(6)  # of the qform and the sform, 0 for one that says nothing
_BLOCK = 2**20  # bytes; whole voxels of every type
_AHEAD = 2**26  # bytes of slices that are read at once where they do not lie one behind the other
_MOST_BESIDE = 2**24  # bytes before the voxels, for extensions of the header, and as many behind them


class _Layout(NamedTuple):
    """How a file's voxels lie: their type, how many along x, y and z, the byte where they begin, and their scale."""

    dtype: np.dtype
    shape: tuple[int, int, int]
    start: int
    slope: float
    intercept: float
    packed: bool

    @property
    def scaled(self) -> bool:
        """Whether the numbers are other than stored; so small a slope means none, as in SimpleITK."""
        least = np.finfo(np.float64).eps
        return abs(self.slope) > least and (abs(self.slope - 1.0) > least or abs(self.intercept) > least)

    @property
    def result(self) -> np.dtype:
        """The type of the numbers: the stored one, in the machine's byte order, or float32 for scaled whole ones."""
        return np.dtype(np.float32) if self.scaled and self.dtype.kind != "f" else self.dtype.newbyteorder("=")

    def numbers(self, stored: bytes) -> np.ndarray:
        """What stored bytes stand for, one-dimensional, to the bit what SimpleITK makes of them."""
        values = np.frombuffer(stored, self.dtype).astype(self.result)
        if not self.scaled:
            return values
        with np.errstate(over="ignore"):  # what becomes infinite is found by its value
            return (values.astype(np.float64) * self.slope + self.intercept).astype(self.result)


class NiftiImage:
    """The numbers of a 3-D NIfTI file as (D, H, W), read from it a range of slices at a time: a `SlicedImage`.

    A packed file is unpacked at the first read, into a temporary file that has no name and goes with the object.

    Args:
        layout: what the header says of the voxels.
        geometry: how the array lies in the file, and the file in the patient.
    """

    ndim = 3

    def __init__(self, path: Path, layout: _Layout, geometry: Geometry) -> None:
        self.path, self.geometry, self._layout = path, geometry, layout
        self.dtype = layout.result
        self.shape = tuple(layout.shape["xyz".index(axis)] for axis in geometry.axis_order)
        self._unpacked: BinaryIO | None = None
        self._ahead: tuple[range, np.ndarray] | None = None
        self._lock = Lock()  # one place in the file, and one block of slices, for all threads

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, slices: slice) -> np.ndarray:
        """The slices of a range, (d, H, W).

        Raises:
            ValueError: the file was changed, or is damaged; the message names it.
            OSError: there is no room to unpack it; the message names the temporary folder.
        """
        rows = range(len(self))[slices]
        if not rows:
            return np.empty((0, *self.shape[1:]), self.dtype)
        if rows.step != 1:
            return np.concatenate([self[row : row + 1] for row in rows])
        with self._lock:
            if self.geometry.axis_order[0] == "z":
                return self._read(rows)
            # Each read passes through much of the file, or all of it: make fewer of them.
            ahead, block = self._ahead or (range(0), None)
            if rows.start not in ahead or rows[-1] not in ahead:
                count = max(len(rows), _AHEAD // (math.prod(self.shape[1:]) * self.dtype.itemsize))
                ahead = range(rows.start, min(rows.start + count, len(self)))
                block = self._ahead = None  # let go of one block before the next is made
                block = self._read(ahead)
                self._ahead = (ahead, block)
            return block[rows.start - ahead.start :][: len(rows)].copy()

    def _read(self, rows: range) -> np.ndarray:
        """The slices of a range, read a plane of the file's x and y at a time, or the part of it that is needed."""
        axis, (first, last) = self.geometry.axis_order[0], (rows.start, rows.stop)
        if axis in self.geometry.flips:
            first, last = len(self) - last, len(self) - first
        zs, ys, xs = (
            slice(first, last) if axis == name else slice(0, length)
            for name, length in zip("zyx", reversed(self._layout.shape), strict=True)
        )
        width, height, _ = self._layout.shape
        bytes_of_row = width * self._layout.dtype.itemsize
        size = (ys.stop - ys.start) * bytes_of_row
        slices = np.empty((len(rows), *self.shape[1:]), self.dtype)
        with self._voxels() as (stream, start):
            for plane, z in zip(as_stored(slices, self.geometry), range(zs.start, zs.stop), strict=True):
                stream.seek(start + (z * height + ys.start) * bytes_of_row)
                stored = stream.read(size)
                if len(stored) < size:
                    raise _unreadable(self.path, "it has become shorter since it was opened")
                plane[:] = self._layout.numbers(stored).reshape(-1, width)[:, xs]
        return slices

    @contextmanager
    def _voxels(self) -> Iterator[tuple[BinaryIO, int]]:
        """A file that can be read anywhere, and the byte where the voxels begin in it."""
        if not self._layout.packed:
            with self.path.open("rb") as stream:
                yield stream, self._layout.start
            return
        if self._unpacked is None:
            self._unpacked = _unpack(self.path, self._layout)
            weakref.finalize(self, self._unpacked.close)
        yield self._unpacked, 0


def read_header(
    path: Path | str, axis_order: str = "zxy", orientation: str = ""
) -> tuple[tuple[int, int, int], Geometry]:
    """Read the shape (D, H, W) and the geometry of a 3-D NIfTI file, without its voxels; see `read_image`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a 3-D NIfTI file of one number a voxel; the message names it.
    """
    image = open_image(path, axis_order, orientation, whole=False)
    return image.shape, image.geometry


def open_image(path: Path | str, axis_order: str = "zxy", orientation: str = "", *, whole: bool = True) -> NiftiImage:
    """Check a 3-D NIfTI file, its voxels block by block, and open it to be read slice by slice; see `read_image`.

    With `whole` false the header alone is looked at, of a file that was checked before.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a 3-D NIfTI file of one number a voxel, is damaged, or holds NaN; the message names it.
    """
    path = Path(path)
    check_axes(axis_order, orientation)
    layout = _check_file(path, whole)
    if orientation and not says_axes(path):
        raise ValueError(
            f"{path}: does not say where its axes point (qform_code and sform_code are 0); expected a file that does, "
            "so mend its header, or take its axes as they are stored (--opts DATA.ORIENTATION stored)"
        )
    sitk = quiet_sitk()
    reader = _reader(sitk, path)
    size, spacing = reader.GetSize(), reader.GetSpacing()
    geometry = Geometry(spacing, reader.GetOrigin(), reader.GetDirection())
    if not all(length > 0 for length in spacing):
        raise ValueError(f"{path}: its spacing is {spacing} mm; expected positive numbers, mend its header")
    if size != layout.shape:
        raise _unreadable(path, f"its header says {layout.shape} and is read as {size}")
    return NiftiImage(path, layout, turn(geometry, axis_order, orientation))


def read_image(path: Path | str, axis_order: str = "zxy", orientation: str = "") -> tuple[np.ndarray, Geometry]:
    """Read a 3-D NIfTI file as an array (D, H, W) of the stored type, and its geometry.

    Args:
        axis_order: "zxy", the published one for Synapse, takes voxel (x, y, z) to [z, x, y]; "zyx" is SimpleITK's own.
        orientation: where x, y and z shall point, such as "RAS", to the right, anterior and superior; the file's axes
            that come nearest are turned there first. "" takes them as they are stored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a 3-D NIfTI file of one number a voxel, is damaged, or holds NaN; the message names it.
    """
    path = Path(path)
    geometry = open_image(path, axis_order, orientation).geometry
    sitk = quiet_sitk()
    try:
        stored = sitk.GetArrayFromImage(_reader(sitk, path).Execute())
    except RuntimeError as error:
        raise _unreadable(path, brief_of_itk(error)) from None
    return np.ascontiguousarray(arrange(stored, geometry)), geometry


def is_nifti(path: Path) -> bool:
    """Whether a file's name is that of a NIfTI file."""
    return path.name.lower().endswith(SUFFIXES)


def stem_of(path: Path) -> str:
    """A file's name without the suffix, and without both of .nii.gz."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def says_axes(path: Path) -> bool:
    """Whether a NIfTI file's header says where its axes point: not where qform_code and sform_code are 0."""
    with open_stream(path) as stream:
        return any(_read(stream, HEADER_BYTES, path)[_QFORM_CODE:_QFORM])


def open_stream(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where it is packed."""
    return gzip.open(path, "rb") if _is_packed(path) else path.open("rb")


def byte_order(header: bytes, path: Path) -> str:
    """The byte order of a NIfTI-1 header, "<" or ">".

    Raises:
        ValueError: it is none; the message names the file.
    """
    if len(header) >= HEADER_BYTES and header[344:348] == b"n+1\0":
        for order in "<>":
            if struct.unpack_from(f"{order}i", header)[0] == HEADER_BYTES:
                return order
    raise _unreadable(path, "it does not begin with a NIfTI-1 header")


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _reader(sitk: SimpleITK, path: Path) -> SimpleITK.ImageFileReader:
    try:
        return header_reader(sitk, "NiftiImageIO", path)
    except RuntimeError as error:
        raise _unreadable(path, brief_of_itk(error)) from None


def _check_file(path: Path, whole: bool) -> _Layout:
    """Refuse what SimpleITK reads all the same: it fills up a file cut short with whatever is in memory.

    With `whole`, the voxels are looked at too; without, the header alone.
    """
    check_name(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a NIfTI volume (.nii or .nii.gz)")
    if not path.name.endswith((*SUFFIXES, *map(str.upper, SUFFIXES))):  # SimpleITK takes no mixture of cases
        raise ValueError(f"{path}: is no NIfTI file by its name; expected one that ends in .nii.gz or .nii, rename it")
    if path.name.lower().endswith(".nii") and _is_packed(path):  # of which ITK would print a line
        raise ValueError(f"{path}: is packed, and its name does not say so; expected .nii.gz, rename it")
    with open_stream(path) as stream:
        header = _read(stream, HEADER_BYTES, path)
        layout = _check_header(header, path)
        if whole:
            for _ in _voxel_blocks(stream, path, layout):
                pass
    return layout


def _check_header(header: bytes, path: Path) -> _Layout:
    order = byte_order(header, path)
    shape = _header_shape(header, order, path)
    (datatype,) = struct.unpack_from(f"{order}h", header, _DATATYPE)
    if datatype not in _DTYPES:
        raise ValueError(f"{path}: has the NIfTI data type {datatype}; expected one whole or real number a voxel")
    numbers = (*struct.unpack_from(f"{order}4f", header, _PIXDIM), *struct.unpack_from(f"{order}18f", header, _QFORM))
    (start,) = struct.unpack_from(f"{order}f", header, _VOX_OFFSET)
    codes = struct.unpack_from(f"{order}2h", header, _QFORM_CODE)
    if not set(codes) <= set(_CODES):
        raise ValueError(
            f"{path}: its qform_code and sform_code are {codes}; expected {_CODES[0]} to {_CODES[-1]}, which say where "
            "its axes point, so mend its header"
        )
    if not all(math.isfinite(number) for number in (*numbers, start)):
        raise _unreadable(path, "its spacing or position is not finite")
    if not all(numbers[1:4]):
        # SimpleITK would take 1 mm in the place of 0.
        raise ValueError(f"{path}: its spacing is {numbers[1:4]} mm; expected positive numbers, mend its header")
    if start > _MOST_BESIDE:
        raise _unreadable(path, f"its voxels begin at byte {start:g}")
    dtype = np.dtype(_DTYPES[datatype]).newbyteorder(order)
    # As in SimpleITK, what is not finite counts as 0, and a slope of 0 as none.
    slope, intercept = np.nan_to_num(struct.unpack_from(f"{order}2f", header, _SCALE), posinf=0.0, neginf=0.0).tolist()
    return _Layout(dtype, shape, max(int(start), HEADER_BYTES), slope or 1.0, intercept, _is_packed(path))


def _header_shape(header: bytes, order: str, path: Path) -> tuple[int, ...]:
    count, *sizes = struct.unpack_from(f"{order}8h", header, _DIM)
    shape = tuple(sizes[:count]) if 0 <= count <= len(sizes) else ()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{path}: has the shape {shape} as (x, y, z, ...); expected a 3-D volume")
    return shape


def _voxel_blocks(stream: BinaryIO, path: Path, layout: _Layout) -> Iterator[bytes]:
    """Read on from the header, block by block, and check what goes by: a packed file may hold far more than promised.

    What is wrong with the numbers is said at the end, when all blocks were handed out.
    """
    check_claim(layout.shape, layout.dtype, path.stat().st_size, MOST_VOXELS, "the image", path)
    end = layout.start + math.prod(layout.shape) * layout.dtype.itemsize
    position = HEADER_BYTES + len(_read(stream, layout.start - HEADER_BYTES, path))
    bad = 0
    while block := _read(stream, min(_BLOCK, end - position), path):
        position += len(block)
        if layout.result.kind == "f" and not len(block) % layout.dtype.itemsize:
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite to a network
                bad += int((~np.isfinite(layout.numbers(block).astype(np.float32))).sum())
        yield block
    if position < end:
        raise _unreadable(path, f"it holds {position} bytes where its header promises {end}")
    if bad:
        # SimpleITK would hand out zeros in their place.
        raise ValueError(f"{path}: holds {bad} NaN or infinite values; expected finite numbers, mend the file")
    # To the end, where the checksum is.
    if len(_read(stream, _MOST_BESIDE + 1, path)) > _MOST_BESIDE:
        raise _unreadable(path, f"it goes on after the {end} bytes that its header promises")


def _read(stream: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(path, brief_of_itk(error)) from None


def _unpack(path: Path, layout: _Layout) -> BinaryIO:
    """The voxels of a packed file in a temporary one, which is gone when it is closed, however the process ends."""
    with ExitStack() as unless_done, open_stream(path) as stream:
        unpacked = unless_done.enter_context(tempfile.TemporaryFile(buffering=0))
        _read(stream, HEADER_BYTES, path)
        for block in _voxel_blocks(stream, path, layout):
            try:
                rest = memoryview(block)
                while rest:
                    rest = rest[unpacked.write(rest) :]
            except OSError as error:
                raise OSError(
                    f"{path}: cannot be unpacked into the temporary folder {tempfile.gettempdir()} ({error.strerror}); "
                    "make room there, or name another (TMPDIR)"
                ) from None
        unless_done.pop_all()
    return unpacked


def _unreadable(path: Path, why: str) -> ValueError:
    return ValueError(f"{path}: is not a readable NIfTI file ({why}); expected a .nii or .nii.gz volume, copy it again")
