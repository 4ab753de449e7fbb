"""A folder of one's own: paired, looked through, split once; and all that may be wrong with it, told together."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from datasets.pairs import find_pairs
from PIL import Image

from datasets import build_dataset, check_quick, inspect, locate, reading
from datasets.base import Defects
from datasets.sets.folder import look_through as look
from tests.own_data import picture, volume, write_nifti, write_pictures, write_volumes


def looked_at(root: Path, **options: object) -> dict:
    return inspect("Folder", root_path=str(root), **options)


def dataset(root: Path, split: str, **options: object) -> object:
    facts = looked_at(root)
    how = reading(
        channels=facts["MODEL.IN_CHANNELS"],
        label_values=facts["DATA.LABEL_VALUES"],
        intensity=facts["DATA.INTENSITY"],
        axis_order=facts["DATA.AXIS_ORDER"],
        orientation=facts.get("DATA.ORIENTATION", ""),
    )
    number = facts["MODEL.NUM_CLASSES"]
    return build_dataset("Folder", split, num_classes=number, root_path=str(root), preprocessing=how, **options)


def defects_of(root: Path, **options: object) -> dict[str, str]:
    """What is wrong, by the name of the file; nothing may have been written."""
    before = sorted(root.rglob("*"))
    with pytest.raises(Defects) as raised:
        look(root, root / "lists", **options)
    assert sorted(root.rglob("*")) == before
    found: dict[str, str] = {}
    for defect in raised.value.defects:
        found[defect.path.name] = f"{found.get(defect.path.name, '')} {defect.what}"
    return found


def test_pictures_say_what_they_are(tmp_path: Path) -> None:
    facts = looked_at(write_pictures(tmp_path / "own"))
    assert facts["MODEL.NUM_CLASSES"] == 2 and facts["DATA.LABEL_VALUES"] == [0, 255]
    assert facts["MODEL.IN_CHANNELS"] == 3 and facts["DATA.INTENSITY"] == "range"


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF"])
def test_pictures_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    root = write_pictures(tmp_path / "own", classes=4, suffix=suffix)
    found = {}
    for split in ("train", "val", "test"):
        for item in dataset(root, split):
            found[item.name] = item
    assert len(found) == 10
    for index in range(10):
        image, mask = picture(index, classes=4)
        item = found[f"case {index}"]
        squeezed = (item.image[0], item.label[0]) if item.image.ndim == 4 else (item.image, item.label)
        np.testing.assert_array_equal(squeezed[0], np.moveaxis(image, 2, 0) / np.float32(255))
        np.testing.assert_array_equal(squeezed[1], mask)


def test_the_split_is_made_once(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "own", 20)
    looked_at(root)
    lists = {p.name: p.read_text(encoding="utf-8").split("\n")[:-1] for p in sorted((root / "lists").glob("*.txt"))}
    assert [len(lists[f"{part}.txt"]) for part in ("train", "val", "test")] == [14, 2, 4]
    assert sorted(sum(lists.values(), [])) == sorted(f"case {i}" for i in range(20))
    (root / "lists/train.txt").write_text("\n".join([*lists["train.txt"], *lists["val.txt"]]))
    (root / "lists/val.txt").unlink()
    assert len(dataset(root, "train")) == 16 and len(dataset(root, "val")) == 0 and len(dataset(root, "test")) == 4
    assert len(dataset(root, "val", val_cases=3)) == 3


def test_a_second_look_takes_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.looks

    root = write_pictures(tmp_path / "own")
    first, seen, read = looked_at(root), [], datasets.looks.look_at
    monkeypatch.setattr(datasets.looks, "look_at", lambda pair, *how: [seen.append(pair.name), read(pair, *how)][1])
    assert looked_at(root) == first and not seen
    image, mask = picture(77)
    Image.fromarray(mask * 255).save(root / "labels/case 3.png", compress_level=1)
    assert looked_at(root) == first and seen == ["case 3"]
    (root / "lists/looked.json").write_text("{")
    assert looked_at(root) == first and len(seen) == 11


def test_a_rare_class_is_trained_on(tmp_path: Path) -> None:
    """Whichever case holds it: the split is drawn until it does."""
    for rare in range(6):
        root = write_pictures(tmp_path / f"own{rare}", 6)
        for index in range(6):
            mask = picture(index)[1] + (index == rare)  # 1, 2 where it is rare; no background there
            Image.fromarray(mask).save(root / f"labels/case {index}.png")
        assert looked_at(root)["MODEL.NUM_CLASSES"] == 3
        assert f"case {rare}" in (root / "lists/train.txt").read_text(encoding="utf-8")


def test_volumes_are_sliced_along_their_coarsest_axis_in_one_orientation(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "own", 4, orientations=("LPS", "RAS", "PIR", "ASL"))
    facts = looked_at(root)
    assert facts["DATA.AXIS"] == "z" and facts["DATA.AXIS_ORDER"] == "zyx" and facts["DATA.INTENSITY"] == "percentile"
    assert facts["MODEL.NUM_CLASSES"] == 3 and facts["MODEL.IN_CHANNELS"] == 1
    train = dataset(root, "train")
    check_quick(train)
    assert (root / "cache").is_dir() and len(train) == 6 * 3
    slices = {sample.name: sample for sample in train}
    for name in (root / "lists/train.txt").read_text(encoding="utf-8").split():
        image, label = volume(int(name[-1]))
        low, high = np.percentile(image, [0.5, 99.5])
        for index in range(6):
            sample = slices[f"{name}_slice{index:03d}"]
            np.testing.assert_allclose(sample.image, ((image[index] - low) / (high - low)).clip(0, 1), atol=1e-6)
            np.testing.assert_array_equal(sample.label, label[index])
    (tested,) = dataset(root, "test")
    np.testing.assert_array_equal(tested.label, volume(int(tested.name[-1]))[1])
    assert tested.geometry.array_spacing == (3.0, 1.0, 1.0)


@pytest.mark.parametrize("axis, moved", [("x", 2), ("y", 1), ("z", 0)])
def test_an_axis_of_ones_own(tmp_path: Path, axis: str, moved: int) -> None:
    root = write_volumes(tmp_path / "own", 2)
    assert look(root, root / "lists", axis=axis).axis == axis
    facts = looked_at(root, axis=axis)
    how = {"label_values": (0, 1, 2), "intensity": "percentile", "orientation": "LPS"}
    how["axis_order"] = facts["DATA.AXIS_ORDER"]
    (tested,) = build_dataset("Folder", "test", num_classes=3, root_path=str(root), preprocessing=reading(**how))
    expected = np.moveaxis(volume(int(tested.name[-1]))[1], moved, 0)
    np.testing.assert_array_equal(tested.label, expected)


def test_names_of_nnunet(tmp_path: Path) -> None:
    root = write_volumes(tmp_path / "own", 2)
    for path in (root / "images").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    assert [pair.name for pair in find_pairs(root)] == ["case0", "case1"]


# Bad input: how a good folder is spoilt, and what is said, by file.
PICTURES: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "unpaired": (
        lambda root: [(root / "labels/case 1.png").unlink(), (root / "images/case 2.png").unlink()],
        {"case 1.png": "has no label in labels/", "case 2.png": "has no image in images/"},
    ),
    "two of a name": (
        lambda root: Image.fromarray(picture(1)[0]).save(root / "images/case 1.bmp"),
        {"case 1.png": "has the name of case 1.bmp"},
    ),
    "another kind": (
        lambda root: [(root / "images/notes.docx").touch(), (root / "labels/inside").mkdir()],
        {"notes.docx": "is neither a picture nor a volume", "inside": "is neither a picture nor a volume"},
    ),
    "volumes beside pictures": (
        lambda root: [write_nifti(root / part / "v.nii", volume(0)[0]) for part in ("images", "labels")],
        {"v.nii": "stands beside files of another kind"},
    ),
    "sizes": (
        lambda root: Image.fromarray(picture(1, (40, 50))[1] * 255).save(root / "labels/case 1.png"),
        {"case 1.png": r"has \(40, 50\) pixels but case 1.png \(40, 48\)"},
    ),
    "RGBA, CMYK, palette": (
        lambda root: [
            Image.fromarray(picture(1)[0]).convert("RGBA").save(root / "images/case 1.png"),
            Image.fromarray(picture(2)[1]).convert("P").save(root / "labels/case 2.png"),
            (root / "images/case 3.png").unlink(),
            Image.fromarray(picture(3)[0]).convert("CMYK").save(root / "images/case 3.tif"),
        ],
        {"case 1.png": "RGBA", "case 2.png": "palette", "case 3.tif": "CMYK"},
    ),
    "grey among colours": (
        lambda root: Image.fromarray(picture(1)[0][..., 0]).save(root / "images/case 1.png"),
        {"case 1.png": "has 1 channels but most have 3"},
    ),
    "stray values": (
        lambda root: Image.fromarray(picture(1)[1] * 77).save(root / "labels/case 1.png"),
        {"case 1.png": "holds 77; expected 0 and 255"},
    ),
    "JPEG noise": (
        lambda root: [
            (root / "labels/case 1.png").unlink(),
            Image.fromarray(np.roll(picture(1)[1], 3) * 255).save(root / "labels/case 1.jpg", quality=60),
        ],
        {"case 1.jpg": "JPEG"},
    ),
    "a coloured mask": (
        lambda root: Image.fromarray(picture(1)[0]).save(root / "labels/case 1.png"),
        {"case 1.png": "is coloured"},
    ),
    "damaged": (
        lambda root: [
            (root / f"{part}/case {i}.png").write_bytes((root / f"{part}/case {i}.png").read_bytes()[:90])
            for i, part in ((1, "images"), (2, "labels"))
        ],
        {"case 1.png": "is no readable picture", "case 2.png": "is no readable picture"},
    ),
    "empty": (
        lambda root: [path.unlink() for part in ("images", "labels") for path in (root / part).iterdir()],
        {"images": "is empty; expected pictures"},
    ),
    "one case": (
        lambda root: [path.unlink() for path in [*root.glob("*/case*")] if "1" not in path.stem],
        {"own": "holds one case; expected two at least"},
    ),
    "a name that is a way out": (
        lambda root: (root / "images/case 1.png").rename(root / "images/~case;1.png"),
        {"~case;1.png": "is not a plain name"},
    ),
}


@pytest.mark.parametrize("fault", PICTURES)
def test_bad_pictures(tmp_path: Path, fault: str) -> None:
    root = write_pictures(tmp_path / "own", 6)
    spoil, expected = PICTURES[fault]
    spoil(root)
    found = defects_of(root)
    assert set(expected) <= set(found)
    for name, what in expected.items():
        assert re.search(what, found[name]), found[name]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("thin", [0, 2])
def test_volumes_of_one_slice_and_of_every_format(tmp_path: Path, thin: int, suffix: str) -> None:
    root = write_volumes(tmp_path / "own", 4)
    for path in root.glob("*/*.nii.gz"):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image[:, :, 1:2] if thin == 2 else image[1:2], str(path.with_name(path.name[:-7] + suffix)))
        if suffix != ".nii.gz":
            path.unlink()
    assert looked_at(root)["DATA.AXIS"] == "z"
    shape = (24, 28) if thin == 2 else (6, 24)
    assert {sample.label.shape for sample in dataset(root, "train")} == {shape}
    (tested,) = dataset(root, "test")
    assert tested.image.shape == (1, *shape)
    planes = volume(int(tested.name[-1]))[1][:, :, 1] if thin == 0 else volume(int(tested.name[-1]))[1][1]
    np.testing.assert_array_equal(tested.label[0], planes)


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
    "NaN": (lambda root: changed(root / "images/case1.nii.gz", with_nan), {"case1.nii.gz": "holds 1 NaN"}),
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


def test_faults_of_many_files_are_told_together(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "own", 8)
    for index in (1, 3, 5):
        Image.fromarray(picture(index)[1] * 99).save(root / f"labels/case {index}.png")
    found = defects_of(root)
    assert list(found) == ["case 1.png", "case 3.png", "case 5.png"]


def test_channels_that_were_asked_for(tmp_path: Path) -> None:
    """Every image that has others is named, and no split is written."""
    found = defects_of(write_pictures(tmp_path / "own", 4), channels=1)
    assert len(found) == 4 and all("has 3 channels but MODEL.IN_CHANNELS is 1" in what for what in found.values())


def test_classes_that_nothing_is_learnt_of(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "own", 6, classes=3)
    found = defects_of(root, num_classes=5)
    assert "no training case holds class 3, 4; expected all of 1..4" in found["own"]
    (root / "lists").mkdir()
    Image.fromarray(picture(5)[1] + 2).save(root / "labels/case 5.png")  # alone holds class 3, 4
    (root / "lists/train.txt").write_text("".join(f"case {i}\n" for i in range(5)))
    (root / "lists/test.txt").write_text("case 5\n")
    assert "no training case holds class 3" in defects_of(root)["lists"]


@pytest.mark.parametrize(
    "content, what",
    [
        ("case 0\ncase 9\n", "names 'case 9', of which there is no pair"),
        ("case 0\ncase 1\n", "is in none of the lists"),
        ("../case 0\n", "is not a plain name"),
        ("", "the list is empty"),
    ],
)
def test_bad_lists(tmp_path: Path, content: str, what: str) -> None:
    root = write_pictures(tmp_path / "own", 4)
    (root / "lists").mkdir()
    (root / "lists/train.txt").write_text(content)
    with pytest.raises(ValueError, match=what):
        look(root, root / "lists")


def test_a_case_in_two_lists(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "own", 4)
    looked_at(root)
    shutil.copy(root / "lists/train.txt", root / "lists/test.txt")
    assert "as train.txt does; expected each case once" in defects_of(root)["test.txt"]


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="images: no such folder; expected .* with images/ and labels/"):
        look(tmp_path, tmp_path / "lists")
    with pytest.raises(FileNotFoundError, match="data/Folder: no such data folder; make it.*--root_path"):
        locate("Folder")


def test_a_case_that_went_away_after_the_split(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "own", 6)
    dataset(root, "train")
    name = (root / "lists/test.txt").read_text(encoding="utf-8").splitlines()[0]
    for part in ("images", "labels"):
        (root / part / f"{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: is named in the list but is not there"):
        build_dataset("Folder", "test", num_classes=2, root_path=str(root), preprocessing=reading(intensity="range"))
