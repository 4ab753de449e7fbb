"""Pictures with masks in every layout, to the items of a data set; and all that is refused, together and by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets.check import check_all
from PIL import Image

from datasets.base import Defects
from datasets.cache import CachedSlices
from datasets.sets.histology import CLASSES, PictureSlices, PictureVolumes, find_pairs, foreground
from tests.conftest import SHARED

MONUSEG = SHARED / "data" / "monuseg"
SIZE = (6, 9)


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def marked(seed: int, size: tuple[int, int] = SIZE, values: tuple[int, ...] = (0, 255)) -> np.ndarray:
    return np.random.default_rng(seed + 100).choice(np.array(values, np.uint8), size)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def two_folders(root: Path, part: str, names: list[str], halves: tuple[str, str], anno: str = "", suffix: str = "png"):
    for seed, name in enumerate(names):
        save(root / part / halves[0] / f"{name}.{suffix}", pixels(seed))
        save(root / part / halves[1] / f"{name}{anno}.png", marked(seed))
    return root


def official(folder: Path) -> Path:
    """GlaS as it is released: all in one folder, masks that number the glands, and a table."""
    for seed, name in enumerate(("train_1", "train_10", "train_2", "testA_1", "testB_1")):
        save(folder / f"{name}.bmp", pixels(seed))
        save(folder / f"{name}_anno.bmp", marked(seed, values=(0, 1, 2, 7)))
    (folder / "Grade.csv").write_text("name,patient ID,grade (GlaS)\ntrain_1,1,benign\n")
    return folder


@pytest.mark.parametrize(
    ("parts", "halves", "anno", "suffix"),
    [
        (("train", "val", "test"), ("img", "labelcol"), "", "png"),
        (("Train_Folder", "Val_Folder", "Test_Folder"), ("img", "labelcol"), "", "tif"),
        (("Train_Folder", "Val_Folder", "Test_Folder"), ("img", "labelcol"), "_anno", "bmp"),
        (("train", "val", "test"), ("images", "masks"), "", "tif"),
        (("train", "val", "test"), ("images", "masks"), "_anno", "png"),
    ],
)
def test_folders_for_each_part(tmp_path: Path, parts, halves, anno: str, suffix: str) -> None:
    names = {"train": ["b", "a.1", "c"], "val": ["d"], "test": ["e", "f"]}
    for part, folder in zip(("train", "val", "test"), parts, strict=True):
        two_folders(tmp_path, folder, names[part], halves, anno, suffix)
    (tmp_path / parts[0] / halves[0] / ".DS_Store").write_bytes(b"\0")
    (tmp_path / parts[0] / halves[0] / "Thumbs.db").write_bytes(b"\0")
    for part, folder in zip(("train", "val", "test"), parts, strict=True):
        pairs = find_pairs(tmp_path, part)
        assert [pair.name for pair in pairs] == sorted(names[part])
        for name, image, label in pairs:
            assert image == tmp_path / folder / halves[0] / f"{name}.{suffix}"
            assert label == tmp_path / folder / halves[1] / f"{name}{anno}.png"


def test_without_a_folder_to_validate_on_there_is_nothing(tmp_path: Path) -> None:
    two_folders(tmp_path, "train", ["a"], ("img", "labelcol"))
    assert find_pairs(tmp_path, "val") == []
    with pytest.raises(FileNotFoundError, match="no part to test on.*img/ and labelcol/"):
        find_pairs(tmp_path, "test")


@pytest.mark.parametrize("below", ["", "Warwick QU Dataset (Released 2016_07_08)"])
def test_the_official_GlaS(tmp_path: Path, below: str) -> None:
    folder = official(tmp_path / below)
    names = {part: [pair.name for pair in find_pairs(tmp_path, part, instances=True)] for part in ("train", "test")}
    assert names == {"train": ["train_1", "train_10", "train_2"], "test": ["testA_1", "testB_1"]}
    assert find_pairs(tmp_path, "val", instances=True) == []
    pairs = find_pairs(tmp_path, "train", instances=True)
    samples = PictureSlices(pairs, instances=True)
    assert samples.num_classes == 2 and samples.files[1] == folder / "train_10.bmp"
    assert samples.label_files[1] == folder / "train_10_anno.bmp"
    sample = samples[1]
    np.testing.assert_array_equal(sample.label, marked(1, values=(0, 1, 2, 7)) != 0)
    np.testing.assert_array_equal(sample.image, (pixels(1) / np.float32(255)).transpose(2, 0, 1).astype(np.float32))


def test_items_of_pictures(tmp_path: Path) -> None:
    pairs = find_pairs(two_folders(tmp_path, "train", ["a", "b"], ("img", "labelcol")), "train")
    samples = PictureSlices(pairs)
    assert len(samples) == 2 and samples.names == ["a", "b"] and samples.label_values == (0, 255)
    for seed, (image, label, name) in enumerate(samples):
        assert (image.dtype, label.dtype, name) == (np.float32, np.uint8, "ab"[seed])
        np.testing.assert_array_equal(image, np.moveaxis(pixels(seed), 2, 0).astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(label, marked(seed) == 255)
    volumes = PictureVolumes(samples)
    assert len(volumes) == 2 and volumes.names == volumes.cases == ["a", "b"] and volumes.num_classes == 2
    for sample, volume in zip(samples, volumes, strict=True):
        assert volume.name == sample.name and volume.is_picture and volume.geometry is None
        assert volume.image.shape == (1, 3, *SIZE) and volume.label.shape == (1, *SIZE)
        np.testing.assert_array_equal(volume.image[0], sample.image)
        np.testing.assert_array_equal(volume.label[0], sample.label)
    assert [volume.source for volume in volumes] == samples.files


def test_grey_pictures_of_16_bits_with_many_classes(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 65536, SIZE).astype(np.uint16)
    save(tmp_path / "train" / "images" / "a.png", grey)
    save(tmp_path / "train" / "masks" / "a.png", marked(0, values=(0, 1, 2, 3)))
    pairs = find_pairs(tmp_path, "train", channels=1)
    samples = PictureSlices(pairs, label_values=(0, 1, 2, 3), channels=1)
    assert check_all(samples) == {0, 1, 2, 3}
    np.testing.assert_array_equal(samples[0].image, grey.astype(np.float32) / np.float32(65535))
    np.testing.assert_array_equal(samples[0].label, marked(0, values=(0, 1, 2, 3)))
    assert PictureVolumes(samples)[0].image.shape == (1, *SIZE)


def test_through_a_cache(tmp_path: Path) -> None:
    pairs = find_pairs(two_folders(tmp_path / "data", "train", ["a", "b"], ("img", "labelcol")), "train")
    samples = PictureSlices(pairs)
    cached = PictureVolumes(CachedSlices(samples, tmp_path / "cache"))
    assert cached.files == samples.files and cached.num_classes == 2
    for plain, volume in zip(PictureVolumes(samples), cached, strict=True):
        np.testing.assert_array_equal(volume.image, plain.image)
        np.testing.assert_array_equal(volume.label, plain.label)
        assert (volume.name, volume.source) == (plain.name, plain.source)


IMG, MASK = Path("train/img"), Path("train/labelcol")
BAD_NAMES_AND_HEADERS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no mask": (lambda root: (root / MASK / "b.png").unlink(), "train/img/b.png", "has no mask"),
    "no picture": (lambda root: (root / IMG / "b.png").unlink(), "train/labelcol/b.png", "has no picture"),
    "two pictures": (lambda root: save(root / IMG / "b.bmp", pixels(1)), "train/img/b.png", "second b, beside b.bmp"),
    "two masks": (lambda root: save(root / MASK / "b_anno.png", marked(1)), "train/labelcol/b_anno.png", "second b"),
    "size": (
        lambda root: save(root / MASK / "b.png", marked(1, (6, 8))),
        "train/labelcol/b.png",
        "6 x 8 pixels but b.png",
    ),
    "grey": (
        lambda root: save(root / IMG / "b.png", pixels(1)[..., 0]),
        "train/img/b.png",
        "1 channel; expected three",
    ),
    "rgba": (lambda root: Image.new("RGBA", (9, 6)).save(root / IMG / "b.png"), "train/img/b.png", "alpha channel"),
    "cmyk": (lambda root: Image.new("CMYK", (9, 6)).save(root / IMG / "c.tif"), "train/img/c.tif", "no mask"),
    "palette": (lambda root: Image.new("P", (9, 6)).save(root / MASK / "b.png"), "train/labelcol/b.png", "palette"),
    "no picture at all": (lambda root: (root / IMG / "b.png").write_text("x" * 99), "train/img/b.png", "no readable"),
    "another kind": (lambda root: (root / IMG / "b.svs").write_text("x"), "train/img/b.svs", "is no picture; expected"),
    "a folder": (lambda root: (root / IMG / "more").mkdir(), "train/img/more", "is no picture"),
}


@pytest.mark.parametrize("kind", BAD_NAMES_AND_HEADERS)
def test_bad_names_and_headers_are_named(tmp_path: Path, kind: str) -> None:
    two_folders(tmp_path, "train", ["a", "b"], ("img", "labelcol"))
    spoil, where, what = BAD_NAMES_AND_HEADERS[kind]
    spoil(tmp_path)
    with pytest.raises(Defects) as refused:
        find_pairs(tmp_path, "train")
    (defect,) = refused.value.defects
    assert defect.path == tmp_path / where and what in defect.what


def test_all_bad_names_and_headers_are_told_together(tmp_path: Path) -> None:
    two_folders(tmp_path, "train", list("abcdef"), ("img", "labelcol"))
    (tmp_path / MASK / "b.png").unlink()
    save(tmp_path / MASK / "c.png", marked(0, (7, 9)))
    Image.new("RGBA", (9, 6)).save(tmp_path / IMG / "d.png")
    Image.new("CMYK", (9, 6)).save(tmp_path / MASK / "e.png".replace("png", "tif"))
    (tmp_path / MASK / "e.png").unlink()
    with pytest.raises(Defects) as refused:
        find_pairs(tmp_path, "train")
    assert [defect.path.name for defect in refused.value.defects] == ["b.png", "c.png", "d.png", "e.tif"]
    assert refused.value.where == tmp_path


BAD_CONTENT: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "stray": (
        lambda root: save(root / MASK / "b.png", marked(1, values=(0, 3, 255))),
        "train/labelcol/b.png",
        "holds 3;",
    ),
    "jpeg": (
        lambda root: (
            (root / MASK / "b.png").unlink(),
            save(root / MASK / "b.jpg", marked(1, (48, 48))),
            save(root / IMG / "b.png", pixels(1, (48, 48))),
        ),
        "train/labelcol/b.jpg",
        "JPEG",
    ),
    "coloured": (lambda root: save(root / MASK / "b.png", pixels(1)), "train/labelcol/b.png", "is coloured: pixel"),
    "cut short": (
        lambda root: (root / IMG / "b.png").write_bytes((root / IMG / "b.png").read_bytes()[:-30]),
        "train/img/b.png",
        "no readable picture",
    ),
}


@pytest.mark.parametrize("kind", BAD_CONTENT)
def test_bad_content_is_named(tmp_path: Path, kind: str) -> None:
    two_folders(tmp_path, "train", ["a", "b", "c"], ("img", "labelcol"))
    spoil, where, what = BAD_CONTENT[kind]
    spoil(tmp_path)
    pairs = find_pairs(tmp_path, "train")
    with pytest.raises(ValueError, match=f"{where}: .*{what}"):
        check_all(PictureSlices(pairs))
    with pytest.raises(ValueError, match=f"{where}: .*{what}"):
        PictureSlices(pairs)[1]


def test_all_bad_content_is_told_together(tmp_path: Path) -> None:
    two_folders(tmp_path, "train", list("abcde"), ("img", "labelcol"))
    for kind, name in (("coloured", "a"), ("cut short", "c"), ("stray", "d")):
        BAD_CONTENT[kind][0](tmp_path)
        for folder in (IMG, MASK):
            (tmp_path / folder / "b.png").replace(tmp_path / folder / f"{name}.png")
            save(tmp_path / folder / "b.png", pixels(1) if folder == IMG else marked(1))
    with pytest.raises(Defects) as refused:
        check_all(PictureSlices(find_pairs(tmp_path, "train")))
    assert sorted(defect.path.name for defect in refused.value.defects) == ["a.png", "c.png", "d.png"]


def test_numbers_of_glands_are_no_classes_elsewhere(tmp_path: Path) -> None:
    official(tmp_path)
    with pytest.raises(Defects, match="train_1_anno.bmp: holds 1, 2, 7; expected 0 and 255"):
        check_all(PictureSlices(find_pairs(tmp_path, "train")))


def test_the_noise_of_jpeg_is_no_number_of_a_gland() -> None:
    noisy = np.array([[0, 2, 255, 253]], np.uint8)
    with pytest.raises(ValueError, match=r"a\.png: holds 2, 253, values near 0 and 255: the noise of JPEG"):
        foreground(noisy, Path("a.png"))
    with pytest.raises(ValueError, match=r"a\.jpg: holds 1, 2 in a JPEG"):
        foreground(np.array([[0, 1, 2]], np.uint8), Path("a.jpg"))
    assert foreground(np.array([[0, 9, 255]], np.uint8), Path("a.png")).tolist() == [[0, 1, 1]]


def test_a_stray_name_of_the_official_GlaS_is_named(tmp_path: Path) -> None:
    official(tmp_path)
    save(tmp_path / "overview.bmp", pixels(0))
    with pytest.raises(Defects) as refused:
        find_pairs(tmp_path, "train", instances=True)
    (defect,) = refused.value.defects
    assert defect.path.name == "overview.bmp" and "train_1.bmp, testA_1.bmp" in defect.what


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such data folder.*--root_path"):
        find_pairs(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match="no part to train on"):
        find_pairs(tmp_path, "train")
    (tmp_path / "train" / "img").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has img/ but no labelcol or masks"):
        find_pairs(tmp_path, "train")
    (tmp_path / "train" / "labelcol").mkdir()
    with pytest.raises(Defects, match="no picture to train on"):
        find_pairs(tmp_path, "train")
    with pytest.raises(ValueError, match="part is 'valid'"):
        find_pairs(tmp_path, "valid")


@pytest.mark.skipif(not MONUSEG.is_dir(), reason="MoNuSeg is not beside this checkout (../shared/data)")
def test_the_real_MoNuSeg() -> None:
    assert CLASSES["MoNuSeg"] == ("nucleus",)
    found = {part: find_pairs(MONUSEG, part) for part in ("train", "val", "test")}
    assert {part: len(pairs) for part, pairs in found.items()} == {"train": 30, "val": 0, "test": 14}
    for part in ("train", "test"):
        samples = PictureSlices(found[part])
        assert check_all(samples) == {0, 1}
        for image, label, _ in samples:
            assert image.shape == (3, 512, 512) and label.shape == (512, 512)
            assert 0.05 < label.mean() < 0.45  # its SOURCE.md: 9 to 40 % of the pictures are nuclei, on the average
