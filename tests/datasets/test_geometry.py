"""Grids compared; a geometry in a file and out of it again, what is not stored, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets.base import Geometry
from datasets.geometry import check_same_grid
from datasets.readers.nifti import read_image
from datasets.readers.orientation import arrange, as_stored, reorient
from datasets.sets.synapse import read_npz_geometry, read_volume, says_axes, write
from tests.datasets.readers.test_nifti import save_forms

IMAGE, LABEL = np.zeros((2, 4, 5), np.float32), np.zeros((2, 4, 5), np.uint8)
GEOMETRY = Geometry((0.75, 0.5, 3.0), (-10.5, 20.25, 7.0), (1, 0, 0, 0, -1, 0, 0, 0, -1), "zxy")


A, B = np.diag([1.0, 1.0, 3.0, 1.0]), np.diag([-1.0, 1.0, 3.0, 1.0])
B[:3, 3] = 5.0


def moved(voxels: float) -> np.ndarray:
    """A, its origin moved along x."""
    found = A.copy()
    found[0, 3] = voxels
    return found


def scaled(relative: float) -> np.ndarray:
    """A, its voxels longer along y."""
    return A @ np.diag([1.0, 1.0 + relative, 1.0, 1.0])


@pytest.mark.parametrize(
    ("image", "label", "outcome"),
    [
        ((A, B, (1, 1)), (A, B, (0, 2)), "pair"),  # nibabel with the image's affine
        ((A, B, (1, 2)), (A, A, (1, 1)), "pair"),  # as what knows the qform alone writes it
        ((A, B, (1, 2)), (B, B, (1, 1)), "pair"),
        ((A, A, (1, 0)), (A, A, (0, 2)), "pair"),
        ((A, A, (0, 0)), (A, A, (0, 0)), "pair"),
        ((A, B, (0, 1)), (A, B, (1, 0)), "refused"),
        ((A, A, (1, 1)), (B, B, (1, 1)), "refused"),
        ((A, A, (1, 1)), (moved(5e-4),) * 2 + ((1, 1),), "pair"),
        ((A, A, (1, 1)), (moved(5e-3),) * 2 + ((1, 1),), "warned"),
        ((A, A, (1, 1)), (moved(2e-2),) * 2 + ((1, 1),), "refused"),
        ((A, A, (1, 1)), (scaled(5e-4),) * 2 + ((1, 1),), "pair"),
        ((A, A, (1, 1)), (scaled(5e-3),) * 2 + ((1, 1),), "refused"),
    ],
)
def test_an_image_and_its_label_agree_by_the_same_form(
    tmp_path: Path, image: tuple, label: tuple, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / name for name in ("label.nii", "image.nii")]
    read = [
        read_image(save_forms(path, IMAGE, *forms), "xyz") for path, forms in zip(paths, (label, image), strict=True)
    ]
    caplog.clear()
    (mask, here), (scan, there) = read
    if outcome == "refused":
        with pytest.raises(
            ValueError, match=r"label\.nii: its (spacing|direction|origin) is .*image\.nii has .*expected one grid"
        ):
            check_same_grid(paths[0], mask.shape, here, paths[1], scan.shape, there)
    else:
        check_same_grid(paths[0], mask.shape, here, paths[1], scan.shape, there)
    assert ("label.nii: lies 0.005 voxels" in caplog.text) == (outcome == "warned")
    with pytest.raises(ValueError, match=r"label\.nii: has size"):
        check_same_grid(paths[0], (2, 4, 6), here, paths[1], scan.shape, there)


def test_slices_that_say_nothing_of_their_thickness_are_a_pair(tmp_path: Path) -> None:
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    paths = [tmp_path / name for name in ("label.nii", "image.nii")]
    for path in paths:
        save_forms(path, IMAGE[:1].transpose(1, 2, 0), A, flat, (0, 1))
    (mask, here), (scan, there) = map(read_image, paths)
    check_same_grid(paths[0], mask.shape, here, paths[1], scan.shape, there)


def test_what_is_turned_otherwise_is_no_pair(tmp_path: Path) -> None:
    """They agree by their qforms, and are turned by sforms that point elsewhere."""
    for name, sform in (("label.nii", A), ("image.nii", B)):
        save_forms(tmp_path / name, IMAGE, A, sform, (1, 2))
    (mask, here), (scan, there) = (read_image(tmp_path / name, "xyz", "LPS") for name in ("label.nii", "image.nii"))
    with pytest.raises(ValueError, match="expected one grid"):
        check_same_grid(tmp_path / "label.nii", mask.shape, here, tmp_path / "image.nii", scan.shape, there)


def write(path: Path, geometry: Geometry | None, **how: bool) -> Path:
    if path.suffix == ".h5":
        write(path, IMAGE, LABEL, geometry, **how)
    else:
        write(path, IMAGE[0], LABEL[0], geometry, **how)
    return path


def change(path: Path, **arrays: object) -> None:
    """Store other arrays in a file, beside or in the place of those it has."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            for key, value in arrays.items():
                if key in file:
                    del file[key]
                file[key] = value
    else:
        with np.load(path) as file:
            kept = dict(file)
        np.savez(path, **(kept | arrays))


