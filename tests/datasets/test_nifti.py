"""NIfTI in: axes, orientation, the numbers themselves, slices in bounded memory, and the files that are refused."""

from __future__ import annotations

import gzip
import itertools
import os
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from datasets import nifti
from datasets.axes import check_same_grid, orientation
from datasets.base import Geometry
from datasets.nifti import open_image, read_header, read_image, stem_of
from tests.conftest import ROOT, SHARED

sitk = pytest.importorskip("SimpleITK")

EXAMPLES = SHARED / "data" / "ct_examples"
needs_examples = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the CT examples are not here (../shared/data)")

# All ways to name the ends of three axes, one of R and L, one of A and P, one of I and S.
CODES = ["".join(code) for pairs in itertools.permutations(("RL", "AP", "IS")) for code in itertools.product(*pairs)]
TYPES = {2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 1024: "i8", 1280: "u8", 16: "f4", 64: "f8"}


def grid(path: Path) -> tuple:
    """Size, spacing, origin and direction as SimpleITK reads them, no code of ours between."""
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def save(path: Path, zyx: np.ndarray, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=None) -> Path:
    image = sitk.GetImageFromArray(zyx)
    image.SetSpacing([float(value) for value in spacing])
    image.SetOrigin([float(value) for value in origin])
    if direction is not None:
        image.SetDirection([float(value) for value in np.ravel(direction)])
    sitk.WriteImage(image, str(path))
    return path


def patched(path: Path, source: Path, layout: str, offset: int, *values: float) -> Path:
    """A copy of an uncompressed file with header fields overwritten."""
    content = bytearray(source.read_bytes())
    struct.pack_into(f"<{layout}", content, offset, *values)
    path.write_bytes(content)
    return path


@pytest.fixture
def volume(tmp_path):
    rng = np.random.default_rng(0)
    return save(tmp_path / "volume.nii", rng.integers(-1000, 1000, (3, 4, 5)).astype(np.int16))


def test_the_marked_voxel_arrives_where_the_axis_order_says(tmp_path):
    x, y, z = 4, 1, 2
    zyx = np.zeros((3, 6, 5), dtype=np.int16)
    zyx[z, y, x] = 7
    path = save(tmp_path / "mark.nii.gz", zyx, spacing=(0.5, 0.75, 3.0))
    published, geometry = read_image(path)
    assert published.shape == (3, 5, 6) and published[z, x, y] == 7 and published.dtype == np.int16
    assert geometry.axis_order == "zxy" and geometry.array_spacing == (3.0, 0.5, 0.75)
    theirs, geometry = read_image(path, "zyx")
    np.testing.assert_array_equal(theirs, zyx)
    assert geometry.array_spacing == (3.0, 0.75, 0.5)
    assert read_header(path) == (published.shape, read_image(path)[1])


def directions() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    oblique = list(Rotation.from_quat(rng.normal(size=(12, 4))).as_matrix())
    tilted = list(Rotation.from_rotvec(rng.normal(scale=0.05, size=(6, 3))).as_matrix())
    mirrored = [matrix @ np.diag([-1.0, 1.0, 1.0]) for matrix in oblique[:6]]
    axes = [np.diag([-1.0, -1.0, 1.0]), np.diag([1.0, -1.0, 1.0]), np.eye(3)[[1, 2, 0]], -np.eye(3)[[2, 1, 0]]]
    return oblique + tilted + mirrored + axes


