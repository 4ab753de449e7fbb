"""What every command needs: seeds, the device, logging, the environment, files that are whole or absent."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch

_log = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "timm", "einops", "numpy", "scipy", "h5py", "MedPy", "SimpleITK")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # options of mallopt(3)
_PARTIAL = ".partial-"  # what the name of a file that is being written begins with
_LOCK = ".lock"
_KEPT_MESSAGES = 10_000


def seed_everything(seed: int, deterministic: bool, rank: int = 0) -> None:
    """Seed Python, NumPy and torch; `deterministic` also asks a GPU for repeatable algorithms, where it has them.

    Every process of a run draws numbers of its own, which follow from the seed and its rank.
    """
    seed = random.Random(f"{seed} rank {rank}").getrandbits(32) if rank else seed
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def generator_states(device: torch.device) -> dict[str, Any]:
    """The state of every global generator that training on `device` draws from, as plain data."""
    kind, numbers, *rest = np.random.get_state()
    states = {"python": random.getstate(), "numpy": (kind, numbers.tolist(), *rest), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Any], device: torch.device) -> None:
    """Put back what `generator_states` took."""
    kind, numbers, gauss = states["python"]
    random.setstate((kind, tuple(numbers), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def select_device(gpu_id: int, n_gpu: int = 1, local_rank: int | None = None) -> torch.device:
    """The GPU `gpu_id` where there are GPUs and `n_gpu` is not 0, else the CPU.

    Of several processes on one machine each takes the GPU of its `local_rank`.

    Raises:
        ValueError: there are GPUs, but not this one.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count or not n_gpu:
        return torch.device("cpu")
    if local_rank is not None:
        gpu_id = local_rank
        if gpu_id >= count:
            raise ValueError(f"--nproc_per_node asks for more processes than the {count} GPUs here; give {count}")
    if gpu_id >= count:
        raise ValueError(f"--gpu_id is {gpu_id}; expected 0..{count - 1}, there are {count} GPUs here")
    torch.cuda.set_device(gpu_id)
    return torch.device("cuda", gpu_id)


def select_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """Set up the arithmetic of float32 matrices; returns the dtype to run the network in by autocast, or None.

    "float32" is float32 throughout, "tf32" lets a GPU round the factors to 10 bits, "bfloat16" runs under autocast.

    Raises:
        ValueError: the device has no such arithmetic.
    """
    on_gpu = device.type == "cuda"
    if precision == "tf32" and not on_gpu:
        raise ValueError("--precision is tf32 but the device is the CPU; expected float32 or bfloat16")
    if precision == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"--precision is bfloat16, which {torch.cuda.get_device_name(device)} lacks; expected float32 or tf32"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.bfloat16 if precision == "bfloat16" else None


def check_compiler(device: torch.device) -> None:
    """Make sure that torch.compile finds the compiler that it needs on this device.

    Raises:
        ValueError: there is none.
    """
    named = os.environ.get("CC" if device.type == "cuda" else "CXX")
    wanted = [named] if named else ["gcc", "clang"] if device.type == "cuda" else ["g++"]
    if not any(shutil.which(name) for name in wanted):
        raise ValueError(
            f"--compile: no compiler was found (looked for {' and '.join(wanted)}); "
            "install one (on Debian: apt-get install g++), or leave --compile out"
        )


def keep_freed_memory() -> None:
    """Let glibc keep large blocks for the next step instead of giving them back to the system.

    A step on the CPU frees and takes the same gigabytes again, and the system clears every page anew: a tenth of the
    step's time. Elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        c = ctypes.CDLL(None)
        c.mallopt(_M_MMAP_MAX, 0)
        c.mallopt(_M_TRIM_THRESHOLD, -1)


def release_pages(array: np.ndarray) -> None:
    """Give back the memory that a part of a `np.memmap` has taken; the file holds it. Other arrays are left alone."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    if isinstance(array, np.memmap) and array.mode != "c":  # of a private copy the memory is all there is
        array.base.madvise(mmap.MADV_DONTNEED)


