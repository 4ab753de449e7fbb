"""The datasets by name: `build_dataset("Synapse", "train", num_classes=9)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import acdc, histology, phantom, synapse
from datasets.base import Slices, Volumes
from datasets.check import check_all, check_quick, describe
from datasets.folds import folds_file, held_out, read_folds, write_folds
from datasets.groups import read_groups
from datasets.intensity import Reading, reading
from datasets.layouts import LAYOUTS, Layout

__all__ = [
    "build_dataset",
    "check_all",
    "check_quick",
    "describe",
    "class_names",
    "inspect",
    "keep_folds",
    "list_datasets",
    "locate",
    "read_groups",
    "reading",
    "split_cases",
]

_CLASS_NAMES = {
    "Synapse": synapse.ORGANS,
    "Phantom": synapse.ORGANS,
    "ACDC": acdc.CLASSES,
    "Folder": (),
    **histology.CLASSES,
}
_MADE_BY = {"Synapse": "prepare_synapse.py", "ACDC": "prepare_acdc.py"} | dict.fromkeys(
    histology.CLASSES, "prepare_histology.py"
)
_SHIPPED = Path(__file__).parent / "splits"


def list_datasets() -> list[str]:
    """Every name that `build_dataset` takes."""
    return sorted(_CLASS_NAMES)


def class_names(name: str, num_classes: int) -> list[str]:
    """Names of the classes 1..num_classes-1; `class N` where the dataset has no name for one."""
    known = _CLASS_NAMES.get(name, ()) if len(_CLASS_NAMES.get(name, ())) == num_classes - 1 else ()
    return list(known) or [f"class {i}" for i in range(1, num_classes)]


def inspect(
    name: str,
    *,
    root_path: str = "",
    list_dir: str = "",
    num_classes: int = 0,
    channels: int = 0,
    axis: str = "",
    orientation: str | None = None,
    folds: int = 0,
    phantom_options: Mapping[str, Any] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, Any]:
    """What a data set says of itself, by configuration key: its folders and, of files of one's own, all that is empty.

    Args:
        name: one of `list_datasets()`; a Folder is looked at whole, and split where it is not yet.
        root_path, list_dir: see `build_dataset`.
        num_classes, channels, axis, orientation, folds, progress: see `datasets.folder.look_through`.
        phantom_options: keywords of `datasets.phantom.prepare_phantom`, which makes what Phantom lacks.

    Raises:
        FileNotFoundError, ValueError, OSError: as in `build_dataset` and `datasets.folder.look_through`.
    """
    if name == "Phantom":
        phantom.prepare_phantom(Path(root_path or "data/Phantom"), **(phantom_options or {}))
    root, lists = locate(name, root_path, list_dir)
    how = {"num_classes": num_classes, "channels": channels, "axis": axis, "orientation": orientation}
    how |= {"folds": folds, "progress": progress}
    own = LAYOUTS[name].look_through(root, lists, **how)
    folders = {"DATA.ROOT_PATH": str(root), "DATA.VOLUME_PATH": str(root)}
    return own | folders | ({"DATA.LIST_DIR": str(lists)} if lists.is_dir() and lists.parent != _SHIPPED else {})


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
    preprocessing: Reading | None = None,
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
        preprocessing: see `datasets.reading`; by default the labels are the classes.

    Raises:
        FileNotFoundError: a folder, list or listed file is missing.
        ValueError: an unknown name or split, or a list that cannot be used.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split is {split!r}; expected train, val or test")
    root, lists = locate(name, root_path, list_dir)
    layout = LAYOUTS[name](root, lists, num_classes, preprocessing or reading(label_values=tuple(range(num_classes))))
    if split == "test" and not folds:
        return layout.tests(layout.names("test"))
    names, listed = layout.names("train"), layout.names("val")
    names = _all_names(layout, names, listed, folds)
    if folds:
        listed, parts = [], _read_folds(layout, names, root, lists, folds)
        names, tested = held_out(names, parts[fold], layout.case_of)
        if split == "test":
            return layout.cases(tested, "")
    train, held = split_cases(names, listed, val_cases, layout.case_of, lists / layout.val_list)
    return layout.slices(train, cache) if split == "train" else layout.cases(held, cache)


def _read_folds(layout: Layout, names: Sequence[str], root: Path, lists: Path, folds: int) -> list[list[str]]:
    path, cases = _folds_file(root, lists, folds), map(layout.case_of, names)
    return read_folds(path, cases, folds, groups=read_groups(root))


def keep_folds(
    name: str, *, num_classes: int, folds: int, preprocessing: Reading, root_path: str = "", list_dir: str = ""
) -> None:
    """Write the folds of a cross-validation for later runs, where they are not written yet: beside the lists, or in the
    data folder if it has none; keywords as of `build_dataset`.

    Raises:
        ValueError, OSError: as in `datasets.folds.read_folds` and `write_folds`.
    """
    root, lists = locate(name, root_path, list_dir)
    layout, path = LAYOUTS[name](root, lists, num_classes, preprocessing), _folds_file(root, lists, folds)
    if not path.is_file():
        names = _all_names(layout, layout.names("train"), layout.names("val"), folds)
        write_folds(path, _read_folds(layout, names, root, lists, folds))


def _all_names(layout: Layout, names: Sequence[str], listed: Sequence[str], folds: int) -> list[str]:
    """The training names and, where they are not among these already, those that validate."""
    if not (folds or layout.val_is_apart):
        return list(names)
    more = listed if layout.val_is_apart else [name for name in listed if name != layout.case_of(name)]
    return list(dict.fromkeys([*names, *more]))


def _folds_file(root: Path, lists: Path, folds: int) -> Path:
    return folds_file(root if lists.parent == _SHIPPED or not lists.is_dir() else lists, folds)


def locate(name: str, root_path: str = "", list_dir: str = "") -> tuple[Path, Path]:
    """The folder of a dataset and that of its lists, by the defaults that `build_dataset` names.

    Raises:
        FileNotFoundError: one that was named, or the data folder, is not there.
        ValueError: there is no such dataset.
    """
    if name not in _CLASS_NAMES:
        raise ValueError(f"--dataset is {name!r}; expected one of {', '.join(list_datasets())}")
    root = Path(root_path or f"data/{name}")
    if not root.is_dir():
        how = f"prepare it with scripts/{_MADE_BY[name]}, or name" if name in _MADE_BY else "make it, or name"
        raise FileNotFoundError(f"{root}: no such data folder; {how} another (--root_path)")
    if name == "Folder" and root.name in LAYOUTS[name].parts and (root.parent / LAYOUTS[name].parts[0]).is_dir():
        root = root.parent
    if list_dir and not Path(list_dir).is_dir():
        raise FileNotFoundError(
            f"{list_dir}: no such folder of lists; expected train.txt and the like in it (--list_dir)"
        )
    beside = root.parent if root.name in LAYOUTS[name].parts else root
    candidates = (Path(f"lists/lists_{name}"), beside / "lists")[name == "Folder" :]
    fallback = _SHIPPED / name.lower() if LAYOUTS[name].ships_a_split else beside / "lists"
    return root, Path(list_dir) if list_dir else next((c for c in candidates if c.is_dir()), fallback)


def split_cases(
    names: Sequence[str], listed: Sequence[str], val_cases: int, case_of: Callable[[str], str], where: object
) -> tuple[list[str], list[str]]:
    """Divide training names into training and validation, by whole cases.

    `listed` names the cases (or their slices) that validate; `val_cases` holds out that many of the last cases in order
    instead; `where` is the list, for messages.

    Raises:
        ValueError: nothing would be left to train on, or the list names a case that is not there.
    """
    cases = sorted({case_of(name) for name in names})
    if val_cases:
        held = set(cases[len(cases) - val_cases :] if val_cases < len(cases) else cases)
    else:
        held = {case_of(name) for name in listed}
        names = list(dict.fromkeys([*names, *(name for name in listed if name != case_of(name))]))
        lost = held - {case_of(name) for name in names}
        if lost:
            raise ValueError(
                f"{where}: names the case {min(lost)}, of which no slice is listed; "
                "expected slices or cases of train.txt"
            )
    train = [name for name in names if case_of(name) not in held]
    if not train:
        raise ValueError(
            f"validation holds out all {len(held)} cases and leaves none to train on; "
            f"expected fewer (--val_cases, {Path(str(where)).name})"
        )
    return train, [name for name in names if case_of(name) in held]