# Each makes a bad file from a good one. The offsets are NIfTI-1's: dim 40, datatype 70, pixdim 80, sform 280.
BAD_FILES = {
    "text": lambda path, good: path.write_text("not an image\n" * 50),
    "empty": lambda path, good: path.write_bytes(b""),
    "header cut": lambda path, good: path.write_bytes(good.read_bytes()[:100]),
    "voxels cut": lambda path, good: path.write_bytes(good.read_bytes()[:-1]),
    "2-D": lambda path, good: patched(path, good, "8h", 40, 2, 5, 4, 1, 1, 1, 1, 1),
    "4-D": lambda path, good: patched(path, good, "8h", 40, 4, 5, 2, 3, 2, 1, 1, 1),
    "vector": lambda path, good: patched(path, good, "8h", 40, 5, 5, 2, 3, 1, 2, 1, 1),
    "bad dim": lambda path, good: patched(path, good, "8h", 40, 3, -5, 4, 3, 1, 1, 1, 1),
    "RGB": lambda path, good: patched(path, good, "2h", 70, 128, 24),
    "negative spacing": lambda path, good: patched(path, good, "f", 80, -1.0),
    "NaN position": lambda path, good: patched(path, good, "f", 280, float("nan")),
    "no data type": lambda path, good: patched(path, good, "h", 70, 0),
    "zero spacing": lambda path, good: patched(path, good, "3f", 80, 0.0, 0.0, 0.0),
    "32767 dimensions": lambda path, good: patched(path, good, "8h", 40, 32767, 5, 4, 3, 1, 1, 1, 1),
    "more voxels than any scan": lambda path, good: patched(path, good, "8h", 40, 3, 32767, 32767, 32767, 1, 1, 1, 1),
    "more voxels than fit": lambda path, good: patched(path, good, "8h", 40, 3, 1000, 1000, 900, 1, 1, 1, 1),
    "voxels far off": lambda path, good: patched(path, good, "f", 108, 1e30),
    "skewed": lambda path, good: patched(path, patched(path, good, "h", 252, 0), "f", 284, 0.5),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_that_names_it(tmp_path, volume, kind, capfd):
    bad = tmp_path / "bad.nii"
    BAD_FILES[kind](bad, volume)
    with pytest.raises(ValueError, match="bad.nii") as caught:
        read_image(bad)
    assert len(str(caught.value).splitlines()) == 1 and "expected" in str(caught.value)
    assert capfd.readouterr().err == "", "the libraries below must not write past our one line"


@pytest.mark.parametrize("keep", [10, 100, 0.5, -9, -4, -1])
def test_a_gzip_file_cut_short_is_refused_though_simpleitk_would_read_it(tmp_path, keep):
    whole = save(tmp_path / "whole.nii.gz", np.random.default_rng(5).integers(0, 999, (9, 20, 20)).astype(np.int16))
    content = whole.read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"cut\.nii\.gz"):
        read_image(tmp_path / "cut.nii.gz")


def test_a_gzip_file_with_a_flipped_bit_is_refused(tmp_path):
    whole = save(tmp_path / "whole.nii.gz", np.random.default_rng(6).integers(0, 999, (9, 20, 20)).astype(np.int16))
    content = bytearray(whole.read_bytes())
    content[len(content) // 2] ^= 1
    whole.write_bytes(content)
    with pytest.raises(ValueError, match=r"whole\.nii\.gz"):
        read_image(whole)


@pytest.mark.parametrize("promised", [False, True])
def test_a_gzip_bomb_is_not_unpacked(tmp_path, promised):
    """256 MB of zeros in 256 kB, behind the voxels or as the voxels; at most a fraction may be taken for it."""
    content = bytearray(gzip.decompress(save(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.int16)).read_bytes()))
    if promised:
        struct.pack_into("<8h", content, 40, 3, 32767, 32767, 32, 1, 1, 1, 1)
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(content)) + gzip.compress(bytes(2**24)) * 16)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.nii\.gz: "):
            read_image(tmp_path / "bomb.nii.gz")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_few_bytes_behind_the_voxels_are_no_fault(tmp_path, volume):
    expected = read_image(volume)[0]
    volume.write_bytes(volume.read_bytes() + bytes(999))
    np.testing.assert_array_equal(read_image(volume)[0], expected)


def test_blocks_are_put_together_again(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "_BLOCK", 16)
    voxels = np.random.default_rng(7).normal(size=(3, 5, 7)).astype(np.float64)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.nii.gz", voxels), "zyx")[0], voxels)
    voxels[2, 4, 6] = voxels[0, 0, 3] = np.nan
    with pytest.raises(ValueError, match="holds 2 NaN"):
        read_image(save(tmp_path / "b.nii.gz", voxels))


