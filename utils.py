"""Seeds, the device, precision, logging, files written atomically, the environment: what every command needs."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import platform
import random
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import MemoryHandler
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "timm", "einops", "numpy", "scipy", "h5py", "MedPy", "SimpleITK")
_PARTIAL = ".partial-"  # prefix of a file that is being written
_PARTS = ("log", "overlays", "predictions")  # folders in that of a run
_LOCK = ".lock"
_MAX_EARLY_MESSAGES = 10_000


def seed_everything(seed: int, deterministic: bool, rank: int = 0) -> None:
    """Seed Python, NumPy and torch; with `deterministic` a GPU, too, gives the same numbers again, and takes longer.

    Every process of a run draws numbers of its own, which follow from the seed and its rank.
    """
    seed = random.Random(f"{seed} rank {rank}").getrandbits(32) if rank else seed
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    repeats = deterministic and torch.cuda.is_available()
    cuda = torch.backends.cuda
    # Fused attention adds up its gradients in any order, and torch does not count it among the algorithms that do.
    for enable in (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp):
        enable(not repeats)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if repeats:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


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


def select_precision(precision: str, device: torch.device, *, allow_slow: bool = False) -> torch.dtype | None:
    """Set the arithmetic of float32 matrix products; returns the dtype of autocast, or None.

    "float32" is float32 throughout, "tf32" lets a GPU round the factors to 10 bits, "bfloat16" runs under autocast.

    Raises:
        ValueError: the device has no such arithmetic; `allow_slow` lets a CPU emulate it.
    """
    on_gpu = device.type == "cuda"
    if precision == "tf32" and not on_gpu:
        raise ValueError("--precision is tf32 but the device is the CPU; expected float32 or bfloat16")
    if precision == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"--precision is bfloat16, which {torch.cuda.get_device_name(device)} lacks; expected float32 or tf32"
        )
    if precision == "bfloat16" and not on_gpu and not allow_slow and not _cpu_has_bfloat16():
        raise ValueError(
            "--precision is bfloat16 (--amp), for which this CPU has no instructions: a step would take up to 19 times "
            "as long; expected float32, or --opts SLOW_BFLOAT16 True to run it all the same"
        )
    # Not by `fp32_precision`, after which torch 2.11 itself, as it exports, raises that its flags differ.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.bfloat16 if precision == "bfloat16" else None


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself: avx512_bf16 and amx_bf16 on x86, bf16 on Arm."""
    return any(value is True and name.endswith("bf16") for name, value in torch.cpu.get_capabilities().items())


def check_compiler(device: torch.device) -> None:
    """Make sure that torch.compile finds the compiler that it needs on this device.

    Raises:
        ValueError: there is none.
    """
    named = os.environ.get("CC" if device.type == "cuda" else "CXX")
    wanted = [named] if named else ["gcc", "clang"] if device.type == "cuda" else ["g++"]
    if not any(shutil.which(name) for name in wanted):
        raise ValueError(
            f"--compile: no compiler was found (searched for {' and '.join(wanted)}); "
            "install one (on Debian: apt-get install g++), or leave --compile out"
        )


def count_workers() -> int:
    """How many processes read slices where that is not said: one a core that this process of the run has, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // _processes_here()))


def memory_share() -> int:
    """Bytes of memory for this process of the run: the machine's, or what SLURM or a container allows; 0: not known."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0]
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        group = Path("/sys/fs/cgroup", controllers, path.lstrip("/"))
        for folder in (group, *group.parents):
            for name in ("memory.max", "memory.limit_in_bytes"):  # of version 2 and 1
                with suppress(OSError, ValueError):
                    limits.append(int((folder / name).read_text()))
    return min(limits) // _processes_here()


def _processes_here() -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def tune_malloc() -> None:
    """Let glibc keep freed blocks for the next step: returned pages would be zeroed again, 10 % of a step on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4  # options of mallopt(3)
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def release_pages(array: np.ndarray) -> None:
    """Give back the memory of a `np.memmap`, whose content the file holds; other arrays are left alone."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    if isinstance(array, np.memmap) and array.mode != "c" and isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)


