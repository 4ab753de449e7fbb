"""NIfTI beside SimpleITK and nibabel: numbers, slices in bounded memory, masks with the header of their input."""

from __future__ import annotations

import gzip
import itertools
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from datasets.case import Geometry
from datasets.readers import nifti, stem_of
from datasets.readers.nifti import open_image, write_mask
from tests.conftest import ROOT

AXIS_ORDERS = ["".join(order) for order in itertools.permutations("xyz")]
TYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
NO_VALUES = np.array([], np.uint8)


def read_image(path: Path, *axes: str, spacing: str = "affine") -> tuple[np.ndarray, Geometry]:
    """All voxels of a NIfTI file, and its geometry."""
    image = open_image(path, *axes, spacing=spacing)
    return image[:], image.geometry


def save(path: Path, zyx: np.ndarray, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=None) -> Path:
    """A volume as SimpleITK writes it."""
    image = sitk.GetImageFromArray(zyx)
    image.SetSpacing([float(value) for value in spacing])
    image.SetOrigin([float(value) for value in origin])
    if direction is not None:
        image.SetDirection([float(value) for value in np.ravel(direction)])
    sitk.WriteImage(image, str(path))
    return path


def save_forms(path: Path, xyz: np.ndarray, qform: np.ndarray, sform: np.ndarray, codes=(1, 1), **fields) -> Path:
    """A volume with forms and codes of its own; pixdim is that of the qform unless `fields` of the header say more."""
    kind = nib.Nifti2Image if fields.pop("version", 1) == 2 else nib.Nifti1Image
    image = kind(xyz, None)
    image.header.set_qform(qform, codes[0])
    image.header.set_sform(sform, codes[1])
    for key, value in fields.items():
        image.header[key] = value
    nib.save(kind(xyz, None, image.header), path)
    return path


def raw_nifti(path: Path, xyz: np.ndarray, order: str = "<", version: int = 1, slope=1.0, intercept=0.0) -> Path:
    """A file that no library scales or repairs: the header, and the voxels as they are."""
    header = (nib.Nifti1Header, nib.Nifti2Header)[version - 1](endianness=order)
    header.set_data_dtype(xyz.dtype)
    header.set_data_shape(xyz.shape)
    header.set_sform(np.array([[-0.5, 0, 0, 7], [0, 0.75, 0, 8], [0, 0, 3, 9], [0, 0, 0, 1]]), 1)
    header["pixdim"][1:4] = 0.5, 0.75, 3
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["vox_offset"] = header.template_dtype.itemsize + 4
    content = header.binaryblock + bytes(4) + xyz.astype(xyz.dtype.newbyteorder(order)).tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def patched(path: Path, source: Path, layout: str, offset: int, *values: float) -> Path:
    """A copy of an uncompressed file with header fields overwritten."""
    content = bytearray(source.read_bytes())
    struct.pack_into(f"<{layout}", content, offset, *values)
    path.write_bytes(content)
    return path


def numbers(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(scale=1e3, size=shape).astype(kind)
    return rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, kind, endpoint=True)


