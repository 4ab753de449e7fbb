"""The data sets by name: `build_dataset("Synapse", "train", num_classes=9)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.cache import CachedSlices
from datasets.case import Case, DataSet, Slices, Volumes
from datasets.intensity import Preprocessing
from datasets.sets import phantom
from datasets.sets.acdc import Acdc
from datasets.sets.folder import Folder, inspect_folder, looks_like_folder
from datasets.sets.histology import GlaS, MoNuSeg
from datasets.sets.synapse import ArraySet, Synapse
from datasets.slices import CaseSlices, CaseVolumes, StackedVolumes
from datasets.splits import folds_file, held_out, read_folds, read_groups, split_cases, write_folds
from datasets.verify import verify

__all__ = [
    "DATASETS",
    "build_dataset",
    "class_names",
    "describe",
    "inspect",
    "keep_folds",
    "list_datasets",
    "locate",
    "open_dataset",
    "read_groups",
    "split_cases",
    "train_and_val",
    "verify",
]

DATASETS: dict[str, type[DataSet]] = {
    "Synapse": Synapse,
    "Phantom": Synapse,
    "ACDC": Acdc,
    "GlaS": GlaS,
    "MoNuSeg": MoNuSeg,
    "Folder": Folder,
}
_SHIPPED = Path(__file__).parent / "lists"

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def list_datasets() -> list[str]:
    """Every name that `build_dataset` takes."""
    return sorted(DATASETS)


def class_names(name: str, num_classes: int, given: Sequence[str] = ()) -> list[str]:
    """Names of the classes 1..num_classes-1: those that are given, else the data set's own, else `class N`."""
    known = given or DATASETS[name].classes
    return list(known) if len(known) == num_classes - 1 else [f"class {i}" for i in range(1, num_classes)]


def open_dataset(
    name: str, *, root_path: str = "", list_dir: str = "", num_classes: int = 0, how: Preprocessing, suffix: str = ""
) -> DataSet:
    """A data set in its folder; 0 classes are its own, `suffix` is that of a Folder's labels; errors as of `locate`."""
    root, lists = locate(name, root_path, list_dir)
    kind = DATASETS[name]
    if kind is Folder:
        return Folder(root, lists, num_classes, how, suffix)
    return kind(root, lists, num_classes or len(kind.classes) + 1, how)


def inspect(
    name: str,
    *,
    root_path: str = "",
    list_dir: str = "",
    num_classes: int = 0,
    how: Preprocessing = Preprocessing(),  # noqa: B008 (it cannot be changed)
    phantom_options: Mapping[str, Any] | None = None,
    progress: Progress = iter,
    **of_folder: Any,
) -> dict[str, Any]:
    """Read what trains and validates; returns what it holds, by configuration key: the folders and all that is empty.

    Of the slices of Synapse and ACDC, the headers and a sample; of all others, everything.

    Args:
        name: one of `list_datasets()`; a Folder is split where it is not yet.
        root_path, list_dir, num_classes: see `build_dataset`; 0 classes are the data set's own.
        how: the threshold of masks and the label to ignore.
        phantom_options: keywords of `prepare_phantom`, which makes what Phantom lacks.
        progress: wraps the iterator over the cases, such as tqdm.
        of_folder: more keywords of `datasets.sets.folder.inspect_folder`.

    Raises:
        Defects: all that is wrong with the files and the lists.
        FileNotFoundError, ValueError, OSError: as in `build_dataset` and `inspect_folder`.
    """
    if name == "Phantom":
        phantom.prepare_phantom(Path(root_path or "data/Phantom"), **(phantom_options or {}))
    root, lists = locate(name, root_path, list_dir)
    folders = {"DATA.ROOT_PATH": str(root), "DATA.VOLUME_PATH": str(root)}
    if name == "Folder":
        options = {"num_classes": num_classes, "how": how, "progress": progress, **of_folder}
        return inspect_folder(root, lists, **options) | folders | {"DATA.LIST_DIR": str(lists)}
    if lists.is_dir() and lists.parent != _SHIPPED:
        folders["DATA.LIST_DIR"] = str(lists)
    dataset = open_dataset(name, root_path=root_path, list_dir=list_dir, num_classes=num_classes, how=how)
    assert isinstance(dataset, ArraySet | MoNuSeg)
    return folders | dataset.inspect_all(progress)


