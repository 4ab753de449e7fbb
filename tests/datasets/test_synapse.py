"""The Synapse layout: what is read, what is refused, how cases are split."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets import build_dataset, check_all, class_names, list_datasets, split_cases
from datasets.base import Geometry, read_list
from datasets.sets.synapse import (
    StackedSlices,
    case_of,
    read_slice,
    read_volume,
    slice_path,
    volume_path,
    write,
)
from tests.conftest import ROOT, make_case, make_synapse


def test_splits_as_published() -> None:
    train = read_list(ROOT / "datasets/splits/synapse/train.txt")
    test = read_list(ROOT / "datasets/splits/synapse/test_vol.txt")
    assert len(train) == len(set(train)) == 2211
    cases = {name.split("_")[0] for name in train}
    assert len(cases) == 18 and len(test) == 12 and not cases & set(test)
    assert "case0005_slice116" in train and "case0005_slice117" not in train
    assert "case0040_slice194" in train and "case0040_slice195" not in train


def test_round_trip(tmp_path: Path) -> None:
    image, label = make_case(0, (4, 20, 24))
    geometry = Geometry((0.7, 0.8, 3.0), (-10.5, 20.25, 7.0), (1, 0, 0, 0, -1, 0, 0, 0, -1), "zxy")
    write(slice_path(tmp_path, "a_slice000"), image[0], label[0], geometry)
    write(volume_path(tmp_path, "a"), image, label, geometry)
    got_image, got_label = read_slice(slice_path(tmp_path, "a_slice000"), 9)
    np.testing.assert_array_equal(got_image, image[0])
    np.testing.assert_array_equal(got_label, label[0])
    volume = read_volume(volume_path(tmp_path, "a"), 9)
    np.testing.assert_array_equal(volume.image, image)
    np.testing.assert_array_equal(volume.label, label)
    assert (volume.name, volume.geometry) == ("a", geometry)
    assert volume.geometry.array_spacing == (3.0, 0.7, 0.8)


def test_affine_is_nifti_s() -> None:
    geometry = Geometry((2.0, 3.0, 4.0), (10.0, 20.0, 30.0))
    # LPS to RAS turns the signs of x and y.
    np.testing.assert_array_equal(geometry.affine, [[-2, 0, 0, -10], [0, -3, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]])


def test_published_files_hold_only_image_and_float_label(tmp_path: Path) -> None:
    image, label = make_case(0, (2, 16, 16))
    np.savez(tmp_path / "s.npz", image=image[0].astype(np.float64), label=label[0].astype(np.float32))
    got_image, got_label = read_slice(tmp_path / "s.npz", 9)
    assert (got_image.dtype, got_label.dtype) == (np.float32, np.uint8)
    with h5py.File(tmp_path / "v.npy.h5", "w") as file:
        file["image"], file["label"] = image, label.astype(np.float32)
    volume = read_volume(tmp_path / "v.npy.h5", 9)
    assert volume.label.dtype == np.uint8 and volume.geometry is None


@pytest.mark.parametrize("where", ["root", "part"])
def test_build(synapse: Path, where: str) -> None:
    train = build_dataset(
        "Synapse", "train", num_classes=9, root_path=str(synapse if where == "root" else synapse / "train_npz")
    )
    assert len(train) == 6 and train[0].image.shape == (40, 40) and train[0].name == "case0000_slice000"
    test = build_dataset(
        "Synapse", "test", num_classes=9, root_path=str(synapse if where == "root" else synapse / "test_vol_h5")
    )
    assert [v.name for v in test] == ["case0100"] and test[0].image.shape == (3, 40, 40)
    val = build_dataset("Synapse", "val", num_classes=9, root_path=str(synapse), val_cases=1)
    assert [v.name for v in val] == ["case0001"]
    np.testing.assert_array_equal(val[0].label, make_case(1, (3, 40, 40))[1])
    check_all(train)
    check_all(test)


def test_lists_are_looked_for_in_order(synapse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def length(**options: str) -> int:
        return len(build_dataset("Synapse", "train", num_classes=9, root_path=str(synapse), **options))

    assert length() == 6  # the data's own lists
    (tmp_path / "lists/lists_Synapse").mkdir(parents=True)
    (tmp_path / "lists/lists_Synapse/train.txt").write_text("case0000_slice000\ncase0000_slice001\n")
    assert length() == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.txt").write_text("case0000_slice000\n\n")
    assert length(list_dir="mine") == 1


def test_the_shipped_split_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/Synapse/train_npz").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="case0005_slice000.npz: is named in the list"):
        build_dataset("Synapse", "train", num_classes=9)


def test_split_cases() -> None:
    names = [f"case{c}_slice{s:03d}" for c in range(4) for s in range(3)]
    split = partial(split_cases, case_of=case_of, where="val.txt")
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


def test_stacked_slices_are_in_order(synapse: Path) -> None:
    train = build_dataset("Synapse", "train", num_classes=9, root_path=str(synapse))
    train.names.reverse()
    stacked = StackedSlices(train)
    np.testing.assert_array_equal(stacked[0].image, make_case(0, (3, 40, 40))[0])


def test_one_slice_one_case(tmp_path: Path) -> None:
    root = make_synapse(tmp_path / "d", train=1, shape=(1, 16, 16))
    assert len(build_dataset("Synapse", "train", num_classes=9, root_path=str(root))) == 1
    assert build_dataset("Synapse", "test", num_classes=9, root_path=str(root))[0].image.shape == (1, 16, 16)


def test_names() -> None:
    assert class_names("Synapse", 9)[0] == "aorta" and len(class_names("Synapse", 9)) == 8
    assert class_names("Synapse", 4) == ["class 1", "class 2", "class 3"]
    assert list_datasets() == ["ACDC", "Folder", "GlaS", "MoNuSeg", "Phantom", "Synapse"]


# Bad files: each a ValueError or FileNotFoundError of one line that names the file and says what was expected.

IMAGE, LABEL = (array[0] for array in make_case(0, (1, 16, 16)))


def savez(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def with_nan() -> np.ndarray:
    image = IMAGE.copy()
    image[3, 4] = np.nan
    return image


BAD_SLICES = {
    "no image": (savez(label=LABEL), "holds no 'image'; found label"),
    "no label": (savez(image=IMAGE), "holds no 'label'; found image"),
    "shapes": (savez(image=IMAGE, label=LABEL[:8]), "(16, 16) but 'label' (8, 16)"),
    "rank": (savez(image=IMAGE[None], label=LABEL[None]), "expected 2 dimensions"),
    "nan": (savez(image=with_nan(), label=LABEL), "1 NaN or infinite"),
    "nan label": (savez(image=IMAGE, label=with_nan()), "'label' holds NaN"),
    "label high": (savez(image=IMAGE, label=np.full_like(LABEL, 9)), "'label' holds 9; expected 0..8"),
    "label low": (savez(image=IMAGE, label=np.full(LABEL.shape, -1)), "'label' holds -1"),
    "label fraction": (savez(image=IMAGE, label=np.full(LABEL.shape, 0.5)), "'label' holds 0.5"),
    "text array": (savez(image=np.full((16, 16), "a"), label=LABEL), "expected numbers"),
    "objects": (savez(image=np.full((16, 16), None), label=LABEL), "has dtype object; expected numbers"),
    "empty array": (savez(image=np.zeros((0, 4)), label=np.zeros((0, 4))), "at least one pixel"),
    "empty file": (lambda path: path.write_bytes(b""), "not a readable npz"),
    "text": (lambda path: path.write_text("hello"), "not a readable npz"),
    "bare npy": (
        lambda path: np.save(path.with_suffix(".npy"), IMAGE) or path.with_suffix(".npy").rename(path),
        "not a readable npz",
    ),
}


@pytest.mark.parametrize("kind", BAD_SLICES)
def test_bad_slices(tmp_path: Path, kind: str) -> None:
    write, expected = BAD_SLICES[kind]
    path = tmp_path / "bad.npz"
    write(path)
    with pytest.raises(ValueError) as caught:
        read_slice(path, 9)
    message = str(caught.value)
    assert message.startswith(str(path)) and expected in message and "\n" not in message


def test_truncated_and_flipped_slices(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    write(path, IMAGE, LABEL)
    whole = path.read_bytes()
    for length in range(1, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable npz"):
            read_slice(path, 9)
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            read_slice(path, 9)
        except ValueError as error:
            assert str(error).startswith(str(path))


def h5(**arrays: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value

    return write


BAD_VOLUMES = {
    "no image": (h5(label=LABEL[None]), "holds no 'image'; found label"),
    "no label": (h5(image=IMAGE[None]), "holds no 'label'"),
    "shapes": (h5(image=IMAGE[None], label=LABEL[None, :8]), "expected the same shape"),
    "rank": (h5(image=IMAGE, label=LABEL), "expected 3 dimensions"),
    "nan": (h5(image=with_nan()[None], label=LABEL[None]), "NaN"),
    "label high": (h5(image=IMAGE[None], label=np.full((1, 16, 16), 12)), "'label' holds 12"),
    "text": (lambda path: path.write_text("hello"), "not a readable h5"),
    "geometry": (
        h5(image=IMAGE[None], label=LABEL[None], spacing=[1.0], origin=[0.0] * 3, direction=[0.0] * 9),
        "geometry is not understood",
    ),
    "group": (lambda path: h5py.File(path, "w").create_group("image").file.close(), "holds no 'image'"),
}


@pytest.mark.parametrize("kind", BAD_VOLUMES)
def test_bad_volumes(tmp_path: Path, kind: str) -> None:
    write, expected = BAD_VOLUMES[kind]
    path = tmp_path / "bad.npy.h5"
    write(path)
    with pytest.raises(ValueError) as caught:
        read_volume(path, 9)
    message = str(caught.value)
    assert message.startswith(str(path)) and expected in message and "\n" not in message


def test_truncated_volume(tmp_path: Path) -> None:
    path = tmp_path / "v.npy.h5"
    write(path, *make_case(0, (2, 16, 16)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="not a readable h5"):
        read_volume(path, 9)


def test_no_flipped_bit_of_a_written_label_goes_unseen(tmp_path: Path) -> None:
    """HDF5 unpacks a damaged lzf block to whatever lies in memory; a checksum stands before that."""
    path = tmp_path / "v.npy.h5"
    write(path, *make_case(0, (2, 16, 16)))
    with h5py.File(path) as file:
        chunk = file["label"].id.get_chunk_info(0)
    whole = path.read_bytes()
    for place in range(chunk.byte_offset, chunk.byte_offset + chunk.size):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a readable h5"):
            read_volume(path, 9)


def test_missing_things(tmp_path: Path, synapse: Path) -> None:
    def build(**options: object) -> None:
        build_dataset(**{"name": "Synapse", "split": "train", "num_classes": 9, "root_path": str(synapse), **options})

    with pytest.raises(FileNotFoundError, match="absent: no such data folder.*--root_path"):
        build(root_path=str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="nolists: no such folder of lists.*--list_dir"):
        build(list_dir=str(tmp_path / "nolists"))
    with pytest.raises(
        ValueError, match="--dataset is 'Synapsy'; expected one of ACDC, Folder, GlaS, MoNuSeg, Phantom, Synapse"
    ):
        build(name="Synapsy")
    slice_path(synapse / "train_npz", "case0001_slice001").unlink()
    with pytest.raises(FileNotFoundError, match="case0001_slice001.npz: is named in the list but is not there"):
        build()
    volume_path(synapse / "test_vol_h5", "case0100").unlink()
    with pytest.raises(FileNotFoundError, match="case0100.npy.h5: is named in the list but is not there"):
        build(split="test")
    (synapse / "lists/train.txt").unlink()
    with pytest.raises(FileNotFoundError, match="train.txt: no such list"):
        build()


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "list is empty"),
        (b"\n \n", "list is empty"),
        (b"a\nb\na\n", "names a more than once"),
        (b"../x\n", "'../x' is not a plain name"),
        (b"a/b\n", "not a plain name"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"..\n", "plain name"),
    ],
)
def test_bad_lists(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=expected) as caught:
        read_list(path)
    assert str(path) in str(caught.value)


def test_check_all_finds_the_one_bad_file(synapse: Path) -> None:
    np.savez(slice_path(synapse / "train_npz", "case0001_slice002"), image=with_nan(), label=LABEL)
    with pytest.raises(ValueError, match="case0001_slice002.npz"):
        check_all(build_dataset("Synapse", "train", num_classes=9, root_path=str(synapse)))


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    assert read_list(tmp_path / "train.txt") == ["a", "b"]


def test_a_case_by_two_names_is_one_case(synapse: Path) -> None:
    (synapse / "lists/test_vol.txt").write_text("case0100\ncase0100.npy.h5\n")
    with pytest.raises(ValueError, match="case0100.npy.h5: is named in the list more than once"):
        build_dataset("Synapse", "test", num_classes=9, root_path=str(synapse))


BAD_GEOMETRY = [
    {"spacing": (0.0, 1.0, 1.0)},
    {"spacing": (float("nan"), 1.0, 1.0)},
    {"direction": (0.0,) * 9},
    {"origin": (float("nan"), 0.0, 0.0)},
]


@pytest.mark.parametrize("change", BAD_GEOMETRY)
def test_impossible_geometry(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "v.npy.h5"
    write(path, IMAGE[None], LABEL[None], Geometry(**change))
    with pytest.raises(ValueError, match="geometry is not understood"):
        read_volume(path, 9)


def test_an_archive_of_other_things(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as file:
        file.writestr("image", b"abc")
        file.writestr("label", b"")
    with pytest.raises(ValueError, match="holds no 'image'|not a readable npz"):
        read_slice(tmp_path / "s.npz", 9)


# Files that claim more than they hold, or reach for other files.


def npy(shape: str, descr: str = "<f4", body: bytes = b"") -> bytes:
    """An .npy file of which the header says what it likes."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


