"""What preparing shares: defects first and together, every case whole or not at all, the lists last."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from datasets.errors import Defect, Defects, defect_of
from datasets.sets.synapse import PREPARED
from utils import atomic_write, check_writable, locked

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ".prepared"  # a folder in OUT: of each case what it was made from, how, and which files
_SETTINGS = ("dataset", "labels", "scale", "window", "axis_order")  # the options that the files follow from
_VERSION = 3  # of what is made; what another version made is made again
_STAGING = ".unfinished-"  # and a number: a folder for the cases that are being made
NO_AXES = "unknown axes"


@dataclass(frozen=True)
class Case:
    """A case: its plain name, the split that it is in, and all files that it is made from."""

    name: str
    split: str
    sources: tuple[Path, ...]


@dataclass(frozen=True)
class Facts:
    """What is known of a case once it is made."""

    what: str  # its size and grid, as they are printed
    entries: list[str]  # its names in the list of its split
    counts: dict[str, int]  # of voxels or objects, by name
    axes: str = ""  # where they point
    doubt: str = ""  # said where it holds of all cases


@dataclass(frozen=True)
class Plan:
    """What is to be made of a data set; `read` and `write` may run in other processes."""

    cases: Sequence[Case]  # all that are to be in the lists
    found: str  # a sentence on them and their split
    defects: Sequence[Defect]  # of names and folders
    lists: Mapping[str, str]  # of each split, the file of its list; that of "val" is made only where it has cases
    read: Callable[[Case], Any]  # a case whole; raises Defects, ValueError or OSError
    write: Callable[[Case, Any, Path], Facts]  # what was read, into a folder
    train: str  # the command that README trains by, without the data, and the folder of its run
    run: str


class Record(NamedTuple):
    """What a case's files follow from (nothing, of one that is not finished), which they are, and its facts."""

    of: dict[str, Any]
    made: list[str]
    facts: Facts


def prepare(plan: Callable[[argparse.Namespace], Plan], args: argparse.Namespace) -> None:
    """Make every case that is not made yet, then the lists, and print a line for each.

    A case is made beside its place and renamed into it, its record last. It is made again where a source, a setting or
    the version is not as recorded. Before the first case changes the lists go, and they come back after the last one:
    what has lists is whole.

    Raises:
        Defects: everything that is wrong with what was given; nothing is written then.
        ValueError: the folder cannot be written, or another process prepares it.
        OSError: a file cannot be written.
    """
    check_writable(args.out, "OUT")
    with locked(args.out):  # planning too: what is to be made follows from what is there
        planned = plan(args)
        print(planned.found)
        _report(planned, _make_all(planned, args), args.out)


def _make_all(plan: Plan, args: argparse.Namespace) -> list[tuple[Case, Facts]]:
    out = args.out
    wanted = {case: _wanted(case, args) for case in plan.cases}
    before = {case: _read_record(out / RECORDS / f"{case.name}.json") for case in plan.cases}
    gone = {case for case, record in before.items() if not all((out / name).is_file() for name in record.made)}
    stale = [case for case in plan.cases if case in gone or before[case].of != wanted[case]]
    lists = [out / "lists" / name for name in (PREPARED, *plan.lists.values())]
    workers = min(args.jobs, len(stale), os.cpu_count() or 1)
    done = []
    for left in (*out.glob(f"{_STAGING}*"), *out.glob("*/.partial-*")):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
    with (
        TemporaryDirectory(prefix=_STAGING, dir=out, ignore_cleanup_errors=True) as staging,
        _mapping(workers) as mapped,
    ):
        found = [defect for defects in mapped(partial(_check, plan.read), stale) for defect in defects]
        if plan.defects or found:
            raise Defects(args.raw, [*plan.defects, *found])
        if stale:
            _remove(reversed(lists), out)
        made = iter(mapped(partial(_make, plan.read, plan.write, Path(staging)), stale))
        for case in plan.cases:
            facts, note = before[case].facts, "; made before"
            if case in stale:
                facts, note = next(made), "; made again" if before[case].made else ""
                _settle(case, before[case].made, wanted[case], facts, Path(staging, case.name), out)
            done.append((case, facts))
            print(f"{case.name}: {case.split}, {facts.what}; {_counted(facts.counts)}{note}", flush=True)
    texts = {}
    if hasattr(args, "axis_order"):  # how the arrays of volumes were made, for later runs
        how = {"intensity": getattr(args, "scale", "window"), "window": args.window, "axis_order": args.axis_order}
        texts[PREPARED] = _json(how)
    for split, name in plan.lists.items():
        entries = [f"{entry}\n" for case, facts in done if case.split == split for entry in facts.entries]
        if entries or split != "val":
            texts[name] = "".join(entries).encode()
    if any((path.read_bytes() if path.is_file() else None) != texts.get(path.name) for path in lists):
        _remove(reversed(lists), out)  # PREPARED is the last to go and the first to come: what has lists has it
        for name, text in texts.items():
            _write(out / "lists" / name, text)
    return done


