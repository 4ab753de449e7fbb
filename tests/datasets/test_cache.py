"""The cache of slices: the same samples, never those of other files, and never half a cache."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

import datasets.cache
from datasets import build_dataset, inspect
from datasets.cache import CachedSlices, keep_in_memory
from datasets.case import Case, Sample, Volume
from datasets.intensity import Intensity, Preprocessing
from datasets.loader import build_loader
from datasets.sets.synapse import Synapse, slice_path, write
from datasets.slices import CaseSlices
from tests.conftest import make_case, make_synapse
from tests.own_data import write_images, write_volumes


def slices_of(root: Path, **options: object) -> CaseSlices | CachedSlices:
    return build_dataset("Synapse", "train", num_classes=9, root_path=str(root), **options)


def cached(root: Path, folder: Path) -> CachedSlices:
    """As a new run finds it."""
    dataset = slices_of(root, cache=str(folder))
    dataset.prepare()
    return dataset


def assert_same(found: CachedSlices, expected: CaseSlices) -> None:
    assert len(found) == len(expected) and found.names == expected.names
    for got, sample in zip(found, expected, strict=True):
        assert isinstance(got, Sample) and got.name == sample.name
        assert (got.image.dtype, got.label.dtype) == (np.float32, np.uint8)
        np.testing.assert_array_equal(got.image, sample.image)
        np.testing.assert_array_equal(got.label, sample.label)


def mixed_slices(folder: Path) -> CaseSlices | CachedSlices:
    """Grey slices of two shapes; each record is 5 bytes a pixel."""
    root = make_synapse(folder / "d", train=2, shape=(3, 20, 20))
    write(slice_path(root / "train_npz", "case0001_slice002"), np.ones((24, 28), np.float32), np.ones((24, 28), "u1"))
    return slices_of(root)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The source files that are read, as they are read."""
    seen: list[Path] = []
    read = Synapse.read

    def spy(self: Synapse, case: Case) -> Volume:
        seen.append(case.images[0])
        return read(self, case)

    monkeypatch.setattr(Synapse, "read", spy)
    return seen


def files(folder: Path) -> dict[str, Path]:
    """The one data file and the one index of a cache, by suffix; nothing else lies there."""
    found = {path.suffix: path for path in folder.iterdir()}
    assert sorted(found) == [".bin", ".json"] and len(list(folder.iterdir())) == 2
    return found


@pytest.mark.parametrize("shape", [(3, 40, 40), (4, 13, 21)])
def test_same_samples_with_and_without(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    root = make_synapse(tmp_path / "d", shape=shape)
    write(slice_path(root / "train_npz", "case0001_slice001"), *(a[0] for a in make_case(5, (1, 11, 30))))
    for _ in range(2):
        assert_same(cached(root, tmp_path / "c"), slices_of(root))
    sample = cached(root, tmp_path / "c")[-1]
    np.testing.assert_array_equal(sample.image, slices_of(root)[-1].image)
    assert not sample.image.flags.writeable, "no one writes into the cache"
    assert sample.image.flags.aligned


def test_a_label_that_no_source_has_is_named(synapse: Path, tmp_path: Path) -> None:
    cached(synapse, tmp_path / "c")
    path = files(tmp_path / "c")[".bin"]
    content = bytearray(path.read_bytes())
    content[40 * 40 * 4 + 7] = 9  # of the first slice, of 40 x 40
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} .*: {slices_of(synapse).names[0]}: 'label' holds 9"):
        slices_of(synapse, cache=str(tmp_path / "c"))[0]