def by_itk(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return save(tmp_path / "volume.nii", numbers("i2", (3, 4, 5)))


def test_the_marked_voxel_arrives_where_the_axis_order_says(tmp_path: Path) -> None:
    x, y, z = 4, 1, 2
    zyx = np.zeros((3, 6, 5), dtype=np.int16)
    zyx[z, y, x] = 7
    path = save(tmp_path / "mark.nii.gz", zyx, spacing=(0.5, 0.75, 3.0))
    published, geometry = read_image(path)
    assert published.shape == (3, 5, 6) and published[z, x, y] == 7 and published.dtype == np.int16
    assert geometry.axis_order == "zxy" and geometry.array_spacing == (3.0, 0.5, 0.75)
    opened = open_image(path, whole=False)
    assert (opened.shape, opened.geometry) == (published.shape, geometry)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(("order", "version"), [("<", 1), (">", 1), ("<", 2), (">", 2)])
@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_are_those_of_simpleitk(tmp_path: Path, dtype: str, order: str, version: int, name: str) -> None:
    for scale in [(0, 0), (1, 0), (1, 7), (2.5, -3.25), (-1, 0), (1 + 2**-20, 0), (float("nan"), 0)]:
        voxels = numbers(dtype, (4, 3, 5))
        path = raw_nifti(tmp_path / name, voxels, order, version, *scale)
        # It reads no NIfTI-2: that has to be as NIfTI-1.
        theirs = by_itk(raw_nifti(tmp_path / "theirs.nii", voxels, order, 1, *scale))
        image, expected = open_image(path, "xzy"), theirs.transpose(2, 0, 1)
        for ours in (image[:], read_image(path, "xzy")[0]):
            assert ours.dtype == expected.dtype == image.dtype and ours.dtype.isnative
            np.testing.assert_array_equal(ours, expected)
        assert image.geometry.spacing == (0.5, 0.75, 3.0)


def test_a_slope_of_0_stands_for_no_scale_whatever_the_intercept(tmp_path: Path) -> None:
    """By the standard; SimpleITK adds the intercept."""
    xyz = numbers("i2", (4, 3, 5))
    np.testing.assert_array_equal(read_image(raw_nifti(tmp_path / "a.nii", xyz, "<", 1, 0, 5), "xyz")[0], xyz)


@pytest.mark.parametrize("offset", [0, 348, 349, 352, 352.9, 1000])
def test_voxels_begin_where_simpleitk_has_them_begin(tmp_path: Path, volume: Path, offset: float) -> None:
    path = patched(tmp_path / "a.nii", volume, "f", 108, offset)
    path.write_bytes(path.read_bytes() + bytes(range(256)) * 4)
    np.testing.assert_array_equal(open_image(path, "zyx")[:], by_itk(path))


SLICES = [slice(None), slice(2, 3), slice(1, 4), slice(-2, None), slice(3, 2), slice(None, None, -1), slice(4, 0, -3)]


@pytest.mark.parametrize("size", [1, 100, 2**26], ids="{} bytes at a time".format)
@pytest.mark.parametrize("axis_order", AXIS_ORDERS)
def test_slices_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis_order: str, size: int
) -> None:
    monkeypatch.setattr(nifti, "_AHEAD", size)
    monkeypatch.setattr(nifti, "_BLOCK", size)
    for name in ("a.nii", "a.nii.gz"):
        path = save(tmp_path / name, numbers("i2", (7, 6, 5)))
        np.testing.assert_array_equal(
            read_image(path, axis_order)[0], by_itk(path).transpose(["zyx".index(a) for a in axis_order])
        )
        for towards in ("", "LPS", "RAI", "SLP"):
            whole, image = read_image(path, axis_order, towards)[0], open_image(path, axis_order, towards)
            assert len(image) == len(whole) and image.shape == whole.shape
            for part in (*SLICES, *(slice(row, row + 2) for row in range(7))):
                found = image[part]
                np.testing.assert_array_equal(found, whole[part], err_msg=f"{name} {towards} {part}")
                found[:] = 0  # the caller's own


def test_several_threads_read_one_image(tmp_path: Path) -> None:
    voxels = numbers("i2", (64, 40, 30))
    rows = [row for row in range(30) for _ in range(4)]
    for name in ("a.nii", "a.nii.gz"):
        image = open_image(save(tmp_path / name, voxels), "xyz")
        with ThreadPoolExecutor(8) as pool:
            for row, found in zip(rows, pool.map(lambda row, image=image: image[row : row + 1], rows), strict=True):
                np.testing.assert_array_equal(found[0], voxels[:, :, row].T)


