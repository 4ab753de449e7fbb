"""Pictures in: PNG, JPEG, TIFF and BMP with every bit they hold, and what the values of a mask mean.

Pixels are taken as they are stored: the EXIF orientation of a JPEG turns neither the picture nor its mask. What would
have to be guessed is refused, with the way to convert it: transparency, CMYK, palettes, float, 32 bits, more pages.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import SimpleITK

from datasets.base import MOST_PACKED, MOST_PIXELS, BadFile, Defect, Defects, brief, shorten
from datasets.decoders import open_content

if TYPE_CHECKING:
    from PIL import Image

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
JPEGS = (".jpg", ".jpeg")

_EXPECTED = "one or three channels of 8 or 16 bits"
_CONVERT = "convert it, by PIL: Image.open(FILE).convert('{}').save(NEW)"
_PIXELS = "Image.fromarray(np.array(Image.open(FILE))).save(NEW)"
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError),
    *(RuntimeError, NotImplementedError, MemoryError, struct.error, zlib.error),
)
_GREY, _COLOUR = ("1", "L", "I;16", "I;16B"), "RGB"
# What is wrong with a mode of PIL's, and the mode to convert it to.
_UNUSABLE = {
    "RGBA": ("has an alpha channel (RGBA)", "RGB"),
    "LA": ("has an alpha channel (grey and alpha)", "L"),
    "PA": ("has a palette and an alpha channel", "RGB"),
    "P": (f"has a palette (of a mask keep the indexes: {_PIXELS})", "RGB"),
    "CMYK": ("is in CMYK", "RGB"),
}
# Numbers of TIFF tags.
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _SAMPLE_FORMAT = 258, 262, 274, 277, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_IN_JPEG = 512  # pixels in a byte at most: a block of 8 x 8 takes a bit even where nothing changes
_PNG_HEAD = 25  # bytes; the last one is the bits of a sample

_NOISE, _FAINT = 64, 16  # how far JPEG's ringing takes many, or a few, values of a mask from 0 and 255
_MOST_LIKELY = 64  # of more values that reach 255 one is no mask of classes
_SHOWN = 8


class PictureHeader(NamedTuple):
    """Size of a picture, its channels (1 or 3), and the bits (8 or 16) of the numbers that it is read as."""

    height: int
    width: int
    channels: int
    bits: int


class _Opened(NamedTuple):
    image: Image.Image
    header: PictureHeader
    stored_bits: int  # of one sample, as in the file: 1, 2, 4, 8 or 16


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture."""
    return path.suffix.lower() in PICTURES


def picture_header(path: Path, *, opaque: bool = False, palette: bool = False) -> PictureHeader:
    """Size, channels and bits of a picture, without decoding a pixel; refuses what `read_picture` and `read_mask` do.

    Args:
        opaque: take an alpha channel, which `read_picture` then wants to be opaque throughout.
        palette: take a palette, whose indexes `read_mask` then gives.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture that can be used; the message names it and says how to convert it.
    """
    with _opened(path, opaque, palette) as opened:
        return opened.header


def read_picture(path: Path, *, opaque: bool = False) -> np.ndarray:
    """Read a picture as (H, W) or (H, W, 3), uint8 or uint16, pixels as stored; one bit is read as 0 and 255.

    Args:
        opaque: take an alpha channel that is opaque throughout, and drop it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture that can be used, or is damaged; the message names it and says how to convert it.
    """
    with _opened(path, opaque) as opened:
        pixels = _decode(opened, path)
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels
    *channels, alpha = np.moveaxis(pixels, 2, 0)
    if (alpha != np.iinfo(alpha.dtype).max).any():
        raise BadFile(f"{path}: is transparent in places; expected {_EXPECTED}, so {_CONVERT.format('RGB')}")
    return np.ascontiguousarray(np.stack(channels, axis=2) if len(channels) > 1 else channels[0])


def read_mask(path: Path, *, palette: bool = False) -> np.ndarray:
    """Read a mask as (H, W) uint8, the values as stored; one bit is read as 0 and 255.

    Args:
        palette: take a palette, and give its indexes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture that can be used, is damaged, has colours, or values above 255; the message names
            the file and the value.
    """
    with _opened(path, palette=palette) as opened:
        mask = _decode(opened, path)
    if mask.ndim == 3:
        coloured = (mask != mask[..., :1]).any(axis=2)
        if coloured.any():
            row, column = np.argwhere(coloured)[0].tolist()
            found = f"is coloured: pixel ({row}, {column}) is {tuple(mask[row, column].tolist())}"
            raise BadFile(f"{path}: {found}; expected a mask of one channel, the class of each pixel, so write it so")
        mask = mask[..., 0]
    if mask.max() > 255:
        raise BadFile(f"{path}: holds {mask.max()}; expected the values of a mask, 0..255, so save it with 8 bits")
    if opened.stored_bits in (2, 4) and opened.image.mode == "L":  # PIL spreads them over 0..255
        mask = mask // (255 // (2**opened.stored_bits - 1))
    return np.ascontiguousarray(mask, dtype=np.uint8)


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Scale pixels (H, W) or (H, W, 3) by the range of their dtype to float32 in [0, 1], (H, W) or (3, H, W).

    Raises:
        ValueError: they are not uint8 or uint16.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"to_unit: got pixels of {pixels.dtype}; expected uint8 or uint16")
    channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if pixels.ndim == 3 else pixels
    return channels_first.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def mask_values(mask: np.ndarray) -> tuple[int, ...]:
    """The values that a mask (uint8) holds, in order."""
    return tuple(np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist())


