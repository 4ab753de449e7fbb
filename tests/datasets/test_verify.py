"""Every kind of defect, planted in real files and found by name; and what the quick look sees and leaves alone."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets.check
import h5py
import numpy as np
import pytest

from datasets import build_dataset, check_all, check_quick
from datasets.base import Geometry
from datasets.sets.synapse import (
    StackedSlices,
    SynapseSlices,
    read_slice,
    read_volume,
    slice_name,
    slice_path,
    volume_path,
    write,
)
from datasets.verify import (
    Defect,
    Finding,
    Header,
    case_defects,
    class_defects,
    inspect,
    name_defects,
    read_header,
    read_names,
    shared_cases,
    total_voxels,
)
from tests.conftest import make_case, make_synapse

IMAGE, LABEL = (array[0] for array in make_case(0, (1, 16, 16)))
GEOMETRY = Geometry((0.7, 0.8, 3.0), (1.0, 2.0, 3.0), axis_order="zxy")


def changed(array: np.ndarray, value: float) -> np.ndarray:
    """A float copy with one pixel of that value."""
    array = array.astype(np.float32)
    array[3, 4] = value
    return array


def text(path: Path) -> None:
    path.write_text("hello", encoding="utf-8")


def cut_short(path: Path) -> None:
    write(path, IMAGE, LABEL)
    path.write_bytes(path.read_bytes()[:-30])


def damage(path: Path, key: str = "image") -> None:
    """Flip one byte in the middle of the pixels of a stored npz array; its headers stay good."""
    with zipfile.ZipFile(path) as file:
        start, size = (getattr(file.getinfo(f"{key}.npy"), name) for name in ("header_offset", "file_size"))
    content = bytearray(path.read_bytes())
    content[start + size // 2 + 100] ^= 0xFF
    path.write_bytes(bytes(content))


def declare_more(path: Path) -> None:
    """Arrays whose headers ask for eight times the pixels that follow them: few enough to be believed."""
    with zipfile.ZipFile(path, "w") as file:
        for key, array in (("image", IMAGE), ("label", LABEL)):
            head = np.lib.format.header_data_from_array_1_0(array) | {"shape": (128, 16)}
            with file.open(f"{key}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(member, head)
                member.write(array.tobytes())


def packed_oddly(path: Path) -> None:
    """What numpy reads and `read_slice` does not."""
    write(path, IMAGE, LABEL)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name, content in members.items():
            file.writestr(name, content)


def npz(**arrays: object) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def h5(**arrays: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value

    return write


def both(**arrays: object) -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """A writer of a slice of these arrays, and one of a volume of one such plane."""
    volume = {key: value[None] if key in ("image", "label") else value for key, value in arrays.items()}
    return npz(**arrays), h5(**volume)


def kinds() -> dict[str, tuple[str, Callable[[Path], None], list[str]]]:
    """Name of the kind: file name, writer, and a part of each defect that must be found, in order."""
    planted = {
        "no image": (both(label=LABEL), ["holds no 'image'"]),
        "no label": (both(image=IMAGE), ["holds no 'label'"]),
        "shapes": (both(image=IMAGE, label=LABEL[:8]), ["'label' "]),
        "rank": ((npz(image=IMAGE[None], label=LABEL[None]), h5(image=IMAGE, label=LABEL)), ["dimensions"]),
        "text array": ((npz(image=np.full((16, 16), "a"), label=LABEL), h5(image=b"a", label=b"b")), ["'image' has"]),
        "nan": (both(image=changed(IMAGE, np.nan), label=LABEL), ["1 NaN or infinite values"]),
        "inf": (both(image=changed(IMAGE, -np.inf), label=LABEL), ["1 NaN or infinite values"]),
        "dark": (both(image=changed(IMAGE, -0.5), label=LABEL), ["ranges from -0.5 to "]),
        "bright": (both(image=changed(IMAGE, 3071), label=LABEL), ["to 3071; expected 0 to 1"]),
        "label high": (both(image=IMAGE, label=changed(LABEL * 0, 12)), ["'label' holds 12", "labels found: 0, 12"]),
        "label low": (both(image=IMAGE, label=changed(LABEL * 0, -2)), ["'label' holds -2", "labels found: -2, 0"]),
        "label part": (both(image=IMAGE, label=changed(LABEL * 0, 1.5)), ["holds 1.5", "labels found: 0, 1.5"]),
        "label nan": (both(image=IMAGE, label=changed(LABEL * 0, np.nan)), ["'label' holds NaN", "found: 0, nan"]),
        "flat": (
            both(image=IMAGE * 0 + 0.25, label=LABEL * 0 + 3),
            ["'image' is 0.25 everywhere, but 'label' marks 3"],
        ),
        "spacing": (
            both(image=IMAGE, label=LABEL, spacing=[0.0, 1, 1], origin=[0.0] * 3, direction=np.eye(3).ravel()),
            ["geometry is not understood"],
        ),
        "half a geometry": (both(image=IMAGE, label=LABEL, spacing=[1.0] * 3), ["lacks 'origin', 'direction'"]),
        "empty": (both(image=IMAGE[:0], label=LABEL[:0]), ["expected at least one pixel"]),
        "text": ((text, text), ["not a readable"]),
    }
    cases = {}
    for kind, (writers, parts) in planted.items():
        for name, write in zip(("a_slice000.npz", "a.npy.h5"), writers, strict=True):
            cases[f"{kind} {name[-3:]}"] = name, write, parts
    cases["cut short"] = "a_slice000.npz", cut_short, ["not a readable npz"]
    cases["no such size"] = "a_slice000.npz", declare_more, ["(128, 16)"]
    cases["packed oddly"] = "a_slice000.npz", packed_oddly, ["packed in an unusual way"]
    cases["large geometry"] = (
        "a_slice000.npz",
        npz(image=IMAGE, label=LABEL, spacing=np.ones(1000)),
        ["its geometry cannot be read ('spacing' takes"],
    )
    return cases


KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_defect_is_found_in_one_line(tmp_path: Path, kind: str) -> None:
    name, write, parts = KINDS[kind]
    write(tmp_path / name)
    finding = inspect(tmp_path / name, 9)
    assert [defect.path for defect in finding.defects] == [tmp_path / name]
    line = str(finding.defects[0])
    assert line.startswith(f"{tmp_path / name}: ") and "\n" not in line and line.count(name) == 1
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith("npz")])
def test_what_training_refuses_is_said_in_its_words(tmp_path: Path, kind: str) -> None:
    """Beyond what is only unlikely: an intensity, a flat image, a geometry."""
    name, write, _ = KINDS[kind]
    write(tmp_path / name)
    try:
        read_slice(tmp_path / name, 9)
    except ValueError as error:
        assert str(inspect(tmp_path / name, 9).defects[0]).startswith(str(error))
    else:
        assert kind.split()[0] in ("dark", "bright", "flat", "spacing", "half")


@pytest.mark.parametrize("name", ["a_slice000.npz", "a.npy.h5"])
def test_several_defects_of_one_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for arrays, expected in (
        ({"image": changed(IMAGE, np.nan), "label": changed(LABEL * 0, 9)}, ["NaN", "labels found: 0, 9"]),
        ({"image": IMAGE * 0 - 4, "label": LABEL * 0 + 1}, ["from -4 to -4", "is -4 everywhere"]),
        (
            {"image": IMAGE + 5, "label": LABEL, "origin": [0.0] * 3},
            ["lacks 'spacing', 'direction'", "expected 0 to 1"],
        ),
    ):
        both(**arrays)[name.endswith("h5")](path)
        found = [defect.what for defect in inspect(path, 9).defects]
        assert len(found) == 2 and all(part in what for part, what in zip(expected, found, strict=True)), found


def test_many_labels_are_not_all_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", image=IMAGE, label=np.arange(256).reshape(16, 16))
    assert str(inspect(tmp_path / "s.npz", 9).defects[0]).endswith("found: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...")


def test_a_clean_slice_and_what_it_holds(tmp_path: Path) -> None:
    label = np.zeros((16, 20), np.uint8)
    label[:2, :3], label[5, 5] = 4, 8
    image = np.linspace(0, 1, label.size).reshape(label.shape)
    write(tmp_path / "s.npz", image, label, GEOMETRY)
    found = inspect(tmp_path / "s.npz", 9)
    voxels = (320 - 7, 0, 0, 0, 6, 0, 0, 0, 1)
    dtypes = ("float64", "uint8")
    assert found == Finding(tmp_path / "s.npz", (), (16, 20), dtypes, 0.0, 1.0, voxels, (0.7, 0.8, 3.0), False)


def test_a_clean_volume_and_what_it_holds(tmp_path: Path) -> None:
    image, label = make_case(0, (3, 16, 24))
    write(tmp_path / "v.npy.h5", image, label.astype(np.float32))
    found = inspect(tmp_path / "v.npy.h5", 9)
    assert found.defects == () and found.shape == (3, 16, 24) and found.dtypes == ("float32", "float32")
    assert found.voxels == tuple(int((label == k).sum()) for k in range(9)) and found.spacing is None
    assert (found.low, found.high) == (image.min(), image.max())


def test_an_empty_slice_at_the_end_of_a_scan_is_no_defect(tmp_path: Path) -> None:
    write(tmp_path / "s.npz", IMAGE * 0, LABEL * 0)
    found = inspect(tmp_path / "s.npz", 9)
    assert found.blank and not found.defects
    write(tmp_path / "s.npz", IMAGE[:1, :1], LABEL[:1, :1] * 0 + 1)
    assert not inspect(tmp_path / "s.npz", 9).defects, "one pixel is always of one value"


def test_rounding_is_no_defect(tmp_path: Path) -> None:
    for value, count in ((1.00005, 0), (1.001, 1), (-0.00005, 0), (-0.001, 1)):
        np.savez(tmp_path / "s.npz", image=changed(IMAGE, value), label=LABEL)
        assert len(inspect(tmp_path / "s.npz", 9).defects) == count, value


def test_a_file_that_went_away(tmp_path: Path) -> None:
    for name in ("s.npz", "v.npy.h5"):
        (defect,) = inspect(tmp_path / name, 9).defects
        assert "no such" in defect.what


# Lists, cases, classes.


def test_lists_and_files_are_compared_both_ways(tmp_path: Path) -> None:
    for name in ("a", "b", "stray"):
        (tmp_path / f"{name}.npz").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    where = tmp_path / "train.txt"
    where.write_text("a\nb\na\n gone\na\n\n")
    names = read_names(where)
    assert names == ["a", "b", "a", "gone", "a"]
    found = list(name_defects(where, [slice_path(tmp_path, name) for name in names], tmp_path, "*.npz"))
    assert [defect.path.name for defect in found] == ["train.txt", "gone.npz", "stray.npz"]
    for defect, part in zip(found, ("names a.npz 3 times", "is not there", f"expected it in {where}"), strict=True):
        assert part in defect.what


@pytest.mark.parametrize("content", ["a\na\n../a\n", "../a\n", "", "a b\na b\n", "a\na\n\xff"])
def test_a_list_that_leads_astray_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.txt").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="train.txt: "):
        read_names(tmp_path / "train.txt")


def test_one_volume_by_two_names(tmp_path: Path) -> None:
    (tmp_path / "a.npy.h5").write_bytes(b"")
    paths = [volume_path(tmp_path, name) for name in ("a", "a.npy.h5")]
    (defect,) = name_defects(tmp_path / "test_vol.txt", paths, tmp_path, "*.h5")
    assert "names a.npy.h5 2 times" in str(defect)


def test_cases_in_both_lists(tmp_path: Path) -> None:
    train = [slice_name(case, index) for case in ("c1", "c2", "c3") for index in range(2)]
    found = list(shared_cases(train, ["c3.npy.h5", "c9", "c1"], tmp_path / "test_vol.txt"))
    assert [defect.path.name for defect in found] == ["test_vol.txt"] * 2
    assert "names c1," in found[0].what and "names c3," in found[1].what


def slices_of(case: str, *facts: tuple[tuple[int, ...], tuple[float, ...] | None]) -> list[Finding]:
    return [
        Finding(Path(f"{slice_name(case, index)}.npz"), shape=shape, spacing=spacing)
        for index, (shape, spacing) in enumerate(facts)
    ]


def test_slices_of_a_case_that_differ() -> None:
    near, far, size = (1.0, 1.0, 3.0), (1.0, 1.0, 5.0), (8, 8)
    same = slices_of("a", (size, near), (size, near)) + slices_of("b", ((9, 9), far), ((), None))
    assert not list(case_defects(same)), "cases may differ, and an unreadable slice has its own defect"
    odd = slices_of("c", (size, near), ((8, 9), near), (size, far), (size, None))
    found = [(defect.path.name, defect.what) for defect in case_defects(same + odd)]
    assert [name for name, _ in found] == ["c_slice001.npz", "c_slice002.npz", "c_slice003.npz"]
    assert "size (8, 9) but 3 of the 4 slices of c have (8, 8)" in found[0][1]
    assert "spacing (1.0, 1.0, 5.0) but 2 of the 4" in found[1][1] and "spacing None" in found[2][1]


def test_classes_that_no_slice_holds() -> None:
    findings = [Finding(Path("a"), voxels=(5, 1, 0, 0)), Finding(Path("b")), Finding(Path("c"), voxels=(5, 0, 0, 2))]
    assert total_voxels(findings, 4) == [10, 1, 0, 2] and total_voxels([], 2) == [0, 0]
    (defect,) = class_defects(findings, ["aorta", "liver", "spleen"], Path("train.txt"))
    assert defect.path == Path("train.txt") and "class 2 (liver); expected every class 1..3" in defect.what
    assert not list(class_defects(findings[1:2], ["aorta"], Path("train.txt"))), "not one slice could be read"


def test_a_defect_in_one_line() -> None:
    assert str(Defect(Path("a.npz"), "is odd")) == "a.npz: is odd"


# Headers.


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_header_of_a_slice(tmp_path: Path, save: Callable) -> None:
    save(tmp_path / "s.npz", image=np.asfortranarray(IMAGE[:9]), label=LABEL[:9].astype(np.int64), more=LABEL)
    assert read_header(tmp_path / "s.npz") == Header((9, 16), "float32", "int64")


def test_the_header_of_a_volume(tmp_path: Path) -> None:
    write(tmp_path / "v.npy.h5", np.zeros((40, 64, 64), np.float64), np.zeros((40, 64, 64), np.uint8))
    assert read_header(tmp_path / "v.npy.h5") == Header((40, 64, 64), "float64", "uint8")
    with h5py.File(tmp_path / "v.npy.h5", "w") as file:
        for key in ("image", "label"):
            file.create_dataset(key, shape=(10**5,) * 3, dtype="u1", chunks=(1, 64, 64))
    assert read_header(tmp_path / "v.npy.h5") is None, "a petabyte of nothing"


def test_packed_zeros_are_no_defect(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.npy.h5", "w") as file:
        for key in ("image", "label"):
            array = np.zeros((16, 512, 512), np.float32)
            file.create_dataset(key, data=array, chunks=array.shape, compression="gzip", compression_opts=9)
    assert read_header(tmp_path / "v.npy.h5") is not None


# The quick look.


def a_hundred(folder: Path) -> SynapseSlices:
    """So many slices that one in three is not read whole, and so large that zipfile's first buffer holds none."""
    root = make_synapse(folder / "many", train=25, shape=(4, 72, 72))
    return build_dataset("Synapse", "train", num_classes=9, root_path=str(root))


