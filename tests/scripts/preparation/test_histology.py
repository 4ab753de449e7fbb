"""GlaS and MoNuSeg from small files in the layout of their releases, to PNG images and masks; and bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import build_dataset
from datasets.intensity import Intensity, Preprocessing
from datasets.splits import read_list
from scripts import prepare_histology
from scripts.preparation.histology import MISNAMED, fill
from tests.conftest import ROOT

SIZE = (20, 24)
TRAIN, ALSO, TEST = "TCGA-18-5592-01Z-00-DX1", "TCGA-21-5786-01Z-00-DX1", "TCGA-2Z-A9J9-01A-01-TS1"
LEFT_OUT = "TCGA-21-5784-01Z-00-DX1"  # a tile that the papers' folder does not hold, and a name that it does
RELEASED = Path("MoNuSeg 2018 Training Data")


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def nuclei(seed: int) -> list[np.ndarray]:
    """Three outlines, the second over the border and the third too short."""
    rng = np.random.default_rng(seed)
    triangle = np.array([[0.0, 0.0], [8.0, 1.0], [3.0, 9.0]])
    return [triangle + rng.uniform(1, 9, 2), triangle + [18.0, 2.25], np.array([[1.0, 1.0], [2.0, 2.0]])]


def write_xml(path: Path, outlines: list[np.ndarray]) -> Path:
    """As Aperio ImageScope writes it for MoNuSeg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    regions = ""
    for number, outline in enumerate(outlines, 1):
        vertices = "".join(f'<Vertex X="{x!r}" Y="{y!r}" Z="0"/>' for x, y in outline.tolist())
        regions += f'<Region Id="{number}" Type="0"><Attributes/><Vertices>{vertices}</Vertices></Region>'
    head = '<?xml version="1.0"?>\n<Annotations MicronsPerPixel="0.252000">\n<Annotation Id="1" Name=""><Regions>'
    path.write_text(f"{head}{regions}</Regions><Plots/></Annotation>\n</Annotations>\n", encoding="utf-8")
    return path


def tile(raw: Path, name: str, seed: int) -> None:
    part = "MoNuSegTestData" if name == TEST else RELEASED / "Tissue Images"
    save(raw / part / f"{name}.tif", pixels(seed))
    write_xml(raw / (part if name == TEST else RELEASED / "Annotations") / f"{name}.xml", nuclei(seed))


def monuseg(raw: Path) -> Path:
    """Both official downloads, unpacked beside each other, four tiles of them."""
    for seed, name in enumerate((TRAIN, ALSO, LEFT_OUT)):
        tile(raw, name, seed)
    tile(raw, TEST, 9)
    junk = raw / "__MACOSX" / "MoNuSegTestData" / f"._{TEST}.tif"
    junk.parent.mkdir(parents=True)
    junk.write_bytes(b"\0\5\x16\7")
    return raw