# Each makes a bad file from a good one. The offsets are NIfTI-1's: dim 40, datatype 70, pixdim 80, vox_offset 108,
# qform_code 252, sform 280.
NAN = float("nan")
BAD: dict[str, Callable[[Path, Path], object]] = {
    "text": lambda path, good: path.write_text("not an image\n" * 50),
    "empty": lambda path, good: path.write_bytes(b""),
    "header cut": lambda path, good: path.write_bytes(good.read_bytes()[:347]),
    "voxels cut": lambda path, good: path.write_bytes(good.read_bytes()[:-1]),
    "flipped in its header": lambda path, good: patched(path, good, "i", 0, 348 ^ 1),
    "one dimension": lambda path, good: patched(path, good, "8h", 40, 1, 60, 1, 1, 1, 1, 1, 1),
    "4-D": lambda path, good: patched(path, good, "8h", 40, 4, 5, 2, 3, 2, 1, 1, 1),
    "a side below 0": lambda path, good: patched(path, good, "8h", 40, 3, -5, 4, 3, 1, 1, 1, 1),
    "a side of 0": lambda path, good: patched(path, good, "8h", 40, 3, 5, 0, 3, 1, 1, 1, 1),
    "voxels of size 0": lambda path, good: patched(path, patched(path, good, "2h", 252, 1, 0), "3f", 80, 0, 0, 0),
    "RGB": lambda path, good: patched(path, good, "2h", 70, 128, 24),
    "complex": lambda path, good: patched(path, good, "2h", 70, 32, 64),
    "no data type": lambda path, good: patched(path, good, "2h", 70, 99, 8),
    "NaN position": lambda path, good: patched(path, good, "f", 280, NAN),
    "flat": lambda path, good: patched(path, good, "4f", 280, 0, 0, 0, 0),
    "voxels nowhere": lambda path, good: patched(path, good, "f", 108, NAN),
    "voxels far off": lambda path, good: patched(path, good, "f", 108, 1e30),
    "too many voxels": lambda path, good: patched(path, good, "8h", 40, 3, 2000, 2000, 2000, 1, 1, 1, 1),
    "NaN": lambda path, good: save(path, np.array([[[1, NAN, 2]]], np.float32).repeat(2, 1)),
    "infinite": lambda path, good: save(path, np.array([[[1, 2, -np.inf]]]).repeat(2, 1)),
    "infinite to a network": lambda path, good: save(path, np.array([[[1, 2, 1e300]]]).repeat(2, 1)),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, volume: Path, kind: str, suffix: str, capfd: pytest.CaptureFixture
) -> None:
    bad = tmp_path / "bad.nii"
    BAD[kind](bad, volume)
    if suffix == ".nii.gz":
        bad = tmp_path / "bad.nii.gz"
        bad.write_bytes(gzip.compress((tmp_path / "bad.nii").read_bytes()))
    with pytest.raises(ValueError) as caught:
        read_image(bad)
    assert str(caught.value).startswith(f"{bad}: ") and len(str(caught.value).splitlines()) == 1
    assert "expected" in str(caught.value) and capfd.readouterr().err == ""


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("place", [10, 100, 0.5, -9, -5, -1])
def test_a_damaged_gzip_file_is_refused_wherever_the_damage_is(tmp_path: Path, place: float, flip: bool) -> None:
    """nibabel and SimpleITK read some of them, the last bytes being the checksum."""
    path = save(tmp_path / "a.nii.gz", numbers("i2", (9, 20, 20)))
    content = bytearray(path.read_bytes())
    place = int(len(content) * place) if isinstance(place, float) else place
    content[place] ^= 1 if flip else 0
    path.write_bytes(content if flip else content[:place])
    with pytest.raises(ValueError, match=r"a\.nii\.gz: is not a readable"):
        read_image(path)