def read_by(dataset: SynapseSlices | StackedSlices, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the slices that the quick look reads whole."""
    seen: list[str] = []

    def spy(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        seen.append(path.stem)
        return read_slice(path, num_classes)

    monkeypatch.setattr(datasets.check, "read_slice", spy)
    check_quick(dataset)
    monkeypatch.undo()
    return sorted(seen)


def path_of(dataset: SynapseSlices, name: str) -> Path:
    return slice_path(dataset.folder, name)


def test_which_slices_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = a_hundred(tmp_path)
    read = read_by(dataset, monkeypatch)
    places = [dataset.names.index(name) for name in read]
    assert len(set(places)) == datasets.check.SAMPLE and (places[0], places[-1]) == (0, 99)
    assert set(np.diff(places)) == {1, 2}, "evenly spaced: 99 / 63 apart"
    few = SynapseSlices(dataset.folder, dataset.names[:64], 9)
    assert read_by(few, monkeypatch) == few.names
    assert read_by(StackedSlices(few), monkeypatch) == few.names
    assert read_by(SynapseSlices(dataset.folder, dataset.names[:1], 9), monkeypatch) == dataset.names[:1]
    assert read_by(StackedSlices(SynapseSlices(dataset.folder, [], 9)), monkeypatch) == []


def test_damage_inside_the_sample_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = a_hundred(tmp_path)
    path = path_of(dataset, read_by(dataset, monkeypatch)[30])
    np.savez(path, image=changed(IMAGE, np.nan), label=LABEL)
    with pytest.raises(ValueError, match=f"{path.name}: 'image' holds 1 NaN"):
        check_quick(dataset)
    np.savez(path, image=IMAGE, label=LABEL + 9)
    with pytest.raises(ValueError, match=f"{path.name}: 'label' holds"):
        check_quick(dataset)


def test_pixels_outside_the_sample_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = a_hundred(tmp_path)
    sampled = read_by(dataset, monkeypatch)
    path = path_of(dataset, next(name for name in dataset.names if name not in sampled))
    damage(path)
    check_quick(dataset)
    with pytest.raises(ValueError, match=f"{path.name}: is not a readable npz"):
        check_all(dataset)
    (defect,) = inspect(path, 9).defects
    assert "not a readable npz" in defect.what


BAD_HEADERS = ["no image", "no label", "shapes", "rank", "text array", "empty", "text"]


@pytest.mark.parametrize(
    "kind", [*(f"{kind} npz" for kind in BAD_HEADERS), "cut short", "no such size", "packed oddly"]
)
@pytest.mark.parametrize("stacked", [False, True])
def test_bad_headers_outside_the_sample_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stacked: bool
) -> None:
    dataset = a_hundred(tmp_path)
    sampled = read_by(dataset, monkeypatch)
    path = path_of(dataset, next(name for name in dataset.names if name not in sampled))
    looked_at = StackedSlices(dataset) if stacked else dataset
    KINDS[kind][1](path)
    with pytest.raises(ValueError) as own:
        read_slice(path, 9)
    with pytest.raises(ValueError) as found:
        check_quick(looked_at)
    assert str(found.value) == str(own.value) and str(path) in str(found.value)


def test_the_first_bad_file_is_named_whatever_is_wrong(tmp_path: Path) -> None:
    dataset = a_hundred(tmp_path)
    for name in (dataset.names[99], dataset.names[0], dataset.names[57]):
        path_of(dataset, name).write_text("hello")
    with pytest.raises(ValueError, match=dataset.names[0]):
        check_quick(dataset, threads=4)


def test_progress_sees_every_slice(tmp_path: Path) -> None:
    dataset = a_hundred(tmp_path)
    for looked_at in (dataset, StackedSlices(dataset)):
        seen: list[None] = []
        check_quick(looked_at, lambda items, seen=seen: map(seen.append, items))
        assert len(seen) == 100


def test_slices_in_a_cache_are_prepared(synapse: Path, tmp_path: Path) -> None:
    def cached() -> object:
        options = {"root_path": str(synapse), "cache": str(tmp_path / "cache")}
        return build_dataset("Synapse", "train", num_classes=9, **options)

    check_quick(cached())
    assert len(list((tmp_path / "cache").glob("*.json"))) == 1
    seen: list[object] = []
    check_quick(cached(), lambda items: (seen.append(item) or item for item in items))
    assert not seen, "what is in the cache was checked when it was built"
    np.savez(slice_path(synapse / "train_npz", "case0001_slice002"), image=changed(IMAGE, np.nan), label=LABEL)
    with pytest.raises(ValueError, match="case0001_slice002.npz"):
        check_quick(cached())


def test_a_volume_refused_is_said_in_the_words_of_the_test(tmp_path: Path) -> None:
    path = tmp_path / "v.npy.h5"
    h5(image=IMAGE[None], label=LABEL[None], spacing=[0.0] * 3, origin=[0.0] * 3, direction=[0.0] * 9)(path)
    with pytest.raises(ValueError) as own:
        read_volume(path, 9)
    assert [str(defect) for defect in inspect(path, 9).defects] == [str(own.value)]
