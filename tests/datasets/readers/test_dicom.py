"""DICOM in: series that SimpleITK writes from real scans read back equal, and series that are no volume are refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate
from scipy.spatial.transform import Rotation

from datasets.errors import Defects
from datasets.readers.dicom import dicom_files, is_dicom, read_series
from tests.conftest import SHARED
from tests.datasets.readers.test_nifti import read_image

sitk = pytest.importorskip("SimpleITK")

EXAMPLES = SHARED / "data" / "ct_examples"
needs_examples = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the CT examples are not here (../shared/data)")
TURNED = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix()


def write(path: Path, voxels: np.ndarray, number: int, *, series="1.2.3.4", spacing=(0.5, 0.75), position=None,
                direction=None, **tags: str) -> Path:  # fmt: skip
    """One DICOM file of voxels [y, x]; by default slice `number` of a stack along z, 2 mm apart."""
    direction = np.eye(3) if direction is None else direction
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    position = direction @ [1.0, 2.0, 3.0 + 2.0 * number] if position is None else position
    for key, value in {
        "0008|0060": "CT",
        "0008|0018": f"{series}.{number + 1}",
        "0020|000d": "1.2.3",
        "0020|000e": series,
        "0020|0032": "\\".join(f"{value:.10g}" for value in position),
        "0020|0037": "\\".join(f"{value:.12g}" for value in direction[:, :2].T.ravel()),
        "0028|1052": "-1024",
        "0028|1053": "1",
        **{f"{tag[1:5]}|{tag[5:]}": value for tag, value in tags.items()},
    }.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(path))
    writer.Execute(image)
    return path


def replace(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def write_bare(path: Path, voxels: np.ndarray, isVector: bool = False) -> None:
    """A file of the same series as SimpleITK writes it unasked."""
    image = sitk.GetImageFromArray(voxels, isVector=isVector)
    image.SetMetaData("0020|000e", "1.2.3.4")
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def write_series(folder: Path, zyx: np.ndarray, **how) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in enumerate(zyx):
        write(folder / f"{number:03d}.dcm", plane, number, **how)
    return folder


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 2000, (6, 7, 8)).astype(np.int16)


@pytest.fixture
def series(tmp_path, voxels) -> Path:
    return write_series(tmp_path / "series", voxels)


@needs_examples
@pytest.mark.parametrize("orientation", ["", "RAS", "SLP"])
@pytest.mark.parametrize("case", ["ct02", "mr01"])
def test_a_series_is_equal_to_the_nifti_it_was_written_from(tmp_path, case, orientation):
    nifti = EXAMPLES / f"{case}_image.nii.gz"
    scan = sitk.ReadImage(str(nifti))
    direction, rng = np.reshape(scan.GetDirection(), (3, 3)), np.random.default_rng(1)
    names = rng.permutation(scan.GetSize()[2]).tolist()  # say nothing of the order, and have no suffix
    (tmp_path / "series").mkdir()
    for number, name in enumerate(names):
        write(
            tmp_path / "series" / f"IM{name:06d}",
            sitk.GetArrayFromImage(scan[:, :, number]),
            number,
            spacing=scan.GetSpacing()[:2],
            position=scan.TransformIndexToPhysicalPoint((0, 0, number)),
            direction=direction,
        )
    expected, theirs = read_image(nifti, "zxy", orientation)
    array, geometry = read_series(tmp_path / "series", "zxy", orientation)
    np.testing.assert_array_equal(array, expected)
    assert (geometry.axis_order, geometry.flips) == (theirs.axis_order, theirs.flips)
    for key in ("spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(geometry, key), getattr(theirs, key), atol=1e-5, err_msg=key)


@pytest.mark.parametrize("axis_order", ["zxy", "zyx", "xyz"])
def test_an_oblique_series_lies_where_its_files_say(tmp_path, voxels, axis_order):
    array, geometry = read_series(write_series(tmp_path / "s", voxels, direction=TURNED), axis_order)
    np.testing.assert_array_equal(array, voxels.transpose(["zyx".index(axis) for axis in axis_order]))
    np.testing.assert_allclose(geometry.origin, TURNED @ [1.0, 2.0, 3.0], atol=1e-6)
    np.testing.assert_allclose(np.reshape(geometry.direction, (3, 3)), TURNED, atol=1e-6)
    np.testing.assert_allclose(geometry.spacing, (0.5, 0.75, 2.0), atol=1e-6)


def test_slices_that_run_against_their_normal_are_put_in_its_order(tmp_path, voxels):
    """Rows that point down: the normal then points to the feet, and the file named last comes first."""
    direction = np.diag([1.0, -1.0, -1.0])
    folder = tmp_path / "feet first"
    folder.mkdir()
    for number, plane in enumerate(voxels):
        write(folder / f"{number}.dcm", plane, number, position=(0, 0, 2.0 * number), direction=direction)
    array, geometry = read_series(folder, "zyx")
    np.testing.assert_array_equal(array, voxels[::-1])
    assert geometry.origin == (0, 0, 10.0) and geometry.direction == tuple(direction.ravel())
    turned, geometry = read_series(folder, "zyx", "LPS")
    np.testing.assert_array_equal(turned, voxels[:, ::-1])
    assert geometry.flips == "yz"


def test_every_slice_has_a_scale_of_its_own(tmp_path):
    """As in PET: a reader that takes the type of the first file for all cuts off what comes behind the point."""
    stored = np.random.default_rng(2).integers(0, 999, (4, 5, 6)).astype(np.int16)
    slopes = [b"1 ", b".5", b"3 ", b".3"]
    folder = tmp_path / "pet"
    folder.mkdir()
    for number, (plane, slope) in enumerate(zip(stored, slopes, strict=True)):
        path = write(folder / f"{number}.dcm", plane, number, _00281052="0")
        # Put in here: the writer would divide by it.
        replace(path, b"\x28\x00\x53\x10\x02\x00\x00\x001 ", b"\x28\x00\x53\x10\x02\x00\x00\x00" + slope)
    array, _ = read_series(folder, "zyx")
    np.testing.assert_allclose(array, stored * np.array([1.0, 0.5, 3.0, 0.3])[:, None, None], rtol=1e-7)


def test_files_that_are_no_slices_are_passed_over(series, voxels):
    for name in ("notes.txt", "meta.json", "table.CSV", ".DS_Store", "DICOMDIR"):
        (series / name).write_bytes(b"not an image")
    (series / "deeper").mkdir()
    np.testing.assert_array_equal(read_series(series, "zyx")[0], voxels)


def test_dicom_is_known_by_its_mark_or_its_name(tmp_path, series):
    shutil.copy(series / "000.dcm", tmp_path / "IM0001")
    (tmp_path / "a.nii").write_bytes(bytes(400))
    (tmp_path / "damaged.DCM").write_bytes(b"")
    assert [path.name for path in dicom_files(tmp_path)] == ["IM0001", "damaged.DCM"]
    assert not is_dicom(tmp_path / "a.nii")


def tilted(folder: Path, voxels: np.ndarray) -> None:
    for number, plane in enumerate(voxels):
        write(folder / f"{number:03d}.dcm", plane, number, position=(0, 0.4 * number, 2.0 * number))


def drifting(folder: Path, voxels: np.ndarray) -> None:
    """No distance is 10 % off, but all of the first half are short and the others long."""
    stack = np.concatenate([voxels] * 5)
    heights = np.cumsum([1.91] * 15 + [2.09] * 15)
    for number, plane in enumerate(stack):
        write(folder / f"{number:03d}.dcm", plane, number, position=(0, 0, heights[number]))


def only(folder: Path, count: int) -> None:
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()


# What is done to a good series of six files 000.dcm to 005.dcm, and what the message has to name.
BAD_SERIES = {
    "one missing": (lambda folder, v: (folder / "002.dcm").unlink(), r"003\.dcm: lies 4 mm from 001\.dcm.*2 mm"),
    "one missing of four": (
        lambda folder, v: [(folder / f"{number:03d}.dcm").unlink() for number in (1, 4, 5)],
        r"002\.dcm: lies 4 mm from 000\.dcm.*2 mm",
    ),
    "one twice": (
        lambda folder, v: shutil.copy(folder / "002.dcm", folder / "copy.dcm"),
        r"copy\.dcm: lies where 002\.dcm lies",
    ),
    "two series": (
        lambda folder, v: [write(folder / f"b{n}.dcm", v[n], n, series="1.9.9") for n in range(2)],
        r"holds 2 series: 1\.2\.3\.4 \(files: 6\), 1\.9\.9 \(files: 2\).*folder of its own",
    ),
    "another size": (
        lambda folder, v: write(folder / "003.dcm", v[3, 1:], 3),
        r"003\.dcm: has the size \(8, 6\) but most slices have \(8, 7\)",
    ),
    "another spacing": (
        lambda folder, v: write(folder / "003.dcm", v[3], 3, spacing=(0.5, 0.8)),
        r"003\.dcm: has the spacing \(0\.5, 0\.8\) but most slices have \(0\.5, 0\.75\)",
    ),
    "another direction": (
        lambda folder, v: write(folder / "003.dcm", v[3], 3, position=(1, 2, 9), direction=TURNED),
        r"003\.dcm: has the direction",
    ),
    "one slice": (lambda folder, v: only(folder, 1), r"holds one DICOM slice; expected the two or more"),
    "nothing": (lambda folder, v: only(folder, 0), r"holds no DICOM series"),
    "color": (
        lambda folder, v: write_bare(folder / "006.dcm", np.zeros((7, 8, 3), np.uint8), isVector=True),
        r"006\.dcm: is in color",
    ),
    "many frames": (
        lambda folder, v: write_bare(folder / "006.dcm", v.astype(np.uint8)),
        r"006\.dcm: has the spacing",
    ),
    "cut short": (
        lambda folder, v: (folder / "003.dcm").write_bytes((folder / "003.dcm").read_bytes()[:-1]),
        r"003\.dcm: is not a readable DICOM image",
    ),
    "no DICOM": (
        lambda folder, v: (folder / "scan.nii").write_bytes(bytes(400)),
        r"scan\.nii: is not a readable DICOM image.*move it away",
    ),
    "no place": (
        # The position under another number.
        lambda folder, v: replace(folder / "003.dcm", b"\x20\x00\x32\x00", b"\x20\x00\x33\x00"),
        r"003\.dcm: does not say where it lies \(no ImagePositionPatient",
    ),
    "a direction of zeros": (
        lambda folder, v: replace(folder / "003.dcm", b"1\\0\\0\\0\\1\\0", b"0\\0\\0\\0\\0\\0"),
        r"003\.dcm: its ImageOrientationPatient is \[0.*expected two unit axes",
    ),
    "a spacing of 0": (
        lambda folder, v: replace(folder / "003.dcm", b".75\\.5", b"0.0\\.5"),
        r"003\.dcm: its PixelSpacing is \[0\.0.*expected positive numbers",
    ),
    "a slope that is none": (
        lambda folder, v: replace(folder / "003.dcm", b"\x53\x10\x02\0\0\x001 ", b"\x53\x10\x02\0\0\0x "),
        r"003\.dcm: its RescaleSlope is 'x'.*expected sound numbers",
    ),
    "a slope beyond all numbers": (
        lambda folder, v: replace(folder / "003.dcm", b"\x53\x10\x02\0\0\x001 ", b"\x53\x10\x06\0\0\x001e300 "),
        r"003\.dcm: holds NaN or infinite values; expected finite",
    ),
    "tilted gantry": (tilted, r"005\.dcm: lies 2 mm from where even distances.*gantry"),
    "drifting": (drifting, r"014\.dcm: lies .* mm from where even distances"),
}


@pytest.mark.parametrize("kind", BAD_SERIES)
def test_what_is_no_volume_is_refused_by_name(series, voxels, kind, capfd):
    spoil, message = BAD_SERIES[kind]
    spoil(series, voxels)
    with pytest.raises(Defects, match=message) as caught:
        read_series(series)
    assert len(str(caught.value).splitlines()) == 1 and "expected" in str(caught.value)
    assert capfd.readouterr().err == "", "the libraries below must not write past our one line"


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("absent")])
def test_what_is_no_file_is_told(series, make):
    (series / "005.dcm").unlink()
    make(series / "005.dcm")
    with pytest.raises(Defects, match=r"005\.dcm: is a link to nowhere, or no file at all"):
        read_series(series)
    make(series / "pipe")
    assert not is_dicom(series / "pipe")


def encoded(dataset: pydicom.Dataset, syntax: uid.UID) -> pydicom.Dataset:
    """The data set with its pixels compressed."""
    pixels, bits = dataset.pixel_array, dataset.BitsStored
    raw = pixels.view(np.uint16) & np.uint16(2**bits - 1) if pixels.dtype == np.int16 else pixels
    encoders = {
        uid.JPEGLosslessSV1: lambda plane: imagecodecs.ljpeg_encode(plane, bitspersample=bits),
        uid.JPEGLSLossless: imagecodecs.jpegls_encode,
        uid.JPEG2000Lossless: lambda plane: imagecodecs.jpeg2k_encode(plane, codecformat="j2k", level=0),
        uid.JPEGBaseline8Bit: lambda plane: imagecodecs.jpeg_encode(plane, level=100),
    }
    if syntax == uid.RLELossless:
        dataset.compress(uid.RLELossless)
    else:
        dataset.PixelData = encapsulate([encoders[syntax](raw)])
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


@pytest.mark.parametrize(
    ("syntax", "dtype"),
    [(syntax, dtype) for syntax in (uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless)
     for dtype in (np.int16, np.uint16)] + [(uid.JPEGBaseline8Bit, np.uint8)],
)  # fmt: skip
def test_compressed_pixels_are_read_and_damaged_ones_refused(tmp_path, syntax, dtype, capfd):
    lows = {np.int16: -1000, np.uint16: 0, np.uint8: 0}
    rng = np.random.default_rng(0)
    voxels = rng.integers(lows[dtype], 200 if dtype == np.uint8 else 2000, (3, 64, 64)).astype(dtype)
    if dtype == np.uint8:
        voxels[:] = np.arange(64, dtype=np.uint8)[:, None]  # smooth, as a lossy codec keeps it
    write_series(tmp_path / "s", voxels, t00281052="0")
    for path in sorted((tmp_path / "s").iterdir()):
        dataset = pydicom.dcmread(path)
        if dtype == np.uint16:
            dataset.BitsStored, dataset.HighBit = 12, 11
        encoded(dataset, syntax).save_as(path)
    array = read_series(tmp_path / "s", "zyx")[0]
    np.testing.assert_allclose(array, voxels, atol=2 if dtype == np.uint8 else 0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(Defects, match=rf"{path.name}: .*not a readable DICOM image"):
        read_series(tmp_path / "s")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("packing", ["JPEG", "JPEG2000"])
def test_pixels_that_gdcm_compressed_are_read(tmp_path, packing):
    voxels = np.random.default_rng(0).integers(-1000, 2000, (3, 64, 64)).astype(np.int16)
    write_series(tmp_path / "s", voxels, t00281052="0")
    for path in (tmp_path / "s").iterdir():
        image, writer = sitk.ReadImage(str(path)), sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(packing)
        writer.SetFileName(str(path))
        writer.Execute(image)
    np.testing.assert_array_equal(read_series(tmp_path / "s", "zyx")[0], voxels)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True), (16, False), (16, True)])
def test_numbers_are_those_of_the_file_rescaled_whatever_the_display(tmp_path, bits, signed, photometric):
    low = -(2 ** (bits - 1)) if signed else 0
    stored = np.random.default_rng(1).integers(low, low + 2**bits, (3, 5, 6))
    write_series(tmp_path / "s", np.zeros((3, 5, 6), np.int16))
    for path, plane in zip(sorted((tmp_path / "s").iterdir()), stored, strict=True):
        dataset = pydicom.dcmread(path)
        dataset.BitsAllocated = 8 if bits == 8 else 16
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, int(signed)
        dataset.PixelData = plane.astype(f"{'i' if signed else 'u'}{dataset.BitsAllocated // 8}").tobytes()
        dataset.PhotometricInterpretation, dataset.RescaleSlope, dataset.RescaleIntercept = photometric, 2, -1024
        dataset.save_as(path)
    np.testing.assert_array_equal(read_series(tmp_path / "s", "zyx")[0], stored * 2 - 1024)


@pytest.mark.parametrize("shared", ["", "PixelMeasuresSequence", "PlanePositionSequence"])
def test_a_multi_frame_file_is_a_series(tmp_path, voxels, shared):
    """Enhanced CT: what frames have in common may be said once; here one group or none is. Frames are not in order."""
    write(tmp_path / "plain.dcm", voxels[0], 0)
    dataset = pydicom.dcmread(tmp_path / "plain.dcm")
    place = {
        "PlanePositionSequence": ("ImagePositionPatient",),
        "PlaneOrientationSequence": ("ImageOrientationPatient",),
    }
    place |= {"PixelMeasuresSequence": ("PixelSpacing",), "PixelValueTransformationSequence": ("RescaleSlope",)}
    values = {"ImageOrientationPatient": list(dataset.ImageOrientationPatient), "RescaleSlope": 1}
    values |= {"PixelSpacing": list(dataset.PixelSpacing)}
    order, frames, common = [3, 0, 5, 1, 4, 2], [], pydicom.Dataset()
    for number in order:
        frames.append(pydicom.Dataset())
        for sequence, keys in place.items():
            group = pydicom.Dataset()
            for key in keys:
                setattr(group, key, values.get(key, [1.0, 2.0, 3.0 + 2.0 * number]))
            setattr(common if sequence == shared else frames[-1], sequence, [group])
    for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(dataset, key)
    dataset.NumberOfFrames, dataset.PixelData = len(voxels), (voxels[order] + 1024).tobytes()
    dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence = frames, [common]
    (tmp_path / "s").mkdir()
    dataset.save_as(tmp_path / "s/enhanced.dcm")
    if shared == "PlanePositionSequence":  # all frames in one place
        with pytest.raises(Defects, match=r"enhanced\.dcm: lies where"):
            read_series(tmp_path / "s")
        return
    array, geometry = read_series(tmp_path / "s", "zyx")
    np.testing.assert_array_equal(array, voxels)
    np.testing.assert_allclose((*geometry.origin, *geometry.spacing), (1, 2, 3, 0.5, 0.75, 2), atol=1e-9)


def test_all_bad_files_are_told_together(series, voxels):
    (series / "001.dcm").write_bytes(b"")
    write(series / "003.dcm", voxels[3, 1:], 3)
    (series / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(Defects) as caught:
        read_series(series)
    assert {defect.path.name for defect in caught.value.defects} == {"001.dcm", "003.dcm", "image.png"}


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even_enough(tmp_path, voxels):
    (tmp_path / "s").mkdir()
    heights = np.round(np.arange(6) * 1.25, 1)  # 0, 1.2, 2.5, 3.8, 5, 6.2
    for number, plane in enumerate(voxels):
        write(tmp_path / "s" / f"{number}", plane, number, position=(0, 0, heights[number]))
    array, geometry = read_series(tmp_path / "s", "zyx")
    np.testing.assert_array_equal(array, voxels)
    assert geometry.spacing[2] == pytest.approx(6.2 / 5)


def test_a_missing_folder_and_an_unknown_orientation_are_refused(tmp_path, series):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_series(tmp_path / "absent")
    with pytest.raises(ValueError, match="DATA.ORIENTATION is 'RAX'"):
        read_series(series, "zxy", "RAX")
