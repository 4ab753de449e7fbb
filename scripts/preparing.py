"""What the scripts that prepare a data set share: defects first and together, no case made twice, lists last."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from datasets.base import Defect, Geometry

MANIFESTS = ".prepared"  # a folder beside the parts: of each case that is made, what from, how, and which files
LISTS = "lists"
NO_AXES = "unknown axes"
_VERSION = 2  # of the manifests and of what the scripts make; what another version made is made again
_STAGING = "unfinished-"
_SHOWN = 8

Facts = dict[str, Any]  # what is to be said of a case once it is made, as plain data that JSON can hold


class Case(Protocol):
    """What has to be known of a case: its plain name, the split it is in, and all files that it is made from."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def sources(self) -> tuple[Path, ...]: ...


C, Item, Result = TypeVar("C", bound=Case), TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class Recipe(Generic[C]):
    """How a script makes its cases.

    Args:
        parts: the folders of what is made, such as "train" or "train/img".
        settings: all that the files follow from beside their sources, by the name of the option.
        check: reads a case whole and returns everything that is wrong with it; writes nothing.
        make: writes a case's files into the parts of a folder, and returns its facts. Both may run in other processes.
        describe: the line that is printed of a case.
        lists: the lines of each list, by its file name, from all cases and their facts; from none, every list there is.
        preprocessing: "intensity", "window" and "axis_order" of the arrays, for later runs; None where they have none.
    """

    parts: tuple[str, ...]
    settings: Mapping[str, Any]
    check: Callable[[C], list[Defect]]
    make: Callable[[C, Path], Facts]
    describe: Callable[[C, Facts], str]
    lists: Callable[[Sequence[tuple[C, Facts]]], dict[str, list[str]]]
    preprocessing: Mapping[str, Any] | None = None

    def texts(self, done: Sequence[tuple[C, Facts]]) -> dict[str, str]:
        """The files of `LISTS` by name, the preprocessing first: what has lists has it."""
        from datasets.layouts import PREPARED

        prepared = {} if self.preprocessing is None else {PREPARED: json.dumps(self.preprocessing) + "\n"}
        return prepared | {name: "".join(f"{line}\n" for line in lines) for name, lines in self.lists(done).items()}


@dataclass(frozen=True)
class Manifest:
    """What a case was made from, by which settings, the SHA-256 of each of its files, and its facts."""

    sources: dict[str, list[int]]
    settings: dict[str, Any]
    made: dict[str, str]
    facts: Facts


@dataclass(frozen=True)
class _Plan(Generic[C]):
    """A case, its sources and settings as they are now, what it was before, and why it has to be made, if it has."""

    case: C
    sources: dict[str, list[int]]
    settings: dict[str, Any]
    before: Manifest | None
    reason: str | None


def prepare(
    recipe: Recipe[C], cases: Sequence[C], *, raw: Path, out: Path, jobs: int, defects: Sequence[Defect] = ()
) -> list[tuple[C, Facts]]:
    """Make every case that is not made yet, then the lists; prints a line for each, returns all with their facts.

    A case is made beside its place and moved there whole. Its manifest tells whether it has to be made again: it has
    where a source, a setting or a file of it is not as it was. Before the first case changes the lists go, and they
    come back after the last one: what has lists is whole.

    Args:
        defects: what is wrong already; all else is looked for before anything is raised.

    Raises:
        Defects: everything that is wrong with what was given; nothing is written then.
        ValueError: there are no processes, or the folder cannot be written.
        OSError: a file cannot be written.
    """
    from datasets.base import Defects
    from utils import check_writable, locked

    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; expected 1 or more")
    folders = [out / part for part in (*recipe.parts, LISTS, MANIFESTS)]
    for folder in folders:
        check_writable(folder, "OUT")
    plans = [_plan(case, recipe, raw, out) for case in cases]
    unmade = [plan.case for plan in plans if plan.reason is not None]
    found = [*defects, *(defect for of_case in in_order(unmade, recipe.check, jobs) for defect in of_case)]
    if found:
        raise Defects(raw, found)
    with locked(out):
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            done = _make_all(recipe, plans, out, jobs)
        finally:
            # rmdir takes only empty folders: those of a run that failed, or of a split without cases.
            for empty in (inner for folder in folders for inner in (folder, *folder.parents) if out in inner.parents):
                with suppress(OSError):
                    empty.rmdir()
    return done


