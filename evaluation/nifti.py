"""NIfTI in and out: the one place where a file's (x, y, z) meets our arrays' (D, H, W)."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from datasets.base import MOST_VOXELS, Geometry, Volume, check_claim, check_image
from utils import whole_or_absent

if TYPE_CHECKING:
    import SimpleITK

# Offsets in the 348 bytes of a NIfTI-1 header, and numbers of its data types (nifti1.h).
_HEADER_BYTES = 348
_DIM, _DATATYPE, _PIXDIM, _VOX_OFFSET, _SFORM_CODE, _QFORM, _SROW = 40, 70, 76, 108, 254, 256, 280
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_SUFFIXES = (".nii.gz", ".nii")
_OTHER_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm", ".mha", ".mhd", ".nrrd", ".hdr")
_BLOCK = 2**20  # bytes; whole voxels of every type
_MOST_BESIDE = 2**24  # bytes before the voxels, for extensions of the header, and as many behind them
_MAX_ULPS = 2048


def read_header(path: Path | str, axis_order: str = "zxy") -> tuple[tuple[int, int, int], Geometry]:
    """Read the shape (D, H, W) and the geometry of a 3-D NIfTI file, without its voxels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a 3-D NIfTI file of one number a voxel; the message names it.
    """
    path = Path(path)
    _check_file(path, axis_order, whole=False)
    with _quiet() as sitk:
        reader = _reader(sitk, path)
        return _shape_and_geometry(reader, path, axis_order)


def read_image(path: Path | str, axis_order: str = "zxy") -> tuple[np.ndarray, Geometry]:
    """Read a 3-D NIfTI file as an array (D, H, W) of the stored type, and its geometry.

    `axis_order` "zxy", the published one for Synapse, takes voxel (x, y, z) to [z, x, y]; "zyx" is SimpleITK's own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a 3-D NIfTI file of one number a voxel, is damaged, or holds NaN; the message names it.
    """
    path = Path(path)
    _check_file(path, axis_order, whole=True)
    with _quiet() as sitk:
        reader = _reader(sitk, path)
        shape, geometry = _shape_and_geometry(reader, path, axis_order)
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise _unreadable(path, _brief(error)) from None
    array = np.ascontiguousarray(array.transpose(["zyx".index(axis) for axis in axis_order]))
    if array.shape != shape:
        raise _unreadable(path, f"its header says {shape}, its voxels {array.shape}")
    return array, geometry


def write_mask(path: Path | str, mask: np.ndarray, geometry: Geometry | None) -> None:
    """Write a mask (D, H, W) uint8 as NIfTI, with the spacing, origin and direction of the file it belongs to.

    What `read_image` gave as geometry reads back the same to the last bit; geometry that comes from elsewhere is
    rounded to the header's float32. Without geometry the array is taken as (z, y, x) at unit spacing, as the
    published code writes it. The file appears whole or not at all.

    Raises:
        ValueError: the mask, the geometry or the file's suffix is not what a mask can be written from.
        OSError: the file cannot be written.
    """
    path, geometry = Path(path), geometry or Geometry()
    if mask.ndim != 3 or mask.dtype != np.uint8:
        raise ValueError(f"{path}: the mask has shape {mask.shape} and dtype {mask.dtype}; expected (D, H, W) of uint8")
    _check_name(path)
    if not path.name.endswith(_SUFFIXES):
        raise ValueError(f"{path}: cannot be written; expected a name that ends in .nii.gz or .nii")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: cannot be written, there is no folder {path.parent}; make it first")

    def write(partial: Path) -> None:
        with _quiet() as sitk:
            image = _to_image(sitk, mask, geometry, path)
            _write_image(sitk, image, partial, path)
        if read_header(partial, geometry.axis_order)[1] != geometry:
            _write_sform(partial, geometry)

    whole_or_absent(path, write)


class NiftiVolumes(Sequence):
    """The NIfTI images of a folder, or one file, as `Volume`s without labels, intensities scaled as in training.

    Args:
        path: a .nii or .nii.gz file, or a folder of them.
        axis_order: see `read_image`.
        window: HU range that becomes [0, 1], see `scale_intensity`.

    Raises:
        FileNotFoundError: the path is not there.
        ValueError: the folder holds no NIfTI file, or two of the same name.
    """

    def __init__(self, path: Path, *, axis_order: str = "zxy", window: tuple[float, float] = (-125.0, 275.0)) -> None:
        if not path.exists():
            raise FileNotFoundError(f"{path}: is not there; expected a NIfTI file or a folder of them (--input)")
        found = sorted(path.glob("[!.]*")) if path.is_dir() else [path]
        files = [file for file in found if file.name.endswith(_SUFFIXES)]
        other = [file for file in found if file not in files and (file == path or _is_other_image(file))]
        if other:
            raise ValueError(f"{other[0]}: is no NIfTI file; expected names that end in .nii.gz or .nii (--input)")
        if not files:
            raise ValueError(f"{path}: holds no NIfTI file; expected names that end in .nii.gz or .nii (--input)")
        self.files = {file.name.removesuffix(".gz").removesuffix(".nii"): file for file in files}
        if len(self.files) < len(files):
            raise ValueError(f"{path}: holds the same name as .nii and .nii.gz; keep one of each (--input)")
        self.axis_order, self.window = axis_order, window

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Volume:
        name, path = list(self.files.items())[index]
        image, geometry = read_image(path, self.axis_order)
        return Volume(name, scale_intensity(image, *self.window, where=path), None, geometry)


def scale_intensity(image: np.ndarray, low: float = -125.0, high: float = 275.0, where: object = "image") -> np.ndarray:
    """Clip to the window [low, high] in HU and scale it to [0, 1], float32 (SPEC section 6: [-125, 275]).

    Raises:
        ValueError: the window is empty, or the image holds NaN or infinite values; the message names `where`.
    """
    # In float32 from the start, so that `high` itself becomes 1 and never the float above it.
    bottom, top = np.float32(low), np.float32(high)
    if not (np.isfinite([bottom, top]).all() and bottom < top):
        raise ValueError(f"the intensity window is {low} to {high}; expected two finite numbers, the lower one first")
    return (np.clip(check_image(image, where), bottom, top) - bottom) / (top - bottom)


def orientation(geometry: Geometry) -> str:
    """Where the file's x, y and z axes point, in letters such as "RAS": to the right, anterior and superior."""
    direction = np.reshape(geometry.direction, (3, 3))
    letters, free = {}, np.ones((3, 3))
    for _ in range(3):
        row, column = np.unravel_index(np.argmax(np.abs(direction) * free), (3, 3))
        letters[column] = ("RL", "AP", "IS")[row][int(direction[row, column] > 0)]
        free[row, :] = free[:, column] = -1.0
    return "".join(letters[column] for column in range(3))


