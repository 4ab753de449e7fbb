"""A custom folder: paired, read once, split once; and all that may be wrong with it, reported together."""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from configs.config import get_config
from configs.schema import Config
from datasets import locate
from datasets.case import IGNORE
from datasets.errors import Defects
from datasets.sets import folder
from evaluation.inference import inspect_data, names_of, open_volumes
from tests.own_data import draw_image, volume, write_images, write_nifti, write_volumes


def inspected(root: Path, **keys: object) -> Config:
    overrides = {"DATA.DATASET": "Folder", "DATA.ROOT_PATH": str(root)}
    return inspect_data(get_config(overrides=overrides | {f"DATA.{key}": value for key, value in keys.items()}))


def opened(root: Path, split: str, **keys: object) -> object:
    return open_volumes(inspected(root, **keys), split)


def everything(root: Path, **keys: object) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Image and label of each image file, in whatever split it is."""
    config = inspected(root, **keys)
    items = [item for split in ("train", "val", "test") for item in open_volumes(config, split)]
    return {
        item.name: (item.image[0], item.label[0]) if item.label.ndim == 3 else (item.image, item.label)
        for item in items
    }


def defects_of(root: Path, **keys: object) -> dict[str, str]:
    """What is wrong, by the name of the file; nothing may have been written."""
    before = sorted(root.rglob("*"))
    with pytest.raises(Defects) as raised:
        inspected(root, **keys)
    assert sorted(root.rglob("*")) == before
    found: dict[str, str] = {}
    for defect in raised.value.defects:
        found[defect.path.name] = f"{found.get(defect.path.name, '')} {defect.what}"
    return found


def save(path: Path, array: np.ndarray, **options: object) -> None:
    Image.fromarray(array).save(path, **options)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF"])
def test_images_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    root = write_images(tmp_path / "own", classes=4, suffix=suffix)
    config = inspected(root)
    assert (config.model.num_classes, config.model.in_channels, config.data.intensity) == (4, 3, "range")
    found = everything(root)
    assert len(found) == 10
    for index in range(10):
        image, mask = draw_image(index, classes=4)
        np.testing.assert_array_equal(found[f"case {index}"][0], np.moveaxis(image, 2, 0) / np.float32(255))
        np.testing.assert_array_equal(found[f"case {index}"][1], mask)


def test_the_split_is_made_once(tmp_path: Path) -> None:
    root = write_images(tmp_path / "own", 20)
    assert inspected(root).data.label_values == (0, 255)
    lists = {p.stem: p.read_text(encoding="utf-8").split("\n")[:-1] for p in sorted((root / "lists").glob("*.txt"))}
    assert [len(lists[part]) for part in ("train", "val", "test")] == [14, 2, 4]
    assert sorted(sum(lists.values(), [])) == sorted(f"case {i}" for i in range(20))
    (root / "lists/train.txt").write_text("\n".join([*lists["train"], *lists["val"]]))
    (root / "lists/val.txt").unlink()
    assert [len(opened(root, split)) for split in ("train", "val", "test")] == [16, 0, 4]
    assert [len(opened(root, split, VAL_CASES=3)) for split in ("train", "val")] == [13, 3]


def test_the_split_may_go_to_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    root = write_images(tmp_path / "own", 6)
    config = inspected(root, LIST_DIR=str(tmp_path / "lists/of mine"))
    assert (tmp_path / "lists/of mine/train.txt").is_file() and not (root / "lists").exists()
    assert len(open_volumes(config, "train")) == 4


def test_a_second_time_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_images(tmp_path / "own", 10)
    first, seen, read = inspected(root), [], folder.inspect_case
    monkeypatch.setattr(folder, "inspect_case", lambda case, how: [seen.append(case.name), read(case, how)][1])
    assert inspected(root) == first and not seen
    save(root / "labels/case 3.png", draw_image(77)[1] * 255, compress_level=1)
    assert inspected(root) == first and seen == ["case 3"]
    (root / "lists/inspected.json").write_text("{")
    assert inspected(root) == first and len(seen) == 11


def test_a_rare_class_is_trained_on(tmp_path: Path) -> None:
    """Whichever case holds it: the split is drawn until it does."""
    for rare in range(6):
        root = write_images(tmp_path / f"own{rare}", 6)
        for index in range(6):
            save(root / f"labels/case {index}.png", draw_image(index)[1] * (1 + (index == rare)))
        inspected(root)
        assert f"case {rare}" in (root / "lists/train.txt").read_text(encoding="utf-8")


def test_volumes_are_sliced_along_their_coarsest_axis_in_one_orientation(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "own", 4, orientations=("LPS", "RAS", "PIR", "ASL"))
    config = inspected(root)
    assert (config.data.axis, config.data.axis_order, config.data.intensity) == ("z", "zyx", "percentile")
    assert (config.model.num_classes, config.model.in_channels) == (3, 1)
    train = opened(root, "train")
    assert len(train) == 6 * 3
    slices = {sample.name: sample for sample in train}
    for name in (root / "lists/train.txt").read_text(encoding="utf-8").split():
        image, label = volume(int(name[-1]))
        low, high = np.percentile(image, [0.5, 99.5])
        for index in range(6):
            sample = slices[f"{name}_slice{index:03d}"]
            np.testing.assert_allclose(sample.image, ((image[index] - low) / (high - low)).clip(0, 1), atol=1e-6)
            np.testing.assert_array_equal(sample.label, label[index])
    (tested,) = opened(root, "test")
    np.testing.assert_array_equal(tested.label, volume(int(tested.name[-1]))[1])
    assert tested.geometry.array_spacing == (3.0, 1.0, 1.0)


@pytest.mark.parametrize(("axis", "moved"), [("x", 2), ("y", 1), ("z", 0)])
def test_an_axis_of_ones_own(tmp_path: Path, axis: str, moved: int) -> None:
    (tested,) = opened(write_volumes(tmp_path / "own", 2), "test", AXIS=axis)
    np.testing.assert_array_equal(tested.label, np.moveaxis(volume(int(tested.name[-1]))[1], moved, 0))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("thin", [0, 2])
def test_volumes_of_one_slice_and_of_every_format(tmp_path: Path, thin: int, suffix: str) -> None:
    root = write_volumes(tmp_path / "own", 4)
    for path in root.glob("*/*.nii.gz"):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image[:, :, 1:2] if thin == 2 else image[1:2], str(path.with_name(path.name[:-7] + suffix)))
        if suffix != ".nii.gz":
            path.unlink()
    assert inspected(root).data.axis == "z"
    shape = (24, 28) if thin == 2 else (6, 24)
    assert {sample.label.shape for sample in opened(root, "train")} == {shape}
    (tested,) = opened(root, "test")
    label = volume(int(tested.name[-1]))[1]
    np.testing.assert_array_equal(tested.label[0], label[:, :, 1] if thin == 0 else label[1])


# What people have: how a good folder becomes one of theirs, and the keys that they give.
def nfd(root: Path) -> None:
    name = unicodedata.normalize("NFD", "Müller #1, a@b (ж)")
    for part in ("images", "labels"):
        (root / part / "case 1.png").rename(root / part / f"{name}.png")


def junk(root: Path) -> None:
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "table.csv", "meta.json"):
        for part in ("images", "labels"):
            (root / part / name).write_bytes(b"\xff\xd8\xff no image")


def renamed(part: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        for path in list((root / part).iterdir()):
            path.rename(path.with_name(change(path.stem) + path.suffix))

    return apply


def both(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda root: [renamed(part, change)(root) for part in ("images", "labels")]


PEOPLE: dict[str, tuple[Callable[[Path], object], dict[str, object]]] = {
    **{
        suffix: (renamed("labels", lambda stem, suffix=suffix: stem + suffix), {})
        for suffix in ("_mask", "_segmentation", "_anno", "_gt")
    },
    "a custom suffix": (renamed("labels", lambda stem: f"{stem}-lab"), {"LABEL_SUFFIX": "-lab"}),
    "nnU-Net": (renamed("images", lambda stem: f"{stem}_0000"), {}),
    "both with a number": (both(lambda stem: f"{stem}_0000"), {}),
    "numbers as names": (both(lambda stem: f"img_{int(stem[-1]):04d}"), {}),
    "masks/": (lambda root: (root / "labels").rename(root / "masks"), {}),
    "imagesTr": (lambda root: [(root / f"{part}s").rename(root / f"{part}sTr") for part in ("image", "label")], {}),
    **({"any letters": (nfd, {})} if sys.getfilesystemencoding() == "utf-8" else {}),
    "junk": (junk, {}),
    "RGBA": (lambda root: [Image.open(p).convert("RGBA").save(p) for p in (root / "images").iterdir()], {}),
    "masks in JPEG": (
        lambda root: [
            [save(path.with_suffix(".jpg"), np.asarray(Image.open(path)), quality=70), path.unlink()]
            for path in list((root / "labels").iterdir())
        ],
        {"MASK_THRESHOLD": 128},
    ),
}


@pytest.mark.parametrize("kind", PEOPLE)
def test_folders_as_people_have_them(tmp_path: Path, kind: str) -> None:
    root, (change, keys) = write_images(tmp_path / "own", 6), PEOPLE[kind]
    expected = {value[0].tobytes(): value[1] for value in everything(root).values()}
    shutil.rmtree(root / "lists")
    change(root)
    found = everything(root, **keys)
    assert len(found) == 6
    for image, label in found.values():
        difference = (label != expected[image.tobytes()]).mean()
        assert difference == 0 if kind != "masks in JPEG" else difference < 0.01


def test_grey_beside_rgb_is_converted_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_images(tmp_path / "own", 6)
    grey = draw_image(1)[0][..., 0]
    save(root / "images/case 1.png", grey)
    found = everything(root)
    assert "1 of 6 images are grey, converted to RGB" in caplog.text
    np.testing.assert_array_equal(found["case 1"][0], np.stack([grey] * 3) / np.float32(255))
    config = inspect_data(
        get_config(overrides={"DATA.DATASET": "Folder", "DATA.ROOT_PATH": str(root), "MODEL.IN_CHANNELS": 1})
    )
    assert {sample.image.shape for sample in open_volumes(config, "train")} == {(40, 48)}
    assert "5 of 6 images are RGB, converted to grey" in caplog.text


@pytest.mark.parametrize("values", [(0, 1, 2, 4), (1, 2)])
def test_values_of_labels(tmp_path: Path, values: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    root, masks = write_images(tmp_path / "own", 6), {}
    for index in range(6):
        masks[f"case {index}"] = draw_image(index, classes=len(values))[1]
        save(root / f"labels/case {index}.png", np.array(values, np.uint8)[masks[f"case {index}"]])
    if values == (1, 2):
        inspected(root)
        assert "no label holds 0" in caplog.text and "DATA.LABEL_VALUES [1, 2]" in caplog.text
    else:
        (found,) = defects_of(root).values()
        assert 'give --opts DATA.LABEL_VALUES "[0, 1, 2, 4]"' in found
    for name, (_, label) in everything(root, LABEL_VALUES=list(values)).items():
        np.testing.assert_array_equal(label, masks[name])
    assert inspected(root, LABEL_VALUES=list(values)).model.num_classes == len(values)


def test_a_value_to_ignore(tmp_path: Path) -> None:
    root = write_images(tmp_path / "own", 6, classes=3)
    mask = draw_image(2, classes=3)[1]
    mask[:5] = 255
    save(root / "labels/case 2.png", mask)
    found = defects_of(root)
    assert "DATA.IGNORE_LABEL 255" in found["case 2.png"] or "holds 255" in found["case 2.png"]
    _, label = everything(root, IGNORE_LABEL=255)["case 2"]
    assert (label[:5] == IGNORE).all() and inspected(root, IGNORE_LABEL=255).model.num_classes == 3
    np.testing.assert_array_equal(label[5:], mask[5:])


@pytest.mark.parametrize("form", ["nnU-Net", "MSD"])
def test_dataset_json(tmp_path: Path, form: str) -> None:
    root = write_volumes(tmp_path / "own", 3)
    for part in ("images", "labels"):
        (root / part).rename(root / f"{part}Tr")
    labels = {"background": 0, "anterior": 1, "posterior": 2, "ignore": 3}
    if form == "MSD":
        labels = {str(value): name for name, value in labels.items()}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "MRI"}}))
    for path in (root / "labelsTr").iterdir():
        label = nib.load(path)
        array = np.asarray(label.dataobj).copy()
        array[:3] = 3
        nib.save(nib.Nifti1Image(array, label.affine), path)
    config = inspected(root)
    assert (config.model.num_classes, names_of(config)) == (3, ["anterior", "posterior"])
    assert config.data.ignore_label == 3
    (tested,) = opened(root, "test")
    assert set(np.unique(tested.label)) == {0, 1, 2, IGNORE}
    for bad in ({"labels": {"a": [1, 2]}}, [], {"labels": {"background": 0, "x": 999}}):
        (root / "dataset.json").write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=r"dataset\.json: is not understood"):
            inspected(root)


@pytest.mark.parametrize("kind", ["volumes", "images"])
def test_several_channels(tmp_path: Path, kind: str) -> None:
    root = write_volumes(tmp_path / "own", 3) if kind == "volumes" else tmp_path / "own"
    if kind == "images":
        write_images(root, 4)
        for path in (root / "images").iterdir():
            image = np.asarray(Image.open(path))
            save(path.with_stem(f"{path.stem}_0000"), image[..., 0])
            save(path.with_stem(f"{path.stem}_0001"), image[..., 1])
            path.unlink()
    else:
        for path in list((root / "images").iterdir()):
            stem = path.name.removesuffix(".nii.gz")
            write_nifti(path.with_name(f"{stem}_0001.nii.gz"), volume(int(stem[-1]) + 50)[0])
            path.rename(path.with_name(f"{stem}_0000.nii.gz"))
    assert inspected(root).model.in_channels == 2
    tested = opened(root, "test")[0]
    if kind == "images":
        expected = np.moveaxis(draw_image(int(tested.name[-1]))[0], 2, 0)[None, :2] / np.float32(255)
        np.testing.assert_array_equal(tested.image, expected)
    else:
        for channel, seed in enumerate((int(tested.name[-1]), int(tested.name[-1]) + 50)):
            image = volume(seed)[0]
            low, high = np.percentile(image, [0.5, 99.5])
            expected = ((image - low) / (high - low)).clip(0, 1)
            np.testing.assert_allclose(tested.image[:, channel], expected, atol=1e-6)
    sample = opened(root, "train")[0]
    assert sample.image.shape == (2, *sample.label.shape)
    next((root / "images").glob("*case?1_0001*" if kind == "images" else "case1_0001*")).unlink()
    assert any("_0000; expected _0000, _0001 of every case" in what for what in defects_of(root).values())


@pytest.mark.parametrize(("how", "most"), [("range", 0.0276), ("percentile", 1.0)])
def test_12_bits_in_16_and_mixed_bits_are_warned_of(
    tmp_path: Path, how: str, most: float, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(tmp_path / "own", 5)
    for index in range(5):
        save(root / f"images/case {index}.png", draw_image(index)[0][..., 0].astype(np.uint16) * 16)
    found = everything(root, INTENSITY=how)
    assert max(image.max() for image, _ in found.values()) == pytest.approx(most, rel=0.15)
    assert ("DATA.INTENSITY percentile" in caplog.text) == (how == "range")
    caplog.clear()
    save(root / "images/case 1.png", draw_image(1)[0][..., 0])
    inspected(root, INTENSITY=how)
    assert ("images of uint16 and uint8 are mixed" in caplog.text) == (how == "range")


# Bad input: how a good folder is spoiled, and what is reported, by file.
IMAGES: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "unpaired": (
        lambda root: [(root / "labels/case 1.png").unlink(), (root / "images/case 2.png").unlink()],
        {"case 1.png": "has no label", "case 2.png": "has no image of its name"},
    ),
    "two of a name": (
        lambda root: save(root / "images/case 1.bmp", draw_image(1)[0]),
        {"case 1.png": "has the name of case 1.bmp"},
    ),
    "another kind": (
        lambda root: [(root / "images/notes.docx").touch(), (root / "labels/inside").mkdir()],
        {"notes.docx": "is neither an image nor a volume", "inside": "is neither an image nor a volume"},
    ),
    "volumes beside images": (
        lambda root: [write_nifti(root / part / "v.nii", volume(0)[0]) for part in ("images", "labels")],
        {"v.nii": "is of another kind"},
    ),
    "sizes": (
        lambda root: save(root / "labels/case 1.png", draw_image(1, (40, 50))[1] * 255),
        {"case 1.png": "has 40 x 50 pixels but case 1.png 40 x 48"},
    ),
    "stray values": (
        lambda root: save(root / "labels/case 1.png", draw_image(1)[1] * 77),
        {"case 1.png": "holds 77; expected 0 and 255"},
    ),
    "JPEG noise": (
        lambda root: [
            (root / "labels/case 1.png").unlink(),
            save(root / "labels/case 1.jpg", np.roll(draw_image(1)[1], 3) * 255, quality=60),
        ],
        {"case 1.jpg": "JPEG.*--mask_threshold 128"},
    ),
    "a mask in color": (
        lambda root: save(root / "labels/case 1.png", draw_image(1)[0]),
        {"case 1.png": "is in color"},
    ),
    "damaged": (
        lambda root: [
            (root / f"{part}/case {i}.png").write_bytes((root / f"{part}/case {i}.png").read_bytes()[:90])
            for i, part in ((1, "images"), (2, "labels"))
        ],
        {"case 1.png": "is not a readable image", "case 2.png": "is not a readable image"},
    ),
    "empty": (
        lambda root: [path.unlink() for part in ("images", "labels") for path in (root / part).iterdir()],
        {"images": "is empty; expected images"},
    ),
    "one case": (
        lambda root: [path.unlink() for path in [*root.glob("*/case*")] if "1" not in path.stem],
        {"lists": "would split one case; expected two at least"},
    ),
    "a control character in a name": (
        lambda root: [(root / part / "case 1.png").rename(root / part / "a\x1bb.png") for part in ("images", "labels")],
        {"a\x1bb.png": "control character"},
    ),
}


@pytest.mark.parametrize("fault", IMAGES)
def test_bad_images(tmp_path: Path, fault: str) -> None:
    root = write_images(tmp_path / "own", 6)
    spoil, expected = IMAGES[fault]
    spoil(root)
    found = defects_of(root)
    for name, what in expected.items():
        assert re.search(what, found[name]), found


def changed(path: Path, change: Callable[[sitk.Image], sitk.Image]) -> None:
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(path))


def with_nan(image: sitk.Image) -> sitk.Image:
    image = sitk.Cast(image, sitk.sitkFloat32)
    image[3, 3, 3] = float("nan")
    return image


def with_codes(path: Path, codes: bytes) -> None:
    """The qform_code and the sform_code of a file, two bytes each."""
    plain = path.with_name(path.name.removesuffix(".gz"))
    sitk.WriteImage(sitk.ReadImage(str(path)), str(plain))
    content = bytearray(plain.read_bytes())
    content[252:256] = codes
    plain.write_bytes(content)
    path.unlink()


VOLUMES: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "NaN": (lambda root: changed(root / "images/case1.nii.gz", with_nan), {"case1.nii.gz": "NaN"}),
    "another grid": (
        lambda root: changed(root / "labels/case1.nii.gz", lambda image: image[1:]),
        {"case1.nii.gz": "size|shape"},
    ),
    "another place": (
        lambda root: changed(root / "labels/case1.nii.gz", lambda image: (image.SetOrigin((0.0, 0.0, 0.0)), image)[1]),
        {"case1.nii.gz": "origin"},
    ),
    "no axes": (
        lambda root: with_codes(root / "images/case1.nii.gz", bytes(4)),
        {"case1.nii": "does not say where its axes point"},
    ),
    "unknown codes of axes": (
        lambda root: with_codes(root / "images/case1.nii.gz", b"\x63\0\x07\0"),
        {"case1.nii": r"its qform_code and sform_code are \(99, 7\); expected 0 to 5"},
    ),
    "fractions in a label": (
        lambda root: changed(root / "labels/case1.nii.gz", lambda image: sitk.Cast(image, sitk.sitkFloat32) + 0.5),
        {"case1.nii.gz": r"holds \d\.5; expected whole numbers"},
    ),
    "a class without those before": (
        lambda root: changed(root / "labels/case1.nii.gz", lambda image: image * 3),
        {"case1.nii.gz": "holds .*6"},
    ),
}


@pytest.mark.parametrize("fault", VOLUMES)
def test_bad_volumes(tmp_path: Path, fault: str) -> None:
    root = write_volumes(tmp_path / "own", 4)
    spoil, expected = VOLUMES[fault]
    spoil(root)
    found = defects_of(root)
    for name, what in expected.items():
        assert re.search(what, found[name]), found


def test_classes_that_nothing_is_learned_of_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_images(tmp_path / "own", 6, classes=3)
    overrides = {"DATA.DATASET": "Folder", "DATA.ROOT_PATH": str(root), "MODEL.NUM_CLASSES": 5}
    assert inspect_data(get_config(overrides=overrides)).model.num_classes == 5
    assert "no training case holds class 3 (class 3), 4 (class 4)" in caplog.text


@pytest.mark.parametrize(
    ("lists", "what"),
    [
        ({"train": "case 0\ncase 9\n"}, "names 'case 9', of which there is no pair"),
        ({"train": "case 0\ncase 1\n"}, r"names 2 cases nowhere \(case 2, case 3\)"),
        ({"train": "../case 0\n"}, "is not a plain name"),
        ({"train": ""}, "the list is empty"),
        (
            {"train": "case 0\ncase 1\ncase 2\n", "test": "case 2\ncase 3\n"},
            "as train.txt does; expected each case once",
        ),
    ],
)
def test_bad_lists(tmp_path: Path, lists: dict[str, str], what: str) -> None:
    root = write_images(tmp_path / "own", 4)
    (root / "lists").mkdir()
    for name, content in lists.items():
        (root / f"lists/{name}.txt").write_text(content)
    assert any(re.search(what, found) for found in defects_of(root).values())


def test_folders_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="images: no such folder; expected .* with images/ and labels/"):
        inspected(tmp_path)
    with pytest.raises(FileNotFoundError, match="data/Folder: no such data folder; make it.*--root_path"):
        locate("Folder")
    root = write_images(tmp_path / "own", 4)
    for name in ("Synapse", "ACDC", "GlaS", "MoNuSeg"):
        with pytest.raises(ValueError, match="own: holds images and labels.*--dataset Folder"):
            locate(name, str(root))
    assert locate("Folder", str(root / "images")) == (root, root / "lists")


def test_a_case_that_went_away_after_the_split(tmp_path: Path) -> None:
    root = write_images(tmp_path / "own", 6)
    config = inspected(root)
    name = (root / "lists/test.txt").read_text(encoding="utf-8").splitlines()[0]
    for part in ("images", "labels"):
        (root / part / f"{name}.png").unlink()
    with pytest.raises(ValueError, match=f"{name}: is named in the list but is not there"):
        open_volumes(config, "test")