def test_same_batches_with_and_without(synapse: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        plain, from_cache = (
            list(build_loader(slices, size=(24, 24), batch_size=4, seed=0, workers=workers))
            for slices in (slices_of(synapse), cached(synapse, tmp_path / "c"))
        )
        for a, b in zip(plain, from_cache, strict=True):
            assert a.image.equal(b.image) and a.label.equal(b.label) and a.names == b.names


def test_sources_are_read_once(synapse: Path, tmp_path: Path, reads: list[Path]) -> None:
    list(cached(synapse, tmp_path / "c"))
    assert len(reads) == len(set(reads)) == 6
    list(cached(synapse, tmp_path / "c"))
    assert len(reads) == 6


def test_progress_is_told(synapse: Path, tmp_path: Path) -> None:
    told = []

    def progress(samples: object) -> object:
        for sample in samples:
            told.append(sample.name)
            yield sample

    dataset = slices_of(synapse, cache=str(tmp_path / "c"))
    dataset.prepare(progress)
    assert told == dataset.names


def replace_slice(root: Path) -> None:
    write(slice_path(root / "train_npz", "case0001_slice001"), *(a[0] for a in make_case(7, (1, 40, 40))))


def touch_slice(root: Path) -> None:
    path = slice_path(root / "train_npz", "case0000_slice002")
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def same_time_other_size(root: Path) -> None:
    path = slice_path(root / "train_npz", "case0000_slice002")
    time_stamp = path.stat().st_mtime_ns
    write(path, *(a[0] for a in make_case(7, (1, 20, 20))))
    os.utime(path, ns=(time_stamp, time_stamp))


@pytest.mark.parametrize("change", [replace_slice, touch_slice, same_time_other_size])
def test_a_changed_source_is_read_anew(
    synapse: Path, tmp_path: Path, reads: list[Path], change: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cached(synapse, tmp_path / "c")
    assert caplog.text.count("writing 6 of 6 slices") == 1
    change(synapse)
    reads.clear()
    caplog.clear()
    again = cached(synapse, tmp_path / "c")
    assert len(reads) == 6
    assert caplog.text.count("writing 6 of 6 slices") == 1
    assert_same(again, slices_of(synapse))
    files(tmp_path / "c")  # what belonged to the older files is gone


def shorter(root: Path) -> None:
    names = (root / "lists/train.txt").read_text(encoding="utf-8").split()
    (root / "lists/train.txt").write_text("\n".join(names[:-1]))


def reordered(root: Path) -> None:
    names = (root / "lists/train.txt").read_text(encoding="utf-8").split()
    (root / "lists/train.txt").write_text("\n".join(reversed(names)))


@pytest.mark.parametrize("change", [shorter, reordered])
def test_another_list_is_another_cache(synapse: Path, tmp_path: Path, change: object) -> None:
    before = cached(synapse, tmp_path / "c")
    expected = list(slices_of(synapse))
    change(synapse)
    assert_same(cached(synapse, tmp_path / "c"), slices_of(synapse))
    assert [sample.name for sample in before] == [sample.name for sample in expected], "a run under way is left alone"


def test_labels_are_checked_for_the_classes_of_this_run(synapse: Path, tmp_path: Path) -> None:
    cached(synapse, tmp_path / "c")
    fewer = build_dataset("Synapse", "train", num_classes=5, root_path=str(synapse), cache=str(tmp_path / "c"))
    with pytest.raises(ValueError, match="expected 0..4"):
        fewer.prepare()


def test_data_sets_share_a_folder(tmp_path: Path) -> None:
    """Two folders of equal names, and the training and validation slices of one list."""
    roots = [make_synapse(tmp_path / name, shape=shape) for name, shape in (("a", (3, 40, 40)), ("b", (3, 24, 24)))]
    found = [cached(root, tmp_path / "c") for root in roots]
    for root, dataset in zip(roots, found, strict=True):
        assert_same(dataset, slices_of(root))
        assert_same(cached(root, tmp_path / "c"), slices_of(root))
    train, val = (
        build_dataset("Synapse", split, num_classes=9, root_path=str(roots[0]), val_cases=1, cache=str(tmp_path / "c"))
        for split in ("train", "val")
    )
    assert_same(train, slices_of(roots[0], val_cases=1))
    np.testing.assert_array_equal(val[0].label, make_case(1, (3, 40, 40))[1])
    assert val.cases == ["case0001"]


def test_nothing_to_hold_out_leaves_nothing(synapse: Path, tmp_path: Path) -> None:
    val = build_dataset("Synapse", "val", num_classes=9, root_path=str(synapse), cache=str(tmp_path / "c"))
    assert not len(val) and not (tmp_path / "c").exists()


@pytest.mark.parametrize("suffix", [".bin", ".json"])
@pytest.mark.parametrize("keep", [0, 1, 100, -1, None])
def test_damaged_files_are_made_anew(synapse: Path, tmp_path: Path, suffix: str, keep: int | None) -> None:
    cached(synapse, tmp_path / "c")
    whole = {s: path.read_bytes() for s, path in files(tmp_path / "c").items()}
    path = files(tmp_path / "c")[suffix]
    path.unlink() if keep is None else path.write_bytes(whole[suffix][:keep])
    assert_same(cached(synapse, tmp_path / "c"), slices_of(synapse))
    assert {s: path.read_bytes() for s, path in files(tmp_path / "c").items()} == whole


ONE_FOR_SIX = "[[240, 40]]"


@pytest.mark.parametrize("content", ["[]", "{}", "null", "3", "[[40]]", ONE_FOR_SIX, "\udcff"])
def test_a_damaged_index_is_made_anew(synapse: Path, tmp_path: Path, content: str) -> None:
    cached(synapse, tmp_path / "c")
    files(tmp_path / "c")[".json"].write_bytes(content.encode(errors="surrogateescape"))
    assert_same(cached(synapse, tmp_path / "c"), slices_of(synapse))


def test_a_bad_slice_is_refused_by_name_and_leaves_nothing(synapse: Path, tmp_path: Path) -> None:
    slice_path(synapse / "train_npz", "case0001_slice000").write_text("no slice")
    for _ in range(2):
        with pytest.raises(ValueError, match="case0001_slice000.npz: is not a readable npz"):
            cached(synapse, tmp_path / "c")
        assert not list((tmp_path / "c").iterdir())


def test_a_folder_that_cannot_be_written(synapse: Path, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file")
    for folder in (tmp_path / "c", tmp_path / "c/below"):
        with pytest.raises(ValueError, match="^--cache: .*c.* cannot be written"):
            cached(synapse, folder)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk(synapse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        monkeypatch.setattr(datasets.cache, "_record", full)
    else:
        monkeypatch.setattr(datasets.cache.os, call, full)
    with pytest.raises(ValueError, match=r"^--cache: .* cannot be written \(No space left on device\)"):
        cached(synapse, tmp_path / "c")
    assert not list((tmp_path / "c").iterdir())
    monkeypatch.undo()
    assert_same(cached(synapse, tmp_path / "c"), slices_of(synapse))


def test_a_killed_build_is_not_believed(synapse: Path, tmp_path: Path) -> None:
    """What it leaves is not taken for a cache, and is deleted once it is old; that of a build under way stays."""
    cached(synapse, tmp_path / "c")
    data, index = (files(tmp_path / "c")[suffix] for suffix in (".bin", ".json"))
    left = [tmp_path / f"c/.{data.stem}.{number}.partial" for number in (1, 2)]
    for path in left:
        path.write_bytes(data.read_bytes()[:1000])
    os.utime(left[0], (time.time() - 7200,) * 2)
    index.unlink()
    assert_same(cached(synapse, tmp_path / "c"), slices_of(synapse))
    assert [path.exists() for path in left] == [False, True]


def test_simultaneous_builds(synapse: Path, tmp_path: Path) -> None:
    """One that is finished while another builds: both end with the same cache."""
    first, second = (slices_of(synapse, cache=str(tmp_path / "c")) for _ in range(2))

    def meanwhile(samples: object) -> object:
        for number, sample in enumerate(samples):
            if number == 3:
                second.prepare()
            yield sample

    first.prepare(meanwhile)
    for dataset in (first, second, cached(synapse, tmp_path / "c")):
        assert_same(dataset, slices_of(synapse))
    files(tmp_path / "c")


def test_pickles_without_the_data(synapse: Path, tmp_path: Path) -> None:
    dataset = cached(synapse, tmp_path / "c")
    list(dataset)
    text = pickle.dumps(dataset)
    assert len(text) < 3000 < files(tmp_path / "c")[".bin"].stat().st_size
    assert_same(pickle.loads(text), slices_of(synapse))


def test_volumes_have_a_file_each_that_folds_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = write_volumes(tmp_path / "own", 5)
    keys = inspect("Folder", root_path=str(root), folds=2)
    how = Preprocessing((0, 1, 2), 1, Intensity("percentile"), keys["DATA.AXIS_ORDER"], "LPS")
    seen = []
    for fold in range(2):
        slices = build_dataset(
            "Folder", "train", num_classes=3, root_path=str(root), folds=2, fold=fold, preprocessing=how
        )
        caplog.clear()
        slices.prepare()
        assert caplog.text.count(f"writing {len(slices)} of {len(slices)} slices") == 1
        seen += slices.names
        for volume in sorted({name.rsplit("_slice", 1)[0] for name in slices.names}):
            whole = datasets.open_dataset("Folder", root_path=str(root), num_classes=3, how=how)
            expected = whole.read(whole.cases([volume], "train")[0])
            of_it = [slices[index] for index, name in enumerate(slices.names) if name.startswith(f"{volume}_slice")]
            np.testing.assert_array_equal(np.stack([sample.image for sample in of_it]), expected.image)
            np.testing.assert_array_equal(np.stack([sample.label for sample in of_it]), expected.label)
    assert len(set(seen)) == len(seen) and len(list((root / "cache").glob("*.bin"))) == len(seen) // 6
    (path,) = (root / "images").glob("case0.*")
    path.touch()
    slices = CachedSlices(whole, list(whole._cases.values()), root / "cache")
    caplog.clear()
    slices.prepare()
    assert f"of {len(slices)} slices" in caplog.text and f"writing {len(slices)} of" not in caplog.text


@pytest.mark.parametrize("room", [6, 3, 0])
def test_slices_stay_in_memory_until_it_is_full(tmp_path: Path, reads: list[Path], room: int) -> None:
    slices = mixed_slices(tmp_path)
    kept = keep_in_memory(slices, 1 << 20 if room == 6 else 2000 * room + 1)
    assert_same(kept, slices)
    reads.clear()
    names = [sample.name for sample in kept]
    assert len(reads) == 6 - room and names == slices.names
    assert_same(kept, slices)
    if room:
        with pytest.raises(ValueError, match="read-only"):
            kept[0].image[0, 0] = 1
    assert [path.name for path in kept.files] == [path.name for path in slices.files]


def test_colored_slices_stay_in_memory(tmp_path: Path) -> None:
    write_images(tmp_path / "Folder")
    how = {"root_path": str(tmp_path / "Folder"), "num_classes": 2}
    inspect("Folder", root_path=how["root_path"])
    slices = build_dataset("Folder", "train", **how, preprocessing=Preprocessing((0, 255), 3, Intensity("range")))
    kept = keep_in_memory(slices, 1 << 24)
    for _ in range(2):
        assert_same(kept, slices)


def test_workers_share_what_is_in_memory(tmp_path: Path) -> None:
    """The second epoch reads no file; a process that is no copy of this one reads them."""
    slices = mixed_slices(tmp_path)
    kept = keep_in_memory(slices, 1 << 20)
    assert_same(pickle.loads(pickle.dumps(kept)), slices)
    loader, expected = (
        build_loader(part, size=(16, 16), batch_size=2, seed=3, workers=workers)
        for part, workers in ((kept, 2), (slices, 0))
    )
    for epoch in range(2):
        loader.sampler.epoch = expected.sampler.epoch = epoch
        batches = list(expected)
        for path in slices.files if epoch else ():
            path.unlink()
        for got, want in zip(loader, batches, strict=True):
            assert got.names == want.names
            np.testing.assert_array_equal(got.image.numpy(), want.image.numpy())
            np.testing.assert_array_equal(got.label.numpy(), want.label.numpy())
    loader.close()