@pytest.mark.parametrize(("dtype", "value"), [(np.float32, np.nan), (np.float32, -np.inf), (np.float64, np.inf)])
def test_voxels_that_are_no_numbers_are_refused_though_simpleitk_would_make_them_zero(tmp_path, dtype, value):
    voxels = np.ones((2, 3, 4), dtype=dtype)
    voxels[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"bad\.nii\.gz: holds 1 NaN or infinite"):
        read_image(save(tmp_path / "bad.nii.gz", voxels))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_image(tmp_path / "absent.nii.gz")


def test_one_frame_in_four_dimensions_and_a_foreign_gzip_are_read(tmp_path, volume):
    expected = read_image(volume)[0]
    framed = patched(tmp_path / "framed.nii", volume, "8h", 40, 4, 5, 4, 3, 1, 1, 1, 1)
    np.testing.assert_array_equal(read_image(framed)[0], expected)
    packed = tmp_path / "packed.nii.gz"
    packed.write_bytes(gzip.compress(volume.read_bytes()))
    np.testing.assert_array_equal(read_image(packed)[0], expected)


def test_an_unknown_axis_order_is_refused(volume):
    with pytest.raises(ValueError, match="axis order 'xx'"):
        read_image(volume, "xx")


def test_orientation_letters():
    assert orientation(Geometry()) == "LPS"
    assert orientation(Geometry(direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0))) == "RAI"
    tilted = Rotation.from_rotvec([0.3, -0.2, 0.1]).as_matrix()[:, [2, 0, 1]]
    assert orientation(Geometry(direction=tuple(tilted.ravel()))) == "SLP"


def raw_nifti(path: Path, code: int, order: str, slope: float, intercept: float, shape=(4, 3, 5)) -> Path:
    """A file of random voxels written byte by byte, no library between."""
    rng, dtype = np.random.default_rng(code), np.dtype(TYPES[code])
    voxels = rng.normal(scale=1e3, size=np.prod(shape))
    if dtype.kind != "f":
        info = np.iinfo(dtype)
        voxels = rng.integers(info.min, info.max, np.prod(shape), dtype, endpoint=True)
    header = bytearray(352)
    for offset, layout, *values in (
        (0, "i", 348),
        (40, "8h", 3, *shape, 1, 1, 1, 1),
        (70, "2h", code, 8 * dtype.itemsize),
        (76, "8f", 1, 0.5, 0.75, 3, 1, 1, 1, 1),
        (108, "3f", 352, slope, intercept),
        (252, "2h", 0, 1),
        (280, "12f", -0.5, 0, 0, 7, 0, 0.75, 0, 8, 0, 0, 3, 9),
    ):
        struct.pack_into(f"{order}{layout}", header, offset, *values)
    header[344:348] = b"n+1\0"
    content = bytes(header) + voxels.astype(dtype.newbyteorder(order)).tobytes()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("code", TYPES, ids=TYPES.get)
def test_numbers_are_those_of_simpleitk(tmp_path, code, order, name):
    nan, inf = float("nan"), float("inf")
    for scale in [(0, 0), (1, 0), (0, 5), (1, 7), (2.5, -3.25), (-1, 0), (1e-20, 0), (1 + 1e-7, 0), (nan, 3), (3, inf)]:
        path = raw_nifti(tmp_path / name, code, order, *scale)
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for axis_order in ("zyx", "xzy"):
            image, (whole, geometry) = open_image(path, axis_order), read_image(path, axis_order)
            theirs = expected.transpose(["zyx".index(axis) for axis in axis_order])
            for ours in (image[:], whole):
                assert ours.dtype == theirs.dtype == image.dtype and ours.dtype.isnative
                np.testing.assert_array_equal(ours, theirs)
            assert image.shape == theirs.shape and image.ndim == 3 and image.geometry == geometry


