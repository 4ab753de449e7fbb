"""What the commands read, each file with the ways in which it can be spoiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.reliability.crafted import checkpoints, dicom, folders, h5, nifti, npz, pictures, png, texts, tiff
from tests.reliability.fuzzing import Write
from tests.reliability.samples import NUCLEI
from tests.reliability.sandbox import Sandbox


@dataclass(frozen=True)
class Target:
    """A file that a command reads, and how it can be spoiled.

    Args:
        file: where it lies in the sandbox.
        prog: "train" or "test", or a script's module.
        words: the command line, given the sandbox.
        attacks: files that must be refused, `sound` that must be taken, and `odd` that may be either, by name.
        short, long: how many attacks and how many random damages each form has; None is every one.
        cut_is_bad: whether a file cut short can never be sound.
        other_numbers: whether a damaged file may be read as other numbers, on which training may diverge.
        keeps: files of the sandbox that the command writes itself.
        makes: a file in the output folder, such as "predictions/*", that must be there where the file was taken.
        also: what may name the fault where the file's own name does not.
    """

    file: str
    prog: str
    words: Callable[[Sandbox], list[object]]
    attacks: Mapping[str, Write] = field(default_factory=dict)
    sound: Mapping[str, Write] = field(default_factory=dict)
    odd: Mapping[str, Write] = field(default_factory=dict)
    short: tuple[int, int] = (3, 3)
    long: tuple[int | None, int] = (None, 28)
    cut_is_bad: bool = True
    other_numbers: bool = False
    keeps: tuple[str, ...] = ()
    makes: str = ""
    also: tuple[str, ...] = ()


_MISSING = ("is named in the list but is not there", "no such list", "leaves none to train on")
_TO_STEP_TWO = ("--max_epochs", 2, "--max_iterations", 2)
# What a configuration says can be wrong with the data, which know no files.
_BY_NETWORK = ("swin_unet: ",)  # whose options are checked where it is built
_BY_WHAT_IT_SAYS = ("no such data folder", "no such folder of lists", "--dataset is")

_NO_INPUT = ("of a kind that is not read", "is not there; expected NIfTI")
# What may be said of a data set of pairs where one of them is no file.
_UNPAIRED = ("is not there", "is neither a picture nor NIfTI", "has no label in labels/", "has no image in images/")

# Files of another kind under a target's name.
FOREIGN = (
    *("data/train_npz/case0000_slice000.npz", "data/test_vol_h5/case0100.npy.h5", "scans/one.nii.gz", "png/scan.png"),
    *("tiff/scan.tif", "jpg/scan.jpg", "bmp/scan.bmp", "series/001.dcm", "looked/lists/looked.json"),
    *("weights/a.yaml", "weights/start.pth", "weights/w.safetensors", "data/lists/train.txt"),
)

TARGETS = {
    "npz": Target(
        "data/train_npz/case0000_slice001.npz",
        *("train", lambda box: box.train_words()),
        *(npz.npz_attacks("image"), npz.npz_sound("image"), {}, (4, 5), (None, 42)),
        other_numbers=True,
    ),
    "h5": Target(
        "data/test_vol_h5/case0100.npy.h5",
        *("test", lambda box: box.test_words()),
        *(h5.H5, h5.H5_SOUND, {}, (7, 3), (None, 42)),
    ),
    "nifti": Target(
        "scan/scan.nii.gz",
        *("test", lambda box: box.test_words("--input", box["scan/scan.nii.gz"])),
        *(nifti.NIFTI, nifti.NIFTI_SOUND, {}, (3, 3), (None, 42)),
    ),
    "folder": Target(
        "scans/two.nii.gz",
        *("test", lambda box: box.test_words("--input", box["scans"])),
        short=(1, 0),
        long=(None, 14),
        also=("scans: ",),
    ),
    "png": Target(
        "png/scan.png",
        *("test", lambda box: box.predict_words("png/scan.png")),
        *(png.PNG, png.PNG_SOUND | png.PNG_SMALL, png.PNG_ODD, (4, 3), (None, 42)),
        cut_is_bad=False,
        makes="predictions/scan.*",
    ),
    "tiff": Target(
        "tiff/scan.tif",
        *("test", lambda box: box.predict_words("tiff/scan.tif")),
        *(tiff.TIFF, tiff.TIFF_SOUND, tiff.TIFF_ODD, (4, 2), (None, 42)),
        makes="predictions/scan.*",
    ),
    "tiff deflated": Target(
        "deflated/scan.tif",
        *("test", lambda box: box.predict_words("deflated/scan.tif")),
        short=(0, 1),
        long=(0, 42),
    ),
    "jpg": Target(
        "jpg/scan.jpg",
        *("test", lambda box: box.predict_words("jpg/scan.jpg")),
        *(pictures.JPEG, pictures.JPEG_SOUND, pictures.JPEG_ODD, (2, 2), (None, 42)),
        cut_is_bad=False,
        makes="predictions/scan.png",
    ),
    "bmp": Target(
        "bmp/scan.bmp",
        *("test", lambda box: box.predict_words("bmp/scan.bmp")),
        *(pictures.BMP, pictures.BMP_SOUND, pictures.BMP_ODD, (2, 2), (None, 28)),
        makes="predictions/scan.png",
    ),
    "png folder": Target(
        "pngs/two.png",
        *("test", lambda box: box.predict_words("pngs")),
        short=(0, 1),
        long=(0, 14),
        makes="predictions/two.png",
    ),
    "png between": Target(
        "mixed/more.png",
        *("test", lambda box: box.predict_words("mixed")),
        short=(0, 1),
        long=(0, 14),
        makes="predictions/scan.nii.gz",
    ),
    "dicom": Target(
        "series/002.dcm",
        *("test", lambda box: box.predict_words("series")),
        *(dicom.DICOM, dicom.DICOM_SOUND, dicom.DICOM_ODD, (4, 3), (None, 70)),
        makes="predictions/series.nii.gz",
        also=("series: ",),
    ),
    "dicom file": Target(
        "series/000.dcm",
        *("test", lambda box: box.predict_words("series/000.dcm")),
        *(dicom.DICOM, {}, {}, (0, 0), (12, 14)),
        also=("series: ", *_NO_INPUT),
    ),
    "own image": Target(
        "own/images/a.png",
        *("train", lambda box: box.own_words("own")),
        *(png.PNG, png.PNG_SOUND, png.PNG_ODD, (1, 1), (12, 21)),
        cut_is_bad=False,
        other_numbers=True,
        keeps=("own/lists/looked.json",),
        also=_UNPAIRED,
    ),
    "own label": Target(
        "own/labels/a.png",
        *("train", lambda box: box.own_words("own")),
        *(png.PNG, {}, {}, (1, 1), (12, 21)),
        cut_is_bad=False,
        other_numbers=True,
        keeps=("own/lists/looked.json",),
        also=_UNPAIRED,
    ),
    "own list": Target(
        "own/lists/train.txt",
        *("train", lambda box: box.own_words("own")),
        *(texts.LISTS, texts.LISTS_SOUND, {}, (2, 1), (None, 21)),
        cut_is_bad=False,
        keeps=("own/lists/looked.json",),
        also=("in none of the lists",),
    ),
    "looked": Target(
        "looked/lists/looked.json",
        *("train", lambda box: box.own_words("looked")),
        sound=folders.LOOKED_SOUND,
        odd=folders.LOOKED_ODD,
        short=(0, 1),
        long=(0, 28),
        cut_is_bad=False,
        keeps=("looked/lists/looked.json",),
        also=("looked/images/", "looked/labels/"),
    ),
    "own volume": Target(
        "volumes/labels/a.nii.gz",
        *("train", lambda box: box.own_words("volumes")),
        *(nifti.NIFTI | folders.LABEL, {}, nifti.NIFTI_SOUND, (1, 1), (None, 28)),
        other_numbers=True,
        keeps=("volumes/lists/looked.json",),
        also=_UNPAIRED,
    ),
    "folds": Target(
        "data/lists/folds_2.json",
        *("train", lambda box: box.train_words("--folds", 2, "--fold", 0)),
        *(folders.FOLDS, folders.FOLDS_SOUND, {}, (2, 1), (None, 21)),
    ),
    "acdc": Target(
        "acdc/train/case_001_sliceED_1.npz",
        *("train", lambda box: box.train_words("--dataset", "ACDC", "--root_path", box["acdc"])),
        *(npz.npz_attacks("img"), npz.npz_sound("img"), {}, (2, 1), (None, 28)),
        other_numbers=True,
    ),
    "acdc volume": Target(
        "acdc/test/case_002_volume_ED.npz",
        *("test", lambda box: box.acdc_words()),
        *(npz.npz_attacks("img"), npz.npz_sound("img"), {}, (1, 1), (None, 28)),
    ),
    "outlines": Target(
        f"monuseg/{NUCLEI}.xml",
        *("scripts.prepare_histology", lambda box: ["MoNuSeg", box["monuseg"], box.out, "--split", "all"]),
        *(folders.XML, folders.XML_SOUND, folders.XML_ODD, (4, 2), (None, 42)),
        makes=f"train/labelcol/{NUCLEI}.png",
        also=("has no outlines",),
    ),
    "Info.cfg": Target(
        "patients/patient001/Info.cfg",
        *("scripts.prepare_acdc", lambda box: [box["patients"], box.out]),
        *(folders.INFO, folders.INFO_SOUND, {}, (2, 1), (None, 21)),
        cut_is_bad=False,
        makes="train/case_001_sliceED_0.npz",
        also=("patients/patient001/",),
    ),
    "yaml": Target(
        "weights/a.yaml",
        *("train", lambda box: box.train_words("--cfg", box["weights/a.yaml"], "--img_size", 32, network=())),
        *(texts.YAML, texts.YAML_SOUND, {}, (4, 3), (None, 42)),
        cut_is_bad=False,
        other_numbers=True,
        also=(*_BY_WHAT_IT_SAYS, *_BY_NETWORK),
    ),
    "config": Target(
        "run/config.yaml",
        *("test", lambda box: box.test_words()),
        *(texts.YAML, texts.YAML_SOUND, {}, (1, 3), (20, 28)),
        cut_is_bad=False,
        also=(*_BY_WHAT_IT_SAYS, *_BY_NETWORK, "is of another network"),
    ),
    "pth": Target(
        "weights/w.pth",
        *("test", lambda box: box.test_words(checkpoint="weights/w.pth")),
        *(checkpoints.PTH, checkpoints.PTH_SOUND, {}, (4, 2), (None, 28)),
    ),
    "start": Target(
        "weights/start.pth",
        *("train", lambda box: [*box.train_words(), "MODEL.PRETRAIN_CKPT", box["weights/start.pth"]]),
        *(checkpoints.PTH, checkpoints.PTH_SOUND, {}, (1, 1), (15, 14)),
        other_numbers=True,
    ),
    "resume": Target(
        "weights/resume.pth",
        *("train", lambda box: box.train_words(*_TO_STEP_TWO, "--resume", box["weights/resume.pth"])),
        *(checkpoints.RESUME, {}, {}, (3, 2), (None, 21)),
        other_numbers=True,
    ),
    "safetensors": Target(
        "weights/w.safetensors",
        *("test", lambda box: box.test_words(checkpoint="weights/w.safetensors")),
        *(checkpoints.SAFETENSORS, {}, {}, (2, 1), (None, 21)),
    ),
    "train.txt": Target(
        "data/lists/train.txt",
        *("train", lambda box: box.train_words()),
        *(texts.LISTS, texts.LISTS_SOUND, {}, (2, 2), (None, 21)),
        cut_is_bad=False,
        also=_MISSING,
    ),
    "test_vol.txt": Target(
        "data/lists/test_vol.txt",
        *("test", lambda box: box.test_words()),
        *(texts.LISTS, texts.LISTS_SOUND, {}, (1, 1), (12, 7)),
        cut_is_bad=False,
        also=_MISSING,
    ),
    "val.txt": Target(
        "lists_with_val/val.txt",
        *("train", lambda box: box.train_words("--list_dir", box["lists_with_val"])),
        *(texts.LISTS, texts.LISTS_SOUND, {}, (1, 1), (12, 14)),
        cut_is_bad=False,
        also=_MISSING,
    ),
}