def glands(seed: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[2:6, 3:9], mask[6:9, 5:9], mask[12:15, 12 + seed :] = 1, 2, 7
    return mask


def glas(raw: Path) -> Path:
    folder = raw / "Warwick QU Dataset (Released 2016_07_08)"
    for seed, name in enumerate(("train_1", "train_2", "train_10", "testA_1", "testB_1")):
        save(folder / f"{name}.bmp", pixels(seed))
        save(folder / f"{name}_anno.bmp", glands(seed))
    (folder / "Grade.csv").write_text("name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)\n")
    return raw


def prepare(*args: object) -> int:
    return prepare_histology.main([str(arg) for arg in args])


def listed(out: Path, part: str) -> list[str]:
    return (out / "lists" / f"{part}.txt").read_text(encoding="utf-8").split()


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def even_odd(outlines: list[np.ndarray], size: tuple[int, int] = SIZE) -> np.ndarray:
    """By the rule itself: the edges to the left of each center, counted for each outline."""
    mask = np.zeros(size, dtype=bool)
    for outline in outlines:
        inside = np.zeros(size, dtype=bool)
        for row, column in np.ndindex(size):
            x, y = column + 0.5, row + 0.5
            for (xa, ya), (xb, yb) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
                if (ya <= y) != (yb <= y) and xa + (y - ya) * (xb - xa) / (yb - ya) <= x:
                    inside[row, column] ^= True
        mask |= inside
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_outlines_are_filled_by_the_even_odd_rule_at_the_centers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles, radii = np.sort(rng.uniform(0, 2 * np.pi, 12)), rng.uniform(4, 20, 12)
    star = np.stack([12 + radii * np.cos(angles), 10 + radii * np.sin(angles)], axis=1)  # over the borders
    for outline in (star, star[::-1], rng.uniform(-3, 25, (9, 2))):  # the last crosses itself
        mask = np.zeros(SIZE, dtype=bool)
        assert fill(outline, mask) == mask.any()
        np.testing.assert_array_equal(mask, even_odd([outline]))


def test_MoNuSeg_becomes_images_and_masks(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = monuseg(tmp_path / "raw"), tmp_path / "out"
    tile(raw, "new", 5)
    save(raw / "MoNuSegTestData" / f"{TEST}.tif", np.dstack([pixels(9), np.full(SIZE, 255, np.uint8)]))  # opaque
    assert prepare("MoNuSeg", raw, out, "--split", "all") == 0
    assert listed(out, "train") == [TRAIN, LEFT_OUT, ALSO, "new"] and listed(out, "test") == [TEST]
    said = capfd.readouterr()
    for part, seed, name in (("train", 0, TRAIN), ("train", 1, ALSO), ("test", 9, TEST)):
        np.testing.assert_array_equal(read(out / part / "img" / f"{name}.png"), pixels(seed))
        mask = even_odd(nuclei(seed))
        np.testing.assert_array_equal(read(out / part / "labelcol" / f"{name}.png"), np.where(mask, 255, 0))
        counts = f"nuclei 2, pixels of nuclei {mask.sum()}, of background {(~mask).sum()}, outlines without a pixel 1"
        assert f"{name}: {part}, 24 x 20 pixels; {counts}\n" in said.out
    how = Preprocessing((0, 255), 3, Intensity("range"))
    sample = build_dataset("MoNuSeg", "train", num_classes=2, root_path=str(out), preprocessing=how)[0]
    np.testing.assert_array_equal(sample.label, even_odd(nuclei(0)))


def test_the_papers_split_takes_the_tiles_that_the_papers_folder_holds(tmp_path: Path, capfd) -> None:
    """Of the official download, where they have their right names; what is missing is an error, by name."""
    papers = {part: read_list(ROOT / "datasets/lists/monuseg" / f"{part}.txt") for part in ("train", "test")}
    assert (len(papers["train"]), len(papers["test"]), len(MISNAMED)) == (30, 14, 7)
    assert set(MISNAMED) < set(papers["train"]) and not set(MISNAMED.values()) & {*papers["train"], *papers["test"]}
    raw, out = monuseg(tmp_path / "raw"), tmp_path / "out"
    there = [*MISNAMED, *MISNAMED.values(), *papers["train"], *papers["test"]]
    for name in there:
        tile(raw, name, 0)
    assert prepare("MoNuSeg", raw, out) == 0
    assert listed(out, "train") == sorted(MISNAMED.get(name, name) for name in papers["train"])
    assert listed(out, "test") == papers["test"]
    said = capfd.readouterr().out
    assert f"left out, 7 that --split all would take: {', '.join(sorted(MISNAMED))}" in said
    real = "TCGA-XS-A8TJ-01Z-00-DX1"
    for name in (real, TEST):
        for path in raw.rglob(f"{name}.*"):
            path.unlink()
    assert prepare("MoNuSeg", raw, tmp_path / "none") == 2
    said = capfd.readouterr()
    assert all(f"{name}.tif: is not there; expected the papers' 44 tiles" in said.err for name in (real, TEST))
    assert "2 defects" in said.err and not (tmp_path / "none").exists()


def test_GlaS_becomes_images_and_masks(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = glas(tmp_path / "raw"), tmp_path / "out"
    assert prepare("GlaS", raw, out) == 0
    assert listed(out, "train") == ["train_1", "train_10", "train_2"] and listed(out, "test") == ["testA_1", "testB_1"]
    for part, seed, name in (("train", 0, "train_1"), ("train", 2, "train_10"), ("test", 4, "testB_1")):
        np.testing.assert_array_equal(read(out / part / "img" / f"{name}.png"), pixels(seed))
        mask = np.where(glands(seed) > 0, 255, 0)
        np.testing.assert_array_equal(read(out / part / "labelcol" / f"{name}.png"), mask)
    assert "train: 3 cases; glands 9, pixels of glands" in capfd.readouterr().out
    assert not (out / "lists/val.txt").exists() and not (out / "val").exists()


def folders_of_pairs(raw: Path, **names: str) -> Path:
    """Images and masks as UCTransNet shares them, one in each part: train, val, test."""
    for part, name in names.items():
        folder = raw / f"{part.capitalize()}_Folder"
        save(folder / "img" / f"{name}.png", pixels(len(part)))
        save(folder / "labelcol" / f"{name}_anno.png", np.where(glands(1) > 0, 255, 0).astype(np.uint8))
    return raw


@pytest.mark.parametrize("dataset", ["GlaS", "MoNuSeg"])
def test_folders_of_pairs_keep_their_names(tmp_path: Path, dataset: str) -> None:
    """Also where the papers' names are wrong. An image that moves leaves nothing where it was."""
    wrong = next(iter(MISNAMED))
    raw, out = folders_of_pairs(tmp_path / "raw", train=wrong, val="b", test="c"), tmp_path / "out"
    assert prepare(dataset, raw, out) == 0
    assert [listed(out, part) for part in ("train", "val", "test")] == [[wrong], ["b"], ["c"]]
    for part, name in (("train", wrong), ("val", "b"), ("test", "c")):
        np.testing.assert_array_equal(read(out / part / "img" / f"{name}.png"), pixels(len(part)))
        np.testing.assert_array_equal(read(out / part / "labelcol" / f"{name}.png"), np.where(glands(1) > 0, 255, 0))
    for half, name in (("img", "b.png"), ("labelcol", "b_anno.png")):
        (raw / "Val_Folder" / half / name).rename(raw / "Train_Folder" / half / name)
        (raw / "Val_Folder" / half).rmdir()
    (raw / "Val_Folder").rmdir()
    assert prepare(dataset, raw, out) == 0
    assert listed(out, "train") == [wrong, "b"] and not (out / "val").exists() and not (out / "lists/val.txt").exists()


TIF, XML = RELEASED / "Tissue Images" / f"{ALSO}.tif", RELEASED / "Annotations" / f"{ALSO}.xml"
BAD_MONUSEG = {
    "no outlines": (lambda raw: (raw / XML).unlink(), f"{ALSO}.tif: has no outlines"),
    "no image": (lambda raw: (raw / TIF).unlink(), f"{ALSO}.xml: has no image"),
    "twice": (lambda raw: save(raw / "copy" / f"{ALSO}.tif", pixels(1)), "is a second file of the image"),
    "odd name": (lambda raw: [(raw / p).rename((raw / p).with_stem("a b")) for p in (TIF, XML)], "not a plain name"),
    "outside": (lambda raw: write_xml(raw / XML, [nuclei(1)[0] + [50, 0]]), f"{ALSO}.xml: region 1 lies at x "),
    "far vertex": (lambda raw: write_xml(raw / XML, [*nuclei(1), nuclei(1)[0] - [12.0, 0]]), "region 4 lies at x -"),
    "no region": (lambda raw: write_xml(raw / XML, []), f"{ALSO}.xml: has no region"),
    "no number": (lambda raw: write_xml(raw / XML, [nuclei(1)[0] * np.nan]), f"{ALSO}.xml: region 1 lies at x nan"),
    "no xml": (lambda raw: (raw / XML).write_text("hello"), f"{ALSO}.xml: is no readable XML"),
    "another schema": (lambda raw: (raw / XML).write_text("<a/>"), f"{ALSO}.xml: has no region"),
    "gray": (lambda raw: save(raw / TIF, pixels(1)[..., 0]), f"{ALSO}.tif: "),
    "cut short": (lambda raw: (raw / TIF).write_bytes((raw / TIF).read_bytes()[:200]), f"{ALSO}.tif: "),
}


@pytest.mark.parametrize("kind", BAD_MONUSEG)
def test_bad_MoNuSeg_is_refused_and_nothing_is_written(tmp_path: Path, refused: Callable[..., str], kind: str) -> None:
    raw, out = monuseg(tmp_path / "raw"), tmp_path / "out"
    spoil, part = BAD_MONUSEG[kind]
    spoil(raw)
    error = refused(prepare_histology.main, ["MoNuSeg", raw, out, "--split", "all"])
    assert part in error and "1 defect," in error
    assert not out.exists()


def test_bad_GlaS_is_refused_together(tmp_path: Path, refused: Callable[..., str]) -> None:
    raw, out = glas(tmp_path / "raw"), tmp_path / "out"
    folder = raw / "Warwick QU Dataset (Released 2016_07_08)"
    (folder / "train_1_anno.bmp").unlink()
    save(folder / "testA_1_anno.bmp", glands(3)[:-1])
    (folder / "train_2.bmp").write_bytes((folder / "train_2.bmp").read_bytes()[:-100])
    error = refused(prepare_histology.main, ["GlaS", raw, out])
    assert all(part in error for part in ("3 defects", "train_1.bmp: ", "testA_1_anno.bmp: ", "train_2.bmp: "))
    raw = folders_of_pairs(tmp_path / "pairs", train="same", val="other", test="same")
    error = refused(prepare_histology.main, ["GlaS", raw, out])
    assert f"same.png: is same in test, as is {raw}/Train_Folder/img/same.png in train" in error
    assert not out.exists()


def test_bad_options_and_empty_folders_are_refused(tmp_path: Path, refused: Callable[..., str], monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monuseg(tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    for words, part in (
        ("MoNuSeg nowhere out", "nowhere: no such folder"),
        ("GlaS empty out", "empty: holds nothing of GlaS"),
        ("MoNuSeg raw raw/out", "within RAW"),
        ("Camelyon raw out", "Camelyon"),
        ("MoNuSeg raw out --split some", "--split"),
    ):
        assert part in refused(prepare_histology.main, words.split())
    assert not (tmp_path / "out").exists() and not (tmp_path / "raw" / "out").exists()
