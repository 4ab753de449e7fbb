"""What every command needs: seeds, the device, logging, the environment, files that are whole or absent."""

from __future__ import annotations

import logging
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

_PACKAGES = ("torch", "torchvision", "timm", "einops", "numpy", "scipy", "h5py", "MedPy", "SimpleITK")


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch; `deterministic` also asks cuDNN for repeatable algorithms."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic


def generator_states() -> dict[str, Any]:
    """The state of every global generator that training draws from, as plain data."""
    states = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Put back what `generator_states` took."""
    kind, numbers, gauss = states["python"]
    random.setstate((kind, tuple(numbers), gauss))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])


def select_device(gpu_id: int, n_gpu: int = 1) -> torch.device:
    """The GPU `gpu_id` where there are GPUs and `n_gpu` is not 0, else the CPU.

    Raises:
        ValueError: there are GPUs, but not this one.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count or not n_gpu:
        return torch.device("cpu")
    if gpu_id >= count:
        raise ValueError(f"--gpu_id is {gpu_id}; expected 0..{count - 1}, there are {count} GPUs here")
    return torch.device("cuda", gpu_id)


def check_writable(path: Path, option: str) -> None:
    """Make sure, without making it, that an output folder can be made and written to.

    Raises:
        ValueError: a file is in the way, or the permission is missing.
    """
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise ValueError(f"{option}: {path} cannot be a folder, {existing} is a file; give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: {path} cannot be written, {existing} is read-only; give another folder")


def whole_or_absent(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, and put it in place only when it is complete."""
    temporary = path.with_name(f".partial-{path.name}")  # the suffix stays: writers choose their format by it
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    whole_or_absent(path, lambda temporary: torch.save(content, temporary))


def setup_logging(log_file: Path | None = None) -> None:
    """Send messages to standard output and, with every detail, to `log_file`."""
    root = logging.getLogger()
    close_logging()
    root.setLevel(logging.DEBUG)
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(logging.INFO)
    console.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(console)
    for noisy in ("matplotlib", "PIL", "h5py"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if log_file is not None:
        file = logging.FileHandler(log_file, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(file)


def close_logging() -> None:
    """Close what `setup_logging` opened."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h) in (logging.StreamHandler, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


def environment() -> dict[str, str]:
    """Versions, machine and the repository's commit, for the record of a run."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["git_commit"] = _git_commit()
    return found


def _git_commit() -> str:
    """The commit of this checkout, with `-dirty` where files differ from it; empty outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
