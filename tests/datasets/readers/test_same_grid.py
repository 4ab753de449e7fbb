"""A label lies where its image lies, by one of the forms of its header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.case import Geometry
from datasets.readers.grid import check_same_grid
from tests.datasets.readers.test_nifti import read_image, save_forms

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
