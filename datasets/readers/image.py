"""2-D images, by Pillow and, TIFF, by tifffile: every bit that they hold, turned as their EXIF orientation says."""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageOps

from datasets.errors import MAX_PIXELS, BadFile, brief

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEAD = 54  # bytes: the header of a BMP; byte 24 of a PNG is the bits of a sample
_PNG_BITS, _PNG_COLOR = 24, 25
_ORIENTATION = 274  # number of the TIFF tag
_MAGICK = "convert it, by ImageMagick: magick FILE"

warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd tags, which change no pixel
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it reports there it raises, too


class _Decoded(NamedTuple):
    """Pixels (H, W) or (H, W, C), uint8 or uint16, not spread where they have less than 8 bits; or indices, and the
    `palette` (N, 3) or, with alpha, (N, 4) that they are of."""

    pixels: np.ndarray
    bits: int
    palette: np.ndarray | None = None


def read_image(path: Path) -> np.ndarray:
    """Read an image as (H, W) or (H, W, 3), uint8 or uint16, as a viewer shows it; less than 8 bits are spread over 8.

    Palettes are applied, and opaque alpha is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        BadFile: it is damaged, transparent, or has other numbers or channels; with what to do.
    """
    pixels, bits, palette = _decoded(path)
    if palette is not None:
        is_grey = (palette[:, :3] == palette[:, :1]).all()
        pixels = palette[:, [0, *range(3, palette.shape[1])] if is_grey else slice(None)][pixels]
    elif bits < 8:
        pixels = pixels * np.uint8(255 // (2**bits - 1))
    return _without_alpha(pixels, path)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as (H, W) uint8, the values as stored, turned as its image is; one bit is read as 0 and 255.

    A palette of black and white gives 0 and 255, any other one its indices.

    Raises:
        FileNotFoundError, BadFile: as `read_image`, or it has colors, or values above 255.
    """
    pixels, bits, palette = _decoded(path)
    if palette is not None and np.isin(palette[:, :3], (0, 255)).all() and (palette[:, :3] == palette[:, :1]).all():
        pixels = palette[:, 0][pixels]
    elif bits == 1:
        pixels = pixels * np.uint8(255)
    mask = _without_alpha(pixels, path)
    if mask.ndim == 3:
        colored = (mask != mask[..., :1]).any(axis=2)
        if colored.any():
            row, column = np.argwhere(colored)[0].tolist()
            found = f"is in color: pixel ({row}, {column}) is {tuple(mask[row, column].tolist())}"
            raise BadFile(f"{path}: {found}; expected a mask of one channel, the class of each pixel, so write it so")
        mask = mask[..., 0]
    if mask.max() > 255:
        raise BadFile(f"{path}: holds {mask.max()}; expected the values of a mask, 0..255, so save it with 8 bits")
    return np.ascontiguousarray(mask, dtype=np.uint8)


def is_tiff(path: Path) -> bool:
    """Whether a file is TIFF by its content."""
    with path.open("rb") as file:
        return file.read(4) in _TIFF


def _without_alpha(pixels: np.ndarray, path: Path) -> np.ndarray:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels in (2, 4):
        if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
            raise BadFile(f"{path}: is transparent in places; expected an opaque image, {_MAGICK} -alpha off NEW.png")
        pixels = pixels[..., :-1]
    return np.ascontiguousarray(pixels[..., 0] if channels in (1, 2) and pixels.ndim == 3 else pixels)


def _decoded(path: Path) -> _Decoded:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image; expected a file that ends in {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head[:4] in _TIFF:
            decoded = _read_tiff(path)
        elif head[:2] == b"BM" and (found := _read_bmp(path, head)):
            decoded = found
        else:
            decoded = _read_by_pillow(path, head)
        if decoded.pixels.size == 0:
            raise ValueError("it has no pixels")
        return decoded
    except BadFile:
        raise
    except Exception as error:  # the libraries report damage in as many ways as a file can be damaged
        why = f"{path}: is not a readable image ({brief(error)}); expected PNG, JPEG, TIFF or BMP, copy it again"
        raise BadFile(why) from error


def _check_size(height: int, width: int, path: Path) -> None:
    if height * width > MAX_PIXELS:
        raise BadFile(f"{path}: claims {height} x {width} pixels; expected {MAX_PIXELS} at most, so cut it into tiles")


def _read_by_pillow(path: Path, head: bytes) -> _Decoded:
    with Image.open(path, formats=("PNG", "JPEG", "BMP")) as image:
        _check_size(image.height, image.width, path)
        bits = head[_PNG_BITS] if image.format == "PNG" else 8
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"):
            raise BadFile(f"{path}: has the mode {image.mode} of Pillow; expected grey or RGB, {_MAGICK} NEW.png")
        if bits == 16 and head[_PNG_COLOR] != 0:  # of which Pillow keeps 8
            if "exif" in image.info:
                raise BadFile(f"{path}: has 16 bits a color and EXIF; expected one, {_MAGICK} -auto-orient NEW.png")
            return _Decoded(imagecodecs.png_decode(path.read_bytes()), 16)
        turned = ImageOps.exif_transpose(image)
        if turned.mode in ("P", "PA"):
            if turned.mode == "PA" or "transparency" in turned.info:
                _without_alpha(np.asarray(turned.convert("RGBA")), path)
            colors = np.array(turned.getpalette(), np.uint8).reshape(-1, 3)
            return _Decoded(np.asarray(turned.getchannel(0) if turned.mode == "PA" else turned), 8, colors)
        if "transparency" in turned.info:
            turned = turned.convert("LA" if turned.mode == "L" else "RGBA")
        pixels = np.asarray(turned)
        if turned.mode == "1":
            return _Decoded(pixels.astype(np.uint8), 1)
        if turned.mode == "L" and bits < 8:  # Pillow spreads them
            return _Decoded(pixels // np.uint8(255 // (2**bits - 1)), bits)
        return _Decoded(pixels.astype(pixels.dtype.newbyteorder("=")), 16 if pixels.dtype.itemsize == 2 else 8)


def _read_bmp(path: Path, head: bytes) -> _Decoded | None:
    """The indices of a BMP with a palette, which Pillow takes for others where it is grey; None of one without."""
    start, size, width, height, bits, compression, colors = struct.unpack("<10xIIii2xHI12xI4x", head)
    if bits > 8:
        return None
    if compression or size < 40:
        raise BadFile(f"{path}: is a compressed or an OS/2 BMP; expected a plain one, {_MAGICK} NEW.png")
    _check_size(abs(height), width, path)
    data = np.fromfile(path, np.uint8)
    palette = data[14 + size :][: 4 * (colors or 2**bits)].reshape(-1, 4)[:, 2::-1]
    stride = (width * bits + 31) // 32 * 4
    rows = data[start : start + stride * abs(height)].reshape(abs(height), stride)
    pixels = rows
    if bits < 8:
        digits = np.unpackbits(rows, axis=1).reshape(abs(height), -1, bits)
        pixels = digits @ (1 << np.arange(bits, dtype=np.uint8)[::-1])
    pixels = pixels[:, :width]
    if pixels.max() >= len(palette):
        raise ValueError(f"its pixels are up to {pixels.max()}, and it has {len(palette)} colors")
    return _Decoded(np.ascontiguousarray(pixels[:: -1 if height > 0 else 1]), 8, np.ascontiguousarray(palette))


def _read_tiff(path: Path) -> _Decoded:
    with tifffile.TiffFile(path) as file:
        # A pyramid has smaller ones, too.
        pages = [page for page in cast(Iterable[tifffile.TiffPage], file.pages) if not page.is_reduced]
        if len(pages) != 1:
            raise BadFile(f"{path}: holds {len(pages)} images; expected one, {_MAGICK} NEW-%d.png")
        (page,) = pages
        _check_size(page.imagelength, page.imagewidth, path)
        kind, bits = tifffile.PHOTOMETRIC(page.photometric).name, page.bitspersample
        if page.sampleformat != 1 or bits not in (1, 2, 4, 8, 10, 12, 14, 16) or page.imagedepth != 1:
            scale = f"{_MAGICK} -auto-level -depth 16 NEW.png"
            raise BadFile(
                f"{path}: holds {page.dtype} numbers of {bits} bits; expected 1 to 16 bits, unsigned, so {scale}"
            )
        if kind not in ("MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "YCBCR") or page.samplesperpixel > 4:
            found = f"has {page.samplesperpixel} channels of {kind}"
            raise BadFile(f"{path}: {found}; expected grey or RGB, {_MAGICK} -colorspace sRGB NEW.png")
        if not all(page.databytecounts) or max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))) > (
            path.stat().st_size
        ):
            raise ValueError("it ends before its pixels do")
        pixels = page.asarray().reshape(page.shape)
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, 2)
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"it has the axes {page.axes}")
        pixels = pixels.astype(np.uint8 if bits <= 8 else np.uint16)
        if kind == "MINISWHITE":
            pixels = pixels.dtype.type(2**bits - 1) - pixels
        pixels = _oriented(pixels, int(page.tags[_ORIENTATION].value) if _ORIENTATION in page.tags else 1)
        if page.colormap is not None and kind == "PALETTE":
            return _Decoded(pixels, 8, (page.colormap.T >> 8).astype(np.uint8))
        return _Decoded(pixels, bits)


def _oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as the TIFF orientation 1..8 shows them."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]
