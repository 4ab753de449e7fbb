"""Pictures with every bit, what is refused and why, and what the values of masks mean."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from datasets.base import MOST_PIXELS, Defects
from datasets.images import label_table, mask_values, picture_header, read_mask, read_picture, to_classes, to_unit
from tests.conftest import SHARED

MONUSEG = SHARED / "data" / "monuseg"
SIZE = (6, 9)


def noise(*shape: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape).astype(np.uint8 if top <= 256 else np.uint16)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def save_deep(path: Path, pixels: np.ndarray) -> Path:
    """16 bits in three channels, which PIL cannot write."""
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(path))
    return path


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG file by its specification: signature, IHDR, IDAT, IEND."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.fixture(autouse=True)
def _silent(capfd: pytest.CaptureFixture) -> None:
    """No reader says anything beside what it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "PNG"])
def test_eight_bits_arrive_as_they_are(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = noise(*SIZE) if channels == 1 else noise(*SIZE, 3)
    path = save(tmp_path / f"a.{suffix}", pixels)
    assert picture_header(path) == (*SIZE, channels, 8)
    found = read_picture(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_arrive_whole(tmp_path: Path, suffix: str) -> None:
    grey, colour = noise(*SIZE, top=65536), noise(*SIZE, 3, top=65536)
    for path, pixels in (
        (save(tmp_path / f"grey.{suffix}", grey), grey),
        (save_deep(tmp_path / f"colour.{suffix}", colour), colour),
    ):
        assert picture_header(path) == (*SIZE, 1 if pixels.ndim == 2 else 3, 16)
        found = read_picture(path)
        assert found.dtype == np.uint16 and found.dtype.isnative
        np.testing.assert_array_equal(found, pixels)


def test_the_other_byte_order(tmp_path: Path) -> None:
    grey = noise(*SIZE, top=65536)
    path = save(tmp_path / "a.tif", grey.astype(">u2"))
    assert path.read_bytes()[:2] == b"MM" and read_picture(path).dtype.isnative
    np.testing.assert_array_equal(read_picture(path), grey)


def test_sixteen_bits_by_the_specification(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", *(1000 * row + n for n in range(6))) for row in range(3))
    (tmp_path / "a.png").write_bytes(png(2, 3, 16, 2, rows))
    expected = [[[1000 * row + 3 * column + n for n in range(3)] for column in range(2)] for row in range(3)]
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), expected)


def test_a_jpeg_is_read_as_stored_whatever_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = save(tmp_path / "a.jpg", noise(*SIZE, 3), exif=exif)
    assert picture_header(path) == (*SIZE, 3, 8)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_picture(path), np.asarray(image))


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(*SIZE))
    np.testing.assert_array_equal(read_picture(path.rename(tmp_path / "a.jpg")), noise(*SIZE))
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such picture"):
        read_picture(path)


@pytest.mark.parametrize("top", [256, 65536])
def test_to_unit_divides_by_the_range(top: int) -> None:
    colour = noise(2, 3, 3, top=top)
    unit = to_unit(colour)
    assert unit.dtype == np.float32 and unit.shape == (3, 2, 3)
    for row, column, channel in np.ndindex(2, 3, 3):
        assert unit[channel, row, column] == np.float32(colour[row, column, channel]) / np.float32(top - 1)
    assert to_unit(colour[..., 0]).shape == (2, 3)
    assert to_unit(np.array([[0, top - 1]], colour.dtype)).tolist() == [[0.0, 1.0]]
    with pytest.raises(ValueError, match="float64"):
        to_unit(np.zeros(SIZE))


