"""npz and h5: what is written comes back, geometry included; what is damaged is refused in one line by name."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets.case import Geometry
from datasets.errors import BadFile
from datasets.readers.arrays import GEOMETRY, geometry_from, read_arrays, read_shapes, write_arrays
from datasets.readers.grid import arrange, as_stored, reorient

RNG = np.random.default_rng(0)
IMAGE, LABEL = RNG.random((2, 14, 15), np.float32), RNG.integers(0, 9, (2, 14, 15), np.uint8)
ARRAYS = {"image": IMAGE, "label": LABEL}
GRID = Geometry((0.75, 0.5, 3.0), (-10.5, 20.25, 7.0), (1, 0, 0, 0, -1, 0, 0, 0, -1), "zxy")


@pytest.fixture(params=["a.npz", "a.npy.h5"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def change(path: Path, **arrays: object) -> None:
    """Store other arrays in a file, beside or in the place of those it has; None removes one."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            for name, array in arrays.items():
                if name in file:
                    del file[name]
                if array is not None:
                    file[name] = array
        return
    with np.load(path) as file:
        kept = dict(file) | arrays
    np.savez(path, **{name: array for name, array in kept.items() if array is not None})


def geometry_of(path: Path) -> Geometry | None:
    return geometry_from(read_arrays(path, (), GEOMETRY), path)


@pytest.mark.parametrize("towards", ["", "LPS", "RAS", "PIR"])
@pytest.mark.parametrize("oriented", [True, False])
def test_arrays_and_geometry_come_back(path: Path, towards: str, oriented: bool) -> None:
    """Axes that run backwards too, or an array would go back onto its file mirrored."""
    geometry = replace(reorient(GRID, "zxy", towards), oriented=oriented)
    write_arrays(path, ARRAYS, geometry)
    read = read_arrays(path, ("image", "label"))
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype and read[name].flags.writeable
        np.testing.assert_array_equal(read[name], array)
    assert geometry_of(path) == geometry
    assert read_shapes(path, ("image", "label")) == ({"image": (2, 14, 15), "label": (2, 14, 15)}, geometry)
    voxels = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(as_stored(arrange(voxels, geometry), geometry_of(path)), voxels)


def test_a_published_file_has_no_geometry(path: Path) -> None:
    write_arrays(path, {"image": IMAGE.astype(">f8"), "label": LABEL.T})
    read = read_arrays(path, ("image", "label"), GEOMETRY)
    np.testing.assert_array_equal(read["image"], IMAGE)
    np.testing.assert_array_equal(read["label"], LABEL.T)
    assert set(read) == {"image", "label"} and geometry_from(read, path) is None


def test_equal_arrays_make_equal_files(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_arrays(tmp_path / name, ARRAYS, GRID)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_threads_read_at_once(tmp_path: Path, save: object) -> None:
    for number in range(40):
        save(tmp_path / f"{number}.npz", image=IMAGE + number)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: read_arrays(tmp_path / f"{n}.npz", ("image",))["image"], list(range(40)) * 20))
    for number, image in enumerate(found):
        np.testing.assert_array_equal(image, IMAGE + number % 40)


@pytest.mark.parametrize(
    "arrays",
    [
        {"spacing": np.ones(2)},
        {"spacing": np.array([1.0, -1.0, 1.0])},
        {"origin": None},
        {"direction": np.zeros(9)},
        {"direction": np.full(9, np.nan)},
        {"axis_order": np.bytes_("abc")},
        {"axis_order": np.array(5.0)},
        {"flips": np.bytes_("xw")},
        {"oriented": np.array([False, False])},
    ],
)
def test_a_geometry_that_is_none_is_refused(path: Path, arrays: dict[str, np.ndarray | None]) -> None:
    write_arrays(path, ARRAYS, replace(GRID, flips="x"))
    change(path, **arrays)
    with pytest.raises(BadFile, match="its geometry is not understood"):
        geometry_of(path)


@pytest.mark.parametrize("cut", [0, 1, 30, 200, -1, -60, -400])
def test_cut_files_are_refused(path: Path, cut: int) -> None:
    write_arrays(path, ARRAYS, GRID)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadFile, match="is not a readable") as caught:
        read_arrays(path, ("image", "label"), GEOMETRY)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_flipped_byte_of_an_npz_is_believed(tmp_path: Path, save: object) -> None:
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)
    whole = path.read_bytes()
    for place in np.random.default_rng(1).integers(0, len(whole), 150):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            read = read_arrays(path, ("image", "label"))
        except BadFile as error:
            assert str(error).startswith(f"{path}: ")
        else:
            for name, array in ARRAYS.items():
                np.testing.assert_array_equal(read[name], array)


def test_no_flipped_byte_of_a_label_in_h5_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.npy.h5"
    write_arrays(path, ARRAYS)
    with h5py.File(path) as file:
        chunk = file["label"].id.get_chunk_info(0)
    whole = path.read_bytes()
    for place in range(chunk.byte_offset, chunk.byte_offset + chunk.size):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BadFile, match="not a readable h5"):
            read_arrays(path, ("label",))


@pytest.mark.parametrize("kind", ["empty", "text", "missing array", "objects", "claim", "absent", "folder"])
def test_what_is_no_such_file_is_refused(path: Path, kind: str) -> None:
    write_arrays(path, ARRAYS)
    expected = "is not a readable"
    if kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"hello\n" * 99)
    elif kind == "missing array":
        change(path, label=None)
        expected = "has no 'label', only image"
    elif kind == "objects" and path.suffix == ".npz":
        change(path, image=np.array([None, {}]))
    elif kind == "claim" and path.suffix == ".npz":
        with zipfile.ZipFile(path, "w") as file, file.open("image.npy", "w") as stream:
            header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
            np.lib.format.write_array_header_1_0(stream, header)
    elif kind in ("absent", "folder"):
        path.unlink()
        path.mkdir() if kind == "folder" else None
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_arrays(path, ("image",))
        return
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("image", (10**6, 10**6), "f8", chunks=True)
    with pytest.raises(BadFile, match=expected):
        read_arrays(path, ("label", "image") if kind == "missing array" else ("image",))


@pytest.mark.parametrize("how", ["soft", "external", "virtual", "raw"])
def test_a_volume_does_not_reach_for_other_files(tmp_path: Path, how: str) -> None:
    path, other = tmp_path / "a.npy.h5", tmp_path / "other.h5"
    write_arrays(other, ARRAYS)
    IMAGE.tofile(tmp_path / "raw")
    with h5py.File(path, "w") as file:
        if how == "soft":
            file["else"], file["image"] = IMAGE, h5py.SoftLink("/else")
        elif how == "external":
            file["image"] = h5py.ExternalLink(str(other), "/image")
        elif how == "virtual":
            layout = h5py.VirtualLayout(IMAGE.shape, IMAGE.dtype)
            layout[:] = h5py.VirtualSource(str(other), "image", IMAGE.shape)
            file.create_virtual_dataset("image", layout)
        else:
            file.create_dataset("image", IMAGE.shape, "f4", external=[(str(tmp_path / "raw"), 0, IMAGE.nbytes)])
    with pytest.raises(BadFile, match="'image' is not an array of this file"):
        read_arrays(path, ("image",))
