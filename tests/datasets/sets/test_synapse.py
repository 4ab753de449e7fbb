"""Synapse: what is read, what is refused, how cases are listed and split."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from datasets import build_dataset, class_names, inspect, list_datasets, split_cases
from datasets.case import Geometry
from datasets.intensity import Preprocessing
from datasets.sets.synapse import PREPARED, Synapse, slice_path, volume_path, write
from datasets.splits import read_list
from tests.conftest import ROOT, make_case, make_synapse

build = partial(build_dataset, "Synapse", num_classes=9)
IMAGE, LABEL = (array[0] for array in make_case(0, (1, 40, 40)))
GRID = Geometry((0.7, 0.8, 3.0), (-10.5, 20.25, 7.0), (1, 0, 0, 0, -1, 0, 0, 0, -1), "zxy")


def test_splits_as_published() -> None:
    train = read_list(ROOT / "datasets/lists/synapse/train.txt")
    test = read_list(ROOT / "datasets/lists/synapse/test_vol.txt")
    assert len(train) == len(set(train)) == 2211
    cases = {name.split("_")[0] for name in train}
    assert len(cases) == 18 and len(test) == 12 and not cases & set(test)
    assert "case0005_slice116" in train and "case0005_slice117" not in train
    assert "case0040_slice194" in train and "case0040_slice195" not in train


@pytest.mark.parametrize("where", ["", "train_npz", "test_vol_h5"])
def test_the_root_may_be_a_folder_of_it(synapse: Path, where: str) -> None:
    train, test = (build(split, root_path=str(synapse / where)) for split in ("train", "test"))
    assert len(train) == 6 and train[0].name == "case0000_slice000"
    np.testing.assert_array_equal(train[1].image, make_case(0, (3, 40, 40))[0][1])
    assert [volume.name for volume in test] == test.cases == ["case0100"]
    np.testing.assert_array_equal(test[0].label, make_case(100, (3, 40, 40))[1])
    assert (train[0].image.dtype, test[0].image.dtype, test[0].label.dtype) == (np.float32, np.float32, np.uint8)
    (val,) = build("val", root_path=str(synapse / where), val_cases=1)
    np.testing.assert_array_equal(val.label, make_case(1, (3, 40, 40))[1])


def test_geometry_and_types_of_published_files(synapse: Path) -> None:
    image, label = make_case(0, (2, 16, 16))
    path = volume_path(synapse / "test_vol_h5", "case0100")
    write(path, image.astype(np.float64), label.astype(np.float32), GRID)
    (volume,) = build("test", root_path=str(synapse))
    assert volume.geometry == GRID and volume.geometry.array_spacing == (3.0, 0.7, 0.8)
    assert (volume.image.dtype, volume.label.dtype) == (np.float32, np.uint8)
    # LPS to RAS turns the signs of x and y.
    plain = Geometry((2.0, 3.0, 4.0), (10.0, 20.0, 30.0))
    np.testing.assert_array_equal(plain.affine, [[-2, 0, 0, -10], [0, -3, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("known", [True, False])
def test_test_volumes_are_turned_to_where_training_slices_point(synapse: Path, known: bool) -> None:
    image, label = make_case(7, (3, 40, 40))
    grid = Geometry((1.0, 1.0, 3.0), axis_order="zyx", oriented=known)  # along LPS
    write(volume_path(synapse / "test_vol_h5", "case0100"), image, label, grid)
    (volume,) = build("test", root_path=str(synapse), preprocessing=Preprocessing(tuple(range(9)), orientation="RAS"))
    np.testing.assert_array_equal(volume.label, label[:, ::-1, ::-1] if known else label)


def test_lists_are_looked_for_in_order(synapse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def length(**options: str) -> int:
        return len(build("train", root_path=str(synapse), **options))

    assert length() == 6  # the data's own lists
    (tmp_path / "lists/lists_Synapse").mkdir(parents=True)
    (tmp_path / "lists/lists_Synapse/train.txt").write_text("case0000_slice000\ncase0000_slice001\n")
    assert length() == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.txt").write_text("case0000_slice000\n\n")
    assert length(list_dir="mine") == 1
    (tmp_path / "data/Synapse/train_npz").mkdir(parents=True)
    (tmp_path / "lists/lists_Synapse/train.txt").unlink()
    (tmp_path / "lists/lists_Synapse").rmdir()
    with pytest.raises(ValueError, match="case0005_slice000.npz: is named in the list"):
        build("train")  # the split that is shipped


def test_split_cases() -> None:
    names = [f"case{c}_slice{s:03d}" for c in range(4) for s in range(3)]
    group_of = partial(Synapse.group_of, None)
    split = partial(split_cases, group_of=group_of, where=Path("val.txt"))
    assert split(names, [], 0) == (names, [])
    assert split(names, [], 1) == (names[:9], names[9:])
    assert split(names, ["case1"], 0) == (names[:3] + names[6:], names[3:6])
    train, val = split(names, ["case1_slice000", "case9_slice000"], 0)
    assert train == names[:3] + names[6:], "no slice of a validation case trains"
    assert val == [*names[3:6], "case9_slice000"]
    with pytest.raises(ValueError, match="val.txt: names the case case7"):
        split(names, ["case7"], 0)
    with pytest.raises(ValueError, match="--val_cases"):
        split(names, [], 4)


def test_names() -> None:
    assert class_names("Synapse", 9)[0] == "aorta" and len(class_names("Synapse", 9)) == 8
    assert class_names("Synapse", 4) == ["class 1", "class 2", "class 3"]
    assert class_names("Synapse", 3, ("a", "b")) == ["a", "b"]
    assert list_datasets() == ["ACDC", "Folder", "GlaS", "MoNuSeg", "Phantom", "Synapse"]


def with_nan() -> np.ndarray:
    image = IMAGE.copy()
    image[3, 4] = np.nan
    return image


BAD = {
    "shapes": (IMAGE, LABEL[:8], "expected the same shape"),
    "dimensions": (IMAGE[None, None], LABEL[None, None], "dimensions"),
    "nan": (with_nan(), LABEL, "1 NaN or infinite values"),
    "beyond float32": (IMAGE.astype(np.float64) * 1e300, LABEL, "NaN or infinite values"),
    "label high": (IMAGE, np.full((40, 40), 12), "'label' holds 12; expected 0..8"),
    "label negative": (IMAGE, LABEL.astype(np.int8) - 1, "'label' holds -1"),
    "label not whole": (IMAGE, LABEL + 0.5, ".5; expected whole numbers"),
    "empty array": (np.zeros((0, 4)), np.zeros((0, 4)), ""),
    "complex": (IMAGE * 1j, LABEL, ""),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_trained_on_is_refused_by_name(synapse: Path, kind: str, split: str) -> None:
    image, label, expected = BAD[kind]
    path = slice_path(synapse / "train_npz", "case0000_slice001")
    if split == "test":
        path, image, label = volume_path(synapse / "test_vol_h5", "case0100"), image[None], label[None]
    write(path, image, label)
    data = build(split, root_path=str(synapse))
    with pytest.raises(ValueError) as caught:
        list(data)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and expected in message and "\n" not in message


def test_labels_that_are_nearly_whole_are_taken(synapse: Path) -> None:
    write(slice_path(synapse / "train_npz", "case0000_slice000"), IMAGE, LABEL - 1e-6)
    np.testing.assert_array_equal(build("train", root_path=str(synapse))[0].label, LABEL)


def test_missing_things(tmp_path: Path, synapse: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent: no such data folder.*--root_path"):
        build("train", root_path=str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="nolists: no such folder of lists.*--list_dir"):
        build("train", root_path=str(synapse), list_dir=str(tmp_path / "nolists"))
    with pytest.raises(ValueError, match="--dataset is 'Synapsy'; expected one of ACDC, Folder, GlaS"):
        build_dataset("Synapsy", "train", num_classes=9)
    (synapse / "lists/test_vol.txt").write_text("case0100\ncase0100.npy.h5\n")
    with pytest.raises(ValueError, match="case0100.npy.h5: is named in the list more than once"):
        build("test", root_path=str(synapse))
    slice_path(synapse / "train_npz", "case0001_slice001").unlink()
    with pytest.raises(ValueError, match="case0001_slice001.npz: is named in the list but is not there"):
        build("train", root_path=str(synapse))
    (synapse / "lists/train.txt").unlink()
    with pytest.raises(FileNotFoundError, match="train.txt: no such list"):
        build("train", root_path=str(synapse))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "list is empty"),
        (b"\n \n", "list is empty"),
        (b"a\nb\na\n", "names a more than once"),
        (b"../x\n", "'../x' is not a plain name"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"a" * 300, "a name of 300 letters"),
    ],
)
def test_bad_lists(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=expected) as caught:
        read_list(path)
    assert str(path) in str(caught.value)
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert read_list(path) == ["a", "b"]


def test_inspecting_tells_axes_and_scaling(synapse: Path) -> None:
    def keys() -> dict[str, object]:
        return inspect("Synapse", root_path=str(synapse), how=Preprocessing())

    assert {key for key, value in keys().items() if value} == {"DATA.ROOT_PATH", "DATA.VOLUME_PATH", "DATA.LIST_DIR"}
    for name in read_list(synapse / "lists/train.txt"):
        write(slice_path(synapse / "train_npz", name), IMAGE, LABEL, GRID)
    (synapse / f"lists/{PREPARED}").write_text('{"intensity": "window", "window": [-100, 200], "axis_order": "zyx"}')
    found = keys()
    assert found["DATA.ORIENTATION"] == "LAI"
    assert (found["DATA.INTENSITY"], found["DATA.WINDOW"], found["DATA.AXIS_ORDER"]) == ("window", [-100, 200], "zyx")
    (synapse / f"lists/{PREPARED}").write_text('{"intensity": "window"')
    with pytest.raises(ValueError, match=f"{PREPARED}: is not understood"):
        keys()


def test_one_slice_is_a_case(tmp_path: Path) -> None:
    root = make_synapse(tmp_path / "d", train=1, shape=(1, 16, 16))
    assert len(build("train", root_path=str(root))) == 1
    assert build("test", root_path=str(root))[0].image.shape == (1, 16, 16)