RGBA, GREY, RGB = noise(*SIZE, 4), noise(*SIZE), noise(*SIZE, 3)
REFUSED: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "rgba": ("a.png", lambda path: save(path, RGBA), ("alpha channel (RGBA)", "convert('RGB')")),
    "rgba tiff": ("a.tif", lambda path: save(path, RGBA), ("alpha channel (RGBA)", "convert('RGB')")),
    "grey and alpha": ("a.png", lambda path: Image.new("LA", (9, 6)).save(path), ("grey and alpha", "convert('L')")),
    "cmyk tiff": ("a.tif", lambda path: Image.new("CMYK", (9, 6)).save(path), ("is in CMYK", "convert('RGB')")),
    "cmyk jpeg": ("a.jpg", lambda path: Image.new("CMYK", (9, 6)).save(path), ("is in CMYK", "convert('RGB')")),
    "palette png": ("a.png", lambda path: Image.fromarray(RGB).quantize(5).save(path), ("has a palette", "convert")),
    "palette tiff": ("a.tif", lambda path: Image.fromarray(RGB).quantize(5).save(path), ("has a palette", "indexes")),
    "palette bmp": ("a.bmp", lambda path: Image.fromarray(RGB).quantize(5).save(path), ("has a palette", "convert")),
    "transparent": ("a.png", lambda path: save(path, RGB, transparency=(1, 2, 3)), ("transparent colour", "fromarray")),
    "float": ("a.tif", lambda path: save(path, GREY.astype(np.float32)), ("float", "8 or 16 bits", "magick")),
    "32-bit": ("a.tif", lambda path: save(path, GREY.astype(np.int32)), ("32-bit", "8 or 16 bits", "magick")),
    "signed": (
        "a.tif",
        lambda path: sitk.WriteImage(sitk.GetImageFromArray(GREY.astype(np.int16)), str(path)),
        ("16-bit signed", "8 or 16 bits"),
    ),
    "two pages": (
        "a.tif",
        lambda path: save(path, GREY, save_all=True, append_images=[Image.fromarray(GREY)]),
        ("holds 2 pictures", "magick"),
    ),
    "animated": (
        "a.png",
        lambda path: save(path, GREY, save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        ("holds 2 pictures", "magick"),
    ),
    "turned tiff": ("a.tif", lambda path: save(path, RGB, tiffinfo={274: 6}), ("Orientation", "-auto-orient")),
    "no picture": ("a.png", lambda path: path.write_text("hello " * 99), ("no readable picture", "PNG, JPEG, TIFF")),
    "empty": ("a.png", lambda path: path.write_bytes(b""), ("no readable picture",)),
    "of another name": ("a.gif", lambda path: Image.new("L", (9, 6)).save(path), ("no picture by its name", ".png")),
    "huge": ("a.png", lambda path: path.write_bytes(png(30000, 30000, 8, 2, b"")), ("30000 x 30000", str(MOST_PIXELS))),
    "hollow": ("a.png", lambda path: path.write_bytes(png(8000, 8000, 8, 2, b"")), ("8000 x 8000", "bytes can hold")),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_have_to_be_guessed_is_refused(tmp_path: Path, kind: str) -> None:
    name, write, parts = REFUSED[kind]
    write(tmp_path / name)
    for read in (picture_header, read_picture, read_mask):
        with pytest.raises(ValueError) as refused:
            read(tmp_path / name)
        for part in (f"{tmp_path / name}: ", *parts):
            assert part in str(refused.value)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "deep.png", "deep.tif"])
def test_a_file_cut_short_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a.{suffix}"
    save_deep(path, noise(40, 50, 3, top=65536)) if "deep" in suffix else save(path, noise(40, 50, 3))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) - 1])
    with pytest.raises(ValueError, match=rf"a\.{suffix}: is no readable picture"):
        read_picture(path)


@pytest.mark.parametrize(
    "pixels", [noise(7, 9, 3), noise(7, 9), noise(7, 9, top=65536)], ids=["colour", "grey", "16 bits"]
)
def test_no_wrong_bit_of_a_png_gives_other_pixels(tmp_path: Path, pixels: np.ndarray) -> None:
    path = save(tmp_path / "a.png", pixels)
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            np.testing.assert_array_equal(read_picture(path), pixels)
        except ValueError:
            refused += 1
    assert refused > len(whole) - 40  # the rest are the checksums behind the pixels, and the end


