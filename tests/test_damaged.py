"""Sixty damaged files, every format: one line on standard error that names the file, exit code 2, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import test as test_command
import train as train_command
from datasets.sets.synapse import slice_path, volume_path
from tests.conftest import make_synapse
from tests.datasets.readers.test_dicom import write_series
from tests.own_data import volume, write_images, write_volumes


def cut(content: bytes, keep: float) -> bytes:
    return content[: int(len(content) * keep)]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "text": lambda content: b"Not Found: the file that you asked for\n" * 20,
    "half": lambda content: cut(content, 0.5),
    "nearly whole": lambda content: cut(content, 0.9),
    "zeros": lambda content: bytes(len(content)),
}
IMAGES = (".png", ".jpg", ".tif", ".bmp")
VOLUMES = (".nii", ".nii.gz", ".mha", ".nrrd")
FORMATS = (*IMAGES, *VOLUMES, ".mhd", ".dcm", ".npz", ".h5")


def made(folder: Path, suffix: str) -> tuple[Path, Callable[[list[str]], int], list[str]]:
    """A data set of a format, the file of it that is damaged, and the command that reads it."""
    if suffix in IMAGES:
        root = write_images(folder, 4)
        for path in list((root / "images").iterdir()):
            # Large enough that a tenth is missing of the pixels, not of what stands behind them.
            image = Image.open(path).resize((96, 80))
            Image.open(root / "labels" / path.name).resize((96, 80)).save(root / "labels" / path.name)
            path.unlink()
            image.save(path.with_suffix(suffix))
        spoiled = root / f"images/case 1{suffix}"
    elif suffix in (*VOLUMES, ".mhd"):
        root = write_volumes(folder, 3)
        for path in list((root / "images").iterdir()):
            image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkInt16)
            path.unlink()
            sitk.WriteImage(image, str(path.with_name(f"{path.name.removesuffix('.nii.gz')}{suffix}")))
        spoiled = root / f"images/case1{suffix}"
    elif suffix == ".dcm":
        return write_series(folder, volume(0)[0]) / "002.dcm", test_command.main, ["--input", str(folder)]
    else:
        root = make_synapse(folder)
        spoiled = slice_path(root / "train_npz", "case0000_slice001")
        if suffix == ".h5":
            spoiled = volume_path(root / "test_vol_h5", "case0100")
            return spoiled, test_command.main, ["--volume_path", str(root)]
        return spoiled, train_command.main, ["--dataset", "Synapse", "--root_path", str(root)]
    return spoiled, train_command.main, ["--dataset", "Folder", "--root_path", str(root), "--max_iterations", "1"]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_damaged_file_is_one_line(
    tmp_path: Path, trained: tuple[Path, Path], capfd: pytest.CaptureFixture, suffix: str, damage: str
) -> None:
    spoiled, main, words = made(tmp_path / "data", suffix)
    spoiled.write_bytes(DAMAGE[damage](spoiled.read_bytes()))
    before = sorted((tmp_path / "data").rglob("*"))
    where = ["--output_dir", str(tmp_path / "run")]
    if main is test_command.main:
        where = ["--checkpoint", str(trained[1]), "--output", str(tmp_path / "run")]
    capfd.readouterr()
    assert main([*words, *where]) == 2
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if "error" in line]
    assert len(lines) == 1 and str(spoiled) in lines[0] and "Traceback" not in said, said
    assert sorted((tmp_path / "data").rglob("*")) == before
    assert not (tmp_path / "run/last.pth").exists() and not list(tmp_path.glob("run/predictions/*"))


def test_there_are_sixty() -> None:
    assert len(FORMATS) * len(DAMAGE) == 60 and np.unique(FORMATS).size == len(FORMATS)