def check_writable(path: Path, option: str) -> None:
    """Find out whether an output folder can be made and written to, without making it.

    Raises:
        ValueError: a file is in the way, or the permission is missing.
    """
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise ValueError(f"{option}: {path} cannot be a folder, {existing} is a file; give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: {path} cannot be written, {existing} is read-only; give another folder")


def atomic_write(path: Path, write: Callable[[Path], Any], *, keep: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, and put it in place only when it is complete and on the disk.

    `keep` is the path that the file which was there before takes.
    """
    temporary = path.with_name(f"{_PARTIAL}{path.name}")  # the suffix stays: writers choose their format by it
    try:
        try:
            write(temporary)
        except RuntimeError as error:  # torch's word for a disk that is full
            raise OSError(
                errno.EIO, f"cannot be written, is the disk full? ({first_line(error)})", str(path)
            ) from error
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have the new names of a folder on the disk, too, where the system can."""
    with suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a run's folder for this process alone, and make it where it is missing; what is left empty is removed.

    The lock is the system's and ends with the process, however that ends: a `.lock` that a killed run left is taken
    over. Workers that outlive a killed run do not inherit it.

    Raises:
        ValueError: another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path, descriptor = folder / _LOCK, None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        for partial in folder.glob(f"{_PARTIAL}*"):  # of a run that was killed while it wrote
            partial.unlink()
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)
        with suppress(OSError):  # only empty folders let themselves be removed
            for empty in made:
                empty.rmdir()


def _lock(path: Path) -> int:
    """The descriptor of the locked file; closing it gives the lock back."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock_whole(descriptor)
            # Its last owner may have removed the file after we opened it: then we hold a lock that nobody sees.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except (BlockingIOError, PermissionError):
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise ValueError(
                f"{path.parent}: is in use by {owner}; wait until that run ends, or give another --output_dir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            _log.warning("%s: this file system has no locks; see to it that no other run writes there", path.parent)
            return descriptor
        os.close(descriptor)


def _lock_whole(descriptor: int) -> None:
    """Lock a file for this process and none of its children; raises BlockingIOError where another has it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sum_heads(logits: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """The logits (B, K, H, W) that a network predicts by: of several heads the sum, in float32 at least."""
    if isinstance(logits, torch.Tensor):
        return logits
    return torch.stack([head if head.dtype == torch.float64 else head.float() for head in logits]).sum(dim=0)


def first_line(error: Exception) -> str:
    """The first line of an error's text, 100 characters at most."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


@contextmanager
def logging_session(name: str, *, quiet: bool = False) -> Iterator[None]:
    """Send messages to standard output for the length of a command; whatever stops it goes into the log file whole.

    A `quiet` process says nothing but warnings.
    """
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    logging.raiseExceptions = False  # a log that cannot be written must not cost the run
    root.setLevel(logging.DEBUG)
    for noisy in ("matplotlib", "PIL", "h5py"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    console.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(console)
    if not quiet:  # what is said before `log_to` knows its file is kept for it
        root.addHandler(MemoryHandler(_KEPT_MESSAGES, flushLevel=logging.CRITICAL + 1, flushOnClose=False))
    try:
        yield
    except BaseException:
        console.setLevel(logging.CRITICAL)
        logging.getLogger(name).debug("stopped by", exc_info=True)
        raise
    finally:
        for handler in [h for h in root.handlers if h not in before]:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)


def log_to(path: Path) -> None:
    """Write messages, with every detail, to a file too, those of the session so far and until it ends."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    for early in [h for h in root.handlers if isinstance(h, MemoryHandler)]:
        early.setTarget(handler)
        early.flush()
        root.removeHandler(early)
    root.addHandler(handler)


def environment(device: torch.device) -> dict[str, str]:
    """Versions, device and the repository's commit, for the record of a run."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found["processor"] = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    found["git_commit"] = _git_commit()
    return found


def _processor() -> str:
    """What the processor is called, where the system says it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
