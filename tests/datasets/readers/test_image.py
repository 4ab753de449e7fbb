"""Images are read bit for bit as they were written, as a viewer shows them; what cannot be used is one line."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from datasets.errors import BadFile
from datasets.readers.image import read_image, read_mask

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (13, 17), dtype=np.uint8)
RGB = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (13, 17), dtype=np.uint16)
DEEP_RGB = RNG.integers(0, 65536, (35, 33, 3), dtype=np.uint16)
MASK = RNG.integers(0, 3, (13, 17), dtype=np.uint8)
BINARY = MASK > 1


def pil(array: np.ndarray, mode: str | None = None) -> Image.Image:
    image = Image.fromarray(array)
    return image.convert(mode) if mode else image


def paletted(indices: np.ndarray, colors: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices).copy()
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(colors.astype(np.uint8).tobytes())
    return image


def write_bmp(path: Path, indices: np.ndarray, colors: np.ndarray, bits: int, top_down: bool = False) -> None:
    """A BMP with a palette, written by its specification."""
    height, width = indices.shape
    digits = ((indices[..., None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(height, -1)
    rows = np.packbits(digits, axis=1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))[:: 1 if top_down else -1]
    palette = np.pad(colors[:, ::-1].astype(np.uint8), ((0, 0), (0, 1))).tobytes()
    start = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + rows.size, 0, 0, start)
    signed = -height if top_down else height
    head += struct.pack("<IiiHHIIiiII", 40, width, signed, 1, bits, 0, rows.size, 2835, 2835, len(colors), 0)
    path.write_bytes(head + palette + rows.tobytes())


@pytest.mark.parametrize(
    ("name", "array", "options"),
    [
        *[
            (f"{kind}{suffix}", array, {})
            for kind, array in (("grey", GREY), ("rgb", RGB))
            for suffix in (".png", ".bmp")
        ],
        ("deep.png", DEEP, {}),
        *[
            (f"{kind}{number}.tif", array, options)
            for kind, array in (("grey", GREY), ("rgb", RGB), ("deep", DEEP), ("deep rgb", DEEP_RGB))
            for number, options in enumerate(
                [
                    {},
                    {"compression": "zlib", "predictor": True},
                    {"compression": "lzw"},
                    {"compression": "packbits"},
                    {"byteorder": ">"},
                    {"bigtiff": True},
                    {"tile": (16, 16)},
                    {"tile": (16, 16), "compression": "lzw", "byteorder": ">"},
                    {"rowsperstrip": 3},
                ]
            )
        ],
        ("planar.tif", DEEP_RGB, {"planarconfig": "separate", "tile": (16, 16)}),
    ],
)
def test_every_bit_is_read(tmp_path: Path, name: str, array: np.ndarray, options: dict) -> None:
    path = tmp_path / name
    if path.suffix == ".tif":
        is_planar = options.get("planarconfig") == "separate"
        kind = "rgb" if array.ndim == 3 else "minisblack"
        tifffile.imwrite(path, np.moveaxis(array, 2, 0) if is_planar else array, photometric=kind, **options)
    else:
        Image.fromarray(array).save(path)
    read = read_image(path)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)
    if array.ndim == 2 and array.dtype == np.uint8:
        np.testing.assert_array_equal(read_mask(path), array)


def test_a_16_bit_rgb_png_keeps_its_bits(tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(DEEP_RGB))
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), DEEP_RGB)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_odd_bits_of_a_tiff_are_the_numbers(tmp_path: Path, bits: int) -> None:
    array = DEEP >> (16 - bits)
    tifffile.imwrite(tmp_path / "a.tif", array, bitspersample=bits, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), array)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_one_bit_is_0_and_255(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(BINARY).save(tmp_path / f"a{suffix}")
    for read in (read_image, read_mask):
        np.testing.assert_array_equal(read(tmp_path / f"a{suffix}"), BINARY * np.uint8(255))


def test_few_bits_are_spread_in_an_image_and_kept_in_a_mask(tmp_path: Path) -> None:
    rows = np.pad(MASK, ((0, 0), (0, 3)))
    packed = (rows.reshape(13, -1, 4) @ np.array([64, 16, 4, 1])).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 17, 13, 2, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), MASK)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), MASK * 85)


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """What is stored under an orientation such that a viewer shows the array (TIFF 6.0, tag 274)."""
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    return np.ascontiguousarray(undo[orientation](array))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_images_and_masks(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(turned(RGB, orientation)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
    Image.fromarray(turned(GREY, orientation)).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), GREY)
    tags = [(274, "H", 1, orientation, True)]
    for array in (RGB, GREY, DEEP):
        tifffile.imwrite(tmp_path / "a.tif", turned(array, orientation), extratags=tags)
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), array)
    smooth = np.repeat(np.repeat(RNG.integers(0, 256, (4, 5), dtype=np.uint8), 16, 0), 16, 1)
    Image.fromarray(turned(smooth, orientation)).save(tmp_path / "a.jpg", exif=exif, quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).max() <= 4


BLACK_WHITE = np.array([[0, 0, 0], [255, 255, 255]])
WHITE_BLACK = BLACK_WHITE[::-1]
COLORS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]])
RAMP = np.repeat(np.arange(256)[:, None], 3, axis=1)


@pytest.mark.parametrize(
    ("colors", "indices", "mask", "bits"),
    [
        *[(BLACK_WHITE, BINARY * np.uint8(1), BINARY * 255, bits) for bits in (1, 4, 8)],
        *[(WHITE_BLACK, 1 - BINARY * np.uint8(1), BINARY * 255, bits) for bits in (1, 4, 8)],
        *[(COLORS, MASK, MASK, bits) for bits in (4, 8)],
        (RAMP, MASK, MASK, 8),
    ],
)
@pytest.mark.parametrize("suffix", [".bmp", ".png", ".tif"])
def test_palettes(
    tmp_path: Path, suffix: str, colors: np.ndarray, indices: np.ndarray, mask: np.ndarray, bits: int
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".bmp":
        write_bmp(path, indices, colors, bits, top_down=bits == 4)
    elif suffix == ".png":
        paletted(indices, colors).save(path)
    else:
        whole = np.zeros((256, 3), np.uint16)
        whole[: len(colors)] = colors * 257
        tifffile.imwrite(path, indices.astype(np.uint8), photometric="palette", colormap=whole.T)
    np.testing.assert_array_equal(read_mask(path), mask)
    shown = colors[indices]
    np.testing.assert_array_equal(read_image(path), shown if (shown.std(axis=2) > 0).any() else shown[..., 0])


def test_a_black_and_white_bmp_of_8_bits_by_pillow(tmp_path: Path) -> None:
    """Pillow writes such files, and reads them as others."""
    paletted(BINARY * np.uint8(1), BLACK_WHITE).save(tmp_path / "a.bmp")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.bmp"), BINARY * 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path: Path, array: np.ndarray, suffix: str) -> None:
    opaque = np.full((13, 17, 1), 255, np.uint8)
    with_alpha = np.concatenate([np.atleast_3d(array), opaque], axis=2)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(with_alpha).save(path)
    np.testing.assert_array_equal(read_image(path), array)
    with_alpha[3, 4, -1] = 254
    Image.fromarray(with_alpha).save(path)
    with pytest.raises(BadFile, match="transparent"):
        read_image(path)


def test_a_white_is_zero_tiff_is_read_as_it_is_shown(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", 255 - GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), GREY)


def test_a_grey_rgb_mask_is_taken_and_a_colored_one_refused(tmp_path: Path) -> None:
    grey = np.repeat(MASK[..., None], 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), MASK)
    grey[2, 5] = 9, 9, 8
    Image.fromarray(grey).save(tmp_path / "a.png")
    with pytest.raises(BadFile, match=r"pixel \(2, 5\) is \(9, 9, 8\)"):
        read_mask(tmp_path / "a.png")


def png(array: np.ndarray = RGB) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def other(kind: str, array: np.ndarray = RGB, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def flipped(data: bytes) -> bytes:
    middle = len(data) * 3 // 5
    return data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]


NOISE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
DAMAGED: dict[str, tuple[str, bytes | Callable[[], bytes], str]] = {
    "empty": (".png", b"", "not a readable image"),
    "text": (".png", b"a mask\n" * 50, "not a readable image"),
    "cut png": (".png", png()[:-60], "not a readable image"),
    "flipped png": (".png", flipped(png(NOISE)), "not a readable image"),
    "no pixels": (".bmp", other("BMP")[:54], "not a readable image"),
    "cut bmp": (".bmp", other("BMP")[:-40], "not a readable image"),
    "cut jpeg": (".jpg", other("JPEG", NOISE)[:-900], "not a readable image"),
    "cut tiff": (".tif", tiff(RGB)[:-40], "not a readable image"),
    "cut lzw tiff": (".tif", tiff(NOISE, compression="lzw")[:-900], "not a readable image"),
    "flipped zlib tiff": (".tif", flipped(tiff(NOISE, compression="zlib")), "not a readable image"),
    "header of a tiff": (".tif", tiff(RGB)[:20], "not a readable image"),
    "float tiff": (".tif", tiff(RGB[..., 0].astype(np.float32)), "float32 numbers"),
    "signed tiff": (".tif", tiff(RGB[..., 0].astype(np.int16)), "int16 numbers"),
    "two pages": (".tif", tiff(np.stack([GREY, GREY]), photometric="minisblack"), "2 images"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture, kind: str) -> None:
    suffix, data, what = DAMAGED[kind]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    for read in (read_image, read_mask):
        with pytest.raises(BadFile) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and what in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_cmyk_and_a_claim_of_many_pixels_are_refused(tmp_path: Path) -> None:
    pil(RGB, "CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(BadFile, match="CMYK"):
        read_image(tmp_path / "a.jpg")
    claim = bytearray(png())
    claim[16:24] = struct.pack(">II", 60000, 60000)
    claim[29:33] = struct.pack(">I", zlib.crc32(claim[12:29]))
    (tmp_path / "a.png").write_bytes(claim)
    with pytest.raises(BadFile, match="60000"):
        read_image(tmp_path / "a.png")