def sum_heads(logits: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """The logits (B, K, H, W) that a network predicts by: of several heads the sum, in float32 at least."""
    if isinstance(logits, torch.Tensor):
        return logits
    return torch.stack([head if head.dtype == torch.float64 else head.float() for head in logits]).sum(dim=0)


def first_line(error: Exception) -> str:
    """The first line of an error's text, 100 characters at most."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


def check_writable(path: Path, option: str) -> None:
    """Check that an output folder can be made and written to, without making it.

    The folder may itself be a link. Those in it would lead elsewhere what a run, or a test, writes there.

    Raises:
        ValueError: a file is in the way, the permission is missing, or there are links in it.
    """
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise ValueError(f"{option}: {path} cannot be a folder, {existing} is a file; give another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: {path} cannot be written, {existing} is read-only; give another folder")
    for link in (entry for part in ("", *_PARTS) for entry in (path / part).glob("*") if entry.is_symlink()):
        raise ValueError(f"{option}: {link} is a link, through which nothing is written; remove it")


def no_link(path: str, flags: int) -> int:
    """An opener for `open` that refuses a link, and a pipe that nobody reads."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def atomic_write(path: Path, write: Callable[[Path], object], *, keep: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, renamed to `path` once it is complete and on the disk.

    `keep` is the path that the former file is renamed to.

    Raises:
        OSError: it cannot be written; the former file is still there.
    """
    # A name that nobody can have put there before. The suffix stays: writers choose their format by it.
    temporary = path.with_name(f"{_PARTIAL}{secrets.token_hex(8)}-{path.name[-40:]}")
    try:
        try:
            temporary.touch(exist_ok=False)
            write(temporary)
        except RuntimeError as error:  # of torch, where the disk is full
            why = f"cannot be written, is the disk full? ({first_line(error)})"
            raise OSError(errno.EIO, why, str(path)) from error
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        with suppress(OSError):  # the new names on the disk, too; Windows opens no folders
            descriptor = os.open(path.parent, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8 by `atomic_write`, its line ends as they are."""
    atomic_write(path, lambda partial: partial.write_bytes(text.encode()))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process alone, making it where it is missing; what is left empty is removed.

    The lock is the operating system's and ends with the process, however that ends.

    Raises:
        ValueError: another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / _LOCK
    lock = FileLock(path, timeout=0, on_acquired=_sign)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            other = path.read_text("utf-8", errors="replace")[:200] or "another process"
            raise ValueError(f"{folder}: is in use by {other}; wait until it ends, or give another folder") from None
        except NotImplementedError:
            _log.warning("%s: this file system has no locks; make sure that no other run writes there", folder)
        for part in ("", *_PARTS):  # of a run that was killed while it wrote
            for partial in (folder / part).glob(f"{_PARTIAL}*"):
                partial.unlink()
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            if lock.is_locked:
                path.unlink()
        lock.release()
        with suppress(OSError):  # only empty folders can be removed
            for empty in made:
                empty.rmdir()


def _sign(descriptor: int) -> None:
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())


@contextmanager
def logging_session(name: str, *, quiet: bool = False) -> Iterator[None]:
    """Send messages to standard output while a command runs; what stops it goes into the log file with its traceback.

    A `quiet` process writes warnings only.
    """
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    logging.raiseExceptions = False  # a log that cannot be written must not end the run
    root.setLevel(logging.DEBUG)
    for noisy in ("matplotlib", "PIL", "h5py", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    console.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(console)
    if not quiet:  # messages from before `log_to` are kept for its file
        root.addHandler(MemoryHandler(_MAX_EARLY_MESSAGES, flushLevel=logging.CRITICAL + 1, flushOnClose=False))
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
    """Write all messages of the session, earlier ones too, to a file."""
    handler = logging.FileHandler(path, delay=True)
    handler.setStream(open(path, "a", encoding="utf-8", opener=no_link))  # noqa: SIM115 (closed with the handler)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    for early in [h for h in root.handlers if isinstance(h, MemoryHandler)]:
        early.setTarget(handler)
        early.flush()
        root.removeHandler(early)
    root.addHandler(handler)


def environment(device: torch.device) -> dict[str, str]:
    """Versions, device and the commit of the repository, for the record of a run."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    found["processor"] = f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    found["git_commit"] = ""  # outside a checkout
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            describe, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
        found["git_commit"] = done.stdout.strip()
    return found