def _is_other_image(file: Path) -> bool:
    """Whether a file of a folder should not be passed over in silence."""
    return file.name.lower().endswith(_OTHER_IMAGES)


@contextmanager
def _quiet() -> Iterator[SimpleITK]:
    """SimpleITK, with its warnings kept off standard error: every failure here becomes an exception of one line."""
    # Imported where it is needed: it is slow to load, and most of evaluation does without it.
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield sitk
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _reader(sitk: SimpleITK, path: Path) -> SimpleITK.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, _brief(error)) from None
    return reader


def _shape_and_geometry(
    reader: SimpleITK.ImageFileReader, path: Path, axis_order: str
) -> tuple[tuple[int, int, int], Geometry]:
    size = dict(zip("xyz", reader.GetSize(), strict=True))
    geometry = Geometry(reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection(), axis_order)
    if not all(spacing > 0 for spacing in geometry.spacing):
        raise ValueError(f"{path}: its spacing is {geometry.spacing} mm; expected positive numbers, mend its header")
    return tuple(size[axis] for axis in axis_order), geometry


def _to_image(sitk: SimpleITK, mask: np.ndarray, geometry: Geometry, path: Path) -> SimpleITK.Image:
    order = _checked_order(geometry.axis_order)
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask.transpose([order.index(axis) for axis in "zyx"])))
    try:
        image.SetSpacing(geometry.spacing)
        image.SetOrigin(geometry.origin)
        image.SetDirection(geometry.direction)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: cannot be written with {geometry} ({_brief(error)}); expected a grid") from None
    return image


def _write_image(sitk: SimpleITK, image: SimpleITK.Image, partial: Path, path: Path) -> None:
    try:
        partial.touch()
        sitk.WriteImage(image, str(partial), useCompression=True)
        # A full disk goes unnoticed by the writer, so look at what is there.
        _check_file(partial, "zyx", whole=True)
    except (RuntimeError, ValueError, OSError) as error:
        why = "the file ends early" if isinstance(error, ValueError) else _brief(error)
        raise OSError(f"{path}: cannot be written ({why}); is the folder writable and the disk not full?") from None


