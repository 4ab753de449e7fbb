"""PIL's readers: what a picture begins with tells its kind, damage is only raised, and no JPEG goes on for ever."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.images import picture_header, read_picture

GREY = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_the_content_tells_the_kind(tmp_path: Path, kind: str) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png", format=kind)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), np.asarray(image))


def test_another_kind_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png", format="GIF")
    with pytest.raises(ValueError, match=r"a\.png: is no readable picture \(it begins like no PNG"):
        picture_header(tmp_path / "a.png")


@pytest.mark.parametrize("packing", ["tiff_adobe_deflate", "tiff_lzw", "jpeg", "zstd", "lzma"])
def test_damage_is_told_once(tmp_path: Path, packing: str, capfd: pytest.CaptureFixture) -> None:
    """libtiff writes to standard error by itself, unless it is told not to."""
    path, stream = tmp_path / "a.tif", io.BytesIO()
    Image.fromarray(GREY).save(stream, "TIFF", compression=packing)
    content = bytearray(stream.getvalue())
    with Image.open(stream) as image:
        (first, *_), (size, *_) = image.tag_v2[273], image.tag_v2[279]
    content[first : first + size // 2] = bytes(size // 2)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif: is no readable picture"):
        read_picture(path)
    assert capfd.readouterr() == ("", "")


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan stands there so many times."""
    stream = io.BytesIO()
    Image.new("L", (16, 16), 99).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def test_a_jpeg_of_many_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(scans(50))
    assert read_picture(path).shape == (16, 16)
    path.write_bytes(scans(100))
    with pytest.raises(ValueError, match=r"a\.jpg: is no readable picture \(it has 10\d scans"):
        read_picture(path)


def test_a_scan_across_the_blocks_of_reading_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.decoders

    path = tmp_path / "a.jpg"
    path.write_bytes(scans(100))
    with pytest.raises(ValueError) as whole:
        read_picture(path)
    monkeypatch.setattr(datasets.decoders, "_BLOCK", 1)
    with pytest.raises(ValueError) as parts:
        read_picture(path)
    assert str(parts.value) == str(whole.value)


def test_a_jpeg_that_claims_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    path, stream = tmp_path / "a.jpg", io.BytesIO()
    Image.fromarray(GREY).save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    struct.pack_into(">2H", content, content.index(b"\xff\xc0") + 5, 8192, 8192)
    path.write_bytes(content)
    for read in (picture_header, read_picture):
        with pytest.raises(ValueError, match=r"a\.jpg: claims 8192 x 8192 pixels, more than its bytes can hold"):
            read(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_the_flattest_jpeg_is_read(tmp_path: Path, progressive: bool) -> None:
    Image.new("L", (2048, 2048), 128).save(tmp_path / "a.jpg", progressive=progressive, optimize=True)
    assert (read_picture(tmp_path / "a.jpg") == 128).all()


def test_the_pages_of_a_tiff_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL.TiffImagePlugin import TiffImageFile

    monkeypatch.setattr(TiffImageFile, "n_frames", property(lambda self: pytest.fail("they were")))
    pages = [Image.fromarray(GREY)] * 3
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="holds 2 pictures or more"):
        picture_header(tmp_path / "a.tif")
