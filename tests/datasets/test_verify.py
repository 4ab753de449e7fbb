"""One check for all data sets: what each file holds, everything that is wrong together, nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets import build_dataset, inspect, open_dataset
from datasets.case import DataSet, Facts, Geometry
from datasets.errors import Defects
from datasets.intensity import Preprocessing
from datasets.sets.synapse import slice_path, volume_path, write
from datasets.verify import absent_classes, leakage, total_labels, verify
from tests.conftest import make_case, make_synapse

IMAGE, LABEL = (array[0] for array in make_case(0, (1, 40, 40)))


def synapse_of(root: Path) -> DataSet:
    return open_dataset("Synapse", root_path=str(root), how=Preprocessing(tuple(range(9))))


def slices(dataset: DataSet) -> list:
    return dataset.cases(dataset.names("train"), "train")


def test_what_a_case_holds(synapse: Path) -> None:
    grid = Geometry((0.5, 0.75, 3.0), axis_order="zyx")
    image, label = make_case(3, (4, 40, 40))
    write(volume_path(synapse / "test_vol_h5", "case0100"), image, label, grid)
    dataset = synapse_of(synapse)
    (facts,) = verify(dataset, dataset.cases(["case0100"], "test")).values()
    counts = np.bincount(label.ravel()).tolist()
    expected = ((4, 40, 40), "float32", image.min(), image.max(), dict(enumerate(counts)), (3.0, 0.75, 0.5), "LPS")
    assert facts == expected and facts.channels == 1
    assert total_labels([facts, facts]) == {value: 2 * count for value, count in enumerate(counts)}


def test_all_that_is_wrong_is_reported_together_and_nothing_is_written(synapse: Path) -> None:
    folder = synapse / "train_npz"
    slice_path(folder, "case0000_slice001").write_bytes(b"")
    write(slice_path(folder, "case0001_slice000"), np.full_like(IMAGE, np.nan), LABEL)
    write(slice_path(folder, "case0001_slice002"), IMAGE, LABEL + 9)
    before = sorted(synapse.rglob("*"))
    with pytest.raises(Defects) as caught:
        inspect("Synapse", root_path=str(synapse))
    found = {defect.path.stem: defect.what for defect in caught.value.defects}
    assert list(found) == ["case0000_slice001", "case0001_slice000", "case0001_slice002"]
    assert all(word in what for word, what in zip(("readable", "NaN", "holds"), found.values(), strict=True))
    assert sorted(synapse.rglob("*")) == before and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("sample", [1, 2, 5, 64, None])
def test_a_sample_is_read_whole_and_of_others_the_headers(tmp_path: Path, sample: int | None) -> None:
    dataset = synapse_of(make_synapse(tmp_path / "d", train=1, shape=(9, 40, 40)))
    found = list(verify(dataset, slices(dataset), sample).values())
    whole = [index for index, facts in enumerate(found) if facts.labels]
    assert len(whole) == min(9, sample or 9) and whole[0] == 0 and (sample == 1 or whole[-1] == 8)
    assert {facts.shape for facts in found} == {(1, 40, 40)}


@pytest.mark.parametrize(
    ("kind", "is_seen"),
    [("pixels", False), ("shape", True), ("no label", True), ("empty", True), ("gone", True)],
)
def test_bad_headers_outside_the_sample_are_found(tmp_path: Path, kind: str, is_seen: bool) -> None:
    root = make_synapse(tmp_path / "d", train=1, shape=(9, 40, 40))
    dataset, path = synapse_of(root), slice_path(root / "train_npz", "case0000_slice001")
    cases = slices(dataset)
    if kind == "pixels":
        write(path, np.full_like(IMAGE, np.inf), LABEL)
    elif kind == "shape":
        write(path, IMAGE, LABEL[:8])
    elif kind == "no label":
        np.savez(path, image=IMAGE)
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    if not is_seen:
        verify(dataset, cases, 2)
        return
    with pytest.raises(Defects) as caught:
        verify(dataset, cases, 2)
    assert [defect.path for defect in caught.value.defects] == [path]


def test_progress_sees_every_case(synapse: Path) -> None:
    dataset, seen = synapse_of(synapse), []

    def progress(found: object) -> object:
        for facts in found:
            seen.append(facts)
            yield facts

    assert list(verify(dataset, slices(dataset), progress=progress).values()) == seen and len(seen) == 6


@pytest.mark.parametrize("name", ["case0000", "case0000.npy.h5"])
def test_a_case_that_trains_and_tests_is_refused(synapse: Path, name: str) -> None:
    (synapse / "lists/test_vol.txt").write_text(f"case0100\n{name}\n")
    (defect,) = leakage(synapse_of(synapse))
    assert defect.path.name == "test_vol.txt" and "names case0000, which train" in defect.what
    with pytest.raises(Defects, match="test_vol.txt: names case0000"):
        inspect("Synapse", root_path=str(synapse))


def test_classes_that_no_training_case_holds(tmp_path: Path) -> None:
    facts = [Facts((1, 2, 2), labels={0: 3, 2: 1}), Facts((1, 2, 2), labels={0: 4}), Facts((1, 2, 2))]
    (defect,) = absent_classes(facts, ["liver", "spleen", "aorta"], tmp_path)
    assert "holds class 1 (liver), 3 (aorta)" in defect.what
    assert not absent_classes(facts[:1], [], tmp_path) and not absent_classes([facts[2]], ["liver"], tmp_path)


def test_a_test_set_is_read_before_it_is_tested_on(synapse: Path) -> None:
    volumes = build_dataset("Synapse", "test", num_classes=9, root_path=str(synapse))
    volumes.check()
    write(volume_path(synapse / "test_vol_h5", "case0100"), *make_case(0, (2, 16, 16), 12))
    with pytest.raises(Defects, match="case0100.npy.h5: 'label' holds 1"):
        volumes.check()
