"""The phantoms are what training expects: reproducible, varied, visible, and whole on disk or not there."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from datasets.readers.arrays import read_arrays, read_shapes
from datasets.sets import phantom
from datasets.sets.phantom import make_phantom, prepare_phantom
from datasets.sets.synapse import ORGANS, slice_path, volume_path
from datasets.splits import read_list

CLASSES = len(ORGANS) + 1
SHAPE = (24, 96, 96)
SMALL = {"size": 32, "depth": 3, "train_cases": 2, "test_cases": 2, "seed": 5}


def draw(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    return make_phantom(np.random.default_rng(seed), shape)


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    return [make_phantom(np.random.default_rng([1, case]), SHAPE) for case in range(24)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "deep" / "Phantom"
    prepare_phantom(root, **SMALL)
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def arrays_of(folder: Path, split: str) -> dict[str, np.ndarray]:
    if split == "test":
        names = read_list(folder / "lists" / "test_vol.txt")
        return {name: read_arrays(volume_path(folder / "test_vol_h5", name), ("image",))["image"] for name in names}
    names = read_list(folder / "lists" / "train.txt")
    return {name: read_arrays(slice_path(folder / "train_npz", name), ("image",))["image"] for name in names}


@pytest.mark.parametrize("shape", [SHAPE, (3, 33, 47), (1, 16, 16)])
def test_a_phantom_is_an_image_in_0_1_and_its_label(shape: tuple[int, int, int]) -> None:
    image, label = draw(3, shape)
    assert image.shape == label.shape == shape
    assert image.dtype == np.float32 and label.dtype == np.uint8
    assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
    assert label.max() < CLASSES and label.any()


@pytest.mark.parametrize("shape", [(0, 32, 32), (32, 32), (4, -1, 32)])
def test_a_shape_that_is_none_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected three positive numbers"):
        draw(0, shape)


def test_one_seed_is_one_patient() -> None:
    first, again, other = draw(1), draw(1), draw(2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])


def test_the_anatomy_does_not_depend_on_the_resolution() -> None:
    coarse, fine = draw(4, (12, 48, 48))[1], draw(4, (24, 96, 96))[1]
    volumes = np.stack([np.bincount(x.ravel(), minlength=CLASSES)[1:] / x.size for x in (coarse, fine)])
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.25)


def test_most_patients_have_all_organs_and_some_lack_one(cases: list[tuple[np.ndarray, np.ndarray]]) -> None:
    present = np.array([[(label == k).any() for k in range(1, CLASSES)] for _, label in cases])
    assert present.mean(axis=0).min() >= 0.75
    assert present.sum(axis=1).min() >= len(ORGANS) - 2
    assert 0.05 <= (~present.all(axis=1)).mean() <= 0.35


def test_patients_differ_in_size_place_and_contrast(cases: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for organ in range(1, CLASSES):
        masks = [(image, label == organ) for image, label in cases if (label == organ).any()]
        sizes = np.array([mask.sum() for _, mask in masks])
        centres = np.array([ndimage.center_of_mass(mask) for _, mask in masks])
        means = np.array([image[mask].mean() for image, mask in masks])
        assert sizes.std() / sizes.mean() > 0.08, ORGANS[organ - 1]
        assert centres.std(axis=0)[1:].min() > 0.6, ORGANS[organ - 1]
        assert means.std() > 0.01, ORGANS[organ - 1]


def test_every_organ_stands_out_from_what_surrounds_it(cases: list[tuple[np.ndarray, np.ndarray]]) -> None:
    ratios = {organ: [] for organ in range(1, CLASSES)}
    for image, label in cases:
        fat = image[(label == 0) & (image > 0.02) & (image < 0.2)]
        noise = 1.4826 * np.median(np.abs(fat - np.median(fat)))
        for organ in range(1, CLASSES):
            mask = label == organ
            if mask.any():
                shell = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask)
                ratios[organ].append(abs(np.median(image[mask]) - np.median(image[shell])) / noise)
    for organ, values in ratios.items():
        assert np.median(values) > 4, (ORGANS[organ - 1], np.round(values, 1))
        assert min(values) > 1.5, (ORGANS[organ - 1], np.round(values, 1))


def test_organs_lie_where_the_axes_say(cases: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """(z, x, y) grow towards the head, the patient's left and the back."""
    centre = {}
    for organ, name in enumerate(ORGANS, start=1):
        found = [ndimage.center_of_mass(label == organ) for _, label in cases if (label == organ).any()]
        centre[name] = np.mean(found, axis=0)
    assert centre["liver"][1] < centre["aorta"][1] < centre["spleen"][1]
    assert centre["right kidney"][1] < centre["left kidney"][1]
    assert centre["stomach"][2] < centre["aorta"][2]
    assert centre["left kidney"][0] < centre["spleen"][0]


