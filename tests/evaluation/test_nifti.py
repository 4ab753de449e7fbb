"""NIfTI in and out: axis order, exact geometry, and the files that are refused."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from datasets.base import Geometry
from evaluation import nifti
from evaluation.nifti import NiftiVolumes, orientation, read_header, read_image, scale_intensity, write_mask

sitk = pytest.importorskip("SimpleITK")

EXAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct_examples"
needs_examples = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the CT examples are not here (../shared/data)")


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


@pytest.mark.parametrize("axis_order", ["zxy", "zyx", "xyz"])
def test_a_mask_goes_back_to_the_voxels_it_came_from(tmp_path, axis_order):
    zyx = np.random.default_rng(1).integers(0, 9, (3, 4, 5)).astype(np.uint8)
    source = save(tmp_path / "source.nii.gz", zyx, spacing=(0.7, 0.8, 5.0))
    array, geometry = read_image(source, axis_order)
    write_mask(tmp_path / "mask.nii.gz", array, geometry)
    written = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), zyx)
    assert written.GetPixelID() == sitk.sitkUInt8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.nii.gz", "source.nii.gz"]


def directions() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    oblique = list(Rotation.from_quat(rng.normal(size=(12, 4))).as_matrix())
    tilted = list(Rotation.from_rotvec(rng.normal(scale=0.05, size=(6, 3))).as_matrix())
    mirrored = [matrix @ np.diag([-1.0, 1.0, 1.0]) for matrix in oblique[:6]]
    axes = [np.diag([-1.0, -1.0, 1.0]), np.diag([1.0, -1.0, 1.0]), np.eye(3)[[1, 2, 0]], -np.eye(3)[[2, 1, 0]]]
    return oblique + tilted + mirrored + axes


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (2, 4)], ids="qform{0[0]} sform{0[1]}".format)
def test_the_mask_has_exactly_the_grid_of_its_input(tmp_path, codes):
    rng = np.random.default_rng(3)
    for direction in directions():
        spacing, origin = rng.uniform(0.3, 5.0, 3), rng.normal(0.0, 200.0, 3)
        plain = save(tmp_path / "plain.nii", np.zeros((2, 3, 4), np.int16), spacing, origin, direction)
        source = patched(tmp_path / "source.nii", plain, "2h", 252, *codes)
        array, geometry = read_image(source)
        write_mask(tmp_path / "mask.nii.gz", array.astype(np.uint8), geometry)
        assert grid(tmp_path / "mask.nii.gz") == grid(source)


@needs_examples
@pytest.mark.parametrize("case", ["ct01", "ct02", "mr01"])
def test_real_labels_come_back_voxel_by_voxel_on_their_own_grid(tmp_path, case):
    image = EXAMPLES / f"{case}_image.nii.gz"
    label, geometry = read_image(EXAMPLES / f"{case}_label.nii.gz")
    write_mask(tmp_path / "mask.nii.gz", label.astype(np.uint8), read_image(image)[1])
    assert grid(tmp_path / "mask.nii.gz") == grid(image)
    written, original = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in (tmp_path / "mask.nii.gz", EXAMPLES / f"{case}_label.nii.gz")
    )
    np.testing.assert_array_equal(written, original)
    assert orientation(geometry) == {"ct01": "RAS", "ct02": "LPS", "mr01": "LPS"}[case]


def test_without_geometry_the_mask_is_z_y_x_at_unit_spacing(tmp_path):
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_mask(tmp_path / "mask.nii.gz", mask, None)
    assert grid(tmp_path / "mask.nii.gz") == ((4, 3, 2), (1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nii.gz"))), mask)


def test_equal_masks_make_equal_files(tmp_path):
    geometry = Geometry((0.7, 0.8, 3.0), (1.1, 2.2, 3.3), tuple(directions()[0].ravel()), "zxy")
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / name, mask, geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("name", "mask", "geometry", "error"),
    [
        ("mask.nii.gz", np.zeros((2, 2), np.uint8), None, ValueError),
        ("mask.nii.gz", np.zeros((2, 2, 2), np.int64), None, ValueError),
        ("mask.png", np.zeros((2, 2, 2), np.uint8), None, ValueError),
        ("mask.nii.gz", np.zeros((2, 2, 2), np.uint8), Geometry(spacing=(0.0, 1.0, 1.0)), ValueError),
        ("mask.nii.gz", np.zeros((2, 2, 2), np.uint8), Geometry(direction=(0.0,) * 9), ValueError),
        ("mask.nii.gz", np.zeros((2, 2, 2), np.uint8), Geometry(axis_order="zzz"), ValueError),
        ("nowhere/mask.nii.gz", np.zeros((2, 2, 2), np.uint8), None, OSError),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, name, mask, geometry, error):
    with pytest.raises(error) as caught:
        write_mask(tmp_path / name, mask, geometry)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_mask_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "mask.nii.gz"
    write_mask(path, np.zeros((2, 3, 4), np.uint8), None)
    before = path.read_bytes()
    monkeypatch.setattr(sitk, "WriteImage", lambda image, name, **_: Path(name).write_bytes(before[:-9]))
    with pytest.raises(OSError, match="ends early"):
        write_mask(path, np.ones((2, 3, 4), np.uint8), None)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


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


@pytest.mark.parametrize("kind", ["file", "folder", "among others"])
def test_an_image_of_another_format_is_refused_by_name(tmp_path, volume, kind):
    folder = tmp_path / "png"
    folder.mkdir()
    (folder / "slice.PNG").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "notes.txt").write_text("these are passed over")
    if kind == "among others":
        volume.rename(folder / "volume.nii")
    with pytest.raises(ValueError, match=r"slice\.PNG: is no NIfTI file"):
        NiftiVolumes(folder / "slice.PNG" if kind == "file" else folder)
    (folder / "slice.PNG").unlink()
    if kind == "among others":
        assert len(NiftiVolumes(folder)) == 1


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


def test_a_name_that_is_no_text_is_refused_though_simpleitk_would_end_the_process(tmp_path, volume):
    path = volume.rename(tmp_path / os.fsdecode(b"\xff.nii"))
    for call in (read_image, read_header, lambda path: write_mask(path, np.zeros((2, 3, 4), np.uint8), None)):
        with pytest.raises(ValueError, match="its name is not UTF-8"):
            call(path)


def test_an_unknown_axis_order_is_refused(volume):
    with pytest.raises(ValueError, match="axis order 'xx'"):
        read_image(volume, "xx")


def test_intensity_is_clipped_to_the_window_and_scaled():
    image = np.array([-2000, -125, 75, 275, 3000], dtype=np.int16).reshape(1, 1, 5)
    scaled = scale_intensity(image)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled.ravel(), np.array([0, 0, 0.5, 1, 1], dtype=np.float32))
    odd = scale_intensity(np.linspace(-5, 5, 999), 0.1, 1.3)
    assert odd.min() == 0.0 and odd.max() == 1.0


@pytest.mark.parametrize("window", [(10.0, 10.0), (5.0, -5.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_an_empty_window_is_refused(window):
    with pytest.raises(ValueError, match="window"):
        scale_intensity(np.zeros((1, 1, 1)), *window)


def test_nan_voxels_are_refused_by_name():
    with pytest.raises(ValueError, match="scan.nii: .*NaN"):
        scale_intensity(np.full((1, 1, 1), np.nan), where="scan.nii")


def test_orientation_letters():
    assert orientation(Geometry()) == "LPS"
    assert orientation(Geometry(direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0))) == "RAI"
    tilted = Rotation.from_rotvec([0.3, -0.2, 0.1]).as_matrix()[:, [2, 0, 1]]
    assert orientation(Geometry(direction=tuple(tilted.ravel()))) == "SLP"