@pytest.mark.parametrize("offset", [0, 348, 349, 352, 352.9, 1000])
def test_voxels_begin_where_simpleitk_has_them_begin(tmp_path, volume, offset):
    path = patched(tmp_path / "a.nii", volume, "f", 108, offset)
    path.write_bytes(path.read_bytes() + bytes(range(256)) * 4)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(open_image(path, "zyx")[:], expected)


SLICES = [slice(None), slice(2, 3), slice(1, 4), slice(-2, None), slice(3, 2), slice(None, None, -1), slice(4, 0, -3)]


@pytest.mark.parametrize("ahead", [1, 100, 2**26], ids="{} bytes ahead".format)
@pytest.mark.parametrize("axis_order", ["".join(order) for order in itertools.permutations("xyz")])
def test_slices_are_those_of_the_whole(tmp_path, monkeypatch, axis_order, ahead):
    monkeypatch.setattr(nifti, "_AHEAD", ahead)
    voxels = np.random.default_rng(8).integers(-999, 999, (7, 6, 5)).astype(np.int16)
    for name in ("a.nii", "a.nii.gz"):
        path = save(tmp_path / name, voxels)
        for towards in ("", "LPS", "RAI", "SLP"):
            whole, image = read_image(path, axis_order, towards)[0], open_image(path, axis_order, towards)
            assert len(image) == len(whole) and image.shape == whole.shape
            for part in (*SLICES, *(slice(row, row + 2) for row in range(7))):
                np.testing.assert_array_equal(image[part], whole[part], err_msg=f"{name} {towards} {part}")


def test_what_is_handed_out_is_the_callers_own(tmp_path, volume):
    for axis_order in ("zyx", "xyz"):
        image = open_image(volume, axis_order)
        expected = image[:].copy()
        image[1:3][:] = 0
        np.testing.assert_array_equal(image[:], expected)


@needs_examples
def test_a_scan_is_the_same_array_in_every_orientation(tmp_path):
    """Their files are turned by SimpleITK; 48 of them lie the same way once they are read."""
    scan = sitk.ReadImage(str(EXAMPLES / "ct01_image.nii.gz"))[20:60, 30:60, 40:60]
    expected = sitk.GetArrayFromImage(sitk.DICOMOrient(scan, "RAS"))  # [z, y, x]
    assert len(set(CODES)) == 48 and len(np.unique(expected)) > 500
    for code in CODES:
        path = tmp_path / f"{code}.nii"
        sitk.WriteImage(sitk.DICOMOrient(scan, code), str(path))
        assert orientation(read_header(path)[1]) == code
        array, geometry = read_image(path, "zxy", "RAS")
        np.testing.assert_array_equal(array, expected.transpose(0, 2, 1), err_msg=code)
        image = open_image(path, "zxy", "RAS")
        np.testing.assert_array_equal(image[3:9], array[3:9], err_msg=code)
        assert (image.shape, image.geometry) == (array.shape, geometry) == read_header(path, "zxy", "RAS")
        assert sorted(geometry.axis_order) == ["x", "y", "z"]


@pytest.mark.parametrize("towards", ["RAS", "PIR"])
def test_oblique_axes_are_turned_to_the_nearest(tmp_path, towards):
    ends = {"R": -1.0, "L": 1.0, "A": -1.0, "P": 1.0, "I": -1.0, "S": 1.0}  # of the patient's axes, LPS
    for number, direction in enumerate(directions()):
        path = save(tmp_path / "a.nii", np.zeros((3, 4, 5), np.int16), (0.7, 0.8, 2.0), (5.0, 6.0, 7.0), direction)
        geometry = read_header(path, "xyz", towards)[1]
        theirs = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(np.ravel(direction).tolist())
        assert orientation(geometry) == theirs, number
        columns = np.reshape(geometry.direction, (3, 3)).T
        for letter, axis in zip(towards, geometry.axis_order, strict=True):
            along = columns["xyz".index(axis)] * (-1.0 if axis in geometry.flips else 1.0)
            patient_axis = next(i for i, pair in enumerate(("RL", "AP", "IS")) if letter in pair)
            assert along[patient_axis] * ends[letter] > 0, (number, letter)


