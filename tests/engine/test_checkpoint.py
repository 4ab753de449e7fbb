"""Checkpoints: any damage is noticed, and a writer that is killed leaves what was there."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import utils
from engine.checkpoint import Damaged, read_checkpoint, save_checkpoint
from tests.conftest import ROOT
from tests.reliability import runs


def test_every_flip_and_every_cut_is_noticed(tmp_path: Path, long: bool, record_property: Callable) -> None:
    """Of any bit: in tensors, in the filling between them, in the zip's directory and in the checksum itself."""
    path, bad = tmp_path / "a.pth", tmp_path / "b.pth"
    content = {"model": {f"w{i}": torch.randn(3, i + 1) for i in range(9)}, "step": 7}
    save_checkpoint(content, path)
    whole, rng = path.read_bytes(), random.Random(0)
    assert runs.same(read_checkpoint(path), content)
    assert runs.same(torch.load(path, weights_only=True), content), "any reader of checkpoints reads it"
    count = 4000 if long else 400
    for number in range(count):
        place = rng.randrange(len(whole))
        if number % 2:
            changed = whole[:place]
        else:
            changed = whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
        bad.write_bytes(changed)
        with pytest.raises(Damaged, match=re.escape(str(bad))):
            read_checkpoint(bad)
    record_property("counted", f"checkpoints flipped or cut: {count}, all noticed")


def test_a_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "released.pth")
    assert torch.equal(read_checkpoint(tmp_path / "released.pth")["a"], torch.ones(2))


def test_killed_in_the_middle_of_a_save(tmp_path: Path) -> None:
    """The writer dies with the file half there: the one that was there is still there, and whole."""
    path = tmp_path / "last.pth"
    save_checkpoint({"step": 1}, path)
    code = (
        "import os, sys, torch\nfrom engine.checkpoint import save_checkpoint\n"
        "from pathlib import Path\n"
        "real = torch.save\n"
        "def half(content, file):\n"
        "    real(content, file)\n"
        "    file.truncate(file.tell() // 2)\n"
        "    os.kill(os.getpid(), 9)\n"
        "torch.save = half\n"
        "last, previous = map(Path, sys.argv[1:])\n"
        "save_checkpoint({'step': 2, 'w': torch.ones(1000)}, last, keep=previous)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path, tmp_path / "previous.pth"], cwd=ROOT)
    assert done.returncode == -9 and len(list(tmp_path.glob(".partial-*-last.pth"))) == 1
    assert read_checkpoint(path) == {"step": 1} and not (tmp_path / "previous.pth").exists()
    with utils.locked(tmp_path):
        assert [left.name for left in tmp_path.iterdir() if left.name != ".lock"] == ["last.pth"]
