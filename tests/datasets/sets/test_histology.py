"""GlaS and MoNuSeg: images with masks in every layout, and all that is refused, together and by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.config import get_config
from configs.schema import Config
from datasets.errors import Defects
from datasets.sets.histology import find_cases
from evaluation.inference import inspect_data, open_volumes
from tests.conftest import SHARED

MONUSEG = SHARED / "data" / "monuseg"
SIZE = (6, 9)
SPLITS = ("train", "val", "test")


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def marked(seed: int, size: tuple[int, int] = SIZE, values: tuple[int, ...] = (0, 255)) -> np.ndarray:
    return np.random.default_rng(seed + 100).choice(np.array(values, np.uint8), size)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def two_folders(
    root: Path, folder: str, names: list[str], halves: tuple[str, str] = ("img", "labelcol"), anno: str = "",
    suffix: str = "png",
) -> Path:  # fmt: skip
    for name in names:
        seed = ord(name[0])
        save(root / folder / halves[0] / f"{name}.{suffix}", pixels(seed))
        save(root / folder / halves[1] / f"{name}{anno}.png", marked(seed))
    return root


def official(folder: Path) -> Path:
    """GlaS as it is released: all in one folder, masks that number the glands, and a table."""
    for seed, name in enumerate(("train_1", "train_10", "train_2", "testA_1", "testB_1")):
        save(folder / f"{name}.bmp", pixels(seed))
        save(folder / f"{name}_anno.bmp", marked(seed, values=(0, 1, 2, 7)))
    (folder / "Grade.csv").write_text("name,patient ID,grade (GlaS)\ntrain_1,1,benign\n")
    return folder


def inspected(root: Path, dataset: str = "MoNuSeg", **keys: object) -> Config:
    overrides = {"DATA.DATASET": dataset, "DATA.ROOT_PATH": str(root)}
    return inspect_data(get_config(overrides=overrides | {f"DATA.{key}": value for key, value in keys.items()}))


@pytest.mark.parametrize(
    ("folders", "halves", "anno", "suffix"),
    [
        (SPLITS, ("img", "labelcol"), "", "png"),
        (("Train_Folder", "Val_Folder", "Test_Folder"), ("img", "labelcol"), "", "tif"),
        (("Train_Folder", "Val_Folder", "Test_Folder"), ("img", "labelcol"), "_anno", "bmp"),
        (SPLITS, ("images", "masks"), "_anno", "png"),
    ],
)
@pytest.mark.parametrize("cache", ["", "cache"])
def test_a_folder_for_each_split(tmp_path: Path, folders, halves, anno: str, suffix: str, cache: str) -> None:
    root, names = tmp_path / "data", {"train": ["b", "a.1", "c"], "val": ["d"], "test": ["e", "f"]}
    for split, folder in zip(SPLITS, folders, strict=True):
        two_folders(root, folder, names[split], halves, anno, suffix)
    for junk in (".DS_Store", "Thumbs.db"):
        (root / folders[0] / halves[0] / junk).write_bytes(b"\0")
    config = inspected(root, CACHE=cache and str(tmp_path / cache))
    assert config.data.label_values == (0, 255)
    for split, folder in zip(SPLITS, folders, strict=True):
        items = list(open_volumes(config, split))
        assert [item.name for item in items] == sorted(names[split])
        for item in items:
            seed = ord(item.name[0])
            image, label = (item.image, item.label) if split == "train" else (item.image[0], item.label[0])
            np.testing.assert_array_equal(image, np.moveaxis(pixels(seed), 2, 0).astype(np.float32) / np.float32(255))
            np.testing.assert_array_equal(label, marked(seed) == 255)
            if split != "train":
                assert item.is_image and item.source == root / folder / halves[0] / f"{item.name}.{suffix}"


def test_without_a_folder_to_validate_on_there_is_nothing(tmp_path: Path) -> None:
    two_folders(tmp_path, "train", ["a"])
    assert find_cases(tmp_path, "val") == ([], [])
    with pytest.raises(FileNotFoundError, match="nothing to test on.*img/ and labelcol/"):
        find_cases(tmp_path, "test")


@pytest.mark.parametrize("below", ["", "Warwick QU Dataset (Released 2016_07_08)"])
def test_the_official_glas(tmp_path: Path, below: str) -> None:
    official(tmp_path / below)
    config = inspected(tmp_path, "GlaS")
    assert config.data.mask_threshold == 1 and config.model.num_classes == 2
    names = {split: [item.name for item in open_volumes(config, split)] for split in SPLITS}
    assert names == {"train": ["train_1", "train_10", "train_2"], "val": [], "test": ["testA_1", "testB_1"]}
    np.testing.assert_array_equal(open_volumes(config, "train")[1].label, marked(1, values=(0, 1, 2, 7)) != 0)
    save(tmp_path / below / "overview.bmp", pixels(0))
    with pytest.raises(Defects) as refused:
        inspected(tmp_path, "GlaS")
    (defect,) = set(refused.value.defects)
    assert defect.path.name == "overview.bmp" and "train_1.bmp, testA_1.bmp" in defect.what


def test_numbers_of_glands_are_no_classes_elsewhere(tmp_path: Path) -> None:
    official(tmp_path)
    with pytest.raises(Defects, match=r"train_1_anno.bmp: holds .*; expected 0, 1"):
        inspected(tmp_path)


def test_the_noise_of_jpeg_is_no_number_of_a_gland(tmp_path: Path) -> None:
    root = two_folders(tmp_path, "train", ["a", "b"])
    save(root / "train/labelcol/a.png", np.array([[0, 2, 255, 253]], np.uint8).repeat(3, 0))
    save(root / "train/img/a.png", pixels(0, (3, 4)))
    with pytest.raises(ValueError, match=r"a\.png: .*--mask_threshold 128"):
        list(open_volumes(inspected(root, "GlaS"), "train"))
    label = open_volumes(inspected(root, "GlaS", MASK_THRESHOLD=128), "train")[0].label
    np.testing.assert_array_equal(label, [[0, 0, 1, 1]] * 3)


IMG, MASK = Path("train/img"), Path("train/labelcol")
BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no mask": (lambda root: (root / MASK / "b.png").unlink(), "train/img/b.png", "has no label"),
    "no image": (lambda root: (root / IMG / "b.png").unlink(), "train/labelcol/b.png", "has no image"),
    "two images": (lambda root: save(root / IMG / "b.bmp", pixels(1)), "train/img/b.png", "the name of b.bmp"),
    "two masks": (lambda root: save(root / MASK / "b_anno.png", marked(1)), "train/labelcol/b_anno.png", "no image"),
    "size": (lambda root: save(root / MASK / "b.png", marked(1, (6, 8))), "train/labelcol/b.png", "6 x 8 pixels but"),
    "no image at all": (lambda root: (root / IMG / "b.png").write_text("x" * 99), "train/img/b.png", "not a readable"),
    "another kind": (lambda root: (root / IMG / "b.svs").write_text("x"), "train/img/b.svs", "is neither an image"),
    "stray": (
        lambda root: save(root / MASK / "b.png", marked(1, values=(0, 3, 255))),
        "train/labelcol/b.png",
        "holds 3;",
    ),
    "in color": (lambda root: save(root / MASK / "b.png", pixels(1)), "train/labelcol/b.png", "is in color: pixel"),
    "cut short": (
        lambda root: (root / IMG / "b.png").write_bytes((root / IMG / "b.png").read_bytes()[:-30]),
        "train/img/b.png",
        "not a readable",
    ),
    "in two splits": (
        lambda root: [save(root / "test/img/z.png", pixels(ord("b"))), save(root / "test/labelcol/z.png", marked(1))],
        "test/img/z.png",
        "is the same image as",
    ),
    "one name in two splits": (lambda root: two_folders(root, "val", ["b"]), "val/img/b.png", "has the name of"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_named(tmp_path: Path, kind: str) -> None:
    two_folders(tmp_path, "train", ["a", "b", "c"])
    spoil, where, what = BAD[kind]
    spoil(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Defects) as refused:
        inspected(tmp_path)
    assert any(defect.path == tmp_path / where and what in defect.what for defect in refused.value.defects)
    assert {defect.path for defect in refused.value.defects} <= {tmp_path / where, tmp_path / IMG / "b.png"}
    assert sorted(tmp_path.rglob("*")) == before


def test_all_that_is_wrong_is_reported_together(tmp_path: Path) -> None:
    two_folders(tmp_path, "train", list("abcde"))
    save(tmp_path / MASK / "a.png", pixels(1))
    (tmp_path / IMG / "c.png").write_bytes(b"")
    save(tmp_path / MASK / "d.png", marked(1, values=(0, 3)))
    with pytest.raises(Defects) as refused:
        inspected(tmp_path)
    assert sorted(defect.path.name for defect in refused.value.defects) == ["a.png", "c.png", "d.png"]


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such data folder.*--root_path"):
        find_cases(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match="nothing to train on"):
        find_cases(tmp_path, "train")
    (tmp_path / "train" / "img").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no labelcol or masks"):
        find_cases(tmp_path, "train")
    (tmp_path / "train" / "labelcol").mkdir()
    assert "no image to train on" in find_cases(tmp_path, "train")[1][0].what


@pytest.mark.skipif(not MONUSEG.is_dir(), reason="MoNuSeg is not beside this checkout (../shared/data)")
def test_the_real_monuseg() -> None:
    config = inspected(MONUSEG)
    found = {split: list(open_volumes(config, split)) for split in SPLITS}
    assert {split: len(items) for split, items in found.items()} == {"train": 30, "val": 0, "test": 14}
    for item in (*found["train"], *found["test"]):
        assert item.image.shape[-3:] == (3, 512, 512) and item.label.shape[-2:] == (512, 512)
        assert 0.05 < item.label.mean() < 0.45  # its SOURCE.md: nuclei are 9 to 40 % of the images, on the average