def read(path: Path) -> Geometry | None:
    return read_volume(path, 9).geometry if path.suffix == ".h5" else read_npz_geometry(path)


@pytest.fixture(params=["s.npz", "v.npy.h5"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of each kind."""
    return tmp_path / request.param


@pytest.mark.parametrize("towards", ["", "LPS", "RAS", "PIR"])
def test_a_turned_geometry_comes_back_whole(path: Path, towards: str) -> None:
    """Axes that run backwards too, or an array would go back onto its file mirrored."""
    geometry = reorient(GEOMETRY, "zxy", towards)
    assert read(write(path, geometry)) == geometry
    voxels = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(as_stored(arrange(voxels, geometry), read(path)), voxels)


def test_nothing_is_stored_that_says_nothing(path: Path) -> None:
    write(path, GEOMETRY)
    with h5py.File(path) if path.suffix == ".h5" else np.load(path) as file:
        assert set(file) == {"image", "label", "spacing", "origin", "direction", "affine", "axis_order"}


@pytest.mark.parametrize("geometry", [GEOMETRY, None])
def test_axes_are_believed_unless_a_file_says_otherwise(path: Path, geometry: Geometry | None) -> None:
    assert says_axes(write(path, geometry)) is True
    change(path, oriented=np.bool_(True))
    assert says_axes(path) is True
    change(path, oriented=np.bool_(False))
    assert says_axes(path) is False
    assert says_axes(write(path, geometry, oriented=False)) is (geometry is None)
    assert read(path) == geometry


NOT_UNDERSTOOD = "its geometry is not understood"
BAD: dict[str, tuple[Callable[[Path], object], dict[str, object], str]] = {
    "another letter": (read, {"flips": np.bytes_("xw")}, f"{NOT_UNDERSTOOD} (flips 'xw')"),
    "a letter twice": (read, {"flips": np.bytes_("xx")}, f"{NOT_UNDERSTOOD} (flips 'xx')"),
    "a number of times": (says_axes, {"oriented": np.array([False, False])}, "'oriented' is (2,) of bool"),
    "a number": (says_axes, {"oriented": np.float64(0.0)}, "'oriented' is () of float64; expected true or false"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_understood_is_refused_by_name(path: Path, kind: str) -> None:
    function, arrays, message = BAD[kind]
    write(path, replace(GEOMETRY, flips="x"))
    change(path, **arrays)
    with pytest.raises(ValueError) as caught:
        function(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_no_file_at_all_is_damage(path: Path) -> None:
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="is not a readable"):
        says_axes(path)