def test_the_files_read_back_as_synapse_files(root: Path) -> None:
    assert sorted(p.name for p in root.iterdir()) == ["lists", "phantom.json", "test_vol_h5", "train_npz"]
    slices = read_list(root / "lists" / "train.txt")
    assert slices == [f"phantom000{case}_slice00{i}" for case in (1, 2) for i in range(3)]
    for name in slices:
        image, label = read_arrays(slice_path(root / "train_npz", name), ("image", "label")).values()
        assert image.shape == label.shape == (32, 32)
    for name in read_list(root / "lists" / "test_vol.txt"):
        shapes, geometry = read_shapes(volume_path(root / "test_vol_h5", name), ("image", "label"))
        assert shapes == {"image": (3, 32, 32), "label": (3, 32, 32)}
        assert np.multiply(geometry.array_spacing, (3, 32, 32)) == pytest.approx(phantom.EXTENT)
    assert json.loads((root / "phantom.json").read_text(encoding="utf-8")) == {
        "format": phantom.FORMAT_VERSION,
        **SMALL,
    }


def test_test_phantoms_are_no_training_phantoms(root: Path) -> None:
    train, test = arrays_of(root, "train"), arrays_of(root, "test")
    assert not {name.split("_")[0] for name in train} & set(test)
    assert all(not np.array_equal(volume[0], image) for volume in test.values() for image in train.values())


def test_more_cases_leave_the_others_as_they_were(root: Path, tmp_path: Path) -> None:
    prepare_phantom(tmp_path / "more", **SMALL | {"train_cases": 3, "test_cases": 3})
    for split in ("train", "test"):
        few, many = arrays_of(root, split), arrays_of(tmp_path / "more", split)
        assert len(many) > len(few)
        assert all(np.array_equal(few[name], many[name]) for name in few)


def test_the_same_call_again_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(root)
    monkeypatch.setattr(phantom, "make_phantom", lambda *_: pytest.fail("made the phantoms a second time"))
    prepare_phantom(root, **SMALL)
    assert files_of(root) == before


def test_another_call_on_the_same_folder_is_refused(root: Path) -> None:
    before = files_of(root)
    with pytest.raises(ValueError, match=r"Phantom: .*size is 32, not 48.*name another folder, or delete"):
        prepare_phantom(root, **SMALL | {"size": 48})
    assert files_of(root) == before


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    if content is not None:
        (tmp_path / "phantom.json").write_text(content)
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match="holds no phantoms"):
        prepare_phantom(tmp_path, **SMALL)
    assert files_of(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    prepare_phantom(tmp_path / "data", **SMALL | {"train_cases": 1, "test_cases": 1})
    assert (tmp_path / "data" / "phantom.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        assert not (tmp_path / "data").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(phantom, "write", full)
    with pytest.raises(OSError, match="No space left"):
        prepare_phantom(tmp_path / "data", **SMALL)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        prepare_phantom(tmp_path / "file" / "data", **SMALL)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"depth": -1}, {"train_cases": 0}, {"test_cases": 1000}, {"seed": -1}])
def test_parameters_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} .* out of range"):
        prepare_phantom(tmp_path / "data", **SMALL | wrong)
    assert not list(tmp_path.iterdir())


def test_the_default_set_holds_patients_who_lack_an_organ() -> None:
    default = {k: p.default for k, p in inspect.signature(prepare_phantom).parameters.items()}
    for code, split in enumerate(("train_cases", "test_cases")):
        labels = [
            make_phantom(np.random.default_rng([default["seed"], code, i]), (8, 24, 24))[1]
            for i in range(default[split])
        ]
        lacking = [len(np.unique(label)) < CLASSES for label in labels]
        assert 1 <= sum(lacking) <= 0.35 * len(lacking) + 1