def test_an_alpha_channel_that_is_opaque_is_dropped_where_asked_for(tmp_path: Path) -> None:
    opaque = noise(*SIZE, 4)
    opaque[..., 3] = 255
    path = save(tmp_path / "a.png", opaque)
    assert picture_header(path, opaque=True) == (*SIZE, 3, 8)
    np.testing.assert_array_equal(read_picture(path, opaque=True), opaque[..., :3])
    opaque[2, 3, 3] = 254
    with pytest.raises(ValueError, match="transparent in places"):
        read_picture(save(path, opaque), opaque=True)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_one_bit_is_0_and_255(tmp_path: Path, suffix: str) -> None:
    marked = noise(*SIZE) > 99
    path = save(tmp_path / f"a.{suffix}", marked)
    assert picture_header(path) == (*SIZE, 1, 8)
    np.testing.assert_array_equal(read_mask(path), np.where(marked, 255, 0))


def test_few_bits_of_a_mask_are_taken_as_stored(tmp_path: Path) -> None:
    (tmp_path / "two.png").write_bytes(png(4, 1, 2, 0, bytes([0, 0b00011011])))
    (tmp_path / "four.png").write_bytes(png(4, 1, 4, 0, bytes([0, 0x07, 0x1F])))
    assert read_mask(tmp_path / "two.png").tolist() == [[0, 1, 2, 3]]
    assert read_mask(tmp_path / "four.png").tolist() == [[0, 7, 1, 15]]


