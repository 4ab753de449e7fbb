"""The arrows of the house, and that importing a module defines things and does nothing else."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("selfreg", "configs", "datasets", "networks", "losses", "engine", "evaluation", "analysis", "scripts")
SINGLE = ("train", "test", "trainer", "utils")
OURS = {*ROOMS, *SINGLE}

# Which of our own rooms each may import, and what else beside the standard library.
MAY_IMPORT = {
    "selfreg/integrations/nnunet/nnUNetTrainerSelfReg": (set(), {"torch", "nnunetv2"}),
    "selfreg": (set(), {"torch"}),
    "configs": (set(), {"yacs", "yaml"}),
    "losses": ({"selfreg"}, {"torch"}),
    "networks": ({"selfreg", "engine"}, {"torch", "timm", "einops", "safetensors"}),
    "datasets": (
        {"utils"},
        {"numpy", "scipy", "torch", "h5py", "nibabel", "PIL", "SimpleITK", "imagecodecs", "pydicom", "tifffile"},
    ),
    "engine": ({"utils"}, {"numpy", "torch", "safetensors", "tqdm", "tensorboardX"}),
    # `inference` alone needs configs and the registry of networks: a trained network as a command line names it.
    "evaluation/inference": ({"configs", "datasets", "networks", "engine"}, {"torch"}),
    "evaluation": (
        {"datasets", "utils", "engine"},
        {"numpy", "scipy", "torch", "medpy", "matplotlib", "PIL", "tifffile", "jinja2"},
    ),
    "analysis": (
        {"selfreg", "configs", "datasets", "networks", "evaluation", "engine", "utils"},
        {"numpy", "torch", "matplotlib"},
    ),
    "utils": (set(), {"numpy", "torch", "filelock"}),
    "trainer": ({"selfreg", "engine", "utils"}, {"torch"}),
    "scripts": (
        OURS - {"scripts", "train", "test"},
        # tests: the naive versions that the benchmark measures against
        {"numpy", "scipy", "torch", "SimpleITK", "PIL", "tqdm", "safetensors", "matplotlib", "pandas", "tests"},
    ),
}


def sources() -> list[Path]:
    found = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return found + [ROOT / f"{name}.py" for name in SINGLE]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Top names of every import in a file, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    "path", [p for p in sources() if room_of(p) in MAY_IMPORT], ids=lambda p: str(p.relative_to(ROOT))
)
def test_arrows(path: Path) -> None:
    room = room_of(path)
    own = str(path.relative_to(ROOT).with_suffix(""))
    ours, others = MAY_IMPORT.get(own) or MAY_IMPORT[room]
    names = imported(path) - {room, "_path"} - sys.stdlib_module_names
    assert names & OURS <= ours, f"{path.name} of {room} may not import {names & OURS - ours}"
    assert names - OURS <= others, f"{path.name} of {room} may not import {names - OURS - others}"


def test_nobody_imports_the_commands() -> None:
    for path in sources():
        assert not imported(path) & ({"train", "test", "scripts"} - {room_of(path)}), path


def test_every_room_has_its_rule() -> None:
    assert {room_of(path) for path in sources()} <= {*MAY_IMPORT, "train", "test"}


def test_importing_does_nothing(tmp_path: Path) -> None:
    paths = [path for path in sources() if path.parent.name != "nnunet"]  # which may not be installed
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths]
    code = f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
    before = {p for p in ROOT.rglob("*") if ".git" not in p.parts and "__pycache__" not in p.parts}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
    assert {p for p in ROOT.rglob("*") if ".git" not in p.parts and "__pycache__" not in p.parts} == before


def test_selfreg_needs_torch_alone() -> None:
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('timm', 'einops', 'yacs', 'h5py', 'scipy'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import selfreg\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


@pytest.mark.parametrize("command", ["train.py", "test.py", "analysis/gradcam.py", "analysis/similarity.py"])
def test_help_needs_no_torch(command: str) -> None:
    words = [sys.executable, "-X", "importtime", command, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported_modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported_modules and "torch" not in imported_modules
    assert "--output" in done.stdout
