"""Sound files of every kind that is read beside those of the Synapse layout, small, for the sandbox to spoil."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from datasets import inspect
from datasets.intensity import Preprocessing
from datasets.sets import acdc
from tests.conftest import make_case

NUCLEI = "TCGA-18-5592-01Z-00-DX1"  # a case of MoNuSeg that the papers train on

_SIZE = (3, 40, 40)
_OUTLINES = (((2, 3), (12, 4), (6, 15)), ((20.5, 20.25), (39, 22), (30, 39), (21, 30)))


def write_scans(box: Path) -> None:
    """What is predicted without labels: NIfTI."""
    voxels = np.random.default_rng(0).normal(0, 200, _SIZE).astype(np.float32)
    for name in ("scan/scan.nii.gz", "scans/one.nii.gz", "scans/two.nii.gz"):
        _write_nifti(box / name, voxels)


def write_own_folders(box: Path) -> None:
    """Folders of one's own, of images and of volumes, each inspected."""
    for seed, name in enumerate("abcd"):
        image, label = make_case(seed, _SIZE, 2)
        for part, array in (("images", (image * 255).astype(np.uint8)), ("labels", label * np.uint8(255))):
            _write_nifti(box / f"volumes/{part}/{name}.nii.gz", array)
            path = box / f"own/{part}/{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array[0]).save(path)
    for root in ("own", "volumes"):
        inspect("Folder", root_path=str(box / root), how=Preprocessing((), 0))


def write_acdc(root: Path) -> None:
    """ACDC as it is once it is prepared: three slices to train on, and a volume to test on."""
    image, label = make_case(0, _SIZE, 4)
    for part in ("train", "test", "lists"):
        (root / part).mkdir(parents=True)
    names = [acdc.slice_name("case_001", "ED", index) for index in range(len(image))]
    for index, name in enumerate(names):
        acdc.write(root / f"train/{name}.npz", image[index], label[index])
    volume = acdc.volume_name("case_002", "ED")
    acdc.write(root / f"test/{volume}.npz", image, label)
    for part, listed in (("train", names), ("test", [volume])):
        (root / f"lists/{part}.txt").write_text("".join(f"{name}.npz\n" for name in listed))


def write_downloads(box: Path) -> None:
    """What the scripts prepare: a case of MoNuSeg, and a patient of ACDC."""
    image, label = make_case(0, _SIZE, 4)
    (box / "monuseg").mkdir()
    Image.fromarray((image * 255).astype(np.uint8).transpose(1, 2, 0)).save(box / f"monuseg/{NUCLEI}.tif")
    regions = "".join(
        "<Region><Vertices>" + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in outline) + "</Vertices></Region>"
        for outline in _OUTLINES
    )
    content = f"<Annotations><Annotation><Regions>{regions}</Regions></Annotation></Annotations>"
    (box / f"monuseg/{NUCLEI}.xml").write_text(content)
    patient = box / "patients/patient001"
    for frame in ("01", "12"):
        for suffix, array in (("", (image * 900).astype(np.int16)), ("_gt", label)):
            _write_nifti(patient / f"{patient.name}_frame{frame}{suffix}.nii.gz", array)
    (patient / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\n")


def _write_nifti(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=True)
