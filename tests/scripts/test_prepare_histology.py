"""GlaS and MoNuSeg from small files in the layout of their releases, to the items of a data set; and bad input."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.base import read_list
from datasets.histology import PictureSlices, find_pairs
from datasets.outlines import draw
from scripts import prepare_histology
from tests.conftest import ROOT, SHARED

MONUSEG = SHARED / "data" / "monuseg"
SIZE = (20, 24)
TRAIN, ALSO, TEST = "TCGA-18-5592-01Z-00-DX1", "TCGA-21-5784-01Z-00-DX1", "TCGA-2Z-A9J9-01A-01-TS1"
LEFT_OUT = "TCGA-F9-9999-01Z-00-DX1"
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
    regions = "".join(
        f'<Region Id="{number}" Type="0" Zoom="1" Selected="0" ImageLocation="" ImageFocus="0" Length="1" Area="1" '
        'LengthMicrons="1" AreaMicrons="1" Text="" NegativeROA="0" InputRegionId="0" Analyze="0" DisplayId="1">'
        "<Attributes/><Vertices>"
        + "".join(f'<Vertex X="{x!r}" Y="{y!r}" Z="0"/>' for x, y in outline.tolist())
        + "</Vertices></Region>"
        for number, outline in enumerate(outlines, 1)
    )
    path.write_text(
        '<?xml version="1.0"?>\n<Annotations MicronsPerPixel="0.252000">\n<Annotation Id="1" Name="" ReadOnly="0" '
        'LineColor="65280" Visible="1" Selected="1" MarkupImagePath="" MacroName=""><Attributes><Attribute '
        'Name="Description" Id="0" Value=""/></Attributes><Regions><RegionAttributeHeaders><AttributeHeader Id="9999" '
        f'Name="Region" ColumnWidth="-1"/></RegionAttributeHeaders>{regions}</Regions><Plots/></Annotation>'
        "\n</Annotations>\n"
    )
    return path


def monuseg(raw: Path) -> Path:
    """Both official downloads, unpacked beside each other."""
    for seed, name in enumerate((TRAIN, ALSO, LEFT_OUT)):
        save(raw / RELEASED / "Tissue Images" / f"{name}.tif", pixels(seed))
        write_xml(raw / RELEASED / "Annotations" / f"{name}.xml", nuclei(seed))
    save(raw / "MoNuSegTestData" / f"{TEST}.tif", pixels(9))
    write_xml(raw / "MoNuSegTestData" / f"{TEST}.xml", nuclei(9))
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
    return (out / "lists" / f"{part}.txt").read_text().split()


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.stat() for path in sorted(out.rglob("*.png"))}
    return {str(path): (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def test_the_shipped_split_is_that_of_the_papers() -> None:
    train, test = (read_list(ROOT / "datasets/splits/monuseg" / f"{part}.txt") for part in ("train", "test"))
    assert (len(train), len(test)) == (30, 14) and not set(train) & set(test)
    if MONUSEG.is_dir():
        for part, names in (("train", train), ("test", test)):
            assert names == sorted(path.stem for path in (MONUSEG / part / "images").iterdir())


def test_MoNuSeg_becomes_pictures_and_masks(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = monuseg(tmp_path / "raw"), tmp_path / "out"
    assert prepare("MoNuSeg", raw, out) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert listed(out, "train") == [TRAIN, ALSO] and listed(out, "test") == [TEST]
    for part, seed, name in (("train", 0, TRAIN), ("train", 1, ALSO), ("test", 9, TEST)):
        np.testing.assert_array_equal(read(out / part / "img" / f"{name}.png"), pixels(seed))
        mask, _ = draw(nuclei(seed), SIZE)
        np.testing.assert_array_equal(read(out / part / "labelcol" / f"{name}.png"), np.where(mask, 255, 0))
        share = f"background {(~mask).sum()}, nuclei {mask.sum()} ({100 * mask.mean():.1f} %)"
        assert (
            f"{name}: {part}, 24 x 20 pixels, {share}; 2 nuclei, 1 reach over the border, 1 of fewer than" in said.out
        )
    assert f"left out, 1 that --split all would take: {LEFT_OUT}" in said.out
    assert "train: 2 cases of 24 x 20 (2) pixels" in said.out and "; 4 nuclei\ntest: 1 cases" in said.out
    digest = hashlib.sha256(f"{TRAIN}\n{ALSO}\n{TEST}\n".encode()).hexdigest()
    assert f"sha256 {digest}" in said.out
    assert f"python train.py --dataset MoNuSeg --root_path {out}" in said.out


def test_what_was_made_of_MoNuSeg_is_a_data_set(tmp_path: Path) -> None:
    assert prepare("MoNuSeg", monuseg(tmp_path / "raw"), tmp_path / "out") == 0
    pairs = find_pairs(tmp_path / "out", "train")
    assert [pair.name for pair in pairs] == [TRAIN, ALSO]
    assert all(np.unique(read(pair.label)).tolist() == [0, 255] for pair in pairs)
    sample = PictureSlices(pairs)[1]
    np.testing.assert_array_equal(sample.label, draw(nuclei(1), SIZE)[0])
    np.testing.assert_array_equal(sample.image, np.moveaxis(pixels(1), 2, 0).astype(np.float32) / np.float32(255))


def test_split_all_takes_every_case(tmp_path: Path) -> None:
    raw, out = monuseg(tmp_path / "raw"), tmp_path / "out"
    save(raw / "MoNuSegTestData" / "new.tif", pixels(5))
    write_xml(raw / "MoNuSegTestData" / "new.xml", nuclei(5))
    (raw / TIF).rename(raw / "MoNuSegTestData" / TIF.name)  # a list says that it trains, wherever it lies
    assert prepare("MoNuSeg", raw, out, "--split", "all") == 0
    assert listed(out, "train") == [TRAIN, ALSO, LEFT_OUT] and listed(out, "test") == [TEST, "new"]


def test_GlaS_becomes_pictures_and_masks(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = glas(tmp_path / "raw"), tmp_path / "out"
    assert prepare("GlaS", raw, out) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert listed(out, "train") == ["train_1", "train_10", "train_2"] and listed(out, "test") == ["testA_1", "testB_1"]
    for part, seed, name in (("train", 0, "train_1"), ("train", 2, "train_10"), ("test", 4, "testB_1")):
        np.testing.assert_array_equal(read(out / part / "img" / f"{name}.png"), pixels(seed))
        mask = glands(seed) > 0
        np.testing.assert_array_equal(read(out / part / "labelcol" / f"{name}.png"), np.where(mask, 255, 0))
        assert f"{name}: {part}, 24 x 20 pixels, background {(~mask).sum()}, glands {mask.sum()}" in said.out
    assert "; 9 glands\ntest: 2 cases of 24 x 20 (2) pixels" in said.out
    pairs = find_pairs(out, "train", instances=True)
    np.testing.assert_array_equal(PictureSlices(pairs, instances=True)[0].label, glands(0) > 0)


def folders_of_pairs(raw: Path, **names: str) -> Path:
    """Pictures and masks as UCTransNet shares them, one in each part: train, val, test."""
    for part, name in names.items():
        folder = raw / f"{part.capitalize()}_Folder"
        save(folder / "img" / f"{name}.png", pixels(len(part)))
        save(folder / "labelcol" / f"{name}_anno.png", np.where(glands(1) > 0, 255, 0).astype(np.uint8))
    return raw


@pytest.mark.parametrize("twice", [("train", "val"), ("train", "test"), ("val", "test")])
def test_a_name_in_two_parts_is_refused(tmp_path: Path, refused, twice: tuple[str, str]) -> None:
    """A list and a reader know a picture by its name."""
    names = {part: "same" if part in twice else "other" for part in ("train", "val", "test")}
    raw, out = folders_of_pairs(tmp_path / "raw", **names), tmp_path / "out"
    error = refused(prepare_histology.main, ["GlaS", raw, out])
    first, second = (raw / f"{part.capitalize()}_Folder/img/same.png" for part in twice)
    assert f"{second}: is same in {twice[1]}, as is {first} in {twice[0]}" in error and "1 defect," in error
    assert not out.exists()


def test_a_picture_that_moves_leaves_nothing_where_it_was(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = folders_of_pairs(tmp_path / "raw", train="a", val="b", test="c"), tmp_path / "out"
    assert prepare("GlaS", raw, out) == 0
    for half, name in (("img", "b.png"), ("labelcol", "b_anno.png")):
        (raw / "Val_Folder" / half / name).rename(raw / "Train_Folder" / half / name)
        (raw / "Val_Folder" / half).rmdir()
    (raw / "Val_Folder").rmdir()
    capfd.readouterr()
    assert prepare("GlaS", raw, out) == 0
    assert "b: train," in (said := capfd.readouterr().out) and "; made again: split was val" in said
    assert listed(out, "train") == ["a", "b"] and not (out / "val").exists() and not (out / "lists/val.txt").exists()
    assert prepare("GlaS", raw, tmp_path / "whole") == 0
    assert contents(out) == contents(tmp_path / "whole")
    for half, name in (("img", "b.png"), ("labelcol", "b_anno.png")):
        (raw / "Train_Folder" / half / name).unlink()
    (out / "lists/val.txt").write_text("b\n")
    assert prepare("GlaS", raw, out) == 0
    assert "in no list now: 1 cases, b" in capfd.readouterr().out and not (out / "lists/val.txt").exists()


@pytest.mark.parametrize("dataset", ["GlaS", "MoNuSeg"])
def test_folders_of_pairs_go_in_as_well(tmp_path: Path, dataset: str, capfd: pytest.CaptureFixture) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for seed, (part, suffix) in enumerate((("Train_Folder", "png"), ("Val_Folder", "png"), ("Test_Folder", "tif"))):
        save(raw / part / "img" / f"{seed}.{suffix}", pixels(seed))
        save(raw / part / "labelcol" / f"{seed}_anno.{suffix}", np.where(glands(seed) > 0, 255, 0).astype(np.uint8))
    assert prepare(dataset, raw, out) == 0
    assert [listed(out, part) for part in ("train", "val", "test")] == [["0"], ["1"], ["2"]]
    for seed, part in enumerate(("train", "val", "test")):
        np.testing.assert_array_equal(read(out / part / "img" / f"{seed}.png"), pixels(seed))
        np.testing.assert_array_equal(read(out / part / "labelcol" / f"{seed}.png"), np.where(glands(seed) > 0, 255, 0))
        assert [pair.name for pair in find_pairs(out, part)] == [str(seed)]
    assert "0: train, 24 x 20 pixels, " in (said := capfd.readouterr().out) and "; 2 g" in said.replace("nuclei", "g")


def test_again_nothing_changes_and_nothing_is_made_again(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    raw, out = monuseg(tmp_path / "raw"), tmp_path / "out"
    assert prepare("MoNuSeg", raw, out) == 0
    first, made = contents(out), stamps(out)
    assert prepare("MoNuSeg", raw, out) == 0
    assert contents(out) == first and stamps(out) == made
    assert capfd.readouterr().out.count("made before") == 3
    write_xml(raw / RELEASED / "Annotations" / f"{ALSO}.xml", nuclei(77))
    assert prepare("MoNuSeg", raw, out) == 0
    changed = {name for name, content in contents(out).items() if content != first[name]}
    assert changed == {f".prepared/{ALSO}.json", f"train/labelcol/{ALSO}.png"}
    assert prepare("MoNuSeg", raw, tmp_path / "elsewhere") == 0
    pngs = [
        {name: data for name, data in contents(folder).items() if ".json" not in name}
        for folder in (out, tmp_path / "elsewhere")
    ]
    assert pngs[0] == pngs[1]


def test_two_processes_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    raw = monuseg(tmp_path / "raw")
    for jobs in (1, 2):
        assert prepare("MoNuSeg", raw, tmp_path / str(jobs), "--jobs", jobs) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_an_opaque_alpha_channel_of_the_release_is_dropped(tmp_path: Path) -> None:
    raw, out = monuseg(tmp_path / "raw"), tmp_path / "out"
    save(raw / "MoNuSegTestData" / f"{TEST}.tif", np.dstack([pixels(9), np.full(SIZE, 255, np.uint8)]))
    assert prepare("MoNuSeg", raw, out) == 0
    np.testing.assert_array_equal(read(out / "test" / "img" / f"{TEST}.png"), pixels(9))


TIF, XML = RELEASED / "Tissue Images" / f"{ALSO}.tif", RELEASED / "Annotations" / f"{ALSO}.xml"
BAD_MONUSEG = {
    "no outlines": (lambda raw: (raw / XML).unlink(), f"{ALSO}.tif: has no outlines"),
    "no picture": (lambda raw: (raw / TIF).unlink(), f"{ALSO}.xml: has no picture"),
    "twice": (lambda raw: save(raw / "copy" / f"{ALSO}.tif", pixels(1)), "is a second file of the picture"),
    "outside": (lambda raw: write_xml(raw / XML, [nuclei(1)[0] + [50, 0]]), f"{ALSO}.xml: region 1 lies at x "),
    "far vertex": (lambda raw: write_xml(raw / XML, [*nuclei(1), nuclei(1)[0] - [12.0, 0]]), "region 4 lies at x -"),
    "no region": (lambda raw: write_xml(raw / XML, []), f"{ALSO}.xml: has no region"),
    "entities": (lambda raw: (raw / XML).write_text("<!DOCTYPE a><Annotations/>"), f"{ALSO}.xml: declares a document"),
    "no xml": (lambda raw: (raw / XML).write_text("hello"), f"{ALSO}.xml: is no readable XML"),
    "grey": (lambda raw: save(raw / TIF, pixels(1)[..., 0]), "expected three channels (RGB) of 8 bits"),
    "transparent": (
        lambda raw: save(raw / TIF, np.dstack([pixels(1), pixels(2)[..., :1]])),
        f"{ALSO}.tif: is transparent",
    ),
    "cmyk": (lambda raw: Image.new("CMYK", (24, 20)).save(raw / TIF), f"{ALSO}.tif: is in CMYK"),
    "cut short": (lambda raw: (raw / TIF).write_bytes((raw / TIF).read_bytes()[:200]), f"{ALSO}.tif: is no readable"),
}


@pytest.mark.parametrize("kind", BAD_MONUSEG)
def test_bad_MoNuSeg_is_refused_and_nothing_is_written(tmp_path: Path, refused, kind: str) -> None:
    raw, out = monuseg(tmp_path / "raw"), tmp_path / "out"
    spoil, part = BAD_MONUSEG[kind]
    spoil(raw)
    error = refused(prepare_histology.main, ["MoNuSeg", raw, out])
    assert part in error and "1 defect," in error
    assert not out.exists()


def test_all_that_is_wrong_is_told_together(tmp_path: Path, refused) -> None:
    raw, out = monuseg(tmp_path / "raw"), tmp_path / "out"
    (raw / "MoNuSegTestData" / f"{TEST}.xml").unlink()
    write_xml(raw / XML, [nuclei(1)[0] + [50, 0], nuclei(1)[0], nuclei(1)[0] + [0, 70]])
    save(raw / RELEASED / "Tissue Images" / f"{TRAIN}.tif", pixels(0)[..., 0])
    error = refused(prepare_histology.main, ["MoNuSeg", raw, out])
    for part in ("4 defects", f"{TEST}.tif", "region 1", "region 3", f"{TRAIN}.tif"):
        assert part in error
    assert not out.exists()


def test_bad_input_found_later_leaves_what_was_made_before(tmp_path: Path, refused) -> None:
    raw, out = monuseg(tmp_path / "raw"), tmp_path / "out"
    assert prepare("MoNuSeg", raw, out) == 0
    before = contents(out)
    (raw / XML).write_text("hello")
    refused(prepare_histology.main, ["MoNuSeg", raw, out])
    assert contents(out) == before


def test_bad_GlaS_is_refused_together(tmp_path: Path, refused) -> None:
    raw, out = glas(tmp_path / "raw"), tmp_path / "out"
    folder = raw / "Warwick QU Dataset (Released 2016_07_08)"
    (folder / "train_1_anno.bmp").unlink()
    save(folder / "testA_1_anno.bmp", glands(3)[:-1])
    (folder / "train_2.bmp").write_bytes((folder / "train_2.bmp").read_bytes()[:-100])
    error = refused(prepare_histology.main, ["GlaS", raw, out])
    for part in (
        "3 defects",
        "train_1.bmp: has no mask",
        "testA_1_anno.bmp: has 19 x 24",
        "train_2.bmp: is no readable",
    ):
        assert part in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("MoNuSeg", "nowhere", "out"), ("nowhere: no such folder", "Tissue Images/")),
        (("GlaS", "empty", "out"), ("empty: holds nothing of GlaS", "train_1_anno.bmp")),
        (("MoNuSeg", "empty", "out"), ("empty: holds nothing of MoNuSeg", "NAME.xml")),
        (("MoNuSeg", "raw", "raw/out"), ("OUT is", "within RAW")),
        (("MoNuSeg", "raw", "raw"), ("OUT is", "within RAW")),
        (("Camelyon", "raw", "out"), ("Camelyon", "GlaS")),
        (("MoNuSeg", "raw", "out", "--jobs", "0"), ("--jobs is 0",)),
        (("MoNuSeg", "raw", "out", "--split", "some"), ("--split", "some")),
    ],
)
def test_bad_options_and_empty_folders_are_refused(
    tmp_path: Path, refused, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monuseg(tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    error = refused(prepare_histology.main, list(words))
    for part in parts:
        assert part in error
    assert not (tmp_path / "out").exists() and not (tmp_path / "raw" / "out").exists()


def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    monuseg(tmp_path / "raw")
    script = [sys.executable, str(ROOT / "scripts" / "prepare_histology.py"), "MoNuSeg", "raw", "out"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert listed(tmp_path / "out", "train") == [TRAIN, ALSO]


@pytest.mark.skipif(not MONUSEG.is_dir(), reason="MoNuSeg is not beside this checkout (../shared/data)")
def test_the_real_pictures_go_in(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert prepare("MoNuSeg", MONUSEG, out) == 0
    assert "train: 30 cases of 512 x 512 (30) pixels" in capfd.readouterr().out
    for part in ("train", "test"):
        assert listed(out, part) == read_list(ROOT / "datasets/splits/monuseg" / f"{part}.txt")
    name = listed(out, "test")[3]
    np.testing.assert_array_equal(read(out / "test/img" / f"{name}.png"), read(MONUSEG / "test/images" / f"{name}.png"))
    mask = read(MONUSEG / "test/masks" / f"{name}.png")
    np.testing.assert_array_equal(read(out / "test/labelcol" / f"{name}.png"), np.where(mask, 255, 0))