def test_what_is_not_there_or_may_not_be_read_is_named(tmp_path: Path, volume: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        read_image(tmp_path / "absent.nii.gz")
    volume.chmod(0)
    if os.geteuid():
        with pytest.raises(PermissionError, match=r"volume\.nii"):
            read_image(volume)


def test_sound_files_that_look_odd_are_read(tmp_path: Path, volume: Path) -> None:
    expected, content = by_itk(volume), volume.read_bytes()
    framed = patched(tmp_path / "framed.nii", volume, "8h", 40, 4, 5, 4, 3, 1, 1, 1, 1)
    for name, other in {
        "members.nii.gz": gzip.compress(content[:300]) + gzip.compress(content[300:]),
        "compressed.nii": gzip.compress(content),
        "plain.nii.gz": content,
        "longer.nii": content + bytes(999),
        "longer.nii.gz": gzip.compress(content + bytes(999)),
        "framed.nii": framed.read_bytes(),
        "A.NII": content,
        os.fsdecode(b"\xff.nii"): content,
    }.items():
        (tmp_path / name).write_bytes(other)
        np.testing.assert_array_equal(read_image(tmp_path / name, "zyx")[0], expected, err_msg=name)


def test_a_file_that_changes_after_it_was_opened_is_named(tmp_path: Path, volume: Path) -> None:
    image = open_image(volume)
    volume.write_bytes(volume.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"volume\.nii: .* shorter"):
        image[:]
    compressed = save(tmp_path / "a.nii.gz", np.ones((3, 4, 5), np.int16))
    image = open_image(compressed, whole=False)
    compressed.write_bytes(compressed.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.nii\.gz: is not a readable"):
        image[:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts open files in /proc")
def test_the_decompressed_file_goes_with_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def decompressed() -> int:
        links = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        return sum(link.startswith(str(tmp_path / "temporary")) for link in links)

    image = open_image(save(tmp_path / "a.nii.gz", np.ones((3, 4, 5), np.int16)), whole=False)
    assert decompressed() == 0, "nothing is decompressed before it is needed"
    assert image[:].sum() == 60
    assert decompressed() == 1 and list((tmp_path / "temporary").iterdir()) == []
    del image
    assert decompressed() == 0


def run(code: str, *words: object, environment: dict[str, str] | None = None) -> str:
    """Run Python code in a process of its own; `peak()` is the most memory, in MiB, that it has held so far."""
    begin = (
        "import resource, sys, numpy as np\n"
        "from datasets.case import Geometry\n"
        "from datasets.readers.nifti import open_image\n"
        "from evaluation.masks import write_mask\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begin + code, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (environment or {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in kB")
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_large_file_is_read_in_less_memory_than_it_takes(tmp_path: Path, name: str) -> None:
    """320 MiB along every axis in 130 MiB beside what Python itself takes."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((640, 512, 512))
    header["vox_offset"] = 352
    path = tmp_path / name
    with gzip.open(path, "wb", 1) if name.endswith(".gz") else path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(319):
            file.write(bytes(2**20))
        file.write(bytes(2**20 - 2) + b"\1\0")
    code = (
        "before, found = peak(), []\n"
        "for axes in ('zxy', 'yxz', 'xzy'):\n"
        "    image = open_image(sys.argv[1], axes)\n"
        "    found.append(sum(int(image[first : first + 8].sum()) for first in range(0, len(image), 8)))\n"
        "print(found, peak() - before)\n"
    )
    found, _, memory = run(code, path).rpartition(" ")
    assert found == "[1, 1, 1]" and float(memory) < 130


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds a file's size by Linux's means")
def test_a_full_temporary_folder_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", numbers("i2", (9, 200, 200)))
    code = (
        "import signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "try: open_image(sys.argv[1])[:]\n"
        "except OSError as error: print(error)\n"
    )
    (tmp_path / "room").mkdir()
    said = run(code, path, environment={"TMPDIR": str(tmp_path / "room")})
    assert said.startswith(f"{path}: cannot be decompressed into the temporary folder {tmp_path / 'room'} (")
    assert list((tmp_path / "room").iterdir()) == []


def grids(count: int) -> list[tuple[np.ndarray, np.ndarray, tuple[int, int]]]:
    """Random qforms, sforms and codes: oblique, mirrored, of one form alone, of two that differ, of none."""
    rng = np.random.default_rng(3)

    def affine(mirrored: bool) -> np.ndarray:
        turn = Rotation.from_rotvec(rng.normal(size=3)).as_matrix() @ np.diag([-1.0 if mirrored else 1.0, 1, 1])
        found = np.eye(4)
        found[:3, :3], found[:3, 3] = turn * rng.uniform(0.3, 5.0, 3), rng.normal(0.0, 200.0, 3)
        return found

    made = []
    for number in range(count):
        qform = affine(number % 3 == 0)
        sform = qform if number % 2 else affine(number % 5 == 0)
        made.append((qform, sform, (number % 5, (number // 5) % 5)))
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("axes", [("zxy", ""), ("yxz", "PIR")], ids=["stored", "PIR"])
def test_a_mask_has_the_header_of_its_input(tmp_path: Path, version: int, axes: tuple[str, str]) -> None:
    source, mask = tmp_path / "source.nii", tmp_path / "mask.nii.gz"
    for qform, sform, codes in grids(60):
        save_forms(
            source, numbers("i2", (4, 5, 3)), qform, sform, codes, version=version, descrip=b"scan", xyzt_units=10
        )
        array, geometry = read_image(source, *(axes if any(codes) else (axes[0], "")))
        write_mask(mask, (array > 0).astype(np.uint8), geometry, NO_VALUES)
        here, there = nib.load(mask), nib.load(source)
        assert type(here) is type(there) and np.array_equal(here.affine, there.affine), codes
        differ = {key for key in here.header if here.header[key].tobytes() != there.header[key].tobytes()}
        assert differ <= {"datatype", "bitpix", "scl_slope", "scl_inter", "cal_min", "cal_max"}, (differ, codes)
        np.testing.assert_array_equal(np.asarray(here.dataobj), np.asarray(there.dataobj) > 0)
        by_sitk = [sitk.ReadImage(str(path)) for path in (mask, source) if version == 1]  # it reads no NIfTI-2
        for part in () if version == 2 else ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert len({getattr(image, part)() for image in by_sitk}) == 1, (part, codes)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_mask_of_a_scaled_input_is_not_scaled(tmp_path: Path, order: str) -> None:
    array, geometry = read_image(raw_nifti(tmp_path / "a.nii", numbers("i2", (4, 3, 5)), order, 1, 2.5, -7), "xyz")
    write_mask(tmp_path / "mask.nii", (array > 0).astype(np.uint8), geometry, np.array([3, 200], np.uint8))
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii").get_fdata(), np.where(array > 0, 200, 3))


@pytest.mark.parametrize("dims", [(2, 4, 5), (3, 4, 5, 1), (3, 1, 4, 5), (4, 4, 1, 5, 1)])
@pytest.mark.parametrize("towards", ["", "LPS"])
@pytest.mark.parametrize("axis_order", AXIS_ORDERS)
def test_an_image_of_two_dimensions_is_one_slice(
    tmp_path: Path, dims: tuple[int, ...], towards: str, axis_order: str
) -> None:
    thin = dims[1:].index(1) if 1 in dims[1:] else 2
    pixels = numbers("i2", (4, 5))
    xyz = np.expand_dims(pixels, thin)
    affine = np.diag([-0.5, -0.5, -0.5, 1.0])
    pixdim = np.ones(8)
    pixdim[1:4] = 0.5
    affine[thin, thin] = pixdim[1 + thin] = 0  # that axis is not described at all
    dim = np.ones(8, int)
    dim[: len(dims)] = dims
    source = raw_nifti(tmp_path / "a.nii", xyz)
    header = nib.Nifti1Header(source.read_bytes()[:348], check=False)
    header["dim"], header["pixdim"] = dim, pixdim
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = affine[row]
    source.write_bytes(header.binaryblock + source.read_bytes()[348:])
    array, geometry = read_image(source, axis_order, towards)
    assert array.shape in ((1, 4, 5), (1, 5, 4)) and geometry.array_spacing == (1.0, 0.5, 0.5)
    write_mask(tmp_path / "mask.nii", (array > 0).astype(np.uint8), geometry, NO_VALUES)
    written = nib.Nifti1Header((tmp_path / "mask.nii").read_bytes()[:348], check=False)
    assert all((written[key] == header[key]).all() for key in ("dim", "pixdim", "srow_x", "srow_y", "srow_z"))
    found = np.frombuffer((tmp_path / "mask.nii").read_bytes()[352:], np.uint8)
    np.testing.assert_array_equal(found.reshape(4, 5, order="F"), pixels > 0)


def test_where_pixdim_and_the_affine_differ_the_affine_decides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    affine = np.diag([0.5, 0.7, 5.0, 1.0])
    path = save_forms(tmp_path / "a.nii", numbers("i2", (4, 5, 3)), np.eye(4), affine, (0, 1))
    assert read_image(path, "xyz")[1].array_spacing == pytest.approx((0.5, 0.7, 5.0))
    assert "a.nii: its pixdim is (1, 1, 1)" in caplog.text and "(0.5, 0.7, 5)" in caplog.text
    caplog.clear()
    assert read_image(path, "xyz", spacing="pixdim")[1].array_spacing == (1.0, 1.0, 1.0)
    save_forms(path, numbers("i2", (4, 5, 3)), np.eye(4), affine, (1, 0))
    assert read_image(path, "xyz")[1].array_spacing == (1.0, 1.0, 1.0), "sform_code 0: it says nothing"
    assert not caplog.text


@pytest.mark.parametrize(("shear", "warned"), [(1e-3, False), (0.1, True)])
def test_a_sheared_affine_is_read(tmp_path: Path, shear: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 1] = shear
    path = save_forms(tmp_path / "a.nii", numbers("i2", (4, 5, 3)), np.diag([1.0, 2.0, 3.0, 1.0]), affine, (0, 1))
    _, geometry = read_image(path, "xyz")
    assert geometry.spacing == pytest.approx((1.0, np.hypot(2.0, shear), 3.0), rel=1e-6)
    assert ("right angles" in caplog.text) == warned


def test_a_quaternion_that_is_rounded_is_read(tmp_path: Path) -> None:
    """nibabel refuses one whose length is above 1 by more than 4e-7."""
    path = save(tmp_path / "a.nii", numbers("i2", (3, 4, 5)))
    patched(path, path, "2h", 252, 1, 0)
    patched(path, path, "3f", 256, 1.000001, 0.0, 0.0)
    assert read_image(path)[1].spacing == pytest.approx((1.0, 1.0, 1.0), rel=1e-4)


def test_a_file_that_does_not_say_where_its_axes_point_is_not_turned(tmp_path: Path, volume: Path) -> None:
    path = patched(tmp_path / "nowhere.nii", volume, "2h", 252, 0, 0)
    assert read_image(path)[0].shape == (3, 5, 4)
    with pytest.raises(ValueError, match=r"nowhere\.nii: does not say where its axes point.*DATA\.ORIENTATION"):
        read_image(path, "zxy", "RAS")


@pytest.mark.parametrize("name", ["a.b.nii.gz", "a.b.nii", "a.b.NII.GZ", "a.b.png", "a.b.mha"])
def test_the_stem_of_a_name(name: str) -> None:
    assert stem_of(Path("folder") / name) == "a.b"