def label_table(all_values: Mapping[Path, tuple[int, ...]], num_classes: int = 0) -> tuple[int, ...]:
    """What the values in a set of masks mean: the raw value of each class, in order, (0, 255) or (0, 1, .., K-1).

    Args:
        all_values: of each mask its `mask_values`.
        num_classes: K, where it is known; 0 has it found: the values must then be 0, 1, .. without a gap.

    Raises:
        Defects: masks that hold other values, each by its name and its values.
        ValueError: there are no masks, no mask marks anything, or `num_classes` is 1 or less.
    """
    if not all_values:
        raise ValueError("there are no masks to tell the classes from; expected at least one")
    if num_classes and num_classes < 2:
        raise ValueError(f"--num_classes is {num_classes}; expected 2 or more, background among them")
    folder, marked = next(iter(all_values)).parent, [set(values) - {0} for values in all_values.values() if any(values)]
    if not marked and not num_classes:
        raise ValueError(f"{folder}: all {len(all_values)} masks are 0; expected some that mark something")
    binary = sum(values == {255} or is_noise(values) or _is_smooth(values) for values in marked)
    is_binary = binary and 2 * binary >= len(marked) and num_classes in (0, 2)
    table = (0, 255) if is_binary else tuple(range(num_classes or _classes_without_gap(marked)))
    defects = [defect for path, values in all_values.items() for defect in value_defects(path, values, table)]
    if defects:
        raise Defects(folder, defects)
    return table


def to_classes(mask: np.ndarray, table: tuple[int, ...], where: object) -> np.ndarray:
    """Turn the raw values of a mask (uint8) into classes 0..K-1 by a `label_table`.

    Raises:
        ValueError: it holds another value; the message names `where` and the value.
    """
    for stray in value_defects(where, mask_values(mask), table):
        raise BadFile(str(stray))
    lookup = np.zeros(256, np.uint8)
    lookup[list(table)] = range(len(table))
    return lookup[mask]


def is_noise(values: Iterable[int]) -> bool:
    """Whether all values lie near 0 or 255 and some just below 255, as JPEG leaves them of a mask of 0 and 255."""
    others = [value for value in values if value not in (0, 255)]
    far = _NOISE if len(others) >= _SHOWN else _FAINT
    return any(value >= 255 - far for value in others) and all(min(value, 255 - value) <= far for value in others)


def value_defects(path: object, values: tuple[int, ...], table: tuple[int, ...]) -> list[Defect]:
    """What is wrong with the values of one mask where those of the classes are in `table`: nothing, or one defect."""
    strays = [value for value in values if value not in table]
    in_jpeg = str(path).lower().endswith(JPEGS) and [value for value in values if value not in (0, 255)]
    wrong = strays or in_jpeg
    if not wrong:
        return []
    shown = ", ".join(map(str, wrong[:_SHOWN])) + (", ..." if len(wrong) > _SHOWN else "")
    expected = "0 and 255" if table == (0, 255) else f"0..{len(table) - 1}"
    if is_noise(values):
        what = f"holds {shown}, values near 0 and 255: the noise of JPEG; save masks as PNG, from the originals"
    elif in_jpeg:
        what = f"holds {shown} in a JPEG, which changes values: JPEG noise; save masks as PNG, from the originals"
    elif _is_smooth(values):
        what = f"holds {len(values)} values ({shown}), as after smooth resizing or JPEG; expected {expected}, "
        what += "so make it again, by nearest neighbour and as PNG"
    else:
        how = "so mend the mask" if table == (0, 255) else "without a gap, so mend the mask or give --num_classes"
        what = f"holds {shown}; expected {expected}, {how}"
    return [Defect(path, what)]


def _classes_without_gap(marked: Sequence[set[int]]) -> int:
    """How many classes 0, 1, .. there are before the first value that no mask holds; two at least."""
    found = set().union(*marked)
    return max(2, next(value for value in range(1, 257) if value not in found))


def _is_smooth(values: Collection[int]) -> bool:
    """Whether there are so many values up to 255 that they are no classes."""
    return len(values) > _MOST_LIKELY and max(values) > 255 - _NOISE