def _check_file(path: Path, axis_order: str, whole: bool) -> None:
    """Refuse what SimpleITK reads all the same: it fills up a file cut short with whatever is in memory.

    With `whole`, the voxels are looked at too; without, the header alone.
    """
    _checked_order(axis_order)
    _check_name(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a NIfTI volume (.nii or .nii.gz)")
    with _open(path) as stream:
        dtype, shape, start = _check_header(_read(stream, _HEADER_BYTES, path), path)
        if whole:
            check_claim(shape, dtype, path.stat().st_size, MOST_VOXELS, "the image", path)
            _check_voxels(stream, path, dtype, math.prod(shape), start)


def _check_name(path: Path) -> None:
    """SimpleITK ends the whole process at a name that is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: its name is not UTF-8; expected one that is, so rename it") from None


def _check_header(header: bytes, path: Path) -> tuple[np.dtype, tuple[int, ...], int]:
    """The voxels' type, how many there are along x, y and z, and the byte where they begin."""
    order = _byte_order(header, path)
    shape = _header_shape(header, order, path)
    (datatype,) = struct.unpack_from(f"{order}h", header, _DATATYPE)
    if datatype not in _DTYPES:
        raise ValueError(f"{path}: has the NIfTI data type {datatype}; expected one whole or real number a voxel")
    numbers = (*struct.unpack_from(f"{order}4f", header, _PIXDIM), *struct.unpack_from(f"{order}18f", header, _QFORM))
    (start,) = struct.unpack_from(f"{order}f", header, _VOX_OFFSET)
    if not all(math.isfinite(number) for number in (*numbers, start)):
        raise _unreadable(path, "its spacing or position is not finite")
    if not all(numbers[1:4]):
        # SimpleITK would take 1 mm in the place of 0.
        raise ValueError(f"{path}: its spacing is {numbers[1:4]} mm; expected positive numbers, mend its header")
    if start > _MOST_BESIDE:
        raise _unreadable(path, f"its voxels begin at byte {start:g}")
    return np.dtype(_DTYPES[datatype]).newbyteorder(order), shape, max(int(start), _HEADER_BYTES)


def _check_voxels(stream: BinaryIO, path: Path, dtype: np.dtype, count: int, start: int) -> None:
    """Read on from the header, block by block: a packed file may hold far more than its header promises."""
    end = start + count * dtype.itemsize
    position = _HEADER_BYTES + len(_read(stream, start - _HEADER_BYTES, path))
    bad = 0
    while block := _read(stream, min(_BLOCK, end - position), path):
        position += len(block)
        if dtype.kind == "f" and not len(block) % dtype.itemsize:
            bad += int((~np.isfinite(np.frombuffer(block, dtype))).sum())
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
        raise _unreadable(path, _brief(error)) from None


def _byte_order(header: bytes, path: Path) -> str:
    if len(header) >= _HEADER_BYTES and header[344:348] == b"n+1\0":
        for order in "<>":
            if struct.unpack_from(f"{order}i", header)[0] == _HEADER_BYTES:
                return order
    raise _unreadable(path, "it does not begin with a NIfTI-1 header")


def _header_shape(header: bytes, order: str, path: Path) -> tuple[int, ...]:
    count, *sizes = struct.unpack_from(f"{order}8h", header, _DIM)
    shape = tuple(sizes[:count]) if 0 <= count <= len(sizes) else ()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{path}: has the shape {shape} as (x, y, z, ...); expected a 3-D volume")
    return shape


def _write_sform(path: Path, geometry: Geometry) -> None:
    """Put the sform that reads back as `geometry` into a written file.

    SimpleITK turns an oblique direction into a quaternion and back in float32, which moves it by some 1e-8. A reader
    takes the direction from the sform's columns, divided by their length; so look, among the float32 columns around
    direction times spacing, for the one that gives the very direction. A column that came from a file is there.
    """
    lps_to_ras = np.array([-1.0, -1.0, 1.0])
    columns = [
        lps_to_ras * _float32_column(axis, spacing)
        for axis, spacing in zip(np.reshape(geometry.direction, (3, 3)).T, geometry.spacing, strict=True)
    ]
    rows = np.stack([*columns, lps_to_ras * np.asarray(geometry.origin)], axis=1)
    with _open(path) as stream:
        content = bytearray(stream.read())
    order = _byte_order(bytes(content[:_HEADER_BYTES]), path)
    struct.pack_into(f"{order}h", content, _SFORM_CODE, 1)
    struct.pack_into(f"{order}12f", content, _SROW, *rows.ravel())
    path.write_bytes(gzip.compress(content, compresslevel=6, mtime=0) if path.name.endswith(".gz") else content)


def _float32_column(axis: np.ndarray, spacing: float) -> np.ndarray:
    """The float32 vector near `axis * spacing`, as float64, whose direction is nearest to `axis`."""
    largest = np.argmax(np.abs(axis))
    anchor = np.float32(axis[largest] * spacing)
    steps = np.arange(-_MAX_ULPS, _MAX_ULPS + 1)
    steps = steps[np.argsort(np.abs(steps), kind="stable")]
    scales = (np.float64(anchor) + steps * np.float64(np.spacing(anchor))) / axis[largest]
    candidates = (scales[:, None] * axis).astype(np.float32).astype(np.float64)
    units = candidates / np.sqrt((candidates**2).sum(axis=1, keepdims=True))
    return candidates[np.argmin(np.abs(units - axis).max(axis=1))]


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")


def _checked_order(axis_order: str) -> str:
    if sorted(axis_order) != ["x", "y", "z"]:
        raise ValueError(f"axis order {axis_order!r}; expected the letters x, y and z, such as 'zxy' or 'zyx'")
    return axis_order


def _unreadable(path: Path, why: str) -> ValueError:
    return ValueError(f"{path}: is not a readable NIfTI file ({why}); expected a .nii or .nii.gz volume, copy it again")


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^(ITK ERROR: )?(NiftiImageIO\(0x[0-9a-f]+\): )?", "", lines[-1]).strip()