def in_order(items: Sequence[Item], work: Callable[[Item], Result], jobs: int) -> Iterator[Result]:
    """The result for each item, in their order, worked out in this process or in several."""
    workers = min(jobs, len(items), os.cpu_count() or 1)
    if workers <= 1:
        yield from map(work, items)
        return
    # Spawned, not forked: a fork would take over the locks of libraries that already run threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(work, items)
        except BrokenProcessPool:
            raise OSError(f"a process of --jobs {jobs} was killed, likely for want of memory; give fewer") from None


def read_pair(
    image: Path, label: Path, axis_order: str, spacing: str = "affine"
) -> tuple[dict[Path, np.ndarray], list[Defect]]:
    """Read a NIfTI image and its label whole; returns the array of each that is well by itself, and what is wrong."""
    from datasets.base import defect_of
    from datasets.geometry import check_same_grid
    from datasets.readers import read_image, read_label

    read, defects = {}, []
    for path, read_file in ((image, read_image), (label, read_label)):
        try:
            read[path] = read_file(path, axis_order, spacing=spacing)
        except (ValueError, OSError) as error:
            defects.append(defect_of(path, error))
    if len(read) == 2:
        grids = [(path, array.shape, geometry) for path, (array, geometry) in read.items()]
        try:
            check_same_grid(*grids[1], *grids[0])
        except ValueError as error:
            defects.append(defect_of(label, error))
    return {path: array for path, (array, _) in read.items()}, defects


def axes_of(geometry: Geometry) -> str:
    """Where the axes of a NIfTI file of this geometry point, or `NO_AXES` where it does not say so."""
    from datasets.readers.orientation import has_orientation, orientation

    return orientation(geometry) if has_orientation(geometry) else NO_AXES


def numbers(values: Iterable[float]) -> str:
    """Numbers as text, such as "(0.7, 0.8, 3)"."""
    return f"({', '.join(f'{value:.7g}' for value in values)})"


def counts(names: Sequence[str], voxels: Iterable[int]) -> str:
    """How often each label occurs, the background first, as text."""
    return ", ".join(f"{name} {count}" for name, count in zip(("background", *names), voxels, strict=True))


def checksum(out: Path, names: Sequence[str]) -> str:
    """The line that tells lists apart: a SHA-256 over all of them, as sha256sum makes it."""
    digest = hashlib.sha256(b"".join((out / LISTS / name).read_bytes() for name in names)).hexdigest()
    return f"checksum of the lists: sha256 {digest} (cat {' '.join(names)} | sha256sum)"


def warn_of_axes(axes: Iterable[tuple[str, str]]) -> None:
    """Say so where cases, given as pairs of name and axes, differ in orientation, or where that is not known."""
    by_axes: dict[str, list[str]] = {}
    for name, letters in axes:
        by_axes.setdefault(letters, []).append(name)
    if len(by_axes) > 1:
        groups = "; ".join(f"{letters}: {', '.join(names)}" for letters, names in by_axes.items())
        print(f"WARNING: the cases differ in orientation, so some slices are mirrored against others ({groups})")
    if unknown := by_axes.get(NO_AXES):
        print(f"WARNING: of {len(unknown)} cases the files do not say where their axes point: {unknown[0]} ...")


def tell_next(dataset: str, out: Path, splits: set[str]) -> None:
    """Print the commands that train and test on what was made, as far as `splits`, those of the cases, allow it."""
    root, lists = shlex.quote(str(out)), shlex.quote(str(out / LISTS))
    if "train" in splits:
        print(f"next: python train.py --dataset {dataset} --root_path {root} --list_dir {lists} --output_dir RUN")
    if "test" in splits:
        print(f"then: python test.py --dataset {dataset} --volume_path {root} --list_dir {lists} --output_dir RUN")


def _plan(case: C, recipe: Recipe[C], raw: Path, out: Path) -> _Plan[C]:
    found = {path.relative_to(raw).as_posix(): path.stat() for path in case.sources if path.is_file()}
    sources = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}
    settings = json.loads(json.dumps({**recipe.settings, "split": case.split}))
    before = _read_manifest(out, case.name, recipe.parts)
    return _Plan(case, sources, settings, before, _why(out, before, sources, settings))


def _why(out: Path, before: Manifest | None, sources: dict[str, list[int]], settings: dict[str, Any]) -> str | None:
    """Why a case has to be made, as the end of its line, "" for the first time; None where it has not."""
    if before is None:
        return ""
    changed = [key for key in settings if before.settings.get(key) != settings[key]]
    if changed:
        return f"; made again: {', '.join(f'{key} was {before.settings.get(key)}' for key in changed)}"
    if before.sources != sources:
        return "; made again: its source files are not those of before"
    if any(not (out / name).is_file() or _digest(out / name) != digest for name, digest in before.made.items()):
        return "; made again: its files were missing or changed"
    return None


