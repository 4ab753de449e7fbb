"""The datasets by name: `build_dataset("Synapse", "train", num_classes=9)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import phantom, synapse
from datasets.base import read_list, read_through
from datasets.cache import CachedSlices
from datasets.synapse import StackedSlices, SynapseSlices, SynapseVolumes, case_of
from datasets.verify import check_quick

__all__ = ["build_dataset", "check_all", "check_quick", "class_names", "list_datasets", "locate", "split_cases"]

_CLASS_NAMES = {"Synapse": synapse.ORGANS, "Phantom": synapse.ORGANS}
_PARTS = ("train_npz", "test_vol_h5")
_SHIPPED = Path(__file__).parent / "splits"


def list_datasets() -> list[str]:
    """Every name that `build_dataset` takes."""
    return sorted(_CLASS_NAMES)


def class_names(name: str, num_classes: int) -> list[str]:
    """Names of the classes 1..num_classes-1; `class N` where the dataset has no name for one."""
    known = _CLASS_NAMES.get(name, ()) if len(_CLASS_NAMES.get(name, ())) == num_classes - 1 else ()
    return list(known) or [f"class {i}" for i in range(1, num_classes)]


def build_dataset(
    name: str,
    split: str,
    *,
    num_classes: int,
    root_path: str = "",
    list_dir: str = "",
    val_cases: int = 0,
    cache: str = "",
    phantom_options: dict[str, Any] | None = None,
) -> SynapseSlices | CachedSlices | SynapseVolumes | StackedSlices:
    """One split of a dataset: "train" gives slices, "val" and "test" give volumes.

    Args:
        name: one of `list_datasets()`; Phantom is made in its folder on first use.
        split: "train", "val" (cases held out of training; may be empty) or "test".
        num_classes: K; labels outside 0..K-1 are refused as a file is read.
        root_path: folder with `train_npz` and `test_vol_h5`, or that folder itself; default `data/<name>`.
        list_dir: folder of the lists; default `lists/lists_<name>`, else the root's `lists`, else the shipped split.
        val_cases: how many training cases to hold out, the last ones in order; a `val.txt` list does the same.
        cache: a folder to keep the slices of "train" and "val" in, mapped into memory; "" reads the files themselves.
        phantom_options: keywords of `datasets.phantom.prepare_phantom`.

    Raises:
        FileNotFoundError: a folder, list or listed file is missing.
        ValueError: an unknown name or split, or a list that cannot be used.
    """
    if name not in _CLASS_NAMES:
        raise ValueError(f"--dataset is {name!r}; expected one of {', '.join(list_datasets())}")
    if split not in ("train", "val", "test"):
        raise ValueError(f"split is {split!r}; expected train, val or test")
    if name == "Phantom":
        phantom.prepare_phantom(Path(root_path or "data/Phantom"), **(phantom_options or {}))
    root, lists = locate(name, root_path, list_dir)
    if split == "test":
        return SynapseVolumes(_part(root, "test_vol_h5"), read_list(lists / "test_vol.txt"), num_classes)
    train, held_out = split_cases(read_list(lists / "train.txt"), lists / "val.txt", val_cases)
    folder = _part(root, "train_npz")
    if split == "train":
        return _slices(folder, train, num_classes, cache)
    return StackedSlices(_slices(folder, held_out, num_classes, cache))


def locate(name: str, root_path: str = "", list_dir: str = "") -> tuple[Path, Path]:
    """The folder of a dataset and that of its lists, by the defaults that `build_dataset` names.

    Raises:
        FileNotFoundError: one that was named, or the data folder, is not there.
    """
    root = Path(root_path or f"data/{name}")
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such data folder; prepare it with scripts/prepare_synapse.py, or name another (--root_path)"
        )
    if list_dir and not Path(list_dir).is_dir():
        raise FileNotFoundError(
            f"{list_dir}: no such folder of lists; expected train.txt and test_vol.txt in it (--list_dir)"
        )
    beside = root.parent if root.name in _PARTS else root
    candidates = (Path(f"lists/lists_{name}"), beside / "lists")
    shipped = _SHIPPED / name.lower()
    return root, Path(list_dir) if list_dir else next((c for c in candidates if c.is_dir()), shipped)


def split_cases(names: Sequence[str], val_list: Path, val_cases: int) -> tuple[list[str], list[str]]:
    """Divide slice names into training and validation, by whole cases.

    `val_list`, where it exists, names the cases (or their slices) that validate; `val_cases` holds out that many of
    the last cases in order instead.

    Raises:
        ValueError: nothing would be left to train on, or the list names a case that is not there.
    """
    cases = sorted({case_of(name) for name in names})
    if val_cases:
        held = set(cases[len(cases) - val_cases :] if val_cases < len(cases) else cases)
    elif val_list.is_file():
        listed = read_list(val_list)
        held = {case_of(name) for name in listed}
        names = list(dict.fromkeys([*names, *(name for name in listed if name != case_of(name))]))
        lost = held - {case_of(name) for name in names}
        if lost:
            raise ValueError(
                f"{val_list}: names the case {min(lost)}, of which no slice is listed; "
                "expected slices or cases of train.txt"
            )
    else:
        held = set()
    train = [name for name in names if case_of(name) not in held]
    if not train:
        raise ValueError(
            f"validation holds out all {len(held)} cases and leaves none to train on; "
            f"expected fewer (--val_cases, {val_list.name})"
        )
    return train, [name for name in names if case_of(name) in held]


def check_all(dataset: Sequence[Any], progress: Any = iter, threads: int = 8) -> None:
    """Read every item once, so that a bad file stops a run before it starts and not in its middle.

    Slices in a cache were read when it was built: only what is not in it, or has changed, is read again.

    Args:
        progress: wraps the iterator over the items, such as tqdm.

    Raises:
        ValueError: the first bad file, by name.
    """
    slices = getattr(dataset, "slices", dataset)
    if isinstance(slices, CachedSlices):
        slices.prepare(progress)
        return
    for _ in progress(read_through(dataset, threads)):
        pass


def _slices(folder: Path, names: Sequence[str], num_classes: int, cache: str) -> SynapseSlices | CachedSlices:
    slices = SynapseSlices(folder, names, num_classes)
    return CachedSlices(slices, cache) if cache and names else slices


def _part(root: Path, part: str) -> Path:
    """The folder of one part; `root` may be that folder itself, as some published commands have it."""
    return root / part if (root / part).is_dir() or root.name != part else root