def build_dataset(
    name: str,
    split: str,
    *,
    num_classes: int,
    root_path: str = "",
    list_dir: str = "",
    val_cases: int = 0,
    folds: int = 0,
    fold: int = 0,
    cache: str = "",
    preprocessing: Preprocessing | None = None,
    suffix: str = "",
) -> Slices | Volumes:
    """One split of a dataset: "train" gives slices, "val" and "test" give volumes.

    Args:
        name: one of `list_datasets()`; Phantom is made by `inspect`.
        split: "train", "val" (cases held out of training; may be empty) or "test".
        num_classes: K; labels outside 0..K-1 are refused as a file is read.
        root_path: the data folder, or one of the folders in it; default `data/<name>`.
        list_dir: folder of the lists; default `lists/lists_<name>`, else the root's `lists`, else the shipped split.
        val_cases: how many training cases to hold out, the last ones in order; a `val.txt` list does the same.
        folds: cross-validation in so many parts of the cases that train and validate: "test" is then part `fold`, and
            the others train; those of the test list are in no part. 0: none.
        cache: a folder to keep the slices of "train" and "val" in, mapped into memory; "" reads the files themselves.
        preprocessing: by default the labels are the classes.
        suffix: of the labels of a Folder.

    Raises:
        FileNotFoundError: a folder, list or listed file is missing.
        ValueError: an unknown name or split, or a list that cannot be used.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split is {split!r}; expected train, val or test")
    how = preprocessing or Preprocessing(tuple(range(num_classes)))
    dataset = open_dataset(
        name, root_path=root_path, list_dir=list_dir, num_classes=num_classes, how=how, suffix=suffix
    )
    if split == "test" and not folds:
        return CaseVolumes(dataset, dataset.cases(dataset.names("test"), "test"))
    if split == "test":
        names = dataset.training_names(bool(folds))
        return _volumes(dataset, held_out(names, _read_folds(dataset, folds)[fold], dataset.case_of)[1], "")
    train, held = train_and_val(dataset, val_cases, folds, fold)
    if split == "val":
        return _volumes(dataset, held, cache)
    return _slices(dataset, dataset.cases(train, "train"), cache)


def train_and_val(dataset: DataSet, val_cases: int = 0, folds: int = 0, fold: int = 0) -> tuple[list[str], list[str]]:
    """The names that train and those that validate; arguments and errors as of `build_dataset`."""
    names, listed = dataset.training_names(bool(folds)), dataset.names("val")
    if folds:
        listed, (names, _) = [], held_out(names, _read_folds(dataset, folds)[fold], dataset.case_of)
    return split_cases(names, listed, val_cases, dataset.group_of, dataset.lists / dataset.lists_of["val"])


def _slices(dataset: DataSet, cases: Sequence[Case], cache: str) -> Slices:
    """Decoding a volume for every slice of it would take longer than training on it: these are always in a cache."""
    folder = cache or (dataset.root / "cache" if dataset.has_volumes else "")
    return CachedSlices(dataset, cases, folder) if folder and cases else CaseSlices(dataset, cases)


def _volumes(dataset: DataSet, names: Sequence[str], cache: str) -> Volumes:
    cases = dataset.cases(names, "val")
    if isinstance(dataset, ArraySet):
        return StackedVolumes(dataset, cases, _slices(dataset, cases, cache))
    return CaseVolumes(dataset, cases)


def describe(slices: Slices, validation: Volumes) -> list[str]:
    """A line for each slice, with the bytes of its file, and each validation case: what a resumed run finds again."""
    sizes = {path: path.stat().st_size for path in set(slices.files)}
    lines = [f"slice {name} of {sizes[path]} bytes" for name, path in zip(slices.names, slices.files, strict=True)]
    return lines + [f"validation case {case}" for case in validation.cases]


def keep_folds(
    name: str, *, folds: int, preprocessing: Preprocessing, root_path: str = "", list_dir: str = "", suffix: str = ""
) -> None:
    """Write the folds of a cross-validation for later runs, where they are not written yet: beside the lists, or in the
    data folder if it has none; keywords as of `build_dataset`.

    Raises:
        ValueError, OSError: as in `datasets.splits.read_folds` and `write_folds`.
    """
    dataset = open_dataset(name, root_path=root_path, list_dir=list_dir, how=preprocessing, suffix=suffix)
    path = _folds_file(dataset, folds)
    if not path.is_file():
        write_folds(path, _read_folds(dataset, folds))


def _read_folds(dataset: DataSet, folds: int) -> list[list[str]]:
    cases = map(dataset.case_of, dataset.training_names(whole=True))
    return read_folds(_folds_file(dataset, folds), cases, folds, groups=dataset.groups)


def _folds_file(dataset: DataSet, folds: int) -> Path:
    has_lists = dataset.lists.parent != _SHIPPED and dataset.lists.is_dir()
    return folds_file(dataset.lists if has_lists else dataset.root, folds)


def locate(name: str, root_path: str = "", list_dir: str = "") -> tuple[Path, Path]:
    """The folder of a dataset and that of its lists, by the defaults that `build_dataset` names.

    Raises:
        FileNotFoundError: one that was named, or the data folder, is not there.
        ValueError: there is no such dataset, or the folder looks like that of another.
    """
    if name not in DATASETS:
        raise ValueError(f"--dataset is {name!r}; expected one of {', '.join(list_datasets())}")
    kind, root = DATASETS[name], Path(root_path or f"data/{name}")
    if not root.is_dir():
        how = f"prepare it with scripts/{kind.made_by}, or name" if kind.made_by else "make it, or name"
        raise FileNotFoundError(f"{root}: no such data folder; {how} another (--root_path)")
    within = root.name in kind.folders and (kind is not Folder or looks_like_folder(root.parent))
    if kind is Folder and within:
        root, within = root.parent, False
    elif looks_like_folder(root) and not any((root / one).is_dir() for one in (*kind.folders, "train", "Train_Folder")):
        raise ValueError(f"{root}: holds images and labels, and nothing of {name}; expected --dataset Folder for such")
    if list_dir and not Path(list_dir).is_dir() and kind is not Folder:  # whose split is written there
        raise FileNotFoundError(
            f"{list_dir}: no such folder of lists; expected train.txt and the like in it (--list_dir)"
        )
    beside = root.parent if within else root
    candidates = (Path(f"lists/lists_{name}"), beside / "lists")[name == "Folder" :]
    fallback = _SHIPPED / name.lower() if kind.ships_split else beside / "lists"
    return root, Path(list_dir) if list_dir else next((c for c in candidates if c.is_dir()), fallback)