@pytest.mark.parametrize("code", ["RAX", "RA", "RLS", "RASS", "ras", "RRR", " RAS"])
def test_an_unknown_orientation_is_refused(volume, code):
    for call in (read_header, read_image, open_image):
        with pytest.raises(ValueError, match="DATA.ORIENTATION is '"):
            call(volume, "zxy", code)


def test_a_file_that_does_not_say_where_its_axes_point_is_not_turned(tmp_path, volume):
    path = patched(tmp_path / "nowhere.nii", volume, "2h", 252, 0, 0)
    assert read_image(path)[0].shape == (3, 5, 4)
    with pytest.raises(ValueError, match=r"nowhere\.nii: does not say where its axes point.*DATA\.ORIENTATION"):
        read_image(path, "zxy", "RAS")


def test_a_file_that_changes_after_it_was_opened_is_named(tmp_path, volume):
    image = open_image(volume)
    volume.write_bytes(volume.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"volume\.nii: .* shorter"):
        image[:]
    packed = save(tmp_path / "packed.nii.gz", np.ones((3, 4, 5), np.int16))
    image = open_image(packed, whole=False)
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"packed\.nii\.gz: is not a readable"):
        image[:]


def test_several_threads_read_one_image(tmp_path):
    voxels = np.random.default_rng(9).integers(0, 999, (64, 40, 30)).astype(np.int16)
    image = open_image(save(tmp_path / "a.nii.gz", voxels), "zyx")
    rows = [row for row in range(64) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        for row, found in zip(rows, pool.map(lambda row: image[row : row + 1], rows), strict=True):
            np.testing.assert_array_equal(found[0], voxels[row])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files in /proc")
def test_the_unpacked_file_goes_with_the_image(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def unpacked() -> int:
        links = []
        for descriptor in Path("/proc/self/fd").iterdir():
            try:
                links.append(os.readlink(descriptor))
            except FileNotFoundError:  # that of the listing itself
                continue
        return sum(link.startswith(str(tmp_path / "temporary")) for link in links)

    image = open_image(save(tmp_path / "a.nii.gz", np.ones((3, 4, 5), np.int16)))
    assert unpacked() == 0, "nothing is unpacked before it is needed"
    assert image[:].sum() == 60
    assert unpacked() == 1 and list((tmp_path / "temporary").iterdir()) == []
    del image
    assert unpacked() == 0


def run_limited(code: str, *words: object) -> str:
    """Run Python code in a process of its own, with `limit(MiB)` to bound what memory it may take from there on."""
    begin = (
        "import resource, sys, numpy as np\n"
        "from datasets.nifti import open_image, quiet_sitk\n"
        "from evaluation.masks import write_mask\n"
        "def limit(mib):\n"
        "    with open('/proc/self/statm') as file:\n"
        "        most = int(file.read().split()[0]) * resource.getpagesize() + mib * 2**20\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "quiet_sitk()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + code, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def large_nifti(path: Path, shape: tuple[int, int, int]) -> Path:
    """An int16 file of zeros with a one in its last voxel; it takes next to no room on the disk."""
    save(path.with_name("small.nii"), np.zeros((1, 1, 1), np.int16))
    header = bytearray(path.with_name("small.nii").read_bytes()[:352])
    struct.pack_into("<3h", header, 42, *shape)
    size = 2 * np.prod(shape, dtype=int)
    if path.suffix == ".gz":
        with gzip.open(path, "wb", 6) as file:
            file.write(header)
            for first in range(0, size - 2, 2**24):
                file.write(bytes(min(2**24, size - 2 - first)))
            file.write(b"\1\0")
    else:
        with path.open("wb") as file:
            file.write(header)
            file.truncate(352 + size - 2)
            file.seek(0, os.SEEK_END)
            file.write(b"\1\0")
    return path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds the memory by Linux's means")
@pytest.mark.parametrize(("name", "axes"), [("a.nii", "zxy"), ("a.nii", "xzy"), ("a.nii.gz", "zxy")])
def test_a_large_file_is_read_in_less_memory_than_it_takes(tmp_path, name, axes):
    """320 MB in 160 MB at most, where the whole of it does not fit."""
    path = large_nifti(tmp_path / name, (640, 512, 512))
    code = (
        "limit(160)\n"
        "image, total = open_image(sys.argv[1], sys.argv[2], ''), 0\n"
        "for first in range(0, len(image), 8): total += int(image[first : first + 8].sum())\n"
        "try: image[:]\n"
        "except MemoryError: print(total, image.shape)\n"
    )
    shape = {"zxy": (512, 640, 512), "xzy": (640, 512, 512)}[axes]
    assert run_limited(code, path, axes) == f"1 {shape}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds a file's size by Linux's means")
def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(10).integers(0, 999, (9, 200, 200)).astype(np.int16))
    code = (
        "import signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try: open_image(sys.argv[1])[:]\n"
        "except OSError as error: print(error)\n"
    )
    (tmp_path / "room").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "room"))
    said = run_limited(code, path)
    assert said.startswith(f"{path}: cannot be unpacked into the temporary folder {tmp_path / 'room'} (")
    assert "TMPDIR" in said and list((tmp_path / "room").iterdir()) == []


