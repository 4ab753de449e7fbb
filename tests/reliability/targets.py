"""What the commands read, each file with the ways in which it can be spoiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.reliability import attacks
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
        attacks: files that must be refused, by name.
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
_UNPAIRED = ("is not there", "is neither an image nor a volume", "has no label in labels/", "has no image in images/")

TARGETS = {
    "npz": Target(
        "data/train_npz/case0000_slice001.npz",
        *("train", lambda box: box.train_words()),
        *(attacks.npz("image"), (4, 5)),
        other_numbers=True,
    ),
    "h5": Target(
        "data/test_vol_h5/case0100.npy.h5",
        *("test", lambda box: box.test_words()),
        *(attacks.H5, (7, 3)),
    ),
    "nifti": Target(
        "scan/scan.nii.gz",
        *("test", lambda box: box.test_words("--input", box["scan/scan.nii.gz"])),
        *(attacks.NIFTI, (3, 3)),
    ),
    "folder": Target(
        "scans/two.nii.gz",
        *("test", lambda box: box.test_words("--input", box["scans"])),
        short=(1, 0),
        long=(None, 14),
        also=("scans: ",),
    ),
    "own list": Target(
        "own/lists/train.txt",
        *("train", lambda box: box.own_words("own")),
        *(attacks.LISTS, (2, 1)),
        cut_is_bad=False,
        keeps=("own/lists/inspected.json",),
        also=("in none of the lists",),
    ),
    "own volume": Target(
        "volumes/labels/a.nii.gz",
        *("train", lambda box: box.own_words("volumes")),
        *(attacks.LABEL, (1, 1)),
        other_numbers=True,
        keeps=("volumes/lists/inspected.json",),
        also=_UNPAIRED,
    ),
    "folds": Target(
        "data/lists/folds_2.json",
        *("train", lambda box: box.train_words("--folds", 2, "--fold", 0)),
        *(attacks.FOLDS, (2, 1)),
    ),
    "acdc": Target(
        "acdc/train/case_001_sliceED_1.npz",
        *("train", lambda box: box.train_words("--dataset", "ACDC", "--root_path", box["acdc"])),
        *(attacks.npz("img"), (2, 1)),
        other_numbers=True,
    ),
    "acdc volume": Target(
        "acdc/test/case_002_volume_ED.npz",
        *("test", lambda box: box.acdc_words()),
        *(attacks.npz("img"), (1, 1)),
    ),
    "outlines": Target(
        f"monuseg/{NUCLEI}.xml",
        *("scripts.prepare_histology", lambda box: ["MoNuSeg", box["monuseg"], box.out, "--split", "all"]),
        *(attacks.XML, (3, 2)),
        makes=f"train/labelcol/{NUCLEI}.png",
        also=("has no outlines",),
    ),
    "Info.cfg": Target(
        "patients/patient001/Info.cfg",
        *("scripts.prepare_acdc", lambda box: [box["patients"], box.out]),
        *(attacks.INFO, (2, 1)),
        cut_is_bad=False,
        makes="train/case_001_sliceED_0.npz",
        also=("patients/patient001/",),
    ),
    "yaml": Target(
        "weights/a.yaml",
        *("train", lambda box: box.train_words("--cfg", box["weights/a.yaml"], "--img_size", 32, network=())),
        *(attacks.YAML, (4, 3)),
        cut_is_bad=False,
        other_numbers=True,
        also=(*_BY_WHAT_IT_SAYS, *_BY_NETWORK),
    ),
    "config": Target(
        "run/config.yaml",
        *("test", lambda box: box.test_words()),
        *(attacks.YAML, (1, 3)),
        cut_is_bad=False,
        also=(*_BY_WHAT_IT_SAYS, *_BY_NETWORK, "is of another network"),
    ),
    "pth": Target(
        "weights/w.pth",
        *("test", lambda box: box.test_words(checkpoint="weights/w.pth")),
        *(attacks.PTH, (4, 2)),
    ),
    "start": Target(
        "weights/start.pth",
        *("train", lambda box: [*box.train_words(), "MODEL.PRETRAIN_CKPT", box["weights/start.pth"]]),
        *(attacks.PTH, (1, 1)),
        other_numbers=True,
    ),
    "resume": Target(
        "weights/resume.pth",
        *("train", lambda box: box.train_words(*_TO_STEP_TWO, "--resume", box["weights/resume.pth"])),
        *(attacks.RESUME, (8, 2)),
        other_numbers=True,
    ),
    "safetensors": Target(
        "weights/w.safetensors",
        *("test", lambda box: box.test_words(checkpoint="weights/w.safetensors")),
        *(attacks.SAFETENSORS, (2, 1)),
    ),
    "train.txt": Target(
        "data/lists/train.txt",
        *("train", lambda box: box.train_words()),
        *(attacks.LISTS, (2, 2)),
        cut_is_bad=False,
        also=_MISSING,
    ),
    "test_vol.txt": Target(
        "data/lists/test_vol.txt",
        *("test", lambda box: box.test_words()),
        *(attacks.LISTS, (1, 1)),
        cut_is_bad=False,
        also=_MISSING,
    ),
    "val.txt": Target(
        "lists_with_val/val.txt",
        *("train", lambda box: box.train_words("--list_dir", box["lists_with_val"])),
        *(attacks.LISTS, (1, 1), (99, 28)),
        cut_is_bad=False,
        also=_MISSING,
    ),
}