@contextmanager
def _opened(path: Path, opaque: bool = False, palette: bool = False) -> Iterator[_Opened]:
    """Open a picture and see that it is one that can be used; whatever PIL says of damage becomes a ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture; expected a file that ends in {', '.join(PICTURES)}")
    if not is_picture(path):
        raise BadFile(f"{path}: is no picture by its name; expected one that ends in {', '.join(PICTURES)}")
    # PIL warns of odd tags that change no pixel. Catching warnings would not be safe in threads; a filter is.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with open(path, "rb") as file:
        try:
            head = file.read(_PNG_HEAD)
            file.seek(0)
            image = open_content(file, head)
            bits = _stored_bits(image, head)
            what = _unusable(image, bits, opaque, palette)
            if not what:
                yield _Opened(image, _header(image, bits, path), bits)
        except BadFile:
            raise
        except _DAMAGE as error:
            raise _unreadable(path, brief(error)) from error
    if what:
        raise BadFile(f"{path}: {what}")


def _stored_bits(image: Image.Image, head: bytes) -> int:
    """Bits of one sample as the file stores it."""
    if image.format == "PNG":
        return head[-1]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS, (1,)))
    return 1 if image.mode == "1" else 8


def _unusable(image: Image.Image, bits: int, opaque: bool, palette: bool) -> str:
    """What makes a whole picture unusable, with what was expected and what to do; empty where nothing does."""
    taken = (*_GREY, _COLOUR, *(("RGBA", "LA") if opaque else ()), *(("P",) if palette else ()))
    if getattr(image, "is_animated", False):  # PIL would take the square of their number in time to count them
        return "holds 2 pictures or more; expected one, so write each by itself, by ImageMagick: magick FILE NEW-%d.png"
    if image.mode not in (*taken, "I", "F"):
        what, mode = _UNUSABLE.get(image.mode, (f"has the colours of PIL's mode {image.mode}", "RGB"))
        return f"{what}; expected {_EXPECTED}, so {_CONVERT.format(mode)}"
    if "transparency" in image.info and not palette:
        return f"has a transparent colour; expected {_EXPECTED}, so keep its pixels alone, by PIL: {_PIXELS}"
    tags = getattr(image, "tag_v2", {})
    signed = set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) != {_UNSIGNED}
    if image.mode not in taken or bits not in (1, 2, 4, 8, 16) or signed:
        kind = "float" if image.mode == "F" else f"{bits}-bit{' signed' * signed}"
        scale = "by ImageMagick: magick FILE -auto-level -depth 16 NEW.png"
        return f"holds {kind} numbers; expected {_EXPECTED}, so scale them, {scale}"
    if tags.get(_SAMPLES, len(image.getbands())) != len(image.getbands()):
        return f"has {tags[_SAMPLES]} channels; expected {_EXPECTED}, so {_CONVERT.format('RGB')}"
    if tags.get(_ORIENTATION, 1) != 1 or (bits > 1 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO):
        found = "is turned or mirrored by its tag Orientation, or stores white as 0"
        return f"{found}; expected neither, so write it anew, by ImageMagick: magick FILE -auto-orient NEW.png"
    return ""


def _header(image: Image.Image, bits: int, path: Path) -> PictureHeader:
    """Size and kind of a usable picture; refuses one that claims more than any has, or than its file can hold."""
    width, height = image.size
    channels = len(image.getbands())
    if width * height > MOST_PIXELS:
        raise BadFile(f"{path}: claims {height} x {width} pixels; expected {MOST_PIXELS} at most, so cut it into tiles")
    packed = {"PNG": 8 * MOST_PACKED / (channels * bits), "JPEG": _IN_JPEG}.get(image.format)
    if packed and width * height > packed * path.stat().st_size:
        raise BadFile(f"{path}: claims {height} x {width} pixels, more than its bytes can hold; copy it again")
    return PictureHeader(height, width, 3 if channels >= 3 else 1, 16 if bits == 16 else 8)


def _decode(opened: _Opened, path: Path) -> np.ndarray:
    """The pixels (H, W) or (H, W, channels), uint8 or uint16."""
    image, header = opened.image, opened.header
    image.load()
    if header.bits == 16 and header.channels == 3:
        pixels = _read_deep_colour(path)  # PIL has seen that it is whole, but keeps 8 bits of it
    elif image.mode == "1":
        pixels = np.asarray(image).astype(np.uint8) * np.uint8(255)
    else:
        pixels = np.array(image)
    if pixels.shape[:2] != header[:2] or pixels.dtype.itemsize * 8 != header.bits:
        raise _unreadable(path, f"its header says {header}, its pixels are {pixels.shape} of {pixels.dtype}")
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _read_deep_colour(path: Path) -> np.ndarray:
    sitk = SimpleITK
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _unreadable(path: Path, why: str) -> BadFile:
    return BadFile(f"{path}: is no readable picture ({shorten(why)}); expected PNG, JPEG, TIFF or BMP, copy it again")