def test_a_label_on_another_grid_is_refused(tmp_path):
    here, there = Path("label.nii"), Path("image.nii")
    same = Geometry((1.0, 1.0, 2.0), (5.0, 6.0, 7.0))
    check_same_grid(here, (2, 3, 4), same, there, (2, 3, 4), Geometry((1.0, 1.0, 2.0), (5.0, 6.0, 7.0005)))
    for shape, geometry, what in (
        ((2, 3, 5), same, "size"),
        ((2, 3, 4), Geometry((1.0, 1.0, 2.1), (5.0, 6.0, 7.0)), "spacing"),
        ((2, 3, 4), Geometry((1.0, 1.0, 2.0), (5.0, 6.0, 9.0)), "origin"),
        ((2, 3, 4), Geometry(same.spacing, same.origin, (-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)), "direction"),
    ):
        with pytest.raises(ValueError, match=rf"label\.nii: .*{what}.*image\.nii.*expected"):
            check_same_grid(here, shape, geometry, there, (2, 3, 4), same)


@pytest.mark.parametrize("name", ["a.b.nii.gz", "a.b.nii", "a.b.NII.GZ", "a.b.png"])
def test_the_stem_of_a_name(name):
    assert stem_of(Path("folder") / name) == "a.b"


def test_a_name_in_capitals_is_read_and_another_refused(tmp_path, volume, capfd):
    expected = read_image(volume)[0]
    np.testing.assert_array_equal(read_image(volume.rename(tmp_path / "A.NII"))[0], expected)
    for name in ("A.Nii", "A.img"):
        with pytest.raises(ValueError, match=rf"{name}: is no NIfTI file by its name; expected"):
            open_image((tmp_path / "A.NII").rename(tmp_path / name))
        (tmp_path / name).rename(tmp_path / "A.NII")
    assert capfd.readouterr().err == ""


def test_a_name_that_is_no_text_is_not_read(tmp_path, volume):
    path = volume.rename(tmp_path / os.fsdecode(b"\xff.nii"))
    for call in (read_image, read_header, open_image):
        with pytest.raises(ValueError, match="its name is not UTF-8"):
            call(path)


def test_no_warning_of_itk_comes_through_however_many_threads_read(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """ITK warns, on standard error, of an sform whose scale is not that of pixdim."""
    path = save(tmp_path / "a.nii", np.ones((3, 4, 5), np.int16))
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 76 + 4, -1.0)
    path.write_bytes(content)
    with ThreadPoolExecutor(4) as threads:
        for found in [threads.submit(read_image, path) for _ in range(200)]:
            found.exception()
    assert capfd.readouterr().err == ""
