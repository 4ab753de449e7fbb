"""Files from strangers: whatever a file holds, a command takes it or names it in one line, and nothing else happens.

A case is a file that one command reads, spoiled in one way. Its name is its seed, so it can be had again, alone:

    FUZZ='h5/a link to a pipe' .venv/bin/python -m pytest tests/reliability/test_fuzz.py -k h5

Without FUZZ the short form runs, with `--long` every case. Demanded of each: exit code 0 or 2 (3, diverged, where other
numbers may be read), no traceback, one line on standard error that names the file, an end in time and in memory, no
code run, no file outside the output folder made or changed, and no output folder where a file was refused.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.reliability.forkserver import ForkServer, Outcome
from tests.reliability.fuzzing import BAD, EITHER, GOOD, Mutation, damaged, no_file_at_all
from tests.reliability.sandbox import Sandbox
from tests.reliability.targets import TARGETS, Target

pytestmark = [pytest.mark.reliability, pytest.mark.filterwarnings("ignore:Sparse CSR")]

_MEMORY = 2**29  # bytes: what a bad file may take beyond a sound one
_LONGEST_LINE = 2000


def _cases(name: str, sandbox: Sandbox, long: bool) -> Iterator[Mutation]:
    """The cases of one target, the sound file itself first: it must be taken, or a refusal would say nothing."""
    target = TARGETS[name]
    attacks, damages = target.long if long else target.short
    yield Mutation("as it is", lambda path, scene: path.write_bytes(scene.good), GOOD)
    yield from (Mutation(title, write) for title, write in islice(target.attacks.items(), attacks))
    if long and attacks is None:
        yield from (Mutation(title, write) for title, write in no_file_at_all().items())
    yield from damaged(name, damages, target.cut_is_bad)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(tmp_path_factory.mktemp("scratch")) as server:
        yield server


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, server: ForkServer) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("fuzz"), server)


@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name: str, sandbox: Sandbox, long: bool, record_property: Callable) -> None:
    only = os.environ.get("FUZZ", "")
    target, counts, faults, usual = TARGETS[name], Counter(), [], 0
    for mutation in _cases(name, sandbox, long or bool(only)):
        case = f"{name}/{mutation.name}"
        if usual and only not in ("", case):
            continue
        with sandbox.spoiled(target.file, mutation) as path:
            outcome = sandbox.run(target.prog, target.words(sandbox))
            usual = usual or outcome.peak
            counts[outcome.code] += 1
            faults += [f"{case}: {fault}" for fault in _faults(target, mutation, outcome, usual, path, sandbox)]
    record_property("counted", f"fuzz: {counts.total()} {name} files, {counts[2]} refused, {counts[0]} valid")
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def _faults(
    target: Target, mutation: Mutation, outcome: Outcome, usual: int, path: Path, sandbox: Sandbox
) -> Iterator[str]:
    """What a command did that it must not do; nothing when all is well."""
    if outcome.late:
        yield f"still ran after {outcome.seconds:.0f} s"
        return
    allowed = {BAD: {2}, GOOD: {0}, EITHER: {0, 2, 3} if target.other_numbers else {0, 2}}[mutation.verdict]
    if outcome.code not in allowed:
        yield f"exit code {outcome.code}, expected {allowed}: {outcome.error[-400:]}"
    if "Traceback" in outcome.output + outcome.error:
        yield f"a traceback: {outcome.error[-400:]}"
    if outcome.code == 2:
        yield from _faults_of_message(outcome.error, (str(path), *target.also))
        if sandbox.out.exists():
            yield "the output folder was made"
    elif outcome.code == 0 and outcome.error:
        yield f"noise: {outcome.error[:400]!r}"
    elif outcome.code == 0 and target.makes and not any(sandbox.out.glob(target.makes)):
        yield f"{target.makes} was not made"
    if outcome.peak > usual + _MEMORY:
        yield f"it took {(outcome.peak - usual) / 2**20:.0f} MiB more than the sound file"
    if sandbox.marker.exists():
        yield "code in the file has run"
    keeps = target.keeps if outcome.code != 2 else ()
    wrote = [path for path in outcome.wrote if not any(_is_partial_of(path, sandbox[file]) for file in keeps)]
    changed = [name for name in sandbox.changed() if name not in keeps]
    if wrote or changed:
        yield f"opened to write {wrote}, changed {changed}"


def _is_partial_of(path: str, file: Path) -> bool:
    return Path(path).parent == file.parent and Path(path).match(f".partial-*-{file.name}")


def _faults_of_message(error: str, names: tuple[str, ...]) -> Iterator[str]:
    if error.count("\n") != 1 or not error.endswith("\n") or not error[:-1].isprintable():
        yield f"expected one line: {error[:400]!r}"
    if len(error) > _LONGEST_LINE:
        yield f"a line of {len(error)} characters: {error[:200]!r}"
    if not any(name in error for name in names):
        yield f"the file is not named: {error[:400]!r}"


@pytest.mark.parametrize("name", TARGETS)
def test_command_line(name: str, sandbox: Sandbox, long: bool, record_property: Callable) -> None:
    """A few of the same cases by the command line itself, to hold the fork server to it."""
    if name not in ("npz",) and not long:
        pytest.skip("in the long form")
    target = TARGETS[name]
    mutation = next((case for case in _cases(name, sandbox, True) if case.verdict == BAD), None)
    if not mutation:
        pytest.skip("no file of this kind is refused")
    with sandbox.spoiled(target.file, mutation) as path:
        words = [str(word) for word in target.words(sandbox)]
        done = subprocess.run(
            [sys.executable, str(ROOT / f"{target.prog.replace('.', '/')}.py"), *words],
            cwd=sandbox["work"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2, done.stderr
        assert not list(_faults_of_message(done.stderr, (str(path), *target.also)))
        assert not sandbox.out.exists() and not sandbox.marker.exists()
    record_property("counted", f"fuzz: 1 {name} file by the command line, refused")


# Of bytes that are no text, of control characters, of what a shell or a formatter would take for its own.
_STRANGE_NAMES = (
    *(os.fsdecode(b"\xff\xfe"), "\x1b[2J", "$(touch ran)", "a\nb", "-rf", "a b", "..", "\u202e", "'\"", "%s", "{0}"),
    *("a" * 200, "\\", "$x_{$"),
)


def test_strange_names(sandbox: Sandbox, tmp_path: Path, long: bool) -> None:
    """A file's name is a stranger's too: it becomes part of a path, of messages and of the overlay's title."""
    for number, name in enumerate(_STRANGE_NAMES[: None if long else 4]):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(sandbox["scans/one.nii.gz"], folder / f"{name}.nii.gz")
        with sandbox.watched():
            outcome = sandbox.run("test", sandbox.test_words("--input", folder))
            assert outcome.code in (0, 2) and "Traceback" not in outcome.output + outcome.error, (name, outcome.error)
            faults = list(_faults_of_message(outcome.error, (str(folder),))) if outcome.code else [outcome.error]
            assert not any(faults), (name, faults)
            assert not outcome.wrote and not sandbox.changed() and len(list(folder.iterdir())) == 1
            assert sandbox.out.exists() == (outcome.code == 0)
