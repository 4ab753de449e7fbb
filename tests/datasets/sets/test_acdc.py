"""ACDC: which files a list stands for, what is read, slices put back together, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from datasets import build_dataset
from datasets.case import Geometry
from datasets.errors import Defects
from datasets.intensity import Preprocessing
from datasets.sets.acdc import Acdc, slice_name, volume_name, write
from tests.conftest import make_case

DEPTH = 12  # from 10 on, the order of names is not that of numbers
GRID = Geometry((1.5, 1.25, 10.0), (-10.5, 20.25, 7.0), (1, 0, 0, 0, -1, 0, 0, 0, -1), "zxy")
PHASES = ("ED", "ES")


def case(number: int, phase: str) -> tuple[np.ndarray, np.ndarray]:
    return make_case(2 * number + (phase == "ES"), (DEPTH, 20, 24), 4)


def make(root: Path, geometry: Geometry | None = GRID, **lists: Sequence[str]) -> Path:
    """Slices of cases 1 and 4 in train/, of 19 in valid/, volumes of 2 and 3 in test/; lists of cases or as given."""
    for part, numbers in (("train", (1, 4)), ("valid", (19,)), ("test", (2, 3))):
        (root / part).mkdir(parents=True)
        for number in numbers:
            for phase in PHASES:
                image, label = case(number, phase)
                name = f"case_{number:03d}"
                if part == "test":
                    write(root / part / f"{volume_name(name, phase)}.npz", image, label, geometry)
                for index in range(DEPTH if part != "test" else 0):
                    path = root / part / f"{slice_name(name, phase, index)}.npz"
                    write(path, image[index], label[index], geometry)
        entries = lists.get(part, [f"case_{number:03d}" for number in numbers])
        (root / "lists").mkdir(exist_ok=True)
        (root / f"lists/{part}.txt").write_text("\n".join(entries) + "\n")
    return root


def build(root: Path, split: str, **options: object) -> object:
    return build_dataset("ACDC", split, num_classes=4, root_path=str(root), **options)


def test_names() -> None:
    acdc = Acdc(Path(), Path(), 4, Preprocessing())
    assert slice_name("case_019", "ED", 3) == "case_019_sliceED_3"
    assert volume_name("case_002", "ES") == "case_002_volume_ES"
    names = ("case_019", "case_019_sliceED_3", "case_019_sliceES_11", "case_019_volume_ED", "case_019_ED")
    assert {acdc.group_of(name) for name in names} == {"case_019"}
    assert {acdc.group_of(f"patient101_{name}") for name in ("frame01", "frame14_sliceED_0")} == {"patient101"}
    assert [acdc.volume_of(name) for name in names[1:4]] == ["case_019_ED", "case_019_ES", "case_019_ED"]


@pytest.mark.parametrize("entries", [["case_004", "case_001"], ["case_004_sliceED_10.npz", "case_001_sliceES_2"]])
def test_entries_are_files_or_cases(tmp_path: Path, entries: list[str]) -> None:
    slices = build(make(tmp_path, train=entries), "train")
    whole = [slice_name(name, phase, i) for name in ("case_004", "case_001") for phase in PHASES for i in range(DEPTH)]
    expected = whole if entries[0] == "case_004" else ["case_004_sliceED_10", "case_001_sliceES_2"]
    assert slices.names == expected and [path.stem for path in slices.files] == expected
    np.testing.assert_array_equal(slices[-1].label, case(1, "ES")[1][DEPTH - 1 if entries[0] == "case_004" else 2])
    assert (slices[0].image.dtype, slices[0].label.dtype) == (np.float32, np.uint8)


@pytest.mark.parametrize("entries", [["case_002"], ["case_002_volume_ED.npz", "case_002_volume_ES"]])
@pytest.mark.parametrize("geometry", [GRID, None])
def test_volumes_with_and_without_geometry(tmp_path: Path, geometry: Geometry | None, entries: list[str]) -> None:
    volumes = build(make(tmp_path, geometry, test=entries), "test")
    assert [volume.name for volume in volumes] == volumes.cases == ["case_002_ED", "case_002_ES"]
    assert volumes.group_of("case_002_ES") == "case_002"
    for volume, phase in zip(volumes, PHASES, strict=True):
        np.testing.assert_array_equal(volume.image, case(2, phase)[0])
        np.testing.assert_array_equal(volume.label, case(2, phase)[1])
        assert volume.geometry == geometry


@pytest.mark.parametrize("cache", ["", "cache"])
@pytest.mark.parametrize("geometry", [GRID, None])
def test_slices_stack_in_the_order_of_their_numbers(tmp_path: Path, geometry: Geometry | None, cache: str) -> None:
    names = [slice_name("case_019", phase, index) for phase in PHASES for index in range(DEPTH)]
    root = make(tmp_path / "d", geometry, valid=sorted(names, reverse=True))
    stacks = build(root, "val", cache=cache and str(tmp_path / cache))
    assert stacks.cases == ["case_019_ED", "case_019_ES"] and len(stacks) == 2
    for volume, phase in zip(stacks, PHASES, strict=True):
        assert volume.name == f"case_019_{phase}" and volume.geometry == geometry
        np.testing.assert_array_equal(volume.image, case(19, phase)[0])
        np.testing.assert_array_equal(volume.label, case(19, phase)[1])


def test_folds_are_of_patients_that_train_or_validate(tmp_path: Path) -> None:
    root = make(tmp_path)
    tested = [build(root, "test", folds=3, fold=fold).cases for fold in range(3)]
    assert sorted(sum(tested, [])) == [f"case_0{n}_{phase}" for n in ("01", "04", "19") for phase in PHASES]
    for fold, names in enumerate(tested):
        trained = {name[:8] for name in build(root, "train", folds=3, fold=fold).names}
        assert trained == {"case_001", "case_004", "case_019"} - {names[0][:8]}


@pytest.mark.parametrize(
    ("split", "lists", "gone", "message"),
    [
        ("train", {"train": ["case_001_sliceED_12.npz"]}, (), "case_001_sliceED_12.npz: is named in the list but"),
        ("train", {"train": ["case_001", "case_009"]}, (), "case_009_sliceED_0.npz: is not there, but the list names"),
        (
            "train",
            {},
            ("train/case_001_sliceES_5",),
            "case_001_sliceES_5.npz: is not there, but the list names case_001",
        ),
        ("test", {}, ("test/case_003_volume_ES",), "case_003_volume_ES.npz: is not there, but the list names case_003"),
    ],
)
def test_missing_files_are_named(tmp_path: Path, split: str, lists: dict, gone: Sequence[str], message: str) -> None:
    root = make(tmp_path, **lists)
    for name in gone:
        (root / f"{name}.npz").unlink()
    with pytest.raises((FileNotFoundError, Defects), match=message):
        build(root, split)


def test_a_file_by_two_names_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path, train=["case_001_sliceED_3", "case_001"])
    with pytest.raises(ValueError, match="case_001_sliceED_3.npz: is named in the list more than once"):
        build(root, "train")


def test_volumes_with_holes_are_refused_together(tmp_path: Path) -> None:
    gone = (slice_name("case_019", "ED", 0), slice_name("case_019", "ES", 4))
    names = [slice_name("case_019", phase, index) for phase in PHASES for index in range(DEPTH)]
    root = make(tmp_path, valid=[name for name in names if name not in gone])
    with pytest.raises(Defects) as caught:
        build(root, "val")
    assert [defect.path.stem for defect in caught.value.defects] == list(gone)
    (root / "lists/valid.txt").write_text("\n".join(names[:4]))  # what is above the last slice nobody can miss
    assert len(build(root, "val")[0].image) == 4


def test_another_name_of_the_image_is_refused(tmp_path: Path) -> None:
    root, path = make(tmp_path), tmp_path / "train/case_001_sliceED_0.npz"
    np.savez(path, image=np.zeros((20, 24)), label=np.zeros((20, 24)))
    with pytest.raises(ValueError, match=f"{path}: has no 'img', only image, label"):
        build(root, "train")[0]
