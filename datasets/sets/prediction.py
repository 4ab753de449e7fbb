"""What is to be predicted, without labels (test.py --input): volumes, DICOM, images, or folders of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from datasets.case import Case, Volume
from datasets.errors import BadFile, Defect, Defects, defect_of
from datasets.intensity import Intensity, Preprocessing
from datasets.pairing import CHANNEL, wrong_name
from datasets.readers import BESIDE, SUFFIXES, is_image, is_volume, read_image, stem_of
from datasets.readers.dicom import dicom_files, is_dicom
from datasets.readers.grid import check_axes
from datasets.sets.files import ScaledImage, count_channels, open_parts

_KINDS = f"images or volumes ({', '.join(SUFFIXES)}) or DICOM series"


class _Input(NamedTuple):
    """A case, and what is wrong with it at first sight."""

    case: Case
    defect: str = ""


class InputVolumes:
    """The images in a file or a folder as `Volume`s without labels, each opened as it is asked for.

    NIfTI is read slice by slice as the network takes it; of a DICOM file, the series of its folder is taken. In a
    folder, hidden files, tables and notes are passed over. What cannot be used is listed too, and raises when it is
    asked for: nothing is left out in silence.

    Args:
        path: a volume, an image, a DICOM file, a folder of one DICOM series, a folder of such folders, or a folder of
            volumes and images; of a network with several channels CASE_0000, CASE_0001, ... are those of CASE.
        how: what the network was trained on: channels, intensities, and the axes of volumes.

    Raises:
        FileNotFoundError: the path is not there.
        ValueError: the order or the orientation of the axes is none.
    """

    def __init__(self, path: Path | str, how: Preprocessing) -> None:
        self.path, self.how = Path(path), how
        check_axes(how.axis_order, how.orientation)
        if not self.path.exists():
            raise FileNotFoundError(f"{path}: is not there; expected {_KINDS}, or a folder of them (--input)")
        self._inputs = list(_checked(_find(self.path, how.channels)))
        self._limits: dict[int, list[tuple[float, float]]] = {}  # of what has been read whole

    @property
    def cases(self) -> list[str]:
        """The name of each, its file's without the suffix."""
        return [given.case.name for given in self._inputs]

    def group_of(self, name: str) -> str:
        """Each is a group of its own."""
        return name

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> Volume:
        """One image; the first time, all its voxels are read.

        Raises:
            ValueError: it cannot be used; the message names it.
            OSError: it cannot be read, or decompressed.
        """
        case, defect = self._inputs[index]
        path, how = case.images[0], self.how
        if defect:
            raise Defects(self.path, [Defect(path, defect)])
        taken = replace(how, channels=3 if how.channels == 3 else 0)  # grey becomes RGB, but RGB never grey
        parts, geometry = open_parts(case, taken, whole=index not in self._limits)
        channels = count_channels(parts)
        if channels != how.channels:
            found = (
                f"has {channels} channel{'s' * (channels > 1)}; expected {how.channels}, as the network was trained on"
            )
            raise BadFile(f"{path}: {found}; name the channels of a case CASE_0000, CASE_0001, ...")
        # Over an image of a CT a window has been laid already; its numbers are no HU.
        of_ct = is_image(path) and how.intensity.how == "window"
        intensity = Intensity("range") if of_ct else how.intensity
        image = ScaledImage(parts, intensity, case.images, self._limits.get(index))
        self._limits[index] = image.limits
        return Volume(case.name, image, None, geometry, is_image=is_image(path), source=path)

    def check(self, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> None:
        """Read everything once, in bounded memory.

        Args:
            progress: wraps the iterator over the images, such as tqdm.

        Raises:
            Defects: all that cannot be used, each by its file.
        """
        defects: list[Defect] = []
        for index in progress(range(len(self))):
            try:
                self[index]
            except Defects as error:
                defects += error.defects
            except (ValueError, OSError) as error:
                defects.append(defect_of(self._inputs[index].case.images[0], error))
        if defects:
            raise Defects(self.path, defects)


def _find(path: Path, channels: int) -> Iterator[_Input]:
    """Everything that a path stands for, good or bad."""
    if path.is_file():
        yield _series(path.absolute().parent) if is_dicom(path) else _file(path)
        return
    if dicom_files(path):
        yield _series(path)
        return
    found = [one for one in sorted(path.glob("[!.]*")) if one.is_dir() or not one.name.lower().endswith(BESIDE)]
    files, folders = ([one for one in found if one.is_dir() == wanted] for wanted in (False, True))
    series = [folder for folder in folders if dicom_files(folder)]
    if not files and not series:
        yield _Input(Case(path.name, (path,)), f"holds nothing to predict; expected {_KINDS} (--input)")
    for folder in () if series else folders:  # beside files, folders are passed over, but for what looks like one
        if is_volume(folder) or is_image(folder):
            yield _Input(
                Case(stem_of(folder), (folder,)), "is a folder by the name of a file; expected a file, rename it"
            )
    yield from _cases(files, channels, "lies beside folders of DICOM series; expected one or the other" * bool(series))
    for folder in folders if series else ():
        yield _series(folder, "holds no DICOM series, as the others do; move it away" * (folder not in series))


def _cases(files: Sequence[Path], channels: int, defect: str) -> Iterator[_Input]:
    """Files as cases; those of the channels of one case together, where the network takes several.

    Three channels may be one RGB image: numbers behind names then count only where they are 0, 1, 2 of every case, and
    the files are no RGB images.
    """
    numbered = [(path, CHANNEL.fullmatch(stem_of(path))) for path in files]
    grouped: dict[str, dict[int, Path]] = {}
    for path, found in numbered:
        if found and path != (first := grouped.setdefault(found[1], {}).setdefault(int(found[2]), path)):
            yield _Input(
                Case(stem_of(path), (path,)), f"has the name of {first.name}; expected one of each, rename one"
            )
    expected = list(range(channels))
    is_whole = {name: sorted(images) == expected for name, images in grouped.items()}
    if channels == 1 or not all(found for _, found in numbered) or (channels == 3 and not all(is_whole.values())):
        yield from (_file(path, defect) for path in files)
        return
    if channels == 3 and is_image(files[0]) and read_image(files[0]).ndim == 3:
        yield from (_file(path, defect) for path in files)
        return
    for name, images in grouped.items():
        found_numbers, wanted = (", ".join(f"_{number:04d}" for number in one) for one in (sorted(images), expected))
        lacking = f"has the channels {found_numbers}; expected {wanted}, as the network was trained on"
        case = Case(name, tuple(images[number] for number in sorted(images)))
        yield _Input(case, defect or _file(case.images[0]).defect or lacking * (not is_whole[name]))


def _file(path: Path, defect: str = "") -> _Input:
    if not is_volume(path) and not is_image(path):
        defect = f"is of a kind that is not read; expected {_KINDS}, so convert it or move it away (--input)"
    return _Input(Case(stem_of(path), (path,)), defect)


def _series(path: Path, defect: str = "") -> _Input:
    return _Input(Case(path.resolve().name, (path,)), defect)


def _checked(inputs: Iterable[_Input]) -> Iterator[_Input]:
    """The inputs, with a defect where a name was there before: their masks would overwrite one another."""
    known: dict[str, Path] = {}
    for given in inputs:
        path = given.case.images[0]
        other = known.setdefault(given.case.name, path)
        doubled = f"has the name of {other.name}, and so would its mask; expected each name once, so rename one"
        yield given._replace(defect=given.defect or wrong_name(given.case.name) or doubled * (other != path))
