"""A folder with one sound file of every kind that a command reads; a case spoils one, and it is put back."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from datasets.splits import write_folds
from tests.conftest import SMALL, make_synapse
from tests.reliability import samples
from tests.reliability.forkserver import ForkServer, Outcome
from tests.reliability.fuzzing import Mutation, Scene

_NETWORK = SMALL[SMALL.index("--img_size") :]


class Sandbox:
    """`box` holds the files, `out` beside it is the output folder of every command.

    Args:
        folder: an empty folder.
        server: runs the commands.
    """

    def __init__(self, folder: Path, server: ForkServer) -> None:
        self.box, self.out, self.server = folder / "box", folder / "out", server
        self.marker, self._pipe, self._work = self.box / "ran", self.box / "pipe", self.box / "work"
        self.data = make_synapse(self.box / "data")
        for name in ("work", "elsewhere"):
            (self.box / name).mkdir()
        os.mkfifo(self._pipe)
        samples.write_scans(self.box)
        self._make_lists()
        samples.write_own_folders(self.box)
        samples.write_acdc(self["acdc"])
        samples.write_downloads(self.box)
        self._make_run()
        self._before: dict[str, str] = {}

    def __getitem__(self, name: str) -> Path:
        return self.box / name

    def _make_lists(self) -> None:
        lists = Path(shutil.copytree(self.data / "lists", self["lists_with_val"]))
        write_folds(self.data / "lists/folds_2.json", [["case0000"], ["case0001"]])
        (lists / "val.txt").write_text("".join(f"case0001_slice00{index}\n" for index in range(3)))

    def _make_run(self) -> None:
        """Train for one step: a run's folder, and from it checkpoints of every sort."""
        from safetensors.torch import save_file

        outcome = self.run("train", self.train_words())
        if outcome.code:
            raise RuntimeError(f"the sound sandbox does not train: {outcome}")
        run, weights = self.out.rename(self["run"]), self["weights"]
        weights.mkdir()
        shutil.copy(run / "best.pth", weights / "w.pth")
        shutil.copy(run / "config.yaml", weights / "a.yaml")
        # As others save: without the checksum that would find every flipped bit before anything is read.
        for name, source in (("start.pth", "best.pth"), ("resume.pth", "last.pth")):
            torch.save(torch.load(run / source, weights_only=True), weights / name)
        save_file(torch.load(run / "best.pth", weights_only=True), weights / "w.safetensors")

    def train_words(self, *flags: object, network: Sequence[str] = _NETWORK) -> list[object]:
        """One step of training; `network` is what ends the line, after `flags`."""
        words = ["--dataset", "Synapse", "--root_path", self.data, "--output_dir", self.out, "--n_gpu", 0]
        words += ["--max_epochs", 1, "--max_iterations", 1, "--workers", 0, "--cache", "", "--batch_size", 4]
        return [*words, *flags, *network]

    def test_words(self, *flags: object, checkpoint: str = "run") -> list[object]:
        """A prediction, of the test volume unless `flags` name another input."""
        words = ["--checkpoint", self[checkpoint], "--output", self.out, "--volume_path", self.data, "--n_gpu", 0]
        return [*words, *flags, *([] if checkpoint == "run" else _NETWORK)]

    def own_words(self, root: str) -> list[object]:
        """One step of training on a folder of one's own; the cache lies where commands may write."""
        flags = ["--dataset", "Folder", "--root_path", self[root]]
        return self.train_words(*flags, *(["--cache", self.server.scratch / "cache"] if root == "volumes" else []))

    def acdc_words(self) -> list[object]:
        """The test volume of ACDC."""
        flags = ["--dataset", "ACDC", "--volume_path", self["acdc"], "--num_classes", 9]
        return self.test_words(*flags, checkpoint="weights/w.pth")

    def run(self, prog: str, words: Sequence[object]) -> Outcome:
        """Run a command with the sandbox around it."""
        return self.server.run(prog, words, cwd=self._work, output=self.out)

    @contextmanager
    def spoiled(self, file: str, mutation: Mutation) -> Iterator[Path]:
        """The sandbox with one file spoiled; as it was before once that is over."""
        path = self[file]
        good = path.read_bytes()
        elsewhere = self["elsewhere"] / f"secret{path.name[path.name.index('.') :]}"
        elsewhere.write_bytes(good)
        _remove(path)
        mutation.write(path, Scene(good, self.marker, elsewhere, self._pipe))
        try:
            with self.watched():
                yield path
        finally:
            _remove(path)
            path.write_bytes(good)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Remember how everything is, for `changed`; whatever is made in the meantime is removed."""
        self._before = self._snapshot()
        try:
            yield
        finally:
            for name in self.changed():
                _remove(self[name])
            _remove(self.out)

    def changed(self) -> list[str]:
        """What has been made, changed or removed in the sandbox since `watched` began."""
        return _differing(self._before, self._snapshot())

    def _snapshot(self) -> dict[str, str]:
        return {str(path.relative_to(self.box)): _content(path) for path in self.box.rglob("*")}


def _differing(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"a link to {os.readlink(path)}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "not a plain file"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
