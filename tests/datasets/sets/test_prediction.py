"""What `--input` takes: every kind alone and in folders, scaled as in training, and all that is refused, together."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.errors import Defects
from datasets.intensity import Intensity, Preprocessing
from datasets.readers.nifti import NiftiImage
from datasets.sets.prediction import InputVolumes
from tests.datasets.readers.test_dicom import write_series
from tests.datasets.readers.test_nifti import patched, read_image, save

CT = Preprocessing(intensity=Intensity("window", (-100.0, 300.0)))
GREY = Preprocessing(intensity=Intensity("range"))
COLOR = Preprocessing(channels=3, intensity=Intensity("range"))


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 2000, (4, 5, 6)).astype(np.int16)


def write_image(path: Path, *shape: int, dtype: type = np.uint8) -> np.ndarray:
    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    Image.fromarray(pixels).save(path)
    return pixels


def windowed(array: np.ndarray) -> np.ndarray:
    """The window of `CT` by its formula, in float64."""
    return np.clip((array.astype(np.float64) + 100.0) / 400.0, 0.0, 1.0)


@pytest.mark.parametrize("name", ["scan.nii", "scan.v2.nii.gz"])
@pytest.mark.parametrize("orientation", ["", "RAS"])
def test_a_nifti_file_is_one_volume_read_by_slices(tmp_path, voxels, name, orientation):
    path = save(tmp_path / name, voxels, (0.7, 0.8, 5.0))
    volumes = InputVolumes(path, replace(CT, orientation=orientation))
    volumes.check()
    [volume] = volumes
    array, geometry = read_image(path, "zxy", orientation)
    assert (volume.name, volume.source) == (name.removesuffix(".gz").removesuffix(".nii"), path)
    assert volume.label is None and not volume.is_image and volume.geometry == geometry
    assert isinstance(volume.image.parts[0], NiftiImage), "not all of it in memory"
    assert volume.image.shape == array.shape and volume.image.ndim == 3 and len(volume.image) == 4
    for part in (slice(None), slice(1, 3), slice(3, None)):
        found = volume.image[part]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, windowed(array[part]), atol=1e-6)


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_dicom_series_is_one_volume(tmp_path, voxels, given):
    folder = write_series(tmp_path / "series", voxels)
    volumes = InputVolumes(folder if given == "folder" else folder / "002.dcm", CT)
    volumes.check()
    [volume] = volumes
    assert (volume.name, volume.source, volume.is_image) == ("series", folder, False)
    assert volume.geometry.axis_order == "zxy" and volume.geometry.spacing == (0.5, 0.75, 2.0)
    np.testing.assert_allclose(volume.image[:], windowed(voxels.transpose(0, 2, 1)), atol=1e-6)


def test_a_folder_of_folders_holds_a_series_in_each(tmp_path, voxels):
    for number in range(3):
        write_series(tmp_path / f"patient{number}", voxels + number)
    (tmp_path / "notes.txt").write_text("passed over")
    volumes = InputVolumes(tmp_path, CT)
    volumes.check()
    assert volumes.cases == [volume.name for volume in volumes] == ["patient0", "patient1", "patient2"]
    np.testing.assert_allclose(volumes[2].image[:], windowed((voxels + 2).transpose(0, 2, 1)), atol=1e-6)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".PNG"])
def test_a_grey_image_is_a_volume_of_one_slice(tmp_path, suffix):
    pixels = write_image(tmp_path / f"a{suffix}", 5, 7)
    [volume] = InputVolumes(tmp_path / f"a{suffix}", GREY)
    assert (volume.name, volume.is_image, volume.geometry) == ("a", True, None)
    assert volume.image.shape == (1, 5, 7)
    np.testing.assert_allclose(volume.image[:], pixels[None] / 255.0, atol=1e-6)


def test_all_bits_of_an_image_count(tmp_path):
    pixels = write_image(tmp_path / "a.png", 5, 7, dtype=np.uint16)
    [volume] = InputVolumes(tmp_path / "a.png", GREY)
    np.testing.assert_allclose(volume.image[:], pixels[None] / 65535.0, atol=1e-7)


def test_an_rgb_image_has_its_channels_first(tmp_path):
    pixels = write_image(tmp_path / "a.png", 5, 7, 3)
    [volume] = InputVolumes(tmp_path / "a.png", COLOR)
    assert volume.image.shape == (1, 3, 5, 7)
    for channel in range(3):
        np.testing.assert_allclose(volume.image[0:1][0, channel], pixels[..., channel] / 255.0, atol=1e-6)


def test_a_folder_of_files_is_taken_in_the_order_of_their_names(tmp_path, voxels):
    pixels = write_image(tmp_path / "b.png", 5, 7)
    save(tmp_path / "a.nii.gz", voxels)
    save(tmp_path / "c.nii", voxels)
    for name in ("notes.txt", "meta.json", "table.csv", ".hidden.png"):
        (tmp_path / name).write_text("passed over")
    (tmp_path / "folder").mkdir()
    volumes = InputVolumes(tmp_path, CT)
    volumes.check()
    assert [(volume.name, volume.is_image) for volume in volumes] == [("a", False), ("b", True), ("c", False)]
    np.testing.assert_allclose(volumes[1].image[:], pixels[None] / 255.0, atol=1e-6, err_msg="these are no HU")


def test_percentiles_are_those_of_each_volume(tmp_path, voxels):
    save(tmp_path / "a.nii.gz", voxels)
    save(tmp_path / "b.nii.gz", voxels // 2)
    volumes = InputVolumes(tmp_path, Preprocessing(intensity=Intensity("percentile"), axis_order="zyx"))
    for volume, stored in zip(volumes, (voxels, voxels // 2), strict=True):
        low, high = np.percentile(stored, (0.5, 99.5))
        np.testing.assert_allclose(volume.image[:], np.clip((stored - low) / (high - low), 0, 1), atol=1e-6)


def test_a_volume_is_looked_through_once(tmp_path, voxels):
    """After `check`, a file that has become bad is only found out as far as it is read."""
    path = save(tmp_path / "a.nii", voxels.astype(np.float32))
    volumes = InputVolumes(path, CT)
    volumes.check()
    content = bytearray(path.read_bytes())
    content[-4:] = np.array([np.nan], "<f4").tobytes()
    path.write_bytes(content)
    image = volumes[0].image
    assert image[:3].shape == (3, 6, 5)
    with pytest.raises(ValueError, match=r"a\.nii: .*NaN"):
        image[3:]
    with pytest.raises(Defects, match=r"a\.nii: holds 1 NaN"):
        InputVolumes(path, CT).check()


def duplicate(folder: Path, voxels: np.ndarray) -> None:
    shutil.copy(save(folder / "good.nii.gz", voxels), folder / "other.nii.gz")
    save(folder / "good.nii", voxels)


def same_stem(folder: Path, voxels: np.ndarray) -> None:
    write_image(folder / "a.png", 5, 7)
    write_image(folder / "a.bmp", 5, 7)


def files_beside_series(folder: Path, voxels: np.ndarray) -> None:
    write_series(folder / "series", voxels)
    save(folder / "a.nii", voxels)


def other_folder_beside_series(folder: Path, voxels: np.ndarray) -> None:
    write_series(folder / "series", voxels)
    (folder / "study" / "deeper").mkdir(parents=True)


def nan(folder: Path, voxels: np.ndarray) -> None:
    voxels = voxels.astype(np.float32)
    voxels[1, 2, 3] = np.nan
    save(folder / "a.nii.gz", voxels)


def transparent(folder: Path, voxels: np.ndarray) -> None:
    Image.new("RGBA", (7, 5)).save(folder / "a.png")


BAD = {
    "nothing": (lambda folder, v: None, r": holds nothing to predict; expected images or volumes"),
    "a folder by the name of a file": (
        lambda folder, v: [(folder / "a.nii.gz").mkdir(), write_image(folder / "b.png", 4, 4)],
        "a.nii.gz: is a folder by the name of a file; expected a file",
    ),
    "only what is passed over": (lambda folder, v: (folder / "a.txt").write_text("a"), "holds nothing to predict"),
    "a name too long for its mask's": (
        lambda folder, v: write_image(folder / f"{'y' * 245}.png", 5, 7),
        "has a name of 245 bytes",
    ),
    "another kind": (lambda folder, v: (folder / "a.mgz").write_bytes(b"MGH"), r"a\.mgz: is of a kind that is not"),
    "one name twice": (duplicate, r"good\.nii\.gz: has the name of good\.nii"),
    "one stem twice": (same_stem, r"a\.png: has the name of a\.bmp"),
    "files beside series": (files_beside_series, r"a\.nii: lies beside folders of DICOM"),
    "another folder beside series": (other_folder_beside_series, r"study: holds no DICOM series"),
    "NaN": (nan, r"a\.nii\.gz: holds 1 NaN"),
    "too large for float32": (
        lambda folder, v: save(folder / "a.nii", v * 1e300),
        r"a\.nii: holds 120 NaN or infinite",
    ),
    "damaged": (lambda folder, v: (folder / "a.nii").write_bytes(b"no"), r"a\.nii: is not a readable NIfTI"),
    "color": (lambda folder, v: write_image(folder / "a.png", 5, 7, 3), r"a\.png: has 3 channels; expected 1,"),
    "transparent": (transparent, r"a\.png: is transparent"),
    "one DICOM slice": (lambda folder, v: write_series(folder, v[:1]), "holds one DICOM slice"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_predicted_is_refused_by_name(tmp_path, voxels, kind):
    spoil, message = BAD[kind]
    (tmp_path / "input").mkdir()
    spoil(tmp_path / "input", voxels)
    volumes = InputVolumes(tmp_path / "input", CT)
    with pytest.raises(Defects, match=message) as caught:
        volumes.check()
    assert len(caught.value.defects) == 1 and len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError):  # nor does it get lost where nobody checks
        list(volumes)


@pytest.mark.parametrize("make", [lambda p, v: save(p / "a.nii", v), lambda p, v: write_series(p / "s", v)])
def test_a_volume_is_refused_by_a_network_for_color(tmp_path, voxels, make):
    with pytest.raises(Defects, match="has 1 channel; expected 3,"):
        InputVolumes(make(tmp_path, voxels), COLOR).check()


def test_all_that_is_wrong_is_told_together(tmp_path, voxels):
    nan(tmp_path, voxels)
    save(tmp_path / "b.nii.gz", voxels)
    patched(tmp_path / "c.nii", save(tmp_path / "c.nii", voxels), "2h", 70, 128, 24)
    write_image(tmp_path / "d.png", 5, 7, 3)
    write_image(tmp_path / "b.png", 5, 7)
    (tmp_path / "e.mha").write_bytes(b"")
    seen = []
    with pytest.raises(Defects) as caught:
        InputVolumes(tmp_path, CT).check(lambda places: (seen.append(place) or place for place in places))
    names = [defect.path.name for defect in caught.value.defects]
    assert names == ["a.nii.gz", "b.png", "c.nii", "d.png", "e.mha"]
    assert seen == list(range(6))
    for defect in caught.value.defects:
        assert str(tmp_path) not in defect.what and "expected" in defect.what


def test_no_range_is_told_by_whole_numbers_with_a_sign(tmp_path, voxels):
    with pytest.raises(Defects, match=r"a\.nii: holds int16, whose range"):
        InputVolumes(save(tmp_path / "a.nii", voxels), GREY).check()


def test_what_is_not_there_and_unknown_axes_are_refused_at_once(tmp_path, voxels):
    with pytest.raises(FileNotFoundError, match="absent.*--input"):
        InputVolumes(tmp_path / "absent", CT)
    with pytest.raises(ValueError, match="DATA.ORIENTATION is 'RAX'"):
        InputVolumes(save(tmp_path / "a.nii", voxels), Preprocessing(intensity=Intensity(), orientation="RAX"))


def test_grey_becomes_rgb_where_the_network_takes_that(tmp_path):
    pixels = write_image(tmp_path / "a.png", 5, 7)
    [volume] = InputVolumes(tmp_path, COLOR)
    np.testing.assert_allclose(volume.image[:], np.stack([pixels] * 3)[None] / 255.0, atol=1e-6)


@pytest.mark.parametrize("kind", ["volumes", "images"])
def test_several_files_are_the_channels_of_a_case(tmp_path, voxels, kind):
    stored = {}
    for case in "ab":
        for channel in range(2):
            name = f"{case}_{channel:04d}"
            if kind == "volumes":
                stored[name] = voxels + ord(case) + 7 * channel
                save(tmp_path / f"{name}.nii.gz", stored[name])
            else:
                stored[name] = write_image(tmp_path / f"{name}.png", 5, 7 if case == "a" else 8)[None]
    how = Preprocessing(channels=2, intensity=Intensity("percentile"), axis_order="zyx")
    volumes = InputVolumes(tmp_path, how)
    volumes.check()
    assert volumes.cases == ["a", "b"]
    for volume in volumes:
        for channel in range(2):
            raw = stored[f"{volume.name}_{channel:04d}"]
            low, high = np.percentile(raw, (0.5, 99.5))
            np.testing.assert_allclose(volume.image[:][:, channel], ((raw - low) / (high - low)).clip(0, 1), atol=1e-6)
    first = next(tmp_path.glob("b_0001*"))
    twin = shutil.copy(first, first.with_name("b_0001.nii" if kind == "volumes" else "b_0001.bmp"))
    with pytest.raises(Defects, match="b_0001.*has the name of b_0001"):
        InputVolumes(tmp_path, how).check()
    Path(twin).unlink()
    first.unlink()
    with pytest.raises(Defects, match="b_0000.*has the channels _0000; expected _0000, _0001"):
        InputVolumes(tmp_path, how).check()
    path = next(tmp_path.glob("b_0000*"))
    path.rename(path.with_name(path.name.replace("_0000", "_0002")))
    with pytest.raises(Defects, match="b_0002.*has the channels _0002; expected _0000, _0001"):
        InputVolumes(tmp_path, how).check()


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 1, 2)])
def test_numbers_behind_the_names_of_rgb_images_are_no_channels(tmp_path, numbers):
    for number in numbers:
        write_image(tmp_path / f"frame_{number:04d}.png", 5, 7, 3)
    assert InputVolumes(tmp_path, COLOR).cases == [f"frame_{number:04d}" for number in numbers]
    for number in range(3):  # but of three grey ones they are
        write_image(tmp_path / f"frame_{number:04d}.png", 5, 7)
    (tmp_path / "frame_0003.png").unlink(missing_ok=True)
    assert InputVolumes(tmp_path, COLOR).cases == ["frame"]