def _wanted(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """What a case's files follow from, as JSON gives it back."""
    stats = {path.relative_to(args.raw).as_posix(): path.stat() for path in case.sources if path.is_file()}
    sources = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    settings = {key: getattr(args, key, None) for key in _SETTINGS}
    return json.loads(json.dumps({"version": _VERSION, "split": case.split, **settings, "sources": sources}))


def _read_record(path: Path) -> Record:
    try:
        content = json.loads(path.read_bytes())
        of = content.get("of", {})
        return Record(of, list(content["made"]), Facts(**content["facts"]) if of else Facts("", [], {}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # there is none, or it is damaged
        return Record({}, [], Facts("", [], {}))


def _check(read: Callable[[Case], Any], case: Case) -> list[Defect]:
    try:
        read(case)
    except Defects as error:
        return list(error.defects)
    except (ValueError, OSError) as error:
        named = (path for path in case.sources if str(path) in str(error))
        return [defect_of(next(named, case.sources[0]), error)]
    return []


def _make(read: Callable[[Case], Any], write: Callable[[Case, Any, Path], Facts], staging: Path, case: Case) -> Facts:
    try:
        return write(case, read(case), staging / case.name)
    except OSError as error:  # NumPy and HDF5 do not say which file it was that the disk had no room for
        raise OSError(error.errno, error.strerror or str(error), error.filename or str(staging)) from error


def _settle(case: Case, made: list[str], wanted: dict[str, Any], facts: Facts, folder: Path, out: Path) -> None:
    """Rename a case's files into place and remove its former ones; a record names all that is there at any moment."""
    new = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    record = out / RECORDS / f"{case.name}.json"
    _write(record, _json({"of": {}, "made": sorted({*made, *new}), "facts": {}}))
    _remove((out / name for name in made if name not in new), out)
    for name in new:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).replace(out / name)
    _write(record, _json({"of": wanted, "made": new, "facts": asdict(facts)}))


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, in this process or over several."""
    if workers <= 1:
        yield map
        return
    # Spawned, not forked: a fork would take over the locks of libraries that already run threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        try:
            yield pool.map
        except BrokenProcessPool:
            raise OSError(f"a process of --jobs {workers} was killed, is memory short? Give fewer") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the main process, and end with it: one that is killed says so to nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=[multiprocessing.parent_process()], daemon=True).start()


def _end_with(main: BaseProcess) -> None:
    main.join()
    os._exit(1)


def _report(plan: Plan, done: Sequence[tuple[Case, Facts]], out: Path) -> None:
    """Print each split, the checksum of the lists, what is doubtful, and the commands that train and test."""
    for split in plan.lists:
        total, of_split = Counter[str](), [facts for case, facts in done if case.split == split]
        for facts in of_split:
            total.update(facts.counts)
        print(f"{split}: {len(of_split)} cases{'; ' * bool(of_split)}{_counted(total)}")
    if others := sorted({path.stem for path in (out / RECORDS).glob("*.json")} - {case.name for case, _ in done}):
        print(f"left as they are, made before and in no list now: {len(others)} cases, {others[0]} ...")
    names = [name for name in plan.lists.values() if (out / "lists" / name).is_file()]
    digest = hashlib.sha256(b"".join((out / "lists" / name).read_bytes() for name in names)).hexdigest()
    print(f"checksum of the lists: sha256 {digest} (cat {' '.join(names)} | sha256sum)")
    by_axes: dict[str, list[str]] = {}
    for case, facts in done:
        by_axes.setdefault(facts.axes, []).append(case.name)
    if len(by_axes) > 1 or NO_AXES in by_axes:
        groups = "; ".join(f"{letters}: {', '.join(cases)}" for letters, cases in by_axes.items())
        print(f"WARNING: axes differ or are unknown, so some slices may be mirrored against others ({groups})")
    if all(facts.doubt for _, facts in done):
        print(f"WARNING: {done[0][1].doubt}")
    for split, line, words, option in (
        ("train", "next", plan.train, "--root_path"),
        ("test", "then", "test.py", "--volume_path"),
    ):
        if any(case.split == split for case, _ in done):
            print(f"{line}: {_command(words, option, out, plan.run)}")


def _command(words: str, option: str, out: Path, run: str) -> str:
    """A line for a shell in this folder, its script and yaml those of the repository."""
    found = [os.path.relpath(ROOT / word) if word.endswith((".py", ".yaml")) else word for word in words.split()]
    return shlex.join(["python", *found, option, str(out), "--list_dir", str(out / "lists"), "--output_dir", run])


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _json(content: object) -> bytes:
    return f"{json.dumps(content)}\n".encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def _remove(paths: Iterable[Path], out: Path) -> None:
    """Remove files, and the folders within `out` that this leaves empty."""
    for path in paths:
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if out not in folder.parents:
                break
            with suppress(OSError):  # only empty folders can be removed
                folder.rmdir()
