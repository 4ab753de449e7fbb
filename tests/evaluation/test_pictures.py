"""Predicted masks of pictures: raw values, size, kind of file and resolution are those of picture and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from datasets.images import read_mask, to_classes
from evaluation.pictures import write_picture_mask

SIZE = (7, 5)
X_RESOLUTION, Y_RESOLUTION, UNIT = 282, 283, 296


def classes(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, SIZE).astype(np.uint8)


def picture(path: Path, size: tuple[int, int] = SIZE, **options: object) -> Path:
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path, **options)
    return path


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 128, 255), (7, 0, 3)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "tiff"])
def test_a_mask_holds_the_values_of_the_labels(tmp_path: Path, suffix: str, values: tuple[int, ...]) -> None:
    source = picture(tmp_path / f"source.{suffix}")
    written = write_picture_mask(tmp_path / "a.1", classes(), values, source)
    assert written == tmp_path / ("a.1.tif" if suffix.startswith("tif") else "a.1.png")
    with Image.open(written) as image:
        assert (image.mode, image.format) == ("L", "TIFF" if suffix.startswith("tif") else "PNG")
    mask = read_mask(written)
    for place in np.ndindex(SIZE):
        assert mask[place] == values[classes()[place]]
    if values == (0, 1, 2):
        np.testing.assert_array_equal(to_classes(mask, values, written), classes())
    assert {path.name for path in tmp_path.iterdir()} == {source.name, written.name}


def test_without_a_source_it_is_a_png(tmp_path: Path) -> None:
    assert write_picture_mask(tmp_path / "a", classes(2), (0, 255), None) == tmp_path / "a.png"
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), classes(2) * 255)


def test_the_content_of_the_source_decides(tmp_path: Path) -> None:
    source = picture(tmp_path / "really.png").rename(tmp_path / "source.tif")
    assert write_picture_mask(tmp_path / "a", classes(2), (0, 255), source).suffix == ".png"


@pytest.mark.parametrize("packing", [None, "tiff_lzw"])
def test_a_tiff_keeps_its_resolution(tmp_path: Path, packing: str | None) -> None:
    tags = {X_RESOLUTION: IFDRational(39881, 1000), Y_RESOLUTION: IFDRational(40000, 1003), UNIT: 3}
    source = picture(tmp_path / "source.tif", tiffinfo=tags, compression=packing)
    written = write_picture_mask(tmp_path / "a", classes(), (0, 1, 2), source)
    with Image.open(source) as there, Image.open(written) as here:
        assert here.tag_v2[UNIT] == 3
        for tag in (X_RESOLUTION, Y_RESOLUTION):
            ours, theirs = here.tag_v2[tag], there.tag_v2[tag]
            assert (ours.numerator, ours.denominator) == (theirs.numerator, theirs.denominator)
            assert float(ours) == pytest.approx(float(tags[tag]), rel=1e-6)


def test_it_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture_mask(tmp_path / "a", classes(2), (0, 255), None)
    before = (tmp_path / "a.png").read_bytes()

    def full(self: Image.Image, path: Path, **_: object) -> None:
        path.write_bytes(before[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"No space left on device.*a\.png"):
        write_picture_mask(tmp_path / "a", 1 - classes(2), (0, 255), None)
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("mask", "values", "match"),
    [
        (classes()[None], (0, 1, 2), r"shape \(1, 7, 5\)"),
        (classes().astype(np.int64), (0, 1, 2), "int64"),
        (classes(), (0, 255), "holds class 2, but there are values for 2"),
        (classes(), (0, 1, 256), "expected 0..255"),
        (classes()[:-1], (0, 1, 2), r"shape \(6, 5\) but .*source.png \(7, 5\)"),
    ],
)
def test_what_cannot_be_a_mask_of_the_picture_is_refused(tmp_path: Path, mask, values, match: str) -> None:
    source = picture(tmp_path / "source.png")
    with pytest.raises(ValueError, match=match):
        write_picture_mask(tmp_path / "a", mask, values, source)
    assert list(tmp_path.iterdir()) == [source]