CLAIMS = {
    "terabytes": (npy("(1000000, 1000000)"), "claims the shape (1000000, 1000000); expected"),
    "gigabyte": (npy("(30000, 30000)", "|u1"), "claims the shape (30000, 30000); expected"),
    "megabytes": (npy("(8000, 8000)", "|u1"), "claims the shape (8000, 8000) and holds"),
    "text": (npy("(1, 1)", "|S2000000000"), "has dtype |S2000000000; expected numbers"),
    "short": (npy("(4, 4)", "<f4", bytes(63)), "'image' of shape (4, 4) takes 64 bytes, and"),
    "long": (npy("(4, 4)", "<f4", bytes(65)), "'image' of shape (4, 4) takes 64 bytes, and"),
    "negative": (npy("(-4, -4)", "<f4", bytes(64)), "not a readable npz"),
    "code": (npy("(open('ran', 'w'), 4)"), "not a readable npz"),
    "deep": (npy("(" * 9000), "not a readable npz"),
    "endless": (npy("(4, 4), 'more': '" + "x" * 20000 + "'"), "not a readable npz"),
    "halves": (npy("(1.5, 1.5)"), "not a readable npz"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_slice_that_claims_what_it_does_not_hold(tmp_path: Path, kind: str) -> None:
    content, expected = CLAIMS[kind]
    path = tmp_path / "s.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image.npy", content)
        file.writestr("label.npy", content)
    with pytest.raises(ValueError) as caught:
        read_slice(path, 9)
    assert str(caught.value).startswith(str(path)) and expected in str(caught.value)
    assert not Path("ran").exists()


def test_a_slice_that_python_2_wrote_is_read_without_a_warning(tmp_path: Path, recwarn: list) -> None:
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as file:
        for key in ("image", "label"):
            file.writestr(f"{key}.npy", npy("(2L, 3L)", "|u1", bytes(6)))
    assert read_slice(tmp_path / "s.npz", 9)[0].shape == (2, 3)
    assert not recwarn


def test_a_slice_packed_by_bzip2_is_refused(tmp_path: Path) -> None:
    """It makes 40 million bytes of one."""
    with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("image.npy", npy("(4, 4)", "<f4", bytes(64)))
        file.writestr("label.npy", npy("(4, 4)", "<f4", bytes(64)))
    with pytest.raises(ValueError, match="'image' is packed in an unusual way"):
        read_slice(tmp_path / "s.npz", 9)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_every_order_are_read_and_may_be_written_to(tmp_path: Path, save: Callable) -> None:
    image = np.asfortranarray(np.random.default_rng(0).normal(size=(5, 7)).astype(">f8"))
    save(tmp_path / "s.npz", image=image, label=np.zeros((5, 7), np.int64))
    got, label = read_slice(tmp_path / "s.npz", 9)
    np.testing.assert_array_equal(got, image.astype(np.float32))
    write(tmp_path / "t.npz", got, label)
    for array in read_slice(tmp_path / "t.npz", 9):
        array[:] = 1  # torch warns of arrays that are read-only


def volume_with(path: Path, key: str, make: Callable[[h5py.File], object]) -> None:
    write(path, IMAGE[None], LABEL[None], Geometry())
    with h5py.File(path, "r+") as file:
        file.pop(key)
        make(file)


def virtual(file: h5py.File, source: Path) -> None:
    layout = h5py.VirtualLayout((1, 16, 16), "f4")
    layout[...] = h5py.VirtualSource(str(source), "image", (1, 16, 16))
    file.create_virtual_dataset("image", layout)


@pytest.mark.parametrize("key", ["image", "spacing", "axis_order"])
@pytest.mark.parametrize("target", ["pipe", "other.h5"])
def test_a_volume_does_not_reach_for_other_files(tmp_path: Path, key: str, target: str) -> None:
    """A pipe that nobody writes to would hold the run for ever."""
    path, other = tmp_path / "v.npy.h5", tmp_path / target
    os.mkfifo(other) if target == "pipe" else write(other, IMAGE[None], LABEL[None], Geometry())

    def refused(make: Callable[[h5py.File], object], expected: str) -> None:
        volume_with(path, key, make)
        with pytest.raises(ValueError, match=expected) as caught:
            read_volume(path, 9)
        assert str(caught.value).startswith(f"{path}: ")

    refused(lambda file: file.__setitem__(key, h5py.ExternalLink(str(other), key)), f"'{key}' is a link")
    refused(lambda file: file.__setitem__(key, h5py.SoftLink("/label")), f"'{key}' is a link")
    refused(lambda file: file.__setitem__(key, h5py.SoftLink(f"/{key}")), f"'{key}' is a link")
    if key == "image":
        refused(lambda file: virtual(file, other), "'image' lies in another file")
        refused(lambda file: virtual(file, Path(".")), "'image' lies in another file")
        stored = [(str(other), 0, h5py.h5f.UNLIMITED)]
        refused(lambda file: file.create_dataset(key, (1, 16, 16), "u1", external=stored), "lies in another file")


H5_CLAIMS = {
    "terabytes": ("image", {"shape": (10**4,) * 3, "dtype": "f4", "chunks": (1, 64, 64)}, "claims the shape"),
    "nothing": ("label", {"shape": (1, 16, 16), "dtype": "u1"}, "claims the shape (1, 16, 16) and holds 0 bytes"),
    "lists": ("image", {"shape": (1, 16, 16), "dtype": h5py.vlen_dtype(np.float32)}, "expected numbers"),
    "geometry": ("spacing", {"shape": (10**12,), "dtype": "f8", "chunks": (99,)}, "'spacing' claims the shape"),
    "empty": ("origin", {"shape": None, "dtype": "f8"}, "holds no 'origin'"),
    "complex": ("direction", {"data": np.ones(9, complex)}, "'direction' has dtype complex128; expected numbers"),
    "no text": ("axis_order", {"data": 3}, "'axis_order' is not a short text"),
    "long text": ("axis_order", {"data": np.bytes_("z" * 99)}, "'axis_order' is not a short text"),
}


@pytest.mark.parametrize("kind", H5_CLAIMS)
def test_a_volume_that_claims_what_it_does_not_hold(tmp_path: Path, kind: str) -> None:
    key, options, expected = H5_CLAIMS[kind]
    path = tmp_path / "v.npy.h5"
    volume_with(path, key, lambda file: file.create_dataset(key, **options))
    with pytest.raises(ValueError) as caught:
        read_volume(path, 9)
    assert str(caught.value).startswith(str(path)) and expected in str(caught.value)


def test_axis_order_as_h5py_writes_text(tmp_path: Path) -> None:
    volume_with(tmp_path / "v.npy.h5", "axis_order", lambda file: file.create_dataset("axis_order", data="zxy"))
    assert read_volume(tmp_path / "v.npy.h5", 9).geometry.axis_order == "zxy"


def test_a_list_without_end_or_with_endless_names(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    for content, expected in (("a" * 10**6, "a name of 1000000 letters"), ("\0" * 10**6, "is not a plain name")):
        path.write_text(content)
        with pytest.raises(ValueError, match=expected) as caught:
            read_list(path)
        assert len(str(caught.value)) < 500
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole, which takes no room on the disk
    with pytest.raises(ValueError, match="more than 64 MiB"):
        read_list(path)