def _make_all(recipe: Recipe[C], plans: Sequence[_Plan[C]], out: Path, jobs: int) -> list[tuple[C, Facts]]:
    """Make the cases that have a reason for it, and the lists; prints a line for each case."""
    for left in (out / MANIFESTS).glob(f"{_STAGING}*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(mkdtemp(prefix=_STAGING, dir=out / MANIFESTS))
    unmade = [plan.case for plan in plans if plan.reason is not None]
    if unmade:
        _remove(out, (f"{LISTS}/{name}" for name in reversed(recipe.texts([]))))
    made = in_order(unmade, partial(_make_one, make=recipe.make, parts=recipe.parts, staging=staging, out=out), jobs)
    done = []
    try:
        for plan in plans:
            if plan.reason is None:
                facts, note = plan.before.facts, "; made before"
            else:
                facts = next(made)
                note = plan.reason + _settle(plan, facts, staging / plan.case.name, out)
            done.append((plan.case, facts))
            print(recipe.describe(plan.case, facts) + note, flush=True)
    finally:
        made.close()
        shutil.rmtree(staging, ignore_errors=True)
    texts = recipe.texts(done)
    _remove(out, (f"{LISTS}/{name}" for name in recipe.texts([]) if name not in texts))
    for path, text in ((out / LISTS / name, text) for name, text in texts.items()):
        if not path.is_file() or path.read_bytes() != text.encode():
            _write_text(path, text)
    others = sorted({path.stem for path in (out / MANIFESTS).glob("*.json")} - {plan.case.name for plan in plans})
    if others:
        shown = ", ".join(others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
        print(f"left as they are, made before and in no list now: {len(others)} cases, {shown}")
    return done


def _make_one(case: C, *, make: Callable[[C, Path], Facts], parts: Sequence[str], staging: Path, out: Path) -> Facts:
    """Make one case in a folder of its own, `staging` / its name."""
    folder = staging / case.name
    try:
        for part in parts:
            (folder / part).mkdir(parents=True)
        return json.loads(json.dumps(make(case, folder)))  # the same, whether it comes from here or from a manifest
    except OSError as error:
        # NumPy and HDF5 do not say which file it was that the disk had no room for.
        raise OSError(error.errno, error.strerror or str(error), error.filename or str(out)) from error


def _settle(plan: _Plan, facts: Facts, made_in: Path, out: Path) -> str:
    """Put a case's files and its manifest in place; returns what is to be said of files that were there before.

    The manifest comes first, and so owns every file that is there however this ends; it is believed only once
    each file has the digest that it names.
    """
    files = {path.relative_to(made_in).as_posix(): path for path in sorted(made_in.rglob("*")) if path.is_file()}
    made = {name: _digest(path) for name, path in files.items()}
    owned = set(plan.before.made) if plan.before else set()
    strangers = [name for name in made if name not in owned and (out / name).exists()]
    _remove(out, owned - set(made))
    content = {"version": _VERSION, **vars(Manifest(plan.sources, plan.settings, made, facts))}
    _write_text(_manifest_path(out, plan.case.name), json.dumps({**content, "seal": _seal(content)}, indent=1) + "\n")
    for name, path in files.items():
        path.replace(out / name)
    shutil.rmtree(made_in)
    return f"; replaces {len(strangers)} files that were made otherwise, such as {strangers[0]}" if strangers else ""


def _read_manifest(out: Path, name: str, parts: Sequence[str]) -> Manifest | None:
    """The manifest of a case, if there is one that can be understood and names files of the parts alone."""
    plain = re.compile(rf"(?:{'|'.join(map(re.escape, parts))})/\w[\w.\-]*")
    try:
        content = json.loads(_manifest_path(out, name).read_text(encoding="utf-8"))
        seal = content.pop("seal")
        if seal != _seal(content) or content.pop("version") != _VERSION:
            return None
        manifest = Manifest(**content)
        return manifest if manifest.made and all(plain.fullmatch(name) for name in manifest.made) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _manifest_path(out: Path, name: str) -> Path:
    return out / MANIFESTS / f"{name}.json"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    from utils import atomic_write

    atomic_write(path, lambda temporary: temporary.write_bytes(text.encode()))


def _remove(out: Path, names: Iterable[str]) -> None:
    for name in names:
        (out / name).unlink(missing_ok=True)
