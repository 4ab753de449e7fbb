"""The ACDC layout: which files a list stands for, what is read, slices put back together, what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from datasets.base import Defects, Geometry
from datasets.cache import CachedSlices
from datasets.sets.acdc import (
    CLASSES,
    AcdcSlices,
    AcdcStacks,
    AcdcVolumes,
    case_of,
    slice_name,
    volume_name,
    volume_of,
    write,
)
from datasets.sets.synapse import says_axes
from tests.conftest import make_case

DEPTH = 12  # from 10 on, the order of names is not that of numbers
GEOMETRY = Geometry((1.5, 1.25, 10.0), (-10.5, 20.25, 7.0), (1, 0, 0, 0, -1, 0, 0, 0, -1), "zxy")


def case(number: int, phase: str) -> tuple[np.ndarray, np.ndarray]:
    return make_case(2 * number + (phase == "ES"), (DEPTH, 20, 24), 4)


def make_slices(folder: Path, *numbers: int, geometry: Geometry | None = GEOMETRY) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        for phase in ("ED", "ES"):
            image, label = case(number, phase)
            for index in range(DEPTH):
                path = folder / f"{slice_name(f'case_{number:03d}', phase, index)}.npz"
                write(path, image[index], label[index], geometry)
    return folder


def make_volumes(folder: Path, *numbers: int, geometry: Geometry | None = GEOMETRY) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        for phase in ("ED", "ES"):
            write(folder / f"{volume_name(f'case_{number:03d}', phase)}.npz", *case(number, phase), geometry)
    return folder


def test_names() -> None:
    assert slice_name("case_019", "ED", 3) == "case_019_sliceED_3"
    assert volume_name("case_002", "ES") == "case_002_volume_ES"
    names = ("case_019", "case_019_sliceED_3", "case_019_sliceES_11", "case_019_volume_ED", "case_019_ED")
    assert {case_of(name) for name in names} == {"case_019"}
    assert {case_of(f"patient101_{name}") for name in ("frame01", "frame14", "frame14_sliceED_0")} == {"patient101"}
    assert [volume_of(name) for name in names[1:4]] == ["case_019_ED", "case_019_ES", "case_019_ED"]
    assert len(CLASSES) == 3


def test_a_slice_is_read_as_it_was_written(tmp_path: Path) -> None:
    slices = AcdcSlices(make_slices(tmp_path / "train", 1), ["case_001_sliceES_11.npz"], 4)
    image, label = case(1, "ES")
    assert (len(slices), slices.num_classes, slices.names) == (1, 4, ["case_001_sliceES_11"])
    assert slices.files == [tmp_path / "train/case_001_sliceES_11.npz"]
    sample = slices[0]
    assert (sample.image.dtype, sample.label.dtype, sample.name) == (np.float32, np.uint8, "case_001_sliceES_11")
    np.testing.assert_array_equal(sample.image, image[11])
    np.testing.assert_array_equal(sample.label, label[11])


@pytest.mark.parametrize("entries", [["case_004", "case_001"], ["case_004_sliceED_10.npz", "case_001_sliceES_2"]])
def test_entries_are_files_or_cases(tmp_path: Path, entries: list[str]) -> None:
    slices = AcdcSlices(make_slices(tmp_path / "train", 1, 4), entries, 4)
    whole = [
        f"case_{n}_slice{phase}_{index}" for n in ("004", "001") for phase in ("ED", "ES") for index in range(DEPTH)
    ]
    expected = whole if entries[0] == "case_004" else ["case_004_sliceED_10", "case_001_sliceES_2"]
    assert slices.names == expected and [path.stem for path in slices.files] == expected


def test_volumes_with_and_without_geometry(tmp_path: Path) -> None:
    published = make_volumes(tmp_path / "published", 2, geometry=None)
    for folder, geometry in ((make_volumes(tmp_path / "own", 2, 3), GEOMETRY), (published, None)):
        for entries in (["case_002"], ["case_002_volume_ED.npz", "case_002_volume_ES"]):
            volumes = AcdcVolumes(folder, entries, 4)
            assert [volume.name for volume in volumes] == volumes.cases == ["case_002_ED", "case_002_ES"]
            assert [path.name for path in volumes.files] == ["case_002_volume_ED.npz", "case_002_volume_ES.npz"]
            for volume, phase in zip(volumes, ("ED", "ES"), strict=True):
                np.testing.assert_array_equal(volume.image, case(2, phase)[0])
                np.testing.assert_array_equal(volume.label, case(2, phase)[1])
                assert volume.geometry == geometry


def test_distances_are_kept_where_nobody_knows_the_axes(tmp_path: Path) -> None:
    image, label = case(1, "ED")
    for oriented in (True, False):
        path = tmp_path / f"{slice_name('case_001', 'ED', 0)}.npz"
        write(path, image[0], label[0], GEOMETRY, oriented=oriented)
        assert says_axes(path) is oriented and AcdcStacks(AcdcSlices(tmp_path, [path.name], 4))[0].geometry == GEOMETRY


def test_published_types_are_taken(tmp_path: Path) -> None:
    image, label = case(1, "ED")
    np.savez(tmp_path / "case_001_sliceED_0.npz", img=image[0].astype(np.float64), label=label[0].astype(np.int64))
    sample = AcdcSlices(tmp_path, ["case_001_sliceED_0.npz"], 4)[0]
    assert (sample.image.dtype, sample.label.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(sample.label, label[0])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("geometry", [GEOMETRY, None])
def test_slices_stack_in_the_order_of_their_numbers(tmp_path: Path, geometry: Geometry | None, cached: bool) -> None:
    folder = make_slices(tmp_path / "valid", 19, 21, geometry=geometry)
    names = sorted((path.name for path in folder.iterdir()), reverse=True)
    slices = AcdcSlices(folder, names, 4)
    stacks = AcdcStacks(CachedSlices(slices, tmp_path / "cache") if cached else slices)
    assert stacks.names == ["case_019_ED", "case_019_ES", "case_021_ED", "case_021_ES"]
    assert stacks.cases == ["case_019", "case_021"] and len(stacks) == 4 and stacks.num_classes == 4
    for volume, number, phase in zip(stacks, (19, 19, 21, 21), ("ED", "ES", "ED", "ES"), strict=True):
        assert volume.name == f"case_0{number}_{phase}" and volume.geometry == geometry
        np.testing.assert_array_equal(volume.image, case(number, phase)[0])
        np.testing.assert_array_equal(volume.label, case(number, phase)[1])


def test_slices_of_two_folders_together(tmp_path: Path) -> None:
    train, valid = (
        AcdcSlices(make_slices(tmp_path / part, n), [f"case_{n:03d}"], 4) for part, n in (("a", 1), ("b", 19))
    )
    both = train + valid
    assert both.names == train.names + valid.names and both.files == train.files + valid.files and len(train) == 24
    assert AcdcStacks(both).names == ["case_001_ED", "case_001_ES", "case_019_ED", "case_019_ES"]
    np.testing.assert_array_equal(both[24 + 11].image, case(19, "ED")[0][11])


def test_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    """A zip archive holds a time for each member; it must not be that of writing."""
    for name in ("a.npz", "b.npz"):
        write(tmp_path / name, *(array[0] for array in case(1, "ED")), GEOMETRY)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        assert {member.date_time[0] for member in file.infolist()} == {1980}  # the first year that a zip can tell


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = make_slices(tmp_path / "train", 1)
    with pytest.raises(FileNotFoundError, match="case_001_sliceED_12.npz: is named in the list but is not there"):
        AcdcSlices(folder, ["case_001_sliceED_12.npz"], 4)
    with pytest.raises(FileNotFoundError, match="case_009_sliceED_0.npz: is not there, but the list names case_009"):
        AcdcSlices(folder, ["case_001", "case_009"], 4)
    with pytest.raises(FileNotFoundError, match="case_001_volume_ED.npz: is not there, but the list names case_001"):
        AcdcVolumes(folder, ["case_001"], 4)
    (folder / "case_001_sliceES_5.npz").unlink()
    with pytest.raises(FileNotFoundError, match="case_001_sliceES_5.npz: is not there, but the list names case_001"):
        AcdcSlices(folder, ["case_001"], 4)
    for index in range(DEPTH):
        (folder / f"case_001_sliceES_{index}.npz").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="case_001_sliceES_0.npz: is not there, but the list names case_001"):
        AcdcSlices(folder, ["case_001"], 4)


def test_a_file_by_two_names_is_refused(tmp_path: Path) -> None:
    folder = make_slices(tmp_path / "train", 1)
    for entries in (["case_001", "case_001_sliceED_3.npz"], ["case_001_sliceED_3", "case_001_sliceED_3.npz"]):
        with pytest.raises(ValueError, match="case_001_sliceED_3.npz: is named in the list more than once"):
            AcdcSlices(folder, entries, 4)


def test_volumes_with_holes_are_refused_together(tmp_path: Path) -> None:
    folder = make_slices(tmp_path / "valid", 19)
    left_out = ("case_019_sliceED_0", "case_019_sliceES_4")
    names = [path.stem for path in folder.iterdir() if path.stem not in left_out]
    with pytest.raises(Defects) as caught:
        AcdcStacks(AcdcSlices(folder, names, 4))
    assert [defect.path for defect in caught.value.defects] == [folder / f"{name}.npz" for name in left_out]
    # What is above the last slice nobody can miss.
    assert len(AcdcStacks(AcdcSlices(folder, [f"case_019_sliceES_{index}" for index in range(4)], 4))[0].image) == 4


def test_slices_of_two_sizes_are_no_volume(tmp_path: Path) -> None:
    folder = make_slices(tmp_path / "valid", 19)
    write(folder / "case_019_sliceED_3.npz", np.zeros((8, 8), np.float32), np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"case_019_ED has slices of \(8, 8\), \(20, 24\); expected one size"):
        AcdcStacks(AcdcSlices(folder, ["case_019"], 4))[0]


IMAGE, LABEL = (array[0] for array in case(1, "ED"))
BAD = {
    "synapse's name": (
        {"image": IMAGE, "label": LABEL},
        "holds no 'img'; found image, label, expected 'img' and 'label'",
    ),
    "no label": ({"img": IMAGE}, "holds no 'label'; found img, expected 'img' and 'label'"),
    "volume": ({"img": IMAGE[None], "label": LABEL[None]}, "expected 2 dimensions"),
    "shapes": ({"img": IMAGE, "label": LABEL[:8]}, "expected the same shape"),
    "nan": ({"img": np.where(IMAGE[3, 4] == IMAGE, np.nan, IMAGE), "label": LABEL}, "NaN or infinite"),
    "stray label": ({"img": IMAGE, "label": np.full_like(LABEL, 4)}, "'label' holds 4; expected 0..3"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_slices(tmp_path: Path, kind: str) -> None:
    arrays, expected = BAD[kind]
    path = tmp_path / "case_001_sliceED_0.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError) as caught:
        AcdcSlices(tmp_path, [path.name], 4)[0]
    assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)


NOT_UNDERSTOOD, NO_GEOMETRY = "its geometry is not understood", "expected a geometry, make it again"
BAD_GEOMETRY = {
    "two spacings": ({"spacing": np.ones(2)}, NOT_UNDERSTOOD),
    "no direction": ({"direction": np.zeros(9)}, NOT_UNDERSTOOD),
    "an order of other letters": ({"axis_order": np.bytes_("abc")}, NOT_UNDERSTOOD),
    "an order that is a number": ({"axis_order": np.array(5.0)}, NOT_UNDERSTOOD),
    "far too much": ({"origin": np.zeros(1000)}, NO_GEOMETRY),
    "objects": ({"spacing": np.array([None] * 3)}, NO_GEOMETRY),
}


@pytest.mark.parametrize("kind", BAD_GEOMETRY)
def test_bad_geometry(tmp_path: Path, kind: str) -> None:
    good = {
        "spacing": np.ones(3),
        "origin": np.zeros(3),
        "direction": np.eye(3).ravel(),
        "axis_order": np.bytes_("zxy"),
    }
    path = tmp_path / "case_002_volume_ED.npz"
    bad, expected = BAD_GEOMETRY[kind]
    np.savez(path, img=IMAGE[None], label=LABEL[None], **(good | bad))
    with pytest.raises(ValueError) as caught:
        AcdcVolumes(tmp_path, [path.name], 4)[0]
    assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)
    np.savez(path, img=IMAGE[None], label=LABEL[None], **good)
    assert AcdcVolumes(tmp_path, [path.name], 4)[0].geometry.axis_order == "zxy"


def test_truncated_and_flipped_volumes(tmp_path: Path) -> None:
    path = make_volumes(tmp_path / "test", 2) / "case_002_volume_ED.npz"
    volumes, whole = AcdcVolumes(tmp_path / "test", [path.name], 4), path.read_bytes()
    for length in range(1, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a readable npz"):
            volumes[0]
    rng = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        content[-1 - rng.integers(2000)] ^= 1 << int(rng.integers(8))  # among the geometry and the directory
        path.write_bytes(content)
        try:
            volume = volumes[0]
        except ValueError as error:
            assert str(error).startswith(str(path))
        else:
            np.testing.assert_array_equal(volume.label, case(2, "ED")[1])