def test_a_mask_in_three_equal_channels_is_taken_and_a_coloured_one_is_not(tmp_path: Path) -> None:
    mask = noise(*SIZE, top=3)
    colours = np.repeat(mask[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.png", colours)), mask)
    colours[4, 7] = (9, 8, 7)
    with pytest.raises(ValueError, match=r"a\.png: is coloured: pixel \(4, 7\) is \(9, 8, 7\)"):
        read_mask(save(tmp_path / "a.png", colours))


def test_a_mask_of_sixteen_bits_may_hold_what_eight_could(tmp_path: Path) -> None:
    mask = noise(*SIZE, top=3).astype(np.uint16)
    found = read_mask(save(tmp_path / "a.png", mask))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask)
    mask[0, 0] = 300
    with pytest.raises(ValueError, match=r"a\.png: holds 300; expected .* 0\.\.255"):
        read_mask(save(tmp_path / "a.png", mask))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_a_palette_gives_its_indexes_where_asked_for(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(noise(*SIZE, top=3), mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_mask(tmp_path / f"a.{suffix}", palette=True), noise(*SIZE, top=3))


def test_mask_values_are_those_of_unique() -> None:
    mask = noise(50, 50)[noise(50, 50) > 100].reshape(-1, 1)
    assert mask_values(mask) == tuple(np.unique(mask).tolist())


@pytest.mark.parametrize(
    ("values", "num_classes", "table"),
    [
        ([(0, 255), (0, 255)], 0, (0, 255)),
        ([(0, 255), (0,), (255,)], 0, (0, 255)),
        ([(0, 255)], 2, (0, 255)),
        ([(0, 1)], 0, (0, 1)),
        ([(0,)], 2, (0, 1)),
        ([(0, 1), (0, 2), (3,)], 0, (0, 1, 2, 3)),
        ([(1, 2)], 0, (0, 1, 2)),
        ([(0, 1), (0, 4)], 6, (0, 1, 2, 3, 4, 5)),
    ],
)
def test_a_table_of_labels(values: list[tuple[int, ...]], num_classes: int, table: tuple[int, ...]) -> None:
    assert label_table({Path(f"{n}.png"): v for n, v in enumerate(values)}, num_classes) == table


@pytest.mark.parametrize(
    ("values", "num_classes", "bad"),
    [
        ({"a.png": (0, 255), "b.png": (0, 255), "c.png": (0, 128, 255)}, 0, {"c.png": "holds 128; expected 0 and 255"}),
        ({"a.png": (0, 255), "b.png": (0, 255), "c.png": (0, 1)}, 0, {"c.png": "holds 1; expected 0 and 255"}),
        ({"a.png": (0, 1), "b.png": (0, 1, 2), "c.png": (0, 255)}, 0, {"c.png": "holds 255; expected 0..2"}),
        ({"a.png": (0, 1, 2, 7), "b.png": (0, 2)}, 0, {"a.png": "holds 7; expected 0..2, without a gap"}),
        ({"a.png": (0, 128), "b.png": (0, 128)}, 0, {"a.png": "holds 128", "b.png": "holds 128"}),
        ({"a.png": (0, 3), "b.png": (0, 1)}, 3, {"a.png": "holds 3; expected 0..2"}),
        ({"a.png": (0, 255)}, 3, {"a.png": "holds 255; expected 0..2"}),
        ({"a.png": (0, 1, 254, 255)}, 0, {"a.png": "holds 1, 254, values near 0 and 255: the noise of JPEG"}),
        ({"a.png": (0, 1, 2, 200)}, 0, {"a.png": "holds 200; expected 0..2"}),
        ({"a.jpg": (0, 1, 2)}, 0, {"a.jpg": "JPEG noise"}),
    ],
)
def test_values_that_are_no_labels_are_named(
    values: dict[str, tuple[int, ...]], num_classes: int, bad: dict[str, str]
) -> None:
    with pytest.raises(Defects) as refused:
        label_table({Path(name): found for name, found in values.items()}, num_classes)
    defects = {str(defect.path): defect.what for defect in refused.value.defects}
    assert defects.keys() == bad.keys()
    for name, part in bad.items():
        assert part in defects[name]


def test_masks_that_mark_nothing_and_no_masks_tell_no_classes() -> None:
    with pytest.raises(ValueError, match="all 2 masks are 0"):
        label_table({Path("a/b.png"): (0,), Path("a/c.png"): (0,)})
    with pytest.raises(ValueError, match="no masks"):
        label_table({})
    with pytest.raises(ValueError, match="--num_classes is 1"):
        label_table({Path("a.png"): (0, 1)}, 1)


@pytest.mark.parametrize("quality", [60, 75, 90, 95])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_noise_of_jpeg_is_named(tmp_path: Path, quality: int, suffix: str) -> None:
    rows, columns = np.indices((64, 64))
    disc = np.where((rows - 30) ** 2 + (columns - 33) ** 2 < 400, 255, 0).astype(np.uint8)
    path = save(tmp_path / "a.jpg", disc, quality=quality)
    if suffix == "png":  # what the noise was saved into
        path = save(tmp_path / "a.png", read_picture(path))
    with pytest.raises(Defects, match=rf"a\.{suffix}: holds .*JPEG.*as PNG"):
        label_table({path: mask_values(read_mask(path))})


def test_a_mask_resized_smoothly_is_named(tmp_path: Path) -> None:
    disc = Image.fromarray(np.where(noise(32, 32) > 99, 255, 0).astype(np.uint8)).resize((80, 80), Image.BICUBIC)
    path = save(tmp_path / "a.png", np.asarray(disc))
    with pytest.raises(Defects, match="smooth resizing .*nearest neighbour"):
        label_table({path: mask_values(read_mask(path))})


def test_to_classes_value_by_value() -> None:
    mask = noise(*SIZE, top=4)
    np.testing.assert_array_equal(to_classes(mask, (0, 1, 2, 3), "here"), mask)
    binary = np.where(mask > 1, 255, 0).astype(np.uint8)
    found = to_classes(binary, (0, 255), "here")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask > 1)
    with pytest.raises(ValueError, match="here: holds 2, 3; expected 0..1"):
        to_classes(mask, (0, 1), "here")


@pytest.mark.skipif(not MONUSEG.is_dir(), reason="MoNuSeg is not beside this checkout (../shared/data)")
def test_real_pictures_are_those_that_PIL_reads() -> None:
    folder = MONUSEG / "train"
    for path in sorted((folder / "images").iterdir())[:3]:
        assert picture_header(path) == (512, 512, 3, 8)
        with Image.open(path) as image, Image.open(folder / "masks" / path.name) as mask:
            np.testing.assert_array_equal(read_picture(path), np.asarray(image))
            np.testing.assert_array_equal(read_mask(folder / "masks" / path.name), np.asarray(mask.convert("L")))
